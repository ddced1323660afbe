//! What waits for one live subscriber.
//!
//! The dispatcher fills inboxes, sessions empty them. An inbox is bounded. When it is full, a subscriber that goes on
//! reading holds the whole gateway back until half of it is worked off, so that a burst or a flood loses nothing as long as
//! everybody can keep up at all. One that does not manage that half within [`PATIENCE`] is slow: it loses what does not
//! fit, counted and logged, until it has caught up completely, and holds nobody back meanwhile.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use super::shared::Share;
use crate::message::{Message, MessageRef, Packed, Qos};

/// A full inbox must be half empty after this long. With the default of 1000 messages that is 167 messages a second.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// From this many waiting messages on, small ones are copied out of their batches instead of keeping them alive.
const COPY_FROM: usize = 128;

/// How one message is to be delivered.
#[derive(Clone, Debug)]
pub struct Grant {
    /// QoS of the delivery.
    pub qos: Qos,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Ids of the subscriptions that it is for.
    pub ids: SmallVec<[u32; 1]>,
    /// The shared subscription that it comes from, to be told when the delivery is settled.
    pub share: Option<Share>,
}

/// A message on its way to a subscriber.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The message.
    pub message: Message,
    /// How to deliver it.
    pub grant: Grant,
}

/// Which retain flag a delivery has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainFlag {
    /// None: it is a live message [MQTT-3.3.1-12].
    Clear,
    /// That of the publication, as the subscription wants it.
    AsPublished,
    /// Set: it comes from the retained store [MQTT-3.3.1-8].
    Set,
}

/// How a subscriber gets the messages that a filter selects.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Largest QoS.
    pub qos: Qos,
    /// Retain flag.
    pub retain: RetainFlag,
    /// What the subscriber itself published is left out.
    pub no_local: bool,
    /// Ids of the subscriptions that they are for.
    pub ids: SmallVec<[u32; 1]>,
    /// The shared subscription that they come from.
    pub share: Option<Share>,
}

impl Terms {
    /// How one message is delivered on these terms.
    pub fn grant(&self, message: MessageRef<'_>) -> Grant {
        let retain = match self.retain {
            RetainFlag::Clear => false,
            RetainFlag::AsPublished => message.retain(),
            RetainFlag::Set => true,
        };
        Grant { qos: self.qos.min(message.qos()), retain, ids: self.ids.clone(), share: self.share.clone() }
    }
}

/// Messages next to each other in a batch that go to a subscriber on the same terms: handed over with one reference,
/// however many they are.
#[derive(Clone, Debug)]
pub struct Run {
    /// The messages.
    pub messages: Packed,
    /// How to deliver them.
    pub terms: Terms,
}

impl Run {
    /// A run of one.
    pub fn one(message: Message, terms: Terms) -> Run {
        Run { messages: Packed::one(message), terms }
    }
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
    /// Nothing is left to offer: so many messages were dropped.
    Dropped(u64),
    /// Full: offer the rest again when there is room, or at this time at the latest.
    Wait(Instant),
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Run>,
    messages: usize,
    bytes: usize,
    full_since: Option<Instant>,
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
                messages: 0,
                bytes: 0,
                full_since: None,
                slow: false,
                closed: false,
                dropped: 0,
            }),
            filled: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Takes messages from the front of `offered`, or drops them if the subscriber is slow or gone.
    pub fn offer(&self, offered: &mut VecDeque<Run>, now: Instant) -> Offer {
        let mut state = self.state.lock();
        if state.closed {
            offered.clear();
            return Offer::Done;
        }
        if state.full_since.is_some() && !state.slow && !offered.is_empty() {
            // once full, it is filled again when half of it is worked off: that shows who keeps up, and saves wake-ups
            return self.when_full(&mut state, offered, now);
        }
        let was_empty = state.queue.is_empty();
        let mut result = Offer::Done;
        while let Some(mut run) = offered.pop_front() {
            let rest = run.messages.split_off_front(|messages, bytes| state.fits(messages, bytes, &self.limits));
            if let Some(rest) = rest {
                offered.push_front(Run { messages: rest, terms: run.terms.clone() });
            }
            if run.messages.is_empty() {
                result = self.when_full(&mut state, offered, now);
                break;
            }
            if state.messages >= COPY_FROM {
                run.messages.compact();
            }
            state.push(run);
        }
        let fill = was_empty && !state.queue.is_empty();
        drop(state);
        if fill {
            self.filled.notify_one();
        }
        result
    }

    fn when_full(&self, state: &mut State, offered: &mut VecDeque<Run>, now: Instant) -> Offer {
        let deadline = *state.full_since.get_or_insert(now) + PATIENCE;
        if !state.slow && now < deadline {
            return Offer::Wait(deadline);
        }
        let dropped = offered.iter().map(|run| run.messages.len() as u64).sum::<u64>();
        state.dropped += dropped;
        if !state.slow {
            state.slow = true;
            warn!(
                client_id = &*self.owner,
                waiting = state.messages,
                dropped = state.dropped,
                "this subscriber reads too slowly: what does not fit into its queue is dropped until it has caught up"
            );
        }
        offered.clear();
        Offer::Dropped(dropped)
    }

    /// Whether all of this fits, or would not be kept anyway because the subscriber has gone.
    pub fn has_room(&self, offered: &VecDeque<Run>) -> bool {
        let state = self.state.lock();
        let messages: usize = offered.iter().map(|run| run.messages.len()).sum();
        let bytes: usize = offered.iter().map(|run| run.messages.size()).sum();
        if state.full_since.is_some() && !state.closed {
            return false;
        }
        state.closed
            || (state.queue.is_empty() && messages <= 1)
            || (state.messages + messages <= self.limits.messages && state.bytes + bytes <= self.limits.bytes)
    }

    /// Puts a run in that its sender bounds; gives it back if the subscriber has gone.
    pub fn put(&self, run: Run) -> Result<(), Run> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(run);
        }
        state.push(run);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the oldest run, but no more than `most` messages of it, so that what is taken is soon worked off.
    pub fn take_run(&self, most: usize) -> Option<Run> {
        let mut state = self.state.lock();
        let mut run = state.queue.pop_front()?;
        if let Some(messages) = run.messages.split_off_front(|messages, _| messages <= most) {
            state.queue.push_front(Run { messages, terms: run.terms.clone() });
        }
        state.messages -= run.messages.len();
        state.bytes -= run.messages.size();
        let half = state.messages <= self.limits.messages / 2 && state.bytes <= self.limits.bytes / 2;
        let wake = state.full_since.is_some() && half;
        if half {
            state.full_since = None;
        }
        if state.queue.is_empty() && state.slow {
            state.slow = false;
            warn!(client_id = &*self.owner, dropped = state.dropped, "this subscriber has caught up");
        }
        drop(state);
        if wake {
            self.room.notify_one();
        }
        Some(run)
    }

    /// Takes up to `count` messages into `out`; says how many are left.
    pub fn take(&self, count: usize, out: &mut VecDeque<Queued>) -> usize {
        let enough = out.len() + count;
        while out.len() < enough {
            let Some(run) = self.take_run(enough - out.len()) else { return 0 };
            let Run { mut messages, terms } = run;
            while let Some(message) = messages.next_message() {
                let grant = terms.grant(message.view());
                out.push_back(Queued { message, grant });
            }
        }
        self.len()
    }

    /// Waits until something has come into an empty inbox. Safe to cancel.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Waits until half of a full inbox was taken out. Safe to cancel.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// The subscriber has gone: nothing more is kept. Returns what it did not take.
    pub fn close(&self) -> VecDeque<Run> {
        let mut state = self.state.lock();
        state.closed = true;
        (state.messages, state.bytes) = (0, 0);
        let left = std::mem::take(&mut state.queue);
        if std::mem::take(&mut state.slow) {
            // it will not catch up any more, which would have said how much it has lost
            warn!(client_id = &*self.owner, dropped = state.dropped, "this subscriber has gone, too slow to the end");
        }
        drop(state);
        self.room.notify_one();
        left
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        self.state.lock().messages
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
    /// Whether so many more messages of so many bytes together are within the bounds.
    fn fits(&self, messages: usize, bytes: usize, limits: &InboxLimits) -> bool {
        (self.messages == 0 && messages == 1)
            || (self.messages + messages <= limits.messages && self.bytes + bytes <= limits.bytes)
    }

    fn push(&mut self, run: Run) {
        self.messages += run.messages.len();
        self.bytes += run.messages.size();
        self.queue.push_back(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BatchBuilder, Draft, Origin};

    fn queued(count: usize) -> VecDeque<Run> {
        let mut batch = BatchBuilder::default();
        for _ in 0..count {
            batch.push(&Draft {
                topic: "t",
                payload: b"12345678",
                qos: Qos::AtMostOnce,
                retain: false,
                properties: &[],
                expiry: None,
                boot_ms: 0,
                origin: Origin::gateway(),
            });
        }
        let batch = batch.finish(0);
        let ids = SmallVec::new();
        let terms = Terms { qos: Qos::AtMostOnce, retain: RetainFlag::Clear, no_local: false, ids, share: None };
        // two runs, so that bounds fall within one
        let half = count / 2;
        let mut messages = batch.pack(0, batch.size(), count);
        let rest = messages.split_off_front(|messages, _| messages <= half);
        std::iter::once(messages)
            .chain(rest)
            .filter(|part| !part.is_empty())
            .map(|messages| Run { messages, terms: terms.clone() })
            .collect()
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
        assert_eq!(deadline, Instant::now() + PATIENCE);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(inbox.offer(&mut offered, Instant::now()), Offer::Dropped(5));
        assert_eq!((inbox.dropped(), inbox.len()), (5, 10));
        let mut out = VecDeque::new();
        inbox.take(3, &mut out);
        assert_eq!(inbox.offer(&mut queued(9), Instant::now()), Offer::Dropped(6), "slow until it has caught up");
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
        assert_eq!(inbox.dropped() as usize + inbox.len() + out.len(), 1000);
    }
}
