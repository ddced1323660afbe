//! The state of the gateway: what the rooms publish about themselves, for those who show it.
//!
//! Each room writes through its own channel; HTTP and the service only read. Everything here is a snapshot or bounded, so
//! nothing grows with time or traffic.

mod announced;
mod clients;
mod drain;
pub(crate) mod edges;
pub(crate) mod ledger;
mod sensors;
mod upstreams;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::announced::Announced;
pub(crate) use self::announced::AnnouncedService;
pub use self::clients::ClientsShown;
pub(crate) use self::clients::{ClientCounts, ClientSnapshot};
pub use self::edges::EdgeFigures;
pub(crate) use self::edges::LastEdges;
pub(crate) use self::sensors::{Change, Finding, SensorSnapshot, SensorState, Verdict};
pub use self::upstreams::UpstreamState;
pub(crate) use self::upstreams::{UpstreamShown, UpstreamSnapshot};
pub(crate) use crate::health::Fault;
use crate::health::{Health, LoggedProblems};
pub(crate) use crate::journal::report::Status as JournalStatus;

/// What a power cut would lose.
#[derive(Clone, Debug)]
pub struct PowerCut {
    /// The loss, and what to do about it.
    pub(crate) cost: Arc<str>,
    /// Whether the loss is certain, or only possible.
    pub(crate) is_certain: bool,
}

/// The state of the gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayStatus {
    /// The id of the gateway, from `gateway.id`.
    pub gateway_id: Arc<str>,
    /// The present snapshots of all sensors.
    pub sensors: watch::Receiver<Vec<SensorSnapshot>>,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamShown>,
    /// Access to the connected MQTT clients.
    pub clients: ClientsShown,
    /// The warnings and errors that were logged.
    pub problems: LoggedProblems,
    /// The present faults.
    pub health: Health,
    /// What a power cut would lose although it was promised to survive one; `None` if nothing.
    pub lost_at_power_cut: Option<PowerCut>,
    /// What is announced in the local network.
    pub announced: watch::Receiver<Announced>,
    /// The names of the MQTT ports, by which faults name them.
    pub listeners: Arc<[String]>,
}

impl GatewayStatus {
    /// Whether at least one port for MQTT is open.
    pub(crate) fn has_listener(&self) -> bool {
        self.listeners.iter().any(|name| !self.health.is_faulty(name))
    }
}
