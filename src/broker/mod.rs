//! The door for MQTT clients: ports, sessions, what they send and get.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what the configuration says |
//! | `listener` | ports, TLS handshakes |
//! | `connection/` | one client from CONNECT to the end: `handshake`, `admit`, then `run` with `receive` and `deliver` |
//! | `keep`, `wills` | what is kept of sessions, retained messages and last wills on disk |
//! | `session`, `registry`, `core` | what outlives a connection, who has which client id, what all share |
//! | `sys` | `$SYS` |
//!
//! A message comes in through `connection::receive` and gets its place in the [exchange](crate::exchange). What the exchange
//! and the journal have for a client leaves through `connection::deliver`.

pub mod connection;
pub mod core;
pub mod keep;
pub mod listener;
pub mod registry;
pub mod session;
pub mod settings;
pub mod sys;
pub mod wills;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
use self::listener::Listener;
use self::settings::BrokerSettings;
use crate::exchange::ingress::Ingress;
use crate::exchange::live::{Dispatcher, RouterError};
use crate::exchange::retained::Retained;
use crate::exchange::stats::Stats;
use crate::exchange::subscribers::Subscribers;
use crate::journal::Journal;
use crate::net::ListenError;
use crate::time::SharedClock;

/// Why the broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The router.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// A broker that is ready to run: its ports are open, nobody is served yet.
pub struct Broker {
    /// Shared by all connections.
    pub core: Arc<Core>,
    /// Feeds live subscribers.
    pub dispatcher: Dispatcher,
    /// Open ports.
    pub listeners: Vec<Listener>,
    /// All connections.
    pub connections: TaskTracker,
}

impl Broker {
    /// Opens the ports and starts the router. Blocks for a moment: not for a runtime worker.
    pub fn open(
        settings: BrokerSettings,
        journal: Journal,
        clock: SharedClock,
        cancel: CancellationToken,
    ) -> Result<Broker, BrokerError> {
        let listeners = settings.listeners.iter().map(listener::open).collect::<Result<Vec<_>, _>>()?;
        let subscribers = Arc::new(Subscribers::default());
        let stats = Arc::new(Stats::default());
        let (link, dispatcher) = crate::exchange::live::start(subscribers.clone(), stats.clone())?;
        let retained = Retained::new(settings.max_retained, settings.max_retained_size);
        let ingress = Ingress::new(link, subscribers, journal, retained, stats, clock);
        let core = Core::new(settings, ingress, cancel);
        core.restore();
        Ok(Broker { core, dispatcher, listeners, connections: TaskTracker::new() })
    }

    /// Where clients connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }
}
