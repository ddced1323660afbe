//! A group alone, with members whose inboxes nobody reads but the test.

use std::collections::VecDeque;
use std::sync::Arc;

use super::member::MEMBER_WINDOW;
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

#[test]
fn a_member_without_room_does_not_hold_up_those_that_may_receive_less() {
    let group = SharedGroup::new(InboxLimits { messages: 1000, bytes: 100_000 }, None);
    let (user, guest) = (member("user"), member("guest"));
    group.join((&user, &Permissions::to_receive(&["t", "public"])), OPTIONS, None);
    group.join((&guest, &Permissions::to_receive(&["public"])), OPTIONS, None);
    let public = |payload| Message::new(&Draft { qos: Qos::AtLeastOnce, ..Draft::new("public", &[payload]) });
    let settle = |count: usize| (0..count).for_each(|_| group.clone().settled(user.inbox.id(), None));
    (0..60).for_each(|n| group.push(message(n)));
    (60..64).for_each(|n| group.push(public(n)));
    assert_eq!((taken(&user), taken(&guest)), ((0..20).collect(), vec![60, 61, 62, 63]));
    // what was passed over comes before what is newer, and in its order
    group.push(message(64));
    for expected in [20..40_u8, 40..60, 64..65] {
        settle(expected.len());
        assert_eq!(taken(&user), expected.collect::<Vec<u8>>());
    }
    // no more than a few are passed over, and those behind them wait
    settle(5);
    (0..60).for_each(|n| group.push(message(n)));
    (60..110).for_each(|n| group.push(message(n)));
    group.push(public(110));
    assert_eq!((taken(&user).len(), taken(&guest)), (5, vec![]));
    // nobody is left who may receive them
    group.leave(&user);
    assert_eq!(taken(&guest), [110]);
}
