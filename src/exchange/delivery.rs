//! A message on its way to one subscriber, with how to deliver it and whom to tell of the result.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::matched_ids::MatchedIds;
use crate::journal::Position;
use crate::message::{Message, MessageRef, Packed, Qos};

/// Identifies an inbox. Each inbox has its own id, also those that one client has one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InboxId(u64);

impl InboxId {
    /// An id that no other inbox has.
    pub(super) fn next() -> InboxId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        InboxId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The source of messages that each go to only one member of a group. It is told the result of each delivery. This is all
/// that a message on its way knows of [`super::shared`], which knows the inboxes of the members.
pub(crate) trait SharesOut: Debug + Send + Sync {
    /// The member with this inbox has settled a message.
    fn settled(self: Arc<Self>, by: InboxId, kept: Option<KeptPlace>);

    /// No member gets the message any more.
    fn give_up(&self, kept: Option<KeptPlace>);

    /// Takes back messages that a member left unacknowledged, oldest first. Other members get them before newer ones.
    fn take_back(self: Arc<Self>, messages: Vec<(Share, Message)>);

    /// Distributes messages, because a member may have room again.
    fn look(self: Arc<Self>);
}

/// The position and the ordinal of a message in the journal.
pub(crate) type KeptPlace = (Position, u64);

/// The way of a message back to its group.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pub(crate) group: Arc<dyn SharesOut>,
    /// The place of the message in the journal, if it comes from there.
    pub(super) kept: Option<KeptPlace>,
}

impl Share {
    /// Tells the group that the member with this inbox has settled the message.
    pub(crate) fn settled(self, by: InboxId) {
        self.group.settled(by, self.kept);
    }

    /// Tells the group that no member gets the message any more.
    pub(crate) fn give_up(&self) {
        self.group.give_up(self.kept);
    }
}

/// How to deliver one message.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// The ids of the client's subscriptions that match the message.
    pub(crate) ids: MatchedIds,
    /// The shared subscription that gave the message, which is told when the delivery is settled.
    pub(crate) share: Option<Share>,
}

/// A message on its way to a subscriber.
#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) message: Message,
    pub(crate) grant: Grant,
}

impl Queued {
    /// Its bytes in memory.
    pub(crate) fn size(&self) -> usize {
        self.message.size() + self.grant.ids.size()
    }
}

/// The retain flag of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetainFlag {
    /// No flag, because the message is live [MQTT-3.3.1-12].
    Clear,
    /// The flag of the publication, as the subscription asks.
    AsPublished,
}

/// How a subscriber gets the messages that a filter matches.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The highest QoS of deliveries.
    pub(crate) qos: Qos,
    pub(crate) retain: RetainFlag,
    /// Whether the subscriber's own messages are left out.
    pub(crate) no_local: bool,
    /// The ids of the subscriptions.
    pub(crate) ids: MatchedIds,
    /// The shared subscription that gives the messages.
    pub(crate) share: Option<Share>,
}

impl Terms {
    /// Whether the message is delivered with the retain flag on these terms.
    pub(crate) fn is_retained(&self, message: MessageRef<'_>) -> bool {
        match self.retain {
            RetainFlag::Clear => false,
            RetainFlag::AsPublished => message.retain(),
        }
    }

    /// How to deliver one message on these terms.
    pub(crate) fn grant(&self, message: MessageRef<'_>) -> Grant {
        let retain = self.is_retained(message);
        Grant { qos: self.qos.min(message.qos()), retain, ids: self.ids.clone(), share: self.share.clone() }
    }
}

/// Consecutive messages of a batch that go to a subscriber on the same terms. They are handed over with one reference,
/// however many they are.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) messages: Packed,
    pub(crate) terms: Terms,
}

impl Run {
    pub(crate) fn one(message: Message, terms: Terms) -> Run {
        Run { messages: Packed::one(message), terms }
    }

    /// Its bytes in memory.
    pub(crate) fn size(&self) -> usize {
        self.messages.size() + self.terms.ids.size()
    }
}
