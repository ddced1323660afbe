//! The entrance for all messages.
//!
//! Every message from every door goes through [`Ingress`]. Under one short lock a batch gets its place in the order that the
//! retained store, the journal and the live router share. So two publishers can race, but never leave different last values
//! behind. Nothing is awaited under that lock.

mod carried;
mod groups;
mod route;
mod takers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::carried::Carried;
pub(crate) use self::route::{Route, RouteKey};
use self::takers::Takers;
use super::filters::{FilterTree, FilterValue, names_first_level};
use super::keeping::{retains, write};
use super::live::{LiveLink, Room, RouterError, empty_batch};
use super::meter::{FREE_STEPS, Meter, Walk};
use super::receiving::Receiving;
use super::retained::{Portion, Retained, SelectedRetained};
use super::shared::spread::{BatchForGroups, Spreader};
use super::stats::Stats;
use super::subscribers::{Subscriber, Subscribers, SubscriptionOptions};
use super::trace::Traces;
use crate::journal::{ConsumerId, Full, Journal, Position};
use crate::message::{Batch, BatchBuilder, Origin, Qos, TopicFilter};
use crate::time::SharedClock;
use crate::workers::worked;

/// What a publisher must wait for before a message counts as accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Receipt {
    /// The position in the journal that must be on disk; `None` if nobody needs the message kept.
    pub(crate) durable: Option<Position>,
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngressError {
    /// A consumer that refuses messages when it is full is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The journal never has room for a message of this size.
    #[error("it is larger than the journal can take: journal.max_size is too small for it")]
    TooLarge,
    /// The gateway is shutting down.
    #[error("the gateway is shutting down")]
    Closed,
    /// The router has failed.
    #[error(transparent)]
    Router(#[from] RouterError),
}

/// The result for a batch that has its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// What to wait for.
    pub(crate) receipt: Receipt,
    /// The indices in the batch of messages that were not accepted.
    pub(crate) refused: SmallVec<[u32; 4]>,
    /// Those of them that are larger than the journal can ever take.
    pub(crate) never_fit: Vec<NeverFits>,
    /// The indices of messages that were delivered and forwarded, but for which the retained store had no room.
    pub(crate) unretained: SmallVec<[u32; 4]>,
}

/// A message that is larger than the journal can ever take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NeverFits {
    /// Its index in the batch.
    pub(crate) place: u32,
    pub(crate) topic: Box<str>,
    /// The bytes of its payload.
    pub(crate) size: usize,
}

impl Accepted {
    /// The receipt, if the whole batch was accepted.
    pub(crate) fn whole(&self) -> Result<Receipt, IngressError> {
        match (self.refused.is_empty(), !self.never_fit.is_empty()) {
            (true, _) => Ok(self.receipt),
            (false, true) => Err(IngressError::TooLarge),
            (false, false) => Err(IngressError::Full(Full)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Sequencer {
    next_seq: u64,
    link: LiveLink,
    pub(super) retained: Retained,
    routes: FilterTree<Route>,
    /// The number of filters with wildcards that have groups, counted for each owner.
    wild_groups: usize,
    /// The filters of upstreams, with the consumers for their messages.
    upstream_filters: Vec<(Origin, ConsumerId, TopicFilter)>,
}

#[derive(Debug)]
pub(super) struct IngressInner {
    pub(super) sequencer: Mutex<Sequencer>,
    subscribers: Arc<Subscribers>,
    pub(super) journal: Journal,
    room: Room,
    pub(super) stats: Arc<Stats>,
    /// Notified when a retained message with an expiry interval has come.
    pub(super) expires: Notify,
    clock: ShownClock,
    carried: Mutex<Vec<Carried>>,
    max_packet_size: AtomicUsize,
    traces: Traces,
    receiving: Receiving,
    pub(super) meter: Arc<Meter>,
    spreader: Spreader,
    most_of_a_batch: AtomicU32,
}

/// A clock with a `Debug` implementation.
struct ShownClock(SharedClock);

impl std::fmt::Debug for ShownClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Puts messages in order and passes them on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingress {
    pub(super) inner: Arc<IngressInner>,
}

impl Ingress {
    pub(crate) fn new(
        link: LiveLink,
        subscribers: Arc<Subscribers>,
        journal: Journal,
        retained: Retained,
        stats: Arc<Stats>,
        clock: SharedClock,
    ) -> Ingress {
        let (room, meter) = (link.room(), link.meter().clone());
        let sequencer = Sequencer {
            next_seq: 0,
            link,
            retained,
            routes: FilterTree::default(),
            wild_groups: 0,
            upstream_filters: Vec::new(),
        };
        let clock = ShownClock(clock);
        let spreader = Spreader::new(meter.clone(), stats.clone());
        Ingress {
            inner: Arc::new(IngressInner {
                sequencer: Mutex::new(sequencer),
                subscribers,
                journal,
                room,
                stats,
                expires: Notify::new(),
                clock,
                carried: Mutex::default(),
                max_packet_size: AtomicUsize::new(usize::MAX),
                traces: Traces::default(),
                receiving: Receiving::default(),
                meter,
                spreader,
                most_of_a_batch: AtomicU32::new(u32::MAX),
            }),
        }
    }

    /// The size in bytes of the largest MQTT packet that any door accepts. The limit of HTTP is derived from it.
    pub(crate) fn max_packet_size(&self) -> usize {
        self.inner.max_packet_size.load(Ordering::Relaxed)
    }

    /// Changes the limit for later messages.
    pub(crate) fn set_max_packet_size(&self, bytes: usize) {
        self.inner.max_packet_size.store(bytes, Ordering::Relaxed);
    }

    /// The costs of clients and their turns.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.inner.meter
    }

    /// The memory for packets that are being received, for all doors.
    pub(crate) fn receiving(&self) -> &Receiving {
        &self.inner.receiving
    }

    /// Gives the batch its place and empties it. Returns `None` if live subscribers are too far behind; the batch is then
    /// unchanged, and another attempt is possible after [`Ingress::room`].
    pub fn try_publish(&self, batch: &mut BatchBuilder) -> Result<Option<Accepted>, RouterError> {
        self.try_publish_for(batch, None)
    }

    /// Like `try_publish`, for a persistent session. `received` has its consumer and, in order, the indices of QoS 2
    /// messages in the batch with their packet ids.
    pub(crate) fn try_publish_for(
        &self,
        batch: &mut BatchBuilder,
        received: Option<(ConsumerId, &[(u32, u16)])>,
    ) -> Result<Option<Accepted>, RouterError> {
        worked();
        let has_retain = batch.has_retain();
        let count = batch.len();
        let mut sequencer = self.inner.sequencer.lock();
        // with few filters no topic can visit many
        let is_deep = batch.deep() > 0 && sequencer.routes.len().max(self.inner.subscribers.len()) > FREE_STEPS;
        if !sequencer.link.has_room(batch) || is_deep && sequencer.link.is_deep() || sequencer.link.is_held(batch) {
            return Ok(None);
        }
        let seq = sequencer.next_seq;
        let mut placed = batch.finish(seq);
        let mut accepted = Accepted::default();
        let is_traced = self.traces().is_active(|| self.clock().boot_ms());
        if !sequencer.routes.is_empty() || has_retain || received.is_some() || is_traced {
            accepted = self.append(&mut sequencer, (&placed, count), received, is_traced);
            if !accepted.refused.is_empty() {
                placed = without(&placed, &accepted.refused);
            }
        }
        let count = count - accepted.refused.len() as u32;
        sequencer.next_seq = seq + u64::from(count);
        sequencer.link.publish(placed, count, is_deep)?;
        Ok(Some(accepted))
    }

    fn append(
        &self,
        sequencer: &mut Sequencer,
        (batch, count): (&Batch, u32),
        received: Option<(ConsumerId, &[(u32, u16)])>,
        is_traced: bool,
    ) -> Accepted {
        let mut accepted = Accepted::default();
        let mut expires = false;
        let announcer = Origin::announcer();
        // the journal's lock is taken once for the batch, and groups may use the journal themselves
        let mut appender = self.inner.journal.appender();
        let mut ids = received.map_or(&[][..], |(_, ids)| ids).iter().peekable();
        let mut for_groups = BatchForGroups::of(count);
        let mut cost = Duration::ZERO;
        for (at, entry) in batch.iter().enumerate() {
            let message = entry.message;
            let takers = Takers::of(&sequencer.routes, message, announcer);
            cost += takers.cost;
            let packet_id = ids.next_if(|(place, _)| *place == at as u32).map(|(_, packet_id)| *packet_id);
            let received = received.map(|(session, _)| session).zip(packet_id);
            let mut kept = retains(self.stats(), &sequencer.retained, message)
                .then(|| batch.message_at(entry.offset).to_owned_memory());
            let written = write(&mut appender, (batch, entry.offset), &mut kept, &takers.consumers, received);
            if is_traced {
                self.traces().accepted(message, written.map_err(drop), takers.upstreams, self.clock().boot_ms());
            }
            if !self.note(&mut accepted, at as u32, message.qos(), written) {
                if appender.is_too_large(&batch.message_at(entry.offset), takers.consumers.len()) {
                    let (topic, size) = (message.topic().into(), message.payload().len());
                    accepted.never_fit.push(NeverFits { place: at as u32, topic, size });
                }
                continue;
            }
            if message.retain() && kept.is_none() {
                accepted.unretained.push(at as u32);
            }
            if let Some(kept) = kept {
                // the room was checked before
                let _ = sequencer.retained.apply(&kept);
                expires |= message.expiry().is_some();
            }
            if !takers.groups.is_empty() {
                // one copy, however many groups there are
                for_groups.add(&takers.groups, &batch.message_at(entry.offset).to_counted_memory());
            }
        }
        drop(appender);
        for_groups.hand_over(&self.inner.spreader);
        if expires {
            self.inner.expires.notify_one();
        }
        if let Some(first) = batch.iter().next() {
            self.inner.meter.charge(first.message.origin(), cost);
        }
        accepted
    }

    /// Notes what the journal says of one message. Returns whether the message is accepted.
    fn note(&self, accepted: &mut Accepted, at: u32, qos: Qos, written: Result<Option<Position>, Full>) -> bool {
        match written {
            Ok(position) if qos > Qos::AtMostOnce => {
                accepted.receipt.durable = position.max(accepted.receipt.durable);
            }
            Ok(_) => {}
            Err(Full) if qos > Qos::AtMostOnce => {
                accepted.refused.push(at);
                return false;
            }
            // at QoS 0 there is no answer, and live subscribers get the message nevertheless
            Err(Full) => self.inner.stats.publish_dropped.add(1),
        }
        true
    }

    /// Completes when [`Ingress::try_publish`] may find room again. It must be created before the attempt.
    pub(crate) fn room(&self) -> &Room {
        &self.inner.room
    }

    /// Waits until the receipt's position is on disk; not at all if nobody needs the message kept.
    pub(crate) async fn settled(&self, receipt: Receipt) -> Result<(), IngressError> {
        let Some(position) = receipt.durable else { return Ok(()) };
        let mut synced = self.inner.journal.synced();
        synced.wait_for(|safe| *safe >= position).await.map(|_| ()).map_err(|_| IngressError::Closed)
    }

    /// Sends an empty batch through the router, to see whether it works.
    pub fn probe(&self) -> Result<(), RouterError> {
        let mut sequencer = self.inner.sequencer.lock();
        let batch = empty_batch(sequencer.next_seq);
        sequencer.link.route(batch)
    }

    /// Ends the router's thread, as a fault of its own would.
    #[cfg(test)]
    pub(crate) fn kill_router(&self) {
        self.inner.sequencer.lock().link.kill_router();
    }

    /// Subscribes to live messages from now on. Returns whether the subscription is new and, if `retained` asks for it, the
    /// first retained messages of the same moment.
    pub(crate) fn subscribe(
        &self,
        filter: &str,
        subscriber: &Arc<Subscriber>,
        options: SubscriptionOptions,
        retained: impl FnOnce(bool) -> Option<Portion>,
    ) -> (bool, SelectedRetained) {
        let mut walk = Walk::default();
        let (is_new, selected) =
            self.subscribe_routed(filter, subscriber, options, (None, None), (retained, &mut walk));
        self.inner.meter.charge(subscriber.origin, walk.cost(selected.found.len()));
        (is_new, selected)
    }

    /// Like `subscribe`, for a persistent session. Its route for this filter changes from the first to the second at the
    /// same moment, so every message is delivered either live or by the journal, and exactly once. The search for retained
    /// messages is a part of `walk`, which the caller charges.
    pub(crate) fn subscribe_routed(
        &self,
        filter: &str,
        subscriber: &Arc<Subscriber>,
        options: SubscriptionOptions,
        (old, new): (Option<Route>, Option<Route>),
        (retained, walk): (impl FnOnce(bool) -> Option<Portion>, &mut Walk),
    ) -> (bool, SelectedRetained) {
        let mut sequencer = self.inner.sequencer.lock();
        for route in old.iter().chain(&new) {
            sequencer.routes.remove(filter, &route.key());
        }
        if let Some(route) = new {
            sequencer.routes.insert(filter, route);
        }
        let (next_seq, is_quiet) = (sequencer.next_seq, sequencer.link.is_quiet());
        let is_new = self.inner.subscribers.insert(filter, subscriber, options, next_seq, is_quiet);
        let first = |most| SelectedRetained::take(&sequencer.retained, filter, "", (most, 0), walk);
        (is_new, retained(is_new).map(first).unwrap_or_default())
    }

    /// Ends a live subscription, and returns whether there was one.
    pub(crate) fn unsubscribe(&self, filter: &str, subscriber: &Arc<Subscriber>) -> bool {
        self.inner.subscribers.remove(filter, subscriber)
    }

    /// Routes messages that match `filter` to a consumer of the journal, in place of an earlier route of the same filter.
    pub(crate) fn add_route(&self, filter: &str, route: Route) {
        let mut sequencer = self.inner.sequencer.lock();
        sequencer.routes.remove(filter, &route.key());
        sequencer.routes.insert(filter, route);
    }

    pub(crate) fn remove_route(&self, filter: &str, route: &Route) {
        self.inner.sequencer.lock().routes.remove(filter, &route.key());
    }

    /// Replaces the filters of an upstream at once, with the consumer for their messages: every message goes either to the
    /// old or to the new one. Messages of the upstream itself (`origin`) are left out.
    pub(crate) fn set_upstream_filters(&self, consumer: ConsumerId, origin: Origin, filters: Vec<TopicFilter>) {
        let mut guard = self.inner.sequencer.lock();
        let sequencer = &mut *guard;
        sequencer.upstream_filters.retain(|(owner, old, filter)| {
            if *owner == origin {
                sequencer.routes.remove(filter, &RouteKey::Consumer(*old));
            }
            *owner != origin
        });
        for filter in filters {
            sequencer
                .routes
                .insert(&filter, Route::Upstream { consumer, origin, is_named: names_first_level(&filter) });
            sequencer.upstream_filters.push((origin, consumer, filter));
        }
    }

    /// The clock by which messages are stamped.
    pub fn clock(&self) -> &SharedClock {
        &self.inner.clock.0
    }

    /// The journal behind the ingress.
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    pub(crate) fn traces(&self) -> &Traces {
        &self.inner.traces
    }

    /// Records when traced messages are on disk, until `cancel`.
    pub(crate) async fn watch_traces(self, cancel: CancellationToken) {
        self.traces().watch(self.journal(), self.clock(), cancel).await;
    }

    pub(crate) fn stats(&self) -> &Arc<Stats> {
        &self.inner.stats
    }

    pub(crate) fn subscribers(&self) -> &Arc<Subscribers> {
        &self.inner.subscribers
    }
}

/// The batch without the messages at these indices.
fn without(batch: &Batch, refused: &[u32]) -> Batch {
    let mut rest = BatchBuilder::default();
    for (at, entry) in batch.iter().enumerate() {
        if refused.binary_search(&(at as u32)).is_err() {
            rest.push(&entry.message.to_draft());
        }
    }
    rest.finish(batch.seq())
}
