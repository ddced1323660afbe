use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::*;
use crate::access::authorise::Permissions;
use crate::exchange::inbox::{Inbox, InboxLimits};
use crate::exchange::ingress::Ingress;
use crate::exchange::live;
use crate::exchange::retained::Retained;
use crate::exchange::shared::SharedGroup;
use crate::exchange::shared::owner::{ALWAYS, MOST_OF_AN_OWNER};
use crate::exchange::shared::together::FilterGroups;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::journal::{Journal, Limits, WhenFull};
use crate::message::{BatchBuilder, Draft, Origin, Qos};
use crate::time::TestClock;

const LIMITS: InboxLimits = InboxLimits { messages: 1000, bytes: 64 << 20 };
const OPTIONS: SubscriptionOptions =
    SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };

fn an_ingress() -> Ingress {
    let starting = std::thread::spawn(|| live::start(Arc::default(), Arc::default()));
    let (link, _dispatcher) = starting.join().unwrap().unwrap();
    let (journal, store) = (Journal::default(), Retained::new(1000, 1 << 20));
    Ingress::new(link, Arc::default(), journal, store, Arc::default(), TestClock::new(0, 0))
}

fn a_member() -> Arc<Subscriber> {
    let inbox = Inbox::new("member", LIMITS);
    Arc::new(Subscriber { inbox, origin: Origin::client("member"), is_durable: false })
}

/// Groups with one member, which get messages on this topic.
fn groups(ingress: &Ingress, topic: &str, count: usize, member: &Arc<Subscriber>) -> Vec<Arc<SharedGroup>> {
    let owner = ingress.group_owner(Owner::GUESTS);
    let group = |_| {
        let group = SharedGroup::of(owner.clone(), LIMITS, None);
        ingress.set_group(topic, &group, None);
        group.join((member, &Permissions::to_receive(&["#"])), OPTIONS, None);
        group
    };
    (0..count).map(group).collect()
}

fn draft<'a>(topic: &'a str, payload: &'a [u8]) -> Draft<'a> {
    Draft { origin: Origin::client("publisher"), ..Draft::new(topic, payload) }
}

async fn publish(ingress: &Ingress, topic: &str, payloads: impl IntoIterator<Item = u8>) {
    let mut batch = BatchBuilder::default();
    payloads.into_iter().for_each(|payload| batch.push(&draft(topic, &[payload])));
    ingress.publish_batch(&mut batch).await.unwrap();
}

fn taken(member: &Subscriber) -> Vec<u8> {
    let mut out = VecDeque::new();
    member.inbox.take(usize::MAX / 2, &mut out);
    out.iter().map(|queued| queued.message.view().payload()[0]).collect()
}

/// Spreads until so many messages have come to the member. Returns how long the owner has waited for its turns.
async fn spread(ingress: &Ingress, member: &Subscriber, count: usize) -> Duration {
    let (cancel, begin) = (CancellationToken::new(), Instant::now());
    let spreading = tokio::spawn(ingress.clone().spread(cancel.clone()));
    while member.inbox.len() < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cancel.cancel();
    spreading.await.unwrap();
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_at_once_to_a_few_groups_and_later_to_many_and_comes_in_order() {
    let (ingress, member) = (an_ingress(), a_member());
    let few = groups(&ingress, "few", 64, &member);
    let many = groups(&ingress, "many", 300, &member);
    publish(&ingress, "few", [1]).await;
    assert_eq!(taken(&member), [1; 64], "with the publication");
    publish(&ingress, "many", [3, 4]).await;
    assert!(taken(&member).is_empty(), "not within the turn of the batch");
    // a group that begins to wait within a batch, and one that came later
    publish(&ingress, "few", 20..38).await;
    assert_eq!(taken(&member), (20..36).flat_map(|payload| [payload; 64]).collect::<Vec<u8>>());
    let late = groups(&ingress, "many", 1, &member);
    publish(&ingress, "many", [60]).await;
    spread(&ingress, &member, 600 + 128 + 301).await;
    let came = taken(&member);
    let of = |from: u8, to: u8| came.iter().filter(move |at| (from..to).contains(at));
    assert_eq!((of(3, 5).count(), of(36, 38).count(), of(60, 61).count()), (600, 128, 301));
    assert!(of(3, 5).is_sorted() && of(36, 38).is_sorted(), "{came:?}");
    // nothing is left, so they get the next one at once
    publish(&ingress, "few", [16]).await;
    assert_eq!(taken(&member), [16; 64]);
    for (topic, all) in [("few", few), ("many", many), ("many", late)] {
        all.iter().for_each(|group| ingress.remove_group(topic, group));
    }
    publish(&ingress, "few", [17]).await;
    publish(&ingress, "many", [17]).await;
    assert_eq!((taken(&member), ingress.stats().publish_dropped.get()), (vec![], 0));
}

#[tokio::test(start_paused = true)]
async fn the_owner_of_thousands_of_groups_pays_and_the_publisher_does_not() {
    let (ingress, member) = (an_ingress(), a_member());
    let _few = groups(&ingress, "few", 64, &member);
    publish(&ingress, "few", (0..200).map(|_| 1)).await;
    let count = 64 * 20;
    assert_eq!(spread(&ingress, &member, count).await.as_millis() / 100, 0, "the publications have paid");
    assert_eq!(ingress.meter().turn(Origin::groups(Owner::GUESTS)), None);
    taken(&member);
    let _many = groups(&ingress, "many", 5000, &member);
    publish(&ingress, "many", 0..20).await;
    let waited = spread(&ingress, &member, 5000 * 20).await;
    assert!(waited >= Duration::from_millis(100), "{waited:?}");
    assert_eq!(ingress.meter().turn(Origin::client("publisher")), None);
}

#[tokio::test]
async fn what_waits_while_the_journal_begins_or_ceases_to_keep_messages_comes_once() {
    let (ingress, member) = (an_ingress(), a_member());
    let limits = Limits { messages: 1000, bytes: 1 << 20, when_full: WhenFull::DropOldest };
    let consumer = ingress.journal().register("share/g/a/t", limits);
    let _many = groups(&ingress, "t", 200, &member);
    let reader = a_member();
    let changing = &groups(&ingress, "t", 1, &reader)[0];
    for (payload, kept) in [(0, None), (1, Some(consumer)), (2, Some(consumer)), (3, None), (4, None)] {
        ingress.set_group("t", changing, kept);
        for qos in [Qos::AtLeastOnce, Qos::AtMostOnce] {
            let payload = [10 * payload + qos as u8];
            ingress.publish(&Draft { qos, ..draft("t", &payload) }).await.unwrap();
        }
    }
    spread(&ingress, &member, 200 * 10).await;
    assert_eq!(ingress.journal().backlog(consumer).messages, 2);
    let mut came = taken(&reader);
    came.sort_unstable();
    assert_eq!(came, [0, 1, 10, 20, 30, 31, 40, 41]);
}

#[test]
fn what_waits_for_groups_is_bounded_and_what_is_dropped_is_counted() {
    let group = SharedGroup::new(LIMITS, None);
    let groups = FilterGroups::like(&group);
    let others: Vec<_> = (0..3).map(|_| SharedGroup::new(LIMITS, None)).collect();
    others.iter().for_each(|other| groups.set(other, None));
    let message = Message::new(&draft("t", b"x"));
    let mut dropped = 0;
    for _ in 0..10_000 {
        if let Accepting::Waits(more) = groups.accept(&message, &mut 0, &mut 64) {
            dropped += more;
        }
    }
    assert_eq!(dropped, 3 * (10_000 - 8192));
    let mut by_groups = 0;
    loop {
        let spread = groups.spread();
        by_groups += spread.dropped;
        if !spread.has_more {
            break;
        }
    }
    assert_eq!(by_groups, 3 * (8192 - 1000), "nobody takes anything");
}

#[test]
fn all_groups_of_an_owner_have_so_many_waiting_messages_and_a_few_each() {
    let owner = Arc::new(GroupOwner::new(Owner::GUESTS));
    let message = Message::new(&draft("t", b"x"));
    let groups: Vec<_> = (0..200).map(|_| SharedGroup::of(owner.clone(), LIMITS, None)).collect();
    let dropped: Vec<u64> = groups.iter().map(|group| (0..1000).map(|_| group.add(message.clone())).sum()).collect();
    let waiting = owner.waiting.load(Ordering::Relaxed);
    assert_eq!(dropped.iter().sum::<u64>() as usize + waiting, 200_000);
    assert!((MOST_OF_AN_OWNER..MOST_OF_AN_OWNER + 200 * ALWAYS).contains(&waiting), "{waiting}");
    assert_eq!((dropped[0], dropped[199]), (0, 1000 - ALWAYS as u64));
    drop(groups);
    assert_eq!(owner.waiting.load(Ordering::Relaxed), 0);
}
