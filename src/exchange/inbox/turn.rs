//! What the connection of a reader says of it: whether its client accepts nothing at the moment, and whether the connection has
//! had a turn since it was asked. In return it is told that it has let publishers go on.
//!
//! What a client has acknowledged may lie in the socket until the connection has its turn, on a busy machine for half a
//! second. Before the client is blamed the connection is asked to look.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// The part of an inbox in which its connection reports.
#[derive(Debug, Default)]
pub(crate) struct ReaderTurn {
    is_blocked: AtomicBool,
    is_owed: AtomicBool,
    has_let_go: AtomicBool,
    asked: Notify,
}

impl ReaderTurn {
    /// Sets whether the client accepts nothing at the moment.
    pub(crate) fn set_blocked(&self, blocked: bool) {
        self.is_blocked.store(blocked, Ordering::Relaxed);
    }

    /// Whether the client accepts nothing at the moment.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    /// Asks the connection to process what its client has sent.
    pub(crate) fn ask(&self) {
        if !self.is_owed.swap(true, Ordering::AcqRel) {
            self.asked.notify_one();
        }
    }

    /// Completes when the connection is asked. Safe to cancel.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Records that the connection has processed what its client has sent.
    pub(crate) fn answer(&self) {
        self.is_owed.store(false, Ordering::Release);
    }

    /// Records that publishers may go on, because the connection has taken half of the queue.
    pub(crate) fn let_go(&self) {
        self.has_let_go.store(true, Ordering::Relaxed);
    }

    /// Whether publishers may go on that were held when this was last asked.
    pub(crate) fn has_let_go(&self) -> bool {
        self.has_let_go.swap(false, Ordering::Relaxed)
    }

    /// Whether the connection has been asked and has had no turn since.
    pub(crate) fn is_owed(&self) -> bool {
        self.is_owed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_connection_is_asked_once_until_it_has_answered() {
        let turn = ReaderTurn::default();
        assert!(!turn.is_owed() && turn.asked().now_or_never().is_none());
        turn.ask();
        turn.ask();
        assert!(turn.is_owed());
        assert!(turn.asked().now_or_never().is_some());
        assert!(turn.asked().now_or_never().is_none() && turn.is_owed(), "it has not answered yet");
        turn.answer();
        assert!(!turn.is_owed());
        turn.ask();
        assert!(turn.is_owed() && turn.asked().now_or_never().is_some());
    }
}
