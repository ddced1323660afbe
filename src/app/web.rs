//! HTTP and what it needs.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::broker::connection::{Peer, serve};
use crate::broker::core::Core;
use crate::config::Settings;
use crate::http::guard::Guard;
use crate::http::hub::Hub;
use crate::http::websocket::MqttDoor;
use crate::http::{Http, Parts, history, server};
use crate::net::port::Port;
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
    let guard = Guard::new(&host_name, &settings.http.allowed_hosts, port.address().port());
    let hub = Hub::new(core.ingress.clone());
    let clock = core.ingress.clock().clone();
    let pulse = rooms.watch("HTTP messages");
    supervisor.spawn_endless("HTTP messages", hub.clone().run(pulse, supervisor.token()));
    // ends after the sensors, whose last word it writes
    supervisor.spawn("history", history::run(status.sensors.clone(), dir.clone(), clock, supervisor.token()));
    let http = Http::new(Parts {
        access: core.access.clone(),
        ingress: core.ingress.clone(),
        hub,
        status,
        mqtt: mqtt_door(core.clone()),
        connections: connections.clone(),
        cancel: core.cancel.clone(),
        history: dir,
        guard,
        trusted_proxies: settings.http.trusted_proxies.clone(),
        frame_ancestors: settings.http.frame_ancestors.clone(),
    });
    let name = port.task_name("HTTP");
    let pulse = rooms.watch(name.clone());
    supervisor.spawn_endless(name, server::run(port, http, pulse));
}

/// Hands connections that speak MQTT over WebSocket to the broker.
fn mqtt_door(core: Arc<Core>) -> MqttDoor {
    Arc::new(move |frames, address| {
        let peer = Peer { address, certificate_user: None, ticket: None };
        let (reader, writer) = tokio::io::split(frames);
        Box::pin(serve(core.clone(), reader, writer, peer))
    })
}
