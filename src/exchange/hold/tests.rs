use super::super::delivery::{RetainFlag, Run, Terms};
use super::super::inbox::{Inbox, InboxLimits, InboxOffer};
use super::*;
use crate::message::{BatchBuilder, Draft, Qos};

const LIMITS: InboxLimits = InboxLimits { messages: 1000, bytes: 100_000 };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn no_second_has_more_than_its_budget() {
    let mut budget = Budget::default();
    let mut spent: Vec<u64> = Vec::new();
    for at in (0..10_000).step_by(5) {
        // two readers at the same time
        let may = budget.spend(ms(at));
        assert_eq!(budget.spend(ms(at + 1)), may);
        if may {
            spent.push(at);
        }
    }
    for from in 0..9_000 {
        let within = spent.iter().filter(|at| (from..from + 1000).contains(*at)).count() as u64;
        assert!(within * 5 <= 50, "{within} steps in the second from {from} ms on");
    }
    assert!(spent.len() >= 90, "{} steps in ten seconds: it is not lost either", spent.len());
}

/// The same while the gateway gets all the processor time that it can use.
fn simulate(takes: &[usize], blocked: bool) -> (Duration, Duration, u64) {
    simulate_with(takes, blocked, 1.0, 1)
}

/// Simulates one publisher and readers of one user for five seconds. Each reader takes this number of messages in every
/// step, and its connection has a turn in every step of this number. Returns how long the publisher was held in the worst second and in all, and how many messages were lost.
fn simulate_with(takes: &[usize], blocked: bool, share: f64, turns: u32) -> (Duration, Duration, u64) {
    let readers: Vec<Arc<Subscriber>> = takes.iter().map(|_| reader(blocked)).collect();
    let (holds, publisher) = (holds_with(share), Origin::client("p"));
    let flood = Amount { messages: 200, bytes: 10_000 };
    let begin = Instant::now();
    let mut held: Vec<bool> = Vec::new();
    let (mut published, mut taken, mut lost) = (0, 0, 0);
    for step in 0..1000 {
        let now = begin + STEP * step;
        lost += holds.look(now);
        for (reader, takes) in readers.iter().zip(takes) {
            let mut out = VecDeque::new();
            if step % turns == 0 {
                reader.inbox.take(*takes, &mut out);
                reader.inbox.turn.answer();
            }
            taken += out.len() as u64;
        }
        held.push(holds.holds(publisher));
        if held[step as usize] {
            continue;
        }
        for reader in &readers {
            published += 200;
            match reader.inbox.offer(&mut messages(200), holds.now(now)) {
                InboxOffer::Done => {}
                InboxOffer::Dropped(messages) => lost += messages,
                InboxOffer::Full => lost += holds.begin(reader, (publisher, flood), now),
            }
        }
    }
    let waiting: usize = readers.iter().map(|reader| reader.inbox.len()).sum();
    assert_eq!(published, taken + lost + waiting as u64, "each is taken, lost and counted, or waits");
    assert_eq!(lost, readers.iter().map(|reader| reader.inbox.dropped()).sum::<u64>());
    let sum = |part: &[bool]| STEP * part.iter().filter(|held| **held).count() as u32;
    (held.windows(200).map(sum).max().unwrap(), sum(&held), lost)
}

#[test]
fn a_reader_that_reads_is_waited_for_and_loses_nothing() {
    for takes in [7, 20, 50, 100] {
        let (_, held, lost) = simulate(&[takes], true);
        assert!(held > Duration::ZERO && lost == 0, "{takes} in each step: held {held:?}, lost {lost}");
    }
    let (_, held, lost) = simulate(&[200], true);
    assert_eq!((held, lost), (Duration::ZERO, 0), "it keeps up");
}

#[test]
fn readers_of_one_user_that_do_not_read_have_fifty_milliseconds_of_a_second_together() {
    for takes in [&[0][..], &[1], &[3], &[0, 0], &[0, 1, 4, 0]] {
        let (worst, _, lost) = simulate(takes, true);
        assert!(worst <= BUDGET && lost > 0, "{takes:?} in each step: {worst:?}, lost {lost}");
    }
    // a reader that reads has its own time beside one that does not
    let (worst, _, _) = simulate(&[0, 20], true);
    assert!(worst > BUDGET);
}

#[test]
fn a_reader_is_as_quick_as_the_machine_lets_it_be() {
    for (takes, share) in [(2, 1.0), (1, 0.5)] {
        let (_, _, lost) = simulate_with(&[takes], true, share, 1);
        assert!(lost > 0, "{takes} in each step with {share} of the processors");
    }
    for (takes, share) in [(2, 0.25), (4, 0.5)] {
        let (_, held, lost) = simulate_with(&[takes], true, share, 1);
        assert!(held > Duration::ZERO && lost == 0, "{takes} with {share}: held {held:?}, lost {lost}");
    }
    // nobody is held longer for one that reads nothing
    let (worst, _, lost) = simulate_with(&[0], true, 0.25, 1);
    assert!(worst <= BUDGET && lost > 0, "{worst:?}, {lost}");
}

#[test]
fn a_reader_is_not_blamed_for_turns_that_its_connection_has_late() {
    for turns in [60, 100, 200] {
        let (_, held, lost) = simulate_with(&[250], true, 1.0, turns);
        assert!(held > Duration::ZERO && lost == 0, "a turn in {turns} steps: held {held:?}, lost {lost}");
        let (_, _, lost) = simulate_with(&[20], true, 1.0, turns);
        assert!(lost > 0, "what it takes in its turns is too little");
    }
}

#[test]
fn a_reader_that_the_gateway_has_not_served_yet_is_not_blamed_for_seconds() {
    let (_, held, lost) = simulate(&[0], false);
    assert!(held >= LONGEST && held <= LONGEST + 2 * BUDGET && lost > 0, "{held:?}, {lost}");
}

#[tokio::test]
async fn who_publishes_little_to_full_queues_does_not_wait_with_those_that_fill_them() {
    let (holds, now, readers) = (holds_with(1.0), Instant::now(), [reader(true), reader(true)]);
    let [flooder, other] = ["flooder", "other"].map(Origin::client);
    for reader in &readers {
        assert_eq!(reader.inbox.offer(&mut messages(1200), Duration::ZERO), InboxOffer::Full);
        holds.begin(reader, (flooder, Amount { messages: 1200, bytes: 60_000 }), now);
    }
    let full = || readers.each_ref().map(|reader| (reader.inbox.id(), reader.inbox.taken_while_full().unwrap()));
    let one = Amount { messages: 1, bytes: 50 };
    let count = |room: &[(InboxId, Amount)]| (0..).take_while(|_| holds.may_add(other, one, room)).count();
    let few = count(&full());
    assert!((200..1000).contains(&few), "{few} messages");
    holds.begin(&readers[0], (other, one), now);
    assert!(holds.holds(flooder) && !holds.holds(other), "what was counted does not fill it");
    // it goes on before half of the queue is free
    let mut room = std::pin::pin!(holds.room().notified());
    assert!(futures_util::poll!(room.as_mut()).is_pending());
    readers.iter().for_each(|reader| _ = reader.inbox.take(100, &mut VecDeque::new()));
    holds.look(now);
    assert!(futures_util::poll!(room.as_mut()).is_ready());
    assert!(count(&full()) > 0 && holds.holds(flooder));
}

fn holds_with(share: f64) -> Arc<Holds> {
    Arc::new(Holds::new(ProcessorShare::fixed(share)))
}

fn reader(blocked: bool) -> Arc<Subscriber> {
    let inbox = Inbox::new("a", LIMITS);
    inbox.turn.set_blocked(blocked);
    Arc::new(Subscriber { inbox, origin: Origin::client("a"), is_durable: false })
}

fn messages(count: usize) -> VecDeque<Run> {
    let mut builder = BatchBuilder::default();
    for _ in 0..count {
        let (topic, payload, origin) = ("t", &b"x"[..], Origin::client("p"));
        let (qos, retain, properties, expiry, boot_ms) = (Qos::AtMostOnce, false, &[][..], None, 0);
        builder.push(&Draft { topic, payload, qos, retain, properties, expiry, boot_ms, origin });
    }
    let batch = builder.finish(0);
    let (qos, retain, ids) = (Qos::AtMostOnce, RetainFlag::Clear, None.into());
    let terms = Terms { qos, retain, no_local: false, ids, share: None };
    VecDeque::from([Run { messages: batch.pack(0, batch.size(), count), terms }])
}
