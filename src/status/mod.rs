//! How the gateway is doing: what the rooms publish about themselves, for those who show it.
//!
//! Rooms write, each through its own channel; HTTP and the service only read. Everything here is a snapshot of now or
//! bounded: nothing in it grows with time or traffic.

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

/// What a power cut costs.
#[derive(Clone, Debug)]
pub struct PowerCut {
    /// What, and what to do about it.
    pub(crate) cost: Arc<str>,
    /// Whether it is known to cost that, or only may.
    pub(crate) is_certain: bool,
}

/// What there is to see. Cheap to clone.
#[derive(Clone, Debug)]
pub struct GatewayStatus {
    /// The gateway's id.
    pub gateway_id: Arc<str>,
    /// The sensors.
    pub sensors: watch::Receiver<Vec<SensorSnapshot>>,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamShown>,
    /// MQTT clients.
    pub clients: ClientsShown,
    /// What was logged as a warning or an error.
    pub problems: LoggedProblems,
    /// What is wrong now.
    pub health: Health,
    /// What a power cut costs beyond what is promised to survive one; `None`: nothing.
    pub lost_at_power_cut: Option<PowerCut>,
    /// What the local network is told.
    pub announced: watch::Receiver<Announced>,
    /// Names of the ports for MQTT.
    pub listeners: Arc<[String]>,
}

impl GatewayStatus {
    /// Whether a port for MQTT is open.
    pub(crate) fn has_listener(&self) -> bool {
        self.listeners.iter().any(|name| !self.health.is_faulty(name))
    }
}
