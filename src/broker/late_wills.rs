//! Wills that wait for the turns of their clients after their sessions have ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::waiting_will::WaitingWill;

/// A will with the name of its session.
type LateWill = (Box<str>, WaitingWill);

/// The waiting wills.
#[derive(Debug, Default)]
pub(super) struct LateWills {
    /// By the time of the turn. Their number is bounded by the memory for wills.
    wills: Mutex<BTreeMap<(Instant, u64), LateWill>>,
    next: AtomicU64,
    /// Notified when one is added.
    added: Notify,
}

impl LateWills {
    pub(super) fn add(&self, turn: Instant, session: &str, will: WaitingWill) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.wills.lock().insert((turn, number), (session.into(), will));
        self.added.notify_one();
    }

    /// Takes out a will whose turn has come.
    pub(super) fn take_due(&self, now: Instant) -> Option<LateWill> {
        self.wills.lock().first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
    }

    /// Waits until the turn of a will comes, or until one is added.
    pub(super) async fn due(&self) {
        let next = self.wills.lock().first_key_value().map(|((turn, _), _)| *turn);
        let sleep = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = self.added.notified() => {}
        }
    }
}
