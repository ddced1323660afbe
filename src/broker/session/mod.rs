//! The state of a client that outlives its connection: subscriptions and messages in flight [MQTT-4.1, 4.3].
//!
//! This file makes decisions and does no I/O: the connection reports what has arrived and performs what this file decides.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::replies::Replies;
use crate::access::quota::Holding;
use crate::exchange::delivery::{Grant, Queued, Share};
use crate::exchange::filters::FilterTree;
use crate::exchange::matched_ids::MatchedIds;
use crate::exchange::meter::Walk;
use crate::exchange::shared::SharedGroup;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::exchange::waiting::Left;
use crate::journal::{ConsumerId, Position, Reader};
use crate::message::{Message, MessageRef, Origin, Qos};
use crate::mqtt::Reason;
use crate::mqtt::packet_ids::PacketIds;

/// In sessions with messages from the journal, these messages have packet ids from 1 to this one.
const FROM_JOURNAL: u16 = 32_767;

/// The name and the filter of `$share/NAME/FILTER`.
pub(super) fn split_share(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

/// The source of a message in flight, which is told when the message is settled.
#[derive(Clone, Debug)]
pub(crate) enum DeliverySource {
    /// The router or the retained store, which need not be told.
    Live,
    /// The journal, with position and ordinal of the message.
    Journal(Position, u64),
    Shared(Share),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryStep {
    /// PUBLISH was sent; PUBACK or PUBREC is awaited.
    Published,
    /// PUBREL was sent; PUBCOMP is awaited.
    Released,
    /// PUBLISH was not sent on this connection yet, because the client's window is smaller than before.
    Held,
    /// PUBREL was not sent on this connection yet, for the same reason.
    HeldRelease,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    step: DeliveryStep,
    queued: Queued,
    source: DeliverySource,
}

/// The packet to send for a message in flight.
#[derive(Debug)]
pub(crate) enum Send<'a> {
    Publish {
        packet_id: u16,
        /// The packet was sent before.
        dup: bool,
        /// The message and how to deliver it.
        queued: &'a Queued,
    },
    Release(u16),
}

/// The result of a PUBREC.
#[derive(Debug)]
pub(crate) enum Received {
    /// A PUBREL must be sent. For a message from the journal, this must first be recorded for its ordinal.
    Release(Option<u64>),
    /// The client has refused the message, which settles it.
    Refused(DeliverySource),
    /// No message with this packet id is in flight.
    Unknown,
}

/// QoS 1 and 2 messages that were sent and are not acknowledged yet, in order.
#[derive(Debug)]
pub(crate) struct Outbound {
    in_flight: VecDeque<InFlight>,
    /// The bytes of these messages.
    bytes: usize,
    last_id: u16,
    window: usize,
}

impl Outbound {
    /// Starts with nothing in flight. At most `window` messages are in flight at a time.
    pub(crate) fn new(window: u16) -> Outbound {
        Outbound { in_flight: VecDeque::new(), bytes: 0, last_id: 0, window: usize::from(window.max(1)) }
    }

    /// How many more messages may be sent.
    pub(crate) fn room(&self) -> usize {
        self.window.saturating_sub(self.in_flight.len())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// A packet id that is not in use. For a message from the journal it is derived from the ordinal, so that it is the same
    /// when the message is sent again after a restart. In sessions with such messages, others use the upper half of the
    /// range.
    pub(crate) fn next_id(&mut self, source: &DeliverySource, is_durable: bool) -> u16 {
        if let DeliverySource::Journal(_, ordinal) = source {
            let id = (ordinal % u64::from(FROM_JOURNAL)) as u16 + 1;
            if self.in_flight.iter().all(|known| known.packet_id != id) {
                return id;
            }
            // a message that far behind still holds this id; the new message may get another id after a restart
        }
        let first = if is_durable { FROM_JOURNAL + 1 } else { 1 };
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(first).max(first);
            if self.in_flight.iter().all(|known| known.packet_id != self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Records a message as in flight, with an id from [`Outbound::next_id`].
    pub(crate) fn begin(&mut self, packet_id: u16, queued: Queued, source: DeliverySource) {
        self.bytes += queued.size();
        self.in_flight.push_back(InFlight { packet_id, step: DeliveryStep::Published, queued, source });
    }

    /// Records a message for which the client sent PUBREC before a restart, so that PUBREL is sent again.
    pub(crate) fn begin_released(&mut self, packet_id: u16, queued: Queued, source: DeliverySource) {
        self.bytes += queued.size();
        self.in_flight.push_back(InFlight { packet_id, step: DeliveryStep::HeldRelease, queued, source });
    }

    /// Removes a message that could not be sent again. It counts as settled.
    pub(crate) fn give_up(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |_| true)
    }

    /// Processes a PUBACK. Returns the source of the settled message.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |entry| {
            entry.queued.grant.qos == Qos::AtLeastOnce && entry.step == DeliveryStep::Published
        })
    }

    /// Processes a PUBREC [MQTT-4.3.3].
    pub(crate) fn received(&mut self, packet_id: u16, reason: Reason) -> Received {
        if reason.is_error() {
            return self.give_up(packet_id).map_or(Received::Unknown, Received::Refused);
        }
        let entry = self.in_flight.iter_mut().find(|entry| {
            entry.packet_id == packet_id
                && entry.queued.grant.qos == Qos::ExactlyOnce
                && entry.step != DeliveryStep::Held
        });
        match entry {
            Some(entry) => {
                let is_first = entry.step == DeliveryStep::Published;
                entry.step = DeliveryStep::Released;
                Received::Release(match entry.source {
                    DeliverySource::Journal(_, ordinal) if is_first => Some(ordinal),
                    _ => None,
                })
            }
            None => Received::Unknown,
        }
    }

    /// Processes a PUBCOMP. Returns the source of the settled message.
    pub(crate) fn completed(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |entry| entry.step == DeliveryStep::Released)
    }

    fn remove(&mut self, packet_id: u16, accept: impl Fn(&InFlight) -> bool) -> Option<DeliverySource> {
        let at = self.in_flight.iter().position(|entry| entry.packet_id == packet_id && accept(entry))?;
        let entry = self.in_flight.remove(at)?;
        self.bytes -= entry.queued.size();
        Some(entry.source)
    }

    /// Starts a new connection with this window: everything in flight must be sent again [MQTT-4.4.0-1].
    pub(crate) fn resume(&mut self, window: u16) {
        self.window = usize::from(window.max(1));
        for entry in &mut self.in_flight {
            entry.step = match entry.step {
                DeliveryStep::Published | DeliveryStep::Held => DeliveryStep::Held,
                DeliveryStep::Released | DeliveryStep::HeldRelease => DeliveryStep::HeldRelease,
            };
        }
    }

    /// Calls `send` for what must be sent again, oldest first, as far as the window allows.
    pub(crate) fn resend(&mut self, mut send: impl FnMut(Send<'_>)) {
        for entry in self.in_flight.iter_mut().take(self.window) {
            match entry.step {
                DeliveryStep::Held => {
                    send(Send::Publish { packet_id: entry.packet_id, dup: true, queued: &entry.queued });
                    entry.step = DeliveryStep::Published;
                }
                DeliveryStep::HeldRelease => {
                    send(Send::Release(entry.packet_id));
                    entry.step = DeliveryStep::Released;
                }
                DeliveryStep::Published | DeliveryStep::Released => {}
            }
        }
    }

    /// Whether something must be sent again as soon as the window allows.
    pub(crate) fn has_held(&self) -> bool {
        self.in_flight.iter().any(|entry| matches!(entry.step, DeliveryStep::Held | DeliveryStep::HeldRelease))
    }

    /// Takes out unacknowledged messages of shared subscriptions, so that other members get them. A QoS 2 message stays,
    /// because it must go to this session or to nobody [MQTT-4.8.2-4], [MQTT-4.8.2-5].
    pub(crate) fn take_shared(&mut self) -> Vec<(Share, Message)> {
        let mut taken = Vec::new();
        let bytes = &mut self.bytes;
        self.in_flight.retain(|entry| match &entry.source {
            DeliverySource::Shared(share) if entry.queued.grant.qos < Qos::ExactlyOnce => {
                *bytes -= entry.queued.size();
                taken.push((share.clone(), entry.queued.message.clone()));
                false
            }
            _ => true,
        });
        taken
    }

    /// The messages of shared subscriptions that are in flight.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.in_flight.iter().filter_map(|entry| match &entry.source {
            DeliverySource::Shared(share) => Some(share),
            _ => None,
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) options: SubscriptionOptions,
    /// The group of a shared subscription.
    pub(crate) group: Option<Arc<SharedGroup>>,
}

/// The journal's part of a persistent session.
#[derive(Debug)]
pub(crate) struct DurableFeed {
    pub(crate) consumer: ConsumerId,
    /// The reader of the consumer's messages.
    pub(crate) reader: Reader,
}

/// The units that a subscription uses of the quota. A long filter counts as several short ones.
fn units(filter: &str) -> usize {
    1 + filter.len() / 128
}

/// The state of one client that outlives its connections.
#[derive(Debug)]
pub(crate) struct Session {
    /// The name of the owner; see [`SessionName`](crate::access::identity::SessionName).
    pub(crate) owner: Box<str>,
    /// The name in the journal. It differs from `owner` if an older version made the session without recording the owner.
    pub(crate) name: Box<str>,
    /// By filter, as the client wrote it.
    pub(crate) subscriptions: HashMap<Box<str>, Subscription>,
    /// The subscriptions that are not shared, for messages from the journal.
    own: FilterTree<SubscriptionOptions>,
    /// The shared subscriptions, for messages that a group has handed over.
    shared: FilterTree<SubscriptionOptions>,
    pub(crate) outbound: Outbound,
    /// Packet ids of incoming QoS 2 messages whose PUBREL has not arrived.
    pub(crate) unreleased: PacketIds,
    /// Retained messages that wait to be sent for new subscriptions.
    pub(crate) retained: Replies,
    /// `None` unless the session is persistent.
    pub(crate) durable: Option<DurableFeed>,
    /// The bytes of all its topic filters.
    pub(crate) filter_bytes: usize,
    /// The units that its subscriptions use of the owner's quota.
    pub(crate) held: Holding,
    /// While the client is absent, counts the memory of messages that it has not acknowledged.
    pub(crate) left: Option<Left>,
    /// Whether the journal has every subscription under its own name.
    pub(crate) is_kept: bool,
    /// How long the session outlives its connection, in seconds; `u32::MAX` means as long as the broker allows.
    pub(crate) expiry: u32,
}

impl Session {
    pub(crate) fn new(name: &str, window: u16, durable: Option<DurableFeed>, expiry: u32) -> Session {
        Session {
            owner: name.into(),
            name: name.into(),
            subscriptions: HashMap::new(),
            own: FilterTree::default(),
            shared: FilterTree::default(),
            outbound: Outbound::new(window),
            unreleased: PacketIds::default(),
            retained: Replies::default(),
            durable,
            filter_bytes: 0,
            held: Holding::default(),
            left: None,
            is_kept: true,
            expiry,
        }
    }

    /// Adds a subscription and returns the one that it replaces.
    pub(crate) fn subscribe(&mut self, filter: &str, subscription: Subscription) -> Option<Subscription> {
        let replaced = self.subscriptions.get(filter).map(|known| known.options);
        let (tree, inner) = self.tree(filter, &subscription);
        if let Some(options) = replaced {
            tree.remove(inner, &options);
        }
        tree.insert(inner, subscription.options);
        let old = self.subscriptions.insert(filter.into(), subscription);
        if old.is_none() {
            self.filter_bytes += filter.len();
            self.held.add(units(filter));
        }
        old
    }

    pub(crate) fn unsubscribe(&mut self, filter: &str) -> Option<Subscription> {
        let removed = self.subscriptions.remove(filter)?;
        let (tree, inner) = self.tree(filter, &removed);
        tree.remove(inner, &removed.options);
        self.filter_bytes -= filter.len();
        self.held.remove(units(filter));
        Some(removed)
    }

    /// Whether the owner's quota has room for this subscription.
    pub(crate) fn has_room_for(&self, filter: &str) -> bool {
        self.held.has_room(units(filter))
    }

    /// Its consumer in the journal, if the session is persistent.
    pub(crate) fn consumer(&self) -> Option<ConsumerId> {
        self.durable.as_ref().map(|durable| durable.consumer)
    }

    /// Its consumer in the journal, if messages for this subscription are kept while the client is absent.
    pub(crate) fn awaits(&self, options: SubscriptionOptions) -> Option<ConsumerId> {
        self.consumer().filter(|_| options.qos > Qos::AtMostOnce)
    }

    fn tree<'f>(
        &mut self,
        filter: &'f str,
        subscription: &Subscription,
    ) -> (&mut FilterTree<SubscriptionOptions>, &'f str) {
        match subscription.group.as_ref().and_then(|_| split_share(filter)) {
            Some((_, inner)) => (&mut self.shared, inner),
            None => (&mut self.own, filter),
        }
    }

    /// How to deliver a message from the journal to the present subscriptions; `None` if none of them matches. What a group
    /// has handed over is for the subscription by which the client is in the group, because each group is a subscription of
    /// its own; the client's other subscriptions have the message as well.
    pub(crate) fn grant(&self, message: MessageRef<'_>, by_group: bool) -> Option<Grant> {
        if by_group { self.grant_by_group(message) } else { self.grant_by_own(message) }
    }

    fn grant_by_own(&self, message: MessageRef<'_>) -> Option<Grant> {
        let (mut granted, mut ids): (Option<Grant>, SmallVec<[u32; 8]>) = (None, SmallVec::new());
        self.own.matches(message.topic(), &mut Walk::default(), |options| {
            if options.no_local && message.origin() == Origin::client(&self.owner) {
                return;
            }
            let grant = granted.get_or_insert_with(|| Grant {
                qos: Qos::AtMostOnce,
                retain: false,
                ids: MatchedIds::default(),
                share: None,
            });
            grant.qos = grant.qos.max(options.qos.min(message.qos()));
            grant.retain |= options.retain_as_published && message.retain();
            ids.extend(options.id);
        });
        if let Some(grant) = &mut granted {
            grant.ids = ids.into();
        }
        granted
    }

    /// If several groups match, it was one with the highest QoS, because only at QoS 2 a message is handed over to a client
    /// that is connected.
    fn grant_by_group(&self, message: MessageRef<'_>) -> Option<Grant> {
        let mut granted: Option<Grant> = None;
        self.shared.matches(message.topic(), &mut Walk::default(), |options| {
            let qos = options.qos.min(message.qos());
            if granted.as_ref().is_none_or(|grant| grant.qos < qos) {
                let retain = options.retain_as_published && message.retain();
                granted = Some(Grant { qos, retain, ids: options.id.into(), share: None });
            }
        });
        granted
    }
}

#[cfg(test)]
mod tests;
