//! Consumers that nobody in the configuration asks for any more: a comment, a typo or an old file is no reason to lose what
//! waits. They are kept, and are the first to give way when the journal is full.

use super::{ConsumerId, Journal};

impl Journal {
    /// What waits for this consumer is kept for the case that it is registered again, and is the first to give way.
    pub(crate) fn orphan(&self, id: ConsumerId) {
        self.shared.state.lock().orphan(id);
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
