//! What rooms hand to the journal and get from it.

use bytes::Bytes;

use super::{ConsumerId, Position};
use crate::message::Message;

/// What became of a message that its consumer is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The other side has acknowledged it.
    Acked,
    /// It was sent, and there is no acknowledgement at QoS 0.
    Unconfirmed,
    /// Its expiry interval has passed.
    Expired,
    /// The consumer has given it up for a reason of its own. Whoever the consumer belongs to numbers these from 0 on, knows what
    /// they mean, and never gives a number another meaning, since counts by them are on disk. There are [`Outcome::REASONS`].
    GivenUp(u8),
    /// Nothing asks for it any more.
    NotWanted,
}

impl Outcome {
    /// Reasons that consumers may have of their own.
    pub(crate) const REASONS: usize = 5;
    /// How many outcomes there are.
    pub(crate) const COUNT: usize = Outcome::REASONS + 4;

    /// The place of its count, in memory and on disk.
    pub(crate) fn slot(self) -> usize {
        match self {
            Outcome::Acked => 0,
            Outcome::Unconfirmed => 1,
            Outcome::Expired => 2,
            Outcome::GivenUp(reason) => 3 + usize::from(reason).min(Outcome::REASONS - 1),
            Outcome::NotWanted => 3 + Outcome::REASONS,
        }
    }
}

/// What waits for a consumer, and what became of the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages ever accepted for it: settled + dropped + lost + waiting.
    pub(crate) accepted: u64,
    /// Messages it settled, whatever the outcome.
    pub(crate) settled: u64,
    /// The same by [`Outcome`], see [`Backlog::settled_as`].
    pub(super) outcomes: [u64; Outcome::COUNT],
    /// Messages that bounds pushed out.
    pub(crate) dropped: u64,
    /// Messages that could not be read from the disk any more.
    pub(crate) lost: u64,
    /// Messages that wait, in flight included.
    pub messages: usize,
    /// Their bytes; of a large backlog the oldest few are estimated.
    pub(crate) bytes: usize,
    /// Boot clock, in milliseconds, of the oldest that waits, as far as known.
    pub(crate) oldest_boot_ms: Option<u64>,
}

impl Backlog {
    /// What waits for both, and what became of the rest.
    pub(crate) fn plus(mut self, other: &Backlog) -> Backlog {
        self.accepted += other.accepted;
        self.settled += other.settled;
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(sum, count)| *sum += count);
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.messages += other.messages;
        self.bytes += other.bytes;
        // what came in before this boot has a time less than 0
        let oldest = [self.oldest_boot_ms, other.oldest_boot_ms].into_iter().flatten();
        self.oldest_boot_ms = oldest.min_by_key(|boot_ms| *boot_ms as i64);
        self
    }

    /// Messages that were settled with this outcome.
    pub(crate) fn settled_as(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.slot()]
    }
}

/// A message for a consumer.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// Its place, for [`super::Reader::settle`].
    pub(crate) position: Position,
    /// Its number among this consumer's messages, without gaps but for what is lost, the same after every rewind and every restart.
    pub(crate) ordinal: u64,
    /// The message as it was accepted.
    pub(crate) message: Message,
    /// It was handed out before, or may have been before the process began.
    pub(crate) resent: bool,
    /// The consumer has said that the other side has received it ([`Note::Released`]).
    pub(crate) released: bool,
}

/// What else an append does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra {
    /// The message is the retained one of its topic from now on, or clears it. It is kept as it is: it should have memory of
    /// its own.
    pub retained: bool,
    /// It is a QoS 2 PUBLISH of this persistent session with this packet id.
    pub received: Option<(ConsumerId, u16)>,
    /// This consumer has had it until now, under this ordinal.
    pub handed_over: Option<(ConsumerId, u64)>,
    /// Nobody waits for it: it may be written a little later, together with others.
    pub lazy: bool,
}

/// A step of a QoS 2 exchange of a persistent session or an upstream [MQTT-4.3.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// The session has released this packet id (PUBREL).
    Forgotten(u16),
    /// The session has received this message (PUBREC), by its ordinal.
    Released(u64),
    /// The session or upstream has forgotten that.
    Again(u64),
}

/// What was found at start.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Retained messages that the store begins with.
    pub retained: Vec<Message>,
    /// Persistent sessions by client id, as the broker encoded them.
    pub(crate) sessions: Vec<(Box<str>, Bytes)>,
}
