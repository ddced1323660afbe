//! The last messages in order, with ids, from which streams are served and resumed.

use std::collections::VecDeque;

use crate::message::{Message, matches};

/// The most messages that are kept.
pub(crate) const MAX_MESSAGES: usize = 4096;
/// The most bytes that are kept.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// The most messages that one read returns.
const AT_ONCE: usize = 256;
/// The most bytes that one read returns, unless its first message is larger.
const BYTES_AT_ONCE: usize = 64 << 10;
/// The most bytes of topics that one read compares with filters, at least those of one message. Nothing else is read or taken
/// in meanwhile.
const COMPARED_AT_ONCE: usize = 32 << 10;
/// What a message counts in addition to its topic.
const COMPARED_MORE: usize = 16;

/// A ring of messages. Ids increase by one with every message. They start with the time of the clock in microseconds, so
/// that they also increase over a restart.
#[derive(Debug)]
pub(crate) struct Ring {
    messages: VecDeque<Message>,
    start: u64,
    next: u64,
    bytes: usize,
}

/// The result of a read.
#[derive(Debug, Default)]
pub(crate) struct RingRead {
    /// The messages with their ids.
    pub(crate) messages: Vec<(u64, Message)>,
    /// The id from which to continue.
    pub(crate) next: u64,
    /// Whether more messages are available already.
    pub(crate) more: bool,
}

/// Why a reader cannot continue where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// The number of missed messages on all topics; `None` if the id is from before the start of the gateway, so that the
    /// number is unknown.
    pub(crate) missed: Option<u64>,
    /// The id from which to continue.
    pub(crate) next: u64,
}

impl Ring {
    /// An empty ring that starts at this time.
    pub(crate) fn new(unix_ms: i64) -> Ring {
        let start = u64::try_from(unix_ms).unwrap_or(0) * 1000 + 1;
        Ring { messages: VecDeque::new(), start, next: start, bytes: 0 }
    }

    /// Adds a message, which must be in memory of its own.
    pub(crate) fn push(&mut self, message: Message) {
        self.bytes += message.size();
        self.next += 1;
        self.messages.push_back(message);
        while self.messages.len() > MAX_MESSAGES || (self.bytes > MAX_BYTES && self.messages.len() > 1) {
            if let Some(old) = self.messages.pop_front() {
                self.bytes -= old.size();
            }
        }
    }

    /// The id of the next message.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    fn first(&self) -> u64 {
        self.next - self.messages.len() as u64
    }

    /// Checks that messages from `from` on can be read without a gap.
    pub(crate) fn check(&self, from: u64) -> Result<(), Gap> {
        if from < self.start || from > self.next {
            Err(Gap { missed: None, next: self.first() })
        } else if from < self.first() {
            Err(Gap { missed: Some(self.first() - from), next: self.first() })
        } else {
            Ok(())
        }
    }

    /// The messages from `from` on that match a filter and that `may` allows. [`Ring::check`] must have accepted `from`.
    pub(crate) fn read(&self, from: u64, filters: &[Box<str>], may: impl Fn(&str) -> bool) -> RingRead {
        let mut reading = RingRead { next: self.next, ..RingRead::default() };
        let (mut bytes, mut compared) = (0, 0);
        let skip = usize::try_from(from - self.first()).unwrap_or(usize::MAX);
        for (id, message) in (from..).zip(self.messages.iter().skip(skip)) {
            let topic = message.view().topic();
            if compared >= COMPARED_AT_ONCE {
                (reading.next, reading.more) = (id, true);
                break;
            }
            compared += (topic.len() + COMPARED_MORE) * filters.len();
            if !filters.iter().any(|filter| matches(filter, topic)) || !may(topic) {
                continue;
            }
            if reading.messages.len() >= AT_ONCE || bytes > BYTES_AT_ONCE {
                (reading.next, reading.more) = (id, true);
                break;
            }
            bytes += message.size();
            reading.messages.push((id, message.clone()));
        }
        reading
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::message;
    use super::*;

    fn ids(ring: &Ring, from: u64, filter: &str) -> Vec<u64> {
        ring.read(from, &[filter.into()], |topic| topic != "secret").messages.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn readers_get_what_they_ask_for_and_may_see() {
        let mut ring = Ring::new(1);
        for topic in ["a", "secret", "b", "a"] {
            ring.push(message(topic, "", false));
        }
        assert_eq!(ids(&ring, 1001, "#"), [1001, 1003, 1004]);
        assert_eq!(ids(&ring, 1002, "a"), [1004]);
        assert_eq!(ids(&ring, 1005, "#"), [] as [u64; 0]);
    }

    #[test]
    fn gaps_are_told() {
        let mut ring = Ring::new(1);
        for _ in 0..MAX_MESSAGES + 10 {
            ring.push(message("a", "", false));
        }
        assert_eq!(ring.check(1003), Err(Gap { missed: Some(8), next: 1011 }));
        assert_eq!(ring.check(1011), Ok(()));
        assert_eq!(ring.check(ring.next()), Ok(()));
        assert_eq!(ring.check(ring.next() + 1), Err(Gap { missed: None, next: 1011 }), "from another life");
        assert_eq!(ring.check(5), Err(Gap { missed: None, next: 1011 }));
        let first = ring.read(1011, &["#".into()], |_| true);
        assert_eq!((first.messages.len(), first.next, first.more), (AT_ONCE, 1011 + AT_ONCE as u64, true));
    }

    #[test]
    fn a_read_looks_at_a_part_only_however_little_it_finds() {
        let mut ring = Ring::new(0);
        let deep = ["a"; 200].join("/");
        for _ in 0..200 {
            ring.push(message(&deep, "", false));
        }
        ring.push(message("found", "", false));
        let filters: Vec<Box<str>> =
            (0..31).map(|number| format!("{}/{number}", ["+"; 199].join("/")).into()).collect();
        let filters = [filters, vec!["found".into()]].concat();
        let (mut from, mut reads) = (1, 0);
        let found = loop {
            let reading = ring.read(from, &filters, |_| true);
            (from, reads) = (reading.next, reads + 1);
            if !reading.more {
                break reading.messages;
            }
            assert!(reading.messages.is_empty());
        };
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [201]);
        assert!((50..=201).contains(&reads), "{reads} reads");
    }

    #[test]
    fn bytes_are_bounded() {
        let mut ring = Ring::new(0);
        for _ in 0..100 {
            ring.push(message("a", &"x".repeat(MAX_BYTES / 8), false));
            assert!(ring.bytes <= MAX_BYTES);
        }
        ring.push(message("a", &"x".repeat(2 * MAX_BYTES), false));
        assert_eq!(ring.messages.len(), 1, "the last one is always there");
    }
}
