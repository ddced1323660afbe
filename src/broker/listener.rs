//! Accepting connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::connection::{Peer, serve};
use super::core::Core;
use super::settings::ListenerSettings;
use crate::net::{ListenError, bind, is_about_the_connection};
use crate::tls::{acceptor, common_name};

/// Connections that may be between accept and CONNECT, beyond `max_connections`.
const HALF_OPEN: u64 = 64;
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
        let most = core.settings.load().max_connections as u64 + HALF_OPEN;
        if core.stats.sockets.get() >= most {
            core.stats.refused.add(1);
            debug!(%from, "connection dropped: too many are open");
            return;
        }
        core.stats.sockets.add(1);
        let (core, tls) = (core.clone(), self.tls.clone());
        connections.spawn(async move {
            let open = OpenSocket(core.clone());
            // a packet must not wait for the acknowledgement of the one before
            let _ = stream.set_nodelay(true);
            let peer = Peer { address: from.ip().to_canonical(), certificate_user: None };
            match tls {
                None => {
                    let (reader, writer) = stream.into_split();
                    serve(core, reader, writer, peer).await;
                }
                Some(tls) => serve_tls(core, stream, &tls, peer).await,
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
        Ok(Err(error)) => debug!(from = %peer.address, %error, "TLS handshake failed"),
        Err(_) => debug!(from = %peer.address, "TLS handshake took too long"),
    }
}
