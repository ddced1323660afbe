//! The counters of the broker.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the start of the gateway.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: Counter,)*
        }
    };
}

/// A number that only increases, or a gauge that can also decrease.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// Increases the number to at least `value`.
    pub(crate) fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a connection has counted during its turn. All threads share the counters of [`Stats`], so adding to them for every
/// message would cost more than the rest of counting.
#[derive(Debug, Default)]
pub(crate) struct TurnCount {
    pub(crate) packets_received: u64,
    pub(crate) packets_sent: u64,
    pub(crate) publish_received: u64,
    pub(crate) publish_sent: u64,
    pub(crate) publish_bytes_received: u64,
    pub(crate) publish_bytes_sent: u64,
    pub(crate) publish_dropped: u64,
    pub(crate) publish_expired: u64,
}

impl TurnCount {
    /// Adds everything to the shared counters, and begins again.
    pub(crate) fn settle(&mut self, stats: &Stats) {
        let turn = std::mem::take(self);
        for (counter, count) in [
            (&stats.packets_received, turn.packets_received),
            (&stats.packets_sent, turn.packets_sent),
            (&stats.publish_received, turn.publish_received),
            (&stats.publish_sent, turn.publish_sent),
            (&stats.publish_bytes_received, turn.publish_bytes_received),
            (&stats.publish_bytes_sent, turn.publish_bytes_sent),
            (&stats.publish_dropped, turn.publish_dropped),
            (&stats.publish_expired, turn.publish_expired),
        ] {
            if count > 0 {
                counter.add(count);
            }
        }
    }
}

counters! {
    /// Bytes received from MQTT clients.
    bytes_received,
    /// Bytes sent to MQTT clients.
    bytes_sent,
    /// MQTT packets received.
    packets_received,
    /// MQTT packets sent.
    packets_sent,
    /// PUBLISH packets received.
    publish_received,
    /// PUBLISH packets sent.
    publish_sent,
    /// Payload bytes of PUBLISH packets received.
    publish_bytes_received,
    /// Payload bytes of PUBLISH packets sent.
    publish_bytes_sent,
    /// Messages that were not delivered to a client: its queue was full, it was too slow, or they were too large for it
    /// or for the journal.
    publish_dropped,
    /// Messages that expired before they were delivered.
    publish_expired,
    /// Retained messages that did not fit into the store.
    retained_refused,
    /// Connections accepted, before CONNECT (gauge).
    sockets,
    /// Clients connected (gauge).
    connected,
    /// Most clients connected at a time.
    connected_maximum,
    /// CONNECTs refused.
    refused,
    /// Persistent sessions that expired.
    sessions_expired,
    /// Sessions that ended with a panic.
    panics,
}
