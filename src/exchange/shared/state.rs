//! The messages of a group that are not with a member, and who gets them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::aside::{GroupNext, PassedOver, SetApart};
use super::member::Member;
use super::owner::{GroupOwner, SMALL};
use crate::access::in_force::RightsInForce;
use crate::exchange::inbox::InboxLimits;
use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Reader};
use crate::message::{Message, Qos};

/// A persistent session of the group whose client is not connected.
#[derive(Debug)]
pub(super) struct AbsentMember {
    consumer: ConsumerId,
    pub(super) rights: Arc<RightsInForce>,
}

/// Who gets a message.
pub(super) enum Recipient {
    Member(usize),
    /// A persistent session, whether its client is connected or not.
    Session(ConsumerId),
    /// A member that has no room at present.
    Later,
    /// A member that is away.
    Absent,
    Nobody,
}

/// The journal's part of a group.
#[derive(Debug)]
pub(super) struct GroupBacklog {
    pub(super) journal: Journal,
    pub(super) consumer: ConsumerId,
    pub(super) reader: Reader,
}

#[derive(Debug, Default)]
pub(super) struct GroupState {
    pub(super) members: Vec<Member>,
    /// Those that left last are last.
    absent: Vec<AbsentMember>,
    next: usize,
    pub(super) durable: Option<GroupBacklog>,
    /// Messages from the journal that were left unacknowledged, by ordinal.
    pub(super) again: BTreeMap<u64, Delivery>,
    pub(super) passed: PassedOver,
    apart: SetApart,
    pub(super) waiting: VecDeque<Message>,
    pub(super) bytes: usize,
    pub(super) dropped: u64,
    /// The number of messages that were last noted at the owner as waiting.
    pub(super) noted: usize,
}

impl GroupState {
    /// Notes at the owner how many messages wait.
    pub(super) fn note(&mut self, owner: &GroupOwner) {
        let waiting = self.waiting.len() + self.passed.len();
        owner.changed(std::mem::replace(&mut self.noted, waiting), waiting);
        if self.waiting.is_empty() && self.waiting.capacity() > SMALL {
            self.waiting = VecDeque::new();
        }
    }

    /// Whether a member has room for a message.
    pub(super) fn has_room(&self) -> bool {
        let journal = self.durable.as_ref().map(|durable| &durable.journal);
        self.members.iter().any(|member| member.has_room(journal))
    }

    /// Who gets a message: the next member in turn that may receive it and has room.
    pub(super) fn recipient(&mut self, next: &GroupNext) -> Recipient {
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
            if !member.is_awaited && member.has_room(journal) {
                let takes_over = member.takes_over().filter(|_| is_kept && view.qos() == Qos::ExactlyOnce);
                self.next = at + 1;
                return takes_over.map_or(Recipient::Member(at), Recipient::Session);
            }
        }
        if is_awaited {
            return Recipient::Later;
        }
        let is_for_absent = is_kept && self.absent_for(topic).is_some();
        if is_for_absent { Recipient::Absent } else { Recipient::Nobody }
    }

    /// Of the members that are away and may receive this topic, the one that left last.
    fn absent_for(&self, topic: &str) -> Option<ConsumerId> {
        let absent = self.absent.iter().rev().find(|absent| absent.rights.may_receive(topic));
        absent.map(|absent| absent.consumer)
    }

    /// Whether a message that was passed over may have a member with room now.
    pub(super) fn has_room_for_passed(&self) -> bool {
        let journal = self.durable.as_ref().map(|durable| &durable.journal);
        !self.passed.is_empty() && self.members.iter().any(|member| member.is_awaited && member.has_room(journal))
    }

    /// Lets a message wait for a member that has no room. Until the member has it, it gets no newer one.
    pub(super) fn pass_over(&mut self, next: GroupNext) {
        let topic = next.message().view().topic();
        self.members.iter_mut().for_each(|member| member.is_awaited |= member.permissions.may_receive(topic));
        self.passed.push(next);
    }

    /// Takes what was passed over, to find out anew who may have it.
    pub(super) fn take_passed(&mut self) -> VecDeque<GroupNext> {
        self.members.iter_mut().for_each(|member| member.is_awaited = false);
        self.passed.take()
    }

    /// Passes over again what nobody has asked about, because no member has room.
    pub(super) fn pass_over_again(&mut self, rest: VecDeque<GroupNext>) {
        if !rest.is_empty() {
            // whom each of them waits for is found out when one of the members has room
            self.members.iter_mut().for_each(|member| member.is_awaited = true);
        }
        rest.into_iter().for_each(|next| self.passed.push(next));
    }

    /// Removes a member. What was passed over for it comes again, because it may not wait for any other one.
    pub(super) fn remove(&mut self, at: usize) {
        if self.members.remove(at).is_awaited {
            let passed = self.take_passed();
            passed.into_iter().rev().for_each(|next| self.put_back(next));
        }
    }

    /// Lets a kept message wait for a member that is away.
    pub(super) fn set_apart(&mut self, next: GroupNext) {
        if let GroupNext::Kept(delivery) = next {
            self.apart.add(delivery);
        }
    }

    /// Distributes anew what waits for members that are away on these topics.
    pub(super) fn reconsider(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let found = self.apart.take(is_wanted);
        self.again.extend(found.into_iter().map(|delivery| (delivery.ordinal, delivery)));
    }

    /// Hands over what cannot wait any longer for members that are away. Returns whether that was possible.
    pub(super) fn hand_over_due(&mut self, limits: InboxLimits, is_short: impl Fn() -> bool) -> bool {
        while let Some(delivery) = self.apart.pop_due(limits, &is_short) {
            let to = self.absent_for(delivery.message.view().topic());
            let next = GroupNext::Kept(delivery);
            let Some(to) = to else {
                self.give_up(next);
                continue;
            };
            if !self.hand_over(next, to) {
                return false;
            }
        }
        true
    }

    /// Moves a kept message to a session. Returns whether that was possible: if the disk accepts nothing at present,
    /// the next wake of the group or of the session's client tries again.
    pub(super) fn hand_over(&mut self, next: GroupNext, to: ConsumerId) -> bool {
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
    pub(super) fn give_up(&mut self, next: GroupNext) {
        if let (GroupNext::Kept(delivery), Some(durable)) = (next, &mut self.durable) {
            durable.reader.settle_as(delivery.position, Outcome::NotWanted);
        }
    }

    pub(super) fn expect(&mut self, consumer: ConsumerId, rights: Arc<RightsInForce>) {
        self.forget(consumer);
        self.absent.push(AbsentMember { consumer, rights });
    }

    pub(super) fn forget(&mut self, consumer: ConsumerId) -> Option<AbsentMember> {
        let at = self.absent.iter().position(|absent| absent.consumer == consumer)?;
        Some(self.absent.remove(at))
    }

    /// The next message: first those that were distributed before, then those in memory, then those of the journal.
    pub(super) fn take(&mut self) -> Option<GroupNext> {
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
                self.apart.note(&delivery);
                return Some(GroupNext::Kept(delivery));
            }
            // it was handed over before the gateway was started
            reader.settle(delivery.position);
        }
    }

    pub(super) fn put_back(&mut self, next: GroupNext) {
        match next {
            GroupNext::Kept(delivery) => drop(self.again.insert(delivery.ordinal, delivery)),
            GroupNext::InMemory(message) => self.enqueue(message, true),
        }
    }

    pub(super) fn enqueue(&mut self, message: Message, first: bool) {
        self.bytes += message.size();
        if first {
            self.waiting.push_front(message);
        } else {
            self.waiting.push_back(message);
        }
    }
}
