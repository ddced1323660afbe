//! Tests of the two lanes with session and journal, without a connection or a clock.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use crate::journal::{Journal, Limits, WhenFull};
use crate::message::{Draft, Message, Origin, Qos};
use crate::status::ledger::Ledger;
use crate::upstream::choice::next_delivery;
use crate::upstream::lanes::{Consumers, Lane, Lanes, Readers};
use crate::upstream::rule::UpstreamRules;
use crate::upstream::rule::tests::{rule, settings};
use crate::upstream::session::{BACKLOG_BYTES, STRIKES, SessionAction, UpstreamSession};
use crate::upstream::settings::{Order, OutQos};
use crate::upstream::wire::{Broken, Link, Role, Version};

const V5: Link = Link {
    version: Version::V5,
    session_present: true,
    receive_maximum: u16::MAX,
    max_packet_size: None,
    max_qos: Qos::ExactlyOnce,
    retain_available: true,
    has_subscription_ids: true,
    topic_aliases: 0,
    gateway: None,
};

struct Bench {
    journal: Journal,
    consumers: Consumers,
    readers: Readers,
    lanes: Lanes,
    session: UpstreamSession,
    connected: bool,
    /// Payloads in flight with their packet ids.
    sent: VecDeque<(u16, String)>,
    next_id: u16,
    /// What the upstream has acknowledged.
    arrived: Vec<String>,
    now: u64,
    /// Whether a message was put off.
    was_put_off: bool,
}

impl Bench {
    fn new(max_inflight: u16) -> Bench {
        Bench::with_order(max_inflight, Order::LiveFirst)
    }

    fn with_order(max_inflight: u16, order: Order) -> Bench {
        let journal = Journal::default();
        let limits = Limits { messages: 100_000, bytes: 1 << 30, when_full: WhenFull::DropOldest };
        let consumers = Consumers::register(&journal, "home", limits, order);
        let mut settings = settings();
        settings.max_inflight = max_inflight;
        settings.out.push(rule("#", "", "", OutQos::AtLeastOnce));
        Bench {
            readers: consumers.readers(),
            lanes: Lanes::new(order, consumers.waiting()),
            session: UpstreamSession::new(UpstreamRules::new(&settings), &settings),
            journal,
            consumers,
            connected: false,
            sent: VecDeque::new(),
            next_id: 0,
            arrived: Vec::new(),
            now: 0,
            was_put_off: false,
        }
    }

    fn draft(payload: &[u8]) -> Draft<'_> {
        Draft { qos: Qos::AtLeastOnce, origin: Origin::client("somebody"), ..Draft::new("t", payload) }
    }

    fn append(&self, payload: &[u8]) {
        self.append_draft(&Bench::draft(payload));
    }

    fn append_draft(&self, draft: &Draft<'_>) {
        let to = self.consumers.id(self.lanes.append());
        let position = self.journal.append(&Message::new(draft), &[to]).unwrap();
        while *self.journal.synced().borrow() < position {
            std::thread::yield_now();
        }
    }

    fn append_many(&self, what: &str, count: usize) {
        (0..count).for_each(|number| self.append(format!("{what}{number}").as_bytes()));
    }

    fn connect(&mut self, link: Link) {
        self.lanes.connected(self.consumers.waiting());
        let actions = self.session.connected(link, self.now);
        self.connected = true;
        self.perform(actions);
    }

    fn disconnect(&mut self, why: &Broken) {
        let actions = self.session.disconnected(why, self.now);
        self.sent.clear();
        self.connected = false;
        self.was_put_off |= *why == Broken::Silent && self.session.blames();
        self.perform(actions);
        self.lanes.disconnected(self.consumers.waiting());
    }

    fn perform(&mut self, actions: Vec<SessionAction>) {
        for action in actions {
            match action {
                SessionAction::Publish(message) => {
                    self.next_id = self.next_id % 60_000 + 1;
                    let text = String::from_utf8_lossy(&message.payload[..message.payload.len().min(9)]).into_owned();
                    let packet_id = message.packet_id.unwrap_or(self.next_id);
                    self.sent.push_back((packet_id, text));
                    let actions = self.session.sent(packet_id);
                    self.perform(actions);
                }
                SessionAction::Settle(lane, position, outcome) => {
                    self.readers.settle(lane, position, outcome.in_journal());
                }
                SessionAction::Rewind => self.readers.rewind(),
                _ => {}
            }
        }
        self.readers.say_settled();
    }

    /// Does what the task does.
    fn pump(&mut self) {
        loop {
            if self.session.due(self.now).is_some() {
                let actions = self.session.send_due(true, self.now);
                self.perform(actions);
                continue;
            }
            if self.session.held().is_some() {
                let actions = self.session.send_held(true, self.now);
                self.perform(actions);
                continue;
            }
            let next = next_delivery(&self.lanes, &mut self.session, &mut self.readers);
            let Some((turn, delivery)) = next else {
                if self.session.nothing_else() {
                    continue;
                }
                return;
            };
            let actions = self.session.delivery(turn, delivery, true, self.now);
            self.perform(actions);
        }
    }

    fn ack(&mut self, count: usize) {
        for _ in 0..count {
            let Some((id, text)) = self.sent.pop_front() else { return };
            self.arrived.push(text);
            let actions = self.session.acked(id, 0, self.now);
            self.perform(actions);
        }
    }

    fn under_way(&self) -> Vec<&str> {
        self.sent.iter().map(|(_, text)| text.as_str()).collect()
    }

    fn ledger(&self) -> Ledger {
        let ledger = Ledger::of(&self.consumers.backlog());
        assert!(ledger.is_balanced(), "{ledger:?}");
        ledger
    }
}

/// mosquitto drops what it has no room for, and cannot say so before version 5.
#[test]
fn new_messages_at_qos_2_wait_for_what_the_upstream_has_of_the_backlog() {
    let v4 = Link { version: Version::V311, ..V5 };
    let mut bench = Bench::new(100);
    let mut exact = settings();
    exact.out.push(rule("#", "", "", OutQos::ExactlyOnce));
    bench.session.set_rules(UpstreamRules::new(&exact), 0);
    bench.append_many("old", 60);
    bench.connect(Link { session_present: false, ..v4 });
    bench.pump();
    assert_eq!(bench.sent.len(), 18, "an eighth of the window is for new messages");
    bench.append_many("new", 60);
    bench.pump();
    let mut there: BTreeSet<String> = bench.sent.iter().map(|(_, text)| text.clone()).collect();
    assert_eq!(there.len(), 20);
    for _ in 0..3 {
        bench.disconnect(&Broken::Failed(String::new()));
        bench.connect(v4);
        bench.pump();
        there.extend(bench.sent.iter().map(|(_, text)| text.clone()));
        assert!(there.len() <= 20, "{there:?}");
    }
}

#[test]
fn live_messages_pass_the_backlog_which_uses_the_rest_of_the_window() {
    let mut bench = Bench::new(16);
    bench.append_many("old", 50);
    bench.connect(V5);
    bench.pump();
    assert_eq!(bench.sent.len(), 14, "an eighth of the window is kept free");
    bench.append_many("new", 3);
    bench.pump();
    assert_eq!(bench.under_way()[14..], ["new0", "new1"], "at once");
    bench.ack(1);
    bench.pump();
    assert_eq!(bench.under_way().last(), Some(&"new2"), "before the rest of the backlog");
    while bench.ledger().pending > 0 {
        bench.ack(1);
        bench.pump();
    }
    let of = |what: &str| -> Vec<&String> { bench.arrived.iter().filter(|text| text.starts_with(what)).collect() };
    assert_eq!(of("old").len(), 50);
    assert_eq!(of("new"), ["new0", "new1", "new2"]);
    assert_eq!(bench.ledger().acked, 53);
    // nothing waits, so the next outage begins after what is in flight
    bench.append(b"a");
    bench.pump();
    bench.disconnect(&Broken::Silent);
    bench.append(b"b");
    bench.connect(V5);
    bench.append(b"c");
    bench.pump();
    assert_eq!(bench.under_way(), ["c", "a", "b"]);
}

#[test]
fn large_messages_of_a_backlog_do_not_fill_a_slow_line() {
    let mut bench = Bench::new(100);
    (0..10).for_each(|_| bench.append(&[b'x'; BACKLOG_BYTES / 2]));
    bench.connect(V5);
    bench.pump();
    assert_eq!(bench.sent.len(), 2);
    bench.ack(1);
    bench.pump();
    assert_eq!(bench.sent.len(), 2);
    bench.disconnect(&Broken::Silent);
    bench.connect(Link { receive_maximum: 1, ..V5 });
    bench.pump();
    assert_eq!(bench.sent.len(), 1, "a window of one is shared");
}

#[test]
fn a_message_that_ends_the_connection_is_found_in_the_backlog_while_live_ones_come() {
    let mut bench = Bench::new(16);
    bench.append_many("old", 5);
    bench.append(b"poison");
    bench.append_many("older", 5);
    let mut connections = 0;
    while bench.ledger().pending > 0 {
        connections += 1;
        assert!(connections < 12, "{:?}", bench.ledger());
        bench.now += 6_000;
        bench.connect(Link { version: Version::V311, ..V5 });
        bench.append(format!("live{connections}").as_bytes());
        loop {
            bench.pump();
            let Some((_, next)) = bench.sent.front() else { break };
            if next == "poison" {
                bench.disconnect(&Broken::Closed);
                break;
            }
            bench.ack(1);
        }
    }
    assert_eq!(connections, STRIKES + 3);
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.dropped.ends_connection), (10 + u64::from(connections), 1));
    assert!(!Lane::ALL.iter().any(|lane| bench.session.suspects(*lane)));
    assert!(bench.session.has_room(Role::Live));
}

#[test]
fn in_strict_order_nothing_passes_what_another_order_has_left_on_disk() {
    const OLD: usize = 80;
    let mut bench = Bench::with_order(1000, Order::LiveFirst);
    bench.connect(V5);
    // more than is read ahead at a time
    let old = bench.consumers.id(bench.lanes.for_old());
    for number in 0..OLD {
        let payload = format!("{number} {:50000}", "");
        bench.journal.append(&Message::new(&Bench::draft(payload.as_bytes())), &[old]).unwrap();
    }
    bench.lanes = Lanes::new(Order::Strict, bench.consumers.waiting());
    bench.append(b"new");
    while bench.ledger().pending > 0 {
        bench.pump();
        bench.ack(1000);
    }
    let place = bench.arrived.iter().position(|text| text == "new");
    assert_eq!((place, bench.arrived.len()), (Some(OLD), OLD + 1));
}

#[test]
fn a_message_that_was_overtaken_goes_without_its_retain_flag_and_a_deletion_is_reported() {
    let mut bench = Bench::new(16);
    let retained = Draft { retain: true, ..Bench::draft(b"") };
    for _ in 0..2 {
        bench.append_draft(&retained);
    }
    bench.connect(V5);
    let mut deliveries = (0..2).map(|_| bench.readers.next_of(Lane::First, 1).unwrap()).collect::<Vec<_>>();
    let turn = (Lane::First, Role::Live);
    for (is_current, delivery) in [false, true].into_iter().zip(deliveries.drain(..)) {
        let actions = bench.session.delivery(turn, delivery, is_current, 0);
        assert!(matches!(&actions[..], [SessionAction::Publish(out)] if out.retain == is_current), "{actions:?}");
    }
    for id in 1..=2 {
        bench.session.sent(id);
        let is_deletion = bench.session.acked(id, 0, 0).contains(&SessionAction::Deleted("t".into()));
        assert_eq!(is_deletion, id == 2);
    }
}

proptest! {
    /// Whatever happens to the connection, nothing is missing, each lane is in order, and the ledger balances.
    #[test]
    fn nothing_is_lost_between_the_lanes(steps in prop::collection::vec(0..100u8, 1..200)) {
        let mut bench = Bench::new(4);
        let mut lane_of = Vec::new();
        for step in steps.into_iter().chain([99, 30].into_iter().chain([100; 2_000])) {
            match step {
                0..25 => {
                    bench.append(lane_of.len().to_string().as_bytes());
                    lane_of.push(bench.lanes.append());
                }
                25..30 if bench.connected => bench.disconnect(if step == 25 { &Broken::Closed } else { &Broken::Silent }),
                30..55 if !bench.connected => bench.connect(V5),
                _ if bench.connected => {
                    // what was put off is sent in the end
                    bench.now = if step == 100 { 7_200_000 } else { bench.now };
                    bench.pump();
                    bench.ack(1);
                }
                _ => {}
            }
            bench.ledger();
        }
        let ledger = bench.ledger();
        prop_assert_eq!((ledger.pending, ledger.acked + ledger.dropped.ends_connection), (0, lane_of.len() as u64));
        for lane in Lane::ALL {
            let numbers: Vec<usize> = bench.arrived.iter().map(|text| text.parse().unwrap()).collect();
            let mut of_lane: Vec<usize> = numbers.into_iter().filter(|number| lane_of[*number] == lane).collect();
            prop_assert!(of_lane.is_sorted() || bench.was_put_off, "{:?} {of_lane:?}", lane);
            of_lane.sort_unstable();
            of_lane.dedup();
            let expected = lane_of.iter().filter(|known| **known == lane).count() as u64;
            prop_assert!(of_lane.len() as u64 + ledger.dropped.ends_connection >= expected);
        }
    }
}
