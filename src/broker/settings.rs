//! Settings of the broker: limits, listeners, users and what they may do.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::message::{TopicError, check_filter};

/// `[broker]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerSettings {
    /// Connections at the same time.
    pub max_connections: usize,
    /// Persistent sessions kept.
    pub max_sessions: usize,
    /// Largest MQTT packet, in bytes.
    pub max_packet_size: usize,
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
    /// Clients without a user name.
    pub anonymous: AnonymousSettings,
    /// Where to listen; at least one.
    pub listeners: Vec<ListenerSettings>,
    /// Users, their names unique.
    pub users: Vec<UserSettings>,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        BrokerSettings {
            max_connections: 256,
            max_sessions: 1024,
            max_packet_size: 256 << 10,
            max_inflight: 20,
            max_queued_messages: 1000,
            max_queued_size: 1 << 20,
            max_retained: 10_000,
            max_retained_size: 16 << 20,
            session_expiry: Duration::from_secs(7 * 24 * 60 * 60),
            anonymous: AnonymousSettings::default(),
            listeners: vec![ListenerSettings::default()],
            users: Vec::new(),
        }
    }
}

/// Where clients without a user name are accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AnonymousFrom {
    /// Nowhere.
    None,
    /// The host itself.
    #[default]
    Loopback,
    /// Everywhere.
    All,
}

/// `[broker.anonymous]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AnonymousSettings {
    /// Where they are accepted from.
    pub accept: AnonymousFrom,
    /// What they may do.
    pub access: Access,
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

/// One `[[broker.user]]`.
#[derive(Clone, PartialEq, Eq)]
pub struct UserSettings {
    /// User name, or common name of the client certificate.
    pub name: String,
    /// Argon2id hash as a PHC string; `None`: no password will do, only a certificate.
    pub password_hash: Option<String>,
    /// What the user may do.
    pub access: Access,
}

impl fmt::Debug for UserSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSettings")
            .field("name", &self.name)
            .field("password_hash", &self.password_hash.as_ref().map(|_| "(hidden)"))
            .field("access", &self.access)
            .finish()
    }
}

/// What a client may do. A topic must be selected by a rule that allows it and by none that denies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Topics that it may publish to.
    pub publish: Vec<AccessRule>,
    /// Topics that it may receive.
    pub subscribe: Vec<AccessRule>,
}

impl Default for Access {
    fn default() -> Self {
        let all = AccessRule { deny: false, filter: "#".into() };
        Access { publish: vec![all.clone()], subscribe: vec![all] }
    }
}

/// Allows or denies the topics of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Whether it denies them.
    pub deny: bool,
    /// Topic filter, in which `%u` stands for the user name and `%c` for the client id.
    pub filter: String,
}

impl AccessRule {
    /// Reads `FILTER`, which allows, or `!FILTER`, which denies.
    pub fn parse(text: &str) -> Result<AccessRule, TopicError> {
        let (deny, filter) = match text.strip_prefix('!') {
            Some(filter) => (true, filter),
            None => (false, text),
        };
        // neither %u nor %c holds a character that means something in a filter, so the filter is checked as it stands
        check_filter(filter)?;
        Ok(AccessRule { deny, filter: filter.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclamation_mark_denies() {
        let rule = |deny, filter: &str| Ok(AccessRule { deny, filter: filter.into() });
        assert_eq!(AccessRule::parse("loft/%u/in-%c/#"), rule(false, "loft/%u/in-%c/#"));
        assert_eq!(AccessRule::parse("!loft/private/#"), rule(true, "loft/private/#"));
        assert_eq!(AccessRule::parse("!"), Err(TopicError::Empty));
        assert_eq!(AccessRule::parse("loft/#/x"), Err(TopicError::MisplacedHash));
    }

    #[test]
    fn hashes_are_not_printed() {
        let user =
            UserSettings { name: "a".into(), password_hash: Some("$argon2id$x".into()), access: Access::default() };
        assert!(!format!("{user:?}").contains("argon2id"));
    }
}
