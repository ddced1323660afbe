//! Accepting connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::connection::{Peer, serve};
use super::core::Core;
use super::settings::ListenerSettings;
use crate::access::waiting::MOST;
use crate::net::{ListenError, bind, is_about_the_connection};
use crate::tls::{acceptor, common_name, handshake_hint};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// An open port.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    /// The address that it is bound to.
    pub address: SocketAddr,
}

/// Opens a port; `[::]` takes IPv4 too.
pub fn open(settings: &ListenerSettings) -> Result<Listener, ListenError> {
    let address = settings.address;
    let tls = match &settings.tls {
        Some(files) => {
            let acceptor = acceptor(&files.cert, &files.key, files.client_ca.as_deref());
            Some(acceptor.map_err(|source| ListenError::Tls { address, source })?)
        }
        None => None,
    };
    let (socket, address) = bind(address)?;
    Ok(Listener { socket, tls, address })
}

impl Listener {
    /// Accepts connections until the gateway goes down.
    pub async fn run(self, core: Arc<Core>, connections: TaskTracker) {
        loop {
            let accepted = tokio::select! {
                () = core.cancel.cancelled() => return,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => self.accepted(stream, from, &core, &connections),
                Err(error) if is_about_the_connection(&error) => {}
                Err(error) => {
                    // out of file descriptors or memory: those who are connected must go on
                    warn!(address = %self.address, %error, "cannot accept connections for now");
                    sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    fn accepted(&self, stream: TcpStream, from: SocketAddr, core: &Arc<Core>, connections: &TaskTracker) {
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
        let (core, tls, ticket) = (core.clone(), self.tls.clone(), Arc::new(ticket));
        connections.spawn(async move {
            let open = OpenSocket(core.clone());
            // a packet must not wait for the acknowledgement of the one before
            let _ = stream.set_nodelay(true);
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
}

/// Counts a socket as open until dropped, panics included.
struct OpenSocket(Arc<Core>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.stats.sockets.sub(1);
    }
}

async fn serve_tls(core: Arc<Core>, stream: TcpStream, tls: &TlsAcceptor, mut peer: Peer) {
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            peer.certificate_user = certificates.and_then(|chain| common_name(chain.first()?));
            let (reader, writer) = tokio::io::split(stream);
            serve(core, reader, writer, peer).await;
        }
        Ok(Err(error)) => {
            core.stats.refused.add(1);
            let error = error.to_string();
            if let Some(more) = core.access.limiter.due(peer.address, ("TLS", &error)) {
                let hint = handshake_hint(&error);
                info!(from = %peer.address, more_since_last = more, "TLS handshake failed: {error}{hint}");
            }
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
