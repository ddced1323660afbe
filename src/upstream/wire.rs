//! What passes between the session and the client: packets in the project's own words.

use std::future::Future;

use bytes::{BufMut, Bytes, BytesMut};

use super::mark::SessionMark;
use super::properties::{TOPIC_ALIAS, put_varint, varint_len};
use super::settings::{UpstreamAddress, UpstreamSettings};
use crate::message::{Qos, TopicFilter, via};
pub use crate::mqtt::Version;

/// What an upstream granted when it accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Version spoken.
    pub version: Version,
    /// Whether it remembers subscriptions and messages from before.
    pub(crate) session_present: bool,
    /// QoS 1 messages that it takes before it has acknowledged the first of them.
    pub receive_maximum: u16,
    /// Largest packet that it takes.
    pub(crate) max_packet_size: Option<u32>,
    /// Highest QoS that it takes.
    pub(crate) max_qos: Qos,
    /// Whether it takes retained messages.
    pub(crate) retain_available: bool,
    /// Topic aliases that it takes.
    pub(crate) topic_aliases: u16,
    /// It is a gateway, and this one.
    pub(crate) gateway: Option<via::Id>,
}

/// Bytes of a topic alias among the properties.
pub(crate) const ALIAS_LEN: usize = 3;
/// Most bytes by which an alias that is said for the first time makes a packet longer: itself, and one for each of two lengths.
pub(crate) const ALIAS_COST: usize = ALIAS_LEN + 2;

/// A message on its way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutMessage {
    /// Remote topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// QoS; with 2 there is a packet id.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// MQTT 5 properties, encoded, without their length; empty on 3.1.1.
    pub properties: Vec<u8>,
    /// The packet id that it must have; `None`: the connection's choice.
    pub packet_id: Option<u16>,
    /// The upstream may have it already (DUP).
    pub is_repeated: bool,
}

impl OutMessage {
    /// Bytes of the PUBLISH packet.
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

    /// The same with a topic alias, and whether the other side knows it: then the topic itself is left out [MQTT-3.3.2.3.4].
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

/// How a message on its way up stands to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It may use the whole window.
    Live,
    /// It leaves a part of the window to those that are live.
    Backlog,
}

/// A message that came down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMessage {
    /// What to acknowledge; 0 at QoS 0.
    pub packet_id: u16,
    /// Remote topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// QoS.
    pub qos: Qos,
    /// Retain flag.
    pub(crate) retain: bool,
    /// Message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// MQTT 5 properties, encoded, without their length.
    pub(crate) properties: Vec<u8>,
}

/// What happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// The oldest message handed over and not yet sent is sent, under this packet id; 0 at QoS 0.
    Sent(u16),
    /// The upstream has answered to the message with this packet id. Reasons from 0x80 on are refusals.
    Acked(u16, u8),
    /// The upstream has the message at QoS 2 with this packet id (PUBREC), and waits for PUBREL.
    Recorded(u16),
    /// The upstream has done with this packet id of a message at QoS 2 (PUBCOMP).
    Completed(u16),
    /// A message came.
    Received(InMessage),
    /// The upstream has released this packet id of a message at QoS 2 (PUBREL).
    Released(u16),
    /// The upstream has answered to the oldest unanswered subscription: a reason code for each of its filters.
    Subscribed(Vec<u8>),
}

/// An acknowledgement that all is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// PUBACK: a message at QoS 1 is safe.
    Taken(u16),
    /// PUBREC: a message at QoS 2 is safe.
    Recorded(u16),
    /// PUBREL: it is known to be safe there.
    Released(u16),
    /// PUBCOMP: the packet id is free.
    Completed(u16),
}

/// The will that is offered with CONNECT, where the settings want a status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusWill {
    /// As it should be.
    #[default]
    Whole,
    /// Without the retain flag.
    WithoutRetain,
    /// At QoS 0.
    AtMostOnce,
    /// None.
    None,
}

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOffer {
    /// Version of MQTT.
    pub version: Version,
    /// The will.
    pub will: StatusWill,
    /// It is not known whether the upstream speaks this version: half the time is left for another.
    pub is_trial: bool,
}

/// Why there is no connection (any more).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Something that we need to connect, such as a password or a certificate, is not there.
    #[error("{0}")]
    Unprepared(String),
    /// It does not speak this version of MQTT.
    #[error("it does not speak this version of MQTT")]
    Version,
    /// It answered, and said no, with this reason code of version 5; 3.1.1 has "not authorized" for much.
    #[error("it refuses the connection: {1}")]
    Refused(u8, String),
    /// It answered, and wants no connection for a while.
    #[error("it takes no connection for a while: {0}")]
    SentAway(String),
    /// It closed the connection without a reason.
    #[error("it closed the connection")]
    Closed,
    /// It closed the connection and said why.
    #[error("it closed the connection: {1}")]
    Dismissed(u8, String),
    /// Another client came with our client id.
    #[error("another client has connected with our client id")]
    TakenOver,
    /// What it says is not MQTT.
    #[error("what it says is not MQTT")]
    Garbled,
    /// Nothing is heard of it.
    #[error("it does not answer")]
    Silent,
    /// The network, TLS or the protocol failed.
    #[error("{0}")]
    Failed(String),
}

/// `NotAuthorized` as "not authorized".
pub(crate) fn words(code: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    text
}

/// Most characters of what others say about a connection that are shown.
const SAID: usize = 200;

/// What somebody else has said, fit for a line of the log: short, and without what would begin a new one.
pub(crate) fn said(text: &str) -> String {
    let shown = text.chars().take(SAID).map(|c| if c.is_control() { '?' } else { c });
    let shown: String = shown.collect();
    if text.chars().nth(SAID).is_some() { shown + "..." } else { shown }
}

/// The connection has no room for another request at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// A client for one upstream. One of the project's few traits, so that tests can play the upstream.
pub trait UpstreamClient: Send {
    /// Connects. What was connected before is gone. `mark` is told before CONNECT leaves.
    fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        mark: &mut SessionMark,
    ) -> impl Future<Output = Result<Link, Broken>> + Send;

    /// Hands a message over. [`ClientEvent::Sent`] follows, in this order.
    fn publish(&mut self, message: OutMessage) -> Result<(), Busy>;

    /// Subscribes, in one packet. [`ClientEvent::Subscribed`] follows.
    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)]) -> Result<(), Busy>;

    /// Unsubscribes.
    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy>;

    /// Sends an acknowledgement of what came down.
    fn ack(&mut self, ack: Ack) -> Result<(), Busy>;

    /// What happened next, at least one event, or the end of the connection. Safe to cancel.
    fn events(&mut self) -> impl Future<Output = Result<Vec<ClientEvent>, Broken>> + Send;

    /// Says good-bye: the upstream is not to publish the will.
    fn disconnect(&mut self) -> Result<(), Busy>;

    /// Drops the connection as it is.
    fn close(&mut self);
}

#[cfg(test)]
mod tests {
    use super::*;

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
