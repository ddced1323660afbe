//! Connects the mDNS announcements with the open ports.

use tokio::sync::watch;

use crate::broker::listener::Listener;
use crate::config::Settings;
use crate::health::Health;
use crate::mdns::service::{Candidate, ServiceKind};
use crate::mdns::settings::MdnsSettings;
use crate::mdns::task::Mdns;
use crate::net::port::Port;
use crate::status::Announced;

/// Returns the announcer, its state, and the sender that changes its settings.
pub(super) fn prepare(
    settings: &Settings,
    listeners: &[Listener],
    web: Option<&Port>,
    health: &Health,
) -> (Mdns, watch::Receiver<Announced>, watch::Sender<MdnsSettings>) {
    // there is no service type for MQTT over WebSocket
    let candidates = listeners.iter().filter_map(of_listener).chain(web.and_then(|web| of_web(settings, web)));
    let (change, changes) = watch::channel(settings.mdns.clone());
    let (mdns, announced) = Mdns::new(&settings.gateway.id, changes, candidates.collect(), health.clone());
    (mdns, announced, change)
}

/// A listener that requires client certificates is not announced: those who were given a certificate know its address.
fn of_listener(listener: &Listener) -> Option<Candidate> {
    let kind = match &listener.settings.tls {
        None => ServiceKind::Mqtt,
        Some(tls) if tls.client_ca.is_none() => ServiceKind::SecureMqtt,
        Some(_) => return None,
    };
    of_port(&listener.port, kind)
}

fn of_web(settings: &Settings, web: &Port) -> Option<Candidate> {
    of_port(web, if settings.http.tls.is_some() { ServiceKind::Https } else { ServiceKind::Http })
}

fn of_port(port: &Port, kind: ServiceKind) -> Option<Candidate> {
    Some(Candidate { part: port.name().into(), kind, address: port.address().tcp()? })
}
