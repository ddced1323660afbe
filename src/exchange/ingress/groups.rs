//! The groups of shared subscriptions to which messages go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::{Ingress, Route, RouteKey, Sequencer};
use crate::exchange::shared::SharedGroup;
use crate::exchange::shared::owner::GroupOwner;
use crate::exchange::shared::together::FilterGroups;
use crate::journal::ConsumerId;
use crate::message::Owner;

/// How often the messages of one batch may be looked at for a filter with groups: about two milliseconds of work.
const LOOKS: usize = 8192;
/// A batch of this many messages is never too large.
const SMALL_BATCH: usize = 16;

/// The number of filters by which one topic may be matched together with others.
fn wild(filter: &str) -> usize {
    usize::from(filter.contains(['+', '#']))
}

impl Sequencer {
    /// Takes out the groups with this filter and the owner of this group.
    fn take_groups(&mut self, filter: &str, group: &SharedGroup) -> Option<Arc<FilterGroups>> {
        match self.routes.remove(filter, &RouteKey::Groups(group.owner()))? {
            Route::Groups(groups) => Some(groups),
            _ => None,
        }
    }
}

impl Ingress {
    /// The one who pays for the groups of this owner.
    pub(crate) fn group_owner(&self, owner: Owner) -> Arc<GroupOwner> {
        self.inner.spreader.owner(owner)
    }

    /// Routes messages that match `filter` to a shared group. From now on those above QoS 0 go to this consumer, if there is
    /// one, and not to the group.
    pub(crate) fn set_group(&self, filter: &str, group: &Arc<SharedGroup>, consumer: Option<ConsumerId>) {
        let mut sequencer = self.inner.sequencer.lock();
        let groups = sequencer.take_groups(filter, group).unwrap_or_else(|| {
            sequencer.wild_groups += wild(filter);
            self.limit_batches(sequencer.wild_groups);
            Arc::new(FilterGroups::like(group))
        });
        groups.set(group, consumer);
        sequencer.routes.insert(filter, Route::Groups(groups));
    }

    /// Routes no more messages to a shared group.
    pub(crate) fn remove_group(&self, filter: &str, group: &SharedGroup) {
        let mut sequencer = self.inner.sequencer.lock();
        let Some(groups) = sequencer.take_groups(filter, group) else { return };
        if groups.remove(group) {
            sequencer.wild_groups -= wild(filter);
            self.limit_batches(sequencer.wild_groups);
        } else {
            sequencer.routes.insert(filter, Route::Groups(groups));
        }
    }

    /// A message is put down for the groups of each filter that matches it, one filter after the other, so batches are small
    /// while many filters with groups may match the same topic.
    fn limit_batches(&self, wild_groups: usize) {
        let most = (LOOKS / wild_groups.max(1)).max(SMALL_BATCH);
        self.inner.most_of_a_batch.store(most as u32, Ordering::Relaxed);
    }

    /// The most messages of a batch of a client.
    pub(crate) fn most_of_a_batch(&self) -> u32 {
        self.inner.most_of_a_batch.load(Ordering::Relaxed)
    }

    /// Hands over messages that wait for groups, until `cancel`.
    pub(crate) async fn spread(self, cancel: CancellationToken) {
        self.inner.spreader.run(cancel).await;
    }
}
