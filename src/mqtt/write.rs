//! Encodes the packets with which the broker answers.

use bytes::{BufMut, BytesMut};

use super::property::id;
use super::{Reason, Version};
use crate::message::via;

/// The largest variable byte integer [MQTT-1.5.5].
pub(crate) const VARIABLE_MAX: usize = 268_435_455;

/// The number of bytes of a variable byte integer.
pub(crate) fn variable_len(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// The bytes of a variable byte integer, and their number.
fn variable_bytes(mut value: usize) -> ([u8; 4], usize) {
    let (mut bytes, mut count) = ([0; 4], 0);
    loop {
        bytes[count] = (value & 0x7f) as u8;
        value >>= 7;
        count += 1;
        if value == 0 || count == bytes.len() {
            return (bytes, count);
        }
        bytes[count - 1] |= 0x80;
    }
}

/// Appends a variable byte integer.
pub(crate) fn variable(out: &mut BytesMut, value: usize) {
    let (bytes, count) = variable_bytes(value);
    out.put_slice(&bytes[..count]);
}

/// Appends the beginning of a PUBLISH: its first byte, the length of what follows, and the topic.
pub(crate) fn publish_head(out: &mut BytesMut, first: u8, remaining: usize, topic: &str) {
    let (length, count) = variable_bytes(remaining);
    let mut head = [first; 7];
    head[1..=count].copy_from_slice(&length[..count]);
    head[1 + count..3 + count].copy_from_slice(&(topic.len() as u16).to_be_bytes());
    out.put_slice(&head[..3 + count]);
    out.put_slice(topic.as_bytes());
}

fn string(out: &mut BytesMut, text: &str) {
    out.put_u16(text.len() as u16);
    out.put_slice(text.as_bytes());
}

/// The contents of a CONNACK for an MQTT 5 client [MQTT-3.2.2.3].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnAckProperties<'a> {
    /// Session expiry interval in seconds, if it differs from the one that the client asked for.
    pub(crate) session_expiry: Option<u32>,
    /// The number of unacknowledged QoS 1 and 2 messages that the broker accepts.
    pub(crate) receive_maximum: Option<u16>,
    /// The largest packet in bytes that the broker accepts.
    pub(crate) maximum_packet_size: Option<u32>,
    /// The client id that the broker has assigned.
    pub(crate) assigned_client_id: Option<&'a str>,
    /// The number of topic aliases that the broker accepts.
    pub(crate) topic_alias_maximum: Option<u16>,
    /// Keep alive in seconds that the client must use instead of its own.
    pub(crate) server_keep_alive: Option<u16>,
    /// A text for people.
    pub(crate) reason_string: Option<&'a str>,
    /// The id of this gateway, for a client that is a gateway too.
    pub(crate) gateway: Option<via::Id>,
}

pub(crate) fn connack(
    out: &mut BytesMut,
    version: Version,
    session_present: bool,
    reason: Reason,
    p: &ConnAckProperties<'_>,
) {
    // MQTT 3.1 has a reserved byte in place of the session present flag
    let present = u8::from(session_present && version != Version::V31 && !reason.is_error());
    if !version.is_v5() {
        out.put_slice(&[0x20, 2, present, reason.connect_return_code()]);
        return;
    }
    let mut properties = BytesMut::new();
    if let Some(seconds) = p.session_expiry {
        properties.put_u8(id::SESSION_EXPIRY);
        properties.put_u32(seconds);
    }
    if let Some(count) = p.receive_maximum {
        properties.put_u8(id::RECEIVE_MAXIMUM);
        properties.put_u16(count);
    }
    if let Some(size) = p.maximum_packet_size {
        properties.put_u8(id::MAXIMUM_PACKET_SIZE);
        properties.put_u32(size);
    }
    if let Some(client_id) = p.assigned_client_id {
        properties.put_u8(id::ASSIGNED_CLIENT_ID);
        string(&mut properties, client_id);
    }
    if let Some(count) = p.topic_alias_maximum {
        properties.put_u8(id::TOPIC_ALIAS_MAXIMUM);
        properties.put_u16(count);
    }
    if let Some(seconds) = p.server_keep_alive {
        properties.put_u8(id::SERVER_KEEP_ALIVE);
        properties.put_u16(seconds);
    }
    if let Some(text) = p.reason_string {
        properties.put_u8(id::REASON_STRING);
        string(&mut properties, text);
    }
    if let Some(gateway) = p.gateway {
        properties.put_u8(id::USER);
        string(&mut properties, via::NAME);
        string(&mut properties, gateway.as_str());
    }
    out.put_u8(0x20);
    variable(out, 2 + variable_len(properties.len()) + properties.len());
    out.put_slice(&[present, reason.0]);
    variable(out, properties.len());
    out.put_slice(&properties);
}

/// The acknowledgements of a PUBLISH and their first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(clippy::enum_variant_names)] // the names of the standard
pub(crate) enum AckPacket {
    PubAck = 0x40,
    PubRec = 0x50,
    PubRel = 0x62,
    PubComp = 0x70,
}

/// Appends a PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn ack(out: &mut BytesMut, version: Version, ack: AckPacket, packet_id: u16, reason: Reason) {
    if version.is_v5() && reason != Reason::SUCCESS {
        out.put_slice(&[ack as u8, 3]);
        out.put_u16(packet_id);
        out.put_u8(reason.0);
    } else {
        out.put_slice(&[ack as u8, 2]);
        out.put_u16(packet_id);
    }
}

/// The first byte of a SUBACK.
pub(crate) const SUBACK: u8 = 0x90;

/// Appends a SUBACK with one reason for each filter: the granted QoS or the reason for a refusal.
pub(crate) fn suback(out: &mut BytesMut, version: Version, packet_id: u16, reasons: &[Reason]) {
    out.put_u8(SUBACK);
    codes(out, version, packet_id, reasons);
}

pub(crate) fn unsuback(out: &mut BytesMut, version: Version, packet_id: u16, reasons: &[Reason]) {
    out.put_u8(0xb0);
    if version.is_v5() {
        codes(out, version, packet_id, reasons);
    } else {
        out.put_u8(2);
        out.put_u16(packet_id);
    }
}

fn codes(out: &mut BytesMut, version: Version, packet_id: u16, reasons: &[Reason]) {
    variable(out, 2 + usize::from(version.is_v5()) + reasons.len());
    out.put_u16(packet_id);
    if version.is_v5() {
        out.put_u8(0);
    }
    for reason in reasons {
        // MQTT 3 has only one failure code [MQTT-3.9.3]
        out.put_u8(if version.is_v5() { reason.0 } else { reason.0.min(0x80) });
    }
}

pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Appends a DISCONNECT. In MQTT 3 servers do not send one.
pub(crate) fn disconnect(out: &mut BytesMut, version: Version, reason: Reason) {
    if version.is_v5() {
        out.put_slice(&[0xe0, 2, reason.0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_byte_integers_as_in_the_specification() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (127, &[0x7f]),
            (128, &[0x80, 0x01]),
            (16_383, &[0xff, 0x7f]),
            (16_384, &[0x80, 0x80, 0x01]),
            (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
            (VARIABLE_MAX, &[0xff, 0xff, 0xff, 0x7f]),
        ] {
            let mut out = BytesMut::new();
            variable(&mut out, value);
            assert_eq!((&out[..], variable_len(value)), (bytes, bytes.len()));
        }
    }

    #[test]
    fn refusals_have_the_codes_of_their_version() {
        let mut out = BytesMut::new();
        let none = ConnAckProperties::default();
        connack(&mut out, Version::V311, true, Reason::BAD_USER_NAME_OR_PASSWORD, &none);
        assert_eq!(&out[..], &[0x20, 2, 0, 4]);
        out.clear();
        connack(&mut out, Version::V5, false, Reason::NOT_AUTHORIZED, &none);
        assert_eq!(&out[..], &[0x20, 3, 0, 0x87, 0]);
        out.clear();
        connack(&mut out, Version::V31, true, Reason::SUCCESS, &none);
        assert_eq!(&out[..], &[0x20, 2, 0, 0]);
        out.clear();
        suback(&mut out, Version::V311, 5, &[Reason(1), Reason::NOT_AUTHORIZED]);
        assert_eq!(&out[..], &[0x90, 4, 0, 5, 1, 0x80]);
        out.clear();
        suback(&mut out, Version::V5, 5, &[Reason::NOT_AUTHORIZED]);
        assert_eq!(&out[..], &[0x90, 4, 0, 5, 0, 0x87]);
    }
}
