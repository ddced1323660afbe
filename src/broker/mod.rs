//! The door for MQTT clients: ports, sessions, and the packets that clients send and get.
//!
//! | file | what |
//! |---|---|
//! | `settings` | the settings of the broker |
//! | `listener` | ports, TLS handshakes |
//! | `connection/` | one client from CONNECT to the end: `handshake`, `admit`, then `run` with `receive` and `deliver` |
//! | `allowance` | limits what changes of sessions write to the card |
//! | `keep`, `wills` | sessions, retained messages and last wills on disk |
//! | `waiting_will`, `late_wills` | last wills in memory |
//! | `groups` | shared subscriptions |
//! | `session`, `registry`, `away`, `core` | what outlives a connection, who has a client id, what connections share |
//! | `sys` | `$SYS` |
//!
//! A message arrives in `connection::receive` and gets its place in the [exchange](crate::exchange). Messages from the
//! exchange and from the journal leave through `connection::deliver`.

pub(crate) mod allowance;
pub(crate) mod away;
mod capacity;
pub mod connection;
pub mod core;
pub mod keep;
mod late_wills;
pub(crate) mod listener;
pub(crate) mod registry;
mod replies;
pub(crate) mod session;
pub mod settings;
pub(crate) mod sys;
pub(crate) mod waiting_will;
pub(crate) mod wills;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
use self::listener::Listener;
use self::settings::{BrokerSettings, ListenerSettings};
use crate::exchange::ingress::Ingress;
use crate::exchange::live::{Dispatcher, RouterError};
use crate::exchange::retained::Retained;
use crate::exchange::stats::Stats;
use crate::exchange::subscribers::Subscribers;
use crate::health::Health;
use crate::journal::Journal;
use crate::net::port::Port;
use crate::time::SharedClock;

/// A broker that is ready to run, and serves no client yet.
pub struct Broker {
    /// The state that all connections share.
    pub core: Arc<Core>,
    /// The task that delivers live messages to subscribers.
    pub dispatcher: Dispatcher,
    /// The ports, open or still closed.
    pub listeners: Vec<Listener>,
    /// Tracks the tasks of all connections.
    pub connections: TaskTracker,
}

impl Broker {
    /// Like `open_with`, without reports about ports and without reloads.
    pub fn open(
        settings: BrokerSettings,
        journal: Journal,
        clock: SharedClock,
        cancel: CancellationToken,
    ) -> Result<Broker, RouterError> {
        Broker::open_with(settings, journal, clock, cancel, (&Health::default(), &watch::Sender::default()))
    }

    /// Opens the ports as far as possible, starts the router and restores kept sessions. The ports report their state to
    /// `health`, and read their files again when `reloads` changes. Blocks for a moment, so it must not run on a runtime
    /// worker.
    pub(crate) fn open_with(
        settings: BrokerSettings,
        journal: Journal,
        clock: SharedClock,
        cancel: CancellationToken,
        (health, reloads): (&Health, &watch::Sender<u64>),
    ) -> Result<Broker, RouterError> {
        let open = |listener: &ListenerSettings| {
            let port = Port::open(listener.port(), health.clone(), reloads.subscribe());
            Listener { port, settings: listener.clone() }
        };
        // listeners for WebSocket belong to HTTP, which their clients speak first
        let listeners = settings.listeners.iter().filter(|listener| !listener.websocket).map(open).collect();
        let subscribers = Arc::new(Subscribers::default());
        let stats = Arc::new(Stats::default());
        let (link, dispatcher) = crate::exchange::live::start(subscribers.clone(), stats.clone())?;
        let retained = Retained::new(settings.max_retained, settings.max_retained_size);
        let ingress = Ingress::new(link, subscribers, journal, retained, stats, clock);
        let core = Core::new(settings, ingress, health.clone(), cancel);
        core.restore();
        Ok(Broker { core, dispatcher, listeners, connections: TaskTracker::new() })
    }

    /// The addresses of the ports for TCP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.port.address().tcp()).collect()
    }
}
