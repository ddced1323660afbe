//! Hands messages over to groups, at the expense of those who are in them.
//!
//! The work for a message is covered by the publication as far as it goes to [`PAID`] groups. Nobody knows from a topic
//! how many groups there are behind it, so the publisher does not pay for others, but the owner of the groups does: the
//! user, or all guests together, whose client made them. Work that is too much for the turn of a batch under the one order
//! waits for the task [`Spreader::run`]. It does a portion for one owner after the other, and for one that has cost the
//! others much when its turn has come ([`Meter`]). Messages keep their order in each group.
//!
//! What waits is bounded for each filter and for each owner: see [`super::owner`]. What does not fit is dropped, the
//! oldest first, counted and logged.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::owner::GroupOwner;
use super::together::{Accepting, FilterGroups};
use crate::exchange::meter::Meter;
use crate::exchange::stats::Stats;
use crate::message::{Message, Owner};
use crate::workers::worked;

/// The number of groups for which the publication of a message pays.
pub(crate) const PAID: usize = 64;
/// In addition to one for each message, the number of groups to which a batch is handed over at once, which takes about a
/// millisecond. Only what the publications pay for is handed over at once.
const AT_ONCE: usize = 1024;
/// The least interval between two lines in the log.
const LOG: Duration = Duration::from_secs(60);

/// The messages of one batch for groups.
pub(crate) struct BatchForGroups<'a> {
    at_once: SmallVec<[(&'a Arc<FilterGroups>, Message); 2]>,
    later: SmallVec<[&'a Arc<FilterGroups>; 2]>,
    room: usize,
    dropped: u64,
}

impl<'a> BatchForGroups<'a> {
    /// For a batch of this many messages.
    pub(crate) fn of(messages: u32) -> BatchForGroups<'a> {
        let (at_once, later) = (SmallVec::new(), SmallVec::new());
        BatchForGroups { at_once, later, room: messages as usize + AT_ONCE, dropped: 0 }
    }

    /// Adds a message, which is in memory of its own. The groups may use the journal, so nothing is handed over yet.
    pub(crate) fn add(&mut self, takers: &[&'a Arc<FilterGroups>], message: &Message) {
        let mut paid = PAID;
        for groups in takers {
            match groups.accept(message, &mut self.room, &mut paid) {
                Accepting::AtOnce => self.at_once.push((groups, message.clone())),
                Accepting::Begins => self.later.push(groups),
                Accepting::Waits(dropped) => self.dropped += dropped,
            }
        }
    }

    /// Hands over what is for groups at once, and leaves the rest to the task.
    pub(crate) fn hand_over(self, spreader: &Spreader) {
        // all of this was decided before anything began to wait for the same groups
        let dropped: u64 = self.at_once.iter().map(|(groups, message)| groups.push(message)).sum();
        for groups in self.later {
            spreader.queue(groups.clone());
        }
        spreader.has_dropped(self.dropped + dropped);
    }
}

/// The groups for which messages wait, by owner. The first is the next.
type QueuedGroups = VecDeque<(Arc<GroupOwner>, VecDeque<Arc<FilterGroups>>)>;

/// What to do next.
enum NextTurn {
    Of(Arc<FilterGroups>),
    /// All whose groups have something to do wait until then.
    At(Instant),
    Nothing,
}

/// The messages that wait for groups.
#[derive(Debug)]
pub(crate) struct Spreader {
    meter: Arc<Meter>,
    stats: Arc<Stats>,
    owners: Mutex<HashMap<Owner, Arc<GroupOwner>>>,
    queue: Mutex<QueuedGroups>,
    has_work: Notify,
    /// When a loss was logged, and what was lost since then.
    logged: Mutex<(Option<Instant>, u64)>,
}

impl Spreader {
    pub(crate) fn new(meter: Arc<Meter>, stats: Arc<Stats>) -> Spreader {
        Spreader {
            meter,
            stats,
            owners: Mutex::default(),
            queue: Mutex::default(),
            has_work: Notify::new(),
            logged: Mutex::default(),
        }
    }

    /// The one who pays for the groups of this owner.
    pub(crate) fn owner(&self, owner: Owner) -> Arc<GroupOwner> {
        self.owners.lock().entry(owner).or_insert_with(|| Arc::new(GroupOwner::new(owner))).clone()
    }

    fn queue(&self, groups: Arc<FilterGroups>) {
        let mut queue = self.queue.lock();
        match queue.iter_mut().find(|(owner, _)| Arc::ptr_eq(owner, groups.owner())) {
            Some((_, waiting)) => waiting.push_back(groups),
            None => queue.push_back((groups.owner().clone(), VecDeque::from([groups]))),
        }
        drop(queue);
        self.has_work.notify_one();
    }

    fn next(&self) -> NextTurn {
        let mut queue = self.queue.lock();
        let mut at: Option<Instant> = None;
        for _ in 0..queue.len() {
            let Some((owner, mut waiting)) = queue.pop_front() else { break };
            let turn = self.meter.turn(owner.origin());
            let next = if turn.is_none() { waiting.pop_front() } else { None };
            at = at.into_iter().chain(turn).min();
            if !waiting.is_empty() {
                queue.push_back((owner, waiting));
            }
            if let Some(groups) = next {
                return NextTurn::Of(groups);
            }
        }
        at.map_or(NextTurn::Nothing, NextTurn::At)
    }

    /// Hands over what waits until cancelled.
    pub(crate) async fn run(&self, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            match self.next() {
                NextTurn::Of(groups) => {
                    self.spread(groups);
                    worked();
                    yield_now().await;
                }
                NextTurn::At(turn) => tokio::select! {
                    () = cancel.cancelled() => return,
                    () = self.has_work.notified() => {}
                    () = sleep_until(turn) => {}
                },
                NextTurn::Nothing => tokio::select! {
                    () = cancel.cancelled() => return,
                    () = self.has_work.notified() => {}
                },
            }
        }
    }

    /// Does one portion.
    fn spread(&self, groups: Arc<FilterGroups>) {
        let spread = groups.spread();
        self.meter.charge(groups.owner().origin(), spread.cost);
        self.has_dropped(spread.dropped);
        if spread.has_more {
            self.queue(groups);
        }
    }

    fn has_dropped(&self, messages: u64) {
        if messages == 0 {
            return;
        }
        self.stats.publish_dropped.add(messages);
        let mut logged = self.logged.lock();
        logged.1 += messages;
        let now = Instant::now();
        if logged.0.is_none_or(|last| now >= last + LOG) {
            let dropped = std::mem::take(&mut logged.1);
            logged.0 = Some(now);
            warn!(dropped, "messages for shared subscriptions are dropped: their clients take them too slowly");
        }
    }
}

#[cfg(test)]
mod tests;
