//! Upstreams that close the connection at every message above a size.

use super::denied::Cloud;
use super::suspect::{Dice, quota};
use super::*;

const HOUR: u64 = 3_600_000;

/// A message of this size: its topic and number, and spaces.
fn sized(topic: &str, number: u64, size: usize) -> String {
    format!("{:<size$}", format!("{topic} {number}"))
}

/// One message after the other, each on a topic of its own, of which every third is large.
fn on_many_topics(count: u64, each_ms: u64) -> Vec<(u64, String)> {
    let text = |number: u64| match number % 3 {
        0 => sized(&format!("large/{number}"), number, 2_000 + 37 * (number as usize % 11)),
        _ => sized(&format!("small/{number}"), number, 20 + 41 * (number as usize % 7)),
    };
    (0..count).map(|number| (number * each_ms, text(number))).collect()
}

/// Messages of three topics, of which each has small and large ones.
fn on_few_topics(count: u64, each_ms: u64) -> Vec<(u64, String)> {
    let size = |number: u64| if number % 4 == 3 { 3_000 } else { 30 };
    let text = |number: u64| sized(&format!("cam/{}", number % 3), number, size(number));
    (0..count).map(|number| (number * each_ms, text(number))).collect()
}

fn is_small(payload: &str) -> bool {
    payload.len() < 1_000
}

#[test]
fn messages_above_a_size_hold_up_no_smaller_ones() {
    for (arrivals, each_ms) in
        [(on_many_topics(300, 300), 300), (on_many_topics(300, 0), 0), (on_few_topics(300, 300), 300)]
    {
        let small = arrivals.iter().filter(|(_, text)| is_small(text)).count();
        let mut cloud = Cloud::new(1, arrivals, |_| {});
        cloud.run(110_000, |_, payload| is_small(payload));
        assert_eq!((cloud.acked.len(), cloud.dropped(), cloud.kept()), (small, 0, 300 - small));
        assert!(cloud.connections <= 20, "{}", cloud.connections);
        let number = |text: &str| text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        let late = cloud.acked.iter().map(|(at, text)| at - number(text) * each_ms).max();
        assert!(late.unwrap() < 40_000, "{late:?}");
        assert!(cloud.bench.session.denied_size().is_some_and(|size| (1_000..=3_010).contains(&size)));
    }
}

#[test]
fn attempts_for_large_messages_become_rare() {
    let mut cloud = Cloud::new(1, on_many_topics(9_000, 9_600), |_| {});
    let limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
    cloud.bench.journal.register("upstream/home", limits);
    cloud.run(24 * HOUR, |_, payload| is_small(payload));
    assert_eq!(cloud.acked.len(), 6_000);
    assert!(cloud.connections < 60, "{}", cloud.connections);
    assert!(cloud.dropped() <= 10, "{}", cloud.dropped());
    assert_eq!(cloud.kept() as u64 + cloud.dropped(), 3_000);
}

#[test]
fn large_messages_that_are_allowed_later_arrive_in_order() {
    for few in [false, true] {
        let arrivals = if few { on_few_topics(600, 1_000) } else { on_many_topics(600, 1_000) };
        let mut cloud = Cloud::new(1, arrivals, |_| {});
        cloud.run(5 * HOUR, |now, payload| is_small(payload) || now > HOUR);
        assert_eq!((cloud.acked.len() as u64 + cloud.dropped(), cloud.kept()), (600, 0));
        assert!(cloud.dropped() <= 2, "{}", cloud.dropped());
        for topic in ["cam/0", "cam/1", "cam/2"] {
            let large = cloud.acked.iter().filter(|(_, text)| text.starts_with(topic) && !is_small(text));
            let large: Vec<u64> = large.map(|(_, text)| text[5..].trim().parse().unwrap()).collect();
            assert!(large.is_sorted() && large.is_empty() != few, "{large:?}");
        }
        assert!(!cloud.bench.session.has_denied());
    }
}

/// What an upstream takes.
#[derive(Debug)]
struct Policy {
    /// It takes no message of this size, for so long.
    limit: Option<usize>,
    until: u64,
    /// It takes no message on these topics.
    denied: Vec<String>,
    /// It takes so many messages at once, and one more in each so many milliseconds.
    quota: Option<(u64, u64)>,
    /// It closes the connection at every message in this time.
    away: (u64, u64),
}

impl Policy {
    fn roll(dice: &mut Dice) -> Policy {
        let limit = dice.roll().is_multiple_of(2).then(|| 200 + dice.roll() as usize % 3_000);
        let until = if dice.roll().is_multiple_of(2) { 2 * HOUR } else { u64::MAX };
        let mut denied: Vec<String> =
            (0..3).filter(|_| dice.roll().is_multiple_of(4)).map(|number| format!("t/{number}")).collect();
        let quotas = [(1, 1_500), (1, 4_000), (3, 700), (5, 2_000)];
        let quota = dice.roll().is_multiple_of(3).then(|| quotas[dice.roll() as usize % quotas.len()]);
        let from = dice.roll() % 120_000;
        // two reasons that have nothing to do with sizes are not mixed
        let is_away = dice.roll().is_multiple_of(3) && quota.is_none();
        let away = if is_away { (from, from + 60_000) } else { (0, 0) };
        if quota.is_some() {
            denied.clear();
        }
        Policy { limit, until, denied, quota, away }
    }

    /// Whether it would ever take this message.
    fn is_innocent(&self, payload: &str) -> bool {
        let topic = payload.split(' ').next().unwrap();
        (self.until < u64::MAX || self.limit.is_none_or(|limit| payload.len() < limit))
            && !self.denied.iter().any(|denied| denied == topic)
    }

    fn takes(&self) -> impl FnMut(u64, &str) -> bool {
        let mut quota = self.quota.map(|(burst, each_ms)| quota(burst, each_ms));
        move |now, payload| {
            quota.as_mut().is_none_or(|takes| takes(now, payload))
                && !(self.away.0..self.away.1).contains(&now)
                && (now > self.until || self.limit.is_none_or(|limit| payload.len() < limit))
                && !self.denied.iter().any(|denied| payload.split(' ').next() == Some(denied))
        }
    }
}

/// So many messages of random sizes, on a few topics or one each.
fn random(dice: &mut Dice, count: u64) -> Vec<(u64, String)> {
    let (few, each_ms) = (dice.roll().is_multiple_of(2), [0, 200, 2_000][dice.roll() as usize % 3]);
    let message = |number: u64| {
        let size = if dice.roll().is_multiple_of(3) {
            100 + dice.roll() as usize % 4_000
        } else {
            20 + dice.roll() as usize % 60
        };
        let topic = if few { dice.roll() % 6 } else { number };
        (number * each_ms, sized(&format!("t/{topic}"), number, size))
    };
    (0..count).map(message).collect()
}

#[test]
fn whatever_an_upstream_takes_no_innocent_message_is_left_out() {
    let mut failed = Vec::new();
    // these once stood still or cost a message, so they are tried besides the first ones
    for seed in (0..50).chain([108, 109, 188, 201, 223]) {
        let mut dice = Dice(seed);
        let policy = Policy::roll(&mut dice);
        let mut arrivals = random(&mut dice, 80);
        let innocent: Vec<String> =
            arrivals.iter().map(|(_, text)| text.clone()).filter(|text| policy.is_innocent(text)).collect();
        // others go on now and then, which shows that they get through
        let last = arrivals.last().unwrap().0;
        arrivals.extend((1..2_000).map(|it| (last + it * 300_000, sized("calm", it, 20))));
        let mut cloud = Cloud::new(seed, arrivals, |_| {});
        cloud.run(200 * HOUR, policy.takes());
        let acked: std::collections::HashSet<&str> = cloud.acked.iter().map(|(_, text)| text.as_str()).collect();
        let missing: Vec<String> = innocent
            .iter()
            .filter(|text| !acked.contains(text.as_str()))
            .map(|text| format!("{} ({})", text.trim(), text.len()))
            .collect();
        let is_allowed_late = policy.limit.is_some() && policy.until < u64::MAX;
        // what ends connections for two hours may be set aside
        let most = if is_allowed_late { cloud.dropped() as usize } else { 0 };
        let is_tried = cloud.kept() == 0 || cloud.connections > 20;
        if missing.len() > most || !is_tried {
            let (kept, dropped, connections) = (cloud.kept(), cloud.dropped(), cloud.connections);
            failed.push(format!(
                "seed {seed}, {policy:?}: {missing:?}, {kept} kept, {dropped} dropped, {connections} connections"
            ));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_quota_that_meets_large_messages_costs_none() {
    for (burst, each_ms) in [(1, 300), (1, 1_500), (1, 4_000), (2, 1_500), (5, 2_000), (9, 1_000)] {
        for seed in 0..12 {
            let mut cloud = Cloud::new(seed, on_many_topics(60, [0, 100, 700][seed as usize % 3]), |_| {});
            cloud.run(24 * HOUR, quota(burst, each_ms));
            let outcome = (cloud.acked.len(), cloud.dropped(), cloud.kept());
            assert_eq!(outcome, (60, 0, 0), "{burst} at once, one in {each_ms} ms, seed {seed}");
        }
    }
    for seed in 0..100 {
        let (mut cloud, mut dice) = (Cloud::new(seed, on_many_topics(60, 200), |_| {}), Dice(seed));
        cloud.run(24 * HOUR, |_, _| dice.roll().is_multiple_of(2));
        assert_eq!((cloud.acked.len(), cloud.dropped(), cloud.kept()), (60, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_start_knows_the_size_and_what_was_tried() {
    let mut cloud = Cloud::new(1, on_many_topics(90, 300), |_| {});
    cloud.run(50_000, |_, payload| is_small(payload));
    let note = cloud.bench.session.size_news().unwrap().unwrap();
    assert_eq!(note.len(), 8 + 4 * 8, "the size and four topics");
    let size = cloud.bench.session.denied_size();
    let kept = std::mem::take(&mut cloud.bench.denied);
    assert_eq!(kept.len(), 26);
    let mut after = Cloud::new(2, in_order(30), |_| {});
    // those that were tried are in their lane
    for (_, text) in on_many_topics(90, 300).iter().filter(|(_, text)| !is_small(text)).take(4) {
        after.bench.append(&draft(text.split(' ').next().unwrap(), text.as_bytes()));
    }
    after.bench.denied = kept;
    after.bench.session.restore_size(&note);
    assert_eq!(after.bench.session.denied_size(), size);
    after.run(60_000, |_, payload| is_small(payload));
    assert_eq!((after.acked.len(), after.dropped(), after.kept()), (30, 0, 30));
    assert!(after.connections <= 6, "{}", after.connections);
    after.run(2 * HOUR, |_, _| true);
    assert_eq!((after.acked.len(), after.kept()), (60, 0));
}

/// Small messages, one each second.
fn in_order(count: u64) -> Vec<(u64, String)> {
    (0..count).map(|number| (number * 1_000, sized("calm", number, 20))).collect()
}
