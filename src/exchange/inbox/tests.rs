use tokio::time::Instant;

use super::*;
use crate::access::authorise::Permissions;
use crate::exchange::delivery::{RetainFlag, Terms};
use crate::exchange::hold::{BUDGET, Holds, PERIOD, STEP};
use crate::exchange::shared::SharedGroup;
use crate::exchange::spare::Amount;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::exchange::waiting::{DeliveryMemory, FREE, FREE_OF_A_USER};
use crate::message::{BatchBuilder, Draft, Message, Origin, Qos};
use crate::time::share::ProcessorShare;

fn holds() -> Arc<Holds> {
    Arc::new(Holds::new(ProcessorShare::fixed(1.0)))
}

fn queued(count: usize) -> VecDeque<Run> {
    let mut batch = BatchBuilder::default();
    for _ in 0..count {
        batch.push(&Draft::new("t", b"12345678"));
    }
    let batch = batch.finish(0);
    let ids = None.into();
    let terms = Terms { qos: Qos::AtMostOnce, retain: RetainFlag::Clear, no_local: false, ids, share: None };
    // two runs, so that limits fall within one
    let half = count / 2;
    let mut messages = batch.pack(0, batch.size(), count);
    let rest = messages.split_off_front(|messages, _| messages <= half);
    std::iter::once(messages)
        .chain(rest)
        .filter(|part| !part.is_empty())
        .map(|messages| Run { messages, terms: terms.clone() })
        .collect()
}

fn inbox() -> Inbox {
    Inbox::new("a", InboxLimits { messages: 10, bytes: 10_000 })
}

/// The memory for all is 80 MB in these tests, of which one user may have this much.
fn of_all(most: usize) -> DeliveryMemory {
    DeliveryMemory::measured(most, || 80_000_000)
}

#[test]
fn where_there_is_no_memory_for_more_what_is_not_free_is_lost() {
    let limits = InboxLimits { messages: 100_000, bytes: 10_000_000 };
    let run = |inbox: &Inbox| {
        let before = inbox.len();
        let offer = inbox.offer(&mut queued(5000), AT);
        (offer, inbox.len() - before)
    };
    // each message has 41 bytes
    let roomy = Inbox::new("a", limits).paid_by(of_all(200_000_000).account("ada"));
    assert_eq!((run(&roomy), roomy.len()), ((InboxOffer::Done, 5000), 5000));
    let account = of_all(60_000_000).account("ada");
    account.hold(FREE_OF_A_USER);
    let short = Inbox::new("a", limits).paid_by(account.clone());
    let (offer, taken) = run(&short);
    assert_eq!((offer, taken), (InboxOffer::Dropped(5000 - taken as u64), FREE / 41));
    // bytes in the client's hands count
    let mut out = VecDeque::new();
    short.take(10_000, &mut out);
    assert_eq!(run(&short).1, FREE / 41);
    short.take(10_000, &mut out);
    short.set_in_hand(10 * FREE);
    assert_eq!(run(&short).1, FREE / 2 / 41);
    // and are given back when the client is gone, even if others still have the inbox
    short.close();
    assert_eq!(account.held(), FREE_OF_A_USER);
    drop(short);
    assert_eq!(account.held(), FREE_OF_A_USER);
}

#[test]
fn a_group_that_had_no_room_goes_on_when_half_of_the_queue_is_worked_off() {
    let limits = InboxLimits { messages: 1000, bytes: 410 };
    let inbox = Inbox::new("a", limits);
    let member = Arc::new(Subscriber { inbox, origin: Origin::client("a"), is_durable: false });
    let inbox = &member.inbox;
    inbox.offer(&mut queued(10), AT);
    let group = SharedGroup::new(limits, None);
    let (qos, no_local, retain_as_published, id) = (Qos::AtMostOnce, false, false, None);
    let options = SubscriptionOptions { qos, no_local, retain_as_published, id };
    group.join((&member, &Permissions::to_receive(&["#"])), options, None);
    let before = inbox.len();
    group.push(Message::new(&Draft::new("t", b"12345678")));
    inbox.take(1, &mut VecDeque::new());
    inbox.ask_missed();
    assert_eq!(inbox.len(), before - 1, "it waits");
    inbox.take(4, &mut VecDeque::new());
    inbox.ask_missed();
    assert_eq!(inbox.len(), before - 5 + 1);
}

fn reader() -> Arc<Subscriber> {
    Arc::new(Subscriber { inbox: inbox(), origin: Origin::client("a"), is_durable: false })
}

const AT: Duration = Duration::ZERO;
/// What the publishers have published at once when they fill a queue.
const FLOOD: Amount = Amount { messages: 1000, bytes: 100_000 };

#[test]
fn what_is_on_its_way_is_let_in_and_kept_while_publishers_are_held() {
    let (reader, holds, now) = (reader(), holds(), Instant::now());
    let (inbox, publisher) = (&reader.inbox, Origin::client("p"));
    assert_eq!(inbox.offer(&mut queued(10), AT), InboxOffer::Done);
    assert_eq!(inbox.offer(&mut queued(5), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (publisher, FLOOD), now), 0);
    assert!(holds.holds(publisher) && !holds.holds(Origin::client("q")) && inbox.is_full());
    assert_eq!(inbox.offer(&mut queued(5), AT), InboxOffer::Full);
    let mut out = VecDeque::new();
    assert_eq!(inbox.take(14, &mut out), 6);
    assert!(holds.holds(publisher));
    assert_eq!(inbox.take(1, &mut out), 5);
    assert!(!holds.holds(publisher) && !inbox.is_full(), "half of it is worked off");
    inbox.take(5, &mut out);
    assert_eq!((out.len(), inbox.dropped()), (20, 0));
}

#[test]
fn a_subscriber_whose_client_does_not_read_is_waited_for_once_and_then_loses() {
    let (reader, holds, begin) = (reader(), holds(), Instant::now());
    let (inbox, publisher) = (&reader.inbox, Origin::client("p"));
    inbox.turn.set_blocked(true);
    assert_eq!(inbox.offer(&mut queued(15), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (publisher, FLOOD), begin), 0);
    let mut lost = 0;
    let mut held = Duration::ZERO;
    while holds.holds(publisher) {
        held += STEP;
        inbox.turn.answer();
        lost += holds.look(begin + held);
    }
    assert_eq!((held, lost, inbox.len(), inbox.dropped()), (BUDGET, 5, 10, 5));
    let mut out = VecDeque::new();
    inbox.take(2, &mut out);
    assert_eq!(inbox.offer(&mut queued(9), AT), InboxOffer::Dropped(7), "slow until it has caught up");
    inbox.take(10, &mut out);
    // the reader has caught up, but its user has no more time in this second
    assert_eq!(inbox.offer(&mut queued(11), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (publisher, FLOOD), begin + Duration::from_millis(400)), 1);
    assert!(!holds.holds(publisher));
    inbox.take(10, &mut out);
    assert_eq!(inbox.offer(&mut queued(11), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (publisher, FLOOD), begin + held + PERIOD + STEP), 0);
    assert!(holds.holds(publisher), "in the next second there is");
    inbox.close();
    assert!(!holds.holds(publisher), "nobody is held for who has gone");
}

#[test]
fn nobody_is_held_for_a_reader_that_is_leaving() {
    let (reader, holds, now) = (reader(), holds(), Instant::now());
    let (inbox, publisher) = (&reader.inbox, Origin::client("p"));
    inbox.take_run(1);
    assert_eq!(inbox.offer(&mut queued(15), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (publisher, FLOOD), now), 0);
    assert!(holds.holds(publisher) && holds.is_any());
    inbox.give_up();
    assert!(!holds.holds(publisher) && !holds.is_any() && !inbox.is_full());
    assert_eq!(inbox.offer(&mut queued(15), AT), InboxOffer::Done, "what comes is for nobody");
    assert_eq!((holds.begin(&reader, (publisher, FLOOD), now), inbox.len()), (0, 15));
    assert!(!holds.is_any());
    assert_eq!(inbox.close().len(), 3, "what has waited is handed back");
}

#[test]
fn what_a_shared_subscription_has_given_is_not_lost_with_what_came_too_fast() {
    let (reader, holds, begin) = (reader(), holds(), Instant::now());
    let inbox = &reader.inbox;
    let group = SharedGroup::new(InboxLimits { messages: 100, bytes: 100_000 }, None);
    let options = SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };
    group.join((&reader, &Permissions::to_receive(&["#"])), options, None);
    inbox.turn.set_blocked(true);
    assert_eq!(inbox.offer(&mut queued(10), AT), InboxOffer::Done);
    for mut run in queued(4) {
        while let Some(message) = run.messages.next_message() {
            group.push(message);
        }
    }
    assert_eq!(inbox.len(), 14);
    assert_eq!(inbox.offer(&mut queued(5), AT), InboxOffer::Full);
    assert_eq!(holds.begin(&reader, (Origin::client("p"), FLOOD), begin), 0);
    let (mut held, mut lost) = (Duration::ZERO, 0);
    while inbox.is_full() {
        held += STEP;
        inbox.turn.answer();
        lost += holds.look(begin + held);
    }
    assert_eq!(lost, 9, "all that is beyond the bound");
    let mut out = VecDeque::new();
    inbox.take(100, &mut out);
    let of_group: Vec<bool> = out.iter().map(|queued| queued.grant.share.is_some()).collect();
    assert_eq!(of_group, [[false; 6].as_slice(), &[true; 4]].concat());
}
