//! Messages, topics and topic filters: what every room hands to the next.
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
//! | 5 | 1 | for whom it counts while it is retained; 0: an older gateway has not noted it |
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
mod topic;
pub mod via;

use std::fmt;
use std::hash::{Hash, Hasher};

use bytes::{BufMut, Bytes, BytesMut};

pub(crate) use self::alive::alive;
use self::alive::counted;
pub use self::batch::BatchBuilder;
pub(crate) use self::batch::{Batch, Entry, Packed};
use self::fnv::Fnv;
pub(crate) use self::topic::{Topic, TopicError};
pub use self::topic::{TopicFilter, check_filter, check_topic, covers, matches, overlap};

/// Name of the MQTT 5 user property that carries the id of a message that is followed.
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

/// Who published a message, as a number that is the same for the same publisher in every run of the gateway. It serves
/// the no local option of subscriptions [MQTT-3.8.3-3] and keeps a bridge from sending back what it received.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    number: u64,
    /// For whom its messages count.
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

/// For whom a retained message counts. Users are told apart by a hash, so that it is the same in every run; two that have
/// the same share what each could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u8);

impl Owner {
    /// The gateway and its sensors.
    pub(crate) const HOUSE: Owner = Owner(1);
    /// Clients without a user name, all together.
    pub(crate) const GUESTS: Owner = Owner(2);
    /// What came down from upstreams.
    pub(crate) const UPSTREAMS: Owner = Owner(3);
    const USERS: u8 = 8;

    /// The user of this name; `None`: clients without one.
    pub(crate) fn of(user: Option<&str>) -> Owner {
        let Some(user) = user else { return Owner::GUESTS };
        let number = Origin::of("user", user, Owner::GUESTS).number;
        Owner(Owner::USERS + (number % u64::from(u8::MAX - Owner::USERS + 1)) as u8)
    }

    /// As an index, less than 256.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Origin {
    /// The MQTT client with this client id.
    pub(crate) fn client(client_id: &str) -> Origin {
        Origin::of("client", client_id, Owner::GUESTS)
    }

    /// The upstream with this name.
    pub(crate) fn upstream(name: &str) -> Origin {
        Origin::of("upstream", name, Owner::UPSTREAMS)
    }

    /// The sensor with this name.
    pub(crate) fn sensor(name: &str) -> Origin {
        Origin::of("sensor", name, Owner::HOUSE)
    }

    /// The gateway itself: status messages and `$SYS`.
    pub fn gateway() -> Origin {
        Origin::of("gateway", "", Owner::HOUSE)
    }

    /// The gateway where it announces itself and its sensors, such as to Home Assistant. That is said anew after every start:
    /// it is kept in memory only, and goes to an upstream only where a rule names it.
    pub(crate) fn announcer() -> Origin {
        Origin::of("announcer", "", Owner::HOUSE)
    }

    /// A request by HTTP.
    pub fn http() -> Origin {
        Origin::of("http", "", Owner::GUESTS)
    }

    /// The same publisher, whose messages count for this owner.
    pub(crate) fn owned_by(self, owner: Owner) -> Origin {
        Origin { owner, ..self }
    }

    fn of(door: &str, name: &str, owner: Owner) -> Origin {
        let mut fnv = Fnv::default();
        (door, name).hash(&mut fnv);
        Origin { number: fnv.finish(), owner }
    }
}

/// What a door knows of a message before it has a place in the order.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// Topic, already checked with [`check_topic`].
    pub topic: &'a str,
    /// Payload, at most the broker's `max_packet_size`.
    pub payload: &'a [u8],
    /// QoS it was published with.
    pub qos: Qos,
    /// Whether it becomes (or, when empty, clears) the retained message of its topic.
    pub retain: bool,
    /// MQTT 5 properties to pass through, encoded; empty for none.
    pub properties: &'a [u8],
    /// Message expiry interval in seconds.
    pub expiry: Option<u32>,
    /// Boot clock in milliseconds.
    pub boot_ms: u64,
    /// Publisher.
    pub origin: Origin,
}

impl Draft<'_> {
    fn encoded_len(&self) -> usize {
        HEADER + self.properties.len() + self.topic.len() + self.payload.len()
    }

    /// Appends the encoded message.
    fn encode(&self, out: &mut BytesMut) {
        let len = self.encoded_len();
        out.reserve(len);
        let mut head = [0u8; HEADER];
        head[0..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        head[4] = self.qos as u8 | (u8::from(self.retain) << 2);
        head[5] = self.origin.owner.0;
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

/// A message in place: a view of encoded bytes.
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

    /// The encoded message.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// QoS it was published with.
    pub(crate) fn qos(&self) -> Qos {
        Qos::from_u8(self.bytes[4] & 3).unwrap_or_default()
    }

    /// Whether it was published with the retain flag.
    pub(crate) fn retain(&self) -> bool {
        self.bytes[4] & 4 != 0
    }

    /// Message expiry interval in seconds, counted from [`MessageRef::boot_ms`].
    pub(crate) fn expiry(&self) -> Option<u32> {
        Some(u32_at(self.bytes, 8)).filter(|seconds| *seconds != NO_EXPIRY)
    }

    /// What is left of the expiry interval at `now_boot_ms`: `Ok(None)` if it never expires, `Err(Expired)` if it has.
    pub(crate) fn remaining_expiry(&self, now_boot_ms: u64) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry() else { return Ok(None) };
        // signed: what came in before this boot has a time less than 0
        let age_s = (now_boot_ms as i64).wrapping_sub(self.boot_ms() as i64).max(0) as u64 / 1000;
        match u64::from(expiry).checked_sub(age_s) {
            None | Some(0) => Err(Expired),
            Some(left) => Ok(Some(left as u32)),
        }
    }

    /// Boot clock, in milliseconds, when it came in; less than 0, as a number that wraps, if that was before this boot.
    pub(crate) fn boot_ms(&self) -> u64 {
        u64_at(self.bytes, 16)
    }

    /// Publisher.
    pub(crate) fn origin(&self) -> Origin {
        Origin { number: u64_at(self.bytes, 24), owner: Owner(self.bytes[5]) }
    }

    /// Whether the gateway says it of itself, anew after every start: then it is not kept on disk.
    pub(crate) fn is_said_anew(&self) -> bool {
        self.topic().starts_with("$SYS/") || self.origin() == Origin::announcer()
    }

    /// MQTT 5 properties, encoded.
    pub fn properties(&self) -> &'a [u8] {
        &self.bytes[HEADER..self.topic_start()]
    }

    /// Topic.
    pub fn topic(&self) -> &'a str {
        let start = self.topic_start();
        // every message was checked when it was encoded or parsed
        std::str::from_utf8(&self.bytes[start..start + self.topic_len()]).unwrap_or_default()
    }

    /// Payload.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.topic_start() + self.topic_len()..]
    }

    /// The message as a draft, to be published again with changes.
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

/// The message's expiry interval has passed.
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

/// A message that shares its bytes with others: cheap to clone.
#[derive(Clone)]
pub struct Message {
    bytes: Bytes,
}

impl Message {
    /// Encodes a message of its own.
    pub fn new(draft: &Draft<'_>) -> Message {
        let mut bytes = BytesMut::new();
        draft.encode(&mut bytes);
        Message { bytes: bytes.freeze() }
    }

    /// A message from bytes that [`MessageRef::as_bytes`] gave once; `None` if they are damaged.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Message> {
        let len = MessageRef::parse(&bytes)?.bytes.len();
        Some(Message { bytes: bytes.slice(..len) })
    }

    /// The same in memory of its own that counts as on its way.
    pub(crate) fn read(bytes: &[u8]) -> Option<Message> {
        let len = MessageRef::parse(bytes)?.bytes.len();
        Some(Message { bytes: counted(bytes[..len].to_vec()) })
    }

    /// The view that everything is read through.
    pub fn view(&self) -> MessageRef<'_> {
        MessageRef { bytes: &self.bytes }
    }

    /// Encoded size in bytes: what bounds of memory count.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Its payload, sharing the memory.
    pub(crate) fn shared_payload(&self) -> Bytes {
        self.bytes.slice_ref(self.view().payload())
    }

    /// The same message in memory of its own that counts as on its way.
    pub(crate) fn to_counted_memory(&self) -> Message {
        Message { bytes: counted(self.bytes.to_vec()) }
    }

    /// The same message in memory of its own, for those who keep it: a slice would keep its whole batch.
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
