//! PUBLISH [MQTT-3.3], both ways.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::property::{Once, Property, id, next};
use super::{Error, Fields, Frame, Version, write};
use crate::message::{MessageRef, Qos, check_topic};

/// A PUBLISH from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// The client has sent this packet before and has no acknowledgement yet.
    pub(crate) dup: bool,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// The topic; empty if the alias stands for it.
    pub topic: &'a str,
    /// The packet id; 0 at QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) alias: Option<u16>,
    /// The message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// The properties to pass on, encoded. They are borrowed if nothing had to be removed.
    pub(crate) properties: Cow<'a, [u8]>,
    /// The payload, to the end of the packet.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// Decodes a PUBLISH that [`super::frame`] found in `bytes`.
    pub fn decode(frame: &Frame, bytes: &'a [u8], version: Version) -> Result<Publish<'a>, Error> {
        let qos = Qos::from_u8((frame.flags >> 1) & 3).ok_or(Error::Qos)?; // [MQTT-3.3.1-4]
        let dup = frame.flags & 8 != 0;
        // MQTT 3.1 ignores DUP at QoS 0
        if dup && qos == Qos::AtMostOnce && version != Version::V31 {
            return Err(Error::Malformed("DUP at QoS 0")); // [MQTT-3.3.1-2]
        }
        let mut fields = Fields::new(&bytes[frame.body..frame.len]);
        let topic = fields.string()?;
        let packet_id = if qos == Qos::AtMostOnce { 0 } else { fields.packet_id()? };
        let mut publish = Publish {
            dup,
            qos,
            retain: frame.flags & 1 != 0,
            topic,
            packet_id,
            alias: None,
            expiry: None,
            properties: Cow::Borrowed(&[]),
            payload: &[],
        };
        if version.is_v5() {
            let section = fields.properties()?;
            if !section.is_empty() {
                publish.read_properties(section)?;
            }
        }
        if topic.is_empty() {
            if publish.alias.is_none() {
                return Err(if version.is_v5() {
                    Error::Protocol("neither topic nor topic alias")
                } else {
                    Error::Topic(crate::message::TopicError::Empty)
                });
            }
        } else {
            check_topic(topic).map_err(Error::Topic)?;
        }
        publish.payload = fields.rest();
        Ok(publish)
    }

    fn read_properties(&mut self, mut fields: Fields<'a>) -> Result<(), Error> {
        let all = fields.rest();
        let mut once = Once::default();
        // start of the properties that are kept and not copied yet
        let (mut from, mut kept) = (0, Vec::new());
        let mut cut = false;
        loop {
            let start = all.len() - fields.rest().len();
            let Some(property) = next(&mut fields)? else { break };
            let end = all.len() - fields.rest().len();
            let passes = match property {
                Property::User(..) => true,
                Property::PayloadFormat => once.mark(0).map(|()| true)?,
                Property::ContentType(_) => once.mark(1).map(|()| true)?,
                Property::CorrelationData => once.mark(2).map(|()| true)?,
                Property::ResponseTopic(topic) => {
                    once.mark(3)?;
                    check_topic(topic).map_err(Error::Topic)?;
                    true
                }
                Property::MessageExpiry(seconds) => {
                    once.mark(4)?;
                    self.expiry = Some(seconds);
                    false
                }
                Property::TopicAlias(alias) => {
                    once.mark(5)?;
                    self.alias = Some(alias);
                    false
                }
                // [MQTT-3.3.4-6]: a client must not send subscription ids
                _ => return Err(Error::Protocol("a property that PUBLISH does not have")),
            };
            if !passes {
                kept.extend_from_slice(&all[from..start]);
                from = end;
                cut = true;
            }
        }
        self.properties = if cut {
            kept.extend_from_slice(&all[from..]);
            Cow::Owned(kept)
        } else {
            Cow::Borrowed(all)
        };
        Ok(())
    }
}

/// The details of delivering one message to one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    /// The packet was sent before and was not acknowledged.
    pub(crate) dup: bool,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// The packet id; not used at QoS 0.
    pub(crate) packet_id: u16,
    /// The rest of the expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// The ids of the client's subscriptions that match the message.
    pub(crate) subscription_ids: &'a [u32],
    /// The topic alias to send, and whether the client knows its topic already.
    pub(crate) alias: Option<(u16, bool)>,
}

impl<'a> Outgoing<'a> {
    /// A message that is sent for the first time and never expires, without packet id and alias.
    pub(crate) fn new(qos: Qos, retain: bool, subscription_ids: &'a [u32]) -> Outgoing<'a> {
        Outgoing { dup: false, qos, retain, packet_id: 0, expiry: None, subscription_ids, alias: None }
    }
}

/// Appends the PUBLISH on its topic, with or without the payload, unless it would be longer than `max` with the payload. Returns whether
/// it was appended.
pub(crate) fn encode(
    out: &mut BytesMut,
    (message, topic, with_payload): (MessageRef<'_>, &str, bool),
    how: &Outgoing<'_>,
    version: Version,
    max: usize,
) -> bool {
    let topic = match how.alias {
        Some((_, true)) => "",
        _ => topic,
    };
    let payload = message.payload();
    let properties = if version.is_v5() { property_len(message, how) } else { 0 };
    let remaining = 2
        + topic.len()
        + if how.qos == Qos::AtMostOnce { 0 } else { 2 }
        + if version.is_v5() { write::variable_len(properties) + properties } else { 0 }
        + payload.len();
    let len = 1 + write::variable_len(remaining) + remaining;
    if len > max || remaining > write::VARIABLE_MAX {
        return false;
    }
    out.reserve(if with_payload { len } else { len - payload.len() });
    let first = 0x30 | u8::from(how.dup) << 3 | (how.qos as u8) << 1 | u8::from(how.retain);
    write::publish_head(out, first, remaining, topic);
    if how.qos != Qos::AtMostOnce {
        out.put_u16(how.packet_id);
    }
    if version.is_v5() {
        write::variable(out, properties);
        if let Some(seconds) = how.expiry {
            out.put_u8(id::MESSAGE_EXPIRY);
            out.put_u32(seconds);
        }
        if let Some((alias, _)) = how.alias {
            out.put_u8(id::TOPIC_ALIAS);
            out.put_u16(alias);
        }
        for subscription in how.subscription_ids {
            out.put_u8(id::SUBSCRIPTION_ID);
            write::variable(out, *subscription as usize);
        }
        out.put_slice(message.properties());
    }
    if with_payload {
        out.put_slice(payload);
    }
    true
}

fn property_len(message: MessageRef<'_>, how: &Outgoing<'_>) -> usize {
    let ids: usize = how.subscription_ids.iter().map(|id| 1 + write::variable_len(*id as usize)).sum();
    message.properties().len()
        + ids
        + if how.expiry.is_some() { 5 } else { 0 }
        + if how.alias.is_some() { 3 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Message, Origin};
    use crate::mqtt::frame;

    fn decode(bytes: &[u8], version: Version) -> Result<Publish<'_>, Error> {
        let frame = frame(bytes, 1000, version)?.expect("complete");
        Publish::decode(&frame, bytes, version)
    }

    #[test]
    fn what_a_client_sends_reaches_the_next_unchanged() {
        // topic t/u, packet id 10, expiry 60, user property a=b, alias 3, content type x
        let properties = [2, 0, 0, 0, 60, 0x26, 0, 1, b'a', 0, 1, b'b', 0x23, 0, 3, 3, 0, 1, b'x'];
        let mut packet = vec![0x3d, 0, 0, 3, b't', b'/', b'u', 0, 10, properties.len() as u8];
        packet.extend_from_slice(&properties);
        packet.extend_from_slice(b"hi");
        packet[1] = packet.len() as u8 - 2;
        let publish = decode(&packet, Version::V5).unwrap();
        assert_eq!((publish.topic, publish.packet_id, publish.qos), ("t/u", 10, Qos::ExactlyOnce));
        assert_eq!((publish.expiry, publish.alias, publish.payload), (Some(60), Some(3), &b"hi"[..]));
        assert_eq!(&*publish.properties, &[0x26, 0, 1, b'a', 0, 1, b'b', 3, 0, 1, b'x']);

        let message = Message::new(&Draft {
            qos: publish.qos,
            retain: publish.retain,
            properties: &publish.properties,
            expiry: publish.expiry,
            origin: Origin::client("a"),
            ..Draft::new(publish.topic, publish.payload)
        });
        let how = Outgoing {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            packet_id: 7,
            expiry: Some(59),
            subscription_ids: &[4],
            alias: Some((1, false)),
        };
        let mut out = BytesMut::new();
        assert!(encode(&mut out, (message.view(), "t/u", true), &how, Version::V5, 1000));
        let expected = [
            &[0x32, 31, 0, 3][..],
            b"t/u",
            &[0, 7, 21, 2, 0, 0, 0, 59, 0x23, 0, 1, 0x0b, 4],
            &[0x26, 0, 1, b'a', 0, 1, b'b', 3, 0, 1, b'x'],
            b"hi",
        ]
        .concat();
        assert_eq!(out, expected);

        let mut old = BytesMut::new();
        assert!(encode(&mut old, (message.view(), "t/u", true), &how, Version::V311, 1000));
        assert_eq!(&old[..], b"\x32\x09\0\x03t/u\0\x07hi");
        assert!(
            !encode(&mut old, (message.view(), "t/u", true), &how, Version::V311, 10),
            "larger than the client takes"
        );
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        assert!(decode(b"\x36\x03\0\x01a", Version::V311).is_err(), "QoS 3");
        assert!(decode(b"\x38\x03\0\x01a", Version::V311).is_err(), "DUP at QoS 0");
        assert!(decode(b"\x30\x03\0\x01+", Version::V311).is_err(), "wildcard");
        assert!(decode(b"\x30\x02\0\0", Version::V311).is_err(), "empty topic");
        assert!(decode(b"\x30\x03\0\0\0", Version::V5).is_err(), "neither topic nor alias");
        assert!(decode(b"\x32\x05\0\x01a\0\0", Version::V311).is_err(), "packet id 0");
        assert!(decode(b"\x30\x06\0\x01a\x02\x0b\x01", Version::V5).is_err(), "subscription id from a client");
        assert!(decode(b"\x30\x04\0\x02\xff\xfe", Version::V311).is_err(), "not UTF-8");
        assert!(decode(b"\x30\x04\0\x02\xc3\xbc", Version::V311).is_ok(), "non-ASCII topics are fine");
    }
}
