//! What waits for one live subscriber.
//!
//! The dispatcher fills inboxes, sessions empty them. An inbox is bounded. When it is full, a subscriber that keeps
//! reading may hold the whole gateway back for a moment, so that a burst that everybody can digest loses nothing. One that
//! makes no progress for [`STALL`], or has not worked off half of a full inbox within [`PATIENCE`], is slow: it loses what
//! does not fit, counted and logged, until it has caught up completely. So nobody can hold others back for long, or twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use super::shared::SharedGroup;
use crate::message::{Message, Qos};

/// Without any progress for this long, a full inbox belongs to a slow subscriber.
pub const STALL: Duration = Duration::from_secs(2);
/// A full inbox must be half empty after this long.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// From this many waiting messages on, small ones are copied out of their batches instead of keeping them alive.
const COPY_FROM: usize = 128;

/// How a message is to be delivered.
#[derive(Clone, Debug)]
pub struct Grant {
    /// QoS of the delivery.
    pub qos: Qos,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Ids of the subscriptions that it is for.
    pub ids: SmallVec<[u32; 1]>,
    /// The shared subscription that it comes from, to be told when the delivery is settled.
    pub share: Option<Arc<SharedGroup>>,
}

/// A message on its way to a subscriber.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The message.
    pub message: Message,
    /// How to deliver it.
    pub grant: Grant,
}

/// Bounds of an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLimits {
    /// Most messages.
    pub messages: usize,
    /// Most bytes; a single larger message is let in when nothing else waits.
    pub bytes: usize,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Nothing is left to offer.
    Done,
    /// Full: offer the rest again when there is room, or at this time at the latest.
    Wait(Instant),
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Queued>,
    bytes: usize,
    full_since: Option<Instant>,
    progress: Instant,
    slow: bool,
    closed: bool,
    dropped: u64,
}

/// The queue between the dispatcher and one live subscriber.
#[derive(Debug)]
pub struct Inbox {
    owner: Box<str>,
    limits: InboxLimits,
    state: Mutex<State>,
    filled: Notify,
    room: Notify,
}

impl Inbox {
    /// An empty inbox; `owner` (a client id) is named in logs.
    pub fn new(owner: &str, limits: InboxLimits) -> Inbox {
        Inbox {
            owner: owner.into(),
            limits,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                full_since: None,
                progress: Instant::now(),
                slow: false,
                closed: false,
                dropped: 0,
            }),
            filled: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Takes messages from the front of `offered`, or drops them if the subscriber is slow or gone.
    pub fn offer(&self, offered: &mut VecDeque<Queued>, now: Instant) -> Offer {
        let mut state = self.state.lock();
        if state.closed {
            offered.clear();
            return Offer::Done;
        }
        let was_empty = state.queue.is_empty();
        let mut result = Offer::Done;
        while let Some(next) = offered.front() {
            let size = next.message.size();
            if !state.fits(size, &self.limits) {
                result = self.when_full(&mut state, offered, now);
                break;
            }
            if let Some(mut queued) = offered.pop_front() {
                if state.queue.len() >= COPY_FROM {
                    queued.message = queued.message.to_owned_memory();
                }
                state.bytes += size;
                state.queue.push_back(queued);
            }
        }
        let fill = was_empty && !state.queue.is_empty();
        drop(state);
        if fill {
            self.filled.notify_one();
        }
        result
    }

    fn when_full(&self, state: &mut State, offered: &mut VecDeque<Queued>, now: Instant) -> Offer {
        let since = *state.full_since.get_or_insert(now);
        let deadline = (since + PATIENCE).min(state.progress.max(since) + STALL);
        if !state.slow && now < deadline {
            return Offer::Wait(deadline);
        }
        if !state.slow {
            state.slow = true;
            warn!(
                client_id = &*self.owner,
                waiting = state.queue.len(),
                "this subscriber reads too slowly: what does not fit into its queue is dropped until it has caught up"
            );
        }
        state.dropped += offered.len() as u64;
        offered.clear();
        Offer::Done
    }

    /// Whether all of this fits, or would not be kept anyway because the subscriber has gone.
    pub fn has_room(&self, offered: &VecDeque<Queued>) -> bool {
        let state = self.state.lock();
        let bytes: usize = offered.iter().map(|queued| queued.message.size()).sum();
        state.closed
            || (state.queue.is_empty() && offered.len() <= 1)
            || (state.queue.len() + offered.len() <= self.limits.messages && state.bytes + bytes <= self.limits.bytes)
    }

    /// Puts a message in that its sender bounds; gives it back if the subscriber has gone.
    pub fn put(&self, queued: Queued) -> Result<(), Queued> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(queued);
        }
        state.bytes += queued.message.size();
        state.queue.push_back(queued);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes up to `count` messages into `out`; says how many are left.
    pub fn take(&self, count: usize, out: &mut VecDeque<Queued>) -> usize {
        let mut state = self.state.lock();
        let count = count.min(state.queue.len());
        if count == 0 {
            return state.queue.len();
        }
        for queued in state.queue.drain(..count).collect::<SmallVec<[Queued; 16]>>() {
            state.bytes -= queued.message.size();
            out.push_back(queued);
        }
        state.progress = Instant::now();
        let half = state.queue.len() <= self.limits.messages / 2 && state.bytes <= self.limits.bytes / 2;
        let wake = state.full_since.is_some() && (half || !state.slow);
        if half {
            state.full_since = None;
        }
        if state.queue.is_empty() && state.slow {
            state.slow = false;
            warn!(client_id = &*self.owner, dropped = state.dropped, "this subscriber has caught up");
        }
        let left = state.queue.len();
        drop(state);
        if wake {
            self.room.notify_one();
        }
        left
    }

    /// Waits until something has come into an empty inbox. Safe to cancel.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Waits until something was taken out of a full inbox. Safe to cancel.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// The subscriber has gone: nothing more is kept. Returns what it did not take.
    pub fn close(&self) -> VecDeque<Queued> {
        let mut state = self.state.lock();
        state.closed = true;
        state.bytes = 0;
        let left = std::mem::take(&mut state.queue);
        drop(state);
        self.room.notify_one();
        left
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages dropped so far.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }
}

impl State {
    fn fits(&self, size: usize, limits: &InboxLimits) -> bool {
        self.queue.is_empty() || (self.queue.len() < limits.messages && self.bytes + size <= limits.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Origin};

    fn queued(count: usize) -> VecDeque<Queued> {
        let message = Message::new(&Draft {
            topic: "t",
            payload: b"12345678",
            qos: Qos::AtMostOnce,
            retain: false,
            properties: &[],
            expiry: None,
            hops: 0,
            boot_ms: 0,
            origin: Origin::gateway(),
        });
        let grant = Grant { qos: Qos::AtMostOnce, retain: false, ids: SmallVec::new(), share: None };
        (0..count).map(|_| Queued { message: message.clone(), grant: grant.clone() }).collect()
    }

    fn inbox() -> Inbox {
        Inbox::new("a", InboxLimits { messages: 10, bytes: 10_000 })
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_keeps_reading_loses_nothing() {
        let inbox = inbox();
        let mut offered = queued(100);
        let mut out = VecDeque::new();
        while let Offer::Wait(_) = inbox.offer(&mut offered, Instant::now()) {
            tokio::time::advance(Duration::from_millis(100)).await;
            inbox.take(6, &mut out);
        }
        inbox.take(100, &mut out);
        assert_eq!((out.len(), inbox.dropped()), (100, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_stops_reading_holds_back_once_and_then_loses() {
        let inbox = inbox();
        let mut offered = queued(15);
        let Offer::Wait(deadline) = inbox.offer(&mut offered, Instant::now()) else { panic!("full") };
        assert_eq!(deadline, Instant::now() + STALL);
        tokio::time::advance(STALL).await;
        assert_eq!(inbox.offer(&mut offered, Instant::now()), Offer::Done);
        assert_eq!((inbox.dropped(), inbox.len()), (5, 10));
        let mut out = VecDeque::new();
        inbox.take(3, &mut out);
        assert_eq!(inbox.offer(&mut queued(9), Instant::now()), Offer::Done, "slow until it has caught up");
        assert_eq!((inbox.dropped(), inbox.len()), (11, 10));
        inbox.take(10, &mut out);
        assert!(matches!(inbox.offer(&mut queued(11), Instant::now()), Offer::Wait(_)), "a new chance");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_does_not_hold_back_for_ever() {
        let inbox = inbox();
        let mut offered = queued(1000);
        let begin = Instant::now();
        let mut out = VecDeque::new();
        while let Offer::Wait(_) = inbox.offer(&mut offered, Instant::now()) {
            tokio::time::advance(Duration::from_secs(1)).await;
            inbox.take(1, &mut out);
        }
        assert!(begin.elapsed() <= PATIENCE + Duration::from_secs(1));
        assert_eq!(inbox.dropped() as usize, 1000 - 10 - out.len());
    }
}
