//! Segments as they are known in memory: their files, and what they hold for whom.

use std::collections::{BTreeMap, HashMap};

use crate::journal::consumers::{ConsumerQueues, Queue};
use crate::journal::format::{CONSUMER_LEN, DATA, FileKind, Header, RECORD_HEAD, SEGMENT_SUFFIX};
use crate::journal::parts::{PARTS, Part};
use crate::journal::record::RecordRef;
use crate::journal::settings::JournalSettings;

/// The messages of one consumer in a segment, which are a run of its ordinals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentShare {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The number of messages.
    pub(crate) count: u32,
    pub(crate) bytes: u64,
}

impl SegmentShare {
    /// The bytes in the log that a consumer whose messages up to `base` have ended still needs.
    pub(crate) fn live(&self, base: u64) -> u64 {
        let before = base.max(self.first.saturating_sub(1));
        let left = self.last.saturating_sub(before).min(u64::from(self.count));
        self.bytes_of(left).saturating_add(left * (RECORD_HEAD + CONSUMER_LEN + 8) as u64)
    }

    /// The estimated bytes of this many of its messages.
    pub(crate) fn bytes_of(&self, messages: u64) -> u64 {
        let bytes = u128::from(self.bytes) * u128::from(messages) / u128::from(self.count.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// What a segment holds, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentContents {
    /// By the key of the consumer.
    pub(crate) shares: HashMap<u64, SegmentShare>,
    /// The bytes of records for each part of the journal. A record for two parts counts for both.
    pub(crate) in_part: [u64; PARTS],
    /// The bytes of the largest message.
    pub(crate) largest: u64,
}

/// A segment of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The name of its file.
    pub name: String,
    /// The header of its file.
    pub header: Header,
    /// Records below this position do not count, because a merged segment has them.
    pub(crate) from: u64,
    /// The highest position, or one less than the base.
    pub(crate) last: u64,
    /// The end of the records that are on disk.
    pub(crate) end: u64,
    pub(crate) records: u64,
    contents: SegmentContents,
    /// Whether writing or reading has failed, so that the file is not reused.
    pub(crate) is_bad: bool,
    /// Whether records cannot be read, so that it is not merged.
    pub(crate) is_damaged: bool,
    /// Whether the disk has not read it, and nobody knows yet whether it will.
    pub(crate) is_unread: bool,
}

impl Segment {
    /// A segment without records.
    pub(crate) fn new(name: String, header: Header) -> Segment {
        let last = match header.kind {
            FileKind::Merged { upto, .. } => upto,
            _ => header.base.saturating_sub(1),
        };
        Segment {
            name,
            header,
            from: header.base,
            last,
            end: DATA,
            records: 0,
            contents: SegmentContents::default(),
            is_bad: false,
            is_damaged: false,
            is_unread: false,
        }
    }

    /// Restores the state from a snapshot: up to the position `last`, whose record ends at `end`.
    pub(crate) fn restore(&mut self, (last, end, records): (u64, u64, u64), contents: SegmentContents) {
        (self.last, self.end, self.records) = (last, end, records);
        self.contents = contents;
    }

    /// What it holds, and for whom.
    pub(crate) fn contents(&self) -> &SegmentContents {
        &self.contents
    }

    /// The same segment without any contents.
    pub(crate) fn without_contents(&self) -> Segment {
        Segment { contents: SegmentContents::default(), ..self.clone() }
    }

    /// Keeps only the contents of `rest`, because the others were merged. All other properties stay.
    pub(super) fn take_contents_of(&mut self, rest: Segment) {
        (self.from, self.contents) = (rest.from, rest.contents);
    }

    /// The same contents in another file.
    pub(crate) fn written_as(self, name: String, header: Header, end: u64, records: u64) -> Segment {
        Segment { end, records, contents: self.contents, ..Segment::new(name, header) }
    }

    /// What it holds, by the key of the consumer.
    pub(crate) fn shares(&self) -> &HashMap<u64, SegmentShare> {
        &self.contents.shares
    }

    /// What it holds for the consumer with this key.
    pub(crate) fn share_of(&self, key: u64) -> Option<&SegmentShare> {
        self.contents.shares.get(&key)
    }

    /// The number and the estimated bytes of messages that a consumer has not settled.
    pub(crate) fn waiting_for(&self, queue: &Queue) -> Option<(u32, u64)> {
        let share = self.contents.shares.get(&queue.key()).filter(|share| share.last > queue.base())?;
        let left = (share.last - queue.base()).min(u64::from(share.count));
        Some((left as u32, share.bytes_of(left)))
    }

    /// The bytes of the largest message.
    pub(crate) fn largest(&self) -> u64 {
        self.contents.largest
    }

    /// Assumes that all of it may be for this part.
    pub(crate) fn count_all_for(&mut self, part: Part) {
        self.contents.in_part[part as usize] = self.end - DATA;
    }

    /// Whether its needed records may be moved to another file.
    pub(crate) fn can_merge(&self, settings: &JournalSettings) -> bool {
        !self.is_damaged && self.header.size <= settings.segment_size()
    }

    /// The position from which on records are in the next segment, which has this header.
    pub(crate) fn limit(&self, next: Option<&Header>) -> u64 {
        match self.header.kind {
            FileKind::Merged { upto, .. } => upto + 1,
            _ => next.map_or(u64::MAX, |next| next.base),
        }
    }

    /// The lowest generation for which it stands.
    pub(crate) fn first_generation(&self) -> u64 {
        self.header.first_generation()
    }

    /// Adds a message, with its consumers and its size.
    pub(crate) fn add_message(&mut self, record: &RecordRef<'_>, part_of: impl Fn(u64) -> Option<Part>) {
        let mut parts = [false; PARTS];
        for (key, ordinal) in record.consumers() {
            self.add(key, ordinal, record.body().len());
            if let Some(part) = part_of(key) {
                parts[part as usize] = true;
            }
        }
        self.contents.largest = self.contents.largest.max(record.padded_len() as u64);
        for (bytes, is_for) in self.contents.in_part.iter_mut().zip(parts) {
            *bytes += if is_for { record.padded_len() as u64 } else { 0 };
        }
    }

    /// The needed bytes, by part and in all. They are upper bounds, because only the number of a consumer's messages is
    /// known.
    pub(crate) fn live(&self, queues: &ConsumerQueues) -> ([u64; PARTS], u64) {
        let mut parts = [0; PARTS];
        for (key, share) in &self.contents.shares {
            if let Some(queue) = queues.of_key(*key) {
                parts[queue.part() as usize] += share.live(queue.base());
            }
        }
        for (bytes, most) in parts.iter_mut().zip(self.contents.in_part) {
            *bytes = (*bytes).min(most);
        }
        let all = parts.iter().sum::<u64>().min(self.end - DATA);
        (parts, all)
    }

    /// Adds a message for a consumer.
    fn add(&mut self, key: u64, ordinal: u64, size: usize) {
        let share = self.contents.shares.entry(key).or_insert(SegmentShare {
            first: ordinal,
            last: ordinal,
            count: 0,
            bytes: 0,
        });
        share.last = share.last.max(ordinal);
        share.count += 1;
        share.bytes += size as u64;
    }

    /// Whether a consumer still needs it.
    pub(crate) fn is_needed(&self, queues: &ConsumerQueues) -> bool {
        self.needing(queues).next().is_some()
    }

    /// The number of consumers that still need it.
    pub(crate) fn needed_by(&self, queues: &ConsumerQueues) -> usize {
        self.needing(queues).count()
    }

    fn needing(&self, queues: &ConsumerQueues) -> impl Iterator<Item = ()> {
        let of =
            move |(key, share): (&u64, &SegmentShare)| queues.of_key(*key).filter(|queue| queue.base() < share.last);
        self.contents.shares.iter().filter_map(of).map(drop)
    }
}

/// The name of the file with this number.
pub(crate) fn name(number: u32) -> String {
    format!("{number:08}{SEGMENT_SUFFIX}")
}

/// The number of a segment's file.
fn number(name: &str) -> Option<u32> {
    name.strip_suffix(SEGMENT_SUFFIX).filter(|digits| digits.len() == 8)?.parse().ok()
}

/// The lowest number that no file has.
pub(crate) fn free_number<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    let used: BTreeMap<u32, ()> = names.filter_map(|name| number(name).map(|number| (number, ()))).collect();
    (0..).find(|number| !used.contains_key(number)).unwrap_or(u32::MAX)
}
