//! The files of the log: those that wait to become segments, and those that were set aside.

use super::{Log, Segment, segment};
use crate::journal::MOST_ASIDE;
use crate::journal::consumers::ConsumerQueues;
use crate::journal::format::ASIDE_SUFFIX;
use crate::journal::settings::JournalSettings;

impl Log {
    /// A file that is ready to become a segment.
    pub(crate) fn take_spare(&mut self) -> Option<String> {
        self.spare.pop()
    }

    pub(crate) fn add_spare(&mut self, name: String) {
        self.spare.push(name);
    }

    /// Bytes that segments and files for them take.
    pub(crate) fn used_bytes(&self, settings: &JournalSettings) -> u64 {
        let segments: u64 = self.segments.values().map(|segment| segment.header.size).sum();
        segments + self.spare.len() as u64 * settings.segment_size() + self.snapshot_bytes
    }

    /// Whether a file may be made for one more segment.
    pub(crate) fn may_make(&self, settings: &JournalSettings) -> bool {
        self.segments.len() < settings.segments()
    }

    /// Whether a file of this size may become a segment again; otherwise there are enough without it.
    pub(crate) fn keeps_file(&self, size: u64, settings: &JournalSettings) -> bool {
        size == settings.segment_size() && self.segments.len() + self.spare.len() < settings.segments()
    }

    /// Files beyond those that the journal may have; they are not known any more.
    pub(crate) fn take_surplus(&mut self, settings: &JournalSettings) -> Vec<String> {
        let count = (self.segments.len() + self.spare.len()).saturating_sub(settings.segments());
        self.spare.split_off(self.spare.len().saturating_sub(count))
    }

    /// A name that no segment's file has.
    pub(crate) fn free_name(&self) -> String {
        let names = self.segments.values().map(|segment| &segment.name);
        let names = names.chain(&self.making).chain(&self.spare).map(String::as_str);
        segment::name(segment::free_number(names))
    }

    /// A file that the reading thread is to make.
    pub(crate) fn making(&self) -> Option<&String> {
        self.making.as_ref()
    }

    /// Has the next file made, if it is going to be needed; says whether it is.
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

    /// The file is there; says whether it is wanted. If not, it keeps its name until [`Log::forget_made`].
    pub(crate) fn made(&mut self, settings: &JournalSettings) -> bool {
        // the writing thread may not have waited for it
        if self.segments.len() + self.spare.len() >= settings.segments() {
            return false;
        }
        self.spare.extend(self.making.take());
        true
    }

    /// The file that was to be made is not there.
    pub(crate) fn forget_made(&mut self) {
        self.making = None;
    }

    /// Whether the file of a segment could be used again, as nobody needs the segment any more.
    fn can_use_again(&self, segment: &Segment, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        Some(segment.header.generation) != tail && segment.last <= self.covered && !segment.is_needed(queues)
    }

    /// Takes the oldest segment out that nobody needs any more.
    pub(crate) fn take_unneeded(&mut self, tail: Option<u64>, queues: &ConsumerQueues) -> Option<Segment> {
        let found = self.segments.values().find(|segment| self.can_use_again(segment, tail, queues))?;
        self.segments.remove(&found.header.generation.clone())
    }

    /// Whether there is a segment that no consumer needs any more, whatever the snapshot covers.
    pub(crate) fn has_unneeded(&self, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        let mut others = self.segments.values().filter(|segment| Some(segment.header.generation) != tail);
        others.any(|segment| !segment.is_needed(queues))
    }

    /// Whether a snapshot would set segments free.
    pub(crate) fn has_uncovered(&self, tail: Option<u64>, queues: &ConsumerQueues) -> bool {
        self.segments.values().any(|segment| {
            Some(segment.header.generation) != tail && segment.last > self.covered && !segment.is_needed(queues)
        })
    }

    /// Names of the files that were set aside.
    pub(crate) fn aside(&self) -> impl ExactSizeIterator<Item = &String> {
        self.aside.iter()
    }

    /// A name for a file that is not used any more.
    pub(crate) fn aside_name(&self, name: &str) -> String {
        (1..)
            .map(|number: u32| format!("{name}.{number}{ASIDE_SUFFIX}"))
            .find(|to| !self.aside.contains(to))
            .unwrap_or_default()
    }

    /// A file was set aside under this name.
    pub(crate) fn note_aside(&mut self, name: String) {
        self.aside.push_back(name);
    }

    /// Files set aside that have been there for too long; they are not known any more.
    pub(crate) fn take_old_aside(&mut self) -> Vec<String> {
        let surplus = self.aside.len().saturating_sub(MOST_ASIDE);
        self.aside.drain(..surplus).collect()
    }
}
