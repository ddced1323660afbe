//! Upstreams that close the connection for reasons of their own, and those that do so at certain messages.

use super::super::suspected::Seen;
use super::super::suspicion::{SuspectVerdict, Suspicion};
use super::*;
use crate::upstream::backoff::Backoff;
use crate::upstream::settings::Retry;

/// A few pseudo-random numbers.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ self.0 >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd)
    }
}

/// Sends these messages to an upstream with 3.1.1 that takes a message or closes the connection, at this time and with this
/// payload, until none waits. Returns the bench and the time that it took, in milliseconds.
fn play(messages: u32, seed: u64, mut takes: impl FnMut(u64, &str) -> bool) -> (Bench, u64) {
    let mut bench = Bench::new(|_| {});
    for number in 0..messages {
        bench.append(&draft(&format!("t/{number}"), number.to_string().as_bytes()));
    }
    let (mut dice, mut now, mut backoff) = (Dice(seed), 0, Backoff::new(Retry::default()));
    while bench.ledger().pending > 0 {
        assert!(now < 1_000 * 3_600_000, "{:?}", bench.ledger());
        let actions = bench.session.connected(V4, now);
        bench.perform(actions);
        let mut id = 1;
        'connection: loop {
            bench.pump(now);
            let sent = bench.deliver(id);
            if sent.is_empty() {
                break;
            }
            for payload in sent {
                now += 10;
                if !takes(now, &payload) {
                    bench.disconnect_at(&Broken::Closed, now);
                    if bench.session.is_cause_clear(now) {
                        backoff.made_progress();
                    }
                    break 'connection;
                }
                let actions = bench.session.acked(id, 0, now);
                bench.perform(actions);
                id += 1;
            }
        }
        now += backoff.next(dice.roll()).max(bench.session.quiet_left(now)).as_millis() as u64;
    }
    (bench, now)
}

/// An upstream that takes so many messages at once, and one more in each so many milliseconds.
pub(super) fn quota(burst: u64, each_ms: u64) -> impl FnMut(u64, &str) -> bool {
    let (mut tokens, mut at) = (burst * each_ms, 0);
    move |now, _| {
        tokens = (tokens + now - at).min(burst * each_ms);
        at = now;
        let takes = tokens >= each_ms;
        tokens -= if takes { each_ms } else { 0 };
        takes
    }
}

#[test]
fn a_quota_costs_no_message() {
    for (burst, each_ms) in
        [(1, 300), (1, 1_500), (1, 4_000), (1, 20_000), (2, 1_500), (3, 700), (5, 2_000), (9, 1_000)]
    {
        for seed in 0..20 {
            let (bench, _) = play(40, seed, quota(burst, each_ms));
            assert_eq!(
                bench.ledger().acked,
                40,
                "{burst} at once, one in {each_ms} ms, seed {seed}: {:?}",
                bench.ledger()
            );
        }
    }
    // so many in each window of time
    for (most, window_ms) in [(1, 10_000), (4, 10_000), (10, 30_000)] {
        for seed in 0..20 {
            let mut window = (0, 0);
            let (bench, _) = play(40, seed, |now, _| {
                if window.0 != now / window_ms {
                    window = (now / window_ms, 0);
                }
                window.1 += 1;
                window.1 <= most
            });
            assert_eq!(bench.ledger().acked, 40, "{most} in {window_ms} ms, seed {seed}: {:?}", bench.ledger());
        }
    }
}

#[test]
fn an_upstream_that_closes_at_random_costs_no_message() {
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let (bench, _) = play(40, seed, |_, _| dice.roll().is_multiple_of(2));
        assert_eq!(bench.ledger().acked, 40, "seed {seed}: {:?}", bench.ledger());
    }
}

#[test]
fn messages_that_end_connections_are_found_soon_however_many_there_are() {
    for (bad, most_ms) in [(vec!["7"], 15_000), (vec!["7", "8"], 120_000), (vec!["3", "17", "31"], 120_000)] {
        let (bench, time) = play(40, 1, |_, payload| !bad.contains(&payload));
        let ledger = bench.ledger();
        let found = (ledger.acked, ledger.dropped.ends_connection);
        assert_eq!(found, (40 - bad.len() as u64, bad.len() as u64), "{bad:?}");
        assert!(time <= most_ms, "{bad:?}: {time} ms");
    }
    // beside a quota they hold up nothing else, and nothing else is dropped
    for seed in 0..20 {
        let mut takes = quota(2, 1_500);
        let (bench, _) = play(40, seed, |now, payload| takes(now, payload) && payload != "7");
        assert_eq!(bench.ledger().acked, 39, "seed {seed}: {:?}", bench.ledger());
    }
}

#[test]
fn a_message_that_ends_the_connection_is_found_and_set_aside() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..20);
    let (mut connections, mut now) = (0, 0);
    // a broker with 3.1.1 that closes the connection when it gets "2"
    while bench.ledger().pending > 0 {
        (connections, now) = (connections + 1, now + 6_000);
        assert!(connections < 10, "{:?}", bench.ledger());
        let actions = bench.session.connected(V4, now);
        bench.perform(actions);
        let mut id = 1;
        'connection: loop {
            bench.pump(now);
            let sent = bench.deliver(id);
            if sent.is_empty() {
                break;
            }
            for payload in sent {
                if payload == "2" {
                    bench.disconnect_at(&Broken::Closed, now);
                    break 'connection;
                }
                let actions = bench.session.acked(id, 0, now);
                bench.perform(actions);
                id += 1;
            }
        }
    }
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.dropped.ends_connection), (19, 1));
    assert_eq!(
        connections,
        STRIKES + 3,
        "one to suspect it, three strikes, one to send others before the last, one for the rest"
    );
    assert!(bench.session.has_room(Role::Live) && !bench.session.suspicion.is_active());
}

#[test]
fn a_bad_network_is_not_blamed_on_a_message() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..3);
    for _ in 0..10 {
        bench.connect(V4);
        bench.pump(0);
        bench.deliver(1);
        bench.disconnect(&Broken::Silent);
    }
    assert_eq!(bench.ledger().pending, 3);
}

#[test]
fn an_upstream_that_never_takes_a_message_is_told_apart() {
    // also if only one message waits, and not after others were taken
    for (messages, taken, says) in [(1, 0, true), (3, 0, true), (1, 1, false)] {
        let mut suspicion = Suspicion::default();
        let seen = |position| Seen {
            lane: Lane::First,
            position: Position(position),
            topic: position,
            size: 1,
            retain: false,
            exact: false,
        };
        for position in 100..100 + taken {
            suspicion.sent(0);
            suspicion.acked((Lane::First, Position(position)), (|| 0, 1), 0);
        }
        let mut verdicts = Vec::new();
        for connection in 0..8 {
            suspicion.connected(connection);
            suspicion.sent(connection);
            verdicts.push(suspicion.ended(&[seen(connection % messages)], true, (None, None), connection));
        }
        let said = verdicts.iter().filter(|it| **it == SuspectVerdict::Upstream).count();
        assert_eq!(said, usize::from(says), "{messages}: {verdicts:?}");
    }
}
