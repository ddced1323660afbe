//! HTTP and what it needs.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::broker::core::Core;
use crate::config::Settings;
use crate::http::guard::Guard;
use crate::http::hub::Hub;
use crate::http::server::Port;
use crate::http::{Http, history};
use crate::status::Status;
use crate::supervise::Supervisor;

use super::pulse::Rooms;

/// Starts it.
pub fn start(
    port: Port,
    settings: &Settings,
    status: Status,
    core: &Arc<Core>,
    connections: &TaskTracker,
    supervisor: &Supervisor,
    rooms: &mut Rooms,
) {
    let dir = settings.gateway.data_dir.join("history");
    let host_name = rustix::system::uname();
    let host_name = host_name.nodename().to_string_lossy();
    let guard = Guard::new(&host_name, &settings.http.allowed_hosts, port.address.port());
    let hub = Hub::new(core.ingress.clone());
    let clock = core.ingress.clock().clone();
    let pulse = rooms.watch("HTTP messages");
    supervisor.spawn_endless("HTTP messages", hub.clone().run(pulse, supervisor.token()));
    // ends after the sensors, whose last word it writes
    supervisor.spawn("history", history::run(status.sensors.clone(), dir.clone(), clock, supervisor.token()));
    let http = Http::new(core.clone(), hub, status, connections.clone(), dir, guard);
    let name: Arc<str> = format!("HTTP {}", port.address).into();
    let pulse = rooms.watch(name.clone());
    supervisor.spawn_endless(name, port.run(http, pulse));
}
