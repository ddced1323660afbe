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
