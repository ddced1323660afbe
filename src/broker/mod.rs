//! The MQTT broker: our sessions on rumqttd's router.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what the configuration says |
//! | `listener`, `waiting` | ports, TLS handshakes |
//! | `connection/` | one client from CONNECT to the end: `handshake`, `admit`, then `run` with `receive` and `deliver` |
//! | `codec/` | packets |
//! | `keep`, `wills` | what is kept of sessions, retained messages and last wills on disk |
//! | `session`, `registry`, `core` | what outlives a connection, who has which client id, what all share |
//! | `authenticate`, `password`, `authorise` | who somebody is and may do what |
//! | `ingress` | the one door in: order, retained store, journal, router |
//! | `live`, `subscribers`, `inbox` | the way to connected subscribers: router, matching, bounded queues |
//! | `filters`, `retained`, `shared` | topic filters, retained messages, shared subscriptions |
//! | `stats`, `sys` | counters, `$SYS` |
//! | `limiter` | which log lines that clients cause are written |
//!
//! A message comes in through `connection::receive` (or a sensor, an upstream, HTTP), gets its place in `ingress`, and goes
//! two ways: through `live` to those who are connected, and through the journal to those who must get it in any case.

pub mod authenticate;
pub mod authorise;
pub mod codec;
pub mod connection;
pub mod core;
pub mod filters;
pub mod inbox;
pub mod ingress;
pub mod keep;
pub mod limiter;
pub mod listener;
pub mod live;
pub mod password;
pub mod registry;
pub mod retained;
pub mod session;
pub mod settings;
pub mod shared;
pub mod stats;
pub mod subscribers;
pub mod sys;
pub mod waiting;
pub mod wills;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::core::Core;
use self::ingress::Ingress;
use self::listener::Listener;
use self::live::{Dispatcher, RouterError};
use self::retained::Retained;
use self::settings::BrokerSettings;
use self::stats::Stats;
use self::subscribers::Subscribers;
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
        let (link, dispatcher) = live::start(subscribers.clone(), stats.clone())?;
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
