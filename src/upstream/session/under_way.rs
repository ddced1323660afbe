//! Counts the bytes of messages that an upstream has not answered yet.

use super::{Role, SentFrom};

/// No further message is sent while this many bytes are unanswered, because a window of large messages could need as much
/// memory as the rest of the gateway.
pub(crate) const UNDER_WAY_BYTES: usize = 4 << 20;
/// The most bytes of a backlog in flight: half a second on a line of 1 Mbit/s.
pub(crate) const BACKLOG_BYTES: usize = 64 << 10;

/// The bytes in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnderWay {
    all: usize,
    of_backlog: usize,
}

impl UnderWay {
    /// Whether no further message may be sent.
    pub(super) fn is_enough(self, role: Role) -> bool {
        self.all >= UNDER_WAY_BYTES || role == Role::Backlog && self.of_backlog >= BACKLOG_BYTES
    }

    /// Counts a message that is handed over.
    pub(super) fn begin(&mut self, source: &SentFrom) {
        self.all += source.message.size();
        if source.role == Role::Backlog {
            self.of_backlog += source.message.size();
        }
    }

    /// Ends the count of a message.
    pub(super) fn end(&mut self, source: &SentFrom) {
        self.all = self.all.saturating_sub(source.message.size());
        if source.role == Role::Backlog {
            self.of_backlog = self.of_backlog.saturating_sub(source.message.size());
        }
    }
}
