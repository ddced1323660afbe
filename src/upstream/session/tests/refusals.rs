use super::super::refusals::REMEMBERED_MS;
use super::super::*;
use super::{Bench, V4, V5, draft};
use crate::message::{Draft, Topic};
use crate::upstream::rule::tests::{rule, settings};
use crate::upstream::settings::OutQos;

/// What the upstream accepts nothing of, as a reason code.
const NO_FLAG: u8 = RETAIN_NOT_SUPPORTED;

fn with_status(settings: &mut UpstreamSettings) {
    settings.status_topic = Some(Topic::new("status").unwrap());
}

/// Takes the only message that was sent, answers it, and returns whether it had the retain flag.
fn answer(bench: &mut Bench, reason: u8, now: u64) -> bool {
    assert_eq!(bench.sent.len(), 1, "{:?}", bench.sent);
    let retain = bench.sent[0].retain;
    bench.deliver(1);
    let actions = bench.session.acked(1, reason, now);
    bench.perform(actions);
    retain
}

fn connect(bench: &mut Bench, link: Link, now: u64) {
    let actions = bench.session.connected(link, now);
    bench.perform(actions);
    bench.pump(now);
}

fn reload(bench: &mut Bench, settings: &UpstreamSettings, now: u64) {
    let actions = bench.session.set_rules(UpstreamRules::new(settings), now);
    bench.perform(actions);
}

#[test]
fn a_refused_flag_is_tried_again_after_an_hour_and_by_a_reload() {
    let mut bench = Bench::new(with_status);
    connect(&mut bench, V5, 0);
    assert!(answer(&mut bench, NO_FLAG, 0));
    assert!(!answer(&mut bench, 0, 0), "the status is said without it");
    for now in [1, REMEMBERED_MS - 1] {
        bench.disconnect_at(&Broken::Failed(String::new()), now);
        connect(&mut bench, V5, now);
        assert!(!answer(&mut bench, 0, now), "that costs nothing any more");
    }
    assert_eq!(bench.session.deadline(), Some(REMEMBERED_MS));
    bench.time(REMEMBERED_MS);
    assert!(answer(&mut bench, NO_FLAG, REMEMBERED_MS));
    assert!(!answer(&mut bench, 0, REMEMBERED_MS));
    assert_eq!(bench.session.deadline(), Some(2 * REMEMBERED_MS));
    reload(&mut bench, &settings(), REMEMBERED_MS + 1);
    assert!(answer(&mut bench, 0, REMEMBERED_MS + 1));
    assert!(!bench.session.is_retain_refused() && bench.session.deadline().is_none());
    assert!(bench.session.take_wants_retained() && !bench.session.take_wants_retained());
    reload(&mut bench, &settings(), REMEMBERED_MS + 2);
    assert!(bench.sent.is_empty(), "nothing is refused");
}

#[test]
fn an_upstream_that_closes_at_the_flag_does_so_twice_an_hour() {
    let mut bench = Bench::new(with_status);
    bench.session.connected(V4, 0);
    bench.disconnect(&Broken::Dismissed(NO_FLAG, String::new()));
    let mut flags = Vec::new();
    for now in [1, 2, 3, 4, 5, 6].map(|step| REMEMBERED_MS + step) {
        bench.sent.clear();
        connect(&mut bench, V4, now);
        let actions = bench.session.is_alive(now);
        bench.perform(actions);
        flags.push(bench.sent[0].retain);
        match bench.sent[0].retain {
            true => bench.disconnect_at(&Broken::Closed, now),
            false => {
                answer(&mut bench, 0, now);
                bench.disconnect_at(&Broken::Failed(String::new()), now);
            }
        }
    }
    assert_eq!(flags, [true, true, false, false, false, false]);
}

#[test]
fn messages_that_were_sent_without_the_flag_are_sent_again_when_it_is_taken() {
    let mut bench = Bench::new(|settings| settings.out = vec![rule("#", "", "up/", OutQos::AtLeastOnce)]);
    let retained = Draft { retain: true, ..draft("t", b"1") };
    bench.append(&retained);
    connect(&mut bench, V5, 0);
    assert!(answer(&mut bench, NO_FLAG, 0));
    bench.pump(0);
    assert!(!answer(&mut bench, 0, 0) && !bench.session.take_wants_retained());
    bench.time(REMEMBERED_MS);
    bench.append(&retained);
    bench.pump(REMEMBERED_MS);
    assert!(answer(&mut bench, 0, REMEMBERED_MS) && bench.session.take_wants_retained());
}

#[test]
fn a_refused_qos_2_is_tried_again_after_an_hour_and_by_a_reload() {
    let mut bench = Bench::new(|settings| settings.out = vec![rule("#", "", "up/", OutQos::ExactlyOnce)]);
    let mut same = settings();
    same.out = vec![rule("#", "", "up/", OutQos::ExactlyOnce)];
    let sent_at = |bench: &mut Bench, now: u64| {
        bench.sent.clear();
        connect(bench, V5, now);
        bench.sent[0].qos
    };
    bench.append_many(0..1);
    assert_eq!(sent_at(&mut bench, 0), Qos::ExactlyOnce);
    bench.disconnect(&Broken::Dismissed(QOS_NOT_SUPPORTED, String::new()));
    for now in [1, REMEMBERED_MS - 1] {
        assert_eq!(sent_at(&mut bench, now), Qos::AtLeastOnce);
        bench.disconnect_at(&Broken::Failed(String::new()), now);
    }
    assert_eq!(sent_at(&mut bench, REMEMBERED_MS), Qos::ExactlyOnce);
    bench.disconnect_at(&Broken::Dismissed(QOS_NOT_SUPPORTED, String::new()), REMEMBERED_MS);
    assert_eq!(sent_at(&mut bench, REMEMBERED_MS), Qos::AtLeastOnce);
    reload(&mut bench, &same, REMEMBERED_MS);
    assert!(bench.renewed, "the next connection asks for it");
    bench.disconnect_at(&Broken::Failed(String::new()), REMEMBERED_MS);
    assert_eq!(sent_at(&mut bench, REMEMBERED_MS), Qos::ExactlyOnce);
}

#[test]
fn after_a_change_of_the_address_the_status_is_said_again_once() {
    let mut bench = Bench::new(|settings| {
        with_status(settings);
        settings.keep_alive = std::time::Duration::from_secs(60);
    });
    connect(&mut bench, V4, 0);
    answer(&mut bench, 0, 0);
    assert_eq!(bench.session.deadline(), None);
    bench.disconnect(&Broken::Silent);
    bench.session.at_address(1);
    connect(&mut bench, V4, 10);
    answer(&mut bench, 0, 10);
    // the will of the old connection may be published until then, in a cluster
    let due = 120_010;
    assert_eq!(bench.session.deadline(), Some(due));
    bench.time(due - 1);
    assert!(bench.sent.is_empty());
    bench.time(due);
    answer(&mut bench, 0, due);
    assert_eq!(bench.session.deadline(), None);
    bench.disconnect(&Broken::Silent);
    connect(&mut bench, V4, due);
    answer(&mut bench, 0, due);
    assert_eq!(bench.session.deadline(), None, "the address is the same");
}
