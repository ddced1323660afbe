//! Messages, topics and topic filters, which all rooms use.
//!
//! A message is encoded once, by the door it came in through, and from then on is only shared: the live router, the
//! journal, the retained store and every session read the same bytes. A [`Batch`] is a run of messages that came in
//! together; it is the unit that is put in order, so a busy publisher pays the price of ordering once per read, not
//! once per message.
//!
//! # Layout
//! All integers are little endian. A batch is an 8-byte sequence number (that of its first message) and then messages,
//! each of which is
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | length of the whole message, these 32 bytes included |
//! | 4 | 1 | bits 0-1 QoS, bit 2 retain |
//! | 5 | 1 | the [`Owner`] for whom it counts while it is retained; 0: an older gateway has not recorded it |
//! | 6 | 2 | length of the topic |
//! | 8 | 4 | message expiry interval in seconds, `u32::MAX` for none [MQTT-3.3.2.3.3] |
//! | 12 | 4 | length of the properties |
//! | 16 | 8 | boot clock, in milliseconds, when the message came in |
//! | 24 | 8 | origin: who published it |
//! | 32 | | properties: MQTT 5 PUBLISH properties as received, without length, topic alias, expiry and subscription ids |
//! | | | topic, UTF-8 |
//! | | | payload, to the end |

mod alive;
mod batch;
pub(crate) mod fnv;
mod owner;
mod shown;
mod topic;
pub mod via;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};

use self::alive::counted;
pub(crate) use self::alive::{AliveBytes, alive};
pub use self::batch::BatchBuilder;
pub(crate) use self::batch::{Batch, Entry, MOST_DEEP, Packed};
use self::fnv::Fnv;
pub(crate) use self::owner::Owner;
pub(crate) use self::shown::{acts_on_text, printable};
pub(crate) use self::topic::{Topic, TopicError, USUAL_LEVELS, levels};
pub use self::topic::{TopicFilter, check_filter, check_topic, covers, matches, overlap};

/// Name of the MQTT 5 user property that carries the id of a traced message.
pub(crate) const TRACE_PROPERTY: &str = "pigateway-trace";
/// Bytes in front of the properties of an encoded message.
pub(crate) const HEADER: usize = 32;
/// Bytes in front of the first message of a batch.
pub(crate) const BATCH_HEADER: usize = 8;
const NO_EXPIRY: u32 = u32::MAX;

/// Quality of service of a message or a subscription [MQTT-4.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0: delivered if the connection holds.
    #[default]
    AtMostOnce = 0,
    /// QoS 1: delivered until acknowledged, perhaps more than once.
    AtLeastOnce = 1,
    /// QoS 2: delivered once.
    ExactlyOnce = 2,
}

impl Qos {
    /// The QoS with this number, if there is one.
    pub(crate) fn from_u8(number: u8) -> Option<Qos> {
        match number {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// The publisher of a message, as a number that is the same for the same publisher in every run of the gateway. It is needed
/// for the no local option of subscriptions [MQTT-3.8.3-3], and keeps a bridge from sending back what it received.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    number: u64,
    /// The owner to whom its retained messages are charged.
    pub(crate) owner: Owner,
}

impl PartialEq for Origin {
    fn eq(&self, other: &Origin) -> bool {
        self.number == other.number
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl Origin {
    pub(crate) fn client(client_id: &str) -> Origin {
        Origin::of("client", client_id, Owner::GUESTS)
    }

    pub(crate) fn upstream(name: &str) -> Origin {
        Origin::of("upstream", name, Owner::UPSTREAMS)
    }

    pub(crate) fn sensor(name: &str) -> Origin {
        Origin::of("sensor", name, Owner::HOUSE)
    }

    /// The gateway itself, which publishes status messages and `$SYS`.
    pub fn gateway() -> Origin {
        Origin::of("gateway", "", Owner::HOUSE)
    }

    /// The gateway as the announcer of itself and its sensors, for example to Home Assistant. Announcements are repeated
    /// after every start, so they are kept in memory only, and they go to an upstream only where a rule names them.
    pub(crate) fn announcer() -> Origin {
        Origin::of("announcer", "", Owner::HOUSE)
    }

    /// Requests by HTTP.
    pub fn http() -> Origin {
        Origin::of("http", "", Owner::GUESTS)
    }

    /// Requests by HTTP of guests in this network, and the network itself.
    pub(crate) fn http_from(network: IpAddr) -> Origin {
        Origin::of("http", &network.to_string(), Owner::GUESTS)
    }

    /// The shared subscriptions of this owner. They publish nothing, but cost time.
    pub(crate) fn groups(owner: Owner) -> Origin {
        Origin::of("groups", "", owner)
    }

    /// The same publisher, with another owner.
    pub(crate) fn owned_by(self, owner: Owner) -> Origin {
        Origin { owner, ..self }
    }

    fn of(door: &str, name: &str, owner: Owner) -> Origin {
        let mut fnv = Fnv::default();
        (door, name).hash(&mut fnv);
        Origin { number: fnv.finish(), owner }
    }
}

/// A message before it has a place in the order, as a door received it.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The topic, already checked with [`check_topic`].
    pub topic: &'a str,
    /// The payload, at most as large as the broker's `max_packet_size`.
    pub payload: &'a [u8],
    /// The QoS of the publication, which is an upper bound for its delivery.
    pub qos: Qos,
    /// Whether it becomes the retained message of its topic, or, with an empty payload, deletes it.
    pub retain: bool,
    /// The MQTT 5 properties to pass on, encoded; empty for none.
    pub properties: &'a [u8],
    /// The message expiry interval in seconds; `None` if the message never expires.
    pub expiry: Option<u32>,
    /// The time of arrival in milliseconds of the boot clock.
    pub boot_ms: u64,
    /// Who published the message.
    pub origin: Origin,
}

impl<'a> Draft<'a> {
    /// A message of the gateway itself: QoS 0, not retained, without properties and expiry, accepted when the host booted.
    /// Other values are given as in `Draft { retain: true, ..Draft::new(topic, payload) }`.
    pub fn new(topic: &'a str, payload: &'a [u8]) -> Draft<'a> {
        let (qos, properties, origin) = (Qos::AtMostOnce, &[][..], Origin::gateway());
        Draft { topic, payload, qos, retain: false, properties, expiry: None, boot_ms: 0, origin }
    }

    fn encoded_len(&self) -> usize {
        HEADER + self.properties.len() + self.topic.len() + self.payload.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        let len = self.encoded_len();
        out.reserve(len);
        let mut head = [0u8; HEADER];
        head[0..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        head[4] = self.qos as u8 | (u8::from(self.retain) << 2);
        head[5] = self.origin.owner.index() as u8;
        head[6..8].copy_from_slice(&(self.topic.len() as u16).to_le_bytes());
        head[8..12].copy_from_slice(&self.expiry.unwrap_or(NO_EXPIRY).to_le_bytes());
        head[12..16].copy_from_slice(&(self.properties.len() as u32).to_le_bytes());
        head[16..24].copy_from_slice(&self.boot_ms.to_le_bytes());
        head[24..32].copy_from_slice(&self.origin.number.to_le_bytes());
        out.put_slice(&head);
        out.put_slice(self.properties);
        out.put_slice(self.topic.as_bytes());
        out.put_slice(self.payload);
    }
}

/// A message as a view of encoded bytes.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    bytes: &'a [u8],
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl<'a> MessageRef<'a> {
    /// The first message in `bytes`, checked: lengths add up, the topic is a valid topic, the QoS exists.
    pub fn parse(bytes: &'a [u8]) -> Option<MessageRef<'a>> {
        if bytes.len() < HEADER {
            return None;
        }
        let len = u32_at(bytes, 0) as usize;
        if len < HEADER || len > bytes.len() {
            return None;
        }
        let message = MessageRef { bytes: &bytes[..len] };
        let topic_end = HEADER.checked_add(u32_at(bytes, 12) as usize)?.checked_add(message.topic_len())?;
        if topic_end > len || bytes[4] & 3 == 3 {
            return None;
        }
        let topic = std::str::from_utf8(&bytes[topic_end - message.topic_len()..topic_end]).ok()?;
        check_topic(topic).ok()?;
        Some(message)
    }

    fn topic_len(&self) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[6], self.bytes[7]]))
    }

    fn topic_start(&self) -> usize {
        HEADER + u32_at(self.bytes, 12) as usize
    }

    /// The encoded message, in the layout of the module.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn qos(&self) -> Qos {
        Qos::from_u8(self.bytes[4] & 3).unwrap_or_default()
    }

    pub(crate) fn retain(&self) -> bool {
        self.bytes[4] & 4 != 0
    }

    /// The message expiry interval in seconds, counted from [`MessageRef::boot_ms`].
    pub(crate) fn expiry(&self) -> Option<u32> {
        Some(u32_at(self.bytes, 8)).filter(|seconds| *seconds != NO_EXPIRY)
    }

    /// What is left of the expiry interval at `now_boot_ms`. `Ok(None)` means that it never expires, `Err(Expired)` that it
    /// has.
    pub(crate) fn remaining_expiry(&self, now_boot_ms: u64) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry() else { return Ok(None) };
        // signed, because messages from before this boot have a negative time
        let age_s = (now_boot_ms as i64).wrapping_sub(self.boot_ms() as i64).max(0) as u64 / 1000;
        match u64::from(expiry).checked_sub(age_s) {
            None | Some(0) => Err(Expired),
            Some(left) => Ok(Some(left as u32)),
        }
    }

    /// The time of arrival in milliseconds of the boot clock. For messages from before this boot it is a negative number
    /// that wraps around.
    pub(crate) fn boot_ms(&self) -> u64 {
        u64_at(self.bytes, 16)
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin { number: u64_at(self.bytes, 24), owner: Owner::recorded(self.bytes[5]) }
    }

    /// Whether the gateway repeats this message after every start, so that it need not be kept on disk.
    pub(crate) fn is_said_anew(&self) -> bool {
        self.topic().starts_with("$SYS/") || self.origin() == Origin::announcer()
    }

    /// The MQTT 5 properties, encoded as in the packet.
    pub fn properties(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.topic_start()]
    }

    /// The topic, which has been checked.
    pub fn topic(&self) -> &'a str {
        let start = self.topic_start();
        // every message was checked when it was encoded or parsed
        std::str::from_utf8(&self.bytes[start..start + self.topic_len()]).unwrap_or_default()
    }

    /// Whether the message is on this topic.
    pub(crate) fn is_on(&self, topic: &str) -> bool {
        let start = self.topic_start();
        self.bytes[start..start + self.topic_len()] == *topic.as_bytes()
    }

    /// The payload, without a copy.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.topic_start() + self.topic_len()..]
    }

    /// Makes a draft of the message, to be published again with changes.
    pub(crate) fn to_draft(self) -> Draft<'a> {
        Draft {
            topic: self.topic(),
            payload: self.payload(),
            qos: self.qos(),
            retain: self.retain(),
            properties: self.properties(),
            expiry: self.expiry(),
            boot_ms: self.boot_ms(),
            origin: self.origin(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has expired")]
pub(crate) struct Expired;

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic())
            .field("qos", &self.qos())
            .field("retain", &self.retain())
            .field("payload", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// A message that shares its bytes with others. Cheap to clone.
#[derive(Clone)]
pub struct Message {
    bytes: Bytes,
}

impl Message {
    /// Encodes a message into memory of its own.
    pub fn new(draft: &Draft<'_>) -> Message {
        let mut bytes = BytesMut::new();
        draft.encode(&mut bytes);
        Message { bytes: bytes.freeze() }
    }

    /// Takes bytes that [`MessageRef::as_bytes`] gave; `None` if they are damaged.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Message> {
        let len = MessageRef::parse(&bytes)?.bytes.len();
        Some(Message { bytes: bytes.slice(..len) })
    }

    /// Copies the message into counted memory of its own; `None` if the bytes are damaged.
    pub(crate) fn read(bytes: &[u8]) -> Option<Message> {
        let len = MessageRef::parse(bytes)?.bytes.len();
        Some(Message { bytes: counted(bytes[..len].to_vec()) })
    }

    /// A view of the message, through which its parts are read.
    pub fn view(&self) -> MessageRef<'_> {
        MessageRef { bytes: &self.bytes }
    }

    /// The encoded size in bytes, which limits of memory count.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The payload. It shares the memory.
    pub(crate) fn shared_payload(&self) -> Bytes {
        self.bytes.slice_ref(self.view().payload())
    }

    /// A copy of the message in counted memory of its own.
    pub(crate) fn to_counted_memory(&self) -> Message {
        Message { bytes: counted(self.bytes.to_vec()) }
    }

    /// A copy of the message in memory of its own, for those who keep it: a slice would keep its whole batch in memory.
    pub(crate) fn to_owned_memory(&self) -> Message {
        Message { bytes: Bytes::copy_from_slice(&self.bytes) }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft<'a>(topic: &'a str, payload: &'a [u8]) -> Draft<'a> {
        Draft {
            topic,
            payload,
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: &[3, 0, 1, b'x'],
            expiry: Some(10),
            boot_ms: 5_000,
            origin: Origin::client("a"),
        }
    }

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let message = Message::new(&draft("loft/motion1", b"12:00:00"));
        let view = MessageRef::parse(message.view().as_bytes()).unwrap();
        assert_eq!((view.topic(), view.payload()), ("loft/motion1", &b"12:00:00"[..]));
        assert_eq!((view.qos(), view.retain()), (Qos::AtLeastOnce, true));
        assert_eq!((view.properties(), view.expiry()), (&[3, 0, 1, b'x'][..], Some(10)));
        assert_eq!((view.boot_ms(), view.origin()), (5_000, Origin::client("a")));
        assert_ne!(view.origin(), Origin::upstream("a"));
    }

    #[test]
    fn a_damaged_message_is_not_parsed() {
        let message = Message::new(&draft("loft/motion1", b"x"));
        let good = message.view().as_bytes().to_vec();
        for cut in 0..good.len() {
            assert!(MessageRef::parse(&good[..cut]).is_none(), "cut at {cut}");
        }
        for (at, value) in [(4, 3), (7, 200), (15, 255), (36, b'#'), (36, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(MessageRef::parse(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn expiry_counts_down_from_arrival() {
        let message = Message::new(&draft("t", b""));
        assert_eq!(message.view().remaining_expiry(5_000), Ok(Some(10)));
        assert_eq!(message.view().remaining_expiry(13_999), Ok(Some(2)));
        assert_eq!(message.view().remaining_expiry(15_000), Err(Expired));
        assert_eq!(message.view().remaining_expiry(0), Ok(Some(10)));
    }
}
