use super::super::*;
use super::{Bench, V4, V5, draft, rule, settings};
use crate::journal::{Limits, WhenFull};
use crate::message::Draft;
use crate::upstream::settings::OutQos;

const PRESENT: Link = Link { session_present: true, ..V5 };

fn exact() -> Bench {
    Bench::new(|settings| settings.out = vec![rule("#", "", "", OutQos::ExactlyOnce)])
}

/// Sends all messages for which there is room, and returns their texts and packet ids.
fn send(bench: &mut Bench, now: u64) -> Vec<(String, u16)> {
    bench.pump(now);
    let ids: Vec<u16> = bench.sent.iter().map(|message| message.packet_id.unwrap_or_default()).collect();
    bench.deliver(1).into_iter().zip(ids).collect()
}

fn reconnect(bench: &mut Bench) {
    bench.disconnect(&Broken::Failed(String::new()));
    bench.connect(PRESENT);
}

fn record(bench: &mut Bench, packet_id: u16, now: u64) {
    let actions = bench.session.recorded(packet_id, now);
    bench.perform(actions);
}

fn complete(bench: &mut Bench, packet_id: u16) {
    let actions = bench.session.completed(packet_id, 0);
    bench.perform(actions);
}

#[test]
fn an_upstream_that_answers_with_puback_has_the_message() {
    // like RabbitMQ, which treats QoS 2 as 1
    let mut bench = exact();
    bench.append_many(0..2);
    bench.connect(V5);
    for (_, packet_id) in send(&mut bench, 0) {
        bench.ack(packet_id, 0);
    }
    assert_eq!((bench.ledger().acked, bench.session.in_flight()), (2, 0));
}

#[test]
fn what_the_upstream_has_from_before_is_released_before_anything_else_is_sent() {
    let mut bench = Bench::new(|settings| {
        settings.out = vec![rule("#", "", "", OutQos::ExactlyOnce)];
        settings.inbound = vec![rule("in/#", "", "", Qos::AtLeastOnce)];
        settings.status_topic = Some(crate::message::Topic::new("status").unwrap());
    });
    bench.append_many(0..2);
    bench.connect(V5);
    bench.pump(0);
    let exact: Vec<u16> = bench.sent[1..].iter().map(|message| message.packet_id.unwrap()).collect();
    assert_eq!(bench.deliver(1), ["online", "0", "1"]);
    record(&mut bench, exact[0], 0);
    bench.asked.clear();
    reconnect(&mut bench);
    bench.pump(0);
    assert_eq!(bench.asked, [["in/#"]], "what is no message can go at once");
    assert_eq!(bench.deliver(1), ["0", "1"]);
    for packet_id in exact {
        assert!(bench.sent.is_empty(), "not all are complete");
        record(&mut bench, packet_id, 0);
        bench.session.released(packet_id, 0);
        complete(&mut bench, packet_id);
        bench.pump(0);
    }
    assert_eq!(bench.deliver(1), ["online"]);
}

#[test]
fn a_status_that_the_upstream_has_no_room_for_is_sent_again() {
    let mut bench = Bench::new(|settings| settings.status_topic = Some(crate::message::Topic::new("status").unwrap()));
    bench.connect(V5);
    for now in [0, 10_000, 20_000] {
        bench.time(now);
        assert_eq!(bench.deliver(1), ["online"], "{now}");
        let actions = bench.session.acked(1, if now < 20_000 { 0x97 } else { 0 }, now);
        bench.perform(actions);
        bench.pump(now);
    }
    bench.time(40_000);
    assert!(bench.sent.is_empty());
}

#[test]
fn breaks_before_the_status_do_not_put_it_before_what_is_to_be_released() {
    let mut bench = Bench::new(|settings| {
        settings.out = vec![rule("#", "", "", OutQos::ExactlyOnce)];
        settings.status_topic = Some(crate::message::Topic::new("status").unwrap());
    });
    bench.append_many(0..2);
    bench.connect(V5);
    bench.pump(0);
    bench.deliver(1);
    for _ in 0..3 {
        reconnect(&mut bench);
        assert_eq!(bench.deliver(1), [""; 0], "the upstream may have no room");
        bench.pump(0);
        assert_eq!(bench.deliver(1), ["0", "1"]);
    }
}

#[test]
fn a_lane_with_exchanges_from_before_is_known_until_they_are_sent_again() {
    let present = Link { session_present: true, ..V4 };
    let mut bench = exact();
    bench.append_many(0..8);
    bench.connect(V4);
    assert_eq!(send(&mut bench, 0).len(), 4);
    assert!(!bench.session.resumes(Lane::First));
    bench.disconnect(&Broken::Failed(String::new()));
    bench.connect(present);
    assert!(bench.session.resumes(Lane::First) && !bench.session.resumes(Lane::Second));
    assert_eq!(send(&mut bench, 0).len(), 4);
    assert!(!bench.session.resumes(Lane::First));
    // one that can say that it has no room need not be spared
    reconnect(&mut bench);
    assert!(!bench.session.resumes(Lane::First));
    // after a restart as many as fit into the window may have been sent
    bench.disconnect(&Broken::Failed(String::new()));
    let oldest = bench.journal.maybe_sent(bench.consumer, 0).start;
    bench.session.forget_exchanges();
    bench.session.may_have_begun(Lane::First, oldest..oldest + 8);
    bench.connect(present);
    assert!(bench.session.resumes(Lane::First));
    assert_eq!(send(&mut bench, 0).len(), 4);
    assert!(!bench.session.resumes(Lane::First));
}

#[test]
fn what_expires_between_two_connections_leaves_no_packet_id_behind() {
    let mut bench = exact();
    bench.append(&Draft { expiry: Some(10), ..draft("t", b"late") });
    bench.append(&draft("t", b"in time"));
    bench.connect(V5);
    let sent = send(&mut bench, 0);
    reconnect(&mut bench);
    assert_eq!(send(&mut bench, 20_000), sent[1..]);
    assert_eq!((bench.released.clone(), bench.ledger().expired), (vec![sent[0].1], 1));
}

#[test]
fn what_makes_room_between_two_connections_leaves_no_packet_id_behind() {
    let mut bench = exact();
    bench.append_many(0..2);
    bench.connect(V5);
    let sent = send(&mut bench, 0);
    record(&mut bench, sent[0].1, 0);
    bench.disconnect(&Broken::Silent);
    let limits = Limits { messages: 2, bytes: 1 << 20, when_full: WhenFull::DropOldest };
    bench.journal.register("upstream/home", limits);
    bench.append_many(2..4);
    bench.connect(PRESENT);
    assert_eq!(send(&mut bench, 0).len(), 2);
    assert_eq!(bench.released, [sent[0].1, sent[1].1]);
    assert_eq!(bench.ledger().dropped.journal_full, 2);
}

#[test]
fn what_makes_room_after_a_restart_leaves_no_packet_id_behind() {
    let mut bench = exact();
    // more than the window, and more than are freed at once
    bench.append_many(0..40);
    let oldest = bench.journal.maybe_sent(bench.consumer, 0).start;
    bench.session.may_have_begun(Lane::First, oldest..oldest + 41);
    let limits = Limits { messages: 2, bytes: 1 << 20, when_full: WhenFull::DropOldest };
    bench.journal.register("upstream/home", limits);
    bench.append_many(40..41);
    bench.connect(PRESENT);
    let sent = send(&mut bench, 0);
    assert_eq!((sent.len(), bench.released.len()), (2, 16));
    for at in 0..39 {
        let packet_id = bench.released[at];
        complete(&mut bench, packet_id);
    }
    assert_eq!(bench.released.len(), 39, "those that gave way");
    assert_eq!(bench.released[38] + 1, sent[0].1);
}

#[test]
fn a_packet_id_is_released_until_the_upstream_has_answered() {
    let mut bench = exact();
    bench.append(&Draft { expiry: Some(10), ..draft("t", b"late") });
    bench.connect(V5);
    let packet_id = send(&mut bench, 0)[0].1;
    reconnect(&mut bench);
    assert!(send(&mut bench, 20_000).is_empty());
    assert_eq!(bench.released, [packet_id]);
    reconnect(&mut bench);
    assert_eq!(bench.released, [packet_id, packet_id], "nobody knows whether that has arrived");
    complete(&mut bench, packet_id);
    reconnect(&mut bench);
    assert_eq!(bench.released.len(), 2);
}

#[test]
fn a_message_that_is_set_aside_leaves_no_packet_id_behind() {
    let mut bench = exact();
    bench.append_many(0..8);
    let (mut bad, mut now) = (0, 0);
    while bench.ledger().dropped.ends_connection == 0 {
        now += 6_000;
        let actions = bench.session.connected(PRESENT, now);
        bench.perform(actions);
        'connection: loop {
            let sent = send(&mut bench, now);
            assert!(!sent.is_empty());
            for (text, packet_id) in sent {
                if text == "1" {
                    bad = packet_id;
                    bench.disconnect_at(&Broken::Closed, now);
                    break 'connection;
                }
                record(&mut bench, packet_id, now);
                bench.session.released(packet_id, now);
                let actions = bench.session.completed(packet_id, now);
                bench.perform(actions);
            }
        }
    }
    bench.append_many(8..9);
    bench.connect(PRESENT);
    bench.released.clear();
    assert!(!send(&mut bench, 0).is_empty());
    assert_eq!(bench.released, [bad]);
}

#[test]
fn a_message_whose_rule_has_another_qos_now_leaves_no_packet_id_behind() {
    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    let sent = send(&mut bench, 0);
    let mut changed = settings();
    changed.out = vec![rule("t", "", "", OutQos::AtLeastOnce), rule("other", "", "", OutQos::ExactlyOnce)];
    bench.session.set_rules(UpstreamRules::new(&changed), 0);
    reconnect(&mut bench);
    assert_eq!(send(&mut bench, 0), [("0".into(), 0)]);
    assert_eq!(bench.released, [sent[0].1]);
    // in a new session no packet id is in use
    bench.released.clear();
    bench.disconnect(&Broken::Failed(String::new()));
    bench.connect(Link { max_qos: Qos::AtLeastOnce, ..PRESENT });
    assert_eq!(send(&mut bench, 0).len(), 1);
    assert!(bench.released.is_empty(), "the upstream does not know PUBREL");
}

#[test]
fn a_packet_id_in_use_means_that_a_repeated_message_is_there() {
    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    let packet_id = send(&mut bench, 0)[0].1;
    reconnect(&mut bench);
    bench.pump(0);
    assert!(bench.sent[0].is_repeated);
    bench.deliver(1);
    bench.ack(packet_id, 0x91);
    assert_eq!((bench.recorded.clone(), bench.session.deadline()), (vec![packet_id], None));
    bench.session.released(packet_id, 0);
    complete(&mut bench, packet_id);
    assert_eq!(bench.ledger().acked, 1);
}

/// Checks that a refusal with "packet identifier in use" makes the message be sent again, with nothing settled.
fn is_sent_again(mut bench: Bench, why: &str) {
    bench.pump(0);
    assert!(bench.sent[0].is_repeated, "{why}");
    let packet_id = bench.sent[0].packet_id.unwrap();
    bench.deliver(1);
    bench.ack(packet_id, 0x91);
    assert_eq!((bench.recorded.len(), bench.released.clone()), (0, vec![packet_id]), "{why}");
    complete(&mut bench, packet_id);
    bench.session.time(FIRST_PAUSE_MS);
    assert_eq!(send(&mut bench, FIRST_PAUSE_MS).len(), 1, "{why}");
    record(&mut bench, packet_id, 0);
    bench.session.released(packet_id, 0);
    complete(&mut bench, packet_id);
    assert_eq!(bench.ledger().acked, 1, "{why}");
}

#[test]
fn a_packet_id_in_use_says_nothing_where_it_is_not_certain_by_what() {
    let mut bench = exact();
    bench.append_many(0..1);
    let sent = bench.journal.maybe_sent(bench.consumer, 0).start;
    bench.session.may_have_begun(Lane::First, sent..sent + 1);
    bench.connect(PRESENT);
    is_sent_again(bench, "after a crash");

    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    bench.pump(0);
    bench.sent.clear();
    reconnect(&mut bench);
    is_sent_again(bench, "it was handed over and not written");

    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    send(&mut bench, 0);
    bench.disconnect(&Broken::Silent);
    bench.session.doubt_exchanges();
    bench.connect(PRESENT);
    is_sent_again(bench, "the session there is perhaps another one");
}

#[test]
fn a_packet_id_in_use_by_something_else_is_freed() {
    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    let packet_id = send(&mut bench, 0)[0].1;
    bench.ack(packet_id, 0x91);
    assert_eq!((bench.recorded.len(), bench.released.clone()), (0, vec![packet_id]));
    complete(&mut bench, packet_id);
    assert_eq!(bench.session.time(FIRST_PAUSE_MS), []);
    bench.pump(FIRST_PAUSE_MS);
    assert!(!bench.sent[0].is_repeated, "its exchange was ended by the refusal");
    bench.deliver(1);
    complete(&mut bench, packet_id);
    assert_eq!(bench.ledger().acked, 0, "PUBCOMP is not for this message");
    record(&mut bench, packet_id, 0);
    bench.session.released(packet_id, 0);
    complete(&mut bench, packet_id);
    assert_eq!(bench.ledger().acked, 1);
}

#[test]
fn a_slow_disk_is_not_taken_for_a_silent_upstream() {
    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    let packet_id = send(&mut bench, 0)[0].1;
    assert_eq!(bench.session.deadline(), Some(ANSWER_TIMEOUT_MS));
    record(&mut bench, packet_id, 10);
    assert_eq!(bench.session.deadline(), None, "PUBREL has not left");
    bench.session.released(packet_id, 5 * ANSWER_TIMEOUT_MS);
    assert_eq!(bench.session.deadline(), Some(6 * ANSWER_TIMEOUT_MS));
}

#[test]
fn packet_ids_are_not_used_again_while_an_old_message_is_in_flight() {
    let mut bench = Bench::new(|settings| {
        settings.out = vec![rule("#", "", "", OutQos::ExactlyOnce)];
        settings.max_inflight = u16::MAX;
    });
    bench.append_many(0..1);
    bench.connect(PRESENT);
    let packet_id = send(&mut bench, 0)[0].1;
    let (first, mut ordinal) = (packet_id, u64::from(packet_id - 0x4000));
    while bench.session.has_room(Role::Live) {
        ordinal += 1;
        bench.session.begin_exchange(Lane::First, ordinal, &mut Vec::new());
    }
    assert_eq!(ordinal, u64::from(first - 0x4000) + 0x2000);
    record(&mut bench, first, 0);
    bench.session.released(first, 0);
    complete(&mut bench, first);
    assert!(bench.session.has_room(Role::Live), "nothing older is in flight");
}

#[test]
fn what_is_known_of_a_message_outlives_a_connection_that_does_not_get_to_send_it() {
    let mut bench = exact();
    bench.append_many(0..1);
    bench.connect(V5);
    let packet_id = send(&mut bench, 0)[0].1;
    for _ in 0..2 {
        reconnect(&mut bench);
        bench.pump(0);
        assert!(std::mem::take(&mut bench.sent)[0].is_repeated);
    }
    reconnect(&mut bench);
    bench.pump(0);
    bench.deliver(1);
    bench.ack(packet_id, 0x91);
    assert_eq!((bench.recorded.clone(), bench.released.len()), (vec![packet_id], 0));
}

#[test]
fn what_is_known_of_a_message_outlives_a_pause() {
    let mut bench = exact();
    bench.append_many(0..2);
    bench.connect(V5);
    let sent = send(&mut bench, 0);
    reconnect(&mut bench);
    bench.pump(0);
    bench.sent.truncate(1);
    bench.deliver(1);
    // the other message is held back on this connection
    bench.session.in_flight[1].held = true;
    bench.session.held = 1;
    bench.ack(sent[0].1, 0x97);
    bench.session.time(FIRST_PAUSE_MS);
    bench.pump(FIRST_PAUSE_MS);
    assert_eq!(bench.sent.iter().map(|message| message.is_repeated).collect::<Vec<_>>(), [false, true]);
    bench.deliver(1);
    bench.ack(sent[1].1, 0x91);
    assert_eq!((bench.recorded.clone(), bench.released.len()), (vec![sent[1].1], 0));
}
