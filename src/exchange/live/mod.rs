//! Live delivery: from the ingress through rumqttd's router to connected subscribers.
//!
//! Each batch passes through the router as one publication on an internal topic. So the router's cost is per batch, and it
//! never sees topics, filters or ids of clients, so nothing in it grows with them. One link publishes under the lock of the
//! ingress. Another link subscribes and feeds the dispatcher, which matches each message with the subscriptions and puts it
//! into inboxes.
//!
//! The way through the router costs two handovers between threads. If nothing is on that way, the publishing thread puts a
//! small batch directly into the inboxes, so a single message wakes only its receivers.
//!
//! The router keeps a ring and drops its oldest entries without notice. So [`LiveLink::has_room`] holds publishers back
//! before the ring can overrun the dispatcher; a gap in the sequence numbers would still be noticed and counted.
//!
//! This file relies on these facts about rumqttd 0.20. A subscription at QoS 1 keeps at most 100 publications in flight, so
//! the router never asks for a `Ready`, which could panic it for a dead link. Their packet ids count from 1 to 100 again and
//! again. Acknowledgements must come in that order. The router handles a `DeviceData` event by taking the whole buffer of a
//! link, so another push to a non-empty buffer needs no further event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{self, Packet};
use rumqttd::{Notification, Router, RouterConfig};
use smallvec::SmallVec;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::delivery::InboxId;
use super::fanout::Fanout;
use super::hold::{Holds, STEP};
use super::meter::Meter;
use super::spare::Amount;
use super::stats::Stats;
use super::subscribers::Subscribers;
use crate::health::{self, Overdue, Pulse};
use crate::message::{Batch, BatchBuilder};
use crate::time::beat;
use crate::time::share::ProcessorShare;

const TOPIC: &[u8] = b"m/live";
const SEGMENT_BYTES: usize = 128 * 1024;
const SEGMENTS: usize = 8;
/// The bytes by which the dispatcher may be behind: half of what the ring certainly keeps.
const WINDOW: u64 = (SEGMENT_BYTES * SEGMENTS / 2) as u64;
/// The bytes by which it may be further behind for a batch of few messages and at most [`SMALL`] bytes: whoever publishes now
/// and then need not win a race for room against many that publish as much as they can. They fill less than a segment.
const FOR_SMALL: u64 = 32 << 10;
const SMALL: usize = 4 << 10;
/// The largest batch, in messages, that may go directly to the inboxes. Larger ones come from a flood, where it is better to
/// publish and deliver on two cores at the same time.
pub(crate) const STRAIGHT: u32 = 8;
/// The number of publications that the router keeps in flight at QoS 1.
const LAST_PACKET_ID: u16 = 100;
/// The least interval at which an idle router is asked to respond.
const PROBE: Duration = Duration::from_secs(20);
/// A router that could have answered for this long and has not counts as failed.
const HANGS: Duration = Duration::from_secs(8);

/// The error that the router has ended or hangs, so that the gateway cannot continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// The router's thread has ended.
    #[error("the message router has ended unexpectedly")]
    Ended,
    /// The router has not answered in time.
    #[error("the message router does not answer")]
    Hangs,
}

impl From<LinkError> for RouterError {
    fn from(_: LinkError) -> Self {
        RouterError::Ended
    }
}

#[derive(Debug)]
struct Flow {
    appended: AtomicU64,
    consumed: AtomicU64,
    /// The next sequence number for subscribers, whichever way it goes.
    next_seq: AtomicU64,
    publishers_wait: AtomicBool,
    holds: Arc<Holds>,
    lost: AtomicU64,
}

impl Default for Flow {
    fn default() -> Flow {
        Flow {
            appended: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            next_seq: AtomicU64::new(0),
            publishers_wait: AtomicBool::new(false),
            holds: Arc::new(Holds::new(ProcessorShare::measured())),
            lost: AtomicU64::new(0),
        }
    }
}

/// The side of the router that publishes batches of messages.
pub(crate) struct LiveLink {
    link: LinkTx,
    flow: Arc<Flow>,
    /// The sequence number after the last batch on its way through the router that has topics of many levels.
    deep_until: u64,
    fanout: Fanout,
    stats: Arc<Stats>,
}

/// The side of the router that hands batches of messages to the subscribers.
pub struct Dispatcher {
    link: LinkTx,
    notifications: LinkRx,
    next_packet_id: u16,
    flow: Arc<Flow>,
    fanout: Fanout,
    stats: Arc<Stats>,
}

/// Starts the router and both sides. Blocks for a moment, so it must not run on a runtime worker.
pub(crate) fn start(subscribers: Arc<Subscribers>, stats: Arc<Stats>) -> Result<(LiveLink, Dispatcher), RouterError> {
    let config = RouterConfig {
        max_connections: 4,
        max_outgoing_packet_count: 200,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    let router = Router::new(0, config).spawn();
    let (flow, meter) = (Arc::new(Flow::default()), Arc::new(Meter::default()));
    let (publishing, _, _) = LinkBuilder::new("publish", router.clone()).dynamic_filters(true).build()?;
    let (mut link, mut notifications, _) = LinkBuilder::new("dispatch", router).build()?;
    subscribe(&mut link, &mut notifications)?;
    let dispatcher = Dispatcher {
        link,
        notifications,
        next_packet_id: 1,
        flow: flow.clone(),
        fanout: Fanout::new(subscribers.clone(), meter.clone()),
        stats: stats.clone(),
    };
    Ok((LiveLink { link: publishing, flow, deep_until: 0, fanout: Fanout::new(subscribers, meter), stats }, dispatcher))
}

fn subscribe(link: &mut LinkTx, notifications: &mut LinkRx) -> Result<(), RouterError> {
    let filter = protocol::Filter {
        path: String::from_utf8_lossy(TOPIC).into_owned(),
        qos: protocol::QoS::AtLeastOnce,
        nolocal: false,
        preserve_retain: false,
        retain_forward_rule: protocol::RetainForwardRule::Never,
    };
    send(link, Packet::Subscribe(protocol::Subscribe { pkid: 1, filters: vec![filter] }, None))?;
    // the router answers when the subscription exists, so later publications are not missed
    loop {
        if let Some(Notification::DeviceAck(_)) = notifications.recv()? {
            return Ok(());
        }
    }
}

/// Gives the router a packet. Waits only while 1000 events are queued for a running router, which never waits for this side.
fn send(link: &mut LinkTx, packet: Packet) -> Result<(), RouterError> {
    {
        let mut buffer = link.buffer();
        if !buffer.is_empty() {
            // an event for this buffer is on its way already
            buffer.push_back(packet);
            return Ok(());
        }
    }
    // `send` is async in name only: it completes at the first poll
    let mut send = std::pin::pin!(link.send(packet));
    match send.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(sent) => sent.map(|_| ()).map_err(RouterError::from),
        std::task::Poll::Pending => Err(RouterError::Hangs),
    }
}

impl LiveLink {
    /// Whether the dispatcher is close enough for this batch.
    pub(crate) fn has_room(&self, batch: &BatchBuilder) -> bool {
        let is_small = batch.len() <= STRAIGHT && batch.size() <= SMALL;
        let window = if is_small { WINDOW + FOR_SMALL } else { WINDOW };
        let behind = self.flow.appended.load(Ordering::Relaxed) - self.flow.consumed.load(Ordering::Acquire);
        if behind < window {
            return true;
        }
        self.flow.publishers_wait.store(true, Ordering::SeqCst);
        // checked again, because the dispatcher now knows that somebody waits
        self.flow.appended.load(Ordering::Relaxed) - self.flow.consumed.load(Ordering::SeqCst) < window
    }

    /// Whether a batch with topics of many levels is on its way through the router. If so, publishers of such topics are
    /// woken once it has been dispatched.
    pub(crate) fn is_deep(&self) -> bool {
        let is_on_its_way = || self.flow.next_seq.load(Ordering::Relaxed) < self.deep_until && !self.is_quiet();
        if !is_on_its_way() {
            return false;
        }
        self.flow.publishers_wait.store(true, Ordering::SeqCst);
        // checked again, because the dispatcher now knows that somebody waits
        self.flow.consumed.load(Ordering::SeqCst);
        is_on_its_way()
    }

    /// Whether the publisher of this batch is held for a reader to which it publishes ([`super::hold`]).
    pub(crate) fn is_held(&mut self, batch: &BatchBuilder) -> bool {
        let holds = &self.flow.holds;
        if !holds.is_any() {
            return false;
        }
        let Some(first) = batch.iter().next() else { return false };
        if holds.holds(first.message.origin()) {
            return true;
        }
        // Of a large batch only the first message is checked, because most publishers use one topic. Otherwise each of many
        // publishers would have a batch on its way to a full queue before it is known to publish there.
        let looked_at = if batch.len() > STRAIGHT { 1 } else { batch.len() as usize };
        let next = self.flow.next_seq.load(Ordering::Relaxed);
        let mut full: SmallVec<[(InboxId, Amount); 8]> = SmallVec::new();
        for entry in batch.iter().take(looked_at) {
            for reader in self.fanout.readers(entry.message, next) {
                let id = reader.inbox.id();
                if let Some(taken) = reader.inbox.taken_while_full()
                    && !full.iter().any(|(known, _)| *known == id)
                {
                    full.push((id, taken));
                }
            }
        }
        self.fanout.charge(first.message.origin());
        let amount = Amount { messages: batch.len() as usize, bytes: batch.size() };
        !full.is_empty() && !holds.may_add(first.message.origin(), amount, &full)
    }

    /// Publishes a batch of this many messages: directly into the inboxes if nothing is on the way through the router and
    /// the batch is small, otherwise through the router. `is_deep` says whether it has topics of many levels.
    pub(crate) fn publish(&mut self, batch: Batch, messages: u32, is_deep: bool) -> Result<(), RouterError> {
        if messages <= STRAIGHT && self.is_quiet() {
            self.flow.next_seq.store(batch.seq() + u64::from(messages), Ordering::Relaxed);
            self.fanout.collect(&batch);
            self.fanout.deliver(&self.flow.holds, &self.stats, &batch);
            return Ok(());
        }
        if is_deep {
            self.deep_until = batch.seq() + u64::from(messages);
        }
        self.route(batch)
    }

    /// Whether nothing is on its way through the router, so that direct delivery overtakes nothing.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flow.appended.load(Ordering::Relaxed) == self.flow.consumed.load(Ordering::Acquire)
    }

    pub(crate) fn route(&mut self, batch: Batch) -> Result<(), RouterError> {
        self.flow.appended.fetch_add(batch.size() as u64, Ordering::Relaxed);
        let publish = protocol::Publish::new(bytes::Bytes::from_static(TOPIC), batch.into_bytes(), false);
        send(&mut self.link, Packet::Publish(publish, None))
    }

    /// Publishes on a topic that begins with a character of several bytes, which panics rumqttd's router.
    #[cfg(test)]
    pub(crate) fn kill_router(&mut self) {
        let publish =
            protocol::Publish::new(bytes::Bytes::from_static("\u{e9}".as_bytes()), bytes::Bytes::new(), false);
        send(&mut self.link, Packet::Publish(publish, None)).unwrap();
    }

    /// Where publishers are charged.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        self.fanout.meter()
    }

    /// A handle to wait for room without the link.
    pub(crate) fn room(&self) -> Room {
        Room { flow: self.flow.clone() }
    }
}

impl std::fmt::Debug for LiveLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveLink").field("flow", &self.flow).finish_non_exhaustive()
    }
}

/// Waits until the dispatcher is close enough.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    flow: Arc<Flow>,
}

impl Room {
    /// Whether publishers are held back at present.
    pub(crate) fn is_held(&self) -> bool {
        self.flow.publishers_wait.load(Ordering::Relaxed) || self.flow.holds.is_any()
    }

    /// Holds publishers back, or lets them continue.
    #[cfg(test)]
    pub(crate) fn hold_for_test(&self, held: bool) {
        self.flow.publishers_wait.store(held, Ordering::Relaxed);
    }

    /// Completes when there may be room again; check with [`LiveLink::has_room`]. It must be registered before the check.
    pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        self.flow.holds.room().notified()
    }

    /// The number of messages that the router has lost. It is 0 unless the ring has overrun the dispatcher.
    #[cfg(test)]
    pub(crate) fn lost(&self) -> u64 {
        self.flow.lost.load(Ordering::Relaxed)
    }
}

impl Dispatcher {
    /// Feeds live subscribers until cancelled. `probe` publishes an empty batch to see whether the router works; `pulse` is
    /// answered when something has come out of it.
    ///
    /// The router has failed if it owes publications and delivers nothing although they could have been received. Time in
    /// which this process did not run does not count, and everything that comes out shows that the router works.
    pub async fn run(
        mut self,
        cancel: CancellationToken,
        probe: impl Fn() -> Result<(), RouterError>,
        mut pulse: Pulse,
    ) -> Result<(), RouterError> {
        let mut overdue = Overdue::default();
        let mut is_probed = false;
        let mut look = std::pin::pin!(sleep_until(beat::at_or_after(Instant::now() + PROBE)));
        let mut step = std::pin::pin!(sleep(Duration::ZERO));
        let holds = self.flow.holds.clone();
        loop {
            let is_asked = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = &mut step, if holds.is_any() => {
                    self.stats.publish_dropped.add(holds.look(Instant::now()));
                    step.as_mut().reset(Instant::now() + STEP);
                    continue;
                }
                // the first step begins
                () = holds.begun(), if !holds.is_any() => continue,
                notification = self.notifications.next() => {
                    if let Some(Notification::Forward(forward)) = notification? {
                        self.forward(forward)?;
                        if is_probed || pulse.is_asked() {
                            is_probed = false;
                            overdue.reset();
                            pulse.answer();
                            look.as_mut().reset(beat::at_or_after(Instant::now() + PROBE));
                        }
                    }
                    continue;
                }
                () = pulse.asked(), if !is_probed => true,
                () = &mut look => false,
            };
            let now = Instant::now();
            look.as_mut().reset(now + health::STEP);
            if is_asked || !is_probed {
                probe()?;
                is_probed = true;
                overdue = Overdue::from(now);
            } else if overdue.look(now) >= HANGS {
                return Err(RouterError::Hangs);
            }
        }
    }

    fn forward(&mut self, forward: rumqttd::Forward) -> Result<(), RouterError> {
        let id = self.next_packet_id;
        self.next_packet_id = if id == LAST_PACKET_ID { 1 } else { id + 1 };
        let ack = protocol::PubAck { pkid: id, reason: protocol::PubAckReason::Success };
        send(&mut self.link, Packet::PubAck(ack, None))?;
        if let Some(batch) = Batch::from_bytes(forward.publish.payload) {
            let size = batch.size() as u64;
            self.dispatch(&batch);
            self.consumed(size);
        }
        Ok(())
    }

    fn dispatch(&mut self, batch: &Batch) {
        let expected = self.flow.next_seq.load(Ordering::Relaxed);
        if batch.seq() != expected {
            let lost = batch.seq().saturating_sub(expected);
            self.flow.lost.fetch_add(lost, Ordering::Relaxed);
            error!(messages = lost, "the message router has dropped messages");
        }
        let next = self.fanout.collect(batch);
        self.flow.next_seq.store(next, Ordering::Relaxed);
        self.fanout.deliver(&self.flow.holds, &self.stats, batch);
    }

    fn consumed(&self, size: u64) {
        self.flow.consumed.fetch_add(size, Ordering::SeqCst);
        if self.flow.publishers_wait.load(Ordering::SeqCst) {
            let behind = self.flow.appended.load(Ordering::Relaxed) - self.flow.consumed.load(Ordering::Relaxed);
            if behind < WINDOW / 2 {
                self.flow.publishers_wait.store(false, Ordering::SeqCst);
                self.flow.holds.room().notify_waiters();
            }
        }
    }
}

/// An empty batch, which passes through the router and goes to nobody.
pub(crate) fn empty_batch(seq: u64) -> Batch {
    BatchBuilder::default().finish(seq)
}

#[cfg(test)]
mod tests;
