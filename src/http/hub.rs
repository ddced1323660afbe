//! A live subscriber to all topics, which serves all HTTP clients together.
//!
//! It keeps the last message of each topic ([`Recent`]) and the last messages in order ([`Ring`]). Streams read the ring
//! with their own cursors: however many there are and however slowly they read, each message is kept once, and none of them
//! delays others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::recent::Recent;
use super::ring::{Gap, Ring, RingRead};
use crate::exchange::delivery::Queued;
use crate::exchange::inbox::{Inbox, InboxLimits};
use crate::exchange::ingress::Ingress;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::health::Pulse;
use crate::message::{Message, Origin, Qos};

/// The limits of messages that wait while the hub is busy.
const INBOX: InboxLimits = InboxLimits { messages: 8192, bytes: 4 << 20 };
const AT_ONCE: usize = 512;
/// The time within which a published message arrives here, unless the gateway is very busy.
const ARRIVAL: Duration = Duration::from_millis(250);
const OPTIONS: SubscriptionOptions =
    SubscriptionOptions { qos: Qos::ExactlyOnce, no_local: false, retain_as_published: true, id: None };

#[derive(Debug)]
struct HubState {
    recent: Recent,
    ring: Ring,
}

/// The live subscriber with its stores.
#[derive(Debug)]
pub struct Hub {
    ingress: Ingress,
    subscriber: Arc<Subscriber>,
    state: RwLock<HubState>,
    /// The id of the next message.
    head: watch::Sender<u64>,
    /// The number of streams that want `$SYS`. Without any it is not kept, because it would displace everything else.
    sys_streams: Mutex<usize>,
}

impl Hub {
    /// Subscribes to all topics.
    pub fn new(ingress: Ingress) -> Arc<Hub> {
        let subscriber =
            Arc::new(Subscriber { inbox: Inbox::new("http", INBOX), origin: Origin::http(), is_durable: false });
        ingress.subscribe("#", &subscriber, OPTIONS, |_| None);
        let ring = Ring::new(ingress.clock().unix_ms());
        let head = watch::Sender::new(ring.next());
        let state = RwLock::new(HubState { recent: Recent::default(), ring });
        Arc::new(Hub { ingress, subscriber, state, head, sys_streams: Mutex::new(0) })
    }

    /// Takes in messages until cancelled, and answers `pulse` in between.
    pub async fn run(self: Arc<Self>, mut pulse: Pulse, cancel: CancellationToken) {
        let mut batch: VecDeque<Queued> = VecDeque::new();
        let mut more = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.subscriber.inbox.filled(), if !more => {}
                () = tokio::task::yield_now(), if more => {}
                () = pulse.asked() => {
                    pulse.answer();
                    continue;
                }
            }
            more = self.subscriber.inbox.take(AT_ONCE, &mut batch) > 0;
            self.store(&mut batch);
        }
        self.ingress.unsubscribe("#", &self.subscriber);
        self.subscriber.inbox.close();
    }

    fn store(&self, batch: &mut VecDeque<Queued>) {
        let mut state = self.state.write();
        for queued in batch.drain(..) {
            let message = queued.message.to_owned_memory();
            if !message.view().topic().starts_with('$') {
                state.recent.insert(&message);
            }
            state.ring.push(message);
        }
        let next = state.ring.next();
        drop(state);
        self.head.send_replace(next);
    }

    /// Waits until a message on `topic` that arrived at `boot_ms` or later is kept, so that its publisher can read it.
    pub(crate) async fn arrived(&self, topic: &str, boot_ms: u64) {
        let mut head = self.head.subscribe();
        let is_there = |message: &Message| came_in(message) >= boot_ms as i64;
        let _ = timeout(ARRIVAL, head.wait_for(|_| self.state.read().recent.get(topic).is_some_and(is_there))).await;
    }

    /// Waits until a topic is not kept any more.
    pub(crate) async fn cleared(&self, topic: &str) {
        let mut head = self.head.subscribe();
        let _ = timeout(ARRIVAL, head.wait_for(|_| self.state.read().recent.get(topic).is_none())).await;
    }

    /// The last message on a topic, and whether it is the topic's retained message.
    pub(crate) fn last(&self, topic: &str) -> Option<(Message, bool)> {
        let recent = self.state.read().recent.get(topic).cloned();
        let now = self.ingress.clock().boot_ms();
        let is_valid = |message: &Message| message.view().remaining_expiry(now).is_ok();
        newer(recent, self.ingress.retained(topic)).filter(|(message, _)| is_valid(message))
    }

    /// At most `count` last messages on topics after `after` that match `filter`, in the order of topics.
    pub(crate) fn select(
        &self,
        (filter, after): (&str, &str),
        count: usize,
        by: Origin,
        may: impl Fn(&str) -> bool,
    ) -> Vec<(Message, bool)> {
        let now = self.ingress.clock().boot_ms();
        let is_wanted =
            |message: &&Message| may(message.view().topic()) && message.view().remaining_expiry(now).is_ok();
        let retained = self.ingress.select_retained((filter, after), count, by, |message| is_wanted(&message));
        let state = self.state.read();
        let mut recent = state.recent.select(filter, after).filter(is_wanted).take(count).peekable();
        let mut retained = retained.into_iter().peekable();
        let mut merged = Vec::new();
        while merged.len() < count {
            let order = match (recent.peek(), retained.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.view().topic().cmp(b.view().topic()),
            };
            let a = if order.is_le() { recent.next().cloned() } else { None };
            let b = if order.is_ge() { retained.next() } else { None };
            merged.extend(newer(a, b));
        }
        merged
    }

    /// The id of the next message of a stream.
    pub(crate) fn next(&self) -> u64 {
        self.state.read().ring.next()
    }

    /// Changes with every message.
    pub(crate) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// The messages for a stream from its cursor on.
    pub(crate) fn read(&self, from: u64, filters: &[Box<str>], may: impl Fn(&str) -> bool) -> Result<RingRead, Gap> {
        let state = self.state.read();
        state.ring.check(from)?;
        Ok(state.ring.read(from, filters, may))
    }

    /// Checks that a stream can continue from this id.
    pub(crate) fn check(&self, from: u64) -> Result<(), Gap> {
        self.state.read().ring.check(from)
    }

    /// The numbers of topics and of bytes that are kept.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.state.read().recent.size()
    }

    /// Keeps `$SYS` as long as the returned value exists.
    pub(crate) fn with_sys(self: &Arc<Self>) -> SysGuard {
        let mut streams = self.sys_streams.lock();
        if *streams == 0 {
            self.ingress.subscribe("$SYS/#", &self.subscriber, OPTIONS, |_| None);
        }
        *streams += 1;
        SysGuard(self.clone())
    }
}

/// Keeps `$SYS` while it exists.
#[derive(Debug)]
pub(crate) struct SysGuard(Arc<Hub>);

impl Drop for SysGuard {
    fn drop(&mut self) {
        let mut streams = self.0.sys_streams.lock();
        *streams -= 1;
        if *streams == 0 {
            self.0.ingress.unsubscribe("$SYS/#", &self.0.subscriber);
        }
    }
}

/// When a message arrived, in milliseconds of the boot clock; negative if that was before this boot.
fn came_in(message: &Message) -> i64 {
    message.view().boot_ms() as i64
}

/// The newer of the two, and whether it is the retained message. Live delivery may be slightly later than the retained
/// store, and has no messages from before the start.
fn newer(recent: Option<Message>, retained: Option<Message>) -> Option<(Message, bool)> {
    match (recent, retained) {
        (None, None) => None,
        (None, Some(retained)) => Some((retained, true)),
        (Some(recent), None) => Some((recent, false)),
        (Some(recent), Some(retained)) => {
            if came_in(&retained) > came_in(&recent) {
                Some((retained, true))
            } else {
                // a message for which the retained store had no room has the flag nevertheless
                let is_retained = recent.view().retain() && recent.view().payload() == retained.view().payload();
                Some((recent, is_retained))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::message_at;
    use super::*;

    #[test]
    fn the_later_of_retained_and_live_message_counts() {
        let live = |boot_ms, retain| Some(message_at("a", "live", retain, boot_ms));
        let retained = |boot_ms| Some(message_at("a", "kept", true, boot_ms));
        let answer =
            |recent, retained| newer(recent, retained).map(|(message, is)| (message.view().payload() == b"live", is));
        assert_eq!(answer(live(5, false), retained(3)), Some((true, false)));
        let same = |boot_ms| Some(message_at("a", "live", true, boot_ms));
        assert_eq!(answer(live(5, true), same(5)), Some((true, true)));
        assert_eq!(answer(live(5, true), retained(3)), Some((true, false)), "the store had no room for it");
        assert_eq!(answer(live(5, false), retained(6)), Some((false, true)), "the live one is behind");
        assert_eq!(answer(live(5, false), retained(-7_i64 as u64)), Some((true, false)), "kept since the last boot");
        assert_eq!(answer(live(5, false), None), Some((true, false)));
        assert_eq!(answer(None, retained(1)), Some((false, true)));
    }
}
