//! Shared subscriptions (`$share/NAME/FILTER`) [MQTT-4.8.2]: each message goes to one member of the group.
//!
//! A group gives a message to the next member with room in its window, so a slow or stuck member gets fewer. Messages for
//! which no member has room wait, within limits, and unacknowledged messages of a member that leaves go to another.
//!
//! Where messages wait depends on the members. While one of the sessions is persistent and subscribes with more than QoS 0,
//! the group has a consumer in the journal: a message that was acknowledged to its publisher is on disk, and is settled when
//! a member has acknowledged it. Otherwise, and at QoS 0, messages wait in memory.
//!
//! A QoS 2 message must reach the member to which its delivery began, and no other [MQTT-4.8.2-4], [MQTT-4.8.2-5]. So for a
//! persistent member it is first handed over in the journal to the member's session.
//!
//! A member gets only messages that it may receive, so joining a group takes nothing away from others. If no connected member
//! may receive a message, it is handed over to the session of a member that may and is away, and if there is none, it is given
//! up.

mod state;

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;

use self::state::{GroupBacklog, GroupNext, GroupState, Recipient};
use super::delivery::{InboxId, KeptPlace, RetainFlag, Run, Share, SharesOut, Terms};
use super::inbox::InboxLimits;
use super::subscribers::{Subscriber, SubscriptionOptions};
use super::waiting::DeliveryMemory;
use crate::access::authorise::Permissions;
use crate::access::in_force::RightsInForce;
use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Reader};
use crate::message::{Message, Qos};

/// The most unsettled messages of one member.
const MEMBER_WINDOW: usize = 20;

#[derive(Debug)]
struct Member {
    /// Its group.
    group: Weak<dyn SharesOut>,
    subscriber: Arc<Subscriber>,
    permissions: Arc<Permissions>,
    options: SubscriptionOptions,
    unsettled: usize,
    /// The consumer of its session, if that is persistent.
    consumer: Option<ConsumerId>,
}

impl Member {
    fn takes_over(&self) -> Option<ConsumerId> {
        self.consumer.filter(|_| self.options.qos == Qos::ExactlyOnce)
    }

    /// Whether it accepts a message. If not, it asks the group as soon as it does.
    fn has_room(&self, journal: Option<&Journal>) -> bool {
        let inbox = &self.subscriber.inbox;
        let takes_more = || !self.takes_over().zip(journal).is_some_and(|(id, journal)| is_behind(journal, id));
        // a member with unsettled messages asks with each that it settles
        self.unsettled < MEMBER_WINDOW
            && inbox.has_room_for(&self.group)
            && (takes_more() || {
                // before another check, so that it is noticed if the session has more room after it
                inbox.behind.add(&self.group);
                takes_more()
            })
    }
}

/// Whether so much waits for a session that no more is handed over to it.
pub(crate) fn is_behind(journal: &Journal, session: ConsumerId) -> bool {
    journal.backlog(session).messages >= MEMBER_WINDOW
}

/// One group, which is named by a name and a filter.
#[derive(Debug)]
pub(crate) struct SharedGroup {
    limits: InboxLimits,
    waiting: Option<DeliveryMemory>,
    state: Mutex<GroupState>,
}

impl SharedGroup {
    /// A group without members. Messages do not wait for it while the memory for clients is exhausted.
    pub(crate) fn new(limits: InboxLimits, waiting: Option<&DeliveryMemory>) -> Arc<SharedGroup> {
        Arc::new(SharedGroup { limits, waiting: waiting.cloned(), state: Mutex::default() })
    }

    /// Adds a message that nobody needs kept. If too many wait, the oldest is dropped. The message is in memory of its own,
    /// which groups share.
    pub(crate) fn push(self: &Arc<Self>, message: Message) {
        let mut state = self.state.lock();
        state.enqueue(message, false);
        self.pump(&mut state);
        let is_short = || self.waiting.as_ref().is_some_and(DeliveryMemory::is_short);
        while state.waiting.len() > self.limits.messages || state.bytes > self.limits.bytes || is_short() {
            let Some(oldest) = state.waiting.pop_front() else { break };
            state.bytes -= oldest.size();
            state.dropped += 1;
        }
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
        consumer.into_iter().for_each(|consumer| state.forget(consumer));
        match state.members.iter_mut().find(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            Some(member) => member.options = options,
            None => {
                let (subscriber, permissions) = (subscriber.clone(), permissions.clone());
                let group = Arc::downgrade(self) as Weak<dyn SharesOut>;
                state.members.push(Member { group, subscriber, permissions, options, unsettled: 0, consumer });
            }
        }
        self.pump(&mut state);
    }

    /// Adds a persistent session whose client is not connected, or is about to leave.
    pub(crate) fn expect(&self, consumer: ConsumerId, rights: Arc<RightsInForce>) {
        self.state.lock().expect(consumer, rights);
    }

    /// Removes a session that does not belong to the group any more.
    pub(crate) fn forget(&self, consumer: ConsumerId) {
        self.state.lock().forget(consumer);
    }

    /// Removes a client, and returns whether the group has no members now.
    pub(crate) fn leave(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> bool {
        let mut state = self.state.lock();
        state.members.retain(|member| !Arc::ptr_eq(&member.subscriber, subscriber));
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
        while state.has_room() {
            let Some(next) = state.take() else { return };
            let is_done = match state.recipient(&next) {
                Recipient::Member(at) => self.give(state, at, next),
                Recipient::Session(consumer) => state.hand_over(next, consumer),
                Recipient::Later => {
                    state.put_back(next);
                    false
                }
                Recipient::Nobody => {
                    state.give_up(next);
                    true
                }
            };
            if !is_done {
                return;
            }
        }
    }

    /// Gives a message to a member, or puts it back if the client is gone.
    fn give(self: &Arc<Self>, state: &mut GroupState, at: usize, next: GroupNext) -> bool {
        let Member { options, subscriber, .. } = &state.members[at];
        let kept = match &next {
            GroupNext::Kept(delivery) => Some((delivery.position, delivery.ordinal)),
            GroupNext::InMemory(_) => None,
        };
        let terms = Terms {
            qos: options.qos,
            retain: if options.retain_as_published { RetainFlag::AsPublished } else { RetainFlag::Clear },
            no_local: false,
            ids: options.id.into_iter().collect::<SmallVec<_>>(),
            share: Some(Share { group: self.clone(), kept }),
        };
        if subscriber.inbox.put(Run::one(next.message().clone(), terms)).is_ok() {
            state.members[at].unsettled += 1;
        } else {
            // the client is gone, but has not left the group yet
            state.members.remove(at);
            state.put_back(next);
        }
        true
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
                    let delivery = Delivery { position, ordinal, message, resent: true, released: false };
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

#[cfg(test)]
mod tests;
