//! The other end of a connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::access::waiting::Ticket;

/// A client whose CONNECT is there so soon has sent it at once.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Where a connection comes from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it comes from; of IPv4 in IPv6 the IPv4 address.
    pub(crate) address: IpAddr,
    /// User named by its TLS client certificate.
    pub(crate) certificate_user: Option<Box<str>>,
    /// Its place in the waiting room, where there is one.
    pub(crate) ticket: Option<Arc<Ticket>>,
    /// The listener that it came through; `None`: the port of HTTP.
    pub(crate) listener: Option<Arc<str>>,
    /// When it was accepted, and its handshake was done where there is TLS.
    pub(crate) accepted: Instant,
}

impl Peer {
    /// Somebody at this address of whom nothing else is known.
    pub fn at(address: IpAddr) -> Peer {
        Peer {
            address: address.to_canonical(),
            certificate_user: None,
            ticket: None,
            listener: None,
            accepted: Instant::now(),
        }
    }

    /// Said when its CONNECT has been read: what decides which of two connections is the newer one. Of clients that send theirs at
    /// once it is when they were accepted, which is known better than when what they have sent was looked at.
    pub(super) fn arrived(&self) -> Instant {
        let now = Instant::now();
        if now.saturating_duration_since(self.accepted) < AT_ONCE { self.accepted } else { now }
    }
}
