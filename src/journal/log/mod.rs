//! The log as it is known in memory: its segments, how far it is safe, and the files that there are for it.

mod files;
mod packing;
mod segment;
mod usage;

use std::collections::{BTreeMap, VecDeque};

pub(crate) use self::packing::Packing;
pub use self::segment::Segment;
#[cfg(test)]
pub(crate) use self::segment::name;
pub(crate) use self::segment::{SegmentContents, SegmentShare};
use super::consumers::ConsumerQueues;
use super::format::{FileKind, Header};
use super::parts::Part;
use super::record::RecordRef;

/// All of the log.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// By generation; the last one is written to.
    segments: BTreeMap<u64, Segment>,
    /// Greatest place that is safe.
    committed: u64,
    /// Greatest place that the snapshot covers.
    covered: u64,
    /// Size of the snapshot.
    snapshot_bytes: u64,
    /// Segments that the background check has still to read.
    unverified: VecDeque<u64>,
    /// Files that are ready to become segments.
    spare: Vec<String>,
    /// A file that the reading thread shall make, or is making, before it is needed.
    making: Option<String>,
    /// Files that were set aside, oldest first.
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

    /// Greatest place that is safe.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }

    /// Greatest place that the snapshot covers.
    pub(crate) fn covered(&self) -> u64 {
        self.covered
    }

    /// Size of the snapshot.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.snapshot_bytes
    }

    /// Everything up to this place is safe.
    pub(crate) fn commit(&mut self, place: u64) {
        self.committed = self.committed.max(place);
    }

    /// There is a snapshot of this size.
    pub(crate) fn note_snapshot(&mut self, bytes: u64) {
        self.snapshot_bytes = bytes;
    }

    /// The snapshot covers everything up to this place.
    pub(crate) fn cover(&mut self, place: u64) {
        self.covered = place;
    }

    pub(crate) fn insert(&mut self, segment: Segment) {
        self.segments.insert(segment.header.generation, segment);
    }

    pub(crate) fn remove(&mut self, generation: u64) -> Option<Segment> {
        self.segments.remove(&generation)
    }

    /// A record of this segment has become safe.
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

    /// What merged segments have does not count in the segments after them.
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

    /// Which of a consumer's messages were counted for another part than this one is not known.
    pub(crate) fn count_for(&mut self, key: u64, part: Part) {
        for segment in self.segments.values_mut().filter(|segment| segment.share_of(key).is_some()) {
            segment.count_all_for(part);
        }
    }

    /// The last segment, if records may be written to it.
    pub(crate) fn open_tail(&self) -> Option<&Segment> {
        self.segments.values().next_back().filter(|segment| segment.header.kind == FileKind::Segment)
    }

    /// Where in a segment there is room for so many bytes.
    pub(crate) fn room_in(&self, generation: u64, len: usize) -> Option<(String, Header, u64)> {
        let segment = self.segments.get(&generation)?;
        let fits = segment.end + len as u64 <= segment.header.size;
        fits.then(|| (segment.name.clone(), segment.header, segment.end))
    }

    /// Writing or reading a segment has failed: its file is not used again.
    pub(crate) fn set_bad(&mut self, generation: u64) {
        if let Some(segment) = self.segments.get_mut(&generation) {
            segment.is_bad = true;
        }
    }

    /// A segment cannot be merged: it stays as it is for its consumers, and the check says what is wrong with it. Says whether
    /// it is to be checked now.
    pub(crate) fn leave(&mut self, generation: u64) -> bool {
        let Some(segment) = self.segments.get_mut(&generation) else { return false };
        segment.is_damaged = true;
        let is_new = !segment.is_bad && !self.unverified.contains(&generation);
        if is_new {
            self.unverified.push_back(generation);
        }
        is_new
    }

    /// These segments are to be read and checked.
    pub(crate) fn check(&mut self, generations: impl IntoIterator<Item = u64>) {
        self.unverified.extend(generations);
    }

    /// The segment to be checked next.
    pub(crate) fn next_to_check(&mut self) -> Option<u64> {
        self.unverified.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn is_checked(&self) -> bool {
        self.unverified.is_empty()
    }

    /// A segment was checked; says whether it is still that one.
    pub(crate) fn checked(&mut self, segment: &Segment, is_whole: bool) -> bool {
        let Header { generation, salt, .. } = segment.header;
        let Some(still) = self.segments.get_mut(&generation).filter(|still| still.header.salt == salt) else {
            return false; // given up meanwhile
        };
        still.is_damaged &= !is_whole;
        still.is_bad |= !is_whole;
        true
    }

    /// The first segment that has something for a consumer from this place on.
    pub(crate) fn next_for(&self, key: u64, base: u64, from: u64) -> Option<&Segment> {
        let has_more =
            |segment: &&Segment| segment.last >= from && segment.share_of(key).is_some_and(|share| share.last > base);
        self.segments.values().find(has_more)
    }

    /// What was needed of segments is in another one, and of one more segment in part: `rest` is what is left of that. Returns
    /// files of another size than `size`, and those that are not used again.
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
