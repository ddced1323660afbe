//! Shared subscriptions (`$share/NAME/FILTER`) [MQTT-4.8.2]: each message goes to one member of the group.
//!
//! A group hands a message to the next member that has room in its window, so a member that is slow or stuck gets
//! less. What nobody has room for waits, bounded, in the group; what a member leaves behind unacknowledged goes to another.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::inbox::{InboxLimits, RetainFlag, Run, Terms};
use super::subscribers::{Subscriber, SubscriptionOptions};
use crate::message::Message;

/// Messages that one member may have and not have settled.
const MEMBER_WINDOW: usize = 20;

#[derive(Debug)]
struct Member {
    subscriber: Arc<Subscriber>,
    options: SubscriptionOptions,
    unsettled: usize,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    next: usize,
    waiting: VecDeque<Message>,
    bytes: usize,
    dropped: u64,
}

/// One group: a name and a filter.
#[derive(Debug)]
pub struct SharedGroup {
    limits: InboxLimits,
    state: Mutex<State>,
}

impl SharedGroup {
    /// A group without members.
    pub fn new(limits: InboxLimits) -> Arc<SharedGroup> {
        Arc::new(SharedGroup { limits, state: Mutex::default() })
    }

    /// A message for the group; the oldest that waits gives way when too many do.
    pub fn push(self: &Arc<Self>, message: Message) {
        let mut state = self.state.lock();
        state.enqueue(message, false);
        self.pump(&mut state);
        while state.waiting.len() > self.limits.messages || state.bytes > self.limits.bytes {
            let Some(oldest) = state.waiting.pop_front() else { break };
            state.bytes -= oldest.size();
            state.dropped += 1;
        }
    }

    /// A client joins, or changes its options.
    pub fn join(self: &Arc<Self>, subscriber: &Arc<Subscriber>, options: SubscriptionOptions) {
        let mut state = self.state.lock();
        match state.members.iter_mut().find(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            Some(member) => member.options = options,
            None => state.members.push(Member { subscriber: subscriber.clone(), options, unsettled: 0 }),
        }
        self.pump(&mut state);
    }

    /// A client leaves. Says whether the group is empty now.
    pub fn leave(self: &Arc<Self>, subscriber: &Arc<Subscriber>) -> bool {
        let mut state = self.state.lock();
        state.members.retain(|member| !Arc::ptr_eq(&member.subscriber, subscriber));
        self.pump(&mut state);
        state.members.is_empty()
    }

    /// Messages that a client left unacknowledged, oldest first: others get them before anything newer.
    pub fn take_back(self: &Arc<Self>, messages: Vec<Message>) {
        let mut state = self.state.lock();
        for message in messages.into_iter().rev() {
            state.enqueue(message, true);
        }
        self.pump(&mut state);
    }

    /// A member has dealt with one message.
    pub fn settled(self: &Arc<Self>, subscriber: &Arc<Subscriber>) {
        let mut state = self.state.lock();
        if let Some(member) = state.members.iter_mut().find(|member| Arc::ptr_eq(&member.subscriber, subscriber)) {
            member.unsettled = member.unsettled.saturating_sub(1);
        }
        self.pump(&mut state);
    }

    /// Messages dropped so far because too many waited.
    pub fn dropped(&self) -> u64 {
        self.state.lock().dropped
    }

    fn pump(self: &Arc<Self>, state: &mut State) {
        let count = state.members.len();
        let mut tried = 0;
        while tried < count {
            let Some(message) = state.waiting.front() else { return };
            let at = state.next % count;
            state.next = at + 1;
            tried += 1;
            let member = &mut state.members[at];
            if member.unsettled >= MEMBER_WINDOW {
                continue;
            }
            let options = member.options;
            let terms = Terms {
                qos: options.qos,
                retain: if options.retain_as_published { RetainFlag::AsPublished } else { RetainFlag::Clear },
                no_local: false,
                ids: options.id.into_iter().collect::<SmallVec<_>>(),
                share: Some(self.clone()),
            };
            if member.subscriber.inbox.put(Run::one(message.clone(), terms)).is_ok() {
                member.unsettled += 1;
                tried = 0;
                if let Some(handed) = state.waiting.pop_front() {
                    state.bytes -= handed.size();
                }
            }
        }
    }
}

impl State {
    fn enqueue(&mut self, message: Message, first: bool) {
        let message = message.to_owned_memory();
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
        Message::new(&Draft {
            topic: "t",
            payload: &[payload],
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: &[],
            expiry: None,
            boot_ms: 0,
            origin: Origin::gateway(),
        })
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
        let group = SharedGroup::new(InboxLimits { messages: 100, bytes: 100_000 });
        let (a, b) = (member("a"), member("b"));
        group.join(&a, OPTIONS);
        group.join(&b, OPTIONS);
        (0..60).for_each(|n| group.push(message(n)));
        let (from_a, from_b) = (taken(&a), taken(&b));
        assert_eq!((from_a.len(), from_b.len()), (MEMBER_WINDOW, MEMBER_WINDOW));
        // only b goes on reading: it gets all the rest
        let mut all = [from_a, from_b].concat();
        while all.len() < 60 {
            group.settled(&b);
            all.extend(taken(&b));
        }
        all.sort_unstable();
        assert_eq!(all, (0..60).collect::<Vec<u8>>());
    }

    #[test]
    fn what_a_member_leaves_behind_goes_to_another_first() {
        let group = SharedGroup::new(InboxLimits { messages: 3, bytes: 100_000 });
        let (a, b) = (member("a"), member("b"));
        group.join(&a, OPTIONS);
        (0..22).for_each(|n| group.push(message(n)));
        assert_eq!(taken(&a).len(), MEMBER_WINDOW);
        assert!(group.leave(&a));
        group.take_back(vec![message(18), message(19)]);
        group.push(message(22));
        assert_eq!(group.dropped(), 2, "three may wait");
        group.join(&b, OPTIONS);
        assert_eq!(taken(&b), [20, 21, 22]);
    }
}
