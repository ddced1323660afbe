//! Consumers that nobody in the configuration asks for any more: a comment, a typo or an old file is no reason to lose what
//! waits. They are kept, and are the first to give way when the journal is full.

use super::state::JournalState;
use super::{Backlog, ConsumerId, Journal};

impl Journal {
    /// What waits for this consumer is kept for the case that it is registered again, and is the first to give way.
    pub(crate) fn orphan(&self, id: ConsumerId) {
        let mut state = self.shared.state.lock();
        if let Some(queue) = state.queues.get_mut(&id) {
            queue.is_orphan = true;
        }
        state.full_for = Default::default();
    }
}

impl Backlog {
    /// What waits for both, and what became of the rest.
    pub(crate) fn plus(mut self, other: &Backlog) -> Backlog {
        self.accepted += other.accepted;
        self.settled += other.settled;
        self.outcomes.iter_mut().zip(other.outcomes).for_each(|(sum, count)| *sum += count);
        self.dropped += other.dropped;
        self.lost += other.lost;
        self.messages += other.messages;
        self.bytes += other.bytes;
        // what came in before this boot has a time less than 0
        let oldest = [self.oldest_boot_ms, other.oldest_boot_ms].into_iter().flatten();
        self.oldest_boot_ms = oldest.min_by_key(|boot_ms| *boot_ms as i64);
        self
    }
}

impl JournalState {
    /// The oldest messages of orphans give way: whether there were any.
    pub(crate) fn orphans_give_way(&mut self) -> bool {
        let mut waiting: Vec<(ConsumerId, u64)> = Vec::new();
        for segment in self.segments.values() {
            for (key, share) in segment.shares.iter() {
                let Some(id) = self.by_key.get(key) else { continue };
                let queue = self.queues.get(id).filter(|queue| queue.is_orphan && queue.cursor.base < share.last);
                waiting.extend(queue.map(|_| (*id, share.last)));
            }
            if !waiting.is_empty() {
                break;
            }
        }
        for (id, last) in &waiting {
            let Some(queue) = self.queues.get_mut(id) else { continue };
            let dropped = queue.cursor.dropped;
            queue.drop_through(*last);
            let lost = queue.cursor.dropped - dropped;
            self.lost(*id, lost, "journal.max_size, and no upstream of that name is configured");
        }
        !waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::storage::memory::MemoryStorage;
    use super::super::tests::{ANY, draft, settings, wait_synced};
    use super::super::{Limits, WhenFull};
    use super::*;
    use crate::time::SystemClock;

    #[test]
    fn orphans_give_way_before_anybody_else_does() {
        for when_full in [WhenFull::DropOldest, WhenFull::Refuse] {
            let storage = Arc::new(MemoryStorage::default());
            let journal = Journal::open(storage, settings(1 << 20, when_full), Arc::new(SystemClock)).unwrap();
            let limits = Limits { when_full, ..ANY };
            let [orphan, other] = ["upstream/gone", "upstream/home"].map(|name| journal.register(name, limits));
            let payload = [b'x'; 1000];
            let append = |id| {
                let position = journal.append(&draft("t", &payload, false), &[id]).unwrap();
                wait_synced(&journal, position);
            };
            // the others' messages are older
            (0..100).for_each(|_| append(other));
            (0..400).for_each(|_| append(orphan));
            journal.orphan(orphan);
            (0..500).for_each(|_| append(other));
            assert_eq!(journal.backlog(other).messages, 600, "{when_full:?}");
            let left = journal.backlog(orphan);
            assert!(left.dropped > 0 && left.dropped + left.messages as u64 == 400, "{left:?}");
            assert_eq!(journal.register("upstream/gone", limits), orphan);
        }
    }
}
