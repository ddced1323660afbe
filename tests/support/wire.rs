//! The part of MQTT 3.1.1 that fast clients need, with prepared bytes.

use bytes::{Buf, BufMut, BytesMut};

/// CONNECT, clean, without keep alive.
pub fn connect(client_id: &str) -> Vec<u8> {
    let mut packet = vec![0x10, 12 + client_id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    string(&mut packet, client_id);
    packet
}

/// SUBSCRIBE to one filter.
pub fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut packet = vec![0x82, 5 + filter.len() as u8, 0, 1];
    string(&mut packet, filter);
    packet.push(qos);
    packet
}

fn string(packet: &mut Vec<u8>, text: &str) {
    packet.put_u16(text.len() as u16);
    packet.put_slice(text.as_bytes());
}

/// A PUBLISH with the place of its packet id.
pub struct Template {
    /// The packet.
    pub bytes: Vec<u8>,
    id_at: usize,
    /// Where its payload starts.
    pub payload_at: usize,
}

/// A PUBLISH with a payload of that size.
pub fn publish(topic: &str, qos: u8, payload: usize) -> Template {
    let id_len = if qos > 0 { 2 } else { 0 };
    let mut remaining = 2 + topic.len() + id_len + payload;
    let mut bytes = vec![0x30 | qos << 1];
    while remaining > 0x7f {
        bytes.push((remaining & 0x7f) as u8 | 0x80);
        remaining >>= 7;
    }
    bytes.push(remaining as u8);
    string(&mut bytes, topic);
    let id_at = bytes.len();
    let payload_at = id_at + id_len;
    bytes.resize(payload_at + payload, b'x');
    Template { bytes, id_at, payload_at }
}

impl Template {
    /// Appends the packet with this id; QoS 1 and 2 only.
    pub fn put(&self, out: &mut BytesMut, packet_id: u16) {
        let at = out.len() + self.id_at;
        out.put_slice(&self.bytes);
        out[at..at + 2].copy_from_slice(&packet_id.to_be_bytes());
    }
}

/// Appends an acknowledgement with this first byte.
pub fn put_ack(out: &mut BytesMut, first: u8, id: u16) {
    out.put_slice(&[first, 2]);
    out.put_u16(id);
}

/// One packet of a stream.
pub struct Packet<'a> {
    /// First byte.
    pub first: u8,
    /// All after the remaining length.
    pub body: &'a [u8],
    /// All of it.
    pub bytes: &'a [u8],
}

impl Packet<'_> {
    /// QoS of a PUBLISH.
    pub fn qos(&self) -> u8 {
        self.first >> 1 & 3
    }

    /// Packet id of a PUBLISH at QoS 1 or 2.
    pub fn publish_id(&self) -> u16 {
        let at = 2 + usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        u16::from_be_bytes([self.body[at], self.body[at + 1]])
    }

    /// Payload of a PUBLISH at QoS 1 or 2.
    pub fn payload(&self) -> &[u8] {
        &self.body[4 + usize::from(u16::from_be_bytes([self.body[0], self.body[1]]))..]
    }

    /// Packet id of an acknowledgement.
    pub fn ack_id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }
}

/// Calls `each` for every complete packet and keeps the rest.
pub fn packets(input: &mut BytesMut, mut each: impl FnMut(Packet<'_>)) {
    let mut at = 0;
    while let Some((body, end)) = measure(&input[at..]) {
        let bytes = &input[at..at + end];
        each(Packet { first: bytes[0], body: &bytes[body..], bytes });
        at += end;
    }
    input.advance(at);
}

/// The start and the end of the first packet's body, if the packet is complete.
fn measure(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut remaining = 0;
    for at in 1..5 {
        let byte = *bytes.get(at)?;
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            let end = at + 1 + remaining;
            return (bytes.len() >= end).then_some((at + 1, end));
        }
    }
    panic!("a broker sends nonsense");
}
