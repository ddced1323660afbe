//! The progress of a consumer, in memory and in records.

use super::super::Outcome;
use super::super::format::{FAR, u64_at};

/// The bytes of a cursor in a record.
pub(crate) const CURSOR_LEN: usize = 8 * (5 + Outcome::COUNT);

/// A consumer's cursor, as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// All messages up to this ordinal have ended.
    pub(crate) base: u64,
    /// The highest ordinal that was ever handed out.
    pub(crate) read: u64,
    /// The number of settled messages by outcome.
    pub(crate) settled: [u64; Outcome::COUNT],
    /// The number of messages that limits have dropped.
    pub(crate) dropped: u64,
    /// The number of messages that could not be read.
    pub(crate) lost: u64,
}

impl Cursor {
    /// Counts a settled message.
    pub(crate) fn count(&mut self, outcome: Outcome) {
        if let Some(slot) = outcome.slot() {
            self.settled[slot] += 1;
        }
    }
}

/// Appends a cursor in the format of records.
pub(crate) fn encode_cursor(key: u64, cursor: &Cursor, out: &mut Vec<u8>) {
    for value in [key, cursor.base, cursor.read, cursor.dropped, cursor.lost].iter().chain(&cursor.settled) {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// The cursors in a record's body, and whether they were written at an orderly end.
pub(crate) fn decode_cursors(body: &[u8]) -> (impl Iterator<Item = (u64, Cursor)> + '_, bool) {
    let cursors = body.chunks_exact(CURSOR_LEN).map(|bytes| {
        let value = |at: usize| u64_at(bytes, at * 8);
        let mut settled = [0; Outcome::COUNT];
        for (at, count) in settled.iter_mut().enumerate() {
            *count = value(5 + at);
        }
        let place = |at: usize| value(at).min(FAR);
        (value(0), Cursor { base: place(1), read: place(2), settled, dropped: value(3), lost: value(4) })
    });
    (cursors, body.len() % CURSOR_LEN == 1 && body.last() == Some(&1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_the_bytes_on_disk_that_it_always_had() {
        let settled = [15, 16, 17, 18, 19, 20, 21, 22, 23];
        let cursor = Cursor { base: 11, read: 12, settled, dropped: 13, lost: 14 };
        let mut bytes = Vec::new();
        encode_cursor(10, &cursor, &mut bytes);
        let expected: Vec<u8> = (10..24u64).flat_map(u64::to_le_bytes).collect();
        assert_eq!((&bytes, bytes.len()), (&expected, CURSOR_LEN));
        for (last, is_orderly) in [(0, false), (1, true)] {
            let body = [&bytes[..], &bytes[..], &[last]].concat();
            let (cursors, orderly) = decode_cursors(&body);
            assert_eq!((cursors.collect::<Vec<_>>(), orderly), (vec![(10, cursor); 2], is_orderly));
        }
    }
}
