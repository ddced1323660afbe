//! The journal on disk, version 1.
//!
//! The directory `journal` below the data directory contains
//!
//! | name | what |
//! |---|---|
//! | `NNNNNNNN.segment` | a part of the log with a fixed size, written in full once and then reused |
//! | `snapshot` | the state at one position of the log, so that older records need not be read at the start |
//! | `snapshot.new` | a snapshot being written; ignored |
//! | `*.set-aside` | a file that was damaged; ignored, and kept for a person to examine |
//!
//! All integers are little endian. Segments and snapshots begin with the same header, twice: at 0 and at 4096, so that
//! one lost page leaves the other. Records follow from 8192 on.
//!
//! | offset | size | header |
//! |---|---|---|
//! | 0 | 8 | `PIGWJRNL` |
//! | 8 | 2 | version |
//! | 10 | 2 | 0 segment, 1 snapshot, 2 merged segment that is being written, 3 merged segment |
//! | 12 | 4 | boot: number of the boot that it was begun in, see [`RecordKind::Clock`] |
//! | 16 | 8 | generation: later segments have greater ones; of two headers the greater one counts |
//! | 24 | 8 | salt: random, so that nobody can publish bytes that pass for a record |
//! | 32 | 8 | size of the file |
//! | 40 | 8 | base: all records have places from this one on |
//! | 48 | 4 | CRC-32C of the above |
//! | 52 | 8 | of a merged segment: least generation that it stands for |
//! | 60 | 8 | of a merged segment: greatest place that it stands for |
//! | 68 | 4 | CRC-32C of the above |
//!
//! A record begins at a multiple of 8 bytes:
//!
//! | offset | size | record |
//! |---|---|---|
//! | 0 | 4 | CRC-32C of generation, salt and the rest of the record: bytes of an earlier use of the file do not pass |
//! | 4 | 4 | length, these 32 bytes included, padding to the next multiple of 8 not |
//! | 8 | 8 | place; strictly greater than that of the record before |
//! | 16 | 1 | [`RecordKind`] |
//! | 17 | 1 | flags: 1 retained, 2 received, 4 handed over, 8 was handed over |
//! | 18 | 2 | number of consumers |
//! | 20 | 4 | boot that the message's boot-clock time belongs to |
//! | 24 | 8 | reserved, 0 |
//! | 32 | 16 each | consumers: key, ordinal. With the flag "received" the first one is the session of the publisher and the packet id of its QoS 2 PUBLISH instead; with "handed over" it is the consumer that the message was taken from, and its ordinal there |
//! | | | body |
//!
//! | [`RecordKind`] | body |
//! |---|---|
//! | 1 message | as [`crate::message`] encodes it; empty for the mere note that a QoS 2 PUBLISH was received |
//! | 2 state | length of the name (2), name, value: a persistent session, as the broker encodes it, or a value of another room, whose name begins with NUL; no value: it is gone, and with it all whose names go on after two NULs |
//! | 3 consumer | name; its key is the only consumer |
//! | 4 consumer removed | none |
//! | 5 cursors | per consumer: key, base, read, dropped, lost, settled by outcome (9 × 8); after them 1 byte: 1 for an orderly end |
//! | 6 note | what (8), value (8): see [`crate::journal::Note`] |
//! | 7 clock | boot (4), 0 (4), hash of the kernel's boot id (8), Unix time minus boot clock in ms (8), 1 if synchronised (8) |
//! | 8 table | in snapshots, first and last: consumers, boots and segments, as `snapshot.rs` encodes them |
//!
//! # What a power cut can do
//! Records are written in order, and each run of records is synced before the next is begun. A power cut can therefore
//! damage only the last run, and leave any pattern of its sectors. The complete records at its beginning are kept, and the
//! rest is overwritten. The sector in which one run ends and the next begins is written again with the same bytes in front,
//! which is safe because devices write a sector in full or not at all. A segment is begun only when the one before it is
//! synced. After a failed sync the segment is closed, and the records that were not synced are written again, with the same
//! places, to another segment. Records at or beyond the base of the next segment therefore do not count.
//!
//! # Merged segments
//! Records that a consumer still needs are copied, with their places, from the oldest segments of a run to another file, so
//! that one old record does not occupy the space of many settled ones. Records that the snapshot contains are not copied,
//! and neither are the consumers of a record that have settled it. Gaps between the places of a merged segment are therefore
//! no damage. First the header is synced with kind 2, then the records, and then the header with kind 3. Only after that
//! are the source files used again. At start a file of kind 2 is free. A file of kind 3 replaces all segments from
//! its least generation to its own, even if some of their files still exist. It also replaces the records of the following
//! segment whose places are not above its greatest place.
//!
//! # Versions
//! A file with another version is refused with an explanation. Version 1 is the first.

/// The version that this program writes.
pub(crate) const VERSION: u16 = 1;
/// The offset of the second header.
pub const HEADER_COPY: u64 = 4096;
/// The offset of the first record.
pub const DATA: u64 = 8192;
/// The bytes of a header that every file has.
pub(crate) const HEADER_LEN: usize = 52;
/// The bytes of a header with the fields of merged segments.
pub(crate) const WHOLE_HEADER_LEN: usize = HEADER_LEN + 20;
/// The bytes of a record before its consumers.
pub(crate) const RECORD_HEAD: usize = 32;
/// The bytes of one consumer in a record.
pub(crate) const CONSUMER_LEN: usize = 16;
/// The suffix of segments' names.
pub const SEGMENT_SUFFIX: &str = ".segment";
/// The name of the snapshot.
pub const SNAPSHOT: &str = "snapshot";
/// The name of a snapshot that is being written.
pub(crate) const SNAPSHOT_NEW: &str = "snapshot.new";

/// No gateway reaches higher positions, generations or ordinals, and no file is larger, so a greater value is damage.
pub(super) const FAR: u64 = 1 << 56;
const HUGE: u64 = 1 << 40;

const MAGIC: [u8; 8] = *b"PIGWJRNL";

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A message, or a note that a message was received.
    Message = 1,
    /// A named value.
    State = 2,
    /// A new consumer.
    Consumer = 3,
    /// The removal of a consumer.
    ConsumerRemoved = 4,
    /// The cursors of consumers.
    Cursors = 5,
    /// A step of a QoS 2 exchange.
    Note = 6,
    /// The clock of a boot.
    Clock = 7,
    /// Consumers, boots and segments; only in snapshots.
    Table = 8,
}

impl RecordKind {
    /// The kind with this number.
    pub fn from_u8(number: u8) -> Option<RecordKind> {
        use RecordKind::*;
        [Message, State, Consumer, ConsumerRemoved, Cursors, Note, Clock, Table]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Flag: the message is the retained one of its topic, or deletes it.
pub(crate) const FLAG_RETAINED: u8 = 1;
/// Flag: the first consumer is a publishing session with a packet id.
pub(crate) const FLAG_RECEIVED: u8 = 2;
/// Flag: the first consumer is the one that had the message, which is settled there.
pub(crate) const FLAG_HANDED_OVER: u8 = 4;
/// Flag: a consumer had the message before, and the record does not say which one, because that has been followed already.
pub(crate) const FLAG_SECOND_HAND: u8 = 8;

/// Reads a little-endian integer; 0 after the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Reads a little-endian integer; 0 after the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Reads a little-endian integer; 0 after the end.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// The next multiple of 8.
pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Records in the order of appending.
    Segment,
    /// The state at one position.
    Snapshot,
    /// Records of other segments are being copied to it.
    Merging,
    /// Copied records; the file stands for other segments.
    Merged {
        /// The lowest generation for which it stands; the highest is its own.
        first: u64,
        /// The highest position for which it stands.
        upto: u64,
    },
}

impl FileKind {
    fn number(self) -> u16 {
        match self {
            FileKind::Segment => 0,
            FileKind::Snapshot => 1,
            FileKind::Merging => 2,
            FileKind::Merged { .. } => 3,
        }
    }
}

/// The header of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The kind of the file.
    pub kind: FileKind,
    /// The number of the boot in which the file was begun.
    pub boot: u32,
    /// The generation, by which segments are ordered.
    pub generation: u64,
    /// The random salt, which is part of every CRC.
    pub salt: u64,
    /// The size of the file in bytes.
    pub size: u64,
    /// The lowest position in the file.
    pub base: u64,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Nothing was ever written here.
    Blank,
    /// The bytes are not those that were written.
    Damaged,
    /// The header is complete, but of another version.
    Version(u16),
    /// The system does not let it be read, with this error of errno(3). What is in the file is unknown.
    Unreadable(i32),
}

impl Header {
    /// Encodes the header.
    pub fn encode(&self) -> [u8; WHOLE_HEADER_LEN] {
        let mut bytes = [0; WHOLE_HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.kind.number().to_le_bytes());
        bytes[12..16].copy_from_slice(&self.boot.to_le_bytes());
        for (at, value) in [(16, self.generation), (24, self.salt), (32, self.size), (40, self.base)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..48]);
        bytes[48..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        if let FileKind::Merged { first, upto } = self.kind {
            bytes[52..60].copy_from_slice(&first.to_le_bytes());
            bytes[60..68].copy_from_slice(&upto.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..68]);
            bytes[68..].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        if bytes.len() < HEADER_LEN {
            return Err(HeaderError::Blank);
        }
        if bytes[..HEADER_LEN].iter().all(|byte| *byte == 0) {
            return Err(HeaderError::Blank);
        }
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..48]) != u32_at(bytes, 48) {
            return Err(HeaderError::Damaged);
        }
        match u16_at(bytes, 8) {
            VERSION => {}
            other => return Err(HeaderError::Version(other)),
        }
        let kind = match u16_at(bytes, 10) {
            1 => FileKind::Snapshot,
            2 => FileKind::Merging,
            3 if bytes.len() < WHOLE_HEADER_LEN || crc32c::crc32c(&bytes[..68]) != u32_at(bytes, 68) => {
                return Err(HeaderError::Damaged);
            }
            3 => FileKind::Merged { first: u64_at(bytes, 52), upto: u64_at(bytes, 60) },
            0 => FileKind::Segment,
            _ => return Err(HeaderError::Damaged),
        };
        let header = Header {
            kind,
            boot: u32_at(bytes, 12),
            generation: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            size: u64_at(bytes, 32),
            base: u64_at(bytes, 40),
        };
        if header.is_sound() { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    fn is_sound(&self) -> bool {
        let (first, upto) = match self.kind {
            FileKind::Merged { first, upto } => (first, upto),
            _ => (0, 0),
        };
        // what is written after these files has higher numbers, which must be readable too
        self.size <= HUGE && [self.generation, self.base, first, upto].iter().all(|number| *number <= FAR - HUGE)
    }

    /// The lowest generation for which the file stands.
    pub(crate) fn first_generation(&self) -> u64 {
        match self.kind {
            FileKind::Merged { first, .. } => first,
            _ => self.generation,
        }
    }

    /// The start value for the CRC of every record in the file.
    pub fn seed(&self) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.generation.to_le_bytes()), &self.salt.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_whole_or_not_at_all() {
        let merged = FileKind::Merged { first: 5, upto: 1000 };
        let mut bytes = [0; WHOLE_HEADER_LEN];
        for (kind, len) in
            [(merged, WHOLE_HEADER_LEN), (FileKind::Merging, HEADER_LEN), (FileKind::Segment, HEADER_LEN)]
        {
            let header = Header { kind, boot: 3, generation: 7, salt: 9, size: 1 << 20, base: 100 };
            bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Ok(header));
            for bit in 0..len * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Header::decode(&flipped), Err(HeaderError::Damaged), "bit {bit}");
            }
        }
        assert_eq!(Header::decode(&[0; 100]), Err(HeaderError::Blank));
        let mut unknown = bytes;
        unknown[10] = 7;
        let crc = crc32c::crc32c(&unknown[..48]);
        unknown[48..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&unknown), Err(HeaderError::Damaged), "a kind that there is not");
        let mut newer = bytes;
        newer[8] = 2;
        let crc = crc32c::crc32c(&newer[..48]);
        newer[48..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(2)));
    }
}
