//! Encodes records, and reads them from a file that may be damaged.

use super::format::{
    CONSUMER_LEN, DATA, FAR, FLAG_HANDED_OVER, FLAG_RECEIVED, FLAG_RETAINED, FLAG_SECOND_HAND, FileKind, Header,
    RECORD_HEAD, RecordKind, padded, u16_at, u32_at, u64_at,
};
use super::storage::Storage;

/// The offset of the position in a record.
const POSITION: usize = 8;
/// The number of bytes that are read at a time.
const BLOCK: usize = 128 * 1024;
/// While complete records are searched for between damaged bytes, something that only looks like a record may cost this many
/// bytes of reading for each byte that is passed over, plus once the size of the file. A large record after very many of
/// them may be missed; a short one is always tried.
const TRIES: u64 = 16;
/// The bytes of a record that costs little to try.
const SHORT: usize = 512;

/// The contents of a record without its CRC, which depends on its file.
#[derive(Clone, Copy, Debug)]
pub struct RecordDraft<'a> {
    /// The kind of the record.
    pub kind: RecordKind,
    /// The flags of the record, see `FLAG_RETAINED` and the others.
    pub flags: u8,
    /// The boot to which the time of its message belongs.
    pub boot: u32,
    /// The body, in parts.
    pub body: &'a [&'a [u8]],
}

/// The most bytes of the record of a message of this size for this number of consumers.
pub(super) fn longest(size: usize, consumers: usize) -> usize {
    // one more place for the session that has sent it
    RECORD_HEAD + (consumers + 1) * CONSUMER_LEN + size
}

/// Appends a record; `consumers` are keys and ordinals. Returns its padded length.
pub fn encode(
    out: &mut Vec<u8>,
    position: u64,
    draft: &RecordDraft<'_>,
    consumers: impl ExactSizeIterator<Item = (u64, u64)>,
) -> usize {
    let count = consumers.len();
    let len = RECORD_HEAD + count * CONSUMER_LEN + draft.body.iter().map(|part| part.len()).sum::<usize>();
    let begin = out.len();
    out.reserve(padded(len));
    head(out, position, draft, (len, count));
    for (key, ordinal) in consumers {
        out.extend_from_slice(&key.to_le_bytes());
        out.extend_from_slice(&ordinal.to_le_bytes());
    }
    for part in draft.body {
        out.extend_from_slice(part);
    }
    out.resize(begin + padded(len), 0);
    padded(len)
}

fn head(out: &mut Vec<u8>, position: u64, draft: &RecordDraft<'_>, (len, consumers): (usize, usize)) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&[draft.kind as u8, draft.flags]);
    out.extend_from_slice(&(consumers as u16).to_le_bytes());
    out.extend_from_slice(&draft.boot.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Appends the head of a record without consumers whose body, of this size, is written apart.
pub(super) fn encode_head(out: &mut Vec<u8>, position: u64, draft: &RecordDraft<'_>, size: usize) {
    head(out, position, draft, (RECORD_HEAD + size, 0));
}

/// The CRC of the beginning of a record, to which that of the rest is appended.
pub(super) fn crc(seed: u32, begin: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, &begin[4..])
}

/// Sets the CRC of every record in `bytes` for a file with this seed.
pub fn seal(bytes: &mut [u8], seed: u32) {
    let mut at = 0;
    while at + RECORD_HEAD <= bytes.len() {
        let len = u32_at(bytes, at + 4) as usize;
        let crc = crc(seed, &bytes[at..at + len]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        at += padded(len);
    }
}

/// The records in bytes from [`encode`].
pub(crate) fn iter(bytes: &[u8]) -> impl Iterator<Item = RecordRef<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = u32_at(bytes, at + 4) as usize;
        let record = RecordRef { bytes: bytes.get(at..at + len).filter(|bytes| bytes.len() >= RECORD_HEAD)? };
        at += padded(len);
        Some(record)
    })
}

/// A record as a view of bytes.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    bytes: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// The position of the record.
    pub fn position(&self) -> u64 {
        u64_at(self.bytes, 8)
    }

    /// The kind of the record; `None` if it is of a later version.
    pub(crate) fn kind(&self) -> Option<RecordKind> {
        RecordKind::from_u8(self.bytes[16])
    }

    /// Whether its message is a retained one.
    pub(crate) fn is_retained(&self) -> bool {
        self.bytes[17] & FLAG_RETAINED != 0
    }

    /// The key of the publishing session and the packet id, for a QoS 2 PUBLISH of a persistent session.
    pub(crate) fn received(&self) -> Option<(u64, u64)> {
        (self.bytes[17] & FLAG_RECEIVED != 0 && self.count() > 0).then(|| self.pair(0))
    }

    /// The key of the consumer from which the message was taken, and its ordinal there.
    pub(crate) fn handed_over(&self) -> Option<(u64, u64)> {
        (self.bytes[17] & FLAG_HANDED_OVER != 0 && self.count() > 0).then(|| self.pair(0))
    }

    /// Whether another consumer had the message before, also if it is not said any more which one.
    pub(crate) fn is_second_hand(&self) -> bool {
        self.bytes[17] & (FLAG_HANDED_OVER | FLAG_SECOND_HAND) != 0
    }

    pub(crate) fn boot(&self) -> u32 {
        u32_at(self.bytes, 20)
    }

    /// The length in the file, with padding.
    pub fn padded_len(&self) -> usize {
        padded(self.bytes.len())
    }

    fn count(&self) -> usize {
        usize::from(u16_at(self.bytes, 18))
    }

    fn pair(&self, at: usize) -> (u64, u64) {
        let at = RECORD_HEAD + at * CONSUMER_LEN;
        (u64_at(self.bytes, at), u64_at(self.bytes, at + 8))
    }

    /// The keys and ordinals of its consumers.
    pub(crate) fn consumers(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let first = usize::from(self.bytes[17] & (FLAG_RECEIVED | FLAG_HANDED_OVER) != 0);
        (first..self.count()).map(move |at| self.pair(at)).filter(|(_, ordinal)| *ordinal <= FAR)
    }

    /// The body, without padding.
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(RECORD_HEAD + self.count() * CONSUMER_LEN..).unwrap_or_default()
    }
}

/// Damage of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    /// The number of places between complete records that hold none.
    pub(crate) places: u32,
    pub(crate) bytes: u64,
}

/// Reads the complete records of a file, whatever lies between them.
pub struct Scanner<'a> {
    storage: &'a dyn Storage,
    name: &'a str,
    seed: u32,
    base: u64,
    /// The highest position that fits into the file.
    limit: u64,
    last: u64,
    end: u64,
    at: u64,
    buffer: Vec<u8>,
    /// The offset in the file at which the buffer begins.
    buffer_at: u64,
    len: usize,
    /// The bytes that may still be read for something that only looks like a record. A client could publish many such
    /// payloads, each as long as the rest of the file, and a reused file still contains them.
    patience: u64,
    /// What was passed over before the last returned record.
    pub(crate) damage: Damage,
    /// The number of blocks that the system could not read.
    pub(crate) unreadable: u32,
}

impl<'a> Scanner<'a> {
    /// Reads the file `name` with this header up to the offset `end`.
    pub fn new(storage: &'a dyn Storage, name: &'a str, header: &Header, end: u64) -> Scanner<'a> {
        Scanner {
            storage,
            name,
            seed: header.seed(),
            base: header.base,
            limit: match header.kind {
                FileKind::Merged { upto, .. } => upto,
                _ => header.base.saturating_add(header.size / RECORD_HEAD as u64),
            },
            last: 0,
            end,
            at: DATA,
            buffer: Vec::new(),
            buffer_at: 0,
            len: 0,
            patience: end.max(BLOCK as u64),
            damage: Damage::default(),
            unreadable: 0,
        }
    }

    /// Continues at this offset, where a record begins that comes after the position `last`.
    pub(crate) fn seek(&mut self, offset: u64, last: u64) {
        (self.at, self.last) = (offset, last);
    }

    /// The offset after the last returned record.
    pub(crate) fn offset(&self) -> u64 {
        self.at
    }

    /// Loads `len` bytes from the offset `at` on, as far as the file goes.
    fn load(&mut self, at: u64, len: usize) -> usize {
        let present = |this: &Self| (this.buffer_at + this.len as u64).saturating_sub(at) as usize;
        if at >= self.buffer_at && present(self) >= len {
            return present(self);
        }
        let wanted = (len.max(BLOCK) as u64).min(self.end.saturating_sub(at)) as usize;
        self.buffer_at = at;
        let mut done = 0;
        while done < wanted {
            // only as large as the file really is
            let end = wanted.min(done + BLOCK);
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            let part = &mut self.buffer[done..end];
            match self.storage.read_at(self.name, at + done as u64, part) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(_) => {
                    // the card cannot read this page, which is given up; what follows may be complete
                    let page = part.len().min(4096);
                    part[..page].fill(0);
                    self.unreadable += 1;
                    done += page;
                }
            }
        }
        self.len = done;
        done
    }

    fn head(&self, at: u64) -> Option<(usize, u64)> {
        let bytes = &self.buffer[(at - self.buffer_at) as usize..self.len];
        let (len, position) = (u32_at(bytes, 4) as usize, u64_at(bytes, POSITION));
        let fits = len >= RECORD_HEAD && len as u64 <= self.end - at;
        (fits && position >= self.base && position <= self.limit && position > self.last).then_some((len, position))
    }

    /// The next complete record and its offset.
    pub fn next_record(&mut self) -> Option<(u64, RecordRef<'_>)> {
        let begin = self.at;
        let mut at = begin;
        loop {
            if self.load(at, RECORD_HEAD) < RECORD_HEAD {
                return None;
            }
            if let Some((len, position)) = self.head(at)
                && (at == begin || len <= SHORT || self.patience >= len as u64)
                && self.load(at, len) >= len
            {
                let from = (at - self.buffer_at) as usize;
                let bytes = &self.buffer[from..from + len];
                if crc32c::crc32c_append(self.seed, &bytes[4..]) == u32_at(bytes, 0) {
                    if at > begin {
                        self.damage.places += 1;
                        self.damage.bytes += at - begin;
                    }
                    self.last = position;
                    // only the gateway can make a complete record, so damage further on gets the same allowance
                    self.patience = self.patience.max(self.end.max(BLOCK as u64));
                    self.at = at + padded(len) as u64;
                    return Some((at, RecordRef { bytes: &self.buffer[from..from + len] }));
                }
                // a record is worth a try where one should be
                if at > begin && len > SHORT {
                    self.patience = self.patience.saturating_sub(len as u64);
                }
            }
            let passed = (8 * self.blank_places(at)).max(8);
            self.patience += passed * TRIES;
            at += passed;
        }
    }

    /// The number of consecutive places, each eight bytes after the previous one, at which no record can begin, because the
    /// position there would be zero. Most of a partly filled file is like that, and a start passes over all of it.
    fn blank_places(&self, at: u64) -> u64 {
        // a file that gets shorter while it is read may end before that position
        let from = (at - self.buffer_at) as usize + POSITION;
        let (words, _) = self.buffer.get(from..self.len).unwrap_or_default().as_chunks::<8>();
        let is_zero = |words: &[[u8; 8]]| words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0;
        let (blocks, _) = words.as_chunks::<16>();
        let count = 16 * blocks.iter().take_while(|block| is_zero(*block)).count();
        (count + words[count..].iter().take_while(|word| is_zero(&[**word])).count()) as u64
    }

    /// Whether an incomplete record follows the last one.
    pub(crate) fn is_torn(&mut self) -> bool {
        let at = self.at;
        self.load(at, RECORD_HEAD) >= RECORD_HEAD
            && self.head(at).is_some_and(|(_, position)| position == self.last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::storage::memory::MemoryStorage;
    use super::*;

    fn file(storage: &MemoryStorage, header: &Header, count: u64) -> Vec<u64> {
        let mut bytes = Vec::new();
        let mut offsets = Vec::new();
        for number in 0..count {
            offsets.push(DATA + bytes.len() as u64);
            let body = [number as u8; 37];
            let draft = RecordDraft { kind: RecordKind::Message, flags: 0, boot: 0, body: &[&body] };
            encode(&mut bytes, header.base + number, &draft, [(7, number + 1)].into_iter());
        }
        seal(&mut bytes, header.seed());
        storage.create("f", header.size).unwrap();
        storage.write_at("f", DATA, &bytes).unwrap();
        offsets
    }

    fn places(storage: &MemoryStorage, header: &Header) -> (Vec<u64>, Damage) {
        let mut scanner = Scanner::new(storage, "f", header, header.size);
        let mut found = Vec::new();
        while let Some((_, record)) = scanner.next_record() {
            assert_eq!(record.consumers().next(), Some((7, record.position() - header.base + 1)));
            found.push(record.position());
        }
        (found, scanner.damage)
    }

    #[test]
    fn a_damaged_record_costs_only_itself() {
        let header = Header { kind: FileKind::Segment, boot: 0, generation: 5, salt: 1, size: 64 << 10, base: 50 };
        for bit in 0..88 * 8 {
            let storage = MemoryStorage::default();
            let offsets = file(&storage, &header, 5);
            storage.flip("f", (offsets[2] as usize) * 8 + bit);
            let (found, damage) = places(&storage, &header);
            let expected: &[u64] = if bit / 8 < 85 { &[50, 51, 53, 54] } else { &[50, 51, 52, 53, 54] };
            assert_eq!(found, expected, "bit {bit}");
            assert_eq!(damage.places, u32::from(bit / 8 < 85));
        }
    }

    /// Counts the bytes that are read.
    #[derive(Debug)]
    struct Counted(MemoryStorage, std::sync::atomic::AtomicU64);

    impl Storage for Counted {
        fn place(&self) -> String {
            self.0.place()
        }
        fn list(&self) -> std::io::Result<Vec<(String, u64)>> {
            self.0.list()
        }
        fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.read_at(name, offset, buffer)?;
            self.1.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
            Ok(count)
        }
        fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            self.0.write_at(name, offset, bytes)
        }
        fn create(&self, name: &str, len: u64) -> std::io::Result<()> {
            self.0.create(name, len)
        }
        fn sync(&self, name: &str) -> std::io::Result<()> {
            self.0.sync(name)
        }
        fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
            self.0.rename(from, to)
        }
        fn remove(&self, name: &str) -> std::io::Result<()> {
            self.0.remove(name)
        }
    }

    #[test]
    fn what_looks_like_many_long_records_costs_a_few_readings_of_the_file() {
        let size: u64 = 1 << 20;
        let header = Header { kind: FileKind::Segment, boot: 0, generation: 5, salt: 1, size, base: 50 };
        let files = MemoryStorage::default();
        let begin = *file(&files, &header, 5).last().unwrap() + 96;
        // payloads of an earlier use of the file: at every place the header of a record that would reach to the end of the
        // file
        for at in (begin..size - 64).step_by(16) {
            let len = (size - at) as u32;
            let head = [&[0; 4][..], &len.to_le_bytes(), &(60 + at / 1000).to_le_bytes()].concat();
            files.write_at("f", at, &head).unwrap();
        }
        // and a complete record after all that
        let mut last = Vec::new();
        let draft = RecordDraft { kind: RecordKind::Message, flags: 0, boot: 0, body: &[b"x"] };
        encode(&mut last, 9000, &draft, [(7, 8951)].into_iter());
        seal(&mut last, header.seed());
        files.write_at("f", size - 64, &last).unwrap();
        let storage = Counted(files, Default::default());
        let mut scanner = Scanner::new(&storage, "f", &header, size);
        let mut found = Vec::new();
        while let Some((_, record)) = scanner.next_record() {
            found.push(record.position());
        }
        assert_eq!(found, [50, 51, 52, 53, 54, 9000]);
        let read = storage.1.into_inner();
        assert!(read < 24 * size, "{read} bytes were read of {size}");
    }

    #[test]
    fn behind_what_is_blank_a_record_is_found() {
        let header = Header { kind: FileKind::Segment, boot: 0, generation: 5, salt: 1, size: 512 << 10, base: 50 };
        let block = BLOCK as u64;
        for gap in (8..300).step_by(8).chain([block - 96, block - 8, block, block + 8, 3 * block]) {
            let storage = MemoryStorage::default();
            let begin = *file(&storage, &header, 5).last().unwrap() + 88;
            let mut record = Vec::new();
            let draft = RecordDraft { kind: RecordKind::Message, flags: 0, boot: 0, body: &[b"x"] };
            encode(&mut record, 60, &draft, [(7, 11)].into_iter());
            seal(&mut record, header.seed());
            storage.write_at("f", begin + gap, &record).unwrap();
            let (found, damage) = places(&storage, &header);
            assert_eq!(found, [50, 51, 52, 53, 54, 60], "{gap}");
            assert_eq!((damage.places, damage.bytes), (1, gap), "{gap}");
        }
    }

    #[test]
    fn a_damaged_length_does_not_cost_the_large_record_behind_it() {
        let size: u64 = 2 << 20;
        let header = Header { kind: FileKind::Segment, boot: 0, generation: 5, salt: 1, size, base: 50 };
        for bit in 0..21 {
            let storage = MemoryStorage::default();
            let mut bytes = Vec::new();
            let mut at = Vec::new();
            for (number, len) in [(0, 100), (1, 700_000), (2, 100), (3, 1_300_000)] {
                at.push(DATA + bytes.len() as u64);
                let draft =
                    RecordDraft { kind: RecordKind::Message, flags: 0, boot: 0, body: &[&vec![number as u8; len]] };
                encode(&mut bytes, 50 + number, &draft, [(7, number + 1)].into_iter());
            }
            seal(&mut bytes, header.seed());
            storage.create("f", size).unwrap();
            storage.write_at("f", DATA, &bytes).unwrap();
            // both of the short records
            for damaged in [0, 2] {
                storage.flip("f", (at[damaged] as usize + 4) * 8 + bit);
            }
            assert_eq!(places(&storage, &header).0, [51, 53], "bit {bit}");
        }
    }

    #[test]
    fn bytes_of_an_earlier_use_are_not_records() {
        let storage = MemoryStorage::default();
        let old = Header { kind: FileKind::Segment, boot: 0, generation: 5, salt: 1, size: 64 << 10, base: 50 };
        file(&storage, &old, 5);
        assert_eq!(places(&storage, &Header { generation: 6, ..old }).0, [0; 0]);
        assert_eq!(places(&storage, &Header { salt: 2, ..old }).0, [0; 0]);
        assert_eq!(places(&storage, &old).0.len(), 5);
    }
}
