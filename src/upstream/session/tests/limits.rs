use super::super::*;
use super::{Bench, V5};
use crate::upstream::wire::EndReason;

fn ended(reason: EndReason) -> Broken {
    Broken::Ended(reason, "too much".into())
}

/// Connects to an upstream that takes `takes` unanswered messages, answers those, and ends the connection at the next one.
/// Returns how many were sent to it.
fn connect(bench: &mut Bench, takes: usize, now: u64) -> usize {
    let actions = bench.session.connected(V5, now);
    bench.perform(actions);
    bench.pump(now);
    let sent = bench.deliver(1).len();
    if sent > takes {
        bench.disconnect_at(&ended(EndReason::WindowExceeded), now);
    }
    sent
}

#[test]
fn a_window_that_the_upstream_does_not_take_is_smaller_on_the_next_connection() {
    let mut bench = Bench::new(|settings| settings.max_inflight = 40);
    bench.append_many(0..60);
    for (now, sent) in [(1_000, 40), (2_000, 20)] {
        assert_eq!(connect(&mut bench, 10, now), sent);
        assert!(bench.session.is_cause_clear(now), "so the pauses are short");
    }
    assert_eq!(connect(&mut bench, 10, 3_000), 10);
    for id in 1..=10 {
        bench.ack(id, 0);
    }
    bench.pump(4_000);
    assert_eq!(bench.deliver(11).len(), 10, "it stays as it is over reconnects");
    bench.disconnect_at(&Broken::Failed("the line".into()), 5_000);
    assert_eq!(connect(&mut bench, 10, 6_000), 10);
    // what is left fits, so that nothing is held back for ever
    let mut id = 1;
    for now in [70_000, 140_000, 210_000, 280_000] {
        while bench.session.in_flight() > 0 {
            let actions = bench.session.acked(id, 0, now);
            bench.perform(actions);
            id += 1;
        }
        bench.pump(now);
        bench.deliver(id);
    }
    assert_eq!((bench.ledger().acked, bench.ledger().dropped.total()), (60, 0));
}

#[test]
fn what_one_address_takes_says_nothing_about_another() {
    let mut bench = Bench::new(|settings| settings.max_inflight = 40);
    bench.append_many(0..60);
    assert_eq!(connect(&mut bench, 10, 1_000), 40);
    bench.session.at_address(1);
    assert_eq!(connect(&mut bench, 100, 2_000), 40);
    bench.disconnect_at(&Broken::Failed("the line".into()), 3_000);
    bench.session.at_address(0);
    assert_eq!(connect(&mut bench, 20, 4_000), 20);
}

#[test]
fn a_rate_that_is_too_high_becomes_lower_until_all_messages_pass() {
    let mut bench = Bench::new(|settings| settings.max_inflight = 40);
    bench.append_many(0..100);
    // at most 5 messages in a second
    let (mut now, mut connections) = (1_000, 0);
    while bench.ledger().pending > 0 && now < 300_000 {
        let actions = bench.session.connected(V5, now);
        bench.perform(actions);
        connections += 1;
        let (mut id, mut taken) = (1, Vec::<u64>::new());
        loop {
            bench.pump(now);
            let sent = bench.deliver(id).len();
            let too_much = (0..sent).any(|_| {
                taken.retain(|at| at + 1_000 > now);
                taken.push(now);
                let is_too_much = taken.len() > 5;
                if !is_too_much {
                    let actions = bench.session.acked(id, 0, now);
                    bench.perform(actions);
                    id += 1;
                }
                is_too_much
            });
            if too_much || bench.ledger().pending == 0 {
                break;
            }
            now = bench.session.deadline().unwrap().max(now + 1);
            bench.time(now);
        }
        bench.disconnect_at(&ended(EndReason::PaceExceeded), now);
        now += 1_000;
    }
    assert_eq!((bench.ledger().acked, bench.ledger().dropped.total()), (100, 0));
    assert!(connections < 8, "{connections}");
    assert!(now < 80_000, "{now} ms");
}
