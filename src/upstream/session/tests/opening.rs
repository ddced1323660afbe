use super::super::opening::{ANSWER_MS, TURN_MS};
use super::super::*;
use super::{Bench, V4, V5};
use crate::message::TopicFilter;
use crate::upstream::rule::tests::{rule, settings};
use crate::upstream::settings::OutQos;
use crate::upstream::wire::RetainedWanted;

fn filter(text: &str) -> TopicFilter {
    TopicFilter::new(text).unwrap()
}

/// The filters of all subscriptions.
fn asked(actions: &[SessionAction]) -> Vec<String> {
    let filters = actions.iter().filter_map(|action| match action {
        SessionAction::Subscribe(filters, _) => Some(filters),
        _ => None,
    });
    filters.flatten().map(|(filter, _)| filter.to_string()).collect()
}

/// Connects, and returns the filters that are asked for when messages have had their turn.
fn connect(bench: &mut Bench, now: u64) -> Vec<String> {
    let actions = bench.session.connected(V4, now);
    bench.perform(actions);
    next(bench, now)
}

/// The filters that are asked for next, when no message waits.
fn next(bench: &mut Bench, now: u64) -> Vec<String> {
    bench.pump(now);
    std::mem::take(&mut bench.asked).concat()
}

#[test]
fn new_rules_subscribe_and_unsubscribe_the_difference() {
    let mut bench = Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtMostOnce)];
    });
    let expected = vec![(filter("a/#"), Qos::AtLeastOnce), (filter("b/#"), Qos::AtMostOnce)];
    assert_eq!(bench.session.connected(V5, 0), [SessionAction::Subscribe(expected, RetainedWanted::IfNew)]);
    let mut changed = settings();
    changed.inbound = vec![rule("b/#", "", "", Qos::AtLeastOnce), rule("c", "", "", Qos::AtMostOnce)];
    let expected = [
        SessionAction::Unsubscribe(vec![filter("a/#")]),
        SessionAction::Subscribe(
            vec![(filter("b/#"), Qos::AtLeastOnce), (filter("c"), Qos::AtMostOnce)],
            RetainedWanted::IfNew,
        ),
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
    assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#", "b/#"]);
    bench.disconnect(&Broken::Silent);
    for (now, wait) in [(0, MINUTE), (MINUTE, 2 * MINUTE), (3 * MINUTE, 4 * MINUTE)] {
        // one after the other, and the second one leads nowhere
        assert_eq!(connect(&mut bench, now), ["a/#"]);
        bench.subscribed(&[1], now);
        assert_eq!(next(&mut bench, now), ["b/#"]);
        assert!(!bench.session.has_room(Role::Live), "messages wait for the answer");
        assert_eq!(bench.session.time(now + ANSWER_MS), []);
        assert!(bench.session.has_room(Role::Live));
        bench.disconnect_at(&Broken::Silent, now);
        // forwarding goes on without it
        assert_eq!(connect(&mut bench, now), ["a/#"]);
        assert_eq!(asked(&bench.subscribed(&[1], now)), [""; 0]);
        assert!(bench.session.has_room(Role::Live));
        assert_eq!(bench.session.deadline(), Some(now + wait));
        assert_eq!(asked(&bench.session.time(now + wait - 1)), [""; 0]);
        bench.disconnect_at(&Broken::Failed(String::new()), now);
    }
    let now = 7 * MINUTE;
    assert_eq!(connect(&mut bench, now - 1), ["a/#"]);
    bench.subscribed(&[1], now - 1);
    assert_eq!(asked(&bench.session.time(now)), ["b/#"]);
    bench.subscribed(&[1], now);
    bench.disconnect_at(&Broken::Silent, now);
    assert_eq!(asked(&bench.session.connected(V4, now)), ["a/#", "b/#"], "it was answered");
}

#[test]
fn an_upstream_that_answers_messages_is_not_silent_because_of_a_subscription() {
    let mut bench = Bench::new(|settings| settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)]);
    bench.append_many(0..1);
    bench.session.connected(V4, 0);
    bench.disconnect(&Broken::Silent);
    assert_eq!(connect(&mut bench, 0), [""; 0], "the message goes first");
    bench.deliver(1);
    bench.ack(1, 0);
    assert_eq!(next(&mut bench, 0), ["a/#"]);
    bench.session.time(ANSWER_MS);
    bench.append_many(1..2);
    bench.pump(ANSWER_MS);
    bench.deliver(2);
    bench.ack(2, 0);
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
    bench.subscribed(&[0x80], 0);
    assert_eq!(bench.session.deadline(), Some(HOUR));
    assert_eq!(asked(&bench.session.time(HOUR)), ["a/#"]);
    // now there is no answer at all
    assert_eq!(bench.session.deadline(), Some(HOUR + MINUTE));
    assert_eq!(bench.session.time(HOUR + MINUTE), []);
    assert_eq!(bench.session.deadline(), Some(2 * HOUR + MINUTE));
    // a reload asks at once
    assert_eq!(asked(&bench.session.set_rules(UpstreamRules::new(&same), HOUR + MINUTE)), ["a/#"]);
    // the answers come in the order of the packets, and the second one grants it
    bench.subscribed(&[0x80], HOUR + MINUTE);
    bench.subscribed(&[1], HOUR + MINUTE);
    assert_eq!(bench.session.deadline(), None);
    assert_eq!(asked(&bench.session.set_rules(UpstreamRules::new(&same), HOUR + MINUTE)), [""; 0]);
}

#[test]
fn what_brings_down_nothing_is_known_over_connections_until_it_is_granted_or_not_wanted_any_more() {
    let rules = |names: &[&str]| names.iter().map(|name| rule(name, "", "", Qos::AtLeastOnce)).collect::<Vec<_>>();
    let mut bench = Bench::new(|settings| settings.inbound = rules(&["a/#", "b/#", "c/#"]));
    let refused = |filter: &str| format!("{filter} (refused, reason code 0x87)");
    for _ in 0..3 {
        bench.session.connected(V5, 0);
        bench.subscribed(&[0x87, 1, 0x87], 0);
        assert_eq!(bench.session.missing_subscriptions(), [refused("a/#"), refused("c/#")]);
        bench.disconnect(&Broken::Failed(String::new()));
        assert_eq!(bench.session.missing_subscriptions().len(), 2, "nothing else is known yet");
    }
    bench.session.connected(V5, 0);
    bench.subscribed(&[1, 1, 0x87], 0);
    assert_eq!(bench.session.missing_subscriptions(), [refused("c/#")]);
    bench.disconnect(&Broken::Failed(String::new()));
    bench.session.connected(V5, 0);
    bench.session.time(ANSWER_TIMEOUT_MS);
    let silent = ["a/# (not answered)", "b/# (not answered)", "c/# (not answered)"];
    let known = bench.session.missing_subscriptions();
    assert!(known.len() == 3 && silent.iter().all(|silent| known.iter().any(|known| known == silent)), "{known:?}");
    // the answer comes when no rule asks for them any more
    let mut changed = settings();
    changed.inbound = rules(&["b/#"]);
    bench.session.set_rules(UpstreamRules::new(&changed), ANSWER_TIMEOUT_MS);
    assert_eq!(bench.session.missing_subscriptions(), [""; 0]);
    bench.subscribed(&[0x87, 0x87, 0x87], ANSWER_TIMEOUT_MS);
    assert_eq!(bench.session.missing_subscriptions(), [refused("b/#")]);
}

#[test]
fn what_one_address_has_taught_says_nothing_of_another() {
    let mut bench = Bench::new(|settings| settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)]);
    for _ in 0..3 {
        assert_eq!(connect(&mut bench, 0), ["a/#"]);
        bench.disconnect(&Broken::Closed);
    }
    assert_eq!(connect(&mut bench, 0), [""; 0], "it is left out");
    assert_eq!(bench.session.missing_subscriptions(), ["a/# (left out, connections end at it)"]);
    bench.disconnect(&Broken::Dismissed(RETAIN_NOT_SUPPORTED, String::new()));
    bench.session.at_address(1);
    assert_eq!(asked(&bench.session.connected(V4, 0)), ["a/#"]);
    assert!(!bench.session.is_retain_refused());
    bench.subscribed(&[1], 0);
    bench.disconnect(&Broken::Failed(String::new()));
    bench.session.at_address(0);
    assert_eq!(connect(&mut bench, 0), [""; 0]);
    assert!(bench.session.is_retain_refused());
}

#[test]
fn messages_and_suspected_parts_take_turns() {
    let mut bench = Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtLeastOnce)];
    });
    connect(&mut bench, 0);
    bench.disconnect(&Broken::Closed);
    assert!(bench.session.is_cause_clear(0), "the next connection asks for one thing at a time");
    // there are always more messages
    bench.append_many(0..100);
    assert_eq!(connect(&mut bench, 0), [""; 0]);
    assert_eq!(bench.deliver(1), ["0", "1", "2", "3"]);
    assert_eq!(bench.session.deadline(), Some(TURN_MS));
    assert_eq!(asked(&bench.session.time(TURN_MS)), [""; 0], "what was sent is answered first");
    assert_eq!(bench.session.room(Role::Live), 0);
    for id in 1..=4 {
        bench.ack(id, 0);
    }
    assert_eq!(next(&mut bench, TURN_MS), ["a/#"]);
    assert!(bench.sent.is_empty(), "it is alone");
    bench.subscribed(&[1], TURN_MS);
    assert_eq!(next(&mut bench, TURN_MS), [""; 0], "messages have a turn");
    assert_eq!(bench.deliver(5), ["4", "5", "6", "7"]);
    // the end of the connection concerns these messages, and on the next one the parts go first
    bench.disconnect(&Broken::Closed);
    assert!(bench.session.suspicion.is_active());
    assert_eq!(connect(&mut bench, 0), ["a/#"]);
    assert_eq!(asked(&bench.subscribed(&[1], 0)), ["b/#"]);
}

#[test]
fn a_part_is_not_blamed_for_what_a_message_may_have_done() {
    for qos in [OutQos::AtMostOnce, OutQos::AtLeastOnce] {
        let mut bench = Bench::new(|settings| {
            settings.out = vec![rule("#", "", "up/", qos)];
            settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)];
        });
        connect(&mut bench, 0);
        bench.disconnect(&Broken::Closed);
        bench.append_many(0..1);
        connect(&mut bench, 0);
        bench.deliver(1);
        let now = if qos == OutQos::AtMostOnce { 0 } else { TURN_MS + ANSWER_MS };
        let actions = bench.session.time(TURN_MS);
        bench.perform(actions);
        let actions = bench.session.time(now);
        bench.perform(actions);
        assert_eq!(next(&mut bench, now), ["a/#"], "{qos:?}");
        bench.disconnect_at(&Broken::Closed, now);
        assert!(!bench.session.is_cause_clear(now) && !bench.session.suspicion.is_active());
        // the parts go first, and now it is clear
        bench.append_many(1..2);
        for _ in 0..2 {
            assert_eq!(connect(&mut bench, now), ["a/#"], "{qos:?}");
            assert!(bench.sent.is_empty());
            bench.disconnect_at(&Broken::Closed, now);
            assert!(bench.session.is_cause_clear(now));
            connect(&mut bench, now);
            bench.deliver(1);
            next(&mut bench, now);
            bench.disconnect_at(&Broken::Closed, now);
        }
    }
}

#[test]
fn what_no_rule_asks_for_any_more_is_not_asked_for_later() {
    let with = |filters: &[&str]| {
        let mut changed = settings();
        changed.inbound = filters.iter().map(|filter| rule(filter, "", "", Qos::AtLeastOnce)).collect();
        changed
    };
    let mut bench = Bench::new(|settings| settings.inbound = with(&["a/#", "b/#", "c/#"]).inbound);
    connect(&mut bench, 0);
    bench.disconnect(&Broken::Closed);
    assert_eq!(connect(&mut bench, 0), ["a/#"]);
    bench.session.set_rules(UpstreamRules::new(&with(&["a/#", "c/#"])), 0);
    bench.subscribed(&[1], 0);
    assert_eq!(next(&mut bench, 0), ["c/#"]);
}

#[test]
fn a_status_without_an_answer_goes_last() {
    let mut bench = Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)];
        settings.status_topic = Some(crate::message::Topic::new("status").unwrap());
    });
    let link = Link { max_qos: Qos::AtMostOnce, ..V4 };
    for expected in [&["a/#"][..], &["a/#"], &["a/#"], &[]] {
        bench.sent.clear();
        let actions = bench.session.connected(link, 0);
        bench.perform(actions);
        assert_eq!(next(&mut bench, 0), expected);
        if !expected.is_empty() {
            bench.disconnect(&Broken::Closed);
        }
    }
    assert_eq!(bench.deliver(1), ["online"]);
}

/// Two rules and a status.
fn three_parts() -> Bench {
    Bench::new(|settings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtLeastOnce)];
        settings.status_topic = Some(crate::message::Topic::new("status").unwrap());
    })
}

/// What the upstream has received since the last call: filters, and payloads of messages.
fn arrived(bench: &mut Bench) -> Vec<String> {
    let mut arrived = std::mem::take(&mut bench.asked).concat();
    arrived.extend(bench.deliver(1));
    arrived
}

#[test]
fn what_is_left_out_because_nothing_was_answered_comes_back_with_the_first_answer() {
    for why in [Broken::Silent, Broken::Closed] {
        let mut bench = three_parts();
        // it accepts connections and answers nothing else, for as long as each part needs to be left out
        for round in 0..40 {
            let now = round * 100;
            let actions = bench.session.connected(V4, now);
            assert_eq!(actions.contains(&SessionAction::Ping), round > 1, "{why:?} {round}");
            bench.perform(actions);
            next(&mut bench, now);
            bench.sent.clear();
            bench.disconnect_at(&why, now);
        }
        let now = 5_000;
        assert_eq!(connect(&mut bench, now), [""; 0], "{why:?}");
        assert_eq!(arrived(&mut bench), [""; 0], "all are left out");
        // the answer to the ping
        let actions = bench.session.is_alive(now);
        bench.perform(actions);
        let mut seen = Vec::new();
        for _ in 0..3 {
            bench.pump(now);
            let part = arrived(&mut bench);
            assert_eq!(part.len(), 1, "{part:?}");
            let actions = match part[0].as_str() {
                "online" => bench.session.acked(1, 0, now),
                _ => bench.subscribed(&[1], now),
            };
            bench.perform(actions);
            seen.extend(part);
        }
        seen.sort();
        assert_eq!(seen, ["a/#", "b/#", "online"], "{why:?}");
        bench.disconnect_at(&Broken::Failed(String::new()), now);
        let actions = bench.session.connected(V4, now);
        assert_eq!(asked(&actions), ["a/#", "b/#"], "nothing is suspected any more");
        assert!(!bench.session.is_retain_refused());
    }
}

#[test]
fn a_part_at_which_an_upstream_goes_silent_that_was_alive_stays_left_out() {
    const MINUTE: u64 = 60_000;
    let mut bench = Bench::new(|settings| settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce)]);
    bench.session.connected(V4, 0);
    bench.disconnect(&Broken::Silent);
    assert_eq!(connect(&mut bench, 0), ["a/#"]);
    bench.disconnect(&Broken::Silent);
    // it answers the ping, and goes silent at the subscription again
    assert_eq!(connect(&mut bench, 0), [""; 0]);
    let actions = bench.session.is_alive(0);
    bench.perform(actions);
    assert_eq!(next(&mut bench, 0), ["a/#"]);
    bench.disconnect(&Broken::Silent);
    for (now, wait) in [(0, MINUTE), (MINUTE, 2 * MINUTE), (3 * MINUTE, 4 * MINUTE)] {
        assert_eq!(connect(&mut bench, now), [""; 0]);
        let actions = bench.session.is_alive(now);
        bench.perform(actions);
        assert_eq!(next(&mut bench, now), [""; 0], "that is proof");
        assert_eq!(bench.session.deadline(), Some(now + wait));
        bench.time(now + wait);
        assert_eq!(next(&mut bench, now + wait), ["a/#"]);
        bench.disconnect_at(&Broken::Silent, now + wait);
    }
}

#[test]
fn a_status_is_said_without_the_flag_only_if_the_upstream_was_alive_when_it_ended_connections() {
    for takes_flag in [true, false] {
        let mut bench =
            Bench::new(|settings| settings.status_topic = Some(crate::message::Topic::new("status").unwrap()));
        let mut said = Vec::new();
        for round in 0..8 {
            connect(&mut bench, 0);
            if round > 2 {
                let actions = bench.session.is_alive(0);
                bench.perform(actions);
            }
            // it is being started, and closes each connection at first
            while let Some(status) = std::mem::take(&mut bench.sent).pop() {
                said.push(status.retain);
                let actions = bench.session.sent(1);
                bench.perform(actions);
                if round <= 2 || status.retain && !takes_flag {
                    break;
                }
                bench.ack(1, 0);
                bench.pump(0);
            }
            bench.disconnect(&Broken::Closed);
        }
        assert_eq!(bench.session.is_retain_refused(), !takes_flag);
        let with_flag = said.iter().filter(|retain| **retain).count();
        assert!(if takes_flag { with_flag >= 7 } else { with_flag <= 5 }, "{said:?}");
    }
}

#[test]
fn what_an_upstream_that_hangs_does_not_answer_is_asked_for_with_its_first_answer() {
    let rules = |settings: &mut UpstreamSettings| {
        settings.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtLeastOnce)];
    };
    let mut bench = Bench::new(rules);
    connect(&mut bench, 0);
    let minute = ANSWER_TIMEOUT_MS;
    // it answers pings, and nothing else
    bench.session.is_alive(minute - 1);
    bench.time(minute);
    assert_eq!(next(&mut bench, minute), [""; 0]);
    bench.session.is_alive(minute + 1);
    assert_eq!(next(&mut bench, minute + 1), [""; 0]);
    bench.append_many(0..2);
    bench.pump(minute + 2);
    assert_eq!(bench.deliver(1), ["0", "1"]);
    bench.ack(1, 0);
    assert_eq!(next(&mut bench, minute + 2), ["a/#", "b/#"]);
    // it answers messages and not these, so it is not asked at each answer
    bench.ack(2, 0);
    bench.time(2 * minute + 2);
    bench.append_many(2..3);
    bench.pump(2 * minute + 2);
    bench.deliver(3);
    bench.ack(3, 0);
    assert_eq!(next(&mut bench, 2 * minute + 2), [""; 0]);
}

#[test]
fn a_reload_says_a_status_that_was_left_out() {
    let mut bench = three_parts();
    for _ in 0..40 {
        connect(&mut bench, 0);
        bench.sent.clear();
        bench.disconnect(&Broken::Silent);
    }
    connect(&mut bench, 0);
    assert_eq!(arrived(&mut bench), [""; 0]);
    let mut same = settings();
    same.inbound = vec![rule("a/#", "", "", Qos::AtLeastOnce), rule("b/#", "", "", Qos::AtLeastOnce)];
    let actions = bench.session.set_rules(UpstreamRules::new(&same), 0);
    bench.perform(actions);
    assert_eq!(arrived(&mut bench), ["a/#", "b/#", "online"]);
}

#[test]
fn answers_to_subscriptions_belong_to_what_was_asked() {
    let names: Vec<String> = (0..20).map(|number| format!("f{number:02}/#")).collect();
    let mut bench = Bench::new(|settings| {
        settings.inbound = names.iter().map(|name| rule(name, "", "", Qos::AtLeastOnce)).collect();
    });
    let actions = bench.session.connected(V4, 0);
    let packets = actions.iter().filter(|action| matches!(action, SessionAction::Subscribe(..))).count();
    assert_eq!((packets, asked(&actions).len()), (3, 20));
    // the last is answered first, the second is refused in part, the first is never answered, and one was not asked for
    let refused = |bench: &Bench| {
        let left_out = names.iter().filter(|name| bench.session.opening.has_left_out(&filter(name)));
        left_out.cloned().collect::<Vec<_>>()
    };
    bench.session.subscribed(2, &[1; 4], 0);
    bench.session.subscribed(7, &[0x80; 8], 0);
    bench.session.subscribed(1, &[1, 0x87, 1, 1, 1, 1, 1, 1], 0);
    bench.session.subscribed(1, &[0x80; 8], 0);
    bench.session.unasked(7, 0);
    assert_eq!(refused(&bench), ["f09/#"]);
    assert_eq!(bench.session.oldest_asked(), Some(0));
    bench.time(ANSWER_TIMEOUT_MS);
    assert_eq!(refused(&bench), [&names[..8], &["f09/#".to_owned()]].concat());
}
