//! The messages of a group that are not with a member, and who gets them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Member;
use crate::access::in_force::RightsInForce;
use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Reader};
use crate::message::{Message, Qos};

/// A persistent session of the group whose client is not connected.
#[derive(Debug)]
struct AbsentMember {
    consumer: ConsumerId,
    rights: Arc<RightsInForce>,
}

/// Who gets a message.
pub(super) enum Recipient {
    Member(usize),
    /// A persistent session, whether its client is connected or not.
    Session(ConsumerId),
    /// A member that has no room at present.
    Later,
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
    absent: Vec<AbsentMember>,
    next: usize,
    pub(super) durable: Option<GroupBacklog>,
    /// Messages from the journal that were left unacknowledged, by ordinal.
    pub(super) again: BTreeMap<u64, Delivery>,
    pub(super) waiting: VecDeque<Message>,
    pub(super) bytes: usize,
    pub(super) dropped: u64,
}

/// The next message of a group.
pub(super) enum GroupNext {
    Kept(Delivery),
    InMemory(Message),
}

impl GroupNext {
    pub(super) fn message(&self) -> &Message {
        match self {
            GroupNext::Kept(delivery) => &delivery.message,
            GroupNext::InMemory(message) => message,
        }
    }
}

impl GroupState {
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
            if member.has_room(journal) {
                let takes_over = member.takes_over().filter(|_| is_kept && view.qos() == Qos::ExactlyOnce);
                self.next = at + 1;
                return takes_over.map_or(Recipient::Member(at), Recipient::Session);
            }
        }
        if is_awaited {
            return Recipient::Later;
        }
        let absent = self.absent.iter().find(|absent| is_kept && absent.rights.may_receive(topic));
        absent.map_or(Recipient::Nobody, |absent| Recipient::Session(absent.consumer))
    }

    /// Moves a kept message to a session. Returns whether that was possible: if the disk accepts nothing at present, the next
    /// wake of the group or of the session's client tries again.
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

    pub(super) fn forget(&mut self, consumer: ConsumerId) {
        self.absent.retain(|absent| absent.consumer != consumer);
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
