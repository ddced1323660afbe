use super::super::opening::ANSWER_MS;
use super::super::*;
use super::{Bench, V4, V5};
use crate::upstream::rule::tests::{rule, settings};

fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).unwrap()
}

/// The filters of all subscriptions.
fn asked(actions: &[SessionAction]) -> Vec<String> {
    let filters = actions.iter().filter_map(|action| match action {
        SessionAction::Subscribe(filters) => Some(filters),
        _ => None,
    });
    filters.flatten().map(|(filter, _)| filter.to_string()).collect()
}

#[test]
fn new_rules_subscribe_and_unsubscribe_the_difference() {
    let mut bench = Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtMostOnce)];
    });
    let expected = vec![(filter("a/#"), Qos::AtLeastOnce), (filter("b/#"), Qos::AtMostOnce)];
    assert_eq!(bench.session.connected(V5, 0), [SessionAction::Subscribe(expected)]);
    let mut changed = settings();
    changed.inbound = vec![rule("b/#", "", "", Qos::AtLeastOnce), rule("c", "", "", Qos::AtMostOnce)];
    let expected = [
        SessionAction::Unsubscribe(vec![filter("a/#")]),
        SessionAction::Subscribe(vec![(filter("b/#"), Qos::AtLeastOnce), (filter("c"), Qos::AtMostOnce)]),
    ];
    assert_eq!(bench.session.set_rules(UpstreamRules::new(&changed), 0), expected);
    assert_eq!(bench.session.set_rules(UpstreamRules::new(&changed), 0), []);
}

#[test]
fn the_status_is_published_on_connecting_and_counts_for_nothing() {
    let mut bench =
        Bench::new(|settings| settings.status_topic = Some(crate::message::Topic::new("sites/loft").unwrap()));
    bench.append_many(0..1);
    bench.connect(V5);
    bench.pump(0);
    assert!(bench.sent[0].retain && bench.sent[0].topic == "sites/loft");
    assert_eq!(bench.deliver(1), ["online", "0"]);
    bench.ack(1, 0);
    bench.ack(2, 0);
    assert_eq!((bench.ledger().acked, bench.session.in_flight()), (1, 0));
}

#[test]
fn a_subscription_at_which_the_line_goes_silent_is_left_out_and_tried_again_on_the_connection_that_there_is() {
    const MINUTE: u64 = 60_000;
    let mut bench = Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtLeastOnce)];
    });
    bench.append_many(0..3);
    assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#", "b/#"]);
    bench.disconnect(&Broken::Silent);
    for (now, wait) in [(0, MINUTE), (MINUTE, 2 * MINUTE), (3 * MINUTE, 4 * MINUTE)] {
        // one after the other, and the second one leads nowhere
        assert_eq!(asked(&bench.session.connected(V4, now)), ["a/#"]);
        assert_eq!(asked(&bench.session.subscribed(&[1], now)), ["b/#"]);
        assert!(!bench.session.has_room(Role::Live), "messages wait for the answer");
        assert_eq!(bench.session.time(now + ANSWER_MS), []);
        assert!(bench.session.has_room(Role::Live));
        bench.disconnect_at(&Broken::Silent, now);
        // forwarding goes on without it
        assert_eq!(asked(&bench.session.connected(V4, now)), ["a/#"]);
        assert_eq!(asked(&bench.session.subscribed(&[1], now)), [""; 0]);
        assert!(bench.session.has_room(Role::Live));
        assert_eq!(bench.session.deadline(), Some(now + wait));
        assert_eq!(asked(&bench.session.time(now + wait - 1)), [""; 0]);
        bench.disconnect_at(&Broken::Failed(String::new()), now);
    }
    let now = 7 * MINUTE;
    assert_eq!(asked(&bench.session.connected(V4, now - 1)), ["a/#"]);
    bench.session.subscribed(&[1], now - 1);
    assert_eq!(asked(&bench.session.time(now)), ["b/#"]);
    bench.session.subscribed(&[1], now);
    bench.disconnect_at(&Broken::Silent, now);
    assert_eq!(asked(&bench.session.connected(V4, now)), ["a/#", "b/#"], "it was answered");
}

#[test]
fn an_upstream_that_answers_messages_is_not_silent_because_of_a_subscription() {
    let mut bench = Bench::new(|settings| settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)]);
    bench.append_many(0..1);
    bench.session.connected(V4, 0);
    bench.disconnect(&Broken::Silent);
    bench.session.connected(V4, 0);
    bench.session.time(ANSWER_MS);
    bench.pump(ANSWER_MS);
    bench.deliver(1);
    bench.ack(1, 0);
    bench.disconnect_at(&Broken::Silent, ANSWER_MS);
    assert_eq!(asked(&bench.session.connected(V4, ANSWER_MS)), ["a/#"]);
}

#[test]
fn a_subscription_that_is_refused_or_not_answered_is_asked_for_again() {
    const MINUTE: u64 = ANSWER_TIMEOUT_MS;
    const HOUR: u64 = 60 * MINUTE;
    let rules = |bench: &mut UpstreamSettings| bench.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)];
    let mut bench = Bench::new(rules);
    let mut same = settings();
    rules(&mut same);
    assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#"]);
    bench.session.subscribed(&[0x80], 0);
    assert_eq!(bench.session.deadline(), Some(HOUR));
    assert_eq!(asked(&bench.session.time(HOUR)), ["a/#"]);
    // now there is no answer at all
    assert_eq!(bench.session.deadline(), Some(HOUR + MINUTE));
    assert_eq!(bench.session.time(HOUR + MINUTE), []);
    assert_eq!(bench.session.deadline(), Some(2 * HOUR + MINUTE));
    // a reload asks at once
    assert_eq!(asked(&bench.session.set_rules(UpstreamRules::new(&same), HOUR + MINUTE)), ["a/#"]);
    // the answers come in the order of the packets, and the second one grants it
    bench.session.subscribed(&[0x80], HOUR + MINUTE);
    bench.session.subscribed(&[1], HOUR + MINUTE);
    assert_eq!(bench.session.deadline(), None);
    assert_eq!(asked(&bench.session.set_rules(UpstreamRules::new(&same), HOUR + MINUTE)), [""; 0]);
}

#[test]
fn what_one_address_has_taught_says_nothing_of_another() {
    let mut bench = Bench::new(|settings| settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)]);
    for _ in 0..3 {
        assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#"]);
        bench.disconnect(&Broken::Closed);
    }
    assert_eq!(asked(&bench.session.connected(V4, 0)), [""; 0], "it is left out");
    bench.disconnect(&Broken::Dismissed(RETAIN_NOT_SUPPORTED, String::new()));
    bench.session.at_address(1);
    assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#"]);
    assert!(!bench.session.is_retain_refused());
    bench.session.subscribed(&[1], 0);
    bench.disconnect(&Broken::Failed(String::new()));
    bench.session.at_address(0);
    assert_eq!(asked(&bench.session.connected(V4, 0)), [""; 0]);
    assert!(bench.session.is_retain_refused());
}
