//! Upstreams that answer messages and then close the connection.

use super::denied::{Cloud, in_turn, is_good};
use super::suspect::Dice;
use super::*;

const HOUR: u64 = 3_600_000;
/// How such an upstream answers, and after what time it then ends the connection.
const ANSWERS: [(u8, u64); 4] = [(0, 0), (0, 100), (0x87, 0), (0x87, 900)];

#[test]
fn a_topic_after_whose_answers_connections_end_holds_up_no_other_one() {
    for answers in ANSWERS {
        for each_ms in [0, 150, 2_000] {
            let mut cloud = Cloud::new(1, in_turn(&["good", "better", "secret"], 300, each_ms), |_| {});
            cloud.answers = Some(answers);
            cloud.run(300 * each_ms + 120_000, |_, payload| is_good(payload));
            assert_eq!(cloud.acked.len(), 200, "{answers:?}, {each_ms} ms");
            assert!(cloud.connections <= 16, "{answers:?}, {each_ms} ms: {}", cloud.connections);
            let late = cloud.acked.iter().map(|(at, text)| {
                let number: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
                at - number * each_ms
            });
            let mut late: Vec<u64> = late.collect();
            late.sort_unstable();
            assert!(late[190] < 40_000, "{answers:?}, {each_ms} ms: {late:?}");
            let ledger = cloud.bench.ledger();
            let answered = if answers.0 == 0 { ledger.acked - 200 } else { ledger.dropped.refused };
            assert!(answered < 20, "{answers:?}, {each_ms} ms: {ledger:?}");
            assert_eq!((cloud.dropped(), cloud.kept() as u64 + answered), (0, 100), "{answers:?}, {each_ms} ms");
        }
    }
}

#[test]
fn a_topic_with_most_of_the_messages_is_found_as_well() {
    let topics = ["secret", "secret", "secret", "good", "secret", "secret", "secret", "better"];
    for each_ms in [0, 25, 250] {
        let mut cloud = Cloud::new(1, in_turn(&topics, 400, each_ms), |_| {});
        cloud.answers = Some((0, 0));
        cloud.run(400 * each_ms + 60_000, |_, payload| is_good(payload));
        assert_eq!((cloud.acked.len(), cloud.dropped()), (100, 0), "{each_ms} ms");
        assert!(cloud.connections <= 20, "{each_ms} ms: {}", cloud.connections);
    }
}

#[test]
fn attempts_for_such_a_topic_become_rare() {
    for answers in ANSWERS {
        let mut cloud = Cloud::new(1, in_turn(&["secret", "good", "secret", "better"], 12_000, 7_200), |_| {});
        cloud.answers = Some(answers);
        let limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
        cloud.bench.journal.register("upstream/home", limits);
        cloud.run(24 * HOUR, |_, payload| is_good(payload));
        let mut twice: Vec<_> = cloud.acked.clone();
        twice.sort_by(|a, b| a.1.cmp(&b.1));
        let twice: Vec<_> = twice.windows(2).filter(|two| two[0].1 == two[1].1).collect();
        assert_eq!(cloud.acked.len(), 6_000, "{answers:?}: {twice:?}");
        assert!(cloud.connections < 60, "{answers:?}: {}", cloud.connections);
    }
}

#[test]
fn several_such_topics_hold_up_no_other_one() {
    for answers in ANSWERS {
        let topics = ["secret/a", "good", "secret/b", "better"];
        let mut cloud = Cloud::new(1, in_turn(&topics, 400, 500), |_| {});
        cloud.answers = Some(answers);
        cloud.run(400_000, |_, payload| is_good(payload));
        assert_eq!((cloud.acked.len(), cloud.dropped()), (200, 0), "{answers:?}");
        assert!(cloud.connections <= 40, "{answers:?}: {}", cloud.connections);
    }
}

#[test]
fn such_a_topic_that_is_allowed_later_arrives_in_order() {
    let mut cloud = Cloud::new(1, in_turn(&["secret", "good", "secret"], 900, 1_000), |_| {});
    cloud.answers = Some((0x87, 10));
    cloud.run(4 * HOUR, |now, payload| is_good(payload) || now > HOUR);
    let (secret, refused) = (cloud.acked_of("secret"), cloud.bench.ledger().dropped.refused);
    assert!(secret.is_sorted() && refused < 20, "{refused}: {secret:?}");
    assert_eq!((secret.len() as u64 + refused, cloud.kept(), cloud.dropped()), (600, 0, 0));
    assert_eq!((cloud.acked_of("good").len(), secret.last()), (300, Some(&899)));
    assert!(!cloud.bench.session.has_denied());
}

#[test]
fn after_a_start_one_message_of_such_a_topic_is_tried() {
    let mut cloud = Cloud::new(1, in_turn(&["secret", "good", "better"], 300, 250), |_| {});
    cloud.answers = Some((0, 10));
    cloud.run(80_000, |_, payload| is_good(payload));
    let kept = std::mem::take(&mut cloud.bench.denied);
    assert!(kept.len() > 50, "{}", kept.len());
    let mut after = Cloud::new(2, in_turn(&["good", "better"], 60, 1_000), |_| {});
    after.answers = Some((0, 10));
    after.bench.denied = kept;
    after.run(58_000, |_, payload| is_good(payload));
    assert_eq!((after.acked.len(), after.bench.session.denied_topics(), after.dropped()), (58, 1, 0));
    assert!(after.connections <= 3, "{}", after.connections);
}

/// An upstream that takes so many messages on each connection, and answers the last of them.
#[test]
fn an_upstream_that_ends_connections_after_so_many_messages_puts_no_topic_off_for_long() {
    for (count, topics) in [(10, &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][..]), (9, &["a", "b", "c"])] {
        for each_ms in [0, 100, 1_000] {
            let (mut cloud, mut taken) = (Cloud::new(1, in_turn(topics, 300, each_ms), |_| {}), 0);
            cloud.answers = Some((0, 10));
            cloud.run(12 * HOUR, |_, _| {
                taken += 1;
                taken % count != 0
            });
            assert_eq!((cloud.dropped(), cloud.kept()), (0, 0), "{count}, {each_ms} ms");
            assert_eq!(cloud.bench.ledger().acked, 300, "{count}, {each_ms} ms");
            let late = cloud.acked.iter().map(|(at, text)| {
                let number: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
                at - number * each_ms
            });
            let late = late.max().unwrap();
            assert!(late < 1_000_000, "{count}, {each_ms} ms: {late}");
        }
    }
}

#[test]
fn an_upstream_that_ends_connections_after_any_answer_puts_nothing_off_for_long() {
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let mut cloud = Cloud::new(seed, in_turn(&["a", "b", "c"], 300, 200), |_| {});
        cloud.answers = Some((0, 10));
        cloud.run(12 * HOUR, |_, _| !dice.roll().is_multiple_of(6));
        assert_eq!((cloud.dropped(), cloud.kept()), (0, 0), "seed {seed}");
        assert_eq!(cloud.bench.ledger().acked, 300, "seed {seed}");
    }
}
