//! A message on its way to one subscriber, how it is to be delivered, and who is told what becomes of it.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use crate::journal::Position;
use crate::message::{Message, MessageRef, Packed, Qos};

/// Tells inboxes apart: each has its own, those of one client one after another too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboxId(u64);

impl InboxId {
    /// One that no inbox has had.
    pub(super) fn next() -> InboxId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        InboxId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Where messages come from that each go to one member of a group only: it is told what became of each. This is all that a
/// message on its way knows of [`super::shared`], which knows its members' inboxes.
pub(crate) trait SharesOut: Debug + Send + Sync {
    /// The member with this inbox has dealt with a message.
    fn settled(self: Arc<Self>, by: InboxId, kept: Option<KeptPlace>);

    /// Nobody gets a message any more.
    fn give_up(&self, kept: Option<KeptPlace>);

    /// Messages of this group that a member left unacknowledged, oldest first: others get them before anything newer.
    fn take_back(self: Arc<Self>, messages: Vec<(Share, Message)>);
}

/// Place and ordinal of a message in the journal.
pub(crate) type KeptPlace = (Position, u64);

/// A message's way back to the group that it came from.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) group: Arc<dyn SharesOut>,
    /// Its place in the journal, where it comes from there.
    pub(super) kept: Option<KeptPlace>,
}

impl Share {
    /// The member with this inbox has dealt with the message.
    pub(crate) fn settled(self, by: InboxId) {
        self.group.settled(by, self.kept);
    }

    /// Nobody gets the message any more.
    pub(crate) fn give_up(&self) {
        self.group.give_up(self.kept);
    }
}

/// How one message is to be delivered.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    /// QoS of the delivery.
    pub(crate) qos: Qos,
    /// Retain flag of the delivery.
    pub(crate) retain: bool,
    /// Ids of the subscriptions that it is for.
    pub(crate) ids: SmallVec<[u32; 1]>,
    /// The shared subscription that it comes from, to be told when the delivery is settled.
    pub(crate) share: Option<Share>,
}

/// A message on its way to a subscriber.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) message: Message,
    /// How to deliver it.
    pub(crate) grant: Grant,
}

/// Which retain flag a delivery has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetainFlag {
    /// None: it is a live message [MQTT-3.3.1-12].
    Clear,
    /// That of the publication, as the subscription wants it.
    AsPublished,
}

/// How a subscriber gets the messages that a filter selects.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Largest QoS.
    pub(crate) qos: Qos,
    /// Retain flag.
    pub(crate) retain: RetainFlag,
    /// What the subscriber itself published is left out.
    pub(crate) no_local: bool,
    /// Ids of the subscriptions that they are for.
    pub(crate) ids: SmallVec<[u32; 1]>,
    /// The shared subscription that they come from.
    pub(crate) share: Option<Share>,
}

impl Terms {
    /// How one message is delivered on these terms.
    pub(crate) fn grant(&self, message: MessageRef<'_>) -> Grant {
        let retain = match self.retain {
            RetainFlag::Clear => false,
            RetainFlag::AsPublished => message.retain(),
        };
        Grant { qos: self.qos.min(message.qos()), retain, ids: self.ids.clone(), share: self.share.clone() }
    }
}

/// Messages next to each other in a batch that go to a subscriber on the same terms: handed over with one reference,
/// however many they are.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) messages: Packed,
    /// How to deliver them.
    pub(crate) terms: Terms,
}

impl Run {
    /// A run of one.
    pub(crate) fn one(message: Message, terms: Terms) -> Run {
        Run { messages: Packed::one(message), terms }
    }
}
