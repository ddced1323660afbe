//! What bounds push out is lost data. The log says so, with whose and how much, but not for every message: a line per
//! consumer and minute, and [`LINES`] a minute for all. The counts of consumers and of [`super::report::Status`] are exact.

use std::time::{Duration, Instant};

use tracing::{error, info};

use super::ConsumerId;
use super::state::JournalState;
use crate::access::owner::ConsumerOwner;

const MINUTE: Duration = Duration::from_secs(60);
/// Lines a minute.
const LINES: u32 = 10;

/// Keeps lines apart.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LossPace {
    since: Option<Instant>,
    lines: u32,
}

impl LossPace {
    /// Whether there may be another line, of at most so many a minute.
    pub(crate) fn admits(&mut self, most: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            *self = LossPace { since: Some(now), lines: 0 };
        }
        self.lines += 1;
        self.lines <= most
    }
}

impl JournalState {
    /// Bounds have pushed out messages of a consumer.
    pub(crate) fn lost(&mut self, id: ConsumerId, messages: u64, bounds: &str) {
        if messages > 0 {
            self.moved(id);
        }
        let Some(queue) = self.queues.get_mut(&id).filter(|_| messages > 0) else { return };
        self.counts.dropped += messages;
        queue.unsaid += messages;
        let now = Instant::now();
        if !queue.said.admits(1, now) || !self.said.admits(LINES, now) {
            return;
        }
        let (messages, total) = (std::mem::take(&mut queue.unsaid), queue.cursor.dropped);
        let owner = ConsumerOwner::of(&queue.name);
        error!(messages, total, "{owner} has lost its oldest messages: they had to make room ({bounds})");
    }

    /// The disk space that is ours is used up, or is not any more, where messages are refused rather than given up.
    pub(crate) fn say_full(&mut self, is_full: bool) {
        if !is_full {
            if std::mem::take(&mut self.said_full) {
                info!("journal: there is room again");
            }
            return;
        }
        if !self.full_lines.admits(1, Instant::now()) {
            return;
        }
        self.said_full = true;
        let largest = self.queues.values().max_by_key(|queue| queue.sizes.bytes());
        let waiting = largest.map_or(0, |queue| queue.waiting());
        let owner = ConsumerOwner::of(largest.map_or("", |queue| &queue.name));
        error!(
            refused = self.counts.refused,
            "journal: full (journal.max_size), most of it with {waiting} messages that wait for {owner}: \
             messages that must be kept are refused until there is room"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{draft, limits};
    use super::super::{Journal, WhenFull};
    use super::*;

    #[test]
    fn lines_are_kept_apart() {
        let begin = Instant::now();
        let mut pace = LossPace::default();
        let lines = (0..200).filter(|second| pace.admits(2, begin + Duration::from_secs(*second))).count();
        assert_eq!(lines, 8, "at 0, 1, 60, 61, 120, 121, 180, 181");
    }

    #[test]
    fn losses_are_counted_for_all_and_for_each() {
        let journal = Journal::default();
        let ids = ["session/a", "session/b"].map(|name| journal.register(name, limits(2, WhenFull::DropOldest)));
        for _ in 0..5 {
            journal.append(&draft("t", b"x", false), &ids).unwrap();
        }
        journal.append(&draft("t", b"x", false), &ids[..1]).unwrap();
        assert_eq!((journal.status().dropped, journal.backlog(ids[0]).dropped), (7, 4));
        assert_eq!(journal.backlog_of("session/b").unwrap().dropped, 3);
    }
}
