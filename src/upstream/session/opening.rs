//! What is said before any message: subscriptions and the status.
//!
//! An upstream may close the connection at one of them, because of a policy or a limit. As long as one is unanswered, it is
//! suspected before any message is. On the next connection they are said one after the other, each when the one before it
//! is answered; what ends the connection twice while it is alone is left out for an hour, and forwarding goes on.

use std::collections::VecDeque;

use tracing::{debug, info, warn};

use super::{SessionAction, UpstreamSession};
use crate::message::{Qos, TopicFilter};

/// Filters in one packet: AWS IoT Core closes the connection when there are more.
pub(crate) const FILTERS: usize = 8;
/// An answer that does not come within this time holds up nothing.
pub(crate) const ANSWER_MS: u64 = 10_000;
/// What is left out is tried again after this time.
const LEFT_OUT_MS: u64 = 3_600_000;
/// [MQTT-5 3.9.3]
const UNSPECIFIED: u8 = 0x80;
/// Connections that one of them may end before it is left out.
const STRIKES: u32 = 2;

/// One thing to say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OpeningStep {
    Filter(TopicFilter),
    Status,
}

#[derive(Clone, Debug)]
struct OpeningEntry {
    what: OpeningStep,
    strikes: u32,
    /// Left out until then.
    until: Option<u64>,
}

/// How far it is.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionOpening {
    /// One after the other.
    cautious: bool,
    /// Each filter has a packet of its own.
    single: bool,
    /// Still to be said on this connection.
    queue: VecDeque<(OpeningStep, Qos)>,
    /// Said and not answered.
    unanswered: VecDeque<Vec<TopicFilter>>,
    status_unanswered: bool,
    /// When the next is said although there is no answer.
    patience: Option<u64>,
    entries: Vec<OpeningEntry>,
    /// The retain flag is left out of the status to see whether it is what ends connections.
    status_without_flag: bool,
}

impl SessionOpening {
    /// Whether messages have to wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.patience.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        self.patience
    }

    fn is_left_out(&self, what: &OpeningStep, now: u64) -> bool {
        self.entries.iter().any(|entry| entry.what == *what && entry.until.is_some_and(|until| now < until))
    }

    /// Whether one of these is suspected.
    pub(crate) fn blames(&self) -> bool {
        self.cautious || !self.entries.is_empty()
    }

    /// What is unanswered, if it is one thing alone.
    fn alone(&self) -> Option<OpeningStep> {
        match (self.unanswered.len(), self.status_unanswered) {
            (0, true) => Some(OpeningStep::Status),
            (1, false) => match &self.unanswered[0][..] {
                [filter] => Some(OpeningStep::Filter(filter.clone())),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_answered(&self) -> bool {
        self.unanswered.is_empty() && !self.status_unanswered
    }

    /// The connection is gone.
    fn clear(&mut self) {
        self.queue.clear();
        self.unanswered.clear();
        (self.status_unanswered, self.patience) = (false, None);
    }

    fn strike(&mut self, what: OpeningStep, now: u64) -> u32 {
        let at = self.entries.iter().position(|entry| entry.what == what).unwrap_or_else(|| {
            self.entries.push(OpeningEntry { what, strikes: 0, until: None });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        entry.strikes += 1;
        if entry.strikes >= STRIKES {
            entry.until = Some(now + LEFT_OUT_MS);
        }
        entry.strikes
    }

    fn acquit(&mut self, what: &OpeningStep) {
        self.entries.retain(|entry| entry.what != *what);
    }

    /// Other rules or settings: everything is tried again.
    pub(crate) fn forget(&mut self) {
        (self.single, self.status_without_flag) = (false, false);
        self.entries.clear();
    }
}

impl UpstreamSession {
    /// There is a connection: says what there is to say.
    pub(super) fn open(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.clear();
        let subscriptions = self.rules.subscriptions();
        if self.opening.cautious {
            let filters = subscriptions.into_iter().map(|(filter, qos)| (OpeningStep::Filter(filter), qos));
            let status = self.status_topic.is_some().then_some((OpeningStep::Status, Qos::AtLeastOnce));
            self.opening.queue = filters.chain(status).collect();
            self.say_next(now, actions);
            return;
        }
        self.subscribe(subscriptions, now, actions);
        if !self.opening.is_left_out(&OpeningStep::Status, now) {
            self.say_status(now, actions);
        }
    }

    /// Subscribes, a few filters in a packet.
    pub(super) fn subscribe(&mut self, wanted: Vec<(TopicFilter, Qos)>, now: u64, actions: &mut Vec<SessionAction>) {
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|(f, _)| !self.opening.is_left_out(&OpeningStep::Filter(f.clone()), now))
            .collect();
        for part in wanted.chunks(if self.opening.single { 1 } else { FILTERS }) {
            self.opening.unanswered.push_back(part.iter().map(|(filter, _)| filter.clone()).collect());
            actions.push(SessionAction::Subscribe(part.to_vec()));
        }
    }

    fn say_status(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let Some(mut status) = self.status("online") else { return };
        status.retain &= !self.opening.status_without_flag;
        self.opening.status_unanswered = status.qos != Qos::AtMostOnce;
        let mut message = super::SentMessage::new(None, now);
        message.is_status = true;
        self.in_flight.push_back(message);
        actions.push(SessionAction::Publish(status));
    }

    /// Says the next thing, when the one before it is answered.
    fn say_next(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.patience = None;
        while let Some((what, qos)) = self.opening.queue.pop_front() {
            if self.opening.is_left_out(&what, now) {
                continue;
            }
            self.opening.patience = Some(now + ANSWER_MS);
            match what {
                OpeningStep::Filter(filter) => self.subscribe(vec![(filter, qos)], now, actions),
                OpeningStep::Status => self.say_status(now, actions),
            }
            return;
        }
        self.opening.cautious = false;
    }

    /// Something was answered.
    fn go_on(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.patience.is_some() && self.opening.is_answered() {
            self.say_next(now, actions);
        }
    }

    /// Time has come so far.
    pub(super) fn opening_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.patience.is_some_and(|until| until <= now) {
            // it has not ended the connection, and neither will the rest
            while self.opening.patience.is_some() {
                self.say_next(now, actions);
            }
            self.opening.unanswered.clear();
            self.opening.status_unanswered = false;
        }
    }

    /// The upstream has answered to a subscription.
    pub(crate) fn subscribed(&mut self, reasons: &[u8], now: u64) -> Vec<SessionAction> {
        let upstream = &self.name;
        let filters = self.opening.unanswered.pop_front().unwrap_or_default();
        for (at, filter) in filters.iter().enumerate() {
            // an answer that says nothing about a filter has not granted it
            let reason = reasons.get(at).copied().unwrap_or(UNSPECIFIED);
            if self.is_quiet {
                debug!(upstream, %filter, reason, "subscribed, or not");
            } else if reason >= 0x80 {
                let rule = self.rules.place_of(filter);
                warn!(upstream, %filter, rule, reason, "the upstream refuses the subscription: nothing comes down by it");
            } else {
                info!(upstream, %filter, qos = reason, "subscribed");
            }
            self.opening.acquit(&OpeningStep::Filter(filter.clone()));
        }
        let mut actions = Vec::new();
        self.go_on(now, &mut actions);
        actions
    }

    /// The upstream has answered to the status.
    pub(super) fn status_answered(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.status_unanswered = false;
        self.opening.acquit(&OpeningStep::Status);
        if std::mem::take(&mut self.opening.status_without_flag) {
            self.refuse_retain("it closes the connection when it gets the flag");
        }
        self.go_on(now, actions);
    }

    /// The upstream closed the connection: whether it did so before all this was answered.
    pub(super) fn opening_ended(&mut self, now: u64) -> bool {
        if self.opening.is_answered() {
            return false;
        }
        let alone = self.opening.alone().filter(|_| self.opening.patience.is_some());
        let upstream = &self.name;
        (self.opening.cautious, self.opening.single) = (true, true);
        match alone {
            None => {
                info!(upstream, "the upstream closed the connection before it had answered: one thing at a time now")
            }
            Some(what) => {
                let strikes = self.opening.strike(what.clone(), now);
                match &what {
                    OpeningStep::Filter(filter) if strikes >= STRIKES => {
                        let rule = self.rules.place_of(filter);
                        warn!(
                            upstream, %filter, rule,
                            "the upstream closes the connection when asked for this subscription: nothing comes down by \
                             it, and it is left out for an hour"
                        );
                    }
                    OpeningStep::Status if strikes >= STRIKES => self.status_ended(),
                    _ => {}
                }
            }
        }
        true
    }

    /// The status has ended connections: without its retain flag it may not, which is tried first.
    fn status_ended(&mut self) {
        let (upstream, topic) = (&self.name, self.status_topic.as_deref().unwrap_or_default());
        let may_be_flag = !self.retain_refused && !self.opening.status_without_flag;
        if may_be_flag {
            self.opening.status_without_flag = true;
            self.opening.acquit(&OpeningStep::Status);
            // one attempt
            self.opening.entries.push(OpeningEntry { what: OpeningStep::Status, strikes: STRIKES - 1, until: None });
            return;
        }
        self.opening.status_without_flag = false;
        warn!(
            upstream,
            topic, "the upstream closes the connection when it gets status_topic: the status is left out for an hour"
        );
    }
}
