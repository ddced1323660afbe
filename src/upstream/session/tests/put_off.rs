use super::super::put_off::{FIRST_MS, MOST_PASSED_EXACT, PASSED_MS};
use super::super::*;
use super::suspect::Dice;
use super::{Bench, V4, V5, draft};
use crate::journal::{Limits, WhenFull};
use crate::upstream::rule::tests::rule;
use crate::upstream::settings::OutQos;

pub(super) const HOUR: u64 = 3_600_000;

/// An upstream that never acknowledges some of the messages, and passes the time that this takes.
struct Still {
    bench: Bench,
    now: u64,
    id: u16,
    /// All payloads that were sent.
    sent: Vec<String>,
    is_still: fn(&str) -> bool,
}

impl Still {
    fn new(bench: Bench, is_still: fn(&str) -> bool) -> Still {
        Still { bench, now: 0, id: 0, sent: Vec::new(), is_still }
    }

    /// Lets everything pass that passes on the present connection without a wait.
    fn flow(&mut self) {
        loop {
            if self.bench.session.deadline() == Some(0) {
                self.wait();
            }
            self.bench.pump(self.now);
            let payloads = self.bench.deliver(self.id + 1);
            if payloads.is_empty() {
                return;
            }
            for payload in payloads {
                self.id = if self.id == 0x3000 { 1 } else { self.id + 1 };
                if !(self.is_still)(&payload) {
                    let actions = self.bench.session.acked(self.id, 0, self.now);
                    self.bench.perform(actions);
                }
                self.sent.push(payload);
            }
        }
    }

    /// Waits for what comes next, and connects anew if the session wants that.
    fn wait(&mut self) {
        let Some(deadline) = self.bench.session.deadline() else { return };
        self.now = self.now.max(deadline);
        self.bench.time(self.now);
        let (broken, renewed) = (std::mem::take(&mut self.bench.broken), std::mem::take(&mut self.bench.renewed));
        if broken || renewed {
            let why = if broken { Broken::Silent } else { Broken::Failed("renewed".into()) };
            self.bench.disconnect_at(&why, self.now);
            self.bench.sent.clear();
            self.connect();
        }
    }

    fn connect(&mut self) {
        self.bench.disconnect_at(&Broken::Failed(String::new()), self.now);
        self.bench.sent.clear();
        let actions = self.bench.session.connected(V4, self.now);
        self.bench.perform(actions);
        self.id = 0;
    }

    /// Runs until this number of messages are acknowledged, for at most so long.
    fn run(&mut self, acked: u64, most: u64) {
        self.connect();
        loop {
            self.flow();
            if self.bench.ledger().acked >= acked {
                return;
            }
            self.wait();
            assert!(self.now <= most, "{} of {acked} after {} s", self.bench.ledger().acked, self.now / 1000);
        }
    }

    fn times(&self, payload: &str) -> usize {
        self.sent.iter().filter(|sent| *sent == payload).count()
    }
}

fn window(most: u16, count: u32) -> Bench {
    let mut bench = Bench::new(|settings| settings.max_inflight = most);
    let limits = Limits { messages: 10_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };
    bench.journal.register("upstream/home", limits);
    bench.append_many(0..count);
    bench
}

#[test]
fn a_message_that_is_never_answered_does_not_hold_up_the_others() {
    let mut still = Still::new(window(4, 20), |payload| payload == "0");
    still.run(19, PASSED_MS);
    assert!(!still.bench.broken && still.bench.session.in_flight() == 1);
    still.bench.disconnect_at(&Broken::Failed(String::new()), still.now);
    still.is_still = |_| false;
    still.run(20, PASSED_MS + FIRST_MS);
    assert_eq!((still.times("0"), still.bench.ledger().pending), (2, 0));
}

/// Sends so many messages to an upstream that answers each after the time that `late` tells, of its number and a random number.
/// Returns the number of those that were sent.
fn sent_to_late(messages: u32, late: impl Fn(u64, u64) -> u64) -> usize {
    let (mut bench, mut dice) = (window(20, messages), Dice(1));
    let (mut now, mut sent, mut is_connected) = (0, 0, false);
    let mut unanswered: Vec<(u64, u16)> = Vec::new();
    while bench.ledger().acked < u64::from(messages) {
        if !std::mem::replace(&mut is_connected, true) {
            let actions = bench.session.connected(V4, now);
            bench.perform(actions);
        }
        bench.pump(now);
        let first = unanswered.iter().map(|(_, id)| *id).max().unwrap_or(0) + 1;
        for id in (first..).take(bench.deliver(first).len()) {
            unanswered.push((now + late(sent as u64, dice.roll()), id));
            sent += 1;
        }
        let next = unanswered.iter().map(|(at, _)| *at).chain(bench.session.deadline()).min();
        now = now.max(next.unwrap());
        assert!(now < HOUR, "{:?}", bench.ledger());
        bench.time(now);
        while let Some(at) = unanswered.iter().position(|(at, _)| *at <= now) {
            let (_, id) = unanswered.remove(at);
            let actions = bench.session.acked(id, 0, now);
            bench.perform(actions);
        }
        if std::mem::take(&mut bench.renewed) || std::mem::take(&mut bench.broken) {
            bench.disconnect_at(&Broken::Failed(String::new()), now);
            (unanswered, is_connected) = (Vec::new(), false);
        }
    }
    sent
}

#[test]
fn an_upstream_that_answers_late_and_out_of_order_gets_few_messages_twice() {
    // up to 25 s late, or that late with every fifth
    let random = sent_to_late(400, |_, roll| roll % 25_000);
    assert!(random <= 400 + 20, "{random}");
    let fifth = sent_to_late(400, |number, _| if number.is_multiple_of(5) { 25_000 } else { 10 });
    assert!(fifth <= 400 + 20, "{fifth}");
}

#[test]
fn nor_where_the_window_has_one_place() {
    let mut still = Still::new(window(1, 50), |payload| payload == "7");
    still.run(49, 4 * ANSWER_TIMEOUT_MS);
    assert_eq!(still.bench.ledger().pending, 1);
    // it is tried again, more and more rarely, and never dropped
    let before = still.times("7");
    for _ in 0..40 {
        still.wait();
        still.flow();
    }
    let (attempts, hours) = (still.times("7") - before, still.now / HOUR);
    assert!(hours >= 3 && attempts as u64 <= hours + 12, "{attempts} in {hours} h");
    assert_eq!((still.bench.ledger().pending, still.bench.ledger().dropped.total()), (1, 0));
    still.is_still = |_| false;
    still.run(50, still.now + 2 * HOUR);
}

#[test]
fn nor_if_as_many_as_the_window_has_places_are_never_answered() {
    let mut still = Still::new(window(4, 60), |payload| ["3", "4", "5", "6", "17"].contains(&payload));
    still.run(55, 10 * ANSWER_TIMEOUT_MS);
    assert_eq!((still.bench.ledger().pending, still.bench.ledger().dropped.total()), (5, 0));
}

#[test]
fn any_number_goes_past_it_and_it_is_appended_again() {
    let mut still = Still::new(window(10, 3_000), |payload| payload == "1");
    still.run(2_999, 10 * ANSWER_TIMEOUT_MS);
    let ledger = still.bench.ledger();
    assert_eq!((ledger.accepted, ledger.acked, ledger.pending, ledger.dropped.total()), (3_000, 2_999, 1, 0));
    assert!(still.sent.len() < 3_010, "{}", still.sent.len());
    // what a crash repeats
    let first = still.bench.journal.maybe_sent(still.bench.consumer, 0).start;
    assert!(first > 2_400, "{first}");
    still.is_still = |_| false;
    still.run(3_000, still.now + HOUR);
    assert!(still.bench.session.put_off.is_clear());
}

#[test]
fn what_is_acknowledged_after_it_was_appended_again_is_not_sent_again() {
    let mut still = Still::new(window(10, 1_200), |payload| payload == "0");
    still.run(1_199, 10 * ANSWER_TIMEOUT_MS);
    let count = still.times("0");
    // the first packet id of this connection
    let actions = still.bench.session.acked(1, 0, still.now);
    still.bench.perform(actions);
    still.flow();
    assert_eq!((still.bench.ledger().acked, still.bench.ledger().pending, still.times("0")), (1_200, 0, count));
}

#[test]
fn a_packet_id_that_stays_in_use_is_not_used_again() {
    let mut still = Still::new(window(100, 9_500), |payload| payload == "0");
    still.run(9_499, 10 * ANSWER_TIMEOUT_MS);
    assert!(still.id < 9_000 && still.bench.ledger().pending == 1, "there was a new connection");
}

#[test]
fn a_topic_of_which_nothing_is_answered_waits_in_order() {
    let mut bench = Bench::new(|settings| settings.max_inflight = 8);
    for number in 0..60 {
        let topic = if number % 3 == 0 { "still" } else { "t" };
        bench.append(&draft(topic, format!("{topic} {number}").as_bytes()));
    }
    let mut still = Still::new(bench, |payload| payload.starts_with("still"));
    still.run(40, 2 * ANSWER_TIMEOUT_MS);
    let attempts = still.sent.iter().filter(|payload| payload.starts_with("still")).count();
    assert!(attempts < 10, "{attempts}");
    still.is_still = |_| false;
    still.sent.clear();
    still.run(60, still.now + HOUR);
    let order: Vec<u32> = still.sent.iter().map(|payload| payload[6..].parse().unwrap()).collect();
    assert!(order.is_sorted() && order.len() == 20, "{order:?}");
}

/// Connects and sends until a message is too large for the line, which then goes silent.
fn through_a_narrow_line(bench: &mut Bench, now: u64) -> Vec<String> {
    let actions = bench.session.connected(V4, now);
    bench.perform(actions);
    let (mut id, mut arrived) = (0, Vec::new());
    loop {
        bench.pump(now);
        let payloads = bench.deliver(id + 1);
        if payloads.is_empty() {
            return arrived;
        }
        for payload in payloads {
            id += 1;
            if payload.len() > 1000 {
                bench.disconnect_at(&Broken::Silent, now);
                bench.sent.clear();
                return arrived;
            }
            let actions = bench.session.acked(id, 0, now);
            bench.perform(actions);
            arrived.push(payload);
        }
    }
}

#[test]
fn a_message_at_which_the_line_goes_silent_does_not_hold_up_the_others() {
    let mut bench = Bench::new(|_| {});
    for number in 0..30 {
        let payload = if [3, 9, 20].contains(&number) { "x".repeat(2000 + number) } else { number.to_string() };
        bench.append(&draft("t", payload.as_bytes()));
    }
    let mut connections = 0;
    while bench.ledger().acked < 27 {
        connections += 1;
        assert!(connections < 7, "{:?}", bench.ledger());
        through_a_narrow_line(&mut bench, 0);
    }
    assert_eq!((bench.ledger().pending, bench.ledger().dropped.total()), (3, 0));
    assert!(bench.session.deadline().is_some_and(|due| due == FIRST_MS));
    bench.time(FIRST_MS);
    bench.pump(FIRST_MS);
    assert_eq!(bench.deliver(100)[0].len(), 2003);
}

/// What arrives after this number of connections on which nothing is answered, without a wait.
fn after_dead_connections(mut bench: Bench, count: u64, all: u64) -> Vec<String> {
    for now in 0..count {
        let actions = bench.session.connected(V4, now);
        bench.perform(actions);
        bench.pump(now);
        bench.deliver(1);
        bench.disconnect_at(&Broken::Silent, now);
    }
    let mut still = Still::new(bench, |_| false);
    still.run(all, 0);
    assert_eq!(still.bench.ledger().pending, 0);
    still.sent
}

#[test]
fn a_line_on_which_nothing_gets_through_keeps_the_order() {
    for connections in 0..10 {
        let order: Vec<u32> = after_dead_connections(window(4, 8), connections, 8)
            .iter()
            .map(|payload| payload.parse().unwrap())
            .collect();
        // one may have gone first, to see whether any does; then it comes in its turn as well
        let last = order.iter().enumerate().filter(|(at, number)| !order[at + 1..].contains(number));
        assert!(last.map(|(_, number)| *number).eq(0..8), "{order:?}");
        assert!(order.len() <= if connections < 3 { 8 } else { 9 }, "{order:?}");
    }
}

#[test]
fn a_line_on_which_nothing_gets_through_keeps_the_order_of_each_topic() {
    for connections in 0..10 {
        let mut bench = Bench::new(|settings| settings.max_inflight = 4);
        for number in 0..9 {
            bench.append(&draft(["a", "a", "b"][number % 3], number.to_string().as_bytes()));
        }
        let arrived = after_dead_connections(bench, connections, 9);
        let of = |topic: &[&str]| -> String {
            arrived.iter().map(String::as_str).filter(|payload| topic.contains(payload)).collect()
        };
        let topics = [of(&["0", "1", "3", "4", "6", "7"]), of(&["2", "5", "8"])];
        assert_eq!(topics, ["013467", "258"]);
        assert!(arrived.iter().position(|payload| payload == "0").is_some_and(|at| at < 2), "{arrived:?}");
    }
}

#[test]
fn an_upstream_that_closes_at_pubrel_gets_the_others() {
    let mut bench = Bench::new(|settings| {
        settings.out = vec![rule("exact", "", "", OutQos::ExactlyOnce), rule("#", "", "", OutQos::AtLeastOnce)];
    });
    for number in 0..20 {
        let topic = if number % 4 == 1 { "exact" } else { "t" };
        bench.append(&draft(topic, format!("{topic} {number}").as_bytes()));
    }
    let mut connections = 0;
    while bench.ledger().acked < 15 {
        connections += 1;
        assert!(connections < 7, "{:?}", bench.ledger());
        let link = Link { session_present: connections > 1, ..V4 };
        let actions = bench.session.connected(link, 0);
        bench.perform(actions);
        'connection: loop {
            bench.pump(0);
            if let Some(id) = bench.released.pop() {
                bench.session.released(id, 0);
                bench.disconnect(&Broken::Closed);
                bench.sent.clear();
                bench.released.clear();
                break;
            }
            let chosen: Vec<_> = bench.sent.iter().map(|message| message.packet_id).collect();
            bench.deliver(1);
            if chosen.is_empty() {
                break 'connection;
            }
            for (number, chosen) in chosen.into_iter().enumerate() {
                match chosen {
                    Some(id) => {
                        let actions = bench.session.recorded(id, 0);
                        bench.perform(actions);
                        // PUBREL leaves when that is on disk
                        bench.released.extend(bench.recorded.pop());
                    }
                    None => bench.ack(number as u16 + 1, 0),
                }
            }
        }
    }
    assert_eq!((bench.ledger().pending, bench.ledger().dropped.total()), (5, 0));
    assert!(bench.session.blames(), "so that no second client with this id is suspected");
}

#[test]
fn at_qos_2_what_goes_past_a_message_is_bounded_too() {
    const { assert!(MOST_PASSED_EXACT > MOST_PASSED) };
    let mut bench = Bench::new(|settings| {
        settings.out = vec![rule("#", "", "", OutQos::ExactlyOnce)];
        settings.max_inflight = 4;
    });
    bench.append_many(0..10);
    bench.connect(V5);
    let mut arrived = 0;
    for now in [0, PASSED_MS, PASSED_MS] {
        bench.time(now);
        loop {
            bench.pump(now);
            let ids: Vec<u16> = bench.sent.iter().filter_map(|message| message.packet_id).collect();
            if ids.is_empty() {
                break;
            }
            bench.deliver(1);
            for id in ids.into_iter().filter(|id| *id != 0x4001) {
                for act in [UpstreamSession::recorded, UpstreamSession::completed] {
                    let actions = act(&mut bench.session, id, now);
                    bench.perform(actions);
                    bench.session.released(id, now);
                }
                arrived += 1;
            }
        }
    }
    assert_eq!((arrived, bench.ledger().acked, bench.ledger().pending), (9, 9, 1));
}
