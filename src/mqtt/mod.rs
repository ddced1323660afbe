//! MQTT 3.1, 3.1.1 and 5 on the wire: packets, properties, reason codes.
//!
//! Packets are read in place: a [`Publish`] borrows topic, properties and payload from the receive buffer, and its MQTT 5
//! properties stay encoded until they reach the subscriber. All input of clients is checked here, so the session sees only
//! well-formed packets. An [`Error`] names the reason code to answer with.

pub(crate) mod alias;
pub(crate) mod connect;
pub(crate) mod packet_ids;
pub(crate) mod property;
pub(crate) mod publish;
pub(crate) mod reason;
pub(crate) mod subscribe;
pub(crate) mod write;

pub use connect::Connect;
pub(crate) use connect::Will;
pub use publish::Publish;
pub(crate) use reason::Reason;
pub(crate) use subscribe::{RetainHandling, SubscribeFilter};
pub use subscribe::{Subscribe, Unsubscribe};

/// The MQTT version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub enum Version {
    /// MQTT 3.1 (`MQIsdp`, level 3).
    #[serde(rename = "3.1")]
    V31,
    /// MQTT 3.1.1 (level 4).
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.
    #[serde(rename = "5")]
    V5,
}

impl Version {
    /// Whether packets have properties and reason codes.
    pub(crate) fn is_v5(self) -> bool {
        self == Version::V5
    }

    /// The usual way to write the version.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Version::V31 => "3.1",
            Version::V311 => "3.1.1",
            Version::V5 => "5",
        }
    }
}

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The packet does not conform to the specification.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The packet is well formed but not allowed.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// The packet is larger than this broker accepts.
    #[error("packet of {0} bytes is too large; broker.max_packet_size is {1} bytes")]
    TooLarge(usize, usize),
    /// The topic is not valid in a message.
    #[error("invalid topic: {0}")]
    Topic(crate::message::TopicError),
    /// A CONNECT has an unknown protocol level.
    #[error("unsupported protocol level {0}")]
    Level(u8),
    /// The packet has more properties than this broker reads.
    #[error("the packet has more than {MOST_PROPERTIES} properties")]
    TooMany,
    #[error("QoS 3 does not exist")]
    /// A QoS of 3, which does not exist.
    Qos,
}

impl Error {
    /// The reason code for a DISCONNECT or CONNACK [MQTT-4.13].
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Error::Malformed(_) | Error::Qos => Reason::MALFORMED_PACKET,
            Error::Protocol(_) => Reason::PROTOCOL_ERROR,
            Error::TooLarge(..) => Reason::PACKET_TOO_LARGE,
            Error::TooMany => Reason::QUOTA_EXCEEDED,
            Error::Topic(_) => Reason::TOPIC_NAME_INVALID,
            Error::Level(_) => Reason::UNSUPPORTED_PROTOCOL_VERSION,
        }
    }
}

/// The packet type, from the first nibble of a packet [MQTT-2.1.2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum PacketType {
    Connect = 1,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    Unsubscribe = 10,
    PingReq = 12,
    Disconnect = 14,
    Auth = 15,
}

/// A complete packet in the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The type of the packet.
    pub kind: PacketType,
    /// The low nibble of the first byte.
    pub(crate) flags: u8,
    /// The offset of the body in bytes.
    pub body: usize,
    /// The length of the whole packet in bytes, header included.
    pub len: usize,
}

/// Finds the first packet in `bytes`; `None` while it is incomplete. Fails at the first invalid byte, before the rest has
/// arrived. `max` is the size limit of the whole packet [MQTT-3.1.2-24].
pub fn frame(bytes: &[u8], max: usize, version: Version) -> Result<Option<Frame>, Error> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let (kind, flags) = kind(*first, version)?;
    let mut remaining = 0usize;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            let (body, len) = (at + 1, at + 1 + remaining);
            if len > max {
                return Err(Error::TooLarge(len, max));
            }
            return Ok((bytes.len() >= len).then_some(Frame { kind, flags, body, len }));
        }
    }
    if bytes.len() > 4 { Err(Error::Malformed("remaining length has more than 4 bytes")) } else { Ok(None) }
}

/// The size of the whole packet at the start of `bytes`; `None` while its header is incomplete.
pub fn whole_size(bytes: &[u8]) -> Option<usize> {
    let mut remaining = 0usize;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some(at + 1 + remaining);
        }
    }
    None
}

/// The topic of the PUBLISH at the start of `bytes`; `None` while the topic is incomplete. The rest of the packet need not
/// have arrived.
pub fn topic_of_publish(bytes: &[u8]) -> Option<&str> {
    let head = 1 + bytes.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let (length, rest) = bytes.get(head..)?.split_first_chunk::<2>()?;
    let topic = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    Some(std::str::from_utf8(topic).unwrap_or("(not UTF-8)"))
}

fn kind(first: u8, version: Version) -> Result<(PacketType, u8), Error> {
    use PacketType::*;
    let (kind, flags) = match first >> 4 {
        1 => (Connect, 0),
        3 => return Ok((Publish, first & 15)),
        4 => (PubAck, 0),
        5 => (PubRec, 0),
        6 => (PubRel, 2),
        7 => (PubComp, 0),
        8 => (Subscribe, 2),
        10 => (Unsubscribe, 2),
        12 => (PingReq, 0),
        14 => (Disconnect, 0),
        15 => (Auth, 0),
        2 | 9 | 11 | 13 => return Err(Error::Protocol("a packet that only servers send")),
        _ => return Err(Error::Malformed("packet type 0")),
    };
    // MQTT 3.1 has DUP on PUBREL, SUBSCRIBE and UNSUBSCRIBE, and ignores flags that a packet does not use
    if first & 15 == flags || version == Version::V31 {
        Ok((kind, first & 15))
    } else {
        Err(Error::Malformed("reserved flags of the fixed header"))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    /// The properties that were read.
    properties: usize,
}

/// The most properties of one packet. Empty ones take five bytes each, so a packet of 2 MiB could have 400,000, and all of them
/// are read at once. Programs that set properties set a few.
const MOST_PROPERTIES: usize = 1024;

const SHORT: Error = Error::Malformed("the packet ends within a field");

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Fields { bytes, properties: 0 }
    }

    /// Counts a property that is about to be read.
    pub(crate) fn count_property(&mut self) -> Result<(), Error> {
        self.properties += 1;
        if self.properties > MOST_PROPERTIES { Err(Error::TooMany) } else { Ok(()) }
    }

    /// The bytes that have not been read.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.bytes.split_at_checked(len).ok_or(SHORT)?;
        self.bytes = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Error> {
        Ok(self.take(1)?[0])
    }

    /// Reads two bytes, big endian.
    pub(crate) fn u16(&mut self) -> Result<u16, Error> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Reads four bytes, big endian.
    pub(crate) fn u32(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Reads a packet id, which must not be zero [MQTT-2.2.1-3].
    pub(crate) fn packet_id(&mut self) -> Result<u16, Error> {
        match self.u16()? {
            0 => Err(Error::Malformed("packet id 0")),
            id => Ok(id),
        }
    }

    /// Reads bytes with a 16-bit length in front.
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Error> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// Reads UTF-8 with a 16-bit length in front, without U+0000 [MQTT-1.5.4].
    pub(crate) fn string(&mut self) -> Result<&'a str, Error> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Error::Malformed("a string is not UTF-8"))?;
        if text.as_bytes().contains(&0) { Err(Error::Malformed("a string contains NUL")) } else { Ok(text) }
    }

    /// Reads a variable byte integer [MQTT-1.5.5].
    pub(crate) fn variable(&mut self) -> Result<usize, Error> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // only the shortest form is allowed [MQTT-1.5.5-1]
                let is_overlong = byte == 0 && shift > 0;
                return if is_overlong {
                    Err(Error::Malformed("a variable byte integer is overlong"))
                } else {
                    Ok(value)
                };
            }
        }
        Err(Error::Malformed("variable byte integer has more than 4 bytes"))
    }

    /// Reads the property section: its length and that many bytes.
    pub(crate) fn properties(&mut self) -> Result<Fields<'a>, Error> {
        let len = self.variable()?;
        Ok(Fields::new(self.take(len)?))
    }
}

/// Decodes a PUBACK, PUBREC, PUBREL or PUBCOMP: packet id and reason code [MQTT-3.4.2].
pub fn acknowledgement(body: &[u8], version: Version) -> Result<(u16, Reason), Error> {
    let mut fields = Fields::new(body);
    let id = fields.packet_id()?;
    if !version.is_v5() || fields.is_empty() {
        return if fields.is_empty() {
            Ok((id, Reason::SUCCESS))
        } else {
            Err(Error::Malformed("bytes after the packet id"))
        };
    }
    let reason = Reason(fields.u8()?);
    if !fields.is_empty() {
        property::skip(&mut fields.properties()?, property::Allowed::Acknowledgement)?;
    }
    if fields.is_empty() { Ok((id, reason)) } else { Err(Error::Malformed("bytes after the properties")) }
}

/// Decodes a DISCONNECT: reason code and a new session expiry interval [MQTT-3.14.2].
pub fn disconnect(body: &[u8], version: Version) -> Result<(Reason, Option<u32>), Error> {
    let mut fields = Fields::new(body);
    if !version.is_v5() || fields.is_empty() {
        return if fields.is_empty() {
            Ok((Reason::SUCCESS, None))
        } else {
            Err(Error::Malformed("DISCONNECT has a body"))
        };
    }
    let reason = Reason(fields.u8()?);
    let mut expiry = None;
    if !fields.is_empty() {
        let mut properties = fields.properties()?;
        let mut once = property::Once::default();
        while let Some(property) = property::next(&mut properties)? {
            match property {
                property::Property::SessionExpiry(seconds) => {
                    once.mark(0)?;
                    expiry = Some(seconds);
                }
                property::Property::ReasonString => once.mark(1)?,
                property::Property::User(..) => {}
                _ => return Err(Error::Protocol("a property that DISCONNECT does not have")),
            }
        }
    }
    if fields.is_empty() { Ok((reason, expiry)) } else { Err(Error::Malformed("bytes after the properties")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_framed_once_it_is_complete() {
        let ping = [0xc0, 0];
        assert!(frame(&[], 100, Version::V5).unwrap().is_none());
        assert!(frame(&ping[..1], 100, Version::V5).unwrap().is_none());
        let found = frame(&ping, 100, Version::V5).unwrap().unwrap();
        assert_eq!((found.kind, found.body, found.len), (PacketType::PingReq, 2, 2));
        let long = [0x30, 0x80, 0x01];
        assert!(frame(&long, 1000, Version::V5).unwrap().is_none());
    }

    #[test]
    fn wrong_bytes_are_found_at_once() {
        assert_eq!(frame(&[0x00], 9, Version::V5).unwrap_err(), Error::Malformed("packet type 0"));
        assert!(matches!(frame(&[0x20], 9, Version::V5), Err(Error::Protocol(_))));
        assert!(matches!(frame(&[0x80], 9, Version::V5), Err(Error::Malformed(_))), "SUBSCRIBE needs flags 2");
        assert!(matches!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff], 9, Version::V5), Err(Error::Malformed(_))));
        assert_eq!(frame(&[0x30, 0xff, 0x7f], 100, Version::V5).unwrap_err(), Error::TooLarge(16386, 100));
    }

    #[test]
    fn version_3_1_marks_redeliveries_and_ignores_unused_flags() {
        for (first, kind) in [
            (0x6a, PacketType::PubRel),
            (0x8a, PacketType::Subscribe),
            (0xaa, PacketType::Unsubscribe),
            (0x4f, PacketType::PubAck),
            (0xc1, PacketType::PingReq),
            (0xe8, PacketType::Disconnect),
        ] {
            assert_eq!(frame(&[first, 0], 9, Version::V31).unwrap().unwrap().kind, kind);
            for strict in [Version::V311, Version::V5] {
                assert!(matches!(frame(&[first, 0], 9, strict), Err(Error::Malformed(_))), "{first:x}");
            }
        }
        assert!(frame(&[0x90, 0], 9, Version::V31).is_err() && frame(&[0x00, 0], 9, Version::V31).is_err());
    }

    #[test]
    fn acknowledgements_of_both_generations() {
        assert_eq!(acknowledgement(&[0, 7], Version::V311), Ok((7, Reason::SUCCESS)));
        assert_eq!(acknowledgement(&[0, 7], Version::V5), Ok((7, Reason::SUCCESS)));
        assert_eq!(acknowledgement(&[0, 7, 0x97], Version::V5), Ok((7, Reason::QUOTA_EXCEEDED)));
        assert_eq!(acknowledgement(&[0, 7, 0, 0], Version::V5), Ok((7, Reason::SUCCESS)));
        assert!(acknowledgement(&[0, 0], Version::V5).is_err());
        assert!(acknowledgement(&[0, 7, 0], Version::V311).is_err());
        assert!(acknowledgement(&[0], Version::V311).is_err());
        assert!(acknowledgement(&[0, 7, 0, 0, 0], Version::V5).is_err(), "bytes after the properties");
        let reasons = [0, 7, 0, 8, 0x1f, 0, 1, b'a', 0x1f, 0, 1, b'b'];
        assert_eq!(acknowledgement(&reasons, Version::V5), Err(Error::Protocol("a property appears twice")));
    }

    #[test]
    fn a_disconnect_may_change_the_session_expiry() {
        assert_eq!(disconnect(&[], Version::V5), Ok((Reason::SUCCESS, None)));
        assert_eq!(disconnect(&[4, 5, 0x11, 0, 0, 0, 9], Version::V5), Ok((Reason::DISCONNECT_WITH_WILL, Some(9))));
        assert!(disconnect(&[0], Version::V311).is_err());
        assert!(disconnect(&[0, 0, 0], Version::V5).is_err(), "bytes after the properties");
        let twice = [0, 10, 0x11, 0, 0, 0, 9, 0x11, 0, 0, 0, 8];
        assert_eq!(disconnect(&twice, Version::V5), Err(Error::Protocol("a property appears twice")));
    }

    #[test]
    fn a_variable_byte_integer_has_its_shortest_form() {
        assert_eq!(Fields::new(&[0x80, 0x01]).variable(), Ok(128));
        for overlong in [&[0x80, 0x00][..], &[0xff, 0x80, 0x00], &[0x81, 0x80, 0x80, 0x00]] {
            assert!(Fields::new(overlong).variable().is_err(), "{overlong:x?}");
        }
        assert_eq!(Fields::new(&[0x00]).variable(), Ok(0));
    }
}
