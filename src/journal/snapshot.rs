//! The state at one position of the log, so that a start reads little and old segments can be reused.
//!
//! A snapshot is written to a file of its own, which then replaces the previous one. It contains every retained message,
//! every persistent session and, first and last, the table of consumers, boots and segments. The table is there twice
//! because everything else depends on it. Changes during the write may be in it in part; applying the log from its position
//! on leads to the same state.

use std::collections::{BTreeMap, HashMap};
use std::io;

use bytes::Bytes;

use super::boots::{BOOT_LEN, Boot, decode_boot, encode_boot};
use super::consumers::{CURSOR_LEN, Cursor, decode_cursors, encode_cursor};
use super::format::{
    DATA, FAR, FLAG_RETAINED, FileKind, HEADER_COPY, Header, RECORD_HEAD, RecordKind, SNAPSHOT, SNAPSHOT_NEW, padded,
    u16_at, u64_at,
};
use super::log::{SegmentContents, SegmentShare};
use super::parts::PARTS;
use super::record::{self, RecordDraft};
use super::state::JournalState;
use super::storage::Storage;
use crate::message::Message;
use crate::mqtt::packet_ids::PacketIds;

/// The number of bytes that are written at a time.
const BLOCK: usize = 256 * 1024;

/// A consumer in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableConsumer {
    pub(crate) name: Box<str>,
    pub(crate) key: u64,
    /// The ordinal of the newest message on disk.
    pub(crate) committed: u64,
    pub(crate) cursor: Cursor,
    /// The packet ids that were received and not released.
    pub(crate) received: PacketIds,
    /// The ordinals that the session has received and not completed.
    pub(crate) released: Vec<u64>,
}

/// A segment in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableSegment {
    pub(crate) last: u64,
    /// The end of its records.
    pub(crate) end: u64,
    /// The number of records.
    pub(crate) records: u64,
    /// What it holds, and for whom.
    pub(crate) contents: SegmentContents,
    /// The salt of the file; 0 in snapshots of earlier versions, which did not record it.
    pub(crate) salt: u64,
}

/// The table of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotTable {
    /// The highest position that it covers.
    pub(crate) covered: u64,
    pub(crate) consumers: Vec<TableConsumer>,
    /// The boots by number.
    pub(crate) boots: BTreeMap<u32, Boot>,
    /// The segments by generation; the last one was being written.
    pub(crate) segments: BTreeMap<u64, TableSegment>,
}

/// The assumed size of the largest message of a segment, if an earlier version did not record it.
const USUAL_LARGEST: u64 = 4096;

fn put(out: &mut Vec<u8>, values: &[u64]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// The bytes of `count` values.
fn many(each: usize, count: u64) -> Option<usize> {
    usize::try_from(count).ok()?.checked_mul(each)
}

impl SnapshotTable {
    /// The table for the present state.
    pub fn of(state: &JournalState) -> SnapshotTable {
        let consumers = state.queues.iter().map(|(_, queue)| TableConsumer {
            name: queue.name().into(),
            key: queue.key(),
            committed: queue.committed(),
            cursor: *queue.cursor(),
            received: queue.received().clone(),
            released: queue.released().iter().copied().collect(),
        });
        let segments = state.log.segments().iter().map(|(generation, segment)| {
            let (last, end, records, salt) = (segment.last, segment.end, segment.records, segment.header.salt);
            (*generation, TableSegment { last, end, records, contents: segment.contents().clone(), salt })
        });
        SnapshotTable {
            covered: state.log.committed(),
            consumers: consumers.collect(),
            boots: state.boots.known().clone(),
            segments: segments.collect(),
        }
    }

    /// Encodes the table.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.for_each_part(&mut |part| out.extend_from_slice(part));
        out
    }

    /// Encodes the table in small parts, because with many segments and sessions it is large.
    fn for_each_part(&self, take: &mut impl FnMut(&[u8])) {
        let mut part = Vec::new();
        let mut end = |part: &mut Vec<u8>| {
            take(part);
            part.clear();
        };
        put(&mut part, &[self.covered, self.consumers.len() as u64]);
        for consumer in &self.consumers {
            put(&mut part, &[consumer.name.len() as u64, consumer.committed]);
            part.extend_from_slice(consumer.name.as_bytes());
            encode_cursor(consumer.key, &consumer.cursor, &mut part);
            put(&mut part, &[consumer.received.len() as u64, consumer.released.len() as u64]);
            for packet_id in consumer.received.iter() {
                part.extend_from_slice(&packet_id.to_le_bytes());
            }
            put(&mut part, &consumer.released);
            end(&mut part);
        }
        put(&mut part, &[self.boots.len() as u64]);
        for (number, boot) in &self.boots {
            let start = part.len();
            encode_boot(*number, boot, &mut part);
            part.truncate(start + BOOT_LEN);
            end(&mut part);
        }
        put(&mut part, &[self.segments.len() as u64]);
        for (generation, segment) in &self.segments {
            let shares = &segment.contents.shares;
            put(&mut part, &[*generation, segment.last, segment.end, segment.records, shares.len() as u64]);
            for (key, share) in shares {
                put(&mut part, &[*key, share.first, share.last, u64::from(share.count), share.bytes]);
            }
            end(&mut part);
        }
        for boot in self.boots.values() {
            put(&mut part, &[boot.seen_ms]);
        }
        for segment in self.segments.values() {
            put(&mut part, &[segment.salt]);
            put(&mut part, &segment.contents.in_part);
        }
        for segment in self.segments.values() {
            put(&mut part, &[segment.contents.largest]);
        }
        end(&mut part);
    }

    /// Decodes a table; `None` if the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<SnapshotTable> {
        let mut from = Bytes::copy_from_slice(bytes);
        let mut take = |len: usize| (from.len() >= len).then(|| from.split_to(len));
        let mut table = SnapshotTable::default();
        let head = take(16)?;
        table.covered = u64_at(&head, 0);
        for _ in 0..u64_at(&head, 8) {
            let head = take(16)?;
            let name = take(u64_at(&head, 0) as usize)?;
            let cursor = take(CURSOR_LEN)?;
            let (key, cursor) = decode_cursors(&cursor).0.next()?;
            let counts = take(16)?;
            let received = take(many(2, u64_at(&counts, 0))?)?;
            let released = take(many(8, u64_at(&counts, 8))?)?;
            table.consumers.push(TableConsumer {
                name: std::str::from_utf8(&name).ok()?.into(),
                key,
                committed: u64_at(&head, 8),
                cursor,
                received: received.chunks_exact(2).map(|id| u16_at(id, 0)).collect(),
                released: released.chunks_exact(8).map(|ordinal| u64_at(ordinal, 0)).collect(),
            });
        }
        for _ in 0..u64_at(&take(8)?, 0) {
            let (number, boot) = decode_boot(&take(BOOT_LEN)?)?;
            table.boots.insert(number, boot);
        }
        for _ in 0..u64_at(&take(8)?, 0) {
            let head = take(40)?;
            let value = |at: usize| u64_at(&head, at * 8);
            let (last, end, records) = (value(1), value(2), value(3));
            let mut segment = TableSegment { last, end, records, ..TableSegment::default() };
            for _ in 0..value(4) {
                let bytes = take(40)?;
                let part = |at: usize| u64_at(&bytes, at * 8);
                let share = SegmentShare { first: part(1), last: part(2), count: part(3) as u32, bytes: part(4) };
                segment.contents.shares.insert(part(0), share);
            }
            table.segments.insert(value(0), segment);
        }
        for boot in table.boots.values_mut() {
            boot.seen_ms = take(8).map_or(0, |bytes| u64_at(&bytes, 0));
        }
        for segment in table.segments.values_mut() {
            // tables of earlier versions end before this
            let most = segment.end.saturating_sub(DATA);
            (segment.salt, segment.contents.in_part) = take(8 * (1 + PARTS)).map_or((0, [most; PARTS]), |bytes| {
                (u64_at(&bytes, 0), std::array::from_fn(|part| u64_at(&bytes, 8 * (1 + part))))
            });
        }
        for segment in table.segments.values_mut() {
            // if it was not recorded, assume the usual size
            segment.contents.largest = take(8).map_or(USUAL_LARGEST, |bytes| u64_at(&bytes, 0));
        }
        Some(table).filter(SnapshotTable::is_sound)
    }

    /// Whether the values are credible, because the gateway would continue from them.
    fn is_sound(&self) -> bool {
        let consumers = self.consumers.iter().flat_map(|consumer| {
            let ordinals = [consumer.committed, consumer.cursor.base, consumer.cursor.read];
            ordinals.into_iter().chain(consumer.released.iter().copied())
        });
        let segments = self.segments.iter().flat_map(|(generation, segment)| {
            let shares = segment.contents.shares.values().map(|share| share.last.max(share.first));
            [*generation, segment.last, segment.end, segment.records].into_iter().chain(shares)
        });
        consumers.chain(segments).chain([self.covered]).all(|number| number <= FAR)
    }
}

/// The contents of a snapshot, taken under the lock.
#[derive(Debug)]
pub(crate) struct SnapshotContents {
    table: SnapshotTable,
    boot: u32,
    retained: Vec<Message>,
    sessions: Vec<(Box<str>, Bytes)>,
}

impl SnapshotContents {
    /// The contents for the present state; only small data is copied.
    pub(crate) fn of(state: &JournalState) -> SnapshotContents {
        SnapshotContents {
            table: SnapshotTable::of(state),
            boot: state.boots.number(),
            retained: state.kept.retained().cloned().collect(),
            sessions: state.kept.values().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }

    /// The highest position that it covers.
    pub(crate) fn covered(&self) -> u64 {
        self.table.covered
    }

    /// The progress of each consumer, by its key.
    pub(crate) fn bases(&self) -> HashMap<u64, u64> {
        self.table.consumers.iter().map(|consumer| (consumer.key, consumer.cursor.base)).collect()
    }

    /// Writes the file and makes it the snapshot. Returns the number of bytes written.
    pub(crate) fn write(&self, storage: &dyn Storage, salt: u64) -> io::Result<u64> {
        let written = self.write_new(storage, salt);
        if written.is_err() {
            // if there is no space, an incomplete snapshot must not use the rest
            let _ = storage.remove(SNAPSHOT_NEW);
        }
        written
    }

    fn write_new(&self, storage: &dyn Storage, salt: u64) -> io::Result<u64> {
        let mut header = Header {
            kind: FileKind::Snapshot,
            boot: self.boot,
            generation: self.table.covered,
            salt,
            size: 0,
            base: 1,
        };
        let mut file = Output { storage, seed: header.seed(), offset: DATA, position: 0, buffer: Vec::new() };
        // one that was not completed before
        let _ = storage.remove(SNAPSHOT_NEW);
        storage.create(SNAPSHOT_NEW, 0)?;
        file.put_table(self.boot, &self.table)?;
        for message in &self.retained {
            file.put(RecordKind::Message, FLAG_RETAINED, self.boot, &[message.view().as_bytes()])?;
        }
        for (name, value) in &self.sessions {
            let len = (name.len() as u16).to_le_bytes();
            file.put(RecordKind::State, 0, self.boot, &[&len, name.as_bytes(), value])?;
        }
        file.put_table(self.boot, &self.table)?;
        header.size = file.offset;
        storage.write_at(SNAPSHOT_NEW, 0, &header.encode())?;
        storage.write_at(SNAPSHOT_NEW, HEADER_COPY, &header.encode())?;
        storage.sync(SNAPSHOT_NEW)?;
        storage.rename(SNAPSHOT_NEW, SNAPSHOT)?;
        Ok(header.size)
    }
}

struct Output<'a> {
    storage: &'a dyn Storage,
    seed: u32,
    offset: u64,
    position: u64,
    buffer: Vec<u8>,
}

impl Output<'_> {
    fn put(&mut self, kind: RecordKind, flags: u8, boot: u32, body: &[&[u8]]) -> io::Result<()> {
        self.position += 1;
        record::encode(&mut self.buffer, self.position, &RecordDraft { kind, flags, boot, body }, std::iter::empty());
        if self.buffer.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Writes the table without having all of it in memory. Its CRC stands before it, so it is encoded twice.
    fn put_table(&mut self, boot: u32, table: &SnapshotTable) -> io::Result<()> {
        self.flush()?;
        self.position += 1;
        let mut size = 0;
        table.for_each_part(&mut |part| size += part.len());
        let draft = RecordDraft { kind: RecordKind::Table, flags: 0, boot, body: &[] };
        record::encode_head(&mut self.buffer, self.position, &draft, size);
        let mut crc = record::crc(self.seed, &self.buffer);
        table.for_each_part(&mut |part| crc = crc32c::crc32c_append(crc, part));
        self.buffer[..4].copy_from_slice(&crc.to_le_bytes());
        let mut written = Ok(());
        table.for_each_part(&mut |part| {
            self.buffer.extend_from_slice(part);
            if self.buffer.len() >= BLOCK && written.is_ok() {
                written = self.write();
            }
        });
        written?;
        let len = RECORD_HEAD + size;
        self.buffer.resize(self.buffer.len() + padded(len) - len, 0);
        self.write()
    }

    fn flush(&mut self) -> io::Result<()> {
        debug_assert_eq!(self.buffer.len(), padded(self.buffer.len()));
        record::seal(&mut self.buffer, self.seed);
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.storage.write_at(SNAPSHOT_NEW, self.offset, &self.buffer)?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let mut table = SnapshotTable { covered: 77, ..SnapshotTable::default() };
        table.consumers.push(TableConsumer {
            name: "session/ü".into(),
            key: 5,
            committed: 9,
            cursor: Cursor { base: 3, read: 4, settled: [1, 2, 3, 4, 5, 6, 7, 8, 9], dropped: 5, lost: 6 },
            received: [1, 65535].into_iter().collect(),
            released: vec![8],
        });
        table.boots.insert(2, Boot { id: 1, offset_ms: -5, is_synchronised: true, seen_ms: 7 });
        let share = SegmentShare { first: 1, last: 2, count: 2, bytes: 99 };
        let contents = SegmentContents { shares: HashMap::from([(5, share)]), in_part: [1, 2, 3], largest: 8 };
        table.segments.insert(4, TableSegment { last: 1, end: 2, records: 3, contents, salt: 9 });
        let bytes = table.encode();
        assert_eq!(SnapshotTable::decode(&bytes), Some(table));
        // without the later fields it is what earlier versions wrote
        let (salts, seen, largest) = (8 * (1 + PARTS), 8, 8);
        let earlier = SnapshotTable::decode(&bytes[..bytes.len() - largest]).unwrap();
        assert_eq!((earlier.segments[&4].contents.largest, earlier.segments[&4].salt), (USUAL_LARGEST, 9));
        let bytes = &bytes[..bytes.len() - largest];
        for len in 0..bytes.len() - salts - seen {
            assert_eq!(SnapshotTable::decode(&bytes[..len]), None, "{len}");
        }
        let earlier = SnapshotTable::decode(&bytes[..bytes.len() - salts - seen]).unwrap();
        assert_eq!(earlier.boots[&2], Boot { id: 1, offset_ms: -5, is_synchronised: true, seen_ms: 0 });
        let earlier = SnapshotTable::decode(&bytes[..bytes.len() - salts]).unwrap();
        assert_eq!((earlier.boots[&2].seen_ms, earlier.segments[&4].salt), (7, 0));
    }

    #[test]
    fn a_large_table_is_written_in_pieces_and_read_again() {
        let mut table = SnapshotTable { covered: 77, ..SnapshotTable::default() };
        let share = SegmentShare { first: 1, last: 2, count: 2, bytes: 99 };
        for generation in 0..100 {
            let shares = (0..1001).map(|key| (key, share)).collect();
            let contents = SegmentContents { shares, in_part: [1, 2, 3], largest: 8 };
            table.segments.insert(generation, TableSegment { last: 1, end: 2, records: 3, contents, salt: 9 });
        }
        let storage = MemoryStorage::default();
        storage.create(SNAPSHOT_NEW, 0).unwrap();
        let mut sizes = Vec::new();
        for name in ["session/a", "session/of a longer name"] {
            table.consumers.push(TableConsumer { name: name.into(), ..TableConsumer::default() });
            let (seed, offset) = (7, DATA);
            let mut file = Output { storage: &storage, seed, offset, position: 0, buffer: Vec::new() };
            file.put(RecordKind::State, 0, 1, &[b"before"]).unwrap();
            file.put_table(1, &table).unwrap();
            assert!(file.buffer.capacity() < 2 * BLOCK, "{} bytes", file.buffer.capacity());
            // the same bytes as if it had been written at once
            let mut at_once = Vec::new();
            let body = table.encode();
            for (position, kind, body) in [(1, RecordKind::State, &b"before"[..]), (2, RecordKind::Table, &body)] {
                let draft = RecordDraft { kind, flags: 0, boot: 1, body: &[body] };
                record::encode(&mut at_once, position, &draft, std::iter::empty());
            }
            record::seal(&mut at_once, seed);
            let mut found = vec![0; at_once.len()];
            storage.read_at(SNAPSHOT_NEW, DATA, &mut found).unwrap();
            assert!(found == at_once && file.offset == DATA + at_once.len() as u64);
            sizes.push(at_once.len());
        }
        assert!(sizes.iter().all(|size| *size > 10 * BLOCK), "{sizes:?}");
    }
}
