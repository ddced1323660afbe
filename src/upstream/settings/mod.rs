//! Settings of each upstream: where it is, how to speak with it and which topics go which way.

pub mod overlap;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::overlap::loops;
pub use super::address::{Proxy, ProxyScheme, Scheme, UpstreamAddress};
use crate::message::{Qos, Topic, via};

/// `journal.order`: the order in which upstreams get what waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// As accepted.
    #[default]
    Strict,
    /// After an outage, new messages need not wait behind the backlog.
    LiveFirst,
}

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// Name, unique among the upstreams.
    pub(crate) name: String,
    /// Where it is, tried in turn; at least one.
    pub addresses: Vec<UpstreamAddress>,
    /// Version of MQTT to speak.
    pub protocol: Protocol,
    /// With [`Protocol::Auto`]: the rules would loop on 3.1.1, so there is no falling back to it.
    pub(crate) v5_only: bool,
    /// Client id, not empty.
    pub(crate) client_id: String,
    /// It is not configured.
    pub(crate) has_default_client_id: bool,
    /// User name.
    pub(crate) username: Option<String>,
    /// Where the password comes from, only with a user name.
    pub(crate) password: Option<Password>,
    /// Whether the upstream forgets us when the connection ends.
    pub(crate) clean_session: bool,
    /// On version 5: how long the upstream keeps messages for us; whole seconds.
    pub(crate) session_expiry: Duration,
    /// From 5 s to 65535 s, whole seconds.
    pub(crate) keep_alive: Duration,
    /// QoS 1 messages sent and not yet acknowledged; at least 1.
    pub(crate) max_inflight: u16,
    /// For `mqtts` and `wss` addresses; `None`: the system's roots, no client certificate.
    pub(crate) tls: Option<UpstreamTls>,
    /// What connections go through.
    pub(crate) proxy: Option<Proxy>,
    /// From the first packet of TCP to CONNACK.
    pub(crate) connect_timeout: Duration,
    /// Waits between attempts to connect.
    pub(crate) retry: Retry,
    /// After this time with another than the first address, the first is tried again; `None`: never.
    pub(crate) failback: Option<Duration>,
    /// Most messages in a time.
    pub(crate) rate: Option<Rate>,
    /// Remote topic that says whether the gateway is connected.
    pub(crate) status_topic: Option<Topic>,
    /// Local topics that go up.
    pub(crate) out: Vec<OutRule>,
    /// Remote topics that come down.
    pub(crate) inbound: Vec<InRule>,
    /// Topics that go both ways.
    pub(crate) both: Vec<BothRule>,
    /// Local topics that only the gateway itself publishes: nothing comes down to them.
    pub(crate) reserved: Vec<String>,
}

impl UpstreamSettings {
    /// How this gateway introduces itself to an upstream that may be a gateway too: by its id, if it takes messages in under
    /// the topics that they have there. That gateway then need not deliver what it forwards here anyway.
    pub(crate) fn introduction(&self) -> String {
        let inbound = self.inbound.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        let both = self.both.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        if inbound && both { via::Id::ours().as_str().to_owned() } else { String::new() }
    }

    /// An upstream with the defaults of everything that has one, and no rules.
    pub(crate) fn new(name: impl Into<String>, addresses: Vec<UpstreamAddress>, client_id: impl Into<String>) -> Self {
        UpstreamSettings {
            name: name.into(),
            addresses,
            protocol: Protocol::default(),
            v5_only: false,
            client_id: client_id.into(),
            has_default_client_id: false,
            username: None,
            password: None,
            clean_session: false,
            session_expiry: Duration::from_secs(7 * 24 * 60 * 60),
            keep_alive: Duration::from_secs(30),
            max_inflight: 100,
            tls: None,
            proxy: None,
            connect_timeout: Duration::from_secs(30),
            retry: Retry::default(),
            failback: None,
            rate: None,
            status_topic: None,
            out: Vec::new(),
            inbound: Vec::new(),
            both: Vec::new(),
            reserved: Vec::new(),
        }
    }
}

/// Where a password comes from. It is fetched for each connection, so that a new one is used at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Password {
    /// A file: its text without the line end.
    File(PathBuf),
    /// A program and its arguments: what it prints, without the line end.
    Command(Vec<String>),
}

/// Waits between attempts to connect: they double from the first to the second, each shortened at random by up to half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// The first.
    pub(crate) min: Duration,
    /// The longest.
    pub(crate) max: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { min: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

/// Most messages in a time: `50/s`, `600/min`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    messages: u32,
    per: Duration,
}

impl Rate {
    /// Reads a rate as the configuration has it.
    pub fn parse(text: &str) -> Option<Rate> {
        let (messages, unit) = text.split_once('/')?;
        let seconds = match unit.trim() {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            _ => return None,
        };
        let messages = messages.trim().parse().ok().filter(|messages| (1..=1_000_000).contains(messages))?;
        Some(Rate { messages, per: Duration::from_secs(seconds) })
    }

    /// Between two messages.
    pub(crate) fn interval(self) -> Duration {
        self.per / self.messages
    }

    /// Messages in a second.
    pub fn per_second(self) -> f64 {
        f64::from(self.messages) / self.per.as_secs_f64()
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

/// TLS towards an upstream; files are in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct UpstreamTls {
    /// SHA-256 of the one certificate that is accepted, whoever signed it and whatever it says.
    pub(crate) fingerprint: Option<[u8; 32]>,
    /// The name that the certificate is to have, and that the upstream is told; `None`: the host of the address.
    pub(crate) server_name: Option<String>,
    /// Protocols to offer (ALPN).
    pub(crate) alpn: Vec<String>,
    /// Authorities that sign the upstream's certificate; `None`: the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate chain; always with `key`.
    pub(crate) cert: Option<PathBuf>,
    /// Our private key; always with `cert`.
    pub(crate) key: Option<PathBuf>,
}

/// QoS of messages that go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum OutQos {
    /// QoS 0 at most.
    AtMostOnce,
    /// QoS 1 for all, so that messages published at QoS 0 are confirmed too.
    #[default]
    AtLeastOnce,
    /// QoS 2 for all: exactly once, where the upstream keeps our session.
    ExactlyOnce,
    /// As published; 2 goes up as 1.
    Keep,
}

/// Maps topics between here and an upstream: the local topics of `local_prefix` + `topic_filter` correspond to the
/// remote topics of `remote_prefix` + `topic_filter`. An empty `topic_filter` maps the one topic `local_prefix` to the
/// one topic `remote_prefix`. Both joined filters are valid, and the prefixes have no wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule<Q> {
    /// What both sides have in common; empty for a single topic.
    pub(crate) topic_filter: String,
    /// In front of it here.
    pub(crate) local_prefix: String,
    /// In front of it there.
    pub(crate) remote_prefix: String,
    /// QoS of what is passed on.
    pub(crate) qos: Q,
    /// Whether the retain flag is passed on.
    pub(crate) retain: bool,
    /// What waited for longer does not go up.
    pub(crate) max_age: Option<Duration>,
    /// Where the rule stands in the configuration.
    pub(crate) place: SecretPlace,
}

impl<Q> Rule<Q> {
    /// The filter of the local topics.
    pub(crate) fn local_filter(&self) -> String {
        format!("{}{}", self.local_prefix, self.topic_filter)
    }

    /// The filter of the remote topics.
    pub(crate) fn remote_filter(&self) -> String {
        format!("{}{}", self.remote_prefix, self.topic_filter)
    }

    /// What it does, for people.
    fn in_words(&self, way: &str, from: &str, to: &str) -> String {
        if from == to { format!("{from} {way}") } else { format!("{from} {way} as {to}") }
    }
}

impl UpstreamSettings {
    /// What goes up and what comes down, for people.
    pub(crate) fn rules_in_words(&self) -> Vec<String> {
        let up = self.out.iter().map(|rule| rule.in_words("goes up", &rule.local_filter(), &rule.remote_filter()));
        let down =
            self.inbound.iter().map(|rule| rule.in_words("comes down", &rule.remote_filter(), &rule.local_filter()));
        let both =
            self.both.iter().map(|rule| rule.in_words("goes both ways", &rule.local_filter(), &rule.remote_filter()));
        up.chain(down).chain(both).collect()
    }
}

/// One `[[upstream.out]]`: local topics go up.
pub(crate) type OutRule = Rule<OutQos>;

/// One `[[upstream.in]]`: remote topics come down, at most at this QoS.
pub(crate) type InRule = Rule<Qos>;

/// One `[[upstream.both]]`: topics go both ways; the QoS is that of the way up, and [`BothRule::qos_in`] that down.
pub(crate) type BothRule = Rule<OutQos>;

impl BothRule {
    /// QoS to subscribe with for the way down.
    pub(crate) fn qos_in(&self) -> Qos {
        match self.qos {
            OutQos::AtMostOnce => Qos::AtMostOnce,
            OutQos::AtLeastOnce | OutQos::Keep => Qos::AtLeastOnce,
            OutQos::ExactlyOnce => Qos::ExactlyOnce,
        }
    }
}

/// `FILE:LINE` of a rule, for messages. All places are equal: where a rule stands says nothing about what it does, and
/// moving it is no change.
#[derive(Clone, Default)]
pub(crate) struct SecretPlace(Box<str>);

impl SecretPlace {
    /// A line of a file.
    pub(crate) fn new(file: &str, line: usize) -> SecretPlace {
        SecretPlace(format!("{file}:{line}").into())
    }
}

impl PartialEq for SecretPlace {
    fn eq(&self, _: &SecretPlace) -> bool {
        true
    }
}

impl Eq for SecretPlace {}

impl fmt::Display for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SecretPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `sha256:` and 64 hexadecimal digits, with or without colons between them.
pub(crate) fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let (algorithm, digits) = text.split_once(':')?;
    if !algorithm.eq_ignore_ascii_case("sha256") {
        return None;
    }
    let digits: Vec<u8> = digits.bytes().filter(|byte| *byte != b':').collect();
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    let mut fingerprint = [0; 32];
    for (byte, pair) in fingerprint.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        for (text, interval) in [("50/s", 20), ("600/min", 100), ("1 / h", 3_600_000)] {
            assert_eq!(Rate::parse(text).unwrap().interval(), Duration::from_millis(interval), "{text}");
        }
        for bad in ["", "50", "0/s", "50/day", "-1/s", "1.5/s", "50/", "2000000/s"] {
            assert_eq!(Rate::parse(bad), None, "{bad}");
        }
    }
}
