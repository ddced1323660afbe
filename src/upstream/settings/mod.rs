//! Settings of each upstream: its addresses, how to connect to it, and which topics are forwarded in which direction.

pub mod overlap;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::overlap::{loops, loops_with_itself, need_v5, returns, set_v5_only, shares_address};
pub use super::address::{Proxy, ProxyScheme, Scheme, UpstreamAddress};
pub(crate) use super::place::{OwnDoors, UpstreamPlace};
use crate::message::{Qos, Topic, via};

/// `journal.order`: the order in which upstreams get waiting messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// The order in which messages were accepted.
    #[default]
    Strict,
    /// After an outage, new messages do not wait for the backlog.
    LiveFirst,
}

/// One upstream, as in a table `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamSettings {
    /// The name, unique among the upstreams.
    pub(crate) name: String,
    /// The addresses, which are tried in turn; at least one.
    pub addresses: Vec<UpstreamAddress>,
    /// The MQTT versions that are tried.
    pub protocol: Protocol,
    /// With [`Protocol::Auto`]: whether 3.1.1 is excluded because the rules would loop there.
    pub(crate) v5_only: bool,
    /// Whether an address is that of a listener of this gateway.
    pub(crate) is_own: bool,
    /// The client id, which is not empty.
    pub(crate) client_id: String,
    /// Whether the client id is not configured but derived.
    pub(crate) has_default_client_id: bool,
    pub(crate) username: Option<String>,
    /// The source of the password; only with a user name.
    pub(crate) password: Option<Password>,
    /// Whether the upstream forgets our session when the connection ends.
    pub(crate) clean_session: bool,
    /// With version 5: how long the upstream keeps messages for us, in whole seconds.
    pub(crate) session_expiry: Duration,
    /// From 5 s to 65535 s, in whole seconds.
    pub(crate) keep_alive: Duration,
    /// The most QoS 1 messages that are sent and not acknowledged; at least 1.
    pub(crate) max_inflight: u16,
    /// Settings for `mqtts` and `wss` addresses; `None` means the system's roots and no client certificate.
    pub(crate) tls: Option<UpstreamTls>,
    /// The proxy for all connections.
    pub(crate) proxy: Option<Proxy>,
    /// The longest time from the first TCP packet to CONNACK.
    pub(crate) connect_timeout: Duration,
    /// The pauses between attempts to connect.
    pub(crate) retry: Retry,
    /// When the first address is tried again, while another one is in use; `None` means never.
    pub(crate) failback: Option<Duration>,
    /// The most messages in a time.
    pub(crate) rate: Option<Rate>,
    /// The remote topic that tells whether the gateway is connected.
    pub(crate) status_topic: Option<Topic>,
    /// The rules for local topics that are sent to the upstream.
    pub(crate) out: Vec<OutRule>,
    /// The rules for remote topics that are taken from the upstream.
    pub(crate) inbound: Vec<InRule>,
    /// The rules for topics that are forwarded in both directions.
    pub(crate) both: Vec<BothRule>,
    /// Local topics that only the gateway publishes, so nothing from the upstream is accepted on them.
    pub(crate) reserved: Vec<String>,
}

impl UpstreamSettings {
    /// The name by which this gateway introduces itself to an upstream that may be a gateway too. It is the gateway's id if
    /// it accepts messages under the same topics as there. The other gateway then does not deliver messages that it forwards
    /// here anyway.
    pub(crate) fn introduction(&self) -> String {
        let inbound = self.inbound.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        let both = self.both.iter().all(|rule| rule.local_prefix == rule.remote_prefix);
        if inbound && both { via::Id::ours().as_str().to_owned() } else { String::new() }
    }

    /// An upstream with the defaults and no rules.
    pub(crate) fn new(name: impl Into<String>, addresses: Vec<UpstreamAddress>, client_id: impl Into<String>) -> Self {
        UpstreamSettings {
            name: name.into(),
            addresses,
            protocol: Protocol::default(),
            v5_only: false,
            is_own: false,
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

/// The source of a password. It is read for each connection, so that a new password is used at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Password {
    /// The text of a file without the line ending.
    File(PathBuf),
    /// The output of a program with these arguments, without the line ending.
    Command(Vec<String>),
}

/// The pauses between attempts to connect. They double from `min` to `max`, and each is shortened at random by up to half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry { min: Duration::from_secs(1), max: Duration::from_secs(30) }
    }
}

/// The most messages in a time, written as `50/s`, `600/min` or `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    messages: u32,
    per: Duration,
}

impl Rate {
    /// Reads a rate in the form of the configuration.
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

    /// The time between two messages.
    pub(crate) fn interval(self) -> Duration {
        self.per / self.messages
    }

    /// The number of messages in a second.
    pub fn per_second(self) -> f64 {
        f64::from(self.messages) / self.per.as_secs_f64()
    }
}

/// The MQTT versions for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Version 5, and 3.1.1 if that is refused.
    #[default]
    Auto,
    /// Only version 5.
    V5,
    /// Only version 3.1.1.
    V4,
}

/// TLS for an upstream. All files are in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct UpstreamTls {
    /// The SHA-256 digest of the only certificate that is accepted, no matter who signed it and what it contains.
    pub(crate) fingerprint: Option<[u8; 32]>,
    /// The name that the certificate must have and that the upstream is told; `None` means the host of the address.
    pub(crate) server_name: Option<String>,
    /// The protocols to offer (ALPN).
    pub(crate) alpn: Vec<String>,
    /// The authorities that sign the upstream's certificate; `None` means those of the system.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate chain; only together with `key`.
    pub(crate) cert: Option<PathBuf>,
    /// Our private key; only together with `cert`.
    pub(crate) key: Option<PathBuf>,
}

/// The QoS of messages to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum OutQos {
    /// QoS 0 for all messages.
    AtMostOnce,
    /// QoS 1 for all messages, so that those published at QoS 0 are confirmed too.
    #[default]
    AtLeastOnce,
    /// QoS 2 for all messages: they arrive exactly once if the upstream keeps our session.
    ExactlyOnce,
    /// The QoS of the publication; 2 is sent as 1.
    Keep,
}

/// Maps topics between the gateway and an upstream. The local topics of `local_prefix` + `topic_filter` correspond to the
/// remote topics of `remote_prefix` + `topic_filter`. An empty `topic_filter` maps the single topic `local_prefix` to the
/// single topic `remote_prefix`. Both joined filters are valid, and prefixes contain no wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule<Q> {
    /// The common part of both sides; empty for a single topic.
    pub(crate) topic_filter: String,
    pub(crate) local_prefix: String,
    pub(crate) remote_prefix: String,
    /// The QoS of forwarded messages.
    pub(crate) qos: Q,
    /// Whether the retain flag is forwarded.
    pub(crate) retain: bool,
    /// Messages that have waited for longer are not sent.
    pub(crate) max_age: Option<Duration>,
    /// The place of the rule in the configuration.
    pub(crate) place: SecretPlace,
}

impl<Q> Rule<Q> {
    pub(crate) fn local_filter(&self) -> String {
        format!("{}{}", self.local_prefix, self.topic_filter)
    }

    pub(crate) fn remote_filter(&self) -> String {
        format!("{}{}", self.remote_prefix, self.topic_filter)
    }

    /// The rule in words, for people.
    fn in_words(&self, way: &str, from: &str, to: &str) -> String {
        if from == to { format!("{from} {way}") } else { format!("{from} {way} as {to}") }
    }
}

impl UpstreamSettings {
    /// All rules in words, for people.
    pub(crate) fn rules_in_words(&self) -> Vec<String> {
        let up = self.out.iter().map(|rule| rule.in_words("goes up", &rule.local_filter(), &rule.remote_filter()));
        let down =
            self.inbound.iter().map(|rule| rule.in_words("comes down", &rule.remote_filter(), &rule.local_filter()));
        let both =
            self.both.iter().map(|rule| rule.in_words("goes both ways", &rule.local_filter(), &rule.remote_filter()));
        up.chain(down).chain(both).collect()
    }
}

/// A rule of `[[upstream.out]]`: local topics are sent to the upstream.
pub(crate) type OutRule = Rule<OutQos>;

/// A rule of `[[upstream.in]]`: remote topics are taken from the upstream, at most at this QoS.
pub(crate) type InRule = Rule<Qos>;

/// A rule of `[[upstream.both]]`. Its QoS applies to the direction to the upstream, and [`BothRule::qos_in`] to the other
/// one.
pub(crate) type BothRule = Rule<OutQos>;

impl BothRule {
    /// The QoS of the subscription for the direction from the upstream.
    pub(crate) fn qos_in(&self) -> Qos {
        match self.qos {
            OutQos::AtMostOnce => Qos::AtMostOnce,
            OutQos::AtLeastOnce | OutQos::Keep => Qos::AtLeastOnce,
            OutQos::ExactlyOnce => Qos::ExactlyOnce,
        }
    }
}

/// `FILE:LINE` of a rule, for messages. All places are equal, because the place of a rule does not affect what it does, and
/// moving it is no change.
#[derive(Clone, Default)]
pub(crate) struct SecretPlace(Box<str>);

impl SecretPlace {
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
