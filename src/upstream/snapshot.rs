//! An upstream as others see it.

use serde::Serialize;
use tokio::sync::watch;

use super::lanes::Consumers;
use super::ledger::Ledger;
use super::wire::Version;

/// What an upstream is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not connected: it is tried again and again.
    #[default]
    Waiting,
    /// Connected.
    Connected,
    /// The gateway or the configuration has ended it.
    Stopped,
}

/// An upstream as others see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Boot clock, in milliseconds, since when.
    pub since_boot_ms: u64,
    /// The address in use, or tried next.
    pub address: String,
    /// Version of MQTT spoken.
    pub version: Option<Version>,
    /// Attempts to connect that failed since the last connection.
    pub failed_attempts: u64,
    /// Why there was no connection the last time.
    pub last_error: Option<String>,
    /// Where every message accepted for it has ended.
    pub ledger: Ledger,
    /// Messages sent and not settled.
    pub in_flight: usize,
    /// Bytes that wait for it.
    pub backlog_bytes: usize,
    /// Boot clock, in milliseconds, when the oldest message that waits came in.
    pub oldest_boot_ms: Option<u64>,
    /// Messages that came down and were published here.
    pub received: u64,
    /// Messages that came down and were not: no rule wants them, they are too large, or there was no room.
    pub received_dropped: u64,
}

impl Snapshot {
    /// Brings up to date what the journal counts.
    pub fn count(&mut self, consumers: &Consumers) {
        let backlog = consumers.backlog();
        self.ledger = Ledger::of(&backlog);
        self.backlog_bytes = backlog.bytes;
        self.oldest_boot_ms = backlog.oldest_boot_ms;
    }
}

/// How an upstream is doing, for those who show it. What the journal counts is of the very moment; so that nobody need be
/// woken while nobody looks.
#[derive(Clone, Debug)]
pub struct Shown {
    pub(super) snapshots: watch::Receiver<Snapshot>,
    pub(super) consumers: Consumers,
}

impl Shown {
    /// As things stand.
    pub fn now(&self) -> Snapshot {
        let mut snapshot = self.snapshots.borrow().clone();
        snapshot.count(&self.consumers);
        snapshot
    }
}
