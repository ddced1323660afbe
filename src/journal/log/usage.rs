//! Computes for whom the space of the log is used.

use super::{Log, SegmentShare};
use crate::journal::ConsumerId;
use crate::journal::consumers::{ConsumerQueues, Queue};
use crate::journal::parts::PARTS;

/// The bytes of the journal that wait for consumers.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// The bytes of each part.
    pub(crate) parts: [u64; PARTS],
    /// The bytes of all parts, with each record counted once.
    pub(crate) all: u64,
}

impl Log {
    /// The bytes that each part uses at present.
    pub(crate) fn usage(&self, queues: &ConsumerQueues) -> Usage {
        let mut usage = Usage::default();
        for segment in self.segments.values() {
            let (parts, all) = segment.live(queues);
            usage.parts.iter_mut().zip(parts).for_each(|(sum, bytes)| *sum += bytes);
            usage.all += all;
        }
        usage
    }

    /// What each segment holds for each consumer.
    pub(crate) fn shares<'a>(
        &'a self,
        queues: &'a ConsumerQueues,
    ) -> impl Iterator<Item = (&'a Queue, &'a SegmentShare)> {
        let shares = self.segments.values().flat_map(|segment| segment.shares());
        shares.filter_map(|(key, share)| Some((queues.of_key(*key)?, share)))
    }

    /// The consumers of this kind with messages in the oldest segment that has any for them, each with its highest ordinal
    /// there.
    pub(crate) fn oldest_of(&self, queues: &ConsumerQueues, is_it: impl Fn(&Queue) -> bool) -> Vec<(ConsumerId, u64)> {
        let mut waiting = self.segments.values().map(|segment| {
            let shares = segment.shares().iter().filter_map(|(key, share)| {
                let id = queues.id_of_key(*key)?;
                let queue = queues.get(id).filter(|queue| queue.base() < share.last)?;
                is_it(queue).then_some((id, share.last))
            });
            shares.collect::<Vec<_>>()
        });
        waiting.find(|shares| !shares.is_empty()).unwrap_or_default()
    }
}
