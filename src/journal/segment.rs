//! Segments as they are known in memory: where they are and for whom they hold what.

use std::collections::{BTreeMap, HashMap};

use super::ConsumerId;
use super::format::{DATA, Header, SEGMENT_SUFFIX};
use super::queue::Queue;

/// What a segment holds for one consumer: a run of its ordinals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Least ordinal.
    pub first: u64,
    /// Greatest ordinal.
    pub last: u64,
    /// Messages.
    pub count: u32,
    /// Their bytes.
    pub bytes: u64,
}

/// A part of the log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Name of its file.
    pub name: String,
    /// Header of its file.
    pub header: Header,
    /// Greatest place, or one less than the base.
    pub last: u64,
    /// End of the records that are safe.
    pub end: u64,
    /// Records.
    pub records: u64,
    /// What it holds, by key of the consumer.
    pub shares: HashMap<u64, Share>,
    /// Writing or reading it has failed: its file is not used again.
    pub is_bad: bool,
}

impl Segment {
    /// A segment without records.
    pub fn new(name: String, header: Header) -> Segment {
        let last = header.base.saturating_sub(1);
        Segment { name, header, last, end: DATA, records: 0, shares: HashMap::new(), is_bad: false }
    }

    /// Notes a message for a consumer.
    pub fn add(&mut self, key: u64, ordinal: u64, size: usize) {
        let share = self.shares.entry(key).or_insert(Share { first: ordinal, last: ordinal, count: 0, bytes: 0 });
        share.last = share.last.max(ordinal);
        share.count += 1;
        share.bytes += size as u64;
    }

    /// Whether a consumer still needs it.
    pub fn is_needed(&self, queues: &HashMap<ConsumerId, Queue>, by_key: &HashMap<u64, ConsumerId>) -> bool {
        self.shares.iter().any(|(key, share)| {
            by_key.get(key).and_then(|id| queues.get(id)).is_some_and(|queue| queue.cursor.base < share.last)
        })
    }
}

/// Name of the file with this number.
pub fn name(number: u32) -> String {
    format!("{number:08}{SEGMENT_SUFFIX}")
}

/// The number of a segment's file.
pub fn number(name: &str) -> Option<u32> {
    name.strip_suffix(SEGMENT_SUFFIX).filter(|digits| digits.len() == 8)?.parse().ok()
}

/// The least number that no file has.
pub fn free_number<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    let used: BTreeMap<u32, ()> = names.filter_map(|name| number(name).map(|number| (number, ()))).collect();
    (0..).find(|number| !used.contains_key(number)).unwrap_or(u32::MAX)
}
