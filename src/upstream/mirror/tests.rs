//! Random histories of one mirrored topic, with an upstream that is played here.

use std::collections::VecDeque;

use super::*;

const TOPIC: &str = "t";

/// Small pseudo-random numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    fn one_in(&mut self, most: usize) -> bool {
        self.below(most) == 0
    }
}

/// A retained message, or `None` for a deletion.
type Value = Option<u32>;

/// What goes up on the line.
enum Up {
    Publish(Value, bool),
    Subscribe,
    Read(u32, bool),
    Unsubscribe,
}

/// What comes down on the line.
enum Down {
    Acked,
    Subscribed,
    Message(QueuedMessage),
}

#[derive(Clone)]
struct QueuedMessage {
    number: u64,
    value: Value,
    /// The subscription identifier.
    id: Option<u32>,
    was_sent: bool,
}

#[derive(Default)]
struct PlayedSession {
    queue: Vec<QueuedMessage>,
    is_subscribed: bool,
    is_read: Option<u32>,
}

/// The upstream, with a session for each gateway.
#[derive(Default)]
struct PlayedUpstream {
    retained: Value,
    sessions: Vec<Option<PlayedSession>>,
    numbers: u64,
}

impl PlayedUpstream {
    fn queue(&mut self, to: usize, value: Value, id: Option<u32>) {
        self.numbers += 1;
        let message = QueuedMessage { number: self.numbers, value, id, was_sent: false };
        self.sessions[to].as_mut().unwrap().queue.push(message);
    }

    fn publish(&mut self, value: Value, by: Option<usize>) {
        self.retained = value;
        for to in 0..self.sessions.len() {
            let Some(session) = &self.sessions[to] else { continue };
            let (is_subscribed, is_read) = (session.is_subscribed && by != Some(to), session.is_read);
            if is_subscribed {
                self.queue(to, value, None);
            }
            if is_read.is_some() {
                self.queue(to, value, is_read);
            }
        }
    }
}

/// A gateway, reduced to one topic.
struct PlayedGateway {
    at: usize,
    mirror: Mirror,
    here: Value,
    /// When the message here was published, if it did not come down.
    ours_since: Option<i64>,
    journal: VecDeque<Value>,
    unanswered: VecDeque<Value>,
    /// What a crash repeats.
    settled: Value,
    is_connected: bool,
    is_due: bool,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    under_way: usize,
}

impl PlayedGateway {
    fn new(at: usize) -> PlayedGateway {
        PlayedGateway {
            at,
            mirror: Mirror::new(at as u32 * 1_000_000),
            here: None,
            ours_since: None,
            journal: VecDeque::new(),
            unanswered: VecDeque::new(),
            settled: None,
            is_connected: false,
            is_due: true,
            up: VecDeque::new(),
            down: VecDeque::new(),
            under_way: 0,
        }
    }

    fn publish(&mut self, value: Value, now: u64) {
        (self.here, self.ours_since) = (value, value.map(|_| now as i64));
        self.journal.push_back(value);
    }

    fn connect(&mut self, upstream: &mut PlayedUpstream, forgets: bool, now: u64) {
        let is_resumed = !forgets && upstream.sessions[self.at].is_some();
        let session = &mut upstream.sessions[self.at];
        if forgets || session.is_none() {
            *session = Some(PlayedSession::default());
            self.is_due = true;
        }
        if session.as_ref().is_some_and(|session| session.is_read.is_some()) {
            self.up.push_back(Up::Unsubscribe);
        }
        self.up.push_back(Up::Subscribe);
        self.mirror.connected(is_resumed, self.is_due, now);
        self.is_connected = true;
    }

    fn cut(&mut self, now: u64) {
        // as a pass that is cut off, the reading of all is due again
        self.is_due |= self.mirror.reading.as_ref().is_some_and(|reading| matches!(reading.topics, ReadTopics::All));
        self.mirror.disconnected(false, now);
        self.up.clear();
        self.down.clear();
        let mut all = std::mem::take(&mut self.unanswered);
        all.append(&mut self.journal);
        (self.journal, self.is_connected, self.under_way) = (all, false, 0);
    }

    fn crash(&mut self, now: u64) {
        if self.is_connected {
            self.cut(now);
        }
        if let Some(settled) = self.settled.take() {
            self.journal.push_front(Some(settled));
        }
        (self.mirror, self.is_due) = (Mirror::new(now as u32), true);
    }

    fn send(&mut self, now: u64) {
        let Some(value) = self.journal.pop_front() else { return };
        let is_current = value == self.here;
        if is_current {
            self.mirror.sent(TOPIC, now);
        }
        self.unanswered.push_back(value);
        self.up.push_back(Up::Publish(value, is_current));
    }

    fn read(&mut self, now: u64) {
        if self.mirror.is_reading() || !self.journal.is_empty() {
            return;
        }
        if self.is_due {
            if let Some(id) = self.mirror.begin_whole(now) {
                self.up.push_back(Up::Read(id, true));
            }
        } else if let Some((topics, id)) = self.mirror.begin(now) {
            assert_eq!(topics, [TOPIC]);
            self.up.push_back(Up::Read(id, false));
        }
    }

    fn end_reading(&mut self, now: u64) {
        let began = self.mirror.reading.as_ref().map(|reading| reading.begun_at);
        let Some(ended) = self.mirror.end(now) else { return };
        if !ended.topics.is_empty() {
            self.up.push_back(Up::Unsubscribe);
        }
        let is_missing = ended.missing == [TOPIC] || self.is_due && self.mirror.is_missing(TOPIC);
        if self.is_due && self.mirror.has_read_all() {
            self.is_due = false;
        }
        let is_newer = self.ours_since.is_some_and(|since| since >= began.unwrap() as i64);
        if is_missing && !is_newer && self.here.is_some() {
            self.journal.push_back(self.here);
        }
        self.mirror.pass_ended();
    }

    fn receive(&mut self, message: QueuedMessage, now: u64) {
        let arrival = MirroredArrival {
            remote: TOPIC,
            is_read: self.mirror.is_reading_as(message.id.into_iter()),
            is_repeated: message.was_sent,
            is_same: message.value == self.here,
            is_absent: self.here.is_none(),
            ours_since: self.ours_since,
        };
        if self.mirror.arrived(arrival, now) == MirrorVerdict::Take && message.value != self.here {
            (self.here, self.ours_since) = (message.value, None);
        }
    }

    /// Takes one step on the line, chosen by the dice.
    fn step(&mut self, upstream: &mut PlayedUpstream, dice: &mut Dice, now: u64) {
        match dice.below(6) {
            0 => self.send(now),
            1 => self.step_up(upstream),
            2 => self.step_out(upstream),
            3 => self.step_down(upstream, now),
            4 => self.read(now),
            _ => self.end_reading(now),
        }
    }

    fn step_up(&mut self, upstream: &mut PlayedUpstream) {
        let at = self.at;
        match self.up.pop_front() {
            Some(Up::Publish(value, is_retained)) => {
                if is_retained {
                    upstream.publish(value, Some(at));
                }
                self.down.push_back(Down::Acked);
            }
            Some(Up::Subscribe) => upstream.sessions[at].as_mut().unwrap().is_subscribed = true,
            Some(Up::Unsubscribe) => upstream.sessions[at].as_mut().unwrap().is_read = None,
            Some(Up::Read(id, is_all)) => {
                upstream.sessions[at].as_mut().unwrap().is_read = Some(id).filter(|_| !is_all);
                if upstream.retained.is_some() {
                    upstream.queue(at, upstream.retained, Some(id));
                }
                self.down.push_back(Down::Subscribed);
            }
            None => {}
        }
    }

    /// The upstream sends the next message, if few are unacknowledged. So acknowledgements pass messages.
    fn step_out(&mut self, upstream: &mut PlayedUpstream) {
        let session = upstream.sessions[self.at].as_mut().unwrap();
        if let Some(message) = session.queue.get(self.under_way).filter(|_| self.under_way < 2) {
            self.down.push_back(Down::Message(message.clone()));
            self.under_way += 1;
        }
    }

    fn step_down(&mut self, upstream: &mut PlayedUpstream, now: u64) {
        match self.down.pop_front() {
            Some(Down::Acked) => self.settled = self.unanswered.pop_front().unwrap(),
            Some(Down::Subscribed) => self.mirror.answered(&[], now),
            Some(Down::Message(message)) => {
                let queue = &mut upstream.sessions[self.at].as_mut().unwrap().queue;
                queue.retain(|queued| queued.number != message.number);
                self.under_way -= 1;
                self.receive(message, now);
            }
            None => {}
        }
    }

    fn is_quiet(&self, upstream: &PlayedUpstream) -> bool {
        let is_empty =
            self.journal.is_empty() && self.unanswered.is_empty() && self.up.is_empty() && self.down.is_empty();
        let queue = &upstream.sessions[self.at].as_ref().unwrap().queue;
        is_empty && queue.is_empty() && !self.is_due && self.mirror.is_sure()
    }
}

/// What a history ends with: what the upstream retains, and what each gateway does. `most_ms` is the longest time that a step
/// takes: if that is long, readings end before their messages come.
fn history(seed: u64, gateways: usize, most_ms: usize) -> Vec<Value> {
    let (mut dice, mut now, mut last) = (Dice(seed), 10_000, 0);
    let mut upstream = PlayedUpstream::default();
    upstream.sessions.resize_with(gateways, || None);
    let mut all: Vec<_> = (0..gateways).map(PlayedGateway::new).collect();
    for _ in 0..20 + dice.below(150) {
        now += 1 + dice.below(most_ms) as u64;
        let gateway = &mut all[dice.below(gateways)];
        last += 1;
        let value = Some(last).filter(|_| !dice.one_in(3));
        match dice.below(40) {
            0..4 => gateway.publish(value, now),
            4..8 => upstream.publish(value, None),
            8 if gateway.is_connected => gateway.cut(now),
            9 => gateway.crash(now),
            10..13 if !gateway.is_connected => gateway.connect(&mut upstream, dice.one_in(3), now),
            13 => {
                // the upstream forgets everything
                all.iter_mut().filter(|gateway| gateway.is_connected).for_each(|gateway| gateway.cut(now));
                upstream.retained = None;
                upstream.sessions.iter_mut().for_each(|session| *session = None);
            }
            _ if gateway.is_connected => gateway.step(&mut upstream, &mut dice, now),
            _ => {}
        }
    }
    for gateway in all.iter_mut().filter(|gateway| !gateway.is_connected) {
        gateway.connect(&mut upstream, dice.one_in(3), now);
    }
    for _ in 0..100_000 {
        if all.iter().all(|gateway| gateway.is_quiet(&upstream)) {
            break;
        }
        now += 1 + dice.below(most_ms) as u64;
        all[dice.below(gateways)].step(&mut upstream, &mut dice, now);
    }
    assert!(all.iter().all(|gateway| gateway.is_quiet(&upstream)), "history {seed} does not end");
    std::iter::once(upstream.retained).chain(all.iter().map(|gateway| gateway.here)).collect()
}

#[test]
fn all_are_equal_after_random_histories() {
    for seed in 0..3_000 {
        for (gateways, most_ms) in [(1, 50), (2, 50), (2, 400)] {
            let ends = history(seed, gateways, most_ms);
            assert!(ends.iter().all(|end| *end == ends[0]), "{seed}, {gateways}, {most_ms}: {ends:?}");
        }
    }
}

#[test]
fn doubtful_topics_take_little_memory() {
    let mut mirror = Mirror::new(0);
    for number in 0..MOST_DOUBTFUL {
        mirror.doubt_again(&format!("t/{number}"), 0);
    }
    assert!(!mirror.wants_all());
    mirror.doubt_again("t/0", 0);
    assert!(!mirror.wants_all(), "it is known");
    mirror.doubt_again("one more", 0);
    assert!(mirror.wants_all());
    assert_eq!(mirror.doubtful.len(), MOST_DOUBTFUL);
    let mut mirror = Mirror::new(0);
    mirror.doubt_again(&"x".repeat(LONGEST_DOUBTFUL + 1), 0);
    assert!(mirror.wants_all() && mirror.doubtful.is_empty());
}

/// Reads all that is doubtful; the upstream takes so many topics together. Returns the numbers of topics.
fn readings(mirror: &mut Mirror, most: usize) -> Vec<usize> {
    let (mut now, mut sizes, mut read) = (SETTLES_MS, Vec::new(), BTreeSet::new());
    while let Some((topics, _)) = mirror.begin(now) {
        sizes.push(topics.len());
        let refused = topics.get(most..).unwrap_or_default();
        mirror.answered(refused, now);
        read.extend(topics.iter().take(most).cloned());
        now += QUIET_MS;
        let ended = mirror.end(now).unwrap();
        assert!(ended.missing.iter().all(|topic| !refused.contains(topic)), "it is not known what is there");
    }
    assert!(mirror.is_sure() && read.len() == 2_000, "{}", read.len());
    sizes
}

#[test]
fn many_doubtful_topics_are_read_ever_more_at_a_time() {
    let doubtful = || {
        let mut mirror = Mirror::new(0);
        (0..2_000).for_each(|number| mirror.doubt_again(&format!("t/{number}"), 0));
        mirror
    };
    assert_eq!(readings(&mut doubtful(), usize::MAX), [64, 128, 256, 512, 512, 512, 16]);
    // an upstream that takes so many subscriptions and no more
    let sizes = readings(&mut doubtful(), 100);
    assert_eq!((&sizes[..3], sizes.iter().max()), (&[64, 128, 64][..], Some(&128)));
}

#[test]
fn a_busy_topic_is_read_once_and_not_for_ever() {
    let mut mirror = Mirror::new(0);
    mirror.connected(false, false, 0);
    mirror.sent(TOPIC, 0);
    let arrival = |is_read| {
        let (is_repeated, is_same, is_absent, ours_since) = (false, false, false, None);
        MirroredArrival { remote: TOPIC, is_read, is_repeated, is_same, is_absent, ours_since }
    };
    assert_eq!(mirror.arrived(arrival(false), 100), MirrorVerdict::Take);
    let (topics, _) = mirror.begin(100 + SETTLES_MS).unwrap();
    assert_eq!(topics, [TOPIC]);
    mirror.answered(&[], 1_200);
    let mut now = 1_200;
    while mirror.end(now).is_none() {
        now += 500;
        assert!(now < 1_200 + 2 * QUIET_MS, "it has no end");
        assert_eq!(mirror.arrived(arrival(true), now), MirrorVerdict::Take);
    }
    // the message of ours that had crossed is known to have arrived before
    assert_eq!(mirror.arrived(arrival(false), now), MirrorVerdict::Take);
    assert!(mirror.is_sure(), "it is read again and again");
}

#[test]
fn a_reading_remembers_a_limited_number_of_topics() {
    let mut mirror = Mirror::new(0);
    mirror.begin_whole(0).unwrap();
    (0..=MOST_FOUND).for_each(|number| mirror.found(&number.to_string()));
    let reading = mirror.reading.as_ref().unwrap();
    assert!(reading.found.len() == MOST_FOUND && reading.is_partial);
}
