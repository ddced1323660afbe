//! Starts the announcements to Home Assistant.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::core::Core;
use crate::config::Settings;
use crate::home_assistant::HomeAssistant;
use crate::home_assistant::device::AnnouncedGateway;
use crate::net::port::Port;
use crate::sensors::settings::SensorSettings;
use crate::status::GatewayStatus;
use crate::supervise::Supervisor;

/// Publishes the announcements that must come before everything else. The rest follows after [`go_on`].
pub(super) async fn start(
    settings: &Settings,
    web: Option<&Port>,
    sensors: watch::Receiver<Arc<[SensorSettings]>>,
    status: &GatewayStatus,
    core: &Arc<Core>,
    (supervisor, doors, gone): (&Supervisor, &CancellationToken, &watch::Sender<()>),
) -> Option<oneshot::Sender<()>> {
    let gateway = AnnouncedGateway {
        id: settings.gateway.id.clone(),
        upstreams: settings.upstreams.iter().map(|upstream| upstream.name.clone()).collect(),
        url: web.and_then(|web| url(settings, web)),
    };
    let (ingress, data_dir) = (core.ingress.clone(), &settings.gateway.data_dir);
    let told =
        HomeAssistant::start(&settings.home_assistant, gateway, sensors, status.clone(), ingress, data_dir).await?;
    let (ready, is_ready) = oneshot::channel();
    let (doors, gone) = (doors.clone(), gone.clone());
    supervisor.spawn_endless("Home Assistant", async move {
        tokio::select! {
            // if the start has failed, nothing more is announced
            Ok(()) = is_ready => {}
            () = doors.cancelled() => {}
        }
        told.run(doors).await;
        drop(gone);
    });
    Some(ready)
}

/// Lets the announcements continue, because the gateway has started.
pub(super) fn go_on(announcing: Option<oneshot::Sender<()>>) {
    // the receiver may have ended
    let _ = announcing.map(|ready| ready.send(()));
}

/// The URL of the web page, with the name that mDNS gives to this host.
fn url(settings: &Settings, web: &Port) -> Option<String> {
    let address = web.address().tcp()?;
    let host = match address.ip() {
        ip if ip.is_loopback() => return None,
        ip if ip.is_unspecified() => {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            if name.contains('.') { name } else { format!("{name}.local") }
        }
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    let scheme = if settings.http.tls.is_some() { "https" } else { "http" };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '[' | ']' | ':');
    host.chars().all(is_name).then(|| format!("{scheme}://{host}:{}/", address.port()))
}
