//! Processes the upstream's answers to messages.

use tracing::{debug, info, warn};

use super::exact::IN_USE;
use super::put_off::hash;
use super::sizes::size_there;
use super::{
    FIRST_PAUSE_MS, LONGEST_PAUSE_MS, Pause, RETAIN_NOT_SUPPORTED, SentMessage, SessionAction, TRANSIENT,
    UpstreamSession,
};
use crate::status::ledger::{DropReason, LedgerOutcome};

impl UpstreamSession {
    /// Records that the oldest message handed over and not yet sent has been sent.
    pub(crate) fn sent(&mut self, packet_id: u16) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let waiting = |message: &&mut SentMessage| message.packet_id.is_none() && message.is_unanswered();
        if let Some(message) = self.in_flight.iter_mut().find(waiting) {
            message.packet_id = Some(packet_id);
            if packet_id == 0 {
                message.outcome = Some(LedgerOutcome::SentUnconfirmed);
                self.settle(&mut actions);
            }
        }
        actions
    }

    /// Processes the upstream's answer to a message.
    pub(crate) fn acked(&mut self, packet_id: u16, reason: u8, now: u64) -> Vec<SessionAction> {
        self.last_answer = now;
        let mut actions = self.others_answered(now);
        let is_it = |message: &SentMessage| message.packet_id == Some(packet_id) && message.is_unanswered();
        let Some(at) = self.in_flight.iter().position(is_it) else { return actions };
        self.is_out_of_order |= self.in_flight.iter().take(at).any(SentMessage::is_awaited);
        self.is_not_silent();
        self.answers_late(at, now);
        self.confirms_earlier(at);
        if self.in_flight[at].is_passed {
            self.is_passing = false;
            self.answered_late(at);
        }
        if self.is_there(at, reason) {
            actions.extend(self.recorded(packet_id, now));
            return actions;
        }
        let message = &mut self.in_flight[at];
        let refused = reason >= 0x80;
        if let Some(source) = message.source.as_ref().filter(|_| refused) {
            let (upstream, topic) = (&self.name, source.message.view().topic());
            debug!(upstream, topic, reason, "the upstream refuses a message");
        }
        if message.is_status {
            self.status_acked(at, reason, now, &mut actions);
        } else if reason == RETAIN_NOT_SUPPORTED && message.retain && message.source.is_some() {
            self.hold_again(at);
            self.refuse_retain("reason code 0x9A", now);
        } else if TRANSIENT.contains(&reason) {
            self.refused_for_now(at, reason, now, &mut actions);
        } else if !refused && self.was_trial(at) {
            self.got_through = true;
            self.hold_again(at);
        } else if !self.proves_flag(at, now) {
            self.has_outcome(at, refused, now, &mut actions);
        }
        self.rest(now, &mut actions);
        actions
    }

    /// Handles the answer to the status.
    fn status_acked(&mut self, at: usize, reason: u8, now: u64, actions: &mut Vec<SessionAction>) {
        let message = &mut self.in_flight[at];
        let (refused, had_flag) = (reason >= 0x80, message.retain);
        message.outcome = Some(LedgerOutcome::Acked);
        self.status_refused(refused.then_some(reason), now);
        if had_flag && !refused {
            self.retain_is_taken();
        }
        self.status_answered(now, actions);
        if had_flag && reason == RETAIN_NOT_SUPPORTED {
            self.say_status_again(now, actions);
        } else if TRANSIENT.contains(&reason) {
            self.say_status_later(now);
        }
        self.settle(actions);
    }

    /// Handles a refusal of a message that may be taken later.
    fn refused_for_now(&mut self, at: usize, reason: u8, now: u64, actions: &mut Vec<SessionAction>) {
        let message = &mut self.in_flight[at];
        message.again = true;
        let (is_exact, packet_id) = (message.is_exact, message.packet_id);
        self.quota.refused(now);
        if let (IN_USE, true, Some(packet_id)) = (reason, is_exact, packet_id) {
            // the id is in use by a message from another time, so it is freed
            self.free_id(packet_id, actions);
        }
        if self.pause.is_none() {
            self.pauses += 1;
            self.pause = Some(Pause { until: None, times: self.pauses });
        }
    }

    /// Handles an answer after which the message is not sent again.
    fn has_outcome(&mut self, at: usize, refused: bool, now: u64, actions: &mut Vec<SessionAction>) {
        self.watch_after(at, now);
        self.got_through |= !refused;
        self.put_off.trial.others_arrive(!refused);
        if self.in_flight[at].retain && !refused {
            self.retain_is_taken();
        }
        let message = &mut self.in_flight[at];
        let copy = message.gone_to.filter(|_| !refused);
        let outcome = if refused { LedgerOutcome::Dropped(DropReason::Refused) } else { LedgerOutcome::Acked };
        message.outcome = Some(outcome);
        actions.extend(message.deletes.take().filter(|_| !refused).map(SessionAction::Deleted));
        if !refused && self.pause.is_none() {
            self.pauses = 0;
            self.limits_hold(now);
            let most = self.link.map_or(1, |link| self.most_in_flight(link));
            if self.quota.acked(most, now) {
                info!(upstream = self.name, "the upstream has taken all messages for a minute");
            }
        }
        if let Some((lane, position)) = copy {
            self.copy_arrived(lane, position);
        }
        self.settle(actions);
    }

    /// Whether a message was acknowledged without its retain flag and must be sent again with it: see [`suspect`].
    fn proves_flag(&mut self, at: usize, now: u64) -> bool {
        let message = &self.in_flight[at];
        if message.source.is_none() {
            return false;
        }
        if message.is_exact {
            self.suspicion.arrived_exactly();
            self.exact_is_taken();
        }
        let Some(source) = &self.in_flight[at].source else { return false };
        let topic = || hash(source.message.view().topic());
        let size = size_there(&source.message);
        if self.suspicion.acked((source.lane, source.position), (topic, size), now) {
            if self.suspicion.doubts_exact() {
                self.refuse_exact("it closes the connection when it gets it", now);
            }
            return false;
        }
        self.got_through = true;
        self.hold_again(at);
        true
    }

    /// Marks an answered message to be sent again.
    fn hold_again(&mut self, at: usize) {
        let message = &mut self.in_flight[at];
        (message.packet_id, message.held) = (None, true);
        if let Some(source) = &mut message.source {
            (source.resent, source.is_possible, source.is_begun) = (false, false, false);
            // counted again when it is handed over
            self.under_way.end(source);
        }
        self.held += 1;
    }

    /// Begins the pause when everything in flight is answered: accepted messages are settled, the others are sent again.
    fn rest(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let Some(pause) = self.pause.as_mut().filter(|pause| pause.until.is_none()) else { return };
        if self.in_flight.iter().any(SentMessage::is_awaited) {
            return;
        }
        let wait = (FIRST_PAUSE_MS << (pause.times - 1).min(10)).min(LONGEST_PAUSE_MS);
        pause.until = Some(now + wait);
        let times = pause.times;
        let most = self.link.map_or(1, |link| self.most_in_flight(link));
        if self.quota.rests(times, most) {
            let (upstream, seconds) = (&self.name, wait / 1000);
            warn!(upstream, times, seconds, "the upstream's quota is exceeded: messages wait, none is lost");
        }
        self.put_off_exchanges();
        for message in std::mem::take(&mut self.in_flight) {
            if message.is_passed && message.is_unanswered() {
                self.in_flight.push_back(message.with_id_only());
                continue;
            }
            match (message.source, message.outcome) {
                (Some(source), Some(outcome)) => self.end(source, outcome, actions),
                (None, _) => self.own_put_off |= message.again,
                _ => {}
            }
        }
        (self.held, self.waiting, self.under_way) = (0, 0, super::UnderWay::default());
        self.look_at_spread();
        actions.push(SessionAction::Rewind);
    }
}
