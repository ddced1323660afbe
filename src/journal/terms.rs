//! The types that other rooms exchange with the journal.

use bytes::Bytes;

use super::{ConsumerId, Position};
use crate::message::Message;

/// The outcome of a message for its consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The other side has acknowledged it.
    Acked,
    /// It was sent at QoS 0, without an acknowledgement.
    Unconfirmed,
    /// Its expiry interval has passed.
    Expired,
    /// The consumer has given it up for one of its own reasons. The owner of the consumer numbers these from 0 on and never
    /// changes the meaning of a number, because counts by them are on disk. There are [`Outcome::REASONS`].
    GivenUp(u8),
    /// Nothing asks for it any more.
    NotWanted,
    /// It was appended once more, and counts there.
    Moved,
}

impl Outcome {
    /// The number of reasons that consumers may define.
    pub(crate) const REASONS: usize = 5;
    /// The number of outcomes.
    pub(crate) const COUNT: usize = Outcome::REASONS + 4;

    /// The index of its count, in memory and on disk; `None` if it is not counted.
    pub(crate) fn slot(self) -> Option<usize> {
        Some(match self {
            Outcome::Acked => 0,
            Outcome::Unconfirmed => 1,
            Outcome::Expired => 2,
            Outcome::GivenUp(reason) => 3 + usize::from(reason).min(Outcome::REASONS - 1),
            Outcome::NotWanted => 3 + Outcome::REASONS,
            Outcome::Moved => return None,
        })
    }
}

/// What waits for a consumer, and the outcomes of all other messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// The number of messages ever accepted for it: settled + dropped + lost + waiting.
    pub(crate) accepted: u64,
    /// The number of messages that it has settled, with any outcome.
    pub(crate) settled: u64,
    /// The same by [`Outcome`], see [`Backlog::settled_as`].
    pub(super) outcomes: [u64; Outcome::COUNT],
    /// The number of messages that limits have dropped.
    pub(crate) dropped: u64,
    /// The number of messages that could not be read from the disk.
    pub(crate) lost: u64,
    /// The number of waiting messages, including those in flight.
    pub messages: usize,
    /// The bytes of waiting messages; in a large backlog those of the oldest few are estimated.
    pub(crate) bytes: usize,
    /// When the oldest waiting message arrived, in milliseconds of the boot clock, if that is known.
    pub(crate) oldest_boot_ms: Option<u64>,
}

impl Backlog {
    /// The sum of two consumers.
    pub(crate) fn plus(mut self, other: &Backlog) -> Backlog {
        self.accepted += other.accepted;
        self.settled += other.settled;
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(sum, count)| *sum += count);
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.messages += other.messages;
        self.bytes += other.bytes;
        // messages from before this boot have a negative time
        let oldest = [self.oldest_boot_ms, other.oldest_boot_ms].into_iter().flatten();
        self.oldest_boot_ms = oldest.min_by_key(|boot_ms| *boot_ms as i64);
        self
    }

    /// The number of messages that were settled with this outcome.
    pub(crate) fn settled_as(&self, outcome: Outcome) -> u64 {
        outcome.slot().map_or(0, |slot| self.outcomes[slot])
    }
}

/// A message for a consumer.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The position, for [`super::Reader::settle`].
    pub(crate) position: Position,
    /// The number among this consumer's messages. It has no gaps except for lost messages, and is the same after every
    /// rewind and restart.
    pub(crate) ordinal: u64,
    /// The message as it was accepted.
    pub(crate) message: Message,
    /// Whether it was handed out before, or may have been before the process began.
    pub(crate) resent: bool,
    /// Whether the other side has received it, according to the consumer ([`Note::Released`]).
    pub(crate) released: bool,
    /// Whether another consumer had it before ([`super::Journal::hand_over`]).
    pub(crate) handed_over: bool,
}

/// Additional effects of an append.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// Whether the message becomes the retained one of its topic, or deletes it. It is kept as it is, so it should be in
    /// memory of its own.
    pub retained: bool,
    /// Set for a QoS 2 PUBLISH of this persistent session with this packet id.
    pub received: Option<(ConsumerId, u16)>,
    /// Set if this consumer had the message until now, with this ordinal.
    pub handed_over: Option<(ConsumerId, u64)>,
}

/// A step of a QoS 2 exchange of a persistent session or an upstream [MQTT-4.3.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// The session has released this packet id (PUBREL).
    Forgotten(u16),
    /// The session has received the message with this ordinal (PUBREC).
    Released(u64),
    /// The session or upstream has forgotten that it received the message.
    Again(u64),
}

/// What was found at the start.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// The retained messages with which the store begins.
    pub retained: Vec<Message>,
    /// Persistent sessions by client id, as the broker has encoded them.
    pub(crate) sessions: Vec<(Box<str>, Bytes)>,
}
