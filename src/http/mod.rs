//! REST, a live stream, a web page, metrics and MQTT over WebSocket: the same topics, users and rules as the broker.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what the configuration says |
//! | `server` | the port: connections, time limits, TLS |
//! | `guard`, `auth` | requests of foreign sites, who somebody is |
//! | `routes`, `openapi` | the table of all calls, and its description |
//! | `topics`, `stream` | messages: the last ones, publishing, live |
//! | `sensors`, `history` | motion now and before |
//! | `overview`, `metrics` | how the gateway is doing |
//! | `page` | the web page |
//! | `websocket` | MQTT |
//! | `hub`, `recent`, `ring` | what is remembered of messages |
//! | `query`, `problem`, `envelope` | requests and answers |
//!
//! A message that is published here takes the same door as one by MQTT, and the answer waits for the same receipt as a
//! PUBACK does. What is read here comes from one live subscriber for all HTTP clients.
//!
//! Limits: [`server::MAX_CONNECTIONS`], [`MAX_STREAMS`], the broker's `max_packet_size` for a request,
//! [`recent::MAX_TOPICS`] and [`recent::MAX_BYTES`] for the last messages, [`ring::MAX_MESSAGES`] and
//! [`ring::MAX_BYTES`] for what a stream can resume from, [`history::MAX_FILE`] for the past of a sensor. HTTP/1.1 only.

pub mod auth;
pub mod envelope;
pub mod guard;
pub mod history;
pub mod hub;
pub mod metrics;
pub mod openapi;
pub mod overview;
pub mod page;
pub mod problem;
pub mod query;
pub mod recent;
pub mod ring;
pub mod routes;
pub mod sensors;
pub mod server;
pub mod settings;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod topics;
pub mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::guard::Guard;
use self::hub::Hub;
use self::overview::Overviews;
use crate::broker::core::Core;
use crate::status::Status;

/// Streams at the same time, over all clients.
pub const MAX_STREAMS: usize = 1000;
/// Differences between the clocks that mean nothing.
const JITTER_MS: u64 = 20;

/// What all requests share.
pub struct Http {
    /// The broker.
    pub core: Arc<Core>,
    /// What is remembered of messages.
    pub hub: Arc<Hub>,
    /// How the gateway is doing.
    pub status: Status,
    /// MQTT connections, for those by WebSocket.
    pub connections: TaskTracker,
    /// Where the past of the sensors is.
    pub history: PathBuf,
    /// Which boot of the host this is.
    boot: String,
    /// Wall time minus boot clock, as it was told last.
    offset_ms: AtomicI64,
    guard: Guard,
    overviews: Overviews,
    streams: Arc<Semaphore>,
}

impl Http {
    /// Everything new.
    pub fn new(
        core: Arc<Core>,
        hub: Arc<Hub>,
        status: Status,
        connections: TaskTracker,
        history: PathBuf,
        guard: Guard,
    ) -> Arc<Http> {
        let overviews = Overviews::new(core.ingress.clock().boot_ms());
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let (boot, offset_ms) = (history::boot_id(), AtomicI64::new(0));
        Arc::new(Http { core, hub, status, connections, history, boot, offset_ms, guard, overviews, streams })
    }

    /// Streams that are open.
    fn open_streams(&self) -> u32 {
        u32::try_from(MAX_STREAMS - self.streams.available_permits()).unwrap_or(u32::MAX)
    }

    /// A moment of the boot clock as RFC 3339, once the clock is right.
    pub fn time(&self, boot_ms: u64) -> Option<String> {
        let clock = self.core.ingress.clock();
        if !clock.is_synchronised() {
            return None;
        }
        // two clocks cannot be read in the same moment: without this, a time would differ by a millisecond now and then
        let (now, told) = (clock.unix_ms_at(0), self.offset_ms.load(Ordering::Relaxed));
        if now.abs_diff(told) > JITTER_MS {
            self.offset_ms.store(now, Ordering::Relaxed);
        }
        envelope::rfc3339(self.offset_ms.load(Ordering::Relaxed) + boot_ms as i64)
    }
}
