//! The groups of one owner with the same filter.
//!
//! A message goes to all of them, and each looks for a member, which takes about as long as a publication. So whoever is in
//! thousands of groups makes a small message expensive. A publication is handed over at once to a few groups. If there are
//! more, it waits here, in one copy, until it has been handed to all of them, a few at a time ([`super::spread`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::SharedGroup;
use super::owner::{ALWAYS, GroupOwner, SMALL};
use crate::exchange::inbox::InboxLimits;
use crate::exchange::meter::{STEPS_PER_DELIVERY, Walk};
use crate::exchange::waiting::DeliveryMemory;
use crate::journal::ConsumerId;
use crate::message::{Message, Qos};

/// The most groups that get messages in one portion ...
const GROUPS_AT_ONCE: usize = 256;
/// ... and the time after which it ends.
const TIME_AT_ONCE: Duration = Duration::from_millis(1);
/// At least this many messages may wait, because a large batch of small messages comes at once.
const LEAST: usize = 8192;

/// The groups with one filter, of which each gets every message.
#[derive(Debug)]
pub(crate) struct FilterGroups {
    owner: Arc<GroupOwner>,
    limits: InboxLimits,
    memory: Option<DeliveryMemory>,
    state: Mutex<FilterGroupsState>,
}

#[derive(Debug, Default)]
struct FilterGroupsState {
    /// By id, so that groups that came later are last.
    groups: BTreeMap<u64, GroupPlace>,
    /// The consumers of those for which the journal keeps messages above QoS 0.
    kept: BTreeMap<u64, ConsumerId>,
    waiting: VecDeque<WaitingForGroups>,
    bytes: usize,
    /// The number of the next message that waits.
    next_number: u64,
    /// The id of the first group that the first waiting message has not reached.
    from: u64,
    /// Whether the messages are about to be handed over.
    is_queued: bool,
}

#[derive(Debug)]
struct GroupPlace {
    group: Arc<SharedGroup>,
    is_kept: bool,
    /// The numbers of the first waiting messages after the journal began or ceased to keep messages for the group.
    changes: SmallVec<[u64; 1]>,
}

/// A message that waits until all groups have it.
#[derive(Debug)]
struct WaitingForGroups {
    message: Message,
    number: u64,
    /// Groups from this id on are newer than the message.
    until: u64,
    /// The groups that have not got it yet.
    left: usize,
    /// How many of these the publication has paid for.
    paid: usize,
}

/// What becomes of a message.
pub(super) enum Accepting {
    /// It is to be handed over at once.
    AtOnce,
    /// It waits. This is the number of deliveries that were dropped for it.
    Waits(u64),
    /// It waits, and nothing does so far. So these groups must be queued.
    Begins,
}

/// The next groups for the first waiting message.
struct NextGroups {
    message: Message,
    number: u64,
    /// Each with its id; `None` if the journal has the message for it.
    groups: Vec<(u64, Option<Arc<SharedGroup>>)>,
}

/// What one portion has done.
pub(super) struct SpreadPortion {
    /// The processor time that no publication has paid for.
    pub(super) cost: Duration,
    /// The messages that groups have dropped because too many waited.
    pub(super) dropped: u64,
    pub(super) has_more: bool,
}

impl GroupPlace {
    /// Whether the group gets this waiting message in memory.
    fn takes(&self, waiting: &WaitingForGroups) -> bool {
        let later = self.changes.iter().filter(|change| **change > waiting.number).count();
        waiting.message.view().qos() == Qos::AtMostOnce || self.is_kept == (later % 2 == 1)
    }
}

impl FilterGroups {
    /// Place for groups like this one.
    pub(crate) fn like(group: &SharedGroup) -> FilterGroups {
        let (owner, limits, memory) = (group.owner.clone(), group.limits, group.waiting.clone());
        let limits = InboxLimits { messages: limits.messages.max(LEAST), ..limits };
        FilterGroups { owner, limits, memory, state: Mutex::default() }
    }

    pub(crate) fn owner(&self) -> &Arc<GroupOwner> {
        &self.owner
    }

    /// Adds a group, or changes which consumer keeps its messages above QoS 0.
    pub(crate) fn set(&self, group: &Arc<SharedGroup>, consumer: Option<ConsumerId>) {
        let state = &mut *self.state.lock();
        let is_kept = consumer.is_some();
        let fresh = || GroupPlace { group: group.clone(), is_kept, changes: SmallVec::new() };
        let place = state.groups.entry(group.id).or_insert_with(fresh);
        if place.is_kept != is_kept {
            place.is_kept = is_kept;
            let first = state.waiting.front().map_or(state.next_number, |first| first.number);
            place.changes.retain(|change| *change > first);
            match place.changes.last() {
                // nothing has come since then
                Some(last) if *last == state.next_number => drop(place.changes.pop()),
                _ if state.waiting.is_empty() => {}
                _ => place.changes.push(state.next_number),
            }
        }
        match consumer {
            Some(consumer) => state.kept.insert(group.id, consumer),
            None => state.kept.remove(&group.id),
        };
    }

    /// Removes a group. Returns whether none is left.
    pub(crate) fn remove(&self, group: &SharedGroup) -> bool {
        let mut state = self.state.lock();
        state.kept.remove(&group.id);
        state.groups.remove(&group.id);
        state.groups.is_empty()
    }

    /// Adds the consumers that keep a message with this QoS. Returns whether groups get it in memory.
    pub(crate) fn consumers(&self, qos: Qos, consumers: &mut SmallVec<[ConsumerId; 4]>) -> bool {
        let state = self.state.lock();
        if qos > Qos::AtMostOnce {
            consumers.extend(state.kept.values().copied());
        }
        state.takers(qos) > 0
    }

    /// Decides whether a message is handed over at once. `room` is the number of groups for which that is possible, and
    /// `paid` the number for which the publication pays.
    pub(super) fn accept(&self, message: &Message, room: &mut usize, paid: &mut usize) -> Accepting {
        let state = &mut *self.state.lock();
        let takers = state.takers(message.view().qos());
        let of_these = takers.min(*paid);
        *paid -= of_these;
        if state.waiting.is_empty() && !state.is_queued && takers == of_these && takers <= *room {
            *room -= takers;
            return Accepting::AtOnce;
        }
        let until = state.groups.last_key_value().map_or(0, |(id, _)| id + 1);
        let number = state.next_number;
        state.next_number += 1;
        state.bytes += message.size();
        let message = message.clone();
        state.waiting.push_back(WaitingForGroups { message, number, until, left: takers, paid: of_these });
        self.owner.changed(0, 1);
        let mut dropped = 0;
        while state.waiting.len() > 1 && self.has_too_many(state) {
            dropped += self.pop(state);
        }
        match std::mem::replace(&mut state.is_queued, true) {
            false => Accepting::Begins,
            true => Accepting::Waits(dropped),
        }
    }

    fn has_too_many(&self, state: &FilterGroupsState) -> bool {
        state.waiting.len() > self.limits.messages
            || state.bytes > self.limits.bytes
            || self.memory.as_ref().is_some_and(DeliveryMemory::is_short)
            || (state.waiting.len() > ALWAYS && self.owner.has_too_many())
    }

    /// Takes the first waiting message out. Returns the number of groups that have not got it.
    fn pop(&self, state: &mut FilterGroupsState) -> u64 {
        state.from = 0;
        let Some(first) = state.waiting.pop_front() else { return 0 };
        state.bytes -= first.message.size();
        self.owner.changed(1, 0);
        if state.waiting.is_empty() && state.waiting.capacity() > SMALL {
            state.waiting = VecDeque::new();
        }
        first.left as u64
    }

    /// Hands a message over to all groups. Returns the number of messages that they have dropped.
    pub(super) fn push(&self, message: &Message) -> u64 {
        let state = self.state.lock();
        let is_kept = message.view().qos() > Qos::AtMostOnce;
        let takers = state.groups.values().filter(|place| !(is_kept && place.is_kept));
        takers.map(|place| place.group.add(message.clone())).sum()
    }

    /// Hands the first waiting messages over to some more groups.
    pub(super) fn spread(&self) -> SpreadPortion {
        let (mut walk, begun) = (Walk::beyond_what_is_free(), std::time::Instant::now());
        let (mut dropped, mut visited, mut paid, mut has_more) = (0, 0, 0, true);
        let is_over = |visited| visited > 0 && begun.elapsed() >= TIME_AT_ONCE;
        while has_more && visited < GROUPS_AT_ONCE && !is_over(visited) {
            let Some(next) = self.next_groups(GROUPS_AT_ONCE - visited) else {
                has_more = false;
                break;
            };
            let (mut reached, mut given) = (None, 0);
            for (id, group) in &next.groups {
                if is_over(visited) {
                    break;
                }
                if let Some(group) = group {
                    dropped += group.add(next.message.clone());
                    given += 1;
                }
                reached = Some(*id);
                visited += 1;
            }
            if reached.is_none() && !next.groups.is_empty() {
                break;
            }
            let (more, is_rest) = self.has_spread(next.number, reached, given);
            paid += more;
            has_more = is_rest;
        }
        walk.visits(visited * STEPS_PER_DELIVERY);
        SpreadPortion { cost: walk.cost(paid), dropped, has_more }
    }

    fn next_groups(&self, most: usize) -> Option<NextGroups> {
        let state = &mut *self.state.lock();
        let Some(first) = state.waiting.front() else {
            state.is_queued = false;
            return None;
        };
        let groups = state.groups.range(state.from..first.until.max(state.from)).take(most);
        let groups = groups.map(|(id, place)| (*id, place.takes(first).then(|| place.group.clone()))).collect();
        Some(NextGroups { message: first.message.clone(), number: first.number, groups })
    }

    /// Records that the message with this number has reached the group with this id, the last if it is `None`. Returns for
    /// how many of the groups that were given it the publication has paid, and whether more is to be done.
    fn has_spread(&self, number: u64, reached: Option<u64>, given: usize) -> (usize, bool) {
        let state = &mut *self.state.lock();
        let mut paid = 0;
        // it may have been dropped meanwhile
        if let Some(first) = state.waiting.front_mut().filter(|first| first.number == number) {
            state.from = reached.map_or(first.until, |id| id + 1);
            first.left = first.left.saturating_sub(given);
            paid = given.min(first.paid);
            first.paid -= paid;
            if state.groups.range(state.from..first.until.max(state.from)).next().is_none() {
                self.pop(state);
            }
        }
        state.is_queued = !state.waiting.is_empty();
        (paid, state.is_queued)
    }
}

impl FilterGroupsState {
    /// The number of groups that get a message with this QoS in memory.
    fn takers(&self, qos: Qos) -> usize {
        self.groups.len() - if qos > Qos::AtMostOnce { self.kept.len() } else { 0 }
    }
}

impl Drop for FilterGroups {
    fn drop(&mut self) {
        self.owner.changed(self.state.get_mut().waiting.len(), 0);
    }
}
