//! The files of the log: spare ones for further segments, and those that were set aside.

use super::{Log, Segment, segment};
use crate::journal::MOST_ASIDE;
use crate::journal::consumers::ConsumerQueues;
use crate::journal::settings::JournalSettings;
use crate::secret::ASIDE_SUFFIX;

impl Log {
    /// Takes a file that is ready to become a segment.
    pub(crate) fn take_spare(&mut self) -> Option<String> {
        self.spare.pop()
    }

    pub(crate) fn add_spare(&mut self, name: String) {
        self.spare.push(name);
    }

    /// The bytes of segments, spare files and the snapshot.
    pub(crate) fn used_bytes(&self, settings: &JournalSettings) -> u64 {
        let segments: u64 = self.segments.values().map(|segment| segment.header.size).sum();
        segments + self.spare.len() as u64 * settings.segment_size() + self.snapshot_bytes
    }

    /// Whether a file may be created for one more segment.
    pub(crate) fn may_make(&self, settings: &JournalSettings) -> bool {
        self.segments.len() < settings.segments()
    }

    /// Whether a file of this size is needed as a spare one.
    pub(crate) fn keeps_file(&self, size: u64, settings: &JournalSettings) -> bool {
        size == settings.segment_size() && self.segments.len() + self.spare.len() < settings.segments()
    }

    /// Removes and returns the spare files that are too many.
    pub(crate) fn take_surplus(&mut self, settings: &JournalSettings) -> Vec<String> {
        let count = (self.segments.len() + self.spare.len()).saturating_sub(settings.segments());
        self.spare.split_off(self.spare.len().saturating_sub(count))
    }

    /// A name that no segment's file has.
    pub(crate) fn free_name(&self) -> String {
        let names = self.segments.values().map(|segment| &segment.name);
        let names = names.chain(&self.making).chain(&self.spare).chain(&self.taken).map(String::as_str);
        segment::name(segment::free_number(names))
    }

    /// Records that a file of this name is there which is none of the log, such as one that could not be removed.
    pub(crate) fn note_taken(&mut self, name: String) {
        self.taken.insert(name);
    }

    /// Forgets the files that are not there any more. Segments in them are still known, but their files are not used again.
    pub(crate) fn forget_missing(&mut self, is_there: impl Fn(&str) -> bool) {
        self.spare.retain(|name| is_there(name));
        self.taken.retain(|name| is_there(name));
        for segment in self.segments.values_mut().filter(|segment| !is_there(&segment.name)) {
            segment.is_bad = true;
        }
    }

    /// The name of the file that the reading thread must create.
    pub(crate) fn making(&self) -> Option<&String> {
        self.making.as_ref()
    }

    /// Requests the creation of the next file if it will be needed, and returns whether it will.
    pub(crate) fn prepare(&mut self, tail: u64, queues: &ConsumerQueues, settings: &JournalSettings) -> bool {
        let is_wanted = self.segments.get(&tail).is_some_and(|tail| tail.end > tail.header.size / 2)
            && self.spare.is_empty()
            && self.making.is_none()
            && self.may_make(settings)
            && !self.segments.values().any(|segment| self.can_use_again(segment, Some(tail), queues));
        if is_wanted {
            self.making = Some(self.free_name());
        }
        is_wanted
    }

    /// Records that the file exists, and returns whether it is needed. If not, it keeps its name until [`Log::forget_made`].
    pub(crate) fn made(&mut self, settings: &JournalSettings) -> bool {
        // the writing thread may have created one itself
        if self.segments.len() + self.spare.len() >= settings.segments() {
            return false;
        }
        self.spare.extend(self.making.take());
        true
    }

    /// Records that the requested file does not exist.
    pub(crate) fn forget_made(&mut self) {
        self.making = None;
    }

    /// Whether the file of a segment can be reused, because nobody needs the segment any more.
    fn can_use_again(&self, segment: &Segment, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        Some(segment.header.generation) != tail && segment.last <= self.covered && !segment.is_needed(queues)
    }

    /// Removes the oldest segment that nobody needs any more.
    pub(crate) fn take_unneeded(&mut self, tail: Option<u64>, queues: &ConsumerQueues) -> Option<Segment> {
        let found = self.segments.values().find(|segment| self.can_use_again(segment, tail, queues))?;
        let generation = found.header.generation;
        self.segments.remove(&generation)
    }

    /// Whether no consumer needs some segment any more, whatever the snapshot covers.
    pub(crate) fn has_unneeded(&self, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        let mut others = self.segments.values().filter(|segment| Some(segment.header.generation) != tail);
        others.any(|segment| !segment.is_needed(queues))
    }

    /// Whether a snapshot would release segments.
    pub(crate) fn has_uncovered(&self, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        self.segments.values().any(|segment| {
            Some(segment.header.generation) != tail && segment.last > self.covered && !segment.is_needed(queues)
        })
    }

    /// The names of set-aside files.
    pub(crate) fn aside(&self) -> impl ExactSizeIterator<Item = &String> {
        self.aside.iter()
    }

    /// A name under which a file is set aside.
    pub(crate) fn aside_name(&self, name: &str) -> String {
        (1..)
            .map(|number: u32| format!("{name}.{number}{ASIDE_SUFFIX}"))
            .find(|to| !self.aside.contains(to))
            .unwrap_or_default()
    }

    /// Records that a file was set aside under this name.
    pub(crate) fn note_aside(&mut self, name: String) {
        self.aside.push_back(name);
    }

    /// Removes and returns the oldest set-aside files if there are too many.
    pub(crate) fn take_old_aside(&mut self) -> Vec<String> {
        let surplus = self.aside.len().saturating_sub(MOST_ASIDE);
        self.aside.drain(..surplus).collect()
    }
}
