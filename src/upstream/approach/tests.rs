use super::super::settings::UpstreamAddress;
use super::*;
use crate::message::Topic;

fn settings(protocol: Protocol) -> UpstreamSettings {
    let address = UpstreamAddress::parse("mqtt://h").unwrap();
    let mut settings = UpstreamSettings::new("home", vec![address], "gateway");
    settings.protocol = protocol;
    settings
}

/// The attempts that are made if these are the answers.
fn offers(
    settings: &UpstreamSettings,
    approach: &mut Approach,
    answers: &[Option<Broken>],
) -> Vec<(Version, StatusWill)> {
    let mut offers = Vec::new();
    for (now, answer) in answers.iter().enumerate() {
        let offer = approach.offer(settings, 0, false, now as u64);
        offers.push((offer.version, offer.will));
        match answer {
            None => drop(approach.accepted(settings, 0, offer, now as u64)),
            Some(why) => drop(approach.failed(settings, 0, offer, why, now as u64)),
        }
    }
    offers
}

fn versions(settings: &UpstreamSettings, approach: &mut Approach, answers: &[Option<Broken>]) -> String {
    let digit = |version| if version == Version::V5 { '5' } else { '4' };
    offers(settings, approach, answers).into_iter().map(|(version, _)| digit(version)).collect()
}

#[test]
fn version_3_1_1_is_tried_on_evidence_only() {
    use Broken::{Closed, Failed, Garbled, Refused, Silent, Version};
    let down = || Some(Failed("no route".into()));
    let auto = settings(Protocol::Auto);
    for (answers, expected) in [
        (vec![Some(Version), None, None], "544"),
        (vec![Some(Silent), None, None], "544"),
        (vec![Some(Garbled), None, None], "544"),
        (vec![Some(Garbled), Some(Garbled), Some(Garbled), Some(Garbled)], "5454"),
        (vec![None, Some(Garbled), Some(Garbled)], "555"),
        (vec![Some(Closed), None, None], "555"),
        (vec![Some(Closed), Some(Closed), None, None], "5544"),
        (vec![Some(Closed), Some(Closed), Some(Closed), Some(Closed)], "5545"),
        (vec![Some(Closed), down(), Some(Closed), None], "5555"),
        (vec![down(), down(), down(), down()], "5555"),
        (vec![Some(Refused(0x87, String::new())); 4], "5555"),
        // version 5 has worked before
        (vec![None, Some(Closed), Some(Closed), Some(Closed), Some(Silent)], "55555"),
        (vec![None, Some(Closed), Some(Closed), Some(Closed), Some(Closed), Some(Closed), None], "5555554"),
        (vec![None, Some(Silent), Some(Silent), Some(Silent), Some(Silent), Some(Silent), None], "5555554"),
        (vec![None, Some(Garbled), Some(Closed), Some(Silent), Some(Garbled), Some(Closed), None], "5555554"),
        (vec![None, Some(Silent), Some(Silent), Some(Silent), down(), Some(Silent), Some(Silent)], "5555555"),
        (vec![None, Some(Version), None], "554"),
    ] {
        assert_eq!(versions(&auto, &mut Approach::default(), &answers), expected, "{answers:?}");
    }
    for (protocol, expected) in [(Protocol::V4, "444"), (Protocol::V5, "555")] {
        let answers = [Some(Version), Some(Silent), Some(Closed)];
        assert_eq!(versions(&settings(protocol), &mut Approach::default(), &answers), expected);
    }
    let v5_only = UpstreamSettings { v5_only: true, ..auto };
    assert_eq!(versions(&v5_only, &mut Approach::default(), &[Some(Version), Some(Silent), None]), "555");
}

#[test]
fn version_5_is_tried_again_after_an_hour() {
    let auto = settings(Protocol::Auto);
    let mut approach = Approach::default();
    assert_eq!(versions(&auto, &mut approach, &[Some(Broken::Version), None]), "54");
    assert_eq!(approach.offer(&auto, 0, false, REMEMBERED_MS).version, Version::V311);
    assert_eq!(approach.offer(&auto, 0, false, REMEMBERED_MS + 1).version, Version::V5);
    assert_eq!(approach.offer(&auto, 1, false, 1).version, Version::V5, "another address");
}

#[test]
fn a_will_that_is_not_taken_is_left_out() {
    let mut with_will = settings(Protocol::V5);
    with_will.status_topic = Some(Topic::new("status").unwrap());
    let refused = |code| Some(Broken::Refused(code, String::new()));
    for (answers, expected) in [
        (
            vec![refused(RETAIN_NOT_SUPPORTED), None, None],
            [StatusWill::Whole, StatusWill::WithoutRetain, StatusWill::WithoutRetain],
        ),
        (
            vec![refused(QOS_NOT_SUPPORTED), None, None],
            [StatusWill::Whole, StatusWill::AtMostOnce, StatusWill::AtMostOnce],
        ),
        (
            vec![refused(NOT_AUTHORIZED), refused(NOT_AUTHORIZED), None],
            [StatusWill::Whole, StatusWill::Whole, StatusWill::None],
        ),
        (
            vec![Some(Broken::Closed), Some(Broken::Closed), None],
            [StatusWill::Whole, StatusWill::Whole, StatusWill::None],
        ),
    ] {
        let wills: Vec<_> =
            offers(&with_will, &mut Approach::default(), &answers).into_iter().map(|(_, will)| will).collect();
        assert_eq!(wills, expected, "{answers:?}");
    }
    // a wrong password is wrong without a will too
    let answers = vec![refused(NOT_AUTHORIZED); 7];
    let without = offers(&with_will, &mut Approach::default(), &answers);
    assert_eq!(without.iter().filter(|(_, will)| *will == StatusWill::None).count(), 2, "{without:?}");
}

/// The wills of the attempts until one is accepted at this time by an upstream that `takes` them.
fn wills(
    approach: &mut Approach,
    settings: &UpstreamSettings,
    now: u64,
    takes: impl Fn(StatusWill) -> bool,
) -> Vec<StatusWill> {
    let mut wills = Vec::new();
    loop {
        let offer = approach.offer(settings, 0, false, now);
        wills.push(offer.will);
        if takes(offer.will) {
            approach.accepted(settings, 0, offer, now);
            return wills;
        }
        approach.failed(settings, 0, offer, &Broken::Closed, now);
    }
}

#[test]
fn a_will_that_has_worked_survives_an_outage_behind_a_balancer() {
    let mut with_will = settings(Protocol::V5);
    with_will.status_topic = Some(Topic::new("status").unwrap());
    let (mut approach, whole) = (Approach::default(), StatusWill::Whole);
    assert_eq!(wills(&mut approach, &with_will, 0, |_| true), [whole]);
    for now in (1000..200_000).step_by(100) {
        let offer = approach.offer(&with_will, 0, false, now);
        assert_eq!(offer.will, whole, "{now}");
        approach.failed(&with_will, 0, offer, &Broken::Closed, now);
    }
    assert_eq!(wills(&mut approach, &with_will, 200_000, |_| true), [whole]);
    assert_eq!(approach.asks_again_at(0), None);
    // another server, which does not take it, is understood in the end
    let begin = 300_000;
    let mut now = begin;
    while approach.asks_again_at(0).is_none() {
        let offer = approach.offer(&with_will, 0, false, now);
        match offer.will {
            StatusWill::None => assert!(approach.accepted(&with_will, 0, offer, now), "it is said"),
            _ => drop(approach.failed(&with_will, 0, offer, &Broken::Closed, now)),
        }
        now += 1000;
    }
    assert!((PROVEN_MS..PROVEN_MS + 10_000).contains(&(now - begin)), "{now}");
}

#[test]
fn what_was_given_up_without_a_clear_answer_is_asked_for_again_ever_more_rarely() {
    let mut with_will = settings(Protocol::V5);
    with_will.status_topic = Some(Topic::new("status").unwrap());
    let (mut approach, whole, none) = (Approach::default(), StatusWill::Whole, StatusWill::None);
    assert_eq!(wills(&mut approach, &with_will, 0, |will| will == none), [whole, whole, none]);
    let mut pauses = Vec::new();
    let mut now = 0;
    for _ in 0..6 {
        let at = approach.asks_again_at(0).unwrap();
        pauses.push((at - now) / 60_000);
        now = at;
        assert_eq!(wills(&mut approach, &with_will, now - 1, |_| true), [none], "not yet");
        assert_eq!(wills(&mut approach, &with_will, now, |will| will == none), [whole, none], "at once");
    }
    assert_eq!(pauses, [1, 8, 64, 512, 1440, 1440]);
    now = approach.asks_again_at(0).unwrap();
    assert_eq!(wills(&mut approach, &with_will, now, |_| true), [whole]);
    assert_eq!(approach.asks_again_at(0), None);
}

#[test]
fn version_5_is_asked_for_again_if_it_has_worked_before() {
    let auto = settings(Protocol::Auto);
    let mut approach = Approach::default();
    let silent = || Some(Broken::Silent);
    assert_eq!(versions(&auto, &mut approach, &[silent(), None]), "54");
    assert_eq!(approach.asks_again_at(0), None, "an old broker");
    let mut approach = Approach::default();
    let answers = [None, silent(), silent(), silent(), silent(), silent(), None];
    assert_eq!(versions(&auto, &mut approach, &answers), "5555554");
    let at = approach.asks_again_at(0).unwrap();
    assert_eq!(at, 6 + DOUBTFUL_MS);
    let offer = approach.offer(&auto, 0, false, at);
    assert_eq!(offer.version, Version::V5);
    approach.failed(&auto, 0, offer, &Broken::Silent, at);
    let offer = approach.offer(&auto, 0, false, at);
    assert_eq!(offer.version, Version::V311);
    approach.accepted(&auto, 0, offer, at);
    let next = approach.asks_again_at(0).unwrap();
    assert_eq!(next, at + ASK_FACTOR * DOUBTFUL_MS);
    let offer = approach.offer(&auto, 0, false, next);
    approach.accepted(&auto, 0, offer, next);
    assert_eq!((offer.version, approach.asks_again_at(0)), (Version::V5, None));
}

#[test]
fn what_is_asked_for_again_is_something_else_whatever_was_answered() {
    for seed in 0..3_000_u64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |most: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % most
        };
        let mut with_will = settings(Protocol::Auto);
        with_will.status_topic = Some(Topic::new("status").unwrap());
        let (mut approach, mut now) = (Approach::default(), 1);
        for _ in 0..80 {
            let offer = approach.offer(&with_will, 0, false, now);
            let why = match below(9) {
                0..4 => None,
                4 => Some(Broken::Version),
                5 => Some(Broken::Silent),
                6 => Some(Broken::Garbled),
                7 => Some(Broken::Refused(RETAIN_NOT_SUPPORTED, String::new())),
                _ => Some(Broken::Closed),
            };
            if let Some(why) = why {
                approach.failed(&with_will, 0, offer, &why, now);
                now += below(20_000);
                continue;
            }
            approach.accepted(&with_will, 0, offer, now);
            let Some(at) = approach.asks_again_at(0) else { continue };
            assert!(at > now, "{seed}: a connection would end at once, and the next one too");
            let next = approach.clone().offer(&with_will, 0, false, at);
            assert_ne!((next.version, next.will), (offer.version, offer.will), "{seed}");
            now = if below(2) == 0 { at } else { now + 1 };
        }
    }
}
