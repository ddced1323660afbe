//! Bytes of messages that an upstream has not answered yet.

use super::{Role, SentFrom};

/// No further message goes while so many bytes are unanswered: a window of large messages would be as large as the rest of
/// the gateway.
pub(crate) const UNDER_WAY_BYTES: usize = 4 << 20;
/// Bytes of a backlog that may be under way: half a second on a line of 1 Mbit/s.
pub(crate) const BACKLOG_BYTES: usize = 64 << 10;

/// What is under way, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnderWay {
    all: usize,
    of_backlog: usize,
}

impl UnderWay {
    /// Whether another message would be too much.
    pub(super) fn is_enough(self, role: Role) -> bool {
        self.all >= UNDER_WAY_BYTES || role == Role::Backlog && self.of_backlog >= BACKLOG_BYTES
    }

    /// A message is handed over.
    pub(super) fn begin(&mut self, source: &SentFrom) {
        self.all += source.message.size();
        if source.role == Role::Backlog {
            self.of_backlog += source.message.size();
        }
    }

    /// It has ended.
    pub(super) fn end(&mut self, source: &SentFrom) {
        self.all = self.all.saturating_sub(source.message.size());
        if source.role == Role::Backlog {
            self.of_backlog = self.of_backlog.saturating_sub(source.message.size());
        }
    }
}
