//! Batches of messages: how they are collected, how they get their places in the order, and how they are packed for one
//! reader.

use bytes::{BufMut, Bytes, BytesMut};

use super::topic::{USUAL_LEVELS, levels};
use super::{BATCH_HEADER, Draft, HEADER, Message, MessageRef, counted, u32_at, u64_at};

/// A batch may keep at most this many times its own size in memory.
const MOST_SLACK: usize = 4;

/// The most changes of topics of more than [`USUAL_LEVELS`] levels in one batch of a client, because each may cost the
/// others much.
pub(crate) const MOST_DEEP: usize = 2;

/// A buffer larger than this is not reused for the next batch.
const KEPT: usize = 128 << 10;

/// Collects messages that get their places in the order together.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    /// Upper bound of the size of the allocation that `bytes` belongs to.
    allocated: usize,
    count: u32,
    has_retain: bool,
    /// Messages with more than [`USUAL_LEVELS`] levels whose topic is not that of the last such message.
    deep: usize,
    /// The place of the last message with such a topic.
    last_deep: Option<usize>,
}

impl BatchBuilder {
    /// Adds a message.
    pub fn push(&mut self, draft: &Draft<'_>) {
        self.push_of_levels(draft, levels(draft.topic));
    }

    /// Adds a message whose topic is known to have this many levels.
    pub(crate) fn push_of_levels(&mut self, draft: &Draft<'_>, levels: usize) {
        if self.bytes.is_empty() {
            // a batch often has one message, and reserving header and message in two steps would allocate twice
            self.bytes.reserve(BATCH_HEADER + draft.encoded_len());
            self.bytes.put_u64_le(0);
        }
        if levels > USUAL_LEVELS {
            let is_same =
                self.last_deep.is_some_and(|at| MessageRef { bytes: &self.bytes[at..] }.topic() == draft.topic);
            self.deep += usize::from(!is_same);
            self.last_deep = Some(self.bytes.len());
        }
        draft.encode(&mut self.bytes);
        self.allocated = self.allocated.max(self.bytes.capacity());
        self.count += 1;
        self.has_retain |= draft.retain;
    }

    /// Whether a message of the batch has the retain flag.
    pub(crate) fn has_retain(&self) -> bool {
        self.has_retain
    }

    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of changes of topics of more than [`USUAL_LEVELS`] levels.
    pub(crate) fn deep(&self) -> usize {
        self.deep
    }

    /// Bytes so far, with the header.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Releases its memory if it is empty. Returns whether it is.
    pub(crate) fn give_back(&mut self) -> bool {
        if self.is_empty() {
            (self.bytes, self.allocated) = (BytesMut::new(), 0);
        }
        self.is_empty()
    }

    pub(crate) fn iter(&self) -> Messages<'_> {
        Messages { bytes: &self.bytes, at: BATCH_HEADER.min(self.bytes.len()), seq: 0 }
    }

    /// Numbers the messages from `seq` on and takes them; the builder is empty afterwards.
    pub(crate) fn finish(&mut self, seq: u64) -> Batch {
        self.count = 0;
        self.has_retain = false;
        (self.deep, self.last_deep) = (0, None);
        if self.bytes.is_empty() {
            self.bytes.put_u64_le(0);
        }
        self.bytes[..BATCH_HEADER].copy_from_slice(&seq.to_le_bytes());
        let is_slack = self.allocated > MOST_SLACK * self.bytes.len();
        // a few messages would keep the whole allocation alive, which nobody has counted
        let bytes = if is_slack { counted(self.bytes.to_vec()) } else { counted(self.bytes.split()) };
        if self.allocated > KEPT {
            (self.bytes, self.allocated) = (BytesMut::new(), 0);
        } else {
            self.bytes.clear();
        }
        Batch { bytes }
    }
}

/// Messages in order: the first has the sequence number of the batch, and each later one has the next number.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    bytes: Bytes,
}

impl Batch {
    /// A batch from bytes that [`Batch::into_bytes`] gave within this process.
    pub(crate) fn from_bytes(bytes: Bytes) -> Option<Batch> {
        (bytes.len() >= BATCH_HEADER).then_some(Batch { bytes })
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The sequence number of the first message.
    pub(crate) fn seq(&self) -> u64 {
        u64_at(&self.bytes, 0)
    }

    pub(crate) fn iter(&self) -> Messages<'_> {
        Messages { bytes: &self.bytes, at: BATCH_HEADER, seq: self.seq() }
    }

    /// The message at an offset that [`Messages`] gave. It shares the batch's memory.
    pub(crate) fn message_at(&self, offset: usize) -> Message {
        let len = u32_at(&self.bytes, offset) as usize;
        Message { bytes: self.bytes.slice(offset..offset + len) }
    }
}

impl Batch {
    /// The `count` messages between two offsets. They share the batch's memory.
    pub(crate) fn pack(&self, from: usize, to: usize, count: usize) -> Packed {
        let bytes = self.bytes.slice(from.max(BATCH_HEADER)..to);
        Packed { bytes, count, shared: self.bytes.len() }
    }
}

/// Consecutive messages without sequence numbers.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    bytes: Bytes,
    count: usize,
    /// Size of the memory that is kept alive for the messages.
    shared: usize,
}

impl Packed {
    pub(crate) fn one(message: Message) -> Packed {
        let shared = message.size();
        Packed { bytes: message.bytes, count: 1, shared }
    }

    pub(crate) fn none() -> Packed {
        Packed { bytes: Bytes::new(), count: 0, shared: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The first message, in place.
    pub(crate) fn first(&self) -> Option<MessageRef<'_>> {
        (self.count > 0).then(|| MessageRef { bytes: &self.bytes[..u32_at(&self.bytes, 0) as usize] })
    }

    /// The payload of the first message. It shares the memory.
    pub(crate) fn shared_payload(&self) -> Bytes {
        self.first().map_or_else(Bytes::new, |first| self.bytes.slice_ref(first.payload()))
    }

    /// Drops the first message.
    pub(crate) fn advance(&mut self) {
        if self.count > 0 {
            let len = u32_at(&self.bytes, 0) as usize;
            bytes::Buf::advance(&mut self.bytes, len);
            self.count -= 1;
        }
    }

    /// Takes the first message out. It shares the memory.
    pub(crate) fn next_message(&mut self) -> Option<Message> {
        if self.count == 0 {
            return None;
        }
        let len = u32_at(&self.bytes, 0) as usize;
        self.count -= 1;
        Some(Message { bytes: self.bytes.split_to(len) })
    }

    /// Keeps as many messages at the front as `fits` allows, given their number and bytes, and returns the rest.
    pub(crate) fn split_off_front(&mut self, fits: impl Fn(usize, usize) -> bool) -> Option<Packed> {
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

    /// Copies the messages to memory of their own if they keep alive much more than their own size.
    pub(crate) fn compact(&mut self) {
        if self.shared > 2 * self.bytes.len() {
            self.bytes = counted(self.bytes.to_vec());
            self.shared = self.bytes.len();
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// The place in the order of all messages.
    pub(crate) seq: u64,
    /// Its offset in the batch, in bytes.
    pub(crate) offset: usize,
    pub(crate) message: MessageRef<'a>,
}

/// Iterator over the messages of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a> {
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
    use crate::message::Qos;

    fn draft<'a>(topic: &'a str, payload: &'a [u8]) -> Draft<'a> {
        Draft { qos: Qos::AtLeastOnce, ..Draft::new(topic, payload) }
    }

    #[test]
    fn topics_of_many_levels_are_counted_when_they_change() {
        let mut builder = BatchBuilder::default();
        for (topic, count) in
            [("a/b/c/d/e/f/g", 0), ("1/2/3/4/5/6/7/8", 1), ("1/2/3/4/5/6/7/8", 1), ("a", 1), ("///////", 2)]
        {
            builder.push(&draft(topic, b"x"));
            assert_eq!(builder.deep(), count, "{topic}");
        }
        builder.finish(0);
        assert_eq!(builder.deep(), 0);
        builder.push(&draft("///////", b"x"));
        assert_eq!(builder.deep(), 1);
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
    fn a_small_batch_keeps_no_large_buffer_alive_and_large_ones_follow_each_other_in_one() {
        let mut builder = BatchBuilder::default();
        let (large, small) = (vec![0; 50_000], vec![0; 500]);
        let mut finish = |payload: &[u8], seq| {
            builder.push(&draft("a", payload));
            builder.finish(seq)
        };
        let first = finish(&large, 0);
        let start = first.bytes.as_ptr() as usize;
        drop(first);
        let second = finish(&large, 1);
        assert_eq!(second.bytes.as_ptr() as usize, start, "nobody has it any more");
        drop(second);
        let tiny = finish(&small, 2);
        let place = tiny.bytes.as_ptr() as usize;
        assert!(!(start..start + large.len()).contains(&place));
        assert_eq!(finish(&large, 3).bytes.as_ptr() as usize, start, "it has stayed with the builder");
        // a buffer that is larger than the limit is not reused
        drop(finish(&vec![0; 4 * KEPT], 4));
        assert!(builder.bytes.capacity() == 0);
    }
}
