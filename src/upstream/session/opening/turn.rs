//! The opening of an upstream that may close the connection because of it: messages and parts take turns.
//!
//! 1. Waiting messages are sent, for [`TURN_MS`] if there are always more.
//! 2. Their answers are waited for, so that nothing else is unanswered.
//! 3. One part is sent, and its answer is waited for.
//!
//! If a connection ends in the first two steps, parts go before messages on the next one. So neither keeps the other from
//! ever being sent.

use super::{AskedPatience, OpeningStep, SessionAction, UpstreamSession};
use crate::message::Qos;

/// How long messages are sent before the next part, in milliseconds.
pub(crate) const TURN_MS: u64 = 500;
/// How long an answer is waited for, in milliseconds.
pub(crate) const ANSWER_MS: u64 = 10_000;

/// Whose turn it is, and until when.
#[derive(Clone, Copy, Debug)]
pub(super) enum OpeningTurn {
    /// Messages are sent, as long as some wait.
    Messages(u64),
    /// Nothing is sent until all is answered.
    Answers(u64),
    /// A part was sent, and has no answer yet.
    Part(u64),
}

impl OpeningTurn {
    pub(super) fn until(self) -> u64 {
        let (Self::Messages(until) | Self::Answers(until) | Self::Part(until)) = self;
        until
    }

    pub(super) fn holds_messages(self) -> bool {
        !matches!(self, Self::Messages(_))
    }

    /// Whether a part has no answer yet.
    pub(super) fn is_part(self) -> bool {
        matches!(self, Self::Part(_))
    }
}

impl UpstreamSession {
    /// Lets messages go before the next part, unless the parts go first.
    pub(super) fn begin_turn(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.goes_first || self.opening.queue.is_empty() {
            self.say_next(now, actions);
        } else {
            self.opening.turn = Some(OpeningTurn::Messages(now + TURN_MS));
        }
    }

    /// Sends no more messages until the next part is sent.
    pub(super) fn wait_for_answers(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.turn = Some(OpeningTurn::Answers(now + ANSWER_MS));
        if !self.awaits_answers() {
            self.say_next(now, actions);
        }
    }

    /// Whether a message is unanswered.
    fn awaits_answers(&self) -> bool {
        self.in_flight.iter().any(|message| message.is_awaited() && !message.is_status)
    }

    /// Whether a message may be the reason for an end of the connection as well as the part that was sent last.
    pub(super) fn may_be_message(&self) -> bool {
        self.opening.has_unconfirmed || self.awaits_answers()
    }

    /// Whether parts of the opening follow, so that [`UpstreamSession::open_further`] is to be called.
    pub(crate) fn is_opening(&self) -> bool {
        self.opening.turn.is_some_and(|turn| !turn.is_part())
    }

    /// Sends the next part if messages have had their turn. `is_idle` tells that none waits.
    pub(crate) fn open_further(&mut self, is_idle: bool, now: u64) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let is_due = match self.opening.turn {
            Some(OpeningTurn::Messages(_)) => is_idle && self.held == 0,
            Some(OpeningTurn::Answers(_)) => true,
            Some(OpeningTurn::Part(_)) | None => false,
        };
        if is_due && !self.awaits_answers() {
            self.say_next(now, &mut actions);
        }
        actions
    }

    /// Sends the next part.
    fn say_next(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.turn = None;
        while let Some(what) = self.opening.queue.pop_front() {
            if self.opening.entries.is_left_out(&what, now) {
                continue;
            }
            match what {
                OpeningStep::Filter(filter) => {
                    // the rules may have changed since
                    let mut wanted = self.rules.subscriptions();
                    wanted.retain(|(known, _)| *known == filter);
                    self.subscribe(wanted, now, actions);
                }
                OpeningStep::Status => self.say_status(now, actions),
            }
            // a status at QoS 0 has no answer
            if !self.opening.is_answered() {
                self.opening.turn = Some(OpeningTurn::Part(now + ANSWER_MS));
                return;
            }
        }
        (self.opening.cautious, self.opening.goes_first) = (false, false);
    }

    /// Goes on after an answer.
    pub(super) fn go_on(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.turn.is_some_and(OpeningTurn::is_part) && self.opening.is_answered() {
            self.begin_turn(now, actions);
        }
    }

    /// Handles the end of a turn.
    pub(super) fn turn_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        match self.opening.turn.filter(|turn| turn.until() <= now) {
            Some(OpeningTurn::Messages(_)) => self.wait_for_answers(now, actions),
            Some(OpeningTurn::Answers(_)) => self.say_next(now, actions),
            Some(OpeningTurn::Part(_)) => self.part_is_overdue(now, actions),
            None => {}
        }
    }

    /// Sends all parts, because the last one has not ended the connection.
    fn part_is_overdue(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let alone = self.opening.alone();
        while self.opening.turn.is_some() {
            self.say_next(now, actions);
        }
        for asked in self.opening.unanswered.iter_mut().filter(|asked| asked.patience != AskedPatience::Nothing) {
            asked.patience = AskedPatience::Unreported;
        }
        self.opening.status_unanswered = false;
        self.opening.overdue = alone;
    }
}

impl super::SessionOpening {
    /// Records that a message is sent.
    pub(crate) fn sends(&mut self, qos: Qos) {
        self.has_unconfirmed |= qos == Qos::AtMostOnce;
    }
}
