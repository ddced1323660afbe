//! Accepting connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::connection::{Peer, part, serve};
use super::core::Core;
use super::settings::ListenerSettings;
use crate::access::waiting::MOST;
use crate::net::port::{Accepted, Port, PortSettings};
use crate::tls::{TlsFiles, common_name, handshake_hint};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A port for MQTT clients, open or not yet.
pub struct Listener {
    /// Where connections come in.
    pub port: Port,
}

/// What the port of a listener is to be.
pub fn port(settings: &ListenerSettings) -> PortSettings {
    let tls = settings.tls.as_ref().map(|files| TlsFiles {
        cert: files.cert.clone(),
        key: files.key.clone(),
        client_ca: files.client_ca.clone(),
    });
    PortSettings { name: format!("listener {}", settings.address), address: settings.address, tls }
}

impl Listener {
    /// Accepts connections until the gateway goes down.
    pub async fn run(mut self, core: Arc<Core>, connections: TaskTracker) {
        loop {
            tokio::select! {
                () = core.cancel.cancelled() => return,
                accepted = self.port.accept() => accept(accepted, &core, &connections),
            }
        }
    }
}

fn accept(accepted: Accepted, core: &Arc<Core>, connections: &TaskTracker) {
    let Accepted { stream, from, tls } = accepted;
    // those that are being cut are still open for a moment
    let most = (core.settings.load().max_connections + 2 * MOST) as u64;
    if core.stats.sockets.get() >= most {
        core.stats.refused.add(1);
        debug!(%from, "connection dropped: too many are open");
        return;
    }
    core.stats.sockets.add(1);
    let (ticket, has_cut) = core.waiting.enter();
    if has_cut {
        core.stats.refused.add(1);
        debug!("the connection that has waited longest for its CONNECT is cut: too many wait");
    }
    let (core, ticket) = (core.clone(), Arc::new(ticket));
    connections.spawn(async move {
        let open = OpenSocket(core.clone());
        let peer = Peer { address: from.ip().to_canonical(), certificate_user: None, ticket: Some(ticket.clone()) };
        let serving = async {
            match tls {
                None => {
                    let (reader, writer) = stream.into_split();
                    serve(core, reader, writer, peer).await;
                }
                Some(tls) => serve_tls(core, stream, &tls, peer).await,
            }
        };
        tokio::select! {
            () = serving => {}
            () = ticket.cut() => {}
        }
        drop(open);
    });
}

/// Counts a socket as open until dropped, panics included.
struct OpenSocket(Arc<Core>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.stats.sockets.sub(1);
    }
}

async fn serve_tls(core: Arc<Core>, stream: TcpStream, tls: &TlsAcceptor, mut peer: Peer) {
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream).into_fallible()).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            peer.certificate_user = certificates.and_then(|chain| common_name(chain.first()?));
            let (reader, writer) = tokio::io::split(stream);
            serve(core, reader, writer, peer).await;
        }
        Ok(Err((error, stream))) => {
            core.stats.refused.add(1);
            let error = error.to_string();
            if let Some(more) = core.access.limiter.due(peer.address, ("TLS", &error)) {
                let hint = handshake_hint(&error);
                info!(from = %peer.address, more_since_last = more, "TLS handshake failed: {error}{hint}");
            }
            // the alert says why, and is lost if the connection is reset
            let (reader, writer) = stream.into_split();
            part(&core.waiting, reader, writer, &[], false).await;
        }
        Err(_) => {
            core.stats.refused.add(1);
            if let Some(more) = core.access.limiter.due(peer.address, "TLS took too long") {
                let seconds = HANDSHAKE_TIMEOUT.as_secs();
                info!(
                    from = %peer.address,
                    more_since_last = more,
                    "TLS handshake not done within {seconds} s: is it a client that does not speak TLS?"
                );
            }
        }
    }
}
