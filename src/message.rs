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
//! | 5 | 1 | hops: gateways that this message has passed through |
//! | 6 | 2 | length of the topic |
//! | 8 | 4 | message expiry interval in seconds, `u32::MAX` for none [MQTT-3.3.2.3.3] |
//! | 12 | 4 | length of the properties |
//! | 16 | 8 | boot clock, in milliseconds, when the message came in |
//! | 24 | 8 | origin: who published it |
//! | 32 | | properties: MQTT 5 PUBLISH properties as received, without length, topic alias, expiry and subscription ids |
//! | | | topic, UTF-8 |
//! | | | payload, to the end |

use std::fmt;
use std::hash::{Hash, Hasher};

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes in front of the properties of an encoded message.
pub const HEADER: usize = 32;
/// Bytes in front of the first message of a batch.
pub const BATCH_HEADER: usize = 8;
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
    pub fn from_u8(number: u8) -> Option<Qos> {
        match number {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// Why a string is not a topic or not a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// At least one character is required [MQTT-4.7.3-1].
    #[error("is empty")]
    Empty,
    /// A string in MQTT has a 16-bit length [MQTT-4.7.3-3].
    #[error("is longer than 65535 bytes")]
    TooLong,
    /// U+0000 is not allowed [MQTT-4.7.3-2].
    #[error("contains a NUL character")]
    Nul,
    /// A topic names one thing: no wildcards [MQTT-3.3.2-2].
    #[error("contains a wildcard ('+' or '#')")]
    Wildcard,
    /// `#` stands alone in the last level [MQTT-4.7.1-1].
    #[error("has a '#' that is not the whole last level")]
    MisplacedHash,
    /// `+` stands alone in its level [MQTT-4.7.1-2].
    #[error("has a '+' that is not a whole level")]
    MisplacedPlus,
    /// `$share/{name}/{filter}` with a plain, non-empty name [MQTT-4.8.2-1].
    #[error("is not of the form $share/NAME/FILTER")]
    BadShare,
}

/// Checks that `topic` is a topic: a name without wildcards that a message can carry [MQTT-4.7.3].
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    for byte in topic.bytes() {
        match byte {
            0 => return Err(TopicError::Nul),
            b'+' | b'#' => return Err(TopicError::Wildcard),
            _ => {}
        }
    }
    Ok(())
}

/// Checks that `filter` is a topic filter [MQTT-4.7.1]; a shared subscription is checked by its inner filter.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    if filter.is_empty() {
        return Err(TopicError::Empty);
    }
    if filter.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    if filter.bytes().any(|byte| byte == 0) {
        return Err(TopicError::Nul);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(TopicError::MisplacedHash);
        }
        if level.contains('+') && level != "+" {
            return Err(TopicError::MisplacedPlus);
        }
    }
    Ok(())
}

/// Whether `filter` selects `topic` [MQTT-4.7.1, 4.7.2]: a filter that begins with a wildcard selects no topic that
/// begins with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether there is a topic that both filters select. Exact but for the rule about `$`, which is ignored.
pub fn overlap(a: &str, b: &str) -> bool {
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    loop {
        match (left.next(), right.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == "+" || y == "+" || x == y => {}
            _ => return false,
        }
    }
}

/// Whether every topic that `narrow` selects is selected by `wide` too.
pub fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let (mut outer, mut inner) = (wide.split('/'), narrow.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

macro_rules! validated_string {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the string if it is valid.
            pub fn new(text: impl Into<Box<str>>) -> Result<Self, TopicError> {
                let text = text.into();
                $check(&text)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

validated_string!(
    /// A concrete topic, such as `loft/motion1`.
    Topic, check_topic
);
validated_string!(
    /// A topic filter, such as `loft/#`.
    TopicFilter, check_filter
);

/// Who published a message, as a number that is the same for the same publisher in every run of the gateway. It serves
/// the no local option of subscriptions [MQTT-3.8.3-3] and keeps a bridge from sending back what it received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin(pub u64);

impl Origin {
    /// The MQTT client with this client id.
    pub fn client(client_id: &str) -> Origin {
        Origin::of("client", client_id)
    }

    /// The upstream with this name.
    pub fn upstream(name: &str) -> Origin {
        Origin::of("upstream", name)
    }

    /// The sensor with this name.
    pub fn sensor(name: &str) -> Origin {
        Origin::of("sensor", name)
    }

    /// The gateway itself: status messages and `$SYS`.
    pub fn gateway() -> Origin {
        Origin::of("gateway", "")
    }

    /// A request by HTTP.
    pub fn http() -> Origin {
        Origin::of("http", "")
    }

    fn of(door: &str, name: &str) -> Origin {
        // FNV-1a: needs no key, so that the number means the same after a restart
        struct Fnv(u64);
        impl Hasher for Fnv {
            fn write(&mut self, bytes: &[u8]) {
                for byte in bytes {
                    self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
                }
            }
            fn finish(&self) -> u64 {
                self.0
            }
        }
        let mut fnv = Fnv(0xcbf2_9ce4_8422_2325);
        (door, name).hash(&mut fnv);
        Origin(fnv.finish())
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
    /// Gateways that it has passed through.
    pub hops: u8,
    /// Boot clock in milliseconds.
    pub boot_ms: u64,
    /// Publisher.
    pub origin: Origin,
}

impl Draft<'_> {
    /// Appends the encoded message.
    fn encode(&self, out: &mut BytesMut) {
        let len = HEADER + self.properties.len() + self.topic.len() + self.payload.len();
        out.reserve(len);
        let mut head = [0u8; HEADER];
        head[0..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        head[4] = self.qos as u8 | (u8::from(self.retain) << 2);
        head[5] = self.hops;
        head[6..8].copy_from_slice(&(self.topic.len() as u16).to_le_bytes());
        head[8..12].copy_from_slice(&self.expiry.unwrap_or(NO_EXPIRY).to_le_bytes());
        head[12..16].copy_from_slice(&(self.properties.len() as u32).to_le_bytes());
        head[16..24].copy_from_slice(&self.boot_ms.to_le_bytes());
        head[24..32].copy_from_slice(&self.origin.0.to_le_bytes());
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
    pub fn qos(&self) -> Qos {
        Qos::from_u8(self.bytes[4] & 3).unwrap_or_default()
    }

    /// Whether it was published with the retain flag.
    pub fn retain(&self) -> bool {
        self.bytes[4] & 4 != 0
    }

    /// Gateways that it has passed through.
    pub fn hops(&self) -> u8 {
        self.bytes[5]
    }

    /// Message expiry interval in seconds, counted from [`MessageRef::boot_ms`].
    pub fn expiry(&self) -> Option<u32> {
        Some(u32_at(self.bytes, 8)).filter(|seconds| *seconds != NO_EXPIRY)
    }

    /// What is left of the expiry interval at `now_boot_ms`: `Ok(None)` if it never expires, `Err(Expired)` if it has.
    pub fn remaining_expiry(&self, now_boot_ms: u64) -> Result<Option<u32>, Expired> {
        let Some(expiry) = self.expiry() else { return Ok(None) };
        // signed: what came in before this boot has a time less than 0
        let age_s = (now_boot_ms as i64).wrapping_sub(self.boot_ms() as i64).max(0) as u64 / 1000;
        match u64::from(expiry).checked_sub(age_s) {
            None | Some(0) => Err(Expired),
            Some(left) => Ok(Some(left as u32)),
        }
    }

    /// Boot clock, in milliseconds, when it came in; less than 0, as a number that wraps, if that was before this boot.
    pub fn boot_ms(&self) -> u64 {
        u64_at(self.bytes, 16)
    }

    /// Publisher.
    pub fn origin(&self) -> Origin {
        Origin(u64_at(self.bytes, 24))
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
    pub fn to_draft(&self) -> Draft<'a> {
        Draft {
            topic: self.topic(),
            payload: self.payload(),
            qos: self.qos(),
            retain: self.retain(),
            properties: self.properties(),
            expiry: self.expiry(),
            hops: self.hops(),
            boot_ms: self.boot_ms(),
            origin: self.origin(),
        }
    }
}

/// The message's expiry interval has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has expired")]
pub struct Expired;

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
    pub fn from_bytes(bytes: Bytes) -> Option<Message> {
        let len = MessageRef::parse(&bytes)?.bytes.len();
        Some(Message { bytes: bytes.slice(..len) })
    }

    /// The view that everything is read through.
    pub fn view(&self) -> MessageRef<'_> {
        MessageRef { bytes: &self.bytes }
    }

    /// Encoded size in bytes: what bounds of memory count.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The same message in memory of its own, for those who keep it: a slice would keep its whole batch.
    pub fn to_owned_memory(&self) -> Message {
        Message { bytes: Bytes::copy_from_slice(&self.bytes) }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

/// Messages being collected for one place in the order.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    count: u32,
    has_retain: bool,
}

impl BatchBuilder {
    /// Adds a message.
    pub fn push(&mut self, draft: &Draft<'_>) {
        if self.bytes.is_empty() {
            self.bytes.put_u64_le(0);
        }
        draft.encode(&mut self.bytes);
        self.count += 1;
        self.has_retain |= draft.retain;
    }

    /// Whether one of them has the retain flag.
    pub fn has_retain(&self) -> bool {
        self.has_retain
    }

    /// Messages so far.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The messages so far.
    pub fn iter(&self) -> Messages<'_> {
        Messages { bytes: &self.bytes, at: BATCH_HEADER.min(self.bytes.len()), seq: 0 }
    }

    /// Numbers the messages from `seq` on and takes them; the builder is empty afterwards.
    pub fn finish(&mut self, seq: u64) -> Batch {
        self.count = 0;
        self.has_retain = false;
        let mut bytes = self.bytes.split();
        if bytes.is_empty() {
            bytes.put_u64_le(0);
        }
        bytes[..BATCH_HEADER].copy_from_slice(&seq.to_le_bytes());
        Batch { bytes: bytes.freeze() }
    }
}

/// Messages with their places in the order: the first has the sequence number of the batch, the next one more.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// A batch from bytes that [`Batch::into_bytes`] gave within this process.
    pub fn from_bytes(bytes: Bytes) -> Option<Batch> {
        (bytes.len() >= BATCH_HEADER).then_some(Batch { bytes })
    }

    /// The encoded batch.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Sequence number of the first message.
    pub fn seq(&self) -> u64 {
        u64_at(&self.bytes, 0)
    }

    /// The messages in order.
    pub fn iter(&self) -> Messages<'_> {
        Messages { bytes: &self.bytes, at: BATCH_HEADER, seq: self.seq() }
    }

    /// The message at this offset, which [`Messages`] gave, sharing the batch's memory.
    pub fn message_at(&self, offset: usize) -> Message {
        let len = u32_at(&self.bytes, offset) as usize;
        Message { bytes: self.bytes.slice(offset..offset + len) }
    }
}

impl Batch {
    /// The messages between two offsets, `count` of them, sharing the batch's memory.
    pub fn pack(&self, from: usize, to: usize, count: usize) -> Packed {
        let bytes = self.bytes.slice(from.max(BATCH_HEADER)..to);
        Packed { bytes, count, shared: self.bytes.len() }
    }
}

/// Messages one after the other, without places.
#[derive(Clone, Debug)]
pub struct Packed {
    bytes: Bytes,
    count: usize,
    /// Size of the memory that is kept for them.
    shared: usize,
}

impl Packed {
    /// One message.
    pub fn one(message: Message) -> Packed {
        let shared = message.size();
        Packed { bytes: message.bytes, count: 1, shared }
    }

    /// Messages.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the messages.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The first message, in place.
    pub fn first(&self) -> Option<MessageRef<'_>> {
        (self.count > 0).then(|| MessageRef { bytes: &self.bytes[..u32_at(&self.bytes, 0) as usize] })
    }

    /// Forgets the first message.
    pub fn advance(&mut self) {
        if self.count > 0 {
            let len = u32_at(&self.bytes, 0) as usize;
            bytes::Buf::advance(&mut self.bytes, len);
            self.count -= 1;
        }
    }

    /// Takes the first message out, sharing the memory.
    pub fn next_message(&mut self) -> Option<Message> {
        if self.count == 0 {
            return None;
        }
        let len = u32_at(&self.bytes, 0) as usize;
        self.count -= 1;
        Some(Message { bytes: self.bytes.split_to(len) })
    }

    /// Keeps as many messages from the front as `fits` (given their number and bytes) allows, and returns the rest.
    pub fn split_off_front(&mut self, fits: impl Fn(usize, usize) -> bool) -> Option<Packed> {
        if fits(self.count, self.bytes.len()) {
            return None;
        }
        let (mut count, mut at) = (0, 0);
        while count < self.count {
            let len = u32_at(&self.bytes, at) as usize;
            if !fits(count + 1, at + len) {
                break;
            }
            count += 1;
            at += len;
        }
        let rest = Packed { bytes: self.bytes.split_off(at), count: self.count - count, shared: self.shared };
        self.count = count;
        Some(rest)
    }

    /// Moves the messages to memory of their own if they keep much more alive than they are.
    pub fn compact(&mut self) {
        if self.shared > 2 * self.bytes.len() {
            self.bytes = Bytes::copy_from_slice(&self.bytes);
            self.shared = self.bytes.len();
        }
    }
}

/// One message of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Place in the order of all messages.
    pub seq: u64,
    /// Where it starts in its batch.
    pub offset: usize,
    /// The message.
    pub message: MessageRef<'a>,
}

/// Iterator over the messages of a batch.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    at: usize,
    seq: u64,
}

impl<'a> Iterator for Messages<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.at + HEADER > self.bytes.len() {
            return None;
        }
        let len = u32_at(self.bytes, self.at) as usize;
        let entry = Entry {
            seq: self.seq,
            offset: self.at,
            message: MessageRef { bytes: self.bytes.get(self.at..self.at + len)? },
        };
        self.at += len;
        self.seq += 1;
        Some(entry)
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
            hops: 2,
            boot_ms: 5_000,
            origin: Origin::client("a"),
        }
    }

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let message = Message::new(&draft("loft/motion1", b"12:00:00"));
        let view = MessageRef::parse(message.view().as_bytes()).unwrap();
        assert_eq!((view.topic(), view.payload()), ("loft/motion1", &b"12:00:00"[..]));
        assert_eq!((view.qos(), view.retain(), view.hops()), (Qos::AtLeastOnce, true, 2));
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

    #[test]
    fn a_batch_numbers_its_messages() {
        let mut builder = BatchBuilder::default();
        builder.push(&draft("a", b"1"));
        builder.push(&draft("b", b"22"));
        assert_eq!((builder.len(), builder.iter().count()), (2, 2));
        let batch = builder.finish(40);
        assert!(builder.is_empty());
        let seen: Vec<_> = batch.iter().map(|entry| (entry.seq, entry.message.topic().to_owned())).collect();
        assert_eq!(seen, [(40, "a".to_owned()), (41, "b".to_owned())]);
        let second = batch.iter().nth(1).unwrap();
        assert_eq!(batch.message_at(second.offset).view().payload(), b"22");
    }

    #[test]
    fn filters_select_topics_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("#", "sport", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/broker/uptime", true),
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
            ("ä/#", "ä/b", true),
            ("a", "A", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn filters_are_compared() {
        for (a, b, overlapping, a_covers_b) in [
            ("a/#", "a/b", true, true),
            ("a/#", "a", true, true),
            ("a/b", "a/#", true, false),
            ("+/b", "a/+", true, false),
            ("+/+", "a/+", true, true),
            ("+/+", "a/#", true, false),
            ("#", "a/+/c", true, true),
            ("a/b", "a/c", false, false),
            ("a/+", "a", false, false),
            ("a/+/#", "a", false, false),
            ("a/b", "a/b", true, true),
            ("#", "$SYS/#", true, false),
            ("$SYS/#", "$SYS/broker/+", true, true),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (overlapping, overlapping), "{a} {b}");
            assert_eq!(covers(a, b), a_covers_b, "{a} {b}");
        }
    }

    #[test]
    fn topics_and_filters_are_validated() {
        assert!(Topic::new("a//b c/ü").is_ok());
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new("a/+"), Err(TopicError::Wildcard));
        assert_eq!(Topic::new("a\0"), Err(TopicError::Nul));
        assert_eq!(Topic::new("x".repeat(65_536)), Err(TopicError::TooLong));
        assert!(TopicFilter::new("+/a/#").is_ok());
        assert_eq!(TopicFilter::new("a#"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::new("#/a"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::new("a+/b"), Err(TopicError::MisplacedPlus));
    }
}
