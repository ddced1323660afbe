//! The remote side of a connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::access::waiting::Ticket;

/// If the CONNECT arrives within this time, the client has sent it at once.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Properties of a connection that are known before the CONNECT.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The remote address; an IPv4 address embedded in IPv6 is stored as IPv4.
    pub(crate) address: IpAddr,
    /// The user named by the TLS client certificate.
    pub(crate) certificate_user: Option<Box<str>>,
    /// Its place among the connections without a CONNECT, if it has one.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// The listener through which it came; `None` for the HTTP port.
    pub(crate) listener: Option<Arc<str>>,
    /// When the connection was accepted, or with TLS when the handshake was complete.
    pub(crate) accepted: Instant,
}

impl Peer {
    /// A connection from this address of which nothing else is known.
    pub fn at(address: IpAddr) -> Peer {
        Peer {
            address: address.to_canonical(),
            certificate_user: None,
            ticket: None,
            listener: None,
            accepted: Instant::now(),
        }
    }

    /// The time that decides which of two connections is newer; to be called when the CONNECT has been read. For clients
    /// that send it at once, it is the time of the accept, which is more exact than the time of reading.
    pub(super) fn arrived(&self) -> Instant {
        let now = Instant::now();
        if now.saturating_duration_since(self.accepted) < AT_ONCE { self.accepted } else { now }
    }
}
