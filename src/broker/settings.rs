//! Settings of the broker: limits and listeners.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::access::settings::AccessSettings;
pub(crate) use crate::exchange::receiving::SHARE as MAX_SHARE;
pub(crate) use crate::net::address::Address;
pub(crate) use crate::net::forwarded::Network;
use crate::net::port::PortSettings;
use crate::tls::TlsFiles;

/// The table `[broker]`: limits, access and listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSettings {
    /// Most MQTT connections at the same time.
    pub max_connections: usize,
    /// Most persistent sessions that are kept.
    pub max_sessions: usize,
    /// Largest MQTT packet, in bytes.
    pub max_packet_size: usize,
    /// The longest keep alive in seconds for MQTT 5 clients; `None` accepts what they ask for.
    pub max_keep_alive: Option<u16>,
    /// Most QoS 1 and 2 messages of one session that are sent and not acknowledged; at least 1.
    pub max_inflight: u16,
    /// Most messages of one session that wait for a slow or absent client.
    pub max_queued_messages: usize,
    /// Most bytes of these messages, for one session.
    pub max_queued_size: usize,
    /// Most retained messages.
    pub max_retained: usize,
    /// Most bytes of all retained messages.
    pub max_retained_size: usize,
    /// The longest time for which the session of an absent client is kept.
    pub session_expiry: Duration,
    /// Who may sign in and do what. HTTP uses the same settings.
    pub access: AccessSettings,
    /// The listeners, at least one.
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

/// One `[[broker.listener]]`. Its access settings are in [`AccessSettings`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// An IP address with a port, or the path of a Unix socket.
    pub address: Address,
    /// The files for TLS; `None` means plain TCP.
    pub tls: Option<TlsFiles>,
    /// Whether the common name of a client's certificate is its user name. Otherwise clients sign in with user name and
    /// password.
    pub use_identity: bool,
    /// Whether the listener accepts only MQTT over WebSocket.
    pub websocket: bool,
    /// Most connections at the same time; `None` means no limit of its own.
    pub max_connections: Option<usize>,
    /// Proxies that are believed when they report the address of a client.
    pub proxies: Vec<Network>,
}

impl ListenerSettings {
    /// A listener with the defaults.
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

    /// The name in the log and in access settings.
    pub(crate) fn name(&self) -> String {
        self.address.to_string()
    }

    /// The settings of its port.
    pub(crate) fn port(&self) -> PortSettings {
        PortSettings {
            name: format!("listener {}", self.address),
            address: self.address.clone(),
            tls: self.tls.clone(),
            max_connections: self.max_connections,
            proxies: self.proxies.clone(),
        }
    }

    /// Whether clients are identified by their certificates.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.use_identity && self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }
}

impl Default for ListenerSettings {
    fn default() -> Self {
        ListenerSettings::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 1883)))
    }
}
