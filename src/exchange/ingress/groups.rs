//! The groups of shared subscriptions to which messages go.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Ingress, Route, RouteKey, Sequencer};
use crate::exchange::shared::SharedGroup;
use crate::exchange::shared::owner::GroupOwner;
use crate::exchange::shared::together::FilterGroups;
use crate::journal::ConsumerId;
use crate::message::Owner;

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
        let groups = sequencer.take_groups(filter, group).unwrap_or_else(|| Arc::new(FilterGroups::like(group)));
        groups.set(group, consumer);
        sequencer.routes.insert(filter, Route::Groups(groups));
    }

    /// Routes no more messages to a shared group.
    pub(crate) fn remove_group(&self, filter: &str, group: &SharedGroup) {
        let mut sequencer = self.inner.sequencer.lock();
        if let Some(groups) = sequencer.take_groups(filter, group)
            && !groups.remove(group)
        {
            sequencer.routes.insert(filter, Route::Groups(groups));
        }
    }

    /// Hands over messages that wait for groups, until `cancel`.
    pub(crate) async fn spread(self, cancel: CancellationToken) {
        self.inner.spreader.run(cancel).await;
    }
}
