//! The log as it is known in memory: its segments, how far it is synced, and its spare files.

mod files;
mod packing;
mod segment;
mod usage;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) use self::packing::Packing;
pub use self::segment::Segment;
#[cfg(test)]
pub(crate) use self::segment::name;
pub(crate) use self::segment::{SegmentContents, SegmentShare};
use super::consumers::ConsumerQueues;
use super::format::{FileKind, Header};
use super::parts::Part;
use super::record::RecordRef;

/// The segments and files of the log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// By generation; the last one is being written.
    segments: BTreeMap<u64, Segment>,
    /// The highest position on disk.
    committed: u64,
    /// The highest position that the snapshot covers.
    covered: u64,
    /// The size of the snapshot in bytes.
    snapshot_bytes: u64,
    /// The segments that the background check must still read.
    unverified: VecDeque<u64>,
    /// The files that are ready to become segments.
    spare: Vec<String>,
    /// The names that other files have.
    taken: BTreeSet<String>,
    /// A file that the reading thread must create, or is creating, in advance.
    making: Option<String>,
    /// The set-aside files, oldest first.
    aside: VecDeque<String>,
}

impl Log {
    /// The segments by generation.
    pub(crate) fn segments(&self) -> &BTreeMap<u64, Segment> {
        &self.segments
    }

    #[cfg(test)]
    pub(crate) fn segments_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.segments.values_mut()
    }

    pub(crate) fn get(&self, generation: u64) -> Option<&Segment> {
        self.segments.get(&generation)
    }

    /// The highest position on disk.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// The highest position that the snapshot covers.
    pub(crate) fn covered(&self) -> u64 {
        self.covered
    }

    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Records that everything up to this position is on disk.
    pub(crate) fn commit(&mut self, place: u64) {
        self.committed = self.committed.max(place);
    }

    /// Records the size of a new snapshot.
    pub(crate) fn note_snapshot(&mut self, bytes: u64) {
        self.snapshot_bytes = bytes;
    }

    /// Records that the snapshot covers everything up to this position.
    pub(crate) fn cover(&mut self, place: u64) {
        self.covered = place;
    }

    pub(crate) fn insert(&mut self, segment: Segment) {
        self.segments.insert(segment.header.generation, segment);
    }

    pub(crate) fn remove(&mut self, generation: u64) -> Option<Segment> {
        self.segments.remove(&generation)
    }

    /// Counts a record of this segment that is on disk.
    pub(crate) fn add_record(
        &mut self,
        generation: u64,
        record: &RecordRef<'_>,
        is_message: bool,
        queues: &ConsumerQueues,
    ) {
        let Some(segment) = self.segments.get_mut(&generation) else { return };
        segment.last = record.position();
        segment.end += record.padded_len() as u64;
        segment.records += 1;
        if is_message {
            segment.add_message(record, |key| queues.part_of_key(key));
        }
    }

    /// Leaves out records that merged segments contain already.
    pub(crate) fn pass_over_merged(&mut self) {
        let mut merged = 0;
        for segment in self.segments.values_mut() {
            segment.from = segment.header.base.max(merged + 1);
            merged = match segment.header.kind {
                FileKind::Merged { upto, .. } => upto,
                _ => 0,
            };
        }
    }

    /// Counts all segments with messages of a consumer for this part, because some may have been counted for another.
    pub(crate) fn count_for(&mut self, key: u64, part: Part) {
        for segment in self.segments.values_mut().filter(|segment| segment.share_of(key).is_some()) {
            segment.count_all_for(part);
        }
    }

    /// The last segment, if records may be written to it.
    pub(crate) fn open_tail(&self) -> Option<&Segment> {
        self.segments.values().next_back().filter(|segment| segment.header.kind == FileKind::Segment)
    }

    /// The place in a segment for this many bytes.
    pub(crate) fn room_in(&self, generation: u64, len: usize) -> Option<(String, Header, u64)> {
        let segment = self.segments.get(&generation)?;
        let fits = segment.end + len as u64 <= segment.header.size;
        fits.then(|| (segment.name.clone(), segment.header, segment.end))
    }

    /// Marks a segment whose writing or reading has failed, so that its file is not reused.
    pub(crate) fn set_bad(&mut self, generation: u64) {
        if let Some(segment) = self.segments.get_mut(&generation) {
            segment.is_bad = true;
        }
    }

    /// Marks a segment that cannot be merged. It stays as it is for its consumers, and the check reports what is wrong.
    /// Returns whether it must be checked now. `is_unread` tells that the disk could not read it, which may be over soon.
    pub(crate) fn leave(&mut self, generation: u64, is_unread: bool) -> bool {
        let Some(segment) = self.segments.get_mut(&generation) else { return false };
        segment.is_damaged = true;
        // what is known to be bad is not checked any more
        segment.is_unread = is_unread && !segment.is_bad;
        let is_new = !segment.is_bad && !self.unverified.contains(&generation);
        if is_new {
            self.unverified.push_back(generation);
        }
        is_new
    }

    /// Whether a segment could not be read, and may be merged once it can be.
    pub(crate) fn has_unread(&self) -> bool {
        self.segments.values().any(|segment| segment.is_unread)
    }

    /// Requests the check of these segments.
    pub(crate) fn check(&mut self, generations: impl IntoIterator<Item = u64>) {
        self.unverified.extend(generations);
    }

    /// The segment to check next.
    pub(crate) fn next_to_check(&mut self) -> Option<u64> {
        self.unverified.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn is_checked(&self) -> bool {
        self.unverified.is_empty()
    }

    /// Records the result of a check, and returns whether the segment still exists.
    pub(crate) fn checked(&mut self, segment: &Segment, is_whole: bool) -> bool {
        let Header { generation, salt, .. } = segment.header;
        let Some(still) = self.segments.get_mut(&generation).filter(|still| still.header.salt == salt) else {
            return false; // given up meanwhile
        };
        still.is_unread = false;
        still.is_damaged &= !is_whole;
        still.is_bad |= !is_whole;
        true
    }

    /// The first segment with messages for a consumer from this position on.
    pub(crate) fn next_for(&self, key: u64, base: u64, from: u64) -> Option<&Segment> {
        let has_more =
            |segment: &&Segment| segment.last >= from && segment.share_of(key).is_some_and(|share| share.last > base);
        self.segments.values().find(has_more)
    }

    /// Replaces the segments `whole` by a merged one, and one more by `rest`, which was merged in part. Returns the files
    /// whose size is not `size`, and those that must not be reused.
    pub(crate) fn replace(&mut self, merged: Segment, whole: &[u64], rest: Option<Segment>, size: u64) -> Vec<String> {
        let mut unfit = Vec::new();
        for segment in whole.iter().filter_map(|generation| self.segments.remove(generation)) {
            let is_fit = segment.header.size == size && !segment.is_bad;
            if is_fit { self.spare.push(segment.name) } else { unfit.push(segment.name) }
        }
        self.insert(merged);
        if let Some(rest) = rest
            && let Some(segment) = self.segments.get_mut(&rest.header.generation)
        {
            segment.take_contents_of(rest);
        }
        unfit
    }
}
