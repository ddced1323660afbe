mod after_answer;
mod coincidence;
mod denied;
mod exact;
mod later;
mod limits;
mod loops;
mod opening;
mod outgoing;
mod packet_limits;
mod policies;
mod put_off;
mod refusals;
mod sizes;
mod strict;
mod suspect;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::rule::tests::{rule, settings};
use super::super::settings::OutQos;
use super::super::wire::{InMessage, Version};
use super::*;
use crate::journal::{Journal, Limits, Reader, WhenFull};
use crate::message::{Draft, Message, via};
use crate::status::ledger::Ledger;

const V5: Link = Link {
    version: Version::V5,
    session_present: false,
    receive_maximum: u16::MAX,
    max_packet_size: None,
    max_qos: Qos::ExactlyOnce,
    retain_available: true,
    has_subscription_ids: true,
    topic_aliases: 0,
    gateway: None,
};
const V4: Link = Link { version: Version::V311, ..V5 };

/// A journal, a session that reads it, and the messages that the upstream was sent.
struct Bench {
    journal: Journal,
    consumer: crate::journal::ConsumerId,
    reader: Reader,
    /// The lane of what comes back, which goes first, and its reader.
    old: (crate::journal::ConsumerId, Reader),
    session: UpstreamSession,
    sent: Vec<OutMessage>,
    /// The filters of the SUBSCRIBE packets since this was last taken.
    asked: Vec<Vec<String>>,
    broken: bool,
    renewed: bool,
    recorded: Vec<u16>,
    released: Vec<u16>,
    /// The topics of the messages that no rule matched.
    shelved: Vec<String>,
    /// The messages whose topic is denied.
    denied: Vec<Message>,
    /// The messages that are larger than the connection takes, and how often these were looked at.
    large: (Vec<Message>, usize),
}

fn draft<'a>(topic: &'a str, payload: &'a [u8]) -> Draft<'a> {
    Draft { qos: Qos::AtLeastOnce, origin: Origin::client("somebody"), ..Draft::new(topic, payload) }
}

/// The next message, which the journal may have to read first.
fn next_of(reader: &mut Reader) -> Option<crate::journal::Delivery> {
    loop {
        let next = reader.try_next();
        if next.is_some() || !reader.has_unread() {
            return next;
        }
        std::thread::yield_now();
    }
}

impl Bench {
    fn new(change: impl FnOnce(&mut UpstreamSettings)) -> Bench {
        let journal = Journal::default();
        let limits = Limits { messages: 1_000, bytes: 16 << 20, when_full: WhenFull::DropOldest };
        let consumer = journal.register("upstream/home", limits);
        let mut settings = settings();
        settings.max_inflight = 4;
        settings.out.push(rule("#", "", "up/", OutQos::AtLeastOnce));
        change(&mut settings);
        let session = UpstreamSession::new(UpstreamRules::new(&settings), &settings);
        let reader = journal.reader(consumer);
        let old = journal.register("upstream/home/2", limits);
        let old = (old, journal.reader(old));
        let (sent, recorded, released) = (Vec::new(), Vec::new(), Vec::new());
        let (shelved, denied, asked) = (Vec::new(), Vec::new(), Vec::new());
        let (broken, renewed) = (false, false);
        Bench {
            journal,
            consumer,
            reader,
            old,
            session,
            sent,
            asked,
            broken,
            renewed,
            recorded,
            released,
            shelved,
            denied,
            large: (Vec::new(), 0),
        }
    }

    fn append(&mut self, draft: &Draft<'_>) {
        let position = self.journal.append(&Message::new(draft), &[self.consumer]).unwrap();
        // the journal hands out nothing before it is on disk
        while *self.journal.synced().borrow() < position {
            std::thread::yield_now();
        }
    }

    fn append_many(&mut self, payloads: std::ops::Range<u32>) {
        for payload in payloads {
            self.append(&draft("t", payload.to_string().as_bytes()));
        }
    }

    fn perform(&mut self, actions: Vec<SessionAction>) {
        for action in actions {
            match action {
                SessionAction::Publish(message) => self.sent.push(message),
                SessionAction::Settle(lane, position, outcome) => self.settle(lane, position, outcome.in_journal()),
                SessionAction::Rewind => {
                    self.reader.rewind();
                    self.old.1.rewind();
                }
                SessionAction::Shelve(Lane::First, position) => {
                    let message = self.session.unmeant(Lane::First, position).unwrap();
                    self.shelved.push(message.view().topic().to_owned());
                    self.reader.settle_as(position, crate::journal::Outcome::Moved);
                }
                SessionAction::Shelve(..) => panic!("one lane only"),
                SessionAction::Deny(lane, position) => {
                    let message = self.session.unmeant(lane, position).unwrap();
                    self.denied.push(message.clone());
                    self.settle(lane, position, crate::journal::Outcome::Moved);
                    if self.session.is_on_shelf(&message) {
                        self.take_back();
                    }
                }
                SessionAction::TakeBack => self.take_back(),
                SessionAction::KeepLarge(lane, position) => {
                    self.large.0.push(self.session.unmeant(lane, position).unwrap());
                    self.settle(lane, position, crate::journal::Outcome::Moved);
                }
                SessionAction::TakeBackLarge => self.take_back_large(),
                SessionAction::Break => self.broken = true,
                SessionAction::Renew => self.renewed = true,
                SessionAction::Move(lane, position) => {
                    let message = self.session.moving(lane, position).unwrap();
                    let consumer = if lane == Lane::First { self.consumer } else { self.old.0 };
                    let moved = self.journal.append(&message, &[consumer]).unwrap();
                    self.settle(lane, position, crate::journal::Outcome::Moved);
                    while *self.journal.synced().borrow() < moved {
                        std::thread::yield_now();
                    }
                    let actions = self.session.moved(lane, position, Some(moved));
                    self.perform(actions);
                }
                SessionAction::Record(_, _, packet_id) => self.recorded.push(packet_id),
                SessionAction::Release(packet_id) => {
                    assert!(self.session.is_exact(), "no rule has QoS 2");
                    self.released.push(packet_id);
                }
                SessionAction::Subscribe(filters, _) => {
                    self.asked.push(filters.iter().map(|(filter, _)| filter.to_string()).collect());
                }
                SessionAction::Unsubscribe(_) | SessionAction::Deleted(_) | SessionAction::Ping => {}
            }
        }
    }

    fn settle(&mut self, lane: Lane, position: Position, outcome: crate::journal::Outcome) {
        let reader = if lane == Lane::First { &mut self.reader } else { &mut self.old.1 };
        reader.settle_as(position, outcome);
    }

    /// Appends what comes back from the shelf.
    fn take_back(&mut self) {
        for message in std::mem::take(&mut self.denied) {
            if self.session.takes_back(&message) {
                let position = self.journal.append(&message, &[self.old.0]).unwrap();
                while *self.journal.synced().borrow() < position {
                    std::thread::yield_now();
                }
            } else {
                self.denied.push(message);
            }
        }
        self.session.took_back();
    }

    /// Appends what comes back from the shelf of large messages.
    fn take_back_large(&mut self) {
        if !self.large.0.is_empty() {
            if !self.session.wants_large() {
                return;
            }
            self.large.1 += 1;
        }
        for message in std::mem::take(&mut self.large.0) {
            if self.session.takes_back_large(&message) {
                let position = self.journal.append(&message, &[self.old.0]).unwrap();
                while *self.journal.synced().borrow() < position {
                    std::thread::yield_now();
                }
            } else {
                self.large.0.push(message);
            }
        }
        self.session.took_back_large();
    }

    fn connect(&mut self, link: Link) {
        let actions = self.session.connected(link, 0);
        self.perform(actions);
    }

    fn pump(&mut self, now: u64) {
        loop {
            let actions = if self.session.due(now).is_some() {
                self.session.send_due(true, now)
            } else if self.session.held().is_some() {
                self.session.send_held(true, now)
            } else if self.session.has_room(Role::Live)
                && let Some(delivery) = next_of(&mut self.old.1)
            {
                self.session.delivery((Lane::Second, Role::Live), delivery, true, now)
            } else if self.session.has_room(Role::Live)
                && let Some(delivery) = next_of(&mut self.reader)
            {
                self.session.delivery((Lane::First, Role::Live), delivery, true, now)
            } else if self.session.nothing_else() {
                continue;
            } else {
                let actions = self.session.open_further(true, now);
                return self.perform(actions);
            };
            self.perform(actions);
        }
    }

    /// Lets the upstream receive all that was sent, with packet ids from `first` on.
    fn deliver(&mut self, first: u16) -> Vec<String> {
        let sent = std::mem::take(&mut self.sent);
        let mut id = first;
        for message in &sent {
            let packet_id = if message.qos == Qos::AtMostOnce { 0 } else { message.packet_id.unwrap_or(id) };
            id += u16::from(packet_id != 0);
            let actions = self.session.sent(packet_id);
            self.perform(actions);
        }
        sent.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()).collect()
    }

    fn ack(&mut self, packet_id: u16, reason: u8) {
        let actions = self.session.acked(packet_id, reason, 0);
        self.perform(actions);
    }

    /// Answers the oldest unanswered subscription packet.
    fn subscribed(&mut self, reasons: &[u8], now: u64) -> Vec<SessionAction> {
        let number = self.session.oldest_asked().unwrap_or_default();
        self.session.subscribed(number, reasons, now)
    }

    fn disconnect(&mut self, why: &Broken) {
        self.disconnect_at(why, 0);
    }

    fn disconnect_at(&mut self, why: &Broken, now: u64) {
        let actions = self.session.disconnected(why, now);
        self.perform(actions);
    }

    fn time(&mut self, now: u64) {
        let actions = self.session.time(now);
        self.perform(actions);
    }

    fn ledger(&self) -> Ledger {
        let ledger = Ledger::of(&self.reader.backlog().plus(&self.old.1.backlog()));
        assert!(ledger.is_balanced(), "{ledger:?}");
        ledger
    }
}

#[test]
fn the_window_slides_on_the_oldest_unanswered() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..10);
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["0", "1", "2", "3"]);
    bench.ack(2, 0);
    bench.pump(0);
    assert!(bench.sent.is_empty(), "the oldest is unanswered");
    assert_eq!(bench.ledger().acked, 0, "settled in order");
    bench.ack(1, 0x10);
    bench.pump(0);
    assert_eq!(bench.deliver(5), ["4", "5"]);
    assert_eq!((bench.ledger().acked, bench.ledger().pending), (2, 8));
}

#[test]
fn the_upstreams_receive_maximum_bounds_the_window() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..10);
    bench.connect(Link { receive_maximum: 2, ..V5 });
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["0", "1"]);
}

#[test]
fn after_a_break_everything_unsettled_is_sent_again_in_order() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..5);
    bench.connect(V5);
    bench.pump(0);
    bench.deliver(1);
    bench.ack(1, 0);
    bench.ack(3, 0);
    bench.disconnect(&Broken::Silent);
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["1", "2", "3", "4"]);
    for id in 1..=4 {
        bench.ack(id, 0);
    }
    assert_eq!((bench.ledger().acked, bench.ledger().pending), (5, 0));
}

#[test]
fn what_the_upstream_does_not_want_does_not_hold_up_the_rest() {
    let mut bench = Bench::new(|_| {});
    bench.append(&draft("t", b"refused"));
    bench.append(&draft("t", &[b'x'; 300]));
    bench.append(&draft("t", b"good"));
    bench.connect(Link { max_packet_size: Some(100), ..V5 });
    bench.pump(0);
    assert_eq!(bench.deliver(1), ["refused", "good"]);
    bench.ack(1, 0x87);
    bench.ack(2, 0);
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.dropped.refused, ledger.dropped.too_large, ledger.pending), (1, 1, 1, 0));
}

#[test]
fn qos_follows_the_rule() {
    let mut bench = Bench::new(|settings| {
        settings.out = vec![
            rule("keep", "", "", OutQos::Keep),
            rule("zero", "", "", OutQos::AtMostOnce),
            rule("one", "", "", OutQos::AtLeastOnce),
        ];
        settings.max_inflight = 10;
    });
    for (topic, qos) in
        [("keep", Qos::AtMostOnce), ("keep", Qos::ExactlyOnce), ("zero", Qos::ExactlyOnce), ("one", Qos::AtMostOnce)]
    {
        bench.append(&Draft { qos, ..draft(topic, b"") });
    }
    bench.connect(V5);
    bench.pump(0);
    assert_eq!(bench.sent.iter().map(|message| message.qos as u8).collect::<Vec<_>>(), [0, 1, 0, 1]);
    bench.deliver(1);
    assert_eq!(bench.ledger().sent_unconfirmed, 1, "in order: the others wait for the second");
    bench.ack(1, 0);
    bench.ack(2, 0);
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.sent_unconfirmed, ledger.pending), (2, 2, 0));
}

#[test]
fn expiry_is_honoured_and_passed_on_as_the_remainder() {
    let mut bench = Bench::new(|_| {});
    bench.append(&Draft { expiry: Some(10), ..draft("t", b"late") });
    bench.append(&Draft { expiry: Some(60), ..draft("t", b"in time") });
    bench.connect(V5);
    bench.pump(20_000);
    let properties = bench.sent[0].properties.clone();
    assert!(properties.ends_with(&[2, 0, 0, 0, 40]), "{properties:?}");
    assert_eq!(bench.deliver(1), ["in time"]);
    assert_eq!(bench.ledger().expired, 1);
}

#[test]
fn an_upstream_that_answers_to_nothing_is_left() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..2);
    bench.connect(V5);
    bench.pump(1_000);
    bench.deliver(1);
    let actions = bench.session.acked(1, 0, 30_000);
    bench.perform(actions);
    assert_eq!(bench.session.time(30_000 + ANSWER_TIMEOUT_MS - 1), []);
    assert_eq!(bench.session.time(30_000 + ANSWER_TIMEOUT_MS), [SessionAction::Break]);
}

#[test]
fn the_ledger_balances_when_bounds_push_out_what_is_in_flight() {
    let mut bench = Bench::new(|_| {});
    let limits = Limits { messages: 3, bytes: 1 << 20, when_full: WhenFull::DropOldest };
    bench.journal.register("upstream/home", limits);
    bench.append_many(0..3);
    bench.connect(V5);
    bench.pump(0);
    bench.deliver(1);
    bench.append_many(3..5);
    assert_eq!(bench.ledger().dropped.journal_full, 2);
    for id in 1..=3 {
        bench.ack(id, 0);
    }
    let ledger = bench.ledger();
    assert_eq!((ledger.acked, ledger.dropped.journal_full, ledger.pending), (3, 0, 2));
}

proptest! {
    /// Whatever happens to the connection, messages arrive in order, none is missing but refused ones, and the ledger
    /// balances.
    #[test]
    fn nothing_is_lost_silently(steps in prop::collection::vec(0..100u8, 1..300)) {
        let mut bench = Bench::new(|_| {});
        let mut next = 0;
        let mut unanswered: VecDeque<(u16, String)> = VecDeque::new();
        let mut arrived: Vec<u32> = Vec::new();
        let mut refused = 0;
        let mut id = 0;
        let mut connected = false;
        let mut was_put_off = false;
        let now = 2 * put_off::HOUR;
        for step in steps.into_iter().chain([99, 45].into_iter().chain([60; 2_000])) {
            match step {
                0..20 => {
                    bench.append_many(next..next + 1);
                    next += 1;
                }
                20..25 if connected => {
                    bench.disconnect(if step == 20 { &Broken::Closed } else { &Broken::Silent });
                    bench.sent.clear();
                    unanswered.clear();
                    connected = false;
                    was_put_off |= bench.session.put_off.blames();
                }
                25..50 if !connected => {
                    bench.connect(V5);
                    connected = true;
                }
                _ if connected => {
                    bench.pump(if step == 60 { now } else { 0 });
                    for payload in bench.deliver(id + 1) {
                        id += 1;
                        unanswered.push_back((id, payload));
                    }
                    if let Some((id, payload)) = unanswered.pop_front() {
                        if step == 98 {
                            refused += 1;
                        } else {
                            arrived.push(payload.parse().unwrap());
                        }
                        bench.ack(id, if step == 98 { 0x80 } else { 0 });
                    }
                }
                _ => {}
            }
            bench.ledger();
        }
        let ledger = bench.ledger();
        prop_assert_eq!(ledger.pending, 0);
        prop_assert_eq!(ledger.dropped.refused, refused);
        let mut kinds = arrived.clone();
        kinds.sort_unstable();
        kinds.dedup();
        prop_assert_eq!(kinds.len() as u64 + refused + ledger.dropped.ends_connection, u64::from(next));
        // two silent connections in a row at one message let others pass it
        prop_assert!(arrived.is_sorted() || was_put_off, "{arrived:?}");
    }
}
