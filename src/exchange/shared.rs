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
//! A member gets only messages that it may receive, so joining a group takes nothing away from others. If no connected
//! member may receive a message, it is handed over to the session of a member that may and is away, and if there is
//! none, it is given up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::delivery::{InboxId, KeptPlace, RetainFlag, Run, Share, SharesOut, Terms};
use super::inbox::InboxLimits;
use super::subscribers::{Subscriber, SubscriptionOptions};
use super::waiting::DeliveryMemory;
use crate::access::authorise::Permissions;
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

/// A persistent session of the group whose client is not connected.
#[derive(Debug)]
struct AbsentMember {
    consumer: ConsumerId,
    permissions: Arc<Permissions>,
}

/// Who gets a message.
enum Recipient {
    Member(usize),
    /// A persistent session, whether its client is connected or not.
    Session(ConsumerId),
    /// A member that has no room at present.
    Later,
    Nobody,
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
    absent: Vec<AbsentMember>,
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

impl GroupNext {
    fn message(&self) -> &Message {
        match self {
            GroupNext::Kept(delivery) => &delivery.message,
            GroupNext::InMemory(message) => message,
        }
    }
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
        state.absent.retain(|absent| Some(absent.consumer) != consumer);
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

    /// Adds a persistent session whose client is not connected.
    pub(crate) fn expect(&self, consumer: ConsumerId, permissions: Arc<Permissions>) {
        let mut state = self.state.lock();
        state.forget(consumer);
        state.absent.push(AbsentMember { consumer, permissions });
    }

    /// Removes a session that does not belong to the group any more.
    pub(crate) fn forget(&self, consumer: ConsumerId) {
        self.state.lock().forget(consumer);
    }

    /// Removes a client, and returns whether the group has no members now.
    pub(crate) fn leave(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> bool {
        let mut state = self.state.lock();
        if let Some(at) = state.members.iter().position(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            let Member { permissions, consumer, .. } = state.members.remove(at);
            if let Some(consumer) = consumer {
                state.forget(consumer);
                state.absent.push(AbsentMember { consumer, permissions });
            }
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
        state.next = at + 1;
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

impl GroupState {
    /// Whether a member has room for a message.
    fn has_room(&self) -> bool {
        let journal = self.durable.as_ref().map(|durable| &durable.journal);
        self.members.iter().any(|member| member.has_room(journal))
    }

    /// Who gets a message: the next member in turn that may receive it and has room.
    fn recipient(&self, next: &GroupNext) -> Recipient {
        let view = next.message().view();
        let topic = view.topic();
        let is_kept = matches!(next, GroupNext::Kept(_));
        let count = self.members.len();
        let journal = self.durable.as_ref().map(|durable| &durable.journal);
        let mut is_awaited = false;
        for at in (0..count).map(|step| (self.next + step) % count) {
            let member = &self.members[at];
            if !member.permissions.may_receive(topic) {
                continue;
            }
            is_awaited = true;
            if member.has_room(journal) {
                let takes_over = member.takes_over().filter(|_| is_kept && view.qos() == Qos::ExactlyOnce);
                return takes_over.map_or(Recipient::Member(at), Recipient::Session);
            }
        }
        if is_awaited {
            return Recipient::Later;
        }
        let absent = self.absent.iter().find(|absent| is_kept && absent.permissions.may_receive(topic));
        absent.map_or(Recipient::Nobody, |absent| Recipient::Session(absent.consumer))
    }

    /// Moves a kept message to a session. Returns whether that was possible: if the disk accepts nothing at present,
    /// the next wake of the group or of the session's client tries again.
    fn hand_over(&mut self, next: GroupNext, to: ConsumerId) -> bool {
        if let (GroupNext::Kept(delivery), Some(durable)) = (&next, &self.durable)
            && durable.journal.hand_over(durable.consumer, delivery, to).is_err()
        {
            if let Some(member) = self.members.iter().find(|member| member.consumer == Some(to)) {
                member.subscriber.inbox.behind.add(&member.group);
            }
            self.put_back(next);
            return false;
        }
        true
    }

    /// Drops a message that no session of the group may receive.
    fn give_up(&mut self, next: GroupNext) {
        if let (GroupNext::Kept(delivery), Some(durable)) = (next, &mut self.durable) {
            durable.reader.settle_as(delivery.position, Outcome::NotWanted);
        }
    }

    fn forget(&mut self, consumer: ConsumerId) {
        self.absent.retain(|absent| absent.consumer != consumer);
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
        group.join((&a, &Permissions::to_receive(&["#"])), OPTIONS, None);
        group.join((&b, &Permissions::to_receive(&["#"])), OPTIONS, None);
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
        group.join((&a, &Permissions::to_receive(&["#"])), OPTIONS, None);
        (0..22).for_each(|n| group.push(message(n)));
        assert_eq!(taken(&a).len(), MEMBER_WINDOW);
        assert!(group.leave(&a));
        let left = [18, 19].map(|n| (Share { group: group.clone(), kept: None }, message(n)));
        group.clone().take_back(left.into());
        group.push(message(22));
        assert_eq!(group.dropped(), 2, "three may wait");
        group.join((&b, &Permissions::to_receive(&["#"])), OPTIONS, None);
        assert_eq!(taken(&b), [20, 21, 22]);
    }

    #[test]
    fn a_member_gets_nothing_and_takes_nothing_that_it_may_not_receive() {
        let group = SharedGroup::new(InboxLimits { messages: 100, bytes: 100_000 }, None);
        let (user, guest) = (member("user"), member("guest"));
        group.join((&user, &Permissions::to_receive(&["t", "public"])), OPTIONS, None);
        group.join((&guest, &Permissions::to_receive(&["public"])), OPTIONS, None);
        let public = |payload| Message::new(&Draft { qos: Qos::AtLeastOnce, ..Draft::new("public", &[payload]) });
        (0..10).for_each(|n| group.push(message(n)));
        assert_eq!((taken(&user).len(), taken(&guest).len()), (10, 0));
        // the user has no room for more than ten, and what only the user may have waits for it
        (10..30).for_each(|n| group.push(message(n)));
        assert_eq!((taken(&user).len(), taken(&guest).len()), (10, 0));
        (0..10).for_each(|_| group.clone().settled(user.inbox.id(), None));
        assert_eq!(taken(&user), (20..30).collect::<Vec<u8>>());
        (0..20).for_each(|_| group.clone().settled(user.inbox.id(), None));
        (30..34).for_each(|n| group.push(public(n)));
        assert_eq!((taken(&user).len(), taken(&guest).len()), (2, 2));
        // without the user nobody may have it, and it does not stand in the way of others
        group.leave(&user);
        group.push(message(34));
        group.push(public(35));
        assert_eq!(taken(&guest), [35]);
    }
}
