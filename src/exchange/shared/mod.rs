//! Shared subscriptions (`$share/NAME/FILTER`) [MQTT-4.8.2]: each message goes to one member of the group.
//!
//! A group gives a message to the next member with room in its window, so a slow or stuck member gets fewer. Messages
//! for which no member has room wait, within limits, and unacknowledged messages of a member that leaves go to another.
//! If members may receive different things, the first messages for members without room are passed over, so that the
//! others go on.
//!
//! Where messages wait depends on the members. While one of the sessions is persistent and subscribes with more than
//! QoS 0, the group has a consumer in the journal: a message that was acknowledged to its publisher is on disk, and is
//! settled when a member has acknowledged it. Otherwise, and at QoS 0, messages wait in memory.
//!
//! A QoS 2 message must reach the member to which its delivery began, and no other [MQTT-4.8.2-4], [MQTT-4.8.2-5]. So
//! for a persistent member it is first handed over in the journal to the member's session.
//!
//! A member gets only messages that it may receive, so joining a group takes nothing away from others. If no connected
//! member may receive a message, it waits apart for one that may and is away, and if there is none, it is given up. If
//! too many wait so, the oldest are handed over to the session of the one that left last.
//!
//! Groups with the same filter and owner are handed their messages together ([`together`]), and if there are many, in
//! portions that their owner pays for ([`spread`]).

mod aside;
mod member;
pub(crate) mod owner;
pub(crate) mod spread;
mod state;
pub(crate) mod together;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use self::aside::GroupNext;
use self::member::Member;
pub(crate) use self::member::is_behind;
use self::owner::{ALWAYS, GroupOwner};
use self::state::{GroupBacklog, GroupState, Recipient};
use super::delivery::{InboxId, KeptPlace, RetainFlag, Run, Share, SharesOut, Terms};
use super::inbox::InboxLimits;
use super::subscribers::{Subscriber, SubscriptionOptions};
use super::waiting::DeliveryMemory;
use crate::access::authorise::Permissions;
use crate::access::in_force::RightsInForce;
use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Reader};
use crate::message::{Message, Owner};

/// One group, which is named by a name and a filter.
#[derive(Debug)]
pub(crate) struct SharedGroup {
    /// Groups that were made later have higher ids.
    id: u64,
    /// Whoever pays for it.
    owner: Arc<GroupOwner>,
    limits: InboxLimits,
    waiting: Option<DeliveryMemory>,
    state: Mutex<GroupState>,
}

impl SharedGroup {
    /// A group without members. Messages do not wait for it while the memory for clients is exhausted.
    pub(crate) fn of(
        owner: Arc<GroupOwner>,
        limits: InboxLimits,
        waiting: Option<&DeliveryMemory>,
    ) -> Arc<SharedGroup> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(SharedGroup { id, owner, limits, waiting: waiting.cloned(), state: Mutex::default() })
    }

    /// The same, for guests.
    #[cfg(test)]
    pub(crate) fn new(limits: InboxLimits, waiting: Option<&DeliveryMemory>) -> Arc<SharedGroup> {
        SharedGroup::of(Arc::new(GroupOwner::new(Owner::GUESTS)), limits, waiting)
    }

    /// Whoever pays for it.
    pub(crate) fn owner(&self) -> Owner {
        self.owner.owner()
    }

    /// Adds a message that nobody needs kept. If too many wait, the oldest are dropped. Returns how many. The message is in
    /// memory of its own, which groups share.
    pub(crate) fn add(self: &Arc<Self>, message: Message) -> u64 {
        let mut state = self.state.lock();
        state.enqueue(message, false);
        self.pump(&mut state);
        let mut dropped = 0;
        while self.has_too_many(&state) {
            let Some(oldest) = state.waiting.pop_front() else { break };
            state.bytes -= oldest.size();
            dropped += 1;
        }
        state.dropped += dropped;
        state.note(&self.owner);
        dropped
    }

    #[cfg(test)]
    pub(crate) fn push(self: &Arc<Self>, message: Message) {
        self.add(message);
    }

    fn has_too_many(&self, state: &GroupState) -> bool {
        state.waiting.len() > self.limits.messages
            || state.bytes > self.limits.bytes
            || self.is_short()
            || (state.waiting.len() > ALWAYS && self.owner.has_too_many())
    }

    /// Lets this consumer of the journal keep messages for the group from now on.
    pub(crate) fn keep(self: &Arc<Self>, journal: &Journal, consumer: ConsumerId, mut reader: Reader) {
        let mut state = self.state.lock();
        if state.members.is_empty() {
            reader.rest();
        }
        state.durable = Some(GroupBacklog { journal: journal.clone(), consumer, reader });
        self.pump(&mut state);
    }

    /// The consumer of the journal that keeps messages for the group, or still has some.
    pub(crate) fn consumer(&self) -> Option<ConsumerId> {
        self.state.lock().durable.as_ref().map(|durable| durable.consumer)
    }

    /// Adds a client, or changes its options. `consumer` is that of its session, if the session is persistent.
    pub(crate) fn join(
        self: &Arc<Self>,
        (subscriber, permissions): (&Arc<Subscriber>, &Arc<Permissions>),
        options: SubscriptionOptions,
        consumer: Option<ConsumerId>,
    ) {
        let mut state = self.state.lock();
        if let Some(consumer) = consumer {
            state.forget(consumer);
        }
        if let Some(member) = state.members.iter_mut().find(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            member.options = options;
        } else {
            state.reconsider(|topic| permissions.may_receive(topic));
            let is_awaited = !state.passed.is_empty();
            let (subscriber, permissions) = (subscriber.clone(), permissions.clone());
            let group = Arc::downgrade(self) as Weak<dyn SharesOut>;
            state.members.push(Member { group, subscriber, permissions, options, unsettled: 0, is_awaited, consumer });
        }
        self.pump(&mut state);
    }

    /// Adds a persistent session whose client is not connected, or is about to leave.
    pub(crate) fn expect(&self, consumer: ConsumerId, rights: Arc<RightsInForce>) {
        self.state.lock().expect(consumer, rights);
    }

    /// Removes a session that does not belong to the group any more.
    pub(crate) fn forget(self: &Arc<Self>, consumer: ConsumerId) {
        let mut state = self.state.lock();
        if let Some(gone) = state.forget(consumer) {
            state.reconsider(|topic| gone.rights.may_receive(topic));
            self.pump(&mut state);
        }
    }

    /// Removes a client, and returns whether the group has no members now.
    pub(crate) fn leave(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> bool {
        let mut state = self.state.lock();
        if let Some(at) = state.members.iter().position(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            state.remove(at);
        }
        self.pump(&mut state);
        let is_empty = state.members.is_empty();
        if let Some(durable) = state.durable.as_mut().filter(|_| is_empty) {
            durable.reader.rest();
        }
        is_empty
    }

    /// The number of messages dropped because too many waited.
    #[cfg(test)]
    pub(crate) fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    /// Distributes waiting messages as far as members have room.
    fn pump(self: &Arc<Self>, state: &mut GroupState) {
        self.distribute_waiting(state);
        state.note(&self.owner);
    }

    fn distribute_waiting(self: &Arc<Self>, state: &mut GroupState) {
        if state.has_room_for_passed() {
            self.distribute_passed(state);
        }
        while state.has_room() {
            let Some(next) = state.take() else { return };
            if !self.distribute(state, next, false) || !state.hand_over_due(self.limits, || self.is_short()) {
                return;
            }
        }
    }

    fn distribute_passed(self: &Arc<Self>, state: &mut GroupState) {
        let mut passed = state.take_passed();
        while let Some(next) = passed.pop_front() {
            if !self.distribute(state, next, true) || !state.has_room() {
                break;
            }
        }
        state.pass_over_again(passed);
    }

    /// Lets a message go on, or wait aside. Returns whether that was possible.
    fn distribute(self: &Arc<Self>, state: &mut GroupState, next: GroupNext, was_passed: bool) -> bool {
        match state.recipient(&next) {
            Recipient::Member(at) => self.give(state, at, next),
            Recipient::Session(consumer) => return state.hand_over(next, consumer),
            Recipient::Later if was_passed || (state.passed.has_room() && !self.is_short()) => state.pass_over(next),
            Recipient::Later => {
                state.put_back(next);
                return false;
            }
            Recipient::Absent => state.set_apart(next),
            Recipient::Nobody => state.give_up(next),
        }
        true
    }

    fn is_short(&self) -> bool {
        self.waiting.as_ref().is_some_and(DeliveryMemory::is_short)
    }

    /// Gives a message to a member, or puts it back if the client is gone.
    fn give(self: &Arc<Self>, state: &mut GroupState, at: usize, next: GroupNext) {
        let Member { options, subscriber, .. } = &state.members[at];
        let kept = match &next {
            GroupNext::Kept(delivery) => Some((delivery.position, delivery.ordinal)),
            GroupNext::InMemory(_) => None,
        };
        let terms = Terms {
            qos: options.qos,
            retain: if options.retain_as_published { RetainFlag::AsPublished } else { RetainFlag::Clear },
            no_local: false,
            ids: options.id.into(),
            share: Some(Share { group: self.clone(), kept }),
        };
        if subscriber.inbox.put(Run::one(next.message().clone(), terms)).is_ok() {
            state.members[at].unsettled += 1;
        } else {
            // the client is gone, but has not left the group yet
            state.put_back(next);
            state.remove(at);
        }
    }
}

impl SharesOut for SharedGroup {
    fn settled(self: Arc<Self>, by: InboxId, kept: Option<KeptPlace>) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.iter_mut().find(|member| member.subscriber.inbox.id() == by) {
            member.unsettled = member.unsettled.saturating_sub(1);
        }
        if let Some((durable, (position, _))) = state.durable.as_mut().zip(kept) {
            durable.reader.settle(position);
        }
        self.pump(&mut state);
    }

    fn give_up(&self, kept: Option<KeptPlace>) {
        let mut state = self.state.lock();
        if let Some((durable, (position, _))) = state.durable.as_mut().zip(kept) {
            durable.reader.settle_as(position, Outcome::NotWanted);
        }
    }

    fn take_back(self: Arc<Self>, messages: Vec<(Share, Message)>) {
        let mut state = self.state.lock();
        for (share, message) in messages.into_iter().rev() {
            match share.kept {
                Some((position, ordinal)) => {
                    let delivery =
                        Delivery { position, ordinal, message, resent: true, released: false, handed_over: false };
                    state.again.insert(ordinal, delivery);
                }
                None => state.enqueue(message, true),
            }
        }
        self.pump(&mut state);
    }

    fn look(self: Arc<Self>) {
        self.pump(&mut self.state.lock());
    }
}

impl Drop for SharedGroup {
    fn drop(&mut self) {
        self.owner.changed(self.state.get_mut().noted, 0);
    }
}

#[cfg(test)]
mod tests;
