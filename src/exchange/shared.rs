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

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::delivery::{InboxId, KeptPlace, RetainFlag, Run, Share, SharesOut, Terms};
use super::inbox::InboxLimits;
use super::subscribers::{Subscriber, SubscriptionOptions};
use super::waiting::DeliveryMemory;
use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Reader};
use crate::message::{Message, Qos};

/// The most unsettled messages of one member.
const MEMBER_WINDOW: usize = 20;

#[derive(Debug)]
struct Member {
    subscriber: Arc<Subscriber>,
    options: SubscriptionOptions,
    unsettled: usize,
    /// The consumer of its session, if that is persistent.
    consumer: Option<ConsumerId>,
}

impl Member {
    fn takes_over(&self) -> Option<ConsumerId> {
        self.consumer.filter(|_| self.options.qos == Qos::ExactlyOnce)
    }

    fn has_room(&self, journal: Option<&Journal>) -> bool {
        let behind = |id| journal.is_some_and(|journal| journal.backlog(id).messages >= MEMBER_WINDOW);
        self.unsettled < MEMBER_WINDOW && self.subscriber.inbox.has_room() && !self.takes_over().is_some_and(behind)
    }
}

/// The journal's part of a group.
#[derive(Debug)]
struct GroupBacklog {
    journal: Journal,
    consumer: ConsumerId,
    reader: Reader,
}

#[derive(Debug, Default)]
struct GroupState {
    members: Vec<Member>,
    next: usize,
    durable: Option<GroupBacklog>,
    /// Messages from the journal that were left unacknowledged, by ordinal.
    again: BTreeMap<u64, Delivery>,
    waiting: VecDeque<Message>,
    bytes: usize,
    dropped: u64,
}

/// The next message of a group.
enum GroupNext {
    Kept(Delivery),
    InMemory(Message),
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

    /// Distributes messages, because the journal may have new ones or a member has room again.
    pub(crate) fn look(self: &Arc<Self>) {
        self.pump(&mut self.state.lock());
    }

    /// Adds a client, or changes its options. `consumer` is that of its session, if the session is persistent.
    pub(crate) fn join(
        self: &Arc<Self>,
        subscriber: &Arc<Subscriber>,
        options: SubscriptionOptions,
        consumer: Option<ConsumerId>,
    ) {
        let mut state = self.state.lock();
        match state.members.iter_mut().find(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            Some(member) => member.options = options,
            None => state.members.push(Member { subscriber: subscriber.clone(), options, unsettled: 0, consumer }),
        }
        self.pump(&mut state);
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
        while let Some(at) = state.member_with_room() {
            let Some(next) = state.take() else { return };
            state.next = at + 1;
            let member = &mut state.members[at];
            let options = member.options;
            let (message, kept) = match &next {
                GroupNext::Kept(delivery) => (&delivery.message, Some((delivery.position, delivery.ordinal))),
                GroupNext::InMemory(message) => (message, None),
            };
            if let GroupNext::Kept(delivery) = &next
                && let Some(consumer) = member.takes_over().filter(|_| message.view().qos() == Qos::ExactlyOnce)
                && let Some(durable) = &state.durable
            {
                if durable.journal.hand_over(durable.consumer, delivery, consumer).is_err() {
                    // the disk accepts nothing at present; the next wake of the group tries again
                    state.put_back(next);
                    return;
                }
                continue;
            }
            let terms = Terms {
                qos: options.qos,
                retain: if options.retain_as_published { RetainFlag::AsPublished } else { RetainFlag::Clear },
                no_local: false,
                ids: options.id.into_iter().collect::<SmallVec<_>>(),
                share: Some(Share { group: self.clone(), kept }),
            };
            if member.subscriber.inbox.put(Run::one(message.clone(), terms)).is_ok() {
                member.unsettled += 1;
            } else {
                // the client is gone, but has not left the group yet
                state.members.remove(at);
                state.put_back(next);
            }
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
                    let delivery = Delivery { position, ordinal, message, resent: true, released: false };
                    state.again.insert(ordinal, delivery);
                }
                None => state.enqueue(message, true),
            }
        }
        self.pump(&mut state);
    }
}

impl GroupState {
    /// The next member in turn with room.
    fn member_with_room(&self) -> Option<usize> {
        let count = self.members.len();
        let journal = self.durable.as_ref().map(|durable| &durable.journal);
        (0..count).map(|step| (self.next + step) % count).find(|at| self.members[*at].has_room(journal))
    }

    /// The next message: first those that were distributed before, then those in memory, then those of the journal.
    fn take(&mut self) -> Option<GroupNext> {
        if let Some((_, delivery)) = self.again.pop_first() {
            return Some(GroupNext::Kept(delivery));
        }
        if let Some(message) = self.waiting.pop_front() {
            self.bytes -= message.size();
            return Some(GroupNext::InMemory(message));
        }
        let reader = &mut self.durable.as_mut()?.reader;
        loop {
            let delivery = reader.try_next()?;
            if !delivery.released {
                return Some(GroupNext::Kept(delivery));
            }
            // it was handed over before the gateway was started
            reader.settle(delivery.position);
        }
    }

    fn put_back(&mut self, next: GroupNext) {
        match next {
            GroupNext::Kept(delivery) => drop(self.again.insert(delivery.ordinal, delivery)),
            GroupNext::InMemory(message) => self.enqueue(message, true),
        }
    }

    fn enqueue(&mut self, message: Message, first: bool) {
        self.bytes += message.size();
        if first {
            self.waiting.push_front(message);
        } else {
            self.waiting.push_back(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::inbox::Inbox;
    use crate::message::{Draft, Origin, Qos};

    fn message(payload: u8) -> Message {
        Message::new(&Draft { qos: Qos::AtLeastOnce, ..Draft::new("t", &[payload]) })
    }

    fn member(name: &str) -> Arc<Subscriber> {
        let limits = InboxLimits { messages: 5, bytes: 10_000 };
        Arc::new(Subscriber { inbox: Inbox::new(name, limits), origin: Origin::client(name), is_durable: false })
    }

    fn taken(member: &Subscriber) -> Vec<u8> {
        let mut out = VecDeque::new();
        member.inbox.take(100, &mut out);
        out.iter().map(|queued| queued.message.view().payload()[0]).collect()
    }

    const OPTIONS: SubscriptionOptions =
        SubscriptionOptions { qos: Qos::AtLeastOnce, no_local: false, retain_as_published: false, id: None };

    #[test]
    fn each_message_goes_to_one_member_with_room() {
        let group = SharedGroup::new(InboxLimits { messages: 100, bytes: 100_000 }, None);
        let (a, b) = (member("a"), member("b"));
        group.join(&a, OPTIONS, None);
        group.join(&b, OPTIONS, None);
        (0..60).for_each(|n| group.push(message(n)));
        let (from_a, from_b) = (taken(&a), taken(&b));
        assert_eq!((from_a.len(), from_b.len()), (MEMBER_WINDOW, MEMBER_WINDOW));
        // only b continues to read, so it gets all the rest
        let mut all = [from_a, from_b].concat();
        while all.len() < 60 {
            group.clone().settled(b.inbox.id(), None);
            all.extend(taken(&b));
        }
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<u8>>());
    }

    #[test]
    fn what_a_member_leaves_behind_goes_to_another_first() {
        let group = SharedGroup::new(InboxLimits { messages: 3, bytes: 100_000 }, None);
        let (a, b) = (member("a"), member("b"));
        group.join(&a, OPTIONS, None);
        (0..22).for_each(|n| group.push(message(n)));
        assert_eq!(taken(&a).len(), MEMBER_WINDOW);
        assert!(group.leave(&a));
        let left = [18, 19].map(|n| (Share { group: group.clone(), kept: None }, message(n)));
        group.clone().take_back(left.into());
        group.push(message(22));
        assert_eq!(group.dropped(), 2, "three may wait");
        group.join(&b, OPTIONS, None);
        assert_eq!(taken(&b), [20, 21, 22]);
    }
}
