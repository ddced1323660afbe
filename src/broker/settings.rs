//! Settings of the broker: limits and listeners.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::access::settings::AccessSettings;
pub(crate) use crate::exchange::receiving::SHARE as MAX_SHARE;
pub(crate) use crate::net::address::Address;
pub(crate) use crate::net::forwarded::Network;
use crate::net::port::PortSettings;
use crate::tls::TlsFiles;

/// `[broker]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSettings {
    /// Connections at the same time.
    pub max_connections: usize,
    /// Persistent sessions kept.
    pub max_sessions: usize,
    /// Largest MQTT packet, in bytes.
    pub max_packet_size: usize,
    /// Longest keep alive that MQTT 5 clients may have, in seconds; `None`: what they ask for.
    pub max_keep_alive: Option<u16>,
    /// Per session: QoS 1 and 2 messages sent to the client and not yet acknowledged; at least 1.
    pub max_inflight: u16,
    /// Per session: messages that wait for a client that is slow or away.
    pub max_queued_messages: usize,
    /// Per session: their bytes.
    pub max_queued_size: usize,
    /// Retained messages.
    pub max_retained: usize,
    /// Their bytes.
    pub max_retained_size: usize,
    /// Upper bound for the time that the session of a client that is away is kept.
    pub session_expiry: Duration,
    /// Who may come in and do what; HTTP asks the same.
    pub access: AccessSettings,
    /// Where to listen; at least one.
    pub listeners: Vec<ListenerSettings>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        BrokerSettings {
            max_connections: 256,
            max_sessions: 1024,
            max_packet_size: 2 << 20,
            max_keep_alive: None,
            max_inflight: 20,
            max_queued_messages: 1000,
            max_queued_size: 4 << 20,
            max_retained: 10_000,
            max_retained_size: 16 << 20,
            session_expiry: Duration::from_secs(7 * 24 * 60 * 60),
            access: AccessSettings::default(),
            listeners: vec![ListenerSettings::default()],
        }
    }
}

/// One `[[broker.listener]]`. Who may come in there stands with the other answers of that kind, in [`AccessSettings`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// An IP address with a port, or a socket in the file system.
    pub address: Address,
    /// TLS; `None`: plain TCP.
    pub tls: Option<TlsFiles>,
    /// The common name of a client's certificate is its user; otherwise user name and password are, as without one.
    pub use_identity: bool,
    /// MQTT over WebSocket and nothing else.
    pub websocket: bool,
    /// Most connections at the same time.
    pub max_connections: Option<usize>,
    /// Proxies whose word about where a connection comes from is believed.
    pub proxies: Vec<Network>,
}

impl ListenerSettings {
    /// A listener for everything that has a default.
    pub fn new(address: impl Into<Address>) -> ListenerSettings {
        ListenerSettings {
            address: address.into(),
            tls: None,
            use_identity: true,
            websocket: false,
            max_connections: None,
            proxies: Vec::new(),
        }
    }

    /// What it is called, in the log and where access is decided.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// What its port is to be.
    pub(crate) fn port(&self) -> PortSettings {
        PortSettings {
            name: format!("listener {}", self.address),
            address: self.address.clone(),
            tls: self.tls.clone(),
            max_connections: self.max_connections,
            proxies: self.proxies.clone(),
        }
    }

    /// Whether it finds out who a client is by its certificate.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.use_identity && self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}

impl Default for ListenerSettings {
    fn default() -> Self {
        ListenerSettings::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 1883)))
    }
}
