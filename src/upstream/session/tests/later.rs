use super::super::*;
use super::{Bench, V5, draft};
use crate::message::Draft;

#[test]
fn what_the_upstream_does_not_take_now_is_sent_later_and_in_order() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..6);
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["0", "1", "2", "3"]);
    for (id, reason) in [(1, 0), (2, 0x97), (3, 0)] {
        bench.ack(id, reason);
    }
    bench.pump(0);
    assert!(bench.sent.is_empty() && bench.session.deadline() == Some(ANSWER_TIMEOUT_MS), "the last is unanswered");
    bench.ack(4, 0x97);
    let mut id = 5;
    for (now, reason) in [(FIRST_PAUSE_MS, 0x97), (3 * FIRST_PAUSE_MS, 0x91), (7 * FIRST_PAUSE_MS, 0)] {
        assert_eq!(bench.session.deadline(), Some(now));
        assert_eq!(bench.session.time(now - 1), []);
        assert!(!bench.session.has_room(Role::Live));
        assert_eq!(bench.session.time(now), []);
        bench.pump(now);
        let sent = bench.deliver(id);
        assert_eq!(sent, ["1", "3"][..sent.len()], "what was taken is not sent again");
        assert_eq!(sent.len(), if now == FIRST_PAUSE_MS { 2 } else { 1 }, "half of the window, and half again");
        for _ in sent {
            let actions = bench.session.acked(id, reason, now);
            bench.perform(actions);
            id += 1;
        }
    }
    for expected in [["3", "4"], ["5", ""]] {
        bench.pump(0);
        let sent = bench.deliver(id);
        assert_eq!(sent, expected[..sent.len()], "one more for as many as were acknowledged");
        for _ in sent {
            bench.ack(id, 0);
            id += 1;
        }
    }
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.pending, ledger.dropped.total()), (6, 0, 0));
}

#[test]
fn a_lasting_quota_costs_few_messages_that_are_sent_in_vain() {
    // ten messages a second
    let mut bench = Bench::new(|settings| settings.max_inflight = 100);
    bench.append_many(0..300);
    bench.connect(V5);
    let (mut now, mut id, mut sent, mut taken_until) = (0, 1, 0, 0);
    while bench.ledger().pending > 0 {
        bench.pump(now);
        for _ in 0..bench.deliver(id).len() {
            sent += 1;
            let is_taken = taken_until <= now + 1_000;
            taken_until = if is_taken { taken_until.max(now) + 100 } else { taken_until };
            let actions = bench.session.acked(id, if is_taken { 0 } else { 0x97 }, now);
            bench.perform(actions);
            id += 1;
        }
        if let Some(deadline) = bench.session.deadline() {
            now = now.max(deadline);
            bench.time(now);
        }
    }
    assert!(now < 45_000, "{now} ms");
    assert!(sent < 600, "{sent}");
}

#[test]
fn a_pause_lasts_over_a_break() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..2);
    bench.connect(V5);
    bench.pump(0);
    bench.deliver(1);
    bench.ack(1, 0x97);
    bench.disconnect(&Broken::Silent);
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["0", "1"], "it was not answered in full");
    bench.ack(1, 0x97);
    bench.ack(2, 0x97);
    bench.disconnect(&Broken::Silent);
    bench.connect(V5);
    bench.pump(0);
    assert!(bench.sent.is_empty());
    bench.session.time(LONGEST_PAUSE_MS);
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["0", "1"]);
}

#[test]
fn a_window_of_large_messages_is_bounded_by_its_bytes() {
    const SIZE: usize = 64 << 10;
    let mut bench = Bench::new(|settings| settings.max_inflight = 200);
    (0..100).for_each(|_| bench.append(&draft("loft/a", &[b'x'; SIZE])));
    bench.connect(V5);
    // the journal reads ahead less than that
    while bench.session.has_room(Role::Live) {
        bench.pump(0);
    }
    assert_eq!(bench.sent.len(), UNDER_WAY_BYTES / SIZE);
    let mut first = 1;
    while first <= 100 {
        let count = bench.deliver(first).len() as u16;
        (first..first + count).for_each(|packet_id| bench.ack(packet_id, 0));
        first += count;
        bench.pump(0);
    }
}

#[test]
fn what_is_sent_once_more_is_counted_once() {
    let mut bench = Bench::new(|settings| settings.max_inflight = 20);
    (0..20).for_each(|_| bench.append(&Draft { retain: true, ..draft("t", &[b'x'; 1024]) }));
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.deliver(1).len(), 20);
    (1..=20).for_each(|packet_id| bench.ack(packet_id, RETAIN_NOT_SUPPORTED));
    let mut first = 21;
    while bench.session.in_flight() > 0 {
        bench.pump(0);
        let count = bench.deliver(first).len() as u16;
        assert!(count > 0, "they are sent without the flag");
        (first..first + count).for_each(|packet_id| bench.ack(packet_id, 0));
        first += count;
    }
    assert_eq!(bench.session.under_way, UnderWay::default());
}
