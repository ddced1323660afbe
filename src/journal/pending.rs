//! Records that were appended and are not on disk yet.

use std::time::{Duration, Instant};

use super::format::RecordKind;
use super::record::{self, RecordDraft};
use super::{LAZY, Position};

/// A disk that has not responded for this long counts as failing.
const STANDS_STILL: Duration = Duration::from_secs(20);

/// The records that wait to be written, and those that are being written.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The position of the newest record.
    newest: u64,
    /// The records, without their CRCs.
    bytes: Vec<u8>,
    /// When they must be written; `None` if they can wait for a record that has a time.
    due: Option<Instant>,
    /// The bytes that are being written.
    writing: usize,
    /// When the writing thread last made progress, while it writes.
    writing_since: Option<Instant>,
}

impl Pending {
    /// Lets the next record have a higher position than this one.
    pub(crate) fn begin_after(&mut self, place: u64) {
        self.newest = place;
    }

    pub(crate) fn newest(&self) -> Position {
        Position(self.newest)
    }

    /// Adds a record, and returns its position.
    pub(crate) fn push(
        &mut self,
        (kind, flags, boot): (RecordKind, u8, u32),
        consumers: impl ExactSizeIterator<Item = (u64, u64)>,
        body: &[&[u8]],
    ) -> Position {
        self.newest += 1;
        record::encode(&mut self.bytes, self.newest, &RecordDraft { kind, flags, boot, body }, consumers);
        Position(self.newest)
    }

    /// The number of waiting bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes that wait or are being written.
    pub(crate) fn unsafe_bytes(&self) -> usize {
        self.bytes.len() + self.writing
    }

    pub(crate) fn due_now(&mut self) {
        self.due = Some(Instant::now());
    }

    pub(crate) fn due_later(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + LAZY);
    }

    /// When the waiting records must be written, if that is set.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Gives the waiting records to the writing thread.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>, now: Instant) {
        std::mem::swap(&mut self.bytes, bytes);
        (self.writing, self.writing_since, self.due) = (bytes.len(), Some(now), None);
    }

    /// Records that the writing thread has made progress.
    pub(crate) fn progressed(&mut self) {
        self.writing_since = self.writing_since.map(|_| Instant::now());
    }

    /// Records that everything taken is written.
    pub(crate) fn written(&mut self) {
        (self.writing, self.writing_since) = (0, None);
    }

    /// A text about a write that makes no progress.
    pub(crate) fn standing_still(&self) -> Option<String> {
        let seconds = self.writing_since.map(|since| since.elapsed()).filter(|since| *since >= STANDS_STILL)?.as_secs();
        Some(format!("the disk has not taken a write for {seconds} s: see dmesg; the card may be worn out"))
    }

    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.writing == 0
    }

    #[cfg(test)]
    pub(crate) fn set_writing_since(&mut self, since: Option<Instant>) {
        self.writing_since = since;
    }
}
