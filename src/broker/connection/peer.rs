//! The other end of a connection.

use std::net::IpAddr;
use std::sync::Arc;

use crate::access::waiting::Ticket;

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
}

impl Peer {
    /// Somebody at this address of whom nothing else is known.
    pub fn at(address: IpAddr) -> Peer {
        Peer { address: address.to_canonical(), certificate_user: None, ticket: None, listener: None }
    }
}
