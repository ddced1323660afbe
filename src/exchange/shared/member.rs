//! A connected client in a group.

use std::sync::{Arc, Weak};

use crate::access::authorise::Permissions;
use crate::exchange::delivery::SharesOut;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::journal::{ConsumerId, Journal};
use crate::message::Qos;

/// The most unsettled messages of one member.
pub(super) const MEMBER_WINDOW: usize = 20;

#[derive(Debug)]
pub(super) struct Member {
    /// Its group.
    pub(super) group: Weak<dyn SharesOut>,
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) permissions: Arc<Permissions>,
    pub(super) options: SubscriptionOptions,
    pub(super) unsettled: usize,
    /// Whether a message that was passed over waits for room at this member.
    pub(super) is_awaited: bool,
    /// The consumer of its session, if that is persistent.
    pub(super) consumer: Option<ConsumerId>,
}

impl Member {
    pub(super) fn takes_over(&self) -> Option<ConsumerId> {
        self.consumer.filter(|_| self.options.qos == Qos::ExactlyOnce)
    }

    /// Whether it accepts a message. If not, it asks the group as soon as it does.
    pub(super) fn has_room(&self, journal: Option<&Journal>) -> bool {
        let inbox = &self.subscriber.inbox;
        let takes_more = || !self.takes_over().zip(journal).is_some_and(|(id, journal)| is_behind(journal, id));
        // a member with unsettled messages asks with each that it settles
        self.unsettled < MEMBER_WINDOW
            && inbox.has_room_for(&self.group)
            && (takes_more() || {
                // before another check, so that it is noticed if the session has more room after it
                inbox.behind.add(&self.group);
                takes_more()
            })
    }
}

/// Whether so much waits for a session that no more is handed over to it.
pub(crate) fn is_behind(journal: &Journal, session: ConsumerId) -> bool {
    journal.backlog(session).messages >= MEMBER_WINDOW
}
