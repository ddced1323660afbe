//! Upstreams that close the connection for several reasons: all messages that they would take get through.

use std::collections::HashSet;

use super::denied::Cloud;
use super::suspect::{Dice, quota};

const HOUR: u64 = 3_600_000;

/// What an upstream takes.
#[derive(Debug)]
struct Policy {
    /// It takes no message on these topics.
    denied: Vec<String>,
    /// It takes so many messages at once, and one more in each so many milliseconds.
    quota: Option<(u64, u64)>,
    /// It closes the connection at every message in this time.
    away: (u64, u64),
}

impl Policy {
    fn roll(dice: &mut Dice) -> Policy {
        let denied = (0..3).filter(|_| dice.roll().is_multiple_of(3)).map(|number| format!("t/{number}")).collect();
        let quotas = [(1, 500), (1, 1_500), (1, 4_000), (3, 700), (5, 2_000)];
        let quota = (!dice.roll().is_multiple_of(4)).then(|| quotas[dice.roll() as usize % quotas.len()]);
        let from = dice.roll() % 120_000;
        let is_away = quota.is_none() && dice.roll().is_multiple_of(2);
        let away = if is_away { (from, from + 60_000) } else { (0, 0) };
        Policy { denied, quota, away }
    }

    /// Whether it would ever take this message.
    fn is_innocent(&self, payload: &str) -> bool {
        !self.denied.iter().any(|denied| payload.split(' ').next() == Some(denied))
    }

    fn takes(&self) -> impl FnMut(u64, &str) -> bool {
        let mut quota = self.quota.map(|(burst, each_ms)| quota(burst, each_ms));
        move |now, payload| {
            quota.as_mut().is_none_or(|takes| takes(now, payload))
                && !(self.away.0..self.away.1).contains(&now)
                && self.is_innocent(payload)
        }
    }
}

/// So many messages, on a few topics or one each.
fn random(dice: &mut Dice, count: u64) -> Vec<(u64, String)> {
    let (few, each_ms) = (dice.roll().is_multiple_of(2), [200, 1_000, 2_000][dice.roll() as usize % 3]);
    let mut topic = |number| if few { dice.roll() % 6 } else { number };
    (0..count).map(|number| (number * each_ms, format!("t/{} {number}", topic(number)))).collect()
}

#[test]
fn no_message_that_an_upstream_takes_is_left_out() {
    for seed in 0..500 {
        let mut dice = Dice(seed);
        let policy = Policy::roll(&mut dice);
        let arrivals = random(&mut dice, 60);
        let innocent: Vec<String> =
            arrivals.iter().map(|(_, text)| text.clone()).filter(|text| policy.is_innocent(text)).collect();
        let mut cloud = Cloud::new(seed, arrivals, |_| {});
        cloud.run(4 * HOUR, policy.takes());
        let acked: HashSet<&str> = cloud.acked.iter().map(|(_, text)| text.as_str()).collect();
        let missing: Vec<&String> = innocent.iter().filter(|text| !acked.contains(text.as_str())).collect();
        assert!(missing.is_empty(), "seed {seed}, {policy:?}: {missing:?}, {} dropped", cloud.dropped());
    }
}

#[test]
fn messages_get_past_many_others_that_end_connections() {
    // each on a topic of its own, and those that end connections are the oldest
    for (bad, hours) in [(5, 1), (10, 1), (24, 1), (60, 2), (200, 4)] {
        let text = |number| format!("{}/{number} {number}", if number < bad { "bad" } else { "good" });
        let arrivals = (0..bad + 20).map(|number| (0, text(number))).collect();
        let mut cloud = Cloud::new(bad, arrivals, |_| {});
        cloud.run(hours * HOUR, |_, payload| payload.starts_with("good"));
        assert_eq!(cloud.acked.len(), 20, "behind {bad}: {} connections", cloud.connections);
        assert_eq!(cloud.kept() as u64 + cloud.dropped(), bad);
    }
}
