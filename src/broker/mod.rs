//! The door for MQTT clients: ports, sessions, what they send and get.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what the configuration says |
//! | `listener` | ports, TLS handshakes |
//! | `connection/` | one client from CONNECT to the end: `handshake`, `admit`, then `run` with `receive` and `deliver` |
//! | `allowance` | what a client's changes of its session may cost the card |
//! | `keep`, `wills` | what is kept of sessions, retained messages and last wills on disk |
//! | `groups` | shared subscriptions |
//! | `session`, `registry`, `away`, `core` | what outlives a connection, who has which client id, what all share |
//! | `sys` | `$SYS` |
//!
//! A message comes in through `connection::receive` and gets its place in the [exchange](crate::exchange). What the exchange
//! and the journal have for a client leaves through `connection::deliver`.

pub(crate) mod allowance;
pub(crate) mod away;
pub mod connection;
pub mod core;
pub mod keep;
pub(crate) mod listener;
pub(crate) mod registry;
mod replies;
pub(crate) mod session;
pub mod settings;
pub(crate) mod sys;
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

/// A broker that is ready to run; nobody is served yet.
pub struct Broker {
    /// Shared by all connections.
    pub core: Arc<Core>,
    /// Feeds live subscribers.
    pub dispatcher: Dispatcher,
    /// Its ports, as far as they could be opened.
    pub listeners: Vec<Listener>,
    /// All connections.
    pub connections: TaskTracker,
}

impl Broker {
    /// A broker that nobody asks how its ports are.
    pub fn open(
        settings: BrokerSettings,
        journal: Journal,
        clock: SharedClock,
        cancel: CancellationToken,
    ) -> Result<Broker, RouterError> {
        Broker::open_with(settings, journal, clock, cancel, (&Health::default(), &watch::Sender::default()))
    }

    /// Opens the ports as far as that is possible now, starts the router and brings back what was kept. Ports tell `health`
    /// how they are, and read their files again when `reloads` changes. Blocks for a moment: not for a runtime worker.
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
        // those for WebSocket speak HTTP first
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

    /// Where clients connect by IP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.port.address().tcp()).collect()
    }
}
