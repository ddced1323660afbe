//! Upstreams that close the connection at every message of some topics.

use super::suspect::{Dice, quota};
use super::*;
use crate::upstream::backoff::Backoff;
use crate::upstream::settings::Retry;

const HOUR: u64 = 3_600_000;

/// An upstream with 3.1.1, to which messages go that arrive in the course of time. Each payload begins with its topic.
pub(super) struct Cloud {
    pub(super) bench: Bench,
    pub(super) now: u64,
    arrivals: VecDeque<(u64, String)>,
    backoff: Backoff,
    dice: Dice,
    pub(super) connections: u32,
    is_connected: bool,
    id: u16,
    /// What was acknowledged, or taken at QoS 0, and when.
    pub(super) acked: Vec<(u64, String)>,
    most_in_flight: usize,
    /// The reason code of the answers to messages that it does not take, and after what time it then ends the connection, in
    /// milliseconds. Without it, it ends the connection instead of answering.
    pub(super) answers: Option<(u8, u64)>,
}

/// These topics, one message of each in turn, so many in all.
pub(super) fn in_turn(topics: &[&str], count: u64, each_ms: u64) -> Vec<(u64, String)> {
    (0..count)
        .map(|number| (number * each_ms, format!("{} {number}", topics[number as usize % topics.len()])))
        .collect()
}

impl Cloud {
    pub(super) fn new(seed: u64, arrivals: Vec<(u64, String)>, change: impl FnOnce(&mut UpstreamSettings)) -> Cloud {
        Cloud {
            bench: Bench::new(change),
            now: 0,
            arrivals: arrivals.into(),
            backoff: Backoff::new(Retry::default()),
            dice: Dice(seed),
            connections: 0,
            is_connected: false,
            id: 0,
            acked: Vec::new(),
            most_in_flight: 0,
            answers: None,
        }
    }

    fn end(&mut self, why: &Broken) {
        let is_clear = why == &Broken::Closed && {
            self.bench.disconnect_at(why, self.now);
            self.bench.session.is_cause_clear(self.now)
        };
        if why != &Broken::Closed {
            self.bench.disconnect_at(why, self.now);
        }
        if is_clear {
            self.backoff.made_progress();
        }
        self.bench.sent.clear();
        self.is_connected = false;
        let pause = self.backoff.next(self.dice.roll()).max(self.bench.session.quiet_left(self.now));
        self.now += pause.as_millis() as u64;
    }

    fn arrive(&mut self) {
        while self.arrivals.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, text) = self.arrivals.pop_front().unwrap();
            let topic = text.split(' ').next().unwrap().to_owned();
            self.bench.append(&draft(&topic, text.as_bytes()));
        }
    }

    /// Sends what may be sent now, and returns whether that was anything.
    fn flow(&mut self, takes: &mut impl FnMut(u64, &str) -> bool) -> bool {
        self.bench.pump(self.now);
        self.most_in_flight = self.most_in_flight.max(self.bench.session.in_flight.len());
        let sent = self.bench.sent.clone();
        let payloads = self.bench.deliver(self.id + 1);
        for (message, payload) in sent.iter().zip(&payloads) {
            self.now += 10;
            self.id += u16::from(message.qos != Qos::AtMostOnce);
            if !takes(self.now, payload) {
                if let Some((reason, after_ms)) = self.answers {
                    let actions = self.bench.session.acked(self.id, reason, self.now);
                    self.bench.perform(actions);
                    self.now += after_ms;
                }
                self.end(&Broken::Closed);
                return true;
            }
            if message.qos == Qos::AtMostOnce {
                self.acked.push((self.now, payload.clone()));
                continue;
            }
            let actions = match message.packet_id {
                Some(packet_id) => {
                    let mut actions = self.bench.session.recorded(packet_id, self.now);
                    self.bench.session.released(packet_id, self.now);
                    actions.extend(self.bench.session.completed(packet_id, self.now));
                    actions
                }
                None => self.bench.session.acked(self.id, 0, self.now),
            };
            self.bench.perform(actions);
            self.acked.push((self.now, payload.clone()));
        }
        !payloads.is_empty()
    }

    pub(super) fn run(&mut self, until: u64, mut takes: impl FnMut(u64, &str) -> bool) {
        while self.now < until {
            self.arrive();
            if self.connections == 0 {
                self.bench.take_back();
            }
            if !self.is_connected {
                (self.is_connected, self.id) = (true, 0);
                self.connections += 1;
                let actions = self.bench.session.connected(V4, self.now);
                self.bench.perform(actions);
            }
            if self.flow(&mut takes) {
                continue;
            }
            if self.bench.session.misses_tried() {
                self.bench.take_back();
                continue;
            }
            let arrival = self.arrivals.front().map(|(at, _)| *at);
            let next = [arrival, self.bench.session.deadline()].into_iter().flatten().min();
            self.now = next.unwrap_or(until).clamp(self.now + 1, until.max(self.now + 1));
            self.bench.time(self.now);
            assert!(!std::mem::take(&mut self.bench.broken), "at {}", self.now);
            if std::mem::take(&mut self.bench.renewed) {
                self.end(&Broken::Failed(String::new()));
            }
        }
    }

    pub(super) fn acked_of(&self, topic: &str) -> Vec<u64> {
        let of_topic = self.acked.iter().filter_map(|(_, text)| text.strip_prefix(topic)?.trim().parse().ok());
        of_topic.collect()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.bench.ledger().dropped.ends_connection
    }

    /// What is kept of denied topics.
    pub(super) fn kept(&self) -> usize {
        self.bench.denied.len() + self.bench.ledger().pending as usize
    }
}

pub(super) fn is_good(payload: &str) -> bool {
    !payload.starts_with("secret")
}

#[test]
fn a_denied_topic_holds_up_no_other_one() {
    // three denied and one good message per second, or all at once
    for (each_ms, until) in [(250, 100_000), (0, 40_000)] {
        let mut cloud = Cloud::new(1, in_turn(&["secret", "secret", "secret", "good"], 300, each_ms), |_| {});
        cloud.run(until, |_, payload| is_good(payload));
        let good = cloud.acked_of("good");
        assert_eq!(good, (0..75).map(|number| 4 * number + 3).collect::<Vec<u64>>());
        assert!(cloud.connections <= 8, "{}", cloud.connections);
        assert_eq!((cloud.dropped(), cloud.kept()), (0, 225));
        assert!(cloud.bench.ledger().pending <= 1 && cloud.most_in_flight < 300, "{:?}", cloud.bench.ledger());
        let late = cloud.acked.iter().map(|(at, text)| at - text[5..].parse::<u64>().unwrap() * each_ms).max();
        assert!(late.unwrap() < 15_000, "{late:?}");
    }
}

#[test]
fn attempts_for_a_denied_topic_become_rare() {
    let topics = ["secret", "good", "secret", "better"];
    for qos in [OutQos::AtLeastOnce, OutQos::ExactlyOnce] {
        let mut cloud = Cloud::new(1, in_turn(&topics, 12_000, 7_200), |settings| {
            settings.out = vec![rule("secret", "", "", qos), rule("#", "", "", OutQos::AtLeastOnce)];
        });
        let limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
        cloud.bench.journal.register("upstream/home", limits);
        cloud.run(24 * HOUR, |_, payload| is_good(payload));
        assert_eq!(cloud.acked.len(), 6_000);
        // each hour at most one attempt, and one more for each message that is set aside
        assert!(cloud.connections < 60, "{}", cloud.connections);
        assert!((1..=10).contains(&cloud.dropped()), "{}", cloud.dropped());
        assert_eq!(cloud.kept() as u64 + cloud.dropped(), 6_000);
        assert!(cloud.most_in_flight < 300, "{}", cloud.most_in_flight);
    }
}

#[test]
fn a_denied_topic_that_is_allowed_later_arrives_in_order() {
    for exact in [false, true] {
        let mut cloud = Cloud::new(1, in_turn(&["secret", "good", "secret"], 900, 1_000), |settings| {
            if exact {
                settings.out = vec![rule("#", "", "up/", OutQos::ExactlyOnce)];
            }
        });
        cloud.run(4 * HOUR, |now, payload| is_good(payload) || now > HOUR);
        let secret = cloud.acked_of("secret");
        assert!(secret.is_sorted(), "{secret:?}");
        assert_eq!((secret.len() as u64 + cloud.dropped(), cloud.kept()), (600, 0));
        assert!(cloud.dropped() <= 2, "{}", cloud.dropped());
        assert_eq!((cloud.acked_of("good").len(), secret.last()), (300, Some(&899)));
        assert!(!cloud.bench.session.has_denied());
    }
}

#[test]
fn two_denied_topics_hold_up_no_other_one() {
    for exact in [false, true] {
        let topics = ["secret/a", "good", "secret/b", "secret/a", "better", "secret/b"];
        let mut cloud = Cloud::new(1, in_turn(&topics, 300, 250), |settings| {
            if exact {
                settings.out =
                    vec![rule("secret/#", "", "", OutQos::ExactlyOnce), rule("#", "", "", OutQos::AtLeastOnce)];
            }
        });
        cloud.run(150_000, |_, payload| is_good(payload));
        assert_eq!((cloud.acked.len(), cloud.dropped(), cloud.kept()), (100, 0, 200));
        assert!(cloud.connections <= 20, "{}", cloud.connections);
    }
}

#[test]
fn messages_that_end_connections_do_not_hold_up_their_topic_for_ever() {
    // the payload is the reason, twice in a row
    let bad = ["mixed 4", "mixed 6"];
    let mut arrivals = in_turn(&["mixed", "good"], 300, 500);
    arrivals.extend((300..500).map(|number| ((number - 297) * 60_000, format!("good {number}"))));
    let mut cloud = Cloud::new(1, arrivals, |_| {});
    cloud.run(8 * HOUR, |_, payload| !bad.contains(&payload));
    assert_eq!((cloud.acked.len(), cloud.dropped(), cloud.kept()), (498, 2, 0));
    assert!(cloud.acked_of("mixed").is_sorted());
    // all others are there after a few attempts
    let mixed = cloud.acked.iter().filter(|(_, text)| text.starts_with("mixed")).map(|(at, _)| *at).max();
    assert!(mixed.unwrap() < 3 * HOUR, "{mixed:?}");
}

#[test]
fn a_quota_that_one_sensor_meets_with_most_of_its_messages_costs_none() {
    let mut topics = ["busy"; 10];
    (topics[4], topics[9]) = ("calm", "quiet");
    for (burst, window_ms) in [(1, 300), (1, 1_500), (1, 4_000), (2, 1_500), (5, 2_000), (9, 1_000)] {
        for (seed, each_ms) in (0..12).zip([0, 100, 700].into_iter().cycle()) {
            let mut cloud = Cloud::new(seed, in_turn(&topics, 60, each_ms), |_| {});
            cloud.run(12 * HOUR, quota(burst, window_ms));
            let outcome = (cloud.acked.len(), cloud.dropped(), cloud.kept());
            assert_eq!(outcome, (60, 0, 0), "{burst} at once, one in {window_ms} ms, seed {seed}");
        }
    }
    for seed in 0..100 {
        let (mut cloud, mut dice) = (Cloud::new(seed, in_turn(&topics, 60, 200), |_| {}), Dice(seed));
        cloud.run(12 * HOUR, |_, _| dice.roll().is_multiple_of(2));
        assert_eq!((cloud.acked.len(), cloud.dropped(), cloud.kept()), (60, 0, 0), "seed {seed}");
    }
}

#[test]
fn after_a_start_one_message_of_each_topic_is_tried() {
    let mut cloud = Cloud::new(1, in_turn(&["secret", "secret", "good"], 90, 250), |_| {});
    cloud.run(50_000, |_, payload| is_good(payload));
    let mut kept = std::mem::take(&mut cloud.bench.denied);
    assert!(kept.len() > 50);
    let tried = kept.remove(0);
    let mut after = Cloud::new(2, in_turn(&["secret", "good"], 60, 1_000), |_| {});
    after.bench.append(&draft("secret", tried.view().payload()));
    after.bench.denied = kept;
    after.bench.take_back();
    assert_eq!(after.bench.ledger().pending, 1);
    after.run(70_000, |_, payload| is_good(payload));
    assert_eq!((after.acked_of("good").len(), after.dropped()), (30, 0));
    assert!(after.connections <= 3, "{}", after.connections);
    assert!(!after.bench.session.misses_tried());
    after.run(200_000, |_, _| true);
    let secret = after.acked_of("secret");
    assert_eq!((secret.len(), &secret[..2], after.kept()), (59 + 30, &[1, 3][..], 0), "in order");
}

/// Rules at QoS 0 for these, and at QoS 1 for everything else.
fn at_qos_0(filters: &[&str]) -> impl FnOnce(&mut UpstreamSettings) {
    let zero: Vec<_> = filters.iter().map(|filter| rule(filter, "", "", OutQos::AtMostOnce)).collect();
    move |settings| {
        settings.out = zero;
        settings.out.push(rule("#", "", "", OutQos::AtLeastOnce));
    }
}

#[test]
fn a_denied_topic_at_qos_0_does_not_end_connections_for_ever() {
    // beside a topic at QoS 1, or only others at QoS 0
    for filters in [&["secret"][..], &["secret", "good"], &["#"]] {
        let topics = ["secret", "good", "secret", "better"];
        let mut cloud = Cloud::new(1, in_turn(&topics, 12_000, 7_200), at_qos_0(filters));
        let limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
        cloud.bench.journal.register("upstream/home", limits);
        cloud.run(24 * HOUR, |_, payload| is_good(payload));
        // without this there are thousands of connections
        assert!(cloud.connections < 70, "{filters:?}: {}", cloud.connections);
        assert!((5_990..=6_000).contains(&cloud.acked.len()), "{filters:?}: {}", cloud.acked.len());
        assert!(cloud.dropped() <= 10 && cloud.kept() > 5_950, "{filters:?}: {} {}", cloud.dropped(), cloud.kept());
        assert_eq!(cloud.bench.session.denied_topics(), 1);
    }
}

#[test]
fn a_topic_at_qos_0_that_is_allowed_later_goes_at_qos_0_again() {
    let mut cloud = Cloud::new(1, in_turn(&["secret", "good"], 900, 1_000), at_qos_0(&["#"]));
    cloud.run(4 * HOUR, |now, payload| is_good(payload) || now > HOUR / 5);
    let secret = cloud.acked_of("secret");
    assert!(secret.is_sorted() && secret.len() >= 440, "{secret:?}");
    assert_eq!((cloud.kept(), secret.last(), cloud.bench.session.denied_topics()), (0, Some(&898), 0));
    let session = &cloud.bench.session;
    assert_eq!(session.answered_qos(Qos::AtMostOnce, &Message::new(&draft("secret", b""))), Qos::AtMostOnce);
}

#[test]
fn an_upstream_that_ends_connections_for_other_reasons_denies_no_topic_at_qos_0() {
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let mut cloud = Cloud::new(seed, in_turn(&["a", "b", "c"], 300, 200), at_qos_0(&["a", "b"]));
        cloud.run(12 * HOUR, |_, _| !dice.roll().is_multiple_of(6));
        assert_eq!((cloud.dropped(), cloud.kept()), (0, 0), "seed {seed}");
        assert_eq!(cloud.acked_of("c").len(), 100, "seed {seed}");
    }
}
