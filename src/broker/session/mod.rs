//! The state of a client that outlives its connection: subscriptions and messages in flight [MQTT-4.1, 4.3].
//!
//! This file decides and does no I/O: the connection tells it what arrived and sends what it says.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::replies::Replies;
use crate::access::quota::Holding;
use crate::exchange::delivery::{Grant, Queued, Share};
use crate::exchange::filters::FilterTree;
use crate::exchange::shared::SharedGroup;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::exchange::waiting::Left;
use crate::journal::{ConsumerId, Position, Reader};
use crate::message::{Message, MessageRef, Origin, Qos};
use crate::mqtt::Reason;

/// Packet ids from 1 to this one are for messages from the journal, in sessions that have such.
const FROM_JOURNAL: u16 = 32_767;

/// `$share/NAME/FILTER` taken apart.
pub(super) fn split_share(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$share/")?.split_once('/')
}

/// Where a message in flight came from, and so who is told when it is settled.
#[derive(Clone, Debug)]
pub(crate) enum DeliverySource {
    /// The router or the retained store: nobody.
    Live,
    /// The journal: place and ordinal.
    Journal(Position, u64),
    /// A shared subscription.
    Shared(Share),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryStep {
    /// PUBLISH sent, PUBACK or PUBREC awaited.
    Published,
    /// PUBREL sent, PUBCOMP awaited.
    Released,
    /// Not sent on this connection yet: the client's window is smaller than it was.
    Held,
    /// The same, but for PUBREL.
    HeldRelease,
}

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    step: DeliveryStep,
    queued: Queued,
    source: DeliverySource,
}

/// What to send for a message in flight.
#[derive(Debug)]
pub(crate) enum Send<'a> {
    /// A PUBLISH.
    Publish {
        /// Packet id.
        packet_id: u16,
        /// Sent before.
        dup: bool,
        /// Message and how to deliver it.
        queued: &'a Queued,
    },
    /// A PUBREL with this packet id.
    Release(u16),
}

/// What a PUBREC leads to.
#[derive(Debug)]
pub(crate) enum Received {
    /// Send PUBREL; for a message from the journal, once this is noted of its ordinal.
    Release(Option<u64>),
    /// The client refused the message: it is settled.
    Refused(DeliverySource),
    /// No such message in flight.
    Unknown,
}

/// QoS 1 and 2 messages sent to a client and not yet acknowledged, in order.
#[derive(Debug)]
pub(crate) struct Outbound {
    in_flight: VecDeque<InFlight>,
    /// Bytes of these messages.
    bytes: usize,
    last_id: u16,
    window: usize,
}

impl Outbound {
    /// Nothing in flight; at most `window` at a time.
    pub(crate) fn new(window: u16) -> Outbound {
        Outbound { in_flight: VecDeque::new(), bytes: 0, last_id: 0, window: usize::from(window.max(1)) }
    }

    /// How many more may be sent.
    pub(crate) fn room(&self) -> usize {
        self.window.saturating_sub(self.in_flight.len())
    }

    /// Bytes of the messages in flight.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages in flight.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// A packet id that is not in use. For messages from the journal it follows from the ordinal, so that it is the same
    /// when the message is sent again after a restart; in sessions that have such, others take the upper half.
    pub(crate) fn next_id(&mut self, source: &DeliverySource, is_durable: bool) -> u16 {
        if let DeliverySource::Journal(_, ordinal) = source {
            let id = (ordinal % u64::from(FROM_JOURNAL)) as u16 + 1;
            if self.in_flight.iter().all(|known| known.packet_id != id) {
                return id;
            }
            // a message is that far behind: what is sent after it may not keep its id over a restart
        }
        let first = if is_durable { FROM_JOURNAL + 1 } else { 1 };
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(first).max(first);
            if self.in_flight.iter().all(|known| known.packet_id != self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Takes a message into flight under an id of [`Outbound::next_id`].
    pub(crate) fn begin(&mut self, packet_id: u16, queued: Queued, source: DeliverySource) {
        self.bytes += queued.message.size();
        self.in_flight.push_back(InFlight { packet_id, step: DeliveryStep::Published, queued, source });
    }

    /// Takes a message into flight that was received before the gateway was started: its PUBREL is sent again.
    pub(crate) fn begin_released(&mut self, packet_id: u16, queued: Queued, source: DeliverySource) {
        self.bytes += queued.message.size();
        self.in_flight.push_back(InFlight { packet_id, step: DeliveryStep::HeldRelease, queued, source });
    }

    /// A message in flight could not be sent again: it is settled.
    pub(crate) fn give_up(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |_| true)
    }

    /// PUBACK: what was settled.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |entry| {
            entry.queued.grant.qos == Qos::AtLeastOnce && entry.step == DeliveryStep::Published
        })
    }

    /// PUBREC [MQTT-4.3.3].
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

    /// PUBCOMP: what was settled.
    pub(crate) fn completed(&mut self, packet_id: u16) -> Option<DeliverySource> {
        self.remove(packet_id, |entry| entry.step == DeliveryStep::Released)
    }

    fn remove(&mut self, packet_id: u16, accept: impl Fn(&InFlight) -> bool) -> Option<DeliverySource> {
        let at = self.in_flight.iter().position(|entry| entry.packet_id == packet_id && accept(entry))?;
        let entry = self.in_flight.remove(at)?;
        self.bytes -= entry.queued.message.size();
        Some(entry.source)
    }

    /// A new connection with this window: everything in flight must be sent again [MQTT-4.4.0-1].
    pub(crate) fn resume(&mut self, window: u16) {
        self.window = usize::from(window.max(1));
        for entry in &mut self.in_flight {
            entry.step = match entry.step {
                DeliveryStep::Published | DeliveryStep::Held => DeliveryStep::Held,
                DeliveryStep::Released | DeliveryStep::HeldRelease => DeliveryStep::HeldRelease,
            };
        }
    }

    /// Calls `send` for what has to be sent again, oldest first, as far as the window allows.
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

    /// Whether something has to be sent again as soon as the window allows.
    pub(crate) fn has_held(&self) -> bool {
        self.in_flight.iter().any(|entry| matches!(entry.step, DeliveryStep::Held | DeliveryStep::HeldRelease))
    }

    /// Takes out what came from shared subscriptions and was not acknowledged: others shall get it. A QoS 2 message stays: it
    /// is for this session, or for nobody [MQTT-4.8.2-4], [MQTT-4.8.2-5].
    pub(crate) fn take_shared(&mut self) -> Vec<(Share, Message)> {
        let mut taken = Vec::new();
        let bytes = &mut self.bytes;
        self.in_flight.retain(|entry| match &entry.source {
            DeliverySource::Shared(share) if entry.queued.grant.qos < Qos::ExactlyOnce => {
                *bytes -= entry.queued.message.size();
                taken.push((share.clone(), entry.queued.message.clone()));
                false
            }
            _ => true,
        });
        taken
    }

    /// What came from shared subscriptions and is in flight still.
    pub(crate) fn shares(&self) -> impl Iterator<Item = &Share> {
        self.in_flight.iter().filter_map(|entry| match &entry.source {
            DeliverySource::Shared(share) => Some(share),
            _ => None,
        })
    }
}

/// One subscription of a session.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) options: SubscriptionOptions,
    /// Its group, for a shared subscription.
    pub(crate) group: Option<Arc<SharedGroup>>,
}

/// What feeds a persistent session.
#[derive(Debug)]
pub(crate) struct DurableFeed {
    /// Its consumer in the journal.
    pub(crate) consumer: ConsumerId,
    /// Where it reads.
    pub(crate) reader: Reader,
}

/// What a subscription counts for: a long filter as much as several short ones.
fn units(filter: &str) -> usize {
    1 + filter.len() / 128
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Whose it is; see [`SessionName`](crate::access::identity::SessionName).
    pub(crate) owner: Box<str>,
    /// Its name in the journal: mostly the same, unless it was made before anybody noted whose a session was.
    pub(crate) name: Box<str>,
    /// Subscriptions by filter as the client wrote it.
    pub(crate) subscriptions: HashMap<Box<str>, Subscription>,
    /// The same without shared ones, for messages from the journal.
    own: FilterTree<SubscriptionOptions>,
    /// And the shared ones, for what a group has handed over.
    shared: FilterTree<SubscriptionOptions>,
    /// Outgoing QoS 1 and 2 messages.
    pub(crate) outbound: Outbound,
    /// Incoming QoS 2 messages that are not released.
    pub(crate) unreleased: BTreeSet<u16>,
    /// Retained messages to send for new subscriptions.
    pub(crate) retained: Replies,
    /// Present in persistent sessions.
    pub(crate) durable: Option<DurableFeed>,
    /// Bytes of all its filters.
    pub(crate) filter_bytes: usize,
    /// What its subscriptions take of what all may have.
    pub(crate) held: Holding,
    /// While its client is away: what that has not acknowledged goes on to take memory.
    pub(crate) left: Option<Left>,
    /// Whether the journal has every subscription under a name of its own.
    pub(crate) is_kept: bool,
    /// Seconds that the session outlives its connection; `u32::MAX`: as long as the broker allows.
    pub(crate) expiry: u32,
}

impl Session {
    /// A new session.
    pub(crate) fn new(name: &str, window: u16, durable: Option<DurableFeed>, expiry: u32) -> Session {
        Session {
            owner: name.into(),
            name: name.into(),
            subscriptions: HashMap::new(),
            own: FilterTree::default(),
            shared: FilterTree::default(),
            outbound: Outbound::new(window),
            unreleased: BTreeSet::new(),
            retained: Replies::default(),
            durable,
            filter_bytes: 0,
            held: Holding::default(),
            left: None,
            is_kept: true,
            expiry,
        }
    }

    /// Notes a subscription; returns the one it replaces.
    pub(crate) fn subscribe(&mut self, filter: &str, subscription: Subscription) -> Option<Subscription> {
        let (tree, inner) = self.tree(filter, &subscription);
        tree.remove(inner, |_| true);
        tree.insert(inner, subscription.options);
        let old = self.subscriptions.insert(filter.into(), subscription);
        if old.is_none() {
            self.filter_bytes += filter.len();
            self.held.add(units(filter));
        }
        old
    }

    /// Forgets a subscription.
    pub(crate) fn unsubscribe(&mut self, filter: &str) -> Option<Subscription> {
        let removed = self.subscriptions.remove(filter)?;
        let (tree, inner) = self.tree(filter, &removed);
        tree.remove(inner, |_| true);
        self.filter_bytes -= filter.len();
        self.held.remove(units(filter));
        Some(removed)
    }

    /// Whether its owner may have this subscription besides all others.
    pub(crate) fn has_room_for(&self, filter: &str) -> bool {
        self.held.has_room(units(filter))
    }

    /// Its consumer in the journal, if it is persistent.
    pub(crate) fn consumer(&self) -> Option<ConsumerId> {
        self.durable.as_ref().map(|durable| durable.consumer)
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

    /// The groups that hand QoS 2 messages over to this session.
    pub(crate) fn givers(&self) -> impl Iterator<Item = &Arc<SharedGroup>> {
        let known = if self.shared.is_empty() { None } else { Some(self.subscriptions.values()) };
        let known = known.into_iter().flatten().filter(|known| known.options.qos == Qos::ExactlyOnce);
        known.filter_map(|known| known.group.as_ref())
    }

    /// How to deliver a message from the journal by today's subscriptions; `None`: not at all.
    pub(crate) fn grant(&self, message: MessageRef<'_>) -> Option<Grant> {
        let mut granted: Option<Grant> = None;
        self.own.matches(message.topic(), |options| {
            if options.no_local && message.origin() == Origin::client(&self.owner) {
                return;
            }
            let grant = granted.get_or_insert_with(|| Grant {
                qos: Qos::AtMostOnce,
                retain: false,
                ids: SmallVec::new(),
                share: None,
            });
            grant.qos = grant.qos.max(options.qos.min(message.qos()));
            grant.retain |= options.retain_as_published && message.retain();
            grant.ids.extend(options.id);
        });
        if granted.is_none() && !self.shared.is_empty() {
            self.shared.matches(message.topic(), |options| {
                let ids = options.id.into_iter().collect();
                let retain = options.retain_as_published && message.retain();
                let qos = options.qos.min(message.qos());
                granted.get_or_insert(Grant { qos, retain, ids, share: None });
            });
        }
        granted
    }
}

#[cfg(test)]
mod tests;
