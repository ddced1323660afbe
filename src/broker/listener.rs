//! Accepts the connections of MQTT clients.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::capacity::UNSEATED;
use super::connection::{Peer, part, serve};
use super::core::Core;
use super::settings::ListenerSettings;
use crate::access::guesses::network;
use crate::access::waiting::{MOST, Socket, Ticket};
use crate::net::address::PortStream;
use crate::net::port::{AcceptedConnection, Port};
use crate::tls::{common_name, handshake_hint};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A port for MQTT clients. It may still be closed, for example while its address is in use.
pub struct Listener {
    /// The port with its address and TLS.
    pub(crate) port: Port,
    pub(crate) settings: ListenerSettings,
}

/// The properties of the listener that a connection needs.
#[derive(Clone)]
struct Through {
    name: Arc<str>,
    use_identity: bool,
}

impl Listener {
    /// Accepts connections until the gateway shuts down.
    pub async fn run(mut self, core: Arc<Core>, connections: TaskTracker) {
        let through = Through { name: self.settings.name().into(), use_identity: self.settings.use_identity };
        loop {
            tokio::select! {
                () = core.cancel.cancelled() => return,
                accepted = self.port.accept() => accept(accepted, &through, &core, &connections),
            }
        }
    }
}

fn accept(accepted: AcceptedConnection, through: &Through, core: &Arc<Core>, connections: &TaskTracker) {
    let bounds = core.bounds();
    let (most, of_network) = (bounds.most + UNSEATED, bounds.of_network() + MOST);
    let from = accepted.from;
    // a client's address behind a proxy is not known yet
    let network_of = (!accepted.is_proxied()).then(|| from.ip());
    let Some(mut socket) = core.sockets.open(network_of, most, of_network) else {
        core.stats.refused.add(1);
        debug!(from = %accepted.from, "connection dropped: too many are open");
        return;
    };
    core.stats.sockets.add(1);
    let is_familiar = core.access.passwords.familiar.knows_somebody(from.ip());
    let (ticket, has_cut) = core.waiting.enter(Some((from.ip(), is_familiar)));
    if has_cut {
        core.stats.refused.add(1);
        debug!("the connection that has waited longest for its CONNECT is cut: too many wait");
    }
    let (core, ticket, through, at) = (core.clone(), Arc::new(ticket), through.clone(), Instant::now());
    connections.spawn(async move {
        let open = OpenSocket(core.clone());
        tokio::select! {
            () = serve_accepted(core, accepted, (ticket.clone(), at), through, &mut socket) => {}
            () = ticket.cut() => {}
        }
        drop((open, socket));
    });
}

async fn serve_accepted(
    core: Arc<Core>,
    mut accepted: AcceptedConnection,
    (ticket, at): (Arc<Ticket>, Instant),
    through: Through,
    socket: &mut Socket,
) {
    let is_proxied = accepted.is_proxied();
    if let Err(error) = accepted.find_origin().await {
        core.stats.refused.add(1);
        let error = error.to_string();
        if let Some(more) = core.access.limiter.due(network(accepted.from.ip()), ("PROXY", &error)) {
            info!(from = %accepted.from, more_since_last = more, "connection closed: {error}");
        }
        return;
    }
    if is_proxied {
        // from here on it is the client that has the place, and not its proxy
        let from = accepted.from.ip();
        ticket.is_from(from, core.access.passwords.familiar.knows_somebody(from));
        if !socket.is_from(accepted.from.ip(), core.bounds().of_network() + MOST) {
            core.stats.refused.add(1);
            debug!(from = %accepted.from, "connection dropped: too many of its network are open");
            return;
        }
    }
    let AcceptedConnection { stream, from, tls, place, .. } = accepted;
    let peer = Peer { ticket: Some(ticket), listener: Some(through.name), accepted: at, ..Peer::at(from.ip()) };
    match (tls, stream) {
        // with TLS a connection is larger, and others need no room for that
        (Some(tls), stream) => Box::pin(serve_tls(core, stream, &tls, (peer, through.use_identity))).await,
        (None, PortStream::Tcp(stream)) => {
            let (reader, writer) = stream.into_split();
            serve(core, reader, writer, peer).await;
        }
        (None, PortStream::Unix(stream)) => {
            let (reader, writer) = stream.into_split();
            serve(core, reader, writer, peer).await;
        }
    }
    drop(place);
}

/// Counts a socket as open until dropped, also after a panic.
struct OpenSocket(Arc<Core>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.stats.sockets.sub(1);
    }
}

async fn serve_tls(core: Arc<Core>, stream: PortStream, tls: &TlsAcceptor, (mut peer, use_identity): (Peer, bool)) {
    match timeout(HANDSHAKE_TIMEOUT, core.access.accept_tls(stream, tls, peer.address)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().filter(|_| use_identity);
            peer.certificate_user = certificates.and_then(|chain| common_name(chain.first()?));
            peer.accepted = Instant::now();
            let (reader, writer) = tokio::io::split(stream);
            serve(core, reader, writer, peer).await;
        }
        Ok(Err((error, stream))) => {
            core.stats.refused.add(1);
            let error = error.to_string();
            if let Some(more) = core.access.limiter.due(network(peer.address), ("TLS", &error)) {
                let hint = handshake_hint(&error);
                info!(from = %peer.address, more_since_last = more, "TLS handshake failed: {error}{hint}");
            }
            // the TLS alert contains the reason, and would be lost if the connection were reset
            if let Some(stream) = stream {
                let (reader, writer) = tokio::io::split(stream);
                part(&core.waiting, reader, writer, &[][..], false).await;
            }
        }
        Err(_) => {
            core.stats.refused.add(1);
            if let Some(more) = core.access.limiter.due(network(peer.address), "TLS took too long") {
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
