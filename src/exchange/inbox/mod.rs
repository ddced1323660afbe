//! The queue of one live subscriber.
//!
//! The dispatcher fills inboxes, and sessions empty them. An inbox is bounded. When it is full, publishers to it may be held
//! until half of it has been taken, so that a burst costs nothing as long as the reader keeps up; messages that are on their
//! way already may exceed the bound. [`super::hold`] decides for whom and for how long: it asks an inbox whether its reader
//! is quick ([`uptake`]), and is told when there is room. A reader for which publishers are not held any longer is slow: it
//! loses what does not fit, counted and logged, until it has caught up or reads quickly.
//!
//! In addition to its own bound there is one for the memory of all clients ([`super::waiting`]).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use self::turn::ReaderTurn;
use self::uptake::{ReaderTaken, Uptake};
use super::delivery::{InboxId, Queued, Run, SharesOut};
use super::missed::MissedGroups;
use super::spare::Amount;
use super::waiting::Account;
use crate::message::{Packed, Qos};

mod turn;
mod uptake;

/// The bytes by which messages on their way may exceed the bound. They are shared with other readers.
const OVERFLOW: usize = 4 << 20;
/// From this number of waiting messages on, small ones are copied out of their batches, so that they do not keep these in
/// memory.
const COPY_FROM: usize = 128;
/// The number of runs for which there is memory while none waits.
const RUNS_KEPT: usize = 64;

/// The limits of an inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboxLimits {
    /// The most messages.
    pub(crate) messages: usize,
    /// The most bytes. A single larger message is accepted if nothing else waits.
    pub(crate) bytes: usize,
}

/// The result of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboxOffer {
    /// Nothing is left to offer. An inbox without a reader has dropped all of it.
    Done,
    /// This number of messages was dropped, and the others were taken.
    Dropped(u64),
    /// All messages were taken beyond the bound, so their publisher must be held.
    Full,
}

/// Holds publishers for a full inbox.
pub(crate) trait HoldsPublishers: Debug + Send + Sync {
    /// Releases them, because half of the inbox has been taken or its reader is gone.
    fn release(&self, inbox: InboxId);
}

#[derive(Debug, Default)]
struct InboxState {
    queue: VecDeque<Run>,
    messages: usize,
    bytes: usize,
    /// What holds publishers for this inbox.
    held_by: Option<Arc<dyn HoldsPublishers>>,
    /// Whether the inbox was full and not half of it has been taken since.
    full: bool,
    /// Whether messages that do not fit are dropped.
    slow: bool,
    /// Whether the reader was slow and has not caught up.
    behind: bool,
    /// Whether the reader takes nothing more.
    is_given_up: bool,
    closed: bool,
    dropped: u64,
    taken: ReaderTaken,
    uptake: Uptake,
}

/// The queue between the dispatcher and one live subscriber.
#[derive(Debug)]
pub(crate) struct Inbox {
    id: InboxId,
    owner: Box<str>,
    /// The user whose budget is used when publishers are held.
    payer: Arc<str>,
    /// The account for the memory of waiting messages; `None` for the gateway's own inboxes.
    account: Option<Account>,
    /// The bytes that were sent to the client and not acknowledged, or are being sent.
    in_hand: AtomicUsize,
    /// Whether others had messages for it and it had no room.
    is_missed: AtomicBool,
    /// The groups of shared subscriptions that had no room in it.
    missed: MissedGroups,
    /// The groups for whose QoS 2 messages its session had no room.
    pub(crate) behind: MissedGroups,
    /// What its connection says of it.
    pub(crate) turn: ReaderTurn,
    limits: InboxLimits,
    state: Mutex<InboxState>,
    filled: Notify,
}

impl Inbox {
    /// An empty inbox. `owner` (a client id) is used in log messages.
    pub(crate) fn new(owner: &str, limits: InboxLimits) -> Inbox {
        Inbox {
            id: InboxId::next(),
            owner: owner.into(),
            payer: owner.into(),
            account: None,
            in_hand: AtomicUsize::new(0),
            is_missed: AtomicBool::new(false),
            missed: MissedGroups::default(),
            behind: MissedGroups::default(),
            turn: ReaderTurn::default(),
            limits,
            state: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// The same inbox with this account.
    pub(crate) fn paid_by(mut self, account: Account) -> Inbox {
        self.payer = account.name().clone();
        self.account = Some(account);
        self
    }

    pub(crate) fn id(&self) -> InboxId {
        self.id
    }

    /// The account of its memory; `None` for the gateway's own inboxes.
    pub(crate) fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Sets the bytes that the client has been sent and not acknowledged, or that are about to be written.
    pub(crate) fn set_in_hand(&self, bytes: usize) {
        let before = self.in_hand.swap(bytes, Ordering::SeqCst);
        if let Some(account) = self.account.as_ref().filter(|_| bytes != before) {
            account.hold(bytes);
            account.release(before);
        }
    }

    fn has_room(&self) -> bool {
        let state = self.state.lock();
        state.bytes < self.limits.bytes && self.may_hold(&state, 0)
    }

    /// Whether this group may put more into it. If not, the group is asked later.
    pub(crate) fn has_room_for(&self, group: &Weak<dyn SharesOut>) -> bool {
        self.has_room() || {
            // set before another check, so that room that is made after it is noticed
            self.missed.add(group);
            self.is_missed.store(true, Ordering::SeqCst);
            self.has_room()
        }
    }

    /// Lets groups that had no room go on, if there is room now.
    pub(crate) fn ask_missed(&self) {
        let was_missed = self.is_missed.load(Ordering::SeqCst)
            && self.state.lock().bytes <= self.limits.bytes / 2
            && self.is_missed.swap(false, Ordering::SeqCst);
        if was_missed && self.missed.go_on(|| self.has_room()) {
            self.is_missed.store(true, Ordering::SeqCst);
        }
    }

    /// Whether there is memory for this many bytes in addition to the waiting ones.
    fn may_hold(&self, state: &InboxState, bytes: usize) -> bool {
        let in_hand = self.in_hand.load(Ordering::SeqCst);
        self.account.as_ref().is_none_or(|account| account.may_hold(state.bytes, in_hand, bytes))
    }

    /// Whether this many more messages and bytes are within all limits.
    fn fits(&self, state: &InboxState, messages: usize, bytes: usize) -> bool {
        state.fits(messages, bytes, &self.limits) && self.may_hold(state, bytes)
    }

    /// Whether messages on their way are accepted beyond the limits.
    fn may_exceed(&self, state: &InboxState, bytes: usize) -> bool {
        let is_full = self.account.as_ref().is_some_and(|account| account.waiting().is_full());
        state.bytes + bytes <= self.limits.bytes + OVERFLOW && (!is_full || self.may_hold(state, bytes))
    }

    fn push(&self, state: &mut InboxState, run: Run) {
        if let Some(account) = &self.account {
            account.hold(run.size());
        }
        state.push(run);
    }

    /// Subtracts bytes that do not wait any more.
    fn has_left(&self, bytes: usize) {
        if let Some(account) = &self.account {
            account.release(bytes);
        }
    }

    pub(crate) fn payer(&self) -> &Arc<str> {
        &self.payer
    }

    /// Takes all messages of `offered`, or drops those that do not fit if the subscriber is slow or gone. `now` is the time
    /// of [`super::hold::Holds::now`].
    pub(crate) fn offer(&self, offered: &mut VecDeque<Run>, now: Duration) -> InboxOffer {
        let mut state = self.state.lock();
        if state.closed || state.is_given_up {
            offered.clear();
            return InboxOffer::Done;
        }
        let taken = state.taken;
        state.uptake.mark(now, taken);
        if state.slow && state.uptake.has_been_quick(now, taken, &self.limits) {
            state.slow = false;
        }
        let was_empty = state.queue.is_empty();
        let is_tight = self.account.as_ref().is_some_and(|account| account.waiting().is_tight());
        let mut dropped = 0;
        for mut run in offered.drain(..) {
            let ids = run.terms.ids.size();
            let rest = if state.full && !state.slow {
                Some(std::mem::replace(&mut run.messages, Packed::none()))
            } else {
                run.messages.split_off_front(|messages, bytes| self.fits(&state, messages, bytes + ids))
            };
            if !run.messages.is_empty() {
                if state.messages >= COPY_FROM || is_tight {
                    run.messages.compact();
                }
                self.push(&mut state, Run { messages: run.messages, terms: run.terms.clone() });
            }
            let Some(rest) = rest else { continue };
            if state.slow || !self.may_exceed(&state, rest.size() + ids) {
                dropped += rest.len() as u64;
                state.dropped += rest.len() as u64;
                self.be_slow(&mut state);
            } else {
                if !std::mem::replace(&mut state.full, true) {
                    state.uptake.set_full(Some((now, taken)));
                }
                self.push(&mut state, Run { messages: rest, terms: run.terms });
            }
        }
        let is_full = state.full && !state.slow;
        let fill = was_empty && !state.queue.is_empty();
        drop(state);
        if fill {
            self.filled.notify_one();
        }
        match dropped {
            0 if is_full => InboxOffer::Full,
            0 => InboxOffer::Done,
            _ => InboxOffer::Dropped(dropped),
        }
    }

    fn be_slow(&self, state: &mut InboxState) {
        state.slow = true;
        if !std::mem::replace(&mut state.behind, true)
            && let Some(more_since_last) = self.says("slow")
        {
            warn!(
                client_id = &*self.owner,
                waiting = state.messages,
                dropped = state.dropped,
                more_since_last,
                "this subscriber reads too slowly: what does not fit into its queue is dropped until it has caught up"
            );
        }
    }

    /// Whether this event is logged now, see [`Account::says`].
    fn says(&self, event: &str) -> Option<u64> {
        self.account.as_ref().map_or(Some(0), |account| account.says(&self.owner, event))
    }

    /// Records that publishers are held. Returns `false` if there is no reason for it any more.
    pub(crate) fn hold(&self, by: Arc<dyn HoldsPublishers>) -> bool {
        let mut state = self.state.lock();
        let is_full = state.full && !state.closed && !state.slow && !state.is_given_up;
        if is_full {
            state.held_by = Some(by);
        }
        is_full
    }

    /// Stops holding publishers. Messages beyond the limits are dropped, and so are later ones that do not fit. Returns the
    /// number of dropped messages. Messages of a shared subscription stay, because their group waits for the result and
    /// limits them.
    pub(crate) fn lose(&self) -> u64 {
        let mut state = self.state.lock();
        state.held_by = None;
        if state.closed || state.is_given_up || !state.full {
            return 0;
        }
        let (mut dropped, mut of_groups) = (0, Vec::new());
        while state.messages > self.limits.messages
            || state.bytes > self.limits.bytes
            || (state.messages > 0 && !self.may_hold(&state, 0))
        {
            let Some(mut run) = state.queue.pop_back() else { break };
            if run.terms.share.is_some() {
                of_groups.push(run);
                continue;
            }
            state.messages -= run.messages.len();
            state.bytes -= run.size();
            self.has_left(run.size());
            let ids = run.terms.ids.size();
            let rest = run.messages.split_off_front(|messages, bytes| self.fits(&state, messages, bytes + ids));
            if !run.messages.is_empty() {
                run.messages.compact();
                self.push(&mut state, run);
            }
            let Some(rest) = rest else { break };
            dropped += rest.len() as u64;
        }
        state.queue.extend(of_groups.into_iter().rev());
        state.dropped += dropped;
        self.be_slow(&mut state);
        dropped
    }

    /// Records that the reader could not take anything for this long, because the gateway did not serve it.
    pub(crate) fn was_not_served(&self, time: Duration) {
        self.state.lock().uptake.was_not_served(time);
    }

    /// Whether the reader has taken many messages lately.
    pub(crate) fn is_quick(&self, now: Duration, full: usize) -> bool {
        let mut state = self.state.lock();
        let taken = state.taken;
        state.uptake.mark(now, taken);
        state.uptake.is_quick(now, taken, &self.limits, full)
    }

    /// What the reader has taken since its queue is full, if publishers may be held for it.
    pub(crate) fn taken_while_full(&self) -> Option<Amount> {
        let state = self.state.lock();
        state.held_by.is_some().then(|| state.uptake.since_full(state.taken))
    }

    /// Whether publishers may be held for it.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        self.taken_while_full().is_some()
    }

    /// Adds a run whose sender limits it. Returns the run if the subscriber is gone.
    pub(crate) fn put(&self, run: Run) -> Result<(), Run> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(run);
        }
        self.push(&mut state, run);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Takes the oldest run, but at most `most` messages of it, so that what is taken is soon processed.
    pub(crate) fn take_run(&self, most: usize) -> Option<Run> {
        let mut state = self.state.lock();
        let mut run = state.queue.pop_front()?;
        let mut bytes = run.size();
        if let Some(messages) = run.messages.split_off_front(|messages, _| messages <= most) {
            let rest = Run { messages, terms: run.terms.clone() };
            bytes -= rest.size();
            state.queue.push_front(rest);
        }
        state.messages -= run.messages.len();
        state.bytes -= bytes;
        self.has_left(bytes);
        state.taken.messages += run.messages.len() as u64;
        state.taken.bytes += bytes as u64;
        let qos = run.messages.first().map_or(Qos::AtMostOnce, |message| message.qos().min(run.terms.qos));
        if qos > Qos::AtMostOnce {
            state.taken.by_window += run.messages.len() as u64;
        }
        let half = state.messages <= self.limits.messages / 2 && state.bytes <= self.limits.bytes / 2;
        let held_by = if half { state.held_by.take() } else { None };
        if half && std::mem::take(&mut state.full) {
            state.uptake.set_full(None);
        }
        if state.queue.is_empty() && state.behind {
            (state.slow, state.behind) = (false, false);
            warn!(client_id = &*self.owner, dropped = state.dropped, "this subscriber has caught up");
        }
        if state.queue.is_empty() {
            state.queue.shrink_to(RUNS_KEPT);
        }
        drop(state);
        if let Some(holds) = held_by {
            holds.release(self.id);
            self.turn.let_go();
        }
        Some(run)
    }

    /// Takes up to `count` messages into `out`, and returns how many are left.
    pub(crate) fn take(&self, count: usize, out: &mut VecDeque<Queued>) -> usize {
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

    /// Waits until a message has come into an empty inbox. Safe to cancel.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Records that the reader takes nothing more, because its client is leaving. No publisher is held for it from now on,
    /// and what comes is dropped. What waits stays until [`Inbox::close`], because some of it may belong to a group.
    pub(crate) fn give_up(&self) {
        let mut state = self.state.lock();
        state.is_given_up = true;
        let held_by = state.held_by.take();
        drop(state);
        if let Some(holds) = held_by {
            holds.release(self.id);
        }
    }

    /// Closes the inbox, because the subscriber is gone. Returns the messages that it did not take.
    pub(crate) fn close(&self) -> VecDeque<Run> {
        let mut state = self.state.lock();
        state.closed = true;
        self.has_left(state.bytes + self.in_hand.swap(0, Ordering::SeqCst));
        (state.messages, state.bytes) = (0, 0);
        let left = std::mem::take(&mut state.queue);
        if std::mem::take(&mut state.behind)
            && let Some(more_since_last) = self.says("gone")
        {
            // the log line about catching up, with the number of lost messages, will not come any more
            let dropped = state.dropped;
            warn!(client_id = &*self.owner, dropped, more_since_last, "this subscriber has gone, too slow to the end");
        }
        let held_by = state.held_by.take();
        drop(state);
        if let Some(holds) = held_by {
            holds.release(self.id);
        }
        left
    }

    /// The number of waiting messages.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().messages
    }

    /// The number of messages dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let bytes = self.state.get_mut().bytes + *self.in_hand.get_mut();
        self.has_left(bytes);
    }
}

impl InboxState {
    /// Whether this many more messages and bytes are within the limits.
    fn fits(&self, messages: usize, bytes: usize, limits: &InboxLimits) -> bool {
        (self.messages == 0 && messages == 1)
            || (self.messages + messages <= limits.messages && self.bytes + bytes <= limits.bytes)
    }

    fn push(&mut self, run: Run) {
        self.messages += run.messages.len();
        self.bytes += run.size();
        self.queue.push_back(run);
    }
}

#[cfg(test)]
mod tests;
