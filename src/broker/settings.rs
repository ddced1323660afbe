//! Settings of the broker: limits and listeners.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::access::settings::AccessSettings;
pub use crate::exchange::receiving::SHARE as MAX_SHARE;

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

/// One `[[broker.listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// Address and port; `[::]` takes IPv4 too.
    pub address: SocketAddr,
    /// TLS; `None`: plain TCP.
    pub tls: Option<ListenerTls>,
}

impl Default for ListenerSettings {
    fn default() -> Self {
        ListenerSettings { address: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 1883)), tls: None }
    }
}

/// Files of a TLS listener, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// Certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities that sign client certificates; with it, a certificate's common name is the user.
    pub client_ca: Option<PathBuf>,
}
