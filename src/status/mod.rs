//! How the gateway is doing: what the rooms publish about themselves, for those who show it.
//!
//! Rooms write, each through its own channel; HTTP and the service only read. Everything here is a snapshot of now or
//! bounded: nothing in it grows with time or traffic.

mod announced;
mod clients;
mod drain;
pub mod edges;
pub mod ledger;
mod sensors;
mod upstreams;

use std::sync::Arc;

use tokio::sync::watch;

pub use self::announced::{Announced, AnnouncedService};
pub use self::clients::{ClientCounts, ClientSnapshot, ClientsShown};
pub use self::edges::{EdgeFigures, LastEdges};
pub use self::sensors::{Change, Finding, SensorSnapshot, SensorState, Verdict};
pub use self::upstreams::{UpstreamShown, UpstreamSnapshot, UpstreamState};
pub use crate::health::Fault;
use crate::health::{Health, Problems};
pub use crate::journal::report::Status as JournalStatus;

/// What a power cut costs.
#[derive(Clone, Debug)]
pub struct PowerCut {
    /// What, and what to do about it.
    pub cost: Arc<str>,
    /// Whether it is known to cost that, or only may.
    pub is_certain: bool,
}

/// What there is to see. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Status {
    /// The gateway's id.
    pub gateway_id: Arc<str>,
    /// The sensors.
    pub sensors: watch::Receiver<Vec<SensorSnapshot>>,
    /// The upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamShown>,
    /// MQTT clients.
    pub clients: ClientsShown,
    /// What was logged as a warning or an error.
    pub problems: Problems,
    /// What is wrong now.
    pub health: Health,
    /// What a power cut costs beyond what is promised to survive one; `None`: nothing.
    pub lost_at_power_cut: Option<PowerCut>,
    /// What the local network is told.
    pub announced: watch::Receiver<Announced>,
    /// Names of the ports for MQTT.
    pub listeners: Arc<[String]>,
}

impl Status {
    /// Whether a port for MQTT is open.
    pub fn has_listener(&self) -> bool {
        self.listeners.iter().any(|name| !self.health.is_faulty(name))
    }
}
