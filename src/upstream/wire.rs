//! The types that session and client exchange: packets, independent of the library.

use std::future::Future;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::mark::SessionMark;
use super::properties::{TOPIC_ALIAS, put_varint, varint_len};
use super::settings::{UpstreamAddress, UpstreamSettings};
use crate::message::{Qos, TopicFilter, acts_on_text, via};
pub use crate::mqtt::Version;

/// What an upstream granted when it accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The MQTT version of the connection.
    pub version: Version,
    /// Whether the upstream has kept subscriptions and messages from before.
    pub(crate) session_present: bool,
    /// The number of QoS 1 messages that it accepts before it has acknowledged the first of them.
    pub receive_maximum: u16,
    /// The largest packet that it accepts, in bytes.
    pub(crate) max_packet_size: Option<u32>,
    /// The highest QoS that it accepts.
    pub(crate) max_qos: Qos,
    /// Whether it accepts retained messages.
    pub(crate) retain_available: bool,
    /// Whether messages may name the subscription by which they come.
    pub(crate) has_subscription_ids: bool,
    /// The number of topic aliases that it accepts.
    pub(crate) topic_aliases: u16,
    /// The id of the upstream, if it is a gateway.
    pub(crate) gateway: Option<via::Id>,
}

/// The bytes of a topic alias among the properties.
pub(crate) const ALIAS_LEN: usize = 3;
/// The most bytes that a new alias adds to a packet: its own, and one for each of two lengths.
pub(crate) const ALIAS_COST: usize = ALIAS_LEN + 2;

/// A message to the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutMessage {
    /// The remote topic.
    pub topic: String,
    /// The payload, sent unchanged.
    pub payload: Bytes,
    /// The QoS; with QoS 2 there is a packet id.
    pub qos: Qos,
    /// Whether the packet has the retain flag.
    pub retain: bool,
    /// The MQTT 5 properties, encoded, without their length; empty for 3.1.1.
    pub properties: Vec<u8>,
    /// The packet id that it must have; `None` lets the connection choose.
    pub packet_id: Option<u16>,
    /// Whether the upstream may have it already (DUP).
    pub is_repeated: bool,
}

impl OutMessage {
    /// The size of the PUBLISH packet in bytes.
    pub(crate) fn packet_size(&self, version: Version) -> usize {
        let remaining = self.remaining_length(version);
        1 + varint_len(remaining) + remaining
    }

    fn remaining_length(&self, version: Version) -> usize {
        let properties = match version {
            Version::V31 | Version::V311 => 0,
            Version::V5 => varint_len(self.properties.len()) + self.properties.len(),
        };
        let packet_id = if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        2 + self.topic.len() + packet_id + properties + self.payload.len()
    }

    /// Appends the PUBLISH packet [MQTT-3.3]. The packet id is not used at QoS 0.
    #[cfg(test)]
    pub(crate) fn encode(&self, version: Version, packet_id: u16, out: &mut BytesMut) {
        self.encode_as(version, packet_id, None, out);
    }

    /// Like `encode`, with a topic alias. The flag tells that the other side knows the alias; then the topic is left out
    /// [MQTT-3.3.2.3.4].
    pub(crate) fn encode_as(&self, version: Version, packet_id: u16, alias: Option<(u16, bool)>, out: &mut BytesMut) {
        let topic = if alias.is_some_and(|(_, is_known)| is_known) { "" } else { self.topic.as_str() };
        let properties = self.properties.len() + if alias.is_some() { ALIAS_LEN } else { 0 };
        let length = varint_len(properties) + properties - varint_len(self.properties.len()) - self.properties.len();
        let remaining = self.remaining_length(version) + length - (self.topic.len() - topic.len());
        out.reserve(5 + remaining);
        out.put_u8(0x30 | u8::from(self.is_repeated) << 3 | (self.qos as u8) << 1 | u8::from(self.retain));
        put_varint(remaining, out);
        out.put_u16(topic.len() as u16);
        out.put_slice(topic.as_bytes());
        if self.qos != Qos::AtMostOnce {
            out.put_u16(packet_id);
        }
        if version == Version::V5 {
            put_varint(properties, out);
            if let Some((alias, _)) = alias {
                out.put_u8(TOPIC_ALIAS);
                out.put_u16(alias);
            }
            out.put_slice(&self.properties);
        }
        out.put_slice(&self.payload);
    }
}

/// The priority of a message to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The message may use the whole window.
    Live,
    /// The message leaves a part of the window to live messages.
    Backlog,
}

/// A message from the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMessage {
    /// The packet id to acknowledge; 0 at QoS 0.
    pub packet_id: u16,
    /// The remote topic, not mapped yet.
    pub topic: String,
    /// The payload as it was received.
    pub payload: Bytes,
    /// The QoS of this delivery.
    pub qos: Qos,
    pub(crate) retain: bool,
    /// Whether it may have come before (DUP).
    pub(crate) is_repeated: bool,
    /// The message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// The MQTT 5 properties, encoded, without their length.
    pub(crate) properties: Vec<u8>,
}

/// The head of a message from the upstream that is larger than the gateway accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OversizedMessage {
    /// The packet id to acknowledge; 0 at QoS 0.
    pub packet_id: u16,
    /// The remote topic, not mapped yet.
    pub topic: String,
    /// The QoS of this delivery.
    pub qos: Qos,
    /// The number of bytes behind the head.
    pub size: usize,
}

/// An event on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The oldest message that was handed over and not yet sent is sent now, with this packet id; 0 at QoS 0.
    Sent(u16),
    /// The upstream has answered the message with this packet id. Reasons from 0x80 on are refusals.
    Acked(u16, u8),
    /// The upstream has the message at QoS 2 with this packet id (PUBREC), and waits for PUBREL.
    Recorded(u16),
    /// The upstream has completed the exchange at QoS 2 with this packet id (PUBCOMP).
    Completed(u16),
    /// A message has arrived.
    Received(InMessage),
    /// A message has arrived that is larger than the gateway accepts, and was not kept.
    TooLarge(OversizedMessage),
    /// The upstream has released this packet id of a message at QoS 2 (PUBREL).
    Released(u16),
    /// The upstream has answered the SUBSCRIBE with this number on this connection, from 0 on, with a reason code for each
    /// filter.
    Subscribed(u32, Vec<u8>),
    /// The same for UNSUBSCRIBE. There are no reason codes in version 3.1.1.
    Unsubscribed(u32, Vec<u8>),
    /// The upstream has answered with this packet id, and no SUBSCRIBE or UNSUBSCRIBE with it is unanswered.
    Unasked(u16),
    /// The upstream has answered a ping.
    Pinged,
}

/// Which of the messages that the upstream retains a subscription asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainedWanted {
    /// All, if the subscription is new.
    #[default]
    IfNew,
    /// None, because they are read at another time.
    None,
    /// All, with this subscription identifier, and those that we have published there included.
    All(u32),
}

/// A successful acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// PUBACK: what must be kept of a message at QoS 1 is on disk.
    Taken(u16),
    /// PUBREC: what must be kept of a message at QoS 2 is on disk.
    Recorded(u16),
    /// PUBREL: it is on disk that the upstream has the message.
    Released(u16),
    /// PUBCOMP: the packet id is free.
    Completed(u16),
}

/// The form of the will in the CONNECT, if a status topic is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusWill {
    /// The will at QoS 1, retained.
    #[default]
    Whole,
    /// The will without the retain flag.
    WithoutRetain,
    /// The will at QoS 0, without the retain flag.
    AtMostOnce,
    /// No will.
    None,
}

/// The parameters of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOffer {
    /// The MQTT version.
    pub version: Version,
    /// The form of the will.
    pub will: StatusWill,
    /// Whether it is not known that the upstream supports this version, so that half of the time is left for another.
    pub is_trial: bool,
    /// Whether TCP sends small segments, because the path may swallow large packets.
    pub has_small_segments: bool,
}

/// Why there is no connection, or why it ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something that the connection needs, such as a password or a certificate, is missing here.
    #[error("{0}")]
    Unprepared(String),
    /// The upstream does not support this version of MQTT.
    #[error("it does not speak this version of MQTT")]
    Version,
    /// The upstream refused with this reason code of version 5; in 3.1.1, "not authorized" has many meanings.
    #[error("it refuses the connection: {1}")]
    Refused(u8, String),
    /// The upstream wants no connection for a while.
    #[error("it takes no connection for a while: {0}")]
    SentAway(String),
    /// The upstream closed the connection without a reason.
    #[error("it closed the connection")]
    Closed,
    /// The upstream closed the connection with a reason.
    #[error("it closed the connection: {1}")]
    Dismissed(u8, String),
    /// The upstream closed the connection with a reason that concerns no message.
    #[error("{1}")]
    Ended(EndReason, String),
    /// Another client has connected with our client id.
    #[error("another client has connected with our client id")]
    TakenOver,
    /// The upstream sent bytes that are not MQTT.
    #[error("what it says is not MQTT")]
    Garbled,
    /// Nothing was received from the upstream for too long.
    #[error("it does not answer")]
    Silent,
    /// The network, TLS or the protocol failed.
    #[error("{0}")]
    Failed(String),
    /// What only a person can change, here or at the upstream, such as a certificate that is not trusted.
    #[error("{0}")]
    Lasting(String),
    /// The name of its address, or of the proxy's, could not be resolved.
    #[error("{0}")]
    Unresolved(String),
    /// Its certificate is not valid yet, or this machine's clock is behind.
    #[error("{0}")]
    NotYetValid(String),
    /// It did not get as far as MQTT, perhaps because its port is for something else.
    #[error("{1}")]
    NotBegun(BeginStep, String),
    /// The same, with an answer that the step does not have.
    #[error("{1}")]
    OtherThan(BeginStep, String),
}

impl Broken {
    /// Puts the name of the one that failed before the reason.
    pub(crate) fn of(self, whom: impl std::fmt::Display) -> Broken {
        let named = |why: String| format!("{whom}: {why}");
        match self {
            Broken::Lasting(why) => Broken::Lasting(named(why)),
            Broken::Unresolved(why) => Broken::Unresolved(named(why)),
            Broken::NotBegun(step, why) => Broken::NotBegun(step, named(why)),
            Broken::OtherThan(step, why) => Broken::OtherThan(step, named(why)),
            other => Broken::Failed(named(other.to_string())),
        }
    }
}

/// A step before MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeginStep {
    /// The request to an HTTP proxy.
    HttpProxy,
    /// The request to a SOCKS5 proxy.
    Socks5,
    /// The TLS handshake.
    Tls,
    /// The WebSocket handshake.
    WebSocket,
}

/// What an upstream closes connections for that is not one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It wants no connection here, so another address may be better.
    Elsewhere,
    /// Too much, or something that it does not permit, was asked for.
    TooMuch,
    /// More messages were unanswered than it takes.
    WindowExceeded,
    /// More messages were sent in a time than it takes.
    PaceExceeded,
    /// An administrator ended the connection, or a policy did.
    Administrative,
}

impl Broken {
    /// Whether another address may be better.
    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self, Broken::Ended(EndReason::Elsewhere | EndReason::Administrative, _))
    }

    /// Whether it takes less at a time, or in a time, than it was sent.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(self, Broken::Ended(EndReason::WindowExceeded | EndReason::PaceExceeded, _))
    }

    /// Whether what was asked for at the beginning may be the reason.
    pub(crate) fn may_be_asked_for(&self) -> bool {
        use EndReason::{Administrative, PaceExceeded, TooMuch};
        matches!(self, Broken::Ended(TooMuch | PaceExceeded | Administrative, _))
    }
}

/// Writes `NotAuthorized` as "not authorized".
pub(crate) fn words(code: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    text.replace("qo s", "QoS")
}

/// The most characters that are shown of a text from outside.
const SAID: usize = 200;

/// A text from outside in a form for the log: short, and without what would act on the line.
pub(crate) fn said(text: &str) -> String {
    let shown = text.chars().take(SAID).map(|c| if acts_on_text(c) { '?' } else { c });
    let shown: String = shown.collect();
    if text.chars().nth(SAID).is_some() { shown + "..." } else { shown }
}

/// What the line does while an answer is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineProgress {
    /// Nothing, so the upstream should have answered.
    Nothing,
    /// There is something on it, and it is not known whether it moves.
    Unsure,
    /// What is on it moves, and the answer may come after it.
    Moves,
}

/// The connection has no room for another request at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A client for one upstream. It is a trait, so that tests can replace the upstream.
pub trait UpstreamClient: Send {
    /// Connects. An earlier connection is dropped. `mark` is told before CONNECT leaves.
    fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        mark: &mut SessionMark,
    ) -> impl Future<Output = Result<Link, Broken>> + Send;

    /// Sends a message. [`ClientEvent::Sent`] follows, in the order of messages.
    fn publish(&mut self, message: OutMessage) -> Result<(), Busy>;

    /// Subscribes in one packet. [`ClientEvent::Subscribed`] follows. Versions before 5 do not know what is wanted of
    /// retained messages.
    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)], wanted: RetainedWanted) -> Result<(), Busy>;

    /// Unsubscribes in one packet. [`ClientEvent::Unsubscribed`] follows.
    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy>;

    /// Asks for a sign of life. [`ClientEvent::Pinged`] follows.
    fn ping(&mut self) -> Result<(), Busy> {
        Ok(())
    }

    /// Sends an acknowledgement for a message from the upstream.
    fn ack(&mut self, ack: Ack) -> Result<(), Busy>;

    /// The next events, at least one, or the end of the connection. Safe to cancel.
    fn events(&mut self) -> impl Future<Output = Result<Vec<ClientEvent>, Broken>> + Send;

    /// What the line does while an answer has been owed for this long.
    fn line(&mut self, _owed: Duration) -> LineProgress {
        LineProgress::Nothing
    }

    /// Tries the peer of the last connection after all others that the name of its address leads to. Returns whether there is
    /// one that has not failed.
    fn leave_peer(&mut self) -> bool {
        false
    }

    /// Records that the last connection was good.
    fn peer_was_good(&mut self) {}

    /// Takes new rules, and returns whether messages would loop by them on the connection that there is.
    fn would_loop(&mut self, _settings: &UpstreamSettings) -> bool {
        false
    }

    /// Sends DISCONNECT, so that the upstream does not publish the will.
    fn disconnect(&mut self) -> Result<(), Busy>;

    /// Drops the connection without DISCONNECT.
    fn close(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_acts_on_no_line() {
        assert_eq!(said("a\n2026 ERROR\u{202e}b\u{2028}c"), "a?2026 ERROR?b?c");
        assert_eq!(said(&"z".repeat(SAID + 1)).len(), SAID + 3);
    }

    #[test]
    fn an_alias_makes_a_packet_longer_by_no_more_than_its_cost() {
        let mut longest = 0;
        for (properties, payload) in (120..130).flat_map(|properties| (16_200..16_300).map(move |p| (properties, p))) {
            let message = OutMessage {
                topic: "loft".into(),
                payload: Bytes::from(vec![0; payload]),
                qos: Qos::AtLeastOnce,
                retain: false,
                properties: vec![0; properties],
                packet_id: None,
                is_repeated: false,
            };
            let size = |alias| {
                let mut out = BytesMut::new();
                message.encode_as(Version::V5, 1, alias, &mut out);
                out.len()
            };
            let plain = message.packet_size(Version::V5);
            assert_eq!(size(None), plain);
            longest = longest.max(size(Some((1, false))) - plain);
            assert!(size(Some((1, true))) <= plain, "the topic is longer than an alias");
        }
        assert_eq!(longest, ALIAS_COST);
    }
}
