//! Upstreams that end connections because of several parts of the opening and several messages.

use super::super::super::backoff::Backoff;
use super::super::super::settings::Retry;
use super::super::*;
use super::{Bench, V4, draft};
use crate::message::{Draft, Topic, TopicFilter};
use crate::upstream::rule::tests::rule;
use crate::upstream::settings::OutQos;

/// What an upstream closes the connection for.
#[derive(Clone, Debug, Default)]
struct Denied {
    filters: Vec<usize>,
    status: bool,
    retain: bool,
    topics: Vec<String>,
}

impl Denied {
    fn denies(&self, message: &OutMessage) -> bool {
        let is_status = message.topic == "status";
        let topic = message.topic.strip_prefix("up/").unwrap_or_default();
        (is_status && self.status)
            || (message.retain && self.retain)
            || self.topics.iter().any(|denied| denied == topic)
    }
}

/// What became of it.
#[derive(Default)]
struct StrictEnd {
    connections: u32,
    /// When the first message was accepted, in milliseconds.
    first: Option<u64>,
    accepted: Vec<String>,
    /// What was subscribed to on the last connection.
    filters: Vec<String>,
}

fn bench(filters: usize, qos: OutQos) -> Bench {
    Bench::new(|settings| {
        settings.out = vec![rule("#", "", "up/", qos)];
        settings.inbound = (0..filters).map(|n| rule(&format!("f{n}/#"), "", "", Qos::AtLeastOnce)).collect();
        settings.status_topic = Some(Topic::new("status").unwrap());
    })
}

/// Connects until a connection holds and all waiting messages are settled. Pauses are the longest ones of the defaults.
fn play(bench: &mut Bench, policy: &Denied, mut now: u64) -> StrictEnd {
    let (mut played, mut backoff, mut id) = (StrictEnd::default(), Backoff::new(Retry::default()), 0);
    while played.connections < 200 {
        played.connections += 1;
        played.filters.clear();
        if !policy.topics.is_empty() {
            // what is denied is only found among other messages
            bench.append(&draft("more", b"x"));
        }
        let actions = bench.session.connected(V4, now);
        bench.perform(actions);
        for filter in (0..6).filter(|n| !policy.filters.contains(n)) {
            let filter = TopicFilter::new(format!("f{filter}/#")).unwrap();
            assert!(!bench.session.opening.has_left_out(&filter), "{filter} is innocent: {policy:?}");
        }
        if !converse(bench, policy, &mut played, &mut id, &mut now) {
            return played;
        }
        bench.sent.clear();
        bench.asked.clear();
        bench.disconnect_at(&Broken::Closed, now);
        if bench.session.is_cause_clear(now) {
            backoff.made_progress();
        }
        now += backoff.next(u64::MAX).max(bench.session.quiet_left(now)).as_millis() as u64;
    }
    panic!("it does not come to an end: {policy:?}");
}

/// Returns whether the upstream has ended the connection.
fn converse(bench: &mut Bench, policy: &Denied, played: &mut StrictEnd, id: &mut u16, now: &mut u64) -> bool {
    let mut is_closing = false;
    loop {
        bench.pump(*now);
        if is_closing {
            return true;
        }
        let (asked, sent) = (std::mem::take(&mut bench.asked), bench.sent.clone());
        let first = *id % 60_000 + 1;
        bench.deliver(first);
        *id = first + sent.len() as u16;
        for packet in &asked {
            if policy.filters.iter().any(|denied| packet.contains(&format!("f{denied}/#"))) {
                return true;
            }
            played.filters.extend(packet.iter().cloned());
            let actions = bench.subscribed(&vec![1; packet.len()], *now);
            bench.perform(actions);
        }
        let mut packet_id = first;
        for message in &sent {
            if policy.denies(message) {
                // what follows a message at QoS 0 is sent before the connection ends
                is_closing = message.qos == Qos::AtMostOnce;
                if is_closing {
                    break;
                }
                return true;
            }
            if message.topic != "status" {
                played.first.get_or_insert(*now);
                played.accepted.push(message.topic.clone());
            }
            if message.qos != Qos::AtMostOnce {
                let actions = bench.session.acked(packet_id, 0, *now);
                bench.perform(actions);
                packet_id += 1;
            }
        }
        if asked.is_empty() && sent.is_empty() && !bench.session.is_opening() {
            if let Some(until) =
                bench.session.after_answer.deadline().filter(|_| bench.session.after_answer.is_waiting())
            {
                // nothing is sent until it is known whether the connection outlives an answer
                *now = until;
                bench.time(*now);
                continue;
            }
            return false;
        }
    }
}

fn append(bench: &mut Bench, count: usize, retain: bool) {
    for n in 0..count {
        bench.append(&Draft { retain, ..draft(&format!("t{n}"), b"x") });
    }
}

#[test]
fn forwarding_does_not_wait_for_denied_subscriptions() {
    let mut bench = bench(6, OutQos::AtLeastOnce);
    append(&mut bench, 3, false);
    let policy = Denied { filters: vec![1, 3, 4], ..Denied::default() };
    let played = play(&mut bench, &policy, 0);
    assert!(played.first.is_some_and(|first| first <= 2_000), "{:?}", played.first);
    assert_eq!((played.filters, played.accepted.len()), (["f0/#", "f2/#", "f5/#"].map(String::from).to_vec(), 3));
    assert!(played.connections <= 9, "{}", played.connections);
}

#[test]
fn forwarding_begins_soon_at_an_upstream_that_denies_much_at_once() {
    let mut bench = bench(2, OutQos::AtLeastOnce);
    append(&mut bench, 3, true);
    let policy = Denied { filters: vec![1], status: true, retain: true, ..Denied::default() };
    // two connections have ended because of the will
    let played = play(&mut bench, &policy, 3_000);
    assert!(played.first.is_some_and(|first| first <= 15_000), "{:?}", played.first);
    assert_eq!((bench.ledger().acked, bench.ledger().pending), (3, 0));
}

#[test]
fn no_innocent_part_or_message_is_blamed_whatever_is_denied() {
    for seed in 0..400u64 {
        let mut state = seed + 1;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let qos = if random(3) == 0 { OutQos::AtMostOnce } else { OutQos::AtLeastOnce };
        let mut bench = bench(6, qos);
        append(&mut bench, 12, random(2) == 0);
        let policy = Denied {
            filters: (0..6).filter(|_| random(3) == 0).collect(),
            status: random(3) == 0,
            retain: random(4) == 0,
            topics: (0..12).filter(|n| random(36) == *n).map(|n| format!("t{n}")).take(1).collect(),
        };
        let played = play(&mut bench, &policy, 0);
        let expected: Vec<_> = (0..6).filter(|n| !policy.filters.contains(n)).map(|n| format!("f{n}/#")).collect();
        let mut filters = played.filters.clone();
        filters.sort_unstable();
        filters.dedup();
        assert_eq!(filters, expected, "{seed} {policy:?}");
        let denied = if qos == OutQos::AtMostOnce { 0 } else { policy.topics.len() as u64 };
        let ledger = bench.ledger();
        assert_eq!((ledger.pending, ledger.dropped.ends_connection), (0, denied), "{seed} {policy:?}");
    }
}
