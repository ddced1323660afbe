//! Settings of each upstream: where it is, how to speak with it and which topics go which way.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use super::overlap::loops;
use crate::message::{Qos, Topic, via};

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Name, unique among the upstreams.
    pub name: String,
    /// Where it is, tried in turn; at least one.
    pub addresses: Vec<UpstreamAddress>,
    /// Version of MQTT to speak.
    pub protocol: Protocol,
    /// With [`Protocol::Auto`]: the rules would loop on 3.1.1, so there is no falling back to it.
    pub v5_only: bool,
    /// Client id, not empty.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// File with the password, only with a user name. It is read for every connection.
    pub password_file: Option<PathBuf>,
    /// Whether the upstream forgets us when the connection ends.
    pub clean_session: bool,
    /// On version 5: how long the upstream keeps messages for us; whole seconds.
    pub session_expiry: Duration,
    /// From 5 s to 65535 s, whole seconds.
    pub keep_alive: Duration,
    /// QoS 1 messages sent and not yet acknowledged; at least 1.
    pub max_inflight: u16,
    /// Files for `mqtts` addresses; `None`: the system's roots, no client certificate.
    pub tls: Option<UpstreamTls>,
    /// Remote topic that says whether the gateway is connected.
    pub status_topic: Option<Topic>,
    /// Local topics that go up.
    pub out: Vec<OutRule>,
    /// Remote topics that come down.
    pub inbound: Vec<InRule>,
    /// Topics that go both ways.
    pub both: Vec<BothRule>,
}

impl UpstreamSettings {
    /// How this gateway introduces itself to an upstream that may be a gateway too: by its id, if it takes messages in under
    /// the topics that they have there. That gateway then need not deliver what it forwards here anyway.
    pub fn introduction(&self) -> String {
        let inbound = self.inbound.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        let both = self.both.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        if inbound && both { via::Id::ours().as_str().to_owned() } else { String::new() }
    }

    /// An upstream with the defaults of everything that has one, and no rules.
    pub fn new(name: impl Into<String>, addresses: Vec<UpstreamAddress>, client_id: impl Into<String>) -> Self {
        UpstreamSettings {
            name: name.into(),
            addresses,
            protocol: Protocol::default(),
            v5_only: false,
            client_id: client_id.into(),
            username: None,
            password_file: None,
            clean_session: false,
            session_expiry: Duration::from_secs(7 * 24 * 60 * 60),
            keep_alive: Duration::from_secs(30),
            max_inflight: 100,
            tls: None,
            status_topic: None,
            out: Vec::new(),
            inbound: Vec::new(),
            both: Vec::new(),
        }
    }
}

/// How to reach an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    Mqtt,
    /// TLS.
    Mqtts,
}

/// One address of an upstream: `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAddress {
    /// How.
    pub scheme: Scheme,
    /// Host name or IP address; an IPv6 address without brackets.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

impl UpstreamAddress {
    /// Reads an address as the configuration has it.
    pub fn parse(text: &str) -> Option<UpstreamAddress> {
        let (scheme, rest) = match text.split_once("://")? {
            ("mqtt", rest) => (Scheme::Mqtt, rest),
            ("mqtts", rest) => (Scheme::Mqtts, rest),
            _ => return None,
        };
        let (host, port) = match rest.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !(rest.starts_with('[') || host.chars().all(is_host)) {
            return None;
        }
        let port = match (port, scheme) {
            (Some(port), _) => port.parse().ok().filter(|port| *port != 0)?,
            (None, Scheme::Mqtt) => 1883,
            (None, Scheme::Mqtts) => 8883,
        };
        Some(UpstreamAddress { scheme, host: host.into(), port })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Mqtt => "mqtt",
            Scheme::Mqtts => "mqtts",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Version of MQTT to speak with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// 5, and 3.1.1 where that is refused.
    #[default]
    Auto,
    /// 5 only.
    V5,
    /// 3.1.1 only.
    V4,
}

/// Files for TLS, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Authorities that sign the upstream's certificate; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate chain; always with `key`.
    pub cert: Option<PathBuf>,
    /// Our private key; always with `cert`.
    pub key: Option<PathBuf>,
}

/// QoS of messages that go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OutQos {
    /// QoS 0 at most.
    AtMostOnce,
    /// QoS 1 for all, so that messages published at QoS 0 are confirmed too.
    #[default]
    AtLeastOnce,
    /// As published; 2 goes up as 1.
    Keep,
}

/// Maps topics between here and an upstream: the local topics of `local_prefix` + `topic_filter` correspond to the
/// remote topics of `remote_prefix` + `topic_filter`. An empty `topic_filter` maps the one topic `local_prefix` to the
/// one topic `remote_prefix`. Both joined filters are valid, and the prefixes have no wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<Q> {
    /// What both sides have in common; empty for a single topic.
    pub topic_filter: String,
    /// In front of it here.
    pub local_prefix: String,
    /// In front of it there.
    pub remote_prefix: String,
    /// QoS of what is passed on.
    pub qos: Q,
    /// Where the rule stands in the configuration.
    pub place: Place,
}

impl<Q> Rule<Q> {
    /// The filter of the local topics.
    pub fn local_filter(&self) -> String {
        format!("{}{}", self.local_prefix, self.topic_filter)
    }

    /// The filter of the remote topics.
    pub fn remote_filter(&self) -> String {
        format!("{}{}", self.remote_prefix, self.topic_filter)
    }
}

/// One `[[upstream.out]]`: local topics go up.
pub type OutRule = Rule<OutQos>;

/// One `[[upstream.in]]`: remote topics come down, at most at this QoS, which is 0 or 1.
pub type InRule = Rule<Qos>;

/// One `[[upstream.both]]`: topics go both ways; the QoS is that of the way up, and [`BothRule::qos_in`] that down.
pub type BothRule = Rule<OutQos>;

impl BothRule {
    /// QoS to subscribe with for the way down.
    pub fn qos_in(&self) -> Qos {
        match self.qos {
            OutQos::AtMostOnce => Qos::AtMostOnce,
            OutQos::AtLeastOnce | OutQos::Keep => Qos::AtLeastOnce,
        }
    }
}

/// `FILE:LINE` of a rule, for messages. All places are equal: where a rule stands says nothing about what it does, and
/// moving it is no change.
#[derive(Clone, Default)]
pub struct Place(Box<str>);

impl Place {
    /// A line of a file.
    pub fn new(file: &str, line: usize) -> Place {
        Place(format!("{file}:{line}").into())
    }
}

impl PartialEq for Place {
    fn eq(&self, _: &Place) -> bool {
        true
    }
}

impl Eq for Place {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, printed) in [
            ("mqtt://192.0.2.7", "mqtt://192.0.2.7:1883"),
            ("mqtts://mqtt.example.org", "mqtts://mqtt.example.org:8883"),
            ("mqtt://[2001:db8::1]:1884", "mqtt://[2001:db8::1]:1884"),
            ("mqtts://[::1]", "mqtts://[::1]:8883"),
        ] {
            assert_eq!(UpstreamAddress::parse(text).unwrap().to_string(), printed);
        }
        for bad in [
            "mqtt.example.org:1883",
            "tcp://h",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://h:0",
            "mqtt://h:65536",
            "mqtt://h:1883/x",
            "mqtt://user@h",
            "mqtt://2001:db8::1",
            "mqtt://[::1",
            "mqtt://[h]:1883",
            "mqtt://[::1]1883",
        ] {
            assert_eq!(UpstreamAddress::parse(bad), None, "{bad}");
        }
    }
}
