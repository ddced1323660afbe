//! Starts HTTP with all that it needs.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::access::made::UserDesk;
use crate::broker::connection::{Peer, serve_known};
use crate::broker::core::Core;
use crate::broker::listener::Listener;
use crate::config::Settings;
use crate::http::guard::HttpGuard;
use crate::http::hub::Hub;
use crate::http::server::Site;
use crate::http::websocket::{Arrival, MqttDoor, WebSocketDoor};
use crate::http::{Disconnect, Http, Parts, history, server};
use crate::net::port::Port;
use crate::status::GatewayStatus;
use crate::supervise::Supervisor;

use super::pulse::Rooms;

pub(crate) fn start(
    port: Port,
    settings: &Settings,
    (status, users): (GatewayStatus, UserDesk),
    core: &Arc<Core>,
    connections: &TaskTracker,
    supervisor: &Supervisor,
    rooms: &mut Rooms,
) {
    let dir = settings.gateway.data_dir.join("history");
    let guard = guard(&port, settings);
    let hub = Hub::new(core.ingress.clone());
    let clock = core.ingress.clock().clone();
    let pulse = rooms.watch("HTTP messages");
    supervisor.spawn_endless("HTTP messages", hub.clone().run(pulse, supervisor.token()));
    // ends after the sensors, because it records their last state
    supervisor.spawn("history", history::run(status.sensors.clone(), dir.clone(), clock, supervisor.token()));
    let http = Http::new(Parts {
        access: core.access.clone(),
        ingress: core.ingress.clone(),
        hub,
        status,
        mqtt: mqtt_door(core.clone(), None),
        connections: connections.clone(),
        cancel: core.cancel.clone(),
        history: dir,
        guard,
        trusted_proxies: settings.http.trusted_proxies.clone(),
        frame_ancestors: settings.http.frame_ancestors.clone(),
        users,
        disconnect: disconnecting(core.clone()),
        is_tls: settings.http.tls.is_some(),
    });
    let name = port.task_name("HTTP");
    let pulse = rooms.watch(name.clone());
    supervisor.spawn_endless(name, server::run(port, Site::whole(&http), pulse));
}

fn guard(port: &Port, settings: &Settings) -> HttpGuard {
    let host_name = rustix::system::uname();
    let host_name = host_name.nodename().to_string_lossy();
    let number = port.address().tcp().map_or(0, |address| address.port());
    HttpGuard::new(&host_name, &settings.http.allowed_hosts, number)
}

pub(crate) fn start_listener(
    Listener { port, settings: listener }: Listener,
    settings: &Settings,
    core: &Arc<Core>,
    connections: &TaskTracker,
    supervisor: &Supervisor,
    rooms: &mut Rooms,
) {
    let door = WebSocketDoor {
        mqtt: mqtt_door(core.clone(), Some(listener.name().into())),
        connections: connections.clone(),
        trusted_proxies: settings.http.trusted_proxies.clone().into(),
    };
    let site = Site::websocket(
        guard(&port, settings),
        door,
        listener.use_identity,
        (core.access.clone(), core.cancel.clone()),
    );
    let name = port.task_name("WebSocket listener");
    let pulse = rooms.watch(name.clone());
    supervisor.spawn_endless(name, server::run(port, site, pulse));
}

/// A function by which HTTP disconnects MQTT clients.
fn disconnecting(core: Arc<Core>) -> Disconnect {
    Arc::new(move |user, client_id| core.disconnect(user, client_id))
}

/// A function that passes connections with MQTT over WebSocket to the broker.
fn mqtt_door(core: Arc<Core>, listener: Option<Arc<str>>) -> MqttDoor {
    Arc::new(move |frames, Arrival { address, certificate_user }, place| {
        let peer = Peer { certificate_user, listener: listener.clone(), ..Peer::at(address) };
        let (reader, writer) = tokio::io::split(frames);
        let core = core.clone();
        Box::pin(async move { serve_known(core, reader, writer, peer, |user| place.belongs_to(user)).await })
    })
}
