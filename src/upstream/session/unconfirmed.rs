//! Topics whose messages may end connections although they are sent at QoS 0, which no upstream answers.
//!
//! What was sent at QoS 0 shortly before the upstream has closed a connection, and after everything that it has answered, may be
//! the reason. If that happens to a topic in [`ENDS`] connections and nothing shows in between that one of its messages was
//! taken, its next messages are sent at QoS 1. The answer, or the end of the connection, then tells what it tells of
//! other messages ([`super::suspect`], [`super::denied`]). While that is being found out the others are sent at QoS 1
//! as well, because only their acknowledgements show that the upstream takes others.

use std::collections::VecDeque;

use super::put_off::hash;
use super::{SentMessage, UpstreamSession};
use crate::message::{Message, Qos};

/// The number of connections that must have ended after messages of a topic.
const ENDS: u32 = 2;
/// An upstream that does not take a message closes the connection within this time, in milliseconds.
const SOON_MS: u64 = 10_000;
/// The most messages that are remembered, and the most topics that may be the reason.
const MOST: usize = 256;

/// A message that was sent at QoS 0, and of which nothing shows yet that it was taken.
#[derive(Clone, Copy, Debug)]
struct Unanswered {
    /// Its number among the messages of its connection.
    number: u64,
    /// The hash of its topic.
    topic: u64,
    at: u64,
}

/// What is known of messages at QoS 0. Makes decisions without I/O.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed {
    unanswered: VecDeque<Unanswered>,
    /// Topics, and how many connections have ended after messages of them.
    ended: Vec<(u64, u32)>,
}

impl Unconfirmed {
    fn sent(&mut self, number: u64, topic: u64, at: u64) {
        if self.unanswered.len() >= MOST {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back(Unanswered { number, topic, at });
    }

    /// Records an answer to the message with this number: whatever was sent before it was taken.
    fn answered(&mut self, number: u64, topic: impl FnOnce() -> u64) {
        while self.unanswered.front().is_some_and(|sent| sent.number < number) {
            let Some(taken) = self.unanswered.pop_front() else { break };
            self.ended.retain(|(topic, _)| *topic != taken.topic);
        }
        if !self.ended.is_empty() {
            let topic = topic();
            self.ended.retain(|(of, _)| *of != topic);
        }
    }

    /// Handles a new connection.
    pub(super) fn connected(&mut self) {
        self.unanswered.clear();
    }

    /// Handles the end of a connection by the upstream.
    pub(super) fn ended(&mut self, now: u64) {
        let mut topics: Vec<u64> =
            self.unanswered.drain(..).filter(|it| it.at + SOON_MS >= now).map(|it| it.topic).collect();
        topics.sort_unstable();
        topics.dedup();
        for topic in topics {
            match self.ended.iter_mut().find(|(of, _)| *of == topic) {
                Some((_, ends)) => *ends += 1,
                None => self.ended.push((topic, 1)),
            }
        }
        let beyond = self.ended.len().saturating_sub(MOST);
        self.ended.drain(..beyond);
    }

    /// Whether messages of this topic may be what connections end for.
    fn doubts(&self, topic: u64) -> bool {
        self.ended.iter().any(|(of, ends)| *of == topic && *ends >= ENDS)
    }
}

impl UpstreamSession {
    /// The QoS at which a message is sent that would go at this one: QoS 1 instead of 0 where the answer tells what
    /// the upstream ends connections for.
    pub(super) fn answered_qos(&self, qos: Qos, message: &Message) -> Qos {
        let Some(link) = self.link.filter(|_| qos == Qos::AtMostOnce) else { return qos };
        let tells = self.is_cautious()
            || self.denied.wants_others()
            || self.is_denied(message)
            || !self.unconfirmed.ended.is_empty() && self.unconfirmed.doubts(hash(message.view().topic()));
        if tells { Qos::AtLeastOnce.min(link.max_qos) } else { qos }
    }

    /// Records that a message of the journal is sent at this QoS.
    pub(super) fn sends(&mut self, message: &SentMessage, qos: Qos, now: u64) {
        if let Some(source) = message.source.as_ref().filter(|_| qos == Qos::AtMostOnce) {
            self.unconfirmed.sent(message.number, hash(source.message.view().topic()), now);
        }
    }

    /// Records an answer to this message in flight.
    pub(super) fn confirms_earlier(&mut self, at: usize) {
        let message = &self.in_flight[at];
        let Some(source) = message.source.as_ref() else { return };
        self.unconfirmed.answered(message.number, || hash(source.message.view().topic()));
    }
}
