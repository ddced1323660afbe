//! Upstreams as others see them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;

use super::drain::Drain;
use super::ledger::Ledger;
use crate::journal::Backlog;
use crate::mqtt::Version;

/// What an upstream is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    /// Not connected: it is tried again and again.
    #[default]
    Waiting,
    /// Connected.
    Connected,
    /// The gateway or the configuration has ended it.
    Stopped,
    /// The configuration does not have it any more, and messages wait for it.
    Removed,
}

/// An upstream as others see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UpstreamSnapshot {
    /// Its name.
    pub(crate) name: String,
    /// What goes up and what comes down, by the rules, in words.
    pub(crate) rules: Vec<String>,
    /// What it is doing.
    pub state: UpstreamState,
    /// Boot clock, in milliseconds, since when.
    pub(crate) since_boot_ms: u64,
    /// The address in use, or tried next.
    pub(crate) address: String,
    /// Version of MQTT spoken.
    pub(crate) version: Option<Version>,
    /// Attempts to connect that failed since the last connection.
    pub(crate) failed_attempts: u64,
    /// Why there was no connection the last time.
    pub(crate) last_error: Option<String>,
    /// Where every message accepted for it has ended.
    pub ledger: Ledger,
    /// Messages sent and not settled.
    pub(crate) in_flight: usize,
    /// Bytes that wait for it.
    pub(crate) backlog_bytes: usize,
    /// Boot clock, in milliseconds, when the oldest message that waits came in.
    pub(crate) oldest_boot_ms: Option<u64>,
    /// In how many seconds nothing will wait any more, if it goes on as in the last half minute; `null` where that is not known,
    /// where what waits does not become less, or nothing waits.
    pub(crate) seconds_left: Option<u64>,
    /// Messages that came down and were published here.
    pub(crate) received: u64,
    /// Messages that came down and were not: no rule wants them, they are too large, or there was no room.
    pub(crate) received_dropped: u64,
}

impl UpstreamSnapshot {
    /// Brings up to date what the journal counts.
    pub(crate) fn count(&mut self, backlog: &Backlog) {
        self.ledger = Ledger::of(backlog);
        self.backlog_bytes = backlog.bytes;
        self.oldest_boot_ms = backlog.oldest_boot_ms;
    }
}

/// How an upstream is doing, for those who show it. What the journal counts is of the very moment; so that nobody need be
/// woken while nobody looks.
#[derive(Clone)]
pub struct UpstreamShown {
    snapshots: watch::Receiver<UpstreamSnapshot>,
    backlog: Arc<dyn Fn() -> Backlog + Send + Sync>,
    drain: Arc<Mutex<Drain>>,
}

impl UpstreamShown {
    /// Shows the last of these snapshots with what waits at the time.
    pub(crate) fn new(
        snapshots: watch::Receiver<UpstreamSnapshot>,
        backlog: impl Fn() -> Backlog + Send + Sync + 'static,
    ) -> UpstreamShown {
        UpstreamShown { snapshots, backlog: Arc::new(backlog), drain: Arc::default() }
    }

    /// Waits for a change of what is not counted by the journal; for ever where there will be none.
    pub async fn changed(&mut self) {
        if self.snapshots.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// As things stand.
    pub fn now(&self) -> UpstreamSnapshot {
        let mut snapshot = self.snapshots.borrow().clone();
        snapshot.count(&(self.backlog)());
        let is_connected = snapshot.state == UpstreamState::Connected;
        let waiting = snapshot.ledger.pending;
        snapshot.seconds_left = self.drain.lock().seconds_left(is_connected, waiting, Instant::now());
        snapshot
    }
}

impl fmt::Debug for UpstreamShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamShown").field("snapshots", &self.snapshots).finish_non_exhaustive()
    }
}
