//! Records: encoding, and reading them back from a file that may be damaged.

use super::format::{
    CONSUMER_LEN, DATA, FLAG_HANDED_OVER, FLAG_RECEIVED, FLAG_RETAINED, FileKind, Header, Kind, RECORD_HEAD, padded,
    u16_at, u32_at, u64_at,
};
use super::storage::Storage;

/// Bytes read at a time.
const BLOCK: usize = 128 * 1024;

/// What a record is made of, before its CRC, which depends on the file it goes to.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// What it is.
    pub kind: Kind,
    /// Flags.
    pub flags: u8,
    /// Boot.
    pub boot: u32,
    /// Body, in parts.
    pub body: &'a [&'a [u8]],
}

/// Appends a record; `consumers` are key and ordinal. Returns its padded length.
pub fn encode(
    out: &mut Vec<u8>,
    position: u64,
    draft: &Draft<'_>,
    consumers: impl ExactSizeIterator<Item = (u64, u64)>,
) -> usize {
    let count = consumers.len();
    let len = RECORD_HEAD + count * CONSUMER_LEN + draft.body.iter().map(|part| part.len()).sum::<usize>();
    let begin = out.len();
    out.reserve(padded(len));
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&[draft.kind as u8, draft.flags]);
    out.extend_from_slice(&(count as u16).to_le_bytes());
    out.extend_from_slice(&draft.boot.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
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

/// Gives every record in `bytes` the CRC it has in a file with this seed.
pub fn seal(bytes: &mut [u8], seed: u32) {
    let mut at = 0;
    while at + RECORD_HEAD <= bytes.len() {
        let len = u32_at(bytes, at + 4) as usize;
        let crc = crc32c::crc32c_append(seed, &bytes[at + 4..at + len]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        at += padded(len);
    }
}

/// The records in bytes that [`encode`] made.
pub fn iter(bytes: &[u8]) -> impl Iterator<Item = RecordRef<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let len = u32_at(bytes, at + 4) as usize;
        let record = RecordRef { bytes: bytes.get(at..at + len).filter(|bytes| bytes.len() >= RECORD_HEAD)? };
        at += padded(len);
        Some(record)
    })
}

/// A record in place.
#[derive(Clone, Copy, Debug)]
pub struct RecordRef<'a> {
    bytes: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// Its place.
    pub fn position(&self) -> u64 {
        u64_at(self.bytes, 8)
    }

    /// What it is; `None`: of a later version.
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_u8(self.bytes[16])
    }

    /// Whether its message is a retained one.
    pub fn is_retained(&self) -> bool {
        self.bytes[17] & FLAG_RETAINED != 0
    }

    /// Key of the publishing session and packet id, for a QoS 2 PUBLISH of a persistent session.
    pub fn received(&self) -> Option<(u64, u64)> {
        (self.bytes[17] & FLAG_RECEIVED != 0 && self.count() > 0).then(|| self.pair(0))
    }

    /// Key of the consumer that the message was taken from, and its ordinal there.
    pub fn handed_over(&self) -> Option<(u64, u64)> {
        (self.bytes[17] & FLAG_HANDED_OVER != 0 && self.count() > 0).then(|| self.pair(0))
    }

    /// Boot.
    pub fn boot(&self) -> u32 {
        u32_at(self.bytes, 20)
    }

    /// Length in the file.
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

    /// Keys and ordinals of its consumers.
    pub fn consumers(self) -> impl Iterator<Item = (u64, u64)> + 'a {
        let first = usize::from(self.bytes[17] & (FLAG_RECEIVED | FLAG_HANDED_OVER) != 0);
        (first..self.count()).map(move |at| self.pair(at))
    }

    /// Body.
    pub fn body(&self) -> &'a [u8] {
        self.bytes.get(RECORD_HEAD + self.count() * CONSUMER_LEN..).unwrap_or_default()
    }
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Places between whole records that hold none.
    pub places: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads the whole records of a file, whatever lies between them.
pub struct Scanner<'a> {
    storage: &'a dyn Storage,
    name: &'a str,
    seed: u32,
    base: u64,
    /// Greatest place that fits into the file.
    limit: u64,
    last: u64,
    end: u64,
    at: u64,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    buffer_at: u64,
    len: usize,
    /// What was passed over before the last record returned.
    pub damage: Damage,
    /// Blocks that the system could not read.
    pub unreadable: u32,
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
            damage: Damage::default(),
            unreadable: 0,
        }
    }

    /// Goes on at this offset, where a record begins that comes after the place `last`.
    pub fn seek(&mut self, offset: u64, last: u64) {
        (self.at, self.last) = (offset, last);
    }

    /// Offset behind the last record returned.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// Makes `len` bytes from the offset `at` on present, as far as the file goes.
    fn load(&mut self, at: u64, len: usize) -> usize {
        let present = |this: &Self| (this.buffer_at + this.len as u64).saturating_sub(at) as usize;
        if at >= self.buffer_at && present(self) >= len {
            return present(self);
        }
        let wanted = (len.max(BLOCK) as u64).min(self.end.saturating_sub(at)) as usize;
        self.buffer.resize(wanted, 0);
        (self.buffer_at, self.len) = (at, wanted);
        let mut done = 0;
        while done < wanted {
            let part = &mut self.buffer[done..wanted.min(done + BLOCK)];
            match self.storage.read_at(self.name, at + done as u64, part) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(_) => {
                    // the card cannot read this: one page is given up, what follows may be whole
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
        let (len, position) = (u32_at(bytes, 4) as usize, u64_at(bytes, 8));
        let fits = len >= RECORD_HEAD && len as u64 <= self.end - at;
        (fits && position >= self.base && position <= self.limit && position > self.last).then_some((len, position))
    }

    /// The next whole record and its offset.
    pub fn next_record(&mut self) -> Option<(u64, RecordRef<'_>)> {
        let begin = self.at;
        let mut at = begin;
        loop {
            if self.load(at, RECORD_HEAD) < RECORD_HEAD {
                return None;
            }
            if let Some((len, position)) = self.head(at)
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
                    self.at = at + padded(len) as u64;
                    return Some((at, RecordRef { bytes: &self.buffer[from..from + len] }));
                }
            }
            at += 8;
        }
    }

    /// After the last record: whether a record was begun here and cut short.
    pub fn is_torn(&mut self) -> bool {
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
            let draft = Draft { kind: Kind::Message, flags: 0, boot: 0, body: &[&body] };
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
