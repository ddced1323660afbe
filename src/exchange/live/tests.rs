use std::collections::VecDeque;

use tokio::time::timeout;

use super::*;
use crate::health::PulseTaker;

fn dispatcher() -> Dispatcher {
    let starting = std::thread::spawn(|| start(Arc::default(), Arc::default()));
    starting.join().unwrap().unwrap().1
}

#[tokio::test(start_paused = true)]
async fn a_router_that_does_not_answer_is_an_error() {
    let begin = Instant::now();
    // probes that never reach the router make it look as if it hangs
    let (_taker, pulse) = PulseTaker::new();
    let result = dispatcher().run(CancellationToken::new(), || Ok(()), pulse).await;
    assert_eq!(result, Err(RouterError::Hangs));
    assert!(begin.elapsed() <= PROBE + beat::BEAT + HANGS + 2 * health::STEP, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_stopped_or_starves_does_not_blame_the_router() {
    let (_taker, pulse) = PulseTaker::new();
    let mut running = std::pin::pin!(dispatcher().run(CancellationToken::new(), || Ok(()), pulse));
    for seconds in [12, 12, 300].into_iter().chain([2; 100]) {
        assert!(futures_util::poll!(running.as_mut()).is_pending(), "after {seconds} s");
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }
    // from now on the dispatcher runs, and nothing arrives
    assert_eq!(running.await, Err(RouterError::Hangs));
}

#[tokio::test]
async fn a_router_that_answers_shows_so() {
    let starting = std::thread::spawn(|| start(Arc::default(), Arc::default()));
    let (link, dispatcher) = starting.join().unwrap().unwrap();
    let link = parking_lot::Mutex::new(link);
    let (mut taker, pulse) = PulseTaker::new();
    let cancel = CancellationToken::new();
    let probe = move || link.lock().route(empty_batch(0));
    let running = tokio::spawn(dispatcher.run(cancel.clone(), probe, pulse));
    for _ in 0..20 {
        timeout(Duration::from_secs(20), taker.answered()).await.expect("an answer");
        assert_eq!(taker.silence(Instant::now()), Duration::ZERO);
    }
    cancel.cancel();
    assert_eq!(running.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn who_publishes_to_a_full_queue_is_held_before_the_first_batch_is_on_its_way() {
    use crate::exchange::inbox::{Inbox, InboxLimits};
    use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
    use crate::message::{Draft, Origin, Qos};

    let subscribers = Arc::new(Subscribers::default());
    let inbox = Inbox::new("a", InboxLimits { messages: 10, bytes: 10_000 });
    let subscriber = Arc::new(Subscriber { inbox, origin: Origin::gateway(), is_durable: false });
    let options = SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };
    subscribers.insert("full/#", &subscriber, options, 0, true);
    let starting = tokio::task::spawn_blocking(|| start(subscribers, Arc::default()));
    let (mut link, dispatcher) = starting.await.unwrap().unwrap();
    let cancel = CancellationToken::new();
    let (_taker, pulse) = PulseTaker::new();
    let running = tokio::spawn(dispatcher.run(cancel.clone(), || Ok(()), pulse));
    let batch = |publisher: &str, topic: &str, messages: u32| {
        let mut builder = BatchBuilder::default();
        for _ in 0..messages {
            let origin = Origin::client(publisher);
            let (payload, qos, retain) = (b"1".as_slice(), Qos::AtMostOnce, false);
            let draft = Draft { qos, retain, origin, ..Draft::new(topic, payload) };
            builder.push(&draft);
        }
        builder
    };
    link.publish(batch("first", "full/1", 100).finish(0), 100, false).unwrap();
    while !subscriber.inbox.is_full() {
        tokio::task::yield_now().await;
    }
    for messages in [1, STRAIGHT + 1, 1000] {
        assert!(link.is_held(&batch("first", "full/1", messages)), "{messages} of the one who has filled it");
        assert!(!link.is_held(&batch("another", "elsewhere", messages)), "{messages} for others");
    }
    assert!(link.is_held(&batch("another", "full/2", 1000)), "another flood");
    let mut few = 0;
    while !link.is_held(&batch("another", "full/2", 1)) {
        few += 1;
    }
    assert!((100..1000).contains(&few), "{few} of another");
    assert!(!link.is_held(&batch("third", "full/3", 1)) && link.is_held(&batch("first", "full/3", 1)));
    cancel.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn while_a_batch_with_topics_of_many_levels_is_on_its_way_the_next_one_waits() {
    let starting = tokio::task::spawn_blocking(|| start(Arc::default(), Arc::default()));
    let (mut link, dispatcher) = starting.await.unwrap().unwrap();
    let batch = |messages: u32| {
        let mut builder = BatchBuilder::default();
        (0..messages).for_each(|_| builder.push(&crate::message::Draft::new("1/2/3/4/5/6/7/8", b"x")));
        builder
    };
    link.publish(batch(STRAIGHT).finish(0), STRAIGHT, true).unwrap();
    assert!(!link.is_deep(), "it was dispatched at once");
    let seq = u64::from(STRAIGHT);
    link.publish(batch(20).finish(seq), 20, false).unwrap();
    assert!(!link.is_deep());
    link.publish(batch(1).finish(seq + 20), 1, true).unwrap();
    let room = link.room();
    let freed = room.notified();
    assert!(link.is_deep() && room.is_held());
    let cancel = CancellationToken::new();
    let (_taker, pulse) = PulseTaker::new();
    let running = tokio::spawn(dispatcher.run(cancel.clone(), || Ok(()), pulse));
    timeout(Duration::from_secs(20), freed).await.expect("whoever waits is woken");
    while link.is_deep() {
        tokio::task::yield_now().await;
    }
    cancel.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_flood_leaves_room_for_those_who_publish_now_and_then() {
    let starting = tokio::task::spawn_blocking(|| start(Arc::default(), Arc::default()));
    let (mut link, _dispatcher) = starting.await.unwrap().unwrap();
    let batch = |messages: u32| {
        let mut builder = BatchBuilder::default();
        (0..messages).for_each(|_| builder.push(&crate::message::Draft::new("flood", &[b'x'; 1000])));
        builder
    };
    let mut seq = 0;
    let mut publish = |link: &mut LiveLink, messages: u32| {
        link.publish(batch(messages).finish(seq), messages, false).unwrap();
        seq += u64::from(messages);
    };
    while link.has_room(&batch(20)) {
        publish(&mut link, 20);
    }
    let mut small = 0;
    while link.has_room(&batch(1)) {
        publish(&mut link, 1);
        small += 1;
    }
    assert!((10..=33).contains(&small), "{small}");
    assert!(!link.has_room(&batch(20)) && link.room().is_held());
}

#[tokio::test]
async fn batches_arrive_in_order_whichever_way_they_take() {
    use crate::exchange::inbox::{Inbox, InboxLimits};
    use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
    use crate::message::{Draft, Origin, Qos};

    let subscribers = Arc::new(Subscribers::default());
    let limits = InboxLimits { messages: 100_000, bytes: 100_000_000 };
    let inbox = Inbox::new("a", limits);
    let subscriber = Arc::new(Subscriber { inbox, origin: Origin::gateway(), is_durable: false });
    let options = SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };
    subscribers.insert("#", &subscriber, options, 0, true);
    let (mut link, dispatcher) =
        tokio::task::spawn_blocking(|| start(subscribers, Arc::default())).await.unwrap().unwrap();
    let cancel = CancellationToken::new();
    let (_taker, pulse) = PulseTaker::new();
    let running = tokio::spawn(dispatcher.run(cancel.clone(), || Ok(()), pulse));
    let mut seq = 0;
    for round in 0..2000u64 {
        let mut builder = BatchBuilder::default();
        // small batches and floods alternate
        let messages: u64 = if round % 3 == 0 { 40 } else { 2 };
        for number in 0..messages {
            builder.push(&Draft::new(if number % 2 == 0 { "a" } else { "b" }, &(seq + number).to_le_bytes()));
        }
        let count = builder.len();
        let room = link.room();
        let notified = room.notified();
        if !link.has_room(&builder) {
            notified.await;
        }
        link.publish(builder.finish(seq), count, false).unwrap();
        seq += u64::from(count);
        if round % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut out = VecDeque::new();
    while (out.len() as u64) < seq {
        subscriber.inbox.take(usize::MAX / 2, &mut out);
        tokio::task::yield_now().await;
    }
    for (expected, queued) in out.iter().enumerate() {
        assert_eq!(queued.message.view().payload(), (expected as u64).to_le_bytes());
    }
    cancel.cancel();
    assert_eq!((running.await.unwrap(), link.room().lost()), (Ok(()), 0));
}

#[tokio::test]
async fn ids_of_overlapping_subscriptions_count_as_memory() {
    use crate::exchange::inbox::{Inbox, InboxLimits};
    use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
    use crate::exchange::waiting::DeliveryMemory;
    use crate::message::{Draft, Origin, Qos};

    let subscribers = Arc::new(Subscribers::default());
    let account = DeliveryMemory::measured(1 << 30, || 1 << 30).account("ada");
    let inbox = Inbox::new("a", InboxLimits { messages: 1000, bytes: 64 << 10 }).paid_by(account.clone());
    let subscriber = Arc::new(Subscriber { inbox, origin: Origin::gateway(), is_durable: false });
    for number in 0..128_u32 {
        let levels: Vec<&str> = (0..7).map(|bit| if number >> bit & 1 == 1 { "+" } else { "a" }).collect();
        let (qos, id) = (Qos::AtMostOnce, Some(number + 1));
        let options = SubscriptionOptions { qos, no_local: false, retain_as_published: false, id };
        subscribers.insert(&levels.join("/"), &subscriber, options, 0, true);
    }
    let starting = tokio::task::spawn_blocking(|| start(subscribers, Arc::default()));
    let (mut link, _dispatcher) = starting.await.unwrap().unwrap();
    let topics = [["a"; 7].join("/"), format!("b/{}", ["a"; 6].join("/"))];
    let published = 400;
    for number in 0..published {
        let mut builder = BatchBuilder::default();
        builder.push(&Draft::new(&topics[number % 2], b"x"));
        link.publish(builder.finish(number as u64), 1, false).unwrap();
    }
    let all = published * 4 * (128 + 64) / 2;
    assert!((all..2 * all).contains(&account.held()), "{} bytes for {all} of ids", account.held());
    let lost = subscriber.inbox.lose() as usize;
    let waiting = subscriber.inbox.len();
    assert!(waiting + lost == published && waiting < 180, "{waiting} of {published}");
    assert!(account.held() <= 64 << 10);
    let mut out = VecDeque::new();
    while subscriber.inbox.take(7, &mut out) > 0 {}
    assert_eq!(account.held(), 0);
    let ids: Vec<usize> = out.iter().map(|queued| queued.grant.ids.as_slice().len()).take(4).collect();
    assert_eq!(ids, [128, 64, 128, 64]);
}
