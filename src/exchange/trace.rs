//! Traces single messages: records when each was accepted, was on disk, was sent to an upstream, and was settled there.
//!
//! A client that may see the state of the gateway starts a trace and gets an id that cannot be guessed. The first message
//! with this id in the MQTT 5 user property [`TRACE_PROPERTY`] is traced, and the trace is shown to those who know the id
//! and may see the state. Without a trace no message is examined. So strangers can neither start a trace, nor displace
//! others, nor see anything.
//!
//! Limits: [`MOST`] traces, of which the oldest makes room; [`STEPS`] steps of each; a trace ends after [`LIFE_MS`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::journal::{ConsumerId, Journal, Position};
use crate::message::via::Properties;
use crate::message::{MessageRef, TRACE_PROPERTY};
use crate::time::SharedClock;

/// The most traces at the same time.
pub(crate) const MOST: usize = 16;
/// The most steps of a trace.
pub(crate) const STEPS: usize = 64;
/// How long a trace is kept, in milliseconds.
pub(crate) const LIFE_MS: u64 = 600_000;
/// The most bytes of a topic that are shown.
const TOPIC: usize = 256;

/// How a message has ended that was dropped where it was held.
const GAVE_WAY: &str = "dropped: it was held, and has given way because a limit was reached";

/// One event of a traced message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The time in milliseconds of the boot clock.
    pub(crate) boot_ms: u64,
    pub(crate) what: TraceEvent,
    /// The upstream at which it happened; `None` for events in the gateway itself.
    pub(crate) upstream: Option<String>,
}

/// The events of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TraceEvent {
    /// The message has its place in the order of all messages.
    Accepted,
    /// A full queue has refused the message.
    Refused,
    /// The message is on disk.
    Synced,
    /// The message was handed to the connection of an upstream.
    Sent,
    /// The message waits on for an upstream in another place, for this reason, or has come back from there.
    Held(&'static str),
    /// An upstream has settled the message, with this result.
    Settled(&'static str),
}

impl TraceEvent {
    /// The name that is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TraceEvent::Accepted => "accepted",
            TraceEvent::Refused => "refused: a queue is full",
            TraceEvent::Synced => "synced",
            TraceEvent::Sent => "sent",
            TraceEvent::Held(how) | TraceEvent::Settled(how) => how,
        }
    }
}

/// A traced message with its events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The random id that the message carries.
    pub(crate) id: String,
    /// When the trace was started, in milliseconds of the boot clock.
    pub(crate) began_boot_ms: u64,
    /// The topic of the message; `None` before the message has come.
    pub(crate) topic: Option<String>,
    /// The number of upstreams that have not settled the message.
    pub(crate) waits_for: usize,
    /// The position in the journal, if the message is kept there.
    pub(crate) position: Option<Position>,
    /// The upstreams for which the journal has the message in another place, and these places.
    pub(crate) moved: Vec<(String, Position)>,
    /// The upstreams for which the journal has the message where it is the first to give way, with consumer and ordinal.
    pub(crate) followed: Vec<(String, ConsumerId, u64)>,
    /// The events so far, oldest first.
    pub(crate) steps: Vec<Step>,
}

impl Trace {
    fn is_synced(&self) -> bool {
        self.position.is_none() || self.steps.iter().any(|step| step.what == TraceEvent::Synced)
    }

    /// Where the journal has the message for this upstream.
    fn place(&self, upstream: &str) -> Option<Position> {
        let moved = self.moved.iter().find(|(name, _)| name == upstream);
        moved.map(|(_, position)| *position).or(self.position)
    }

    fn step(&mut self, boot_ms: u64, what: TraceEvent, upstream: Option<&str>) {
        // an upstream gets only messages that are on disk, whichever is recorded first
        if matches!(what, TraceEvent::Sent | TraceEvent::Held(_) | TraceEvent::Settled(_)) && !self.is_synced() {
            self.step(boot_ms, TraceEvent::Synced, None);
        }
        if self.steps.len() < STEPS {
            self.steps.push(Step { boot_ms, what, upstream: upstream.map(str::to_owned) });
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// The time until which a trace may exist, in milliseconds of the boot clock; 0 if there is none.
    until: AtomicU64,
    all: Mutex<VecDeque<Trace>>,
    news: Notify,
}

impl Traces {
    /// Starts a trace and returns its id.
    pub(crate) fn begin(&self, now: u64) -> Result<String, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut all = self.all.lock();
        all.retain(|trace| now.saturating_sub(trace.began_boot_ms) < LIFE_MS);
        if all.len() >= MOST {
            all.pop_front();
        }
        all.push_back(Trace { id: id.clone(), began_boot_ms: now, ..Trace::default() });
        self.until.store(now + LIFE_MS, Ordering::Relaxed);
        Ok(id)
    }

    /// The trace with this id.
    pub(crate) fn get(&self, id: &str, now: u64) -> Option<Trace> {
        let all = self.all.lock();
        all.iter().find(|trace| trace.id == id && now.saturating_sub(trace.began_boot_ms) < LIFE_MS).cloned()
    }

    /// Whether any trace exists.
    pub(crate) fn is_active(&self, now: impl FnOnce() -> u64) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return false;
        }
        if now() < until {
            return true;
        }
        let mut all = self.all.lock();
        if self.until.load(Ordering::Relaxed) != until {
            return true; // another trace was started meanwhile
        }
        all.clear();
        self.until.store(0, Ordering::Relaxed);
        false
    }

    /// Records that a message was accepted or refused at this position, for this many upstreams.
    pub(super) fn accepted(
        &self,
        message: MessageRef<'_>,
        position: Result<Option<Position>, ()>,
        upstreams: usize,
        now: u64,
    ) {
        let Some(id) = id_of(message.properties()) else { return };
        let mut all = self.all.lock();
        let Some(trace) = all.iter_mut().find(|trace| trace.topic.is_none() && trace.id.as_bytes() == id) else {
            return;
        };
        trace.topic = Some(message.topic().chars().take(TOPIC).collect());
        match position {
            Ok(position) => {
                (trace.position, trace.waits_for) = (position, upstreams);
                trace.step(now, TraceEvent::Accepted, None);
            }
            Err(()) => trace.step(now, TraceEvent::Refused, None),
        }
        drop(all);
        self.news.notify_one();
    }

    /// Records an event at an upstream for the message at this position.
    pub(crate) fn at(&self, position: Position, what: TraceEvent, upstream: &str, now: u64) {
        let mut all = self.all.lock();
        if let Some(trace) = all.iter_mut().find(|trace| trace.place(upstream) == Some(position)) {
            trace.step(now, what, Some(upstream));
            if matches!(what, TraceEvent::Settled(_)) {
                trace.waits_for = trace.waits_for.saturating_sub(1);
            }
        }
    }

    /// Records that the journal has the message of one place for an upstream in another place now, and why if that tells
    /// something.
    pub(crate) fn moved(&self, (from, to): (Position, Position), why: Option<&'static str>, upstream: &str, now: u64) {
        let mut all = self.all.lock();
        let Some(trace) = all.iter_mut().find(|trace| trace.place(upstream) == Some(from)) else { return };
        trace.moved.retain(|(name, _)| name != upstream);
        trace.followed.retain(|(name, ..)| name != upstream);
        trace.moved.push((upstream.to_owned(), to));
        if let Some(why) = why {
            trace.step(now, TraceEvent::Held(why), Some(upstream));
        }
    }

    /// Follows the message that the journal has at this position for an upstream, as a message of this consumer and with this
    /// ordinal, in case it is dropped there.
    pub(crate) fn follow(&self, position: Position, upstream: &str, journal: &Journal, at: (ConsumerId, u64)) {
        let mut all = self.all.lock();
        let Some(trace) = all.iter_mut().find(|trace| trace.place(upstream) == Some(position)) else { return };
        trace.followed.push((upstream.to_owned(), at.0, at.1));
        journal.follow(at.0, at.1);
        drop(all);
        self.news.notify_one();
    }

    /// Records which of the messages that are followed were dropped.
    fn dropped(&self, journal: &Journal, now: u64) {
        let mut all = self.all.lock();
        let mut consumers: Vec<_> = all.iter().flat_map(|trace| &trace.followed).map(|(_, id, _)| *id).collect();
        consumers.sort_unstable_by_key(|id| id.0);
        consumers.dedup();
        for id in consumers {
            for ordinal in journal.take_given_up(id) {
                let is_it = |(_, of, followed): &mut (String, ConsumerId, u64)| (*of, *followed) == (id, ordinal);
                for trace in all.iter_mut() {
                    let Some((upstream, ..)) = trace.followed.extract_if(.., is_it).next() else { continue };
                    trace.step(now, TraceEvent::Settled(GAVE_WAY), Some(&upstream));
                    trace.waits_for = trace.waits_for.saturating_sub(1);
                }
            }
        }
    }

    fn is_following(&self) -> bool {
        self.all.lock().iter().any(|trace| !trace.followed.is_empty())
    }

    /// Records when traced messages are on disk, and whether they give way where they are held, until `cancel`. Sleeps while there is no trace.
    pub(super) async fn watch(&self, journal: &Journal, clock: &SharedClock, cancel: CancellationToken) {
        let mut synced = journal.synced();
        loop {
            let news = self.news.notified();
            let wait = async {
                match self.first_unsynced() {
                    Some(first) => synced.wait_for(|synced| *synced >= first).await.is_ok(),
                    // messages give way to new ones, which are on disk soon after
                    None if self.is_following() => tokio::select! {
                        () = news => true,
                        changed = synced.changed() => changed.is_ok(),
                    },
                    None => {
                        news.await;
                        true
                    }
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                is_alive = wait => if !is_alive { return },
            }
            let safe = *synced.borrow_and_update();
            self.synced(safe, clock.boot_ms());
            self.dropped(journal, clock.boot_ms());
        }
    }

    fn first_unsynced(&self) -> Option<Position> {
        let all = self.all.lock();
        all.iter().filter(|trace| !trace.is_synced()).filter_map(|trace| trace.position).min()
    }

    fn synced(&self, synced: Position, now: u64) {
        for trace in self.all.lock().iter_mut() {
            if !trace.is_synced() && trace.position <= Some(synced) {
                trace.step(now, TraceEvent::Synced, None);
            }
        }
    }
}

/// The id in encoded properties.
fn id_of(properties: &[u8]) -> Option<&[u8]> {
    const USER_PROPERTY: u8 = 38;
    Properties(properties).find_map(|(kind, property)| {
        let name = property.get(1..).filter(|_| kind == USER_PROPERTY)?;
        let name = name.strip_prefix(&(TRACE_PROPERTY.len() as u16).to_be_bytes())?;
        name.strip_prefix(TRACE_PROPERTY.as_bytes())?.get(2..)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Limits, Outcome, WhenFull};
    use crate::message::{Draft, Message, Origin, Qos};
    use crate::time::TestClock;

    fn message(id: &str) -> Message {
        let mut properties = vec![38];
        for text in [TRACE_PROPERTY, id] {
            properties.extend((text.len() as u16).to_be_bytes());
            properties.extend(text.as_bytes());
        }
        Message::new(&Draft {
            qos: Qos::AtLeastOnce,
            properties: &properties,
            origin: Origin::http(),
            ..Draft::new("a", b"x")
        })
    }

    #[test]
    fn only_the_first_message_with_an_id_that_was_given_out_is_followed() {
        let traces = Traces::default();
        assert!(!traces.is_active(|| 5));
        let id = traces.begin(5).unwrap();
        assert!(traces.is_active(|| 6));
        traces.accepted(message("0123456789abcdef0123456789abcdef").view(), Ok(None), 0, 6);
        assert_eq!(traces.get(&id, 6).unwrap().topic, None);
        for (position, now) in [(7, 7), (8, 8)] {
            traces.accepted(message(&id).view(), Ok(Some(Position(position))), 2, now);
        }
        traces.at(Position(8), TraceEvent::Sent, "home", 9);
        traces.at(Position(7), TraceEvent::Sent, "home", 9);
        traces.at(Position(7), TraceEvent::Settled("acknowledged"), "home", 10);
        let trace = traces.get(&id, 11).unwrap();
        let steps: Vec<_> = trace.steps.iter().map(|step| (step.boot_ms, step.what.name())).collect();
        assert_eq!(steps, [(7, "accepted"), (9, "synced"), (9, "sent"), (10, "acknowledged")]);
        assert_eq!((trace.topic.as_deref(), trace.waits_for), (Some("a"), 1));
        assert!(traces.get(&id, 5 + LIFE_MS).is_none() && !traces.is_active(|| 5 + LIFE_MS));
    }

    #[test]
    fn a_message_is_followed_where_it_is_moved_to() {
        let traces = Traces::default();
        let id = traces.begin(0).unwrap();
        traces.accepted(message(&id).view(), Ok(Some(Position(1))), 2, 1);
        traces.moved((Position(1), Position(5)), Some("held: why"), "home", 2);
        traces.moved((Position(5), Position(6)), None, "home", 3);
        // another upstream has it in the old place, and there this one has it no more
        traces.at(Position(1), TraceEvent::Settled("acknowledged"), "cloud", 4);
        traces.at(Position(1), TraceEvent::Sent, "home", 4);
        traces.moved((Position(1), Position(7)), Some("not this one"), "home", 4);
        assert_eq!(traces.get(&id, 4).unwrap().waits_for, 1, "it is held");
        traces.moved((Position(6), Position(9)), Some("back"), "home", 5);
        traces.at(Position(9), TraceEvent::Sent, "home", 6);
        traces.at(Position(9), TraceEvent::Settled("acknowledged"), "home", 7);
        let trace = traces.get(&id, 7).unwrap();
        let steps: Vec<_> = trace.steps.iter().map(|step| (step.boot_ms, step.what.name())).collect();
        let expected = [
            (1, "accepted"),
            (2, "synced"),
            (2, "held: why"),
            (4, "acknowledged"),
            (5, "back"),
            (6, "sent"),
            (7, "acknowledged"),
        ];
        assert_eq!((steps, trace.waits_for), (expected.to_vec(), 0));
    }

    #[tokio::test]
    async fn what_gives_way_where_it_is_held_is_told_in_its_trace_and_nothing_else() {
        let (traces, journal) = (Traces::default(), Journal::default());
        let clock: SharedClock = TestClock::new(1000, 1_000_000);
        let limits = Limits { messages: 2, bytes: 1 << 20, when_full: WhenFull::DropOldest };
        let held = journal.register("upstream/home/denied", limits);
        let mut ids = Vec::new();
        for _ in 0..2 {
            let id = traces.begin(0).unwrap();
            let message = message(&id);
            let position = journal.append(&message, &[held]).unwrap();
            traces.accepted(message.view(), Ok(Some(position)), 1, 1);
            traces.follow(position, "home", &journal, (held, journal.newest(held)));
            ids.push(id);
        }
        let mut reader = journal.reader(held);
        // the second one leaves before anything gives way
        let second = loop {
            match reader.try_next() {
                Some(delivery) if delivery.ordinal == journal.newest(held) => break delivery,
                Some(_) => {}
                None => reader.ready().await,
            }
        };
        reader.settle_as(second.position, Outcome::Moved);
        traces.moved((second.position, Position(1000)), Some("back"), "home", 2);
        let watch = traces.watch(&journal, &clock, CancellationToken::new());
        let fill = async {
            for _ in 0..4 {
                journal.append(&message("0"), &[held]).unwrap();
            }
            while traces.get(&ids[0], 2).unwrap().waits_for > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = watch => panic!("it ended"),
            () = fill => {}
        }
        let shown = |at: usize| {
            let trace = traces.get(&ids[at], 2).unwrap();
            (trace.steps.iter().map(|step| step.what.name()).collect::<Vec<_>>(), trace.waits_for)
        };
        assert_eq!(shown(0), (vec!["accepted", "synced", GAVE_WAY], 0));
        assert_eq!(shown(1), (vec!["accepted", "synced", "back"], 1));
    }

    #[test]
    fn they_are_bounded() {
        let traces = Traces::default();
        let ids: Vec<_> = (0..=MOST).map(|_| traces.begin(0).unwrap()).collect();
        assert!(traces.get(&ids[0], 0).is_none() && traces.get(&ids[1], 0).is_some());
        traces.accepted(message(&ids[1]).view(), Ok(Some(Position(1))), 1, 0);
        for _ in 0..2 * STEPS {
            traces.at(Position(1), TraceEvent::Sent, "home", 1);
        }
        assert_eq!(traces.get(&ids[1], 1).unwrap().steps.len(), STEPS);
    }
}
