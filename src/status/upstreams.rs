//! Upstreams, for those who show them.

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

/// The state of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamState {
    /// The upstream is not connected; attempts are repeated.
    #[default]
    Waiting,
    /// The upstream is connected.
    Connected,
    /// The gateway or the configuration has ended the upstream.
    Stopped,
    /// The upstream is not configured any more, and messages still wait for it.
    Removed,
}

/// The state of an upstream with its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UpstreamSnapshot {
    /// The name of the upstream, from the configuration.
    pub(crate) name: String,
    /// The rules in words, for messages in both directions.
    pub(crate) rules: Vec<String>,
    /// The present state.
    pub state: UpstreamState,
    /// When this state began, in milliseconds of the boot clock.
    pub(crate) since_boot_ms: u64,
    /// The address that is in use, or that is tried next.
    pub(crate) address: String,
    /// The MQTT version in use.
    pub(crate) version: Option<Version>,
    /// The number of failed attempts since the last connection.
    pub(crate) failed_attempts: u64,
    /// Why the last attempt failed, or the last connection ended.
    pub(crate) last_error: Option<String>,
    /// How every message accepted for the upstream has ended.
    pub ledger: Ledger,
    /// The number of messages that are sent and not settled.
    pub(crate) in_flight: usize,
    /// The number of topics that the upstream does not take: it closes the connection at each of their messages, which wait.
    pub(crate) denied_topics: usize,
    /// The size, in bytes of topic and payload, from which on the upstream does not take messages: it closes the connection at
    /// each of them, and they wait; `null` if there is none.
    pub(crate) denied_size: Option<usize>,
    /// The number of bytes that wait for the upstream.
    pub(crate) backlog_bytes: usize,
    /// When the oldest waiting message arrived, in milliseconds of the boot clock.
    pub(crate) oldest_boot_ms: Option<u64>,
    /// In how many seconds the backlog will be empty, at the speed of the last half minute; `null` if that is not known, if
    /// the backlog does not shrink, or if nothing waits.
    pub(crate) seconds_left: Option<u64>,
    /// The number of messages that came from the upstream and were published here.
    pub(crate) received: u64,
    /// The number of messages that came from the upstream and were dropped, because no rule wants them, a limit
    /// excludes them, or there was no room.
    pub(crate) received_dropped: u64,
}

impl UpstreamSnapshot {
    /// Updates the values that the journal counts.
    pub(crate) fn count(&mut self, backlog: &Backlog) {
        self.ledger = Ledger::of(backlog);
        self.backlog_bytes = backlog.bytes;
        self.oldest_boot_ms = backlog.oldest_boot_ms;
    }
}

/// Gives access to the present state of an upstream. The journal's counts are read when somebody looks, so nothing is
/// computed while nobody does.
#[derive(Clone)]
pub struct UpstreamShown {
    snapshots: watch::Receiver<UpstreamSnapshot>,
    backlog: Arc<dyn Fn() -> Backlog + Send + Sync>,
    drain: Arc<Mutex<Drain>>,
}

impl UpstreamShown {
    /// Shows the last of these snapshots with the present backlog.
    pub(crate) fn new(
        snapshots: watch::Receiver<UpstreamSnapshot>,
        backlog: impl Fn() -> Backlog + Send + Sync + 'static,
    ) -> UpstreamShown {
        UpstreamShown { snapshots, backlog: Arc::new(backlog), drain: Arc::default() }
    }

    /// Waits for a change, except of the journal's counts; for ever if there will be none.
    pub async fn changed(&mut self) {
        if self.snapshots.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// The present snapshot.
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
