//! For whom the log is kept.

use super::{Log, SegmentShare};
use crate::journal::ConsumerId;
use crate::journal::consumers::{ConsumerQueues, Queue};
use crate::journal::parts::PARTS;

/// Bytes of the journal that wait for somebody.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Bytes of each part.
    pub(crate) parts: [u64; PARTS],
    /// Bytes of all parts, each record once.
    pub(crate) all: u64,
}

impl Log {
    /// How much of the journal each part takes now.
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

    /// Consumers of this kind that something waits for in the oldest segment that has something for any of them, and the
    /// greatest ordinal that each has there.
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
