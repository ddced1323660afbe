//! What is known of a single message that may end connections.

use crate::journal::Position;
use crate::upstream::lanes::Lane;

/// Whether the retain flag, or QoS 2, ends connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    /// It is not known yet.
    Unknown,
    /// The flag is left out the next time, or QoS 1 is used.
    LeftOut,
    /// Without the flag the message was acknowledged; now it is sent with the flag again.
    Proving,
    /// The flag makes no difference.
    Innocent,
}

/// A message that has ended a connection while it was the only one in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub(super) lane: Lane,
    pub(super) position: Position,
    /// The hash of its topic.
    pub(super) topic: u64,
    /// Its bytes: see [`super::sizes::size_there`].
    pub(super) size: usize,
    /// The number of messages that were acknowledged since it first ended a connection, and the size of the largest.
    pub(super) acked: u32,
    pub(super) largest: usize,
    pub(super) strikes: u32,
    /// Whether others were acknowledged since the last strike.
    pub(super) others: bool,
    /// Whether messages of other topics were acknowledged since it first ended a connection.
    pub(super) others_only: bool,
    /// Whether a message of its topic was acknowledged since.
    pub(super) has_acked_topic: bool,
    /// Whether it has something that may be the reason instead of its topic: the retain flag, or QoS 2.
    pub(super) has_flag: bool,
    /// Whether it was sent at QoS 2.
    pub(super) exact: bool,
    pub(super) flag: Flag,
}

impl Suspect {
    /// Whether nothing but the message itself may be the reason, such as its retain flag.
    pub(super) fn is_plain(&self) -> bool {
        !self.has_flag || self.flag == Flag::Innocent
    }

    /// Records that another message was acknowledged.
    pub(super) fn passed_by(&mut self, topic: u64, size: usize) {
        (self.others, self.acked, self.largest) = (true, self.acked + 1, self.largest.max(size));
        self.has_acked_topic |= self.topic == topic;
        self.others_only |= self.topic != topic;
    }
}

/// A message that was in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(crate) lane: Lane,
    pub(crate) position: Position,
    /// The hash of its topic.
    pub(crate) topic: u64,
    /// Its bytes: see [`super::sizes::size_there`].
    pub(crate) size: usize,
    /// Whether it was sent with the retain flag.
    pub(crate) retain: bool,
    /// Whether it was sent at QoS 2.
    pub(crate) exact: bool,
}
