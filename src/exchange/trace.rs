//! Follows single messages on their way: when each was accepted, became safe, was handed to an upstream, and was done with.
//!
//! Whoever may see how the gateway is doing begins a trace and gets an id that nobody can guess. The first message that
//! carries it in its MQTT 5 user property [`TRACE_PROPERTY`] is followed, and the trace is shown to those who know the id and may
//! see how the gateway is doing. Without a trace, no message is looked at; so strangers can neither begin one,
//! nor push out others, nor see anything.
//!
//! Bounds: [`MOST`] traces, the oldest gives way; [`STEPS`] steps of each; a trace ends after [`LIFE_MS`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::journal::{Journal, Position};
use crate::message::via::Properties;
use crate::message::{MessageRef, TRACE_PROPERTY};
use crate::time::SharedClock;

/// Messages that are followed at the same time; the oldest gives way.
pub(crate) const MOST: usize = 16;
/// Steps of a trace.
pub(crate) const STEPS: usize = 64;
/// Time after which a trace is forgotten.
pub(crate) const LIFE_MS: u64 = 600_000;
/// Bytes of a topic that are shown.
const TOPIC: usize = 256;

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Boot clock, in milliseconds.
    pub(crate) boot_ms: u64,
    /// Which step it was.
    pub(crate) what: TraceEvent,
    /// The upstream that it was at; `None`: here.
    pub(crate) upstream: Option<String>,
}

/// What can happen to a message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TraceEvent {
    /// It has its place in the order of all messages.
    Accepted,
    /// A full queue refused it.
    Refused,
    /// It is on disk.
    Synced,
    /// It was handed to the connection of an upstream.
    Sent,
    /// An upstream is done with it, and this is what it says of that.
    Settled(&'static str),
}

impl TraceEvent {
    /// As it is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TraceEvent::Accepted => "accepted",
            TraceEvent::Refused => "refused: a queue is full",
            TraceEvent::Synced => "synced",
            TraceEvent::Sent => "sent",
            TraceEvent::Settled(how) => how,
        }
    }
}

/// A message and what happened to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// What the message carries to be found, random.
    pub(crate) id: String,
    /// When it was asked for, on the boot clock.
    pub(crate) began_boot_ms: u64,
    /// Topic of the message; `None`: there is none yet.
    pub(crate) topic: Option<String>,
    /// Upstreams that are not done with it.
    pub(crate) waits_for: usize,
    /// Where it is in the journal, if something needs it there.
    pub(crate) position: Option<Position>,
    /// What has happened so far, oldest first.
    pub(crate) steps: Vec<Step>,
}

impl Trace {
    fn is_synced(&self) -> bool {
        self.position.is_none() || self.steps.iter().any(|step| step.what == TraceEvent::Synced)
    }

    fn step(&mut self, boot_ms: u64, what: TraceEvent, upstream: Option<&str>) {
        // an upstream gets nothing that is not on disk, whoever notes that first
        if matches!(what, TraceEvent::Sent | TraceEvent::Settled(_)) && !self.is_synced() {
            self.step(boot_ms, TraceEvent::Synced, None);
        }
        if self.steps.len() < STEPS {
            self.steps.push(Step { boot_ms, what, upstream: upstream.map(str::to_owned) });
        }
    }
}

/// The messages that are followed.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// Boot clock, in milliseconds, until which there may be one; 0: there is none.
    until: AtomicU64,
    all: Mutex<VecDeque<Trace>>,
    news: Notify,
}

impl Traces {
    /// Begins one; its id.
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

    /// The one with this id.
    pub(crate) fn get(&self, id: &str, now: u64) -> Option<Trace> {
        let all = self.all.lock();
        all.iter().find(|trace| trace.id == id && now.saturating_sub(trace.began_boot_ms) < LIFE_MS).cloned()
    }

    /// Whether there is any to look after.
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
            return true; // another has begun meanwhile
        }
        all.clear();
        self.until.store(0, Ordering::Relaxed);
        false
    }

    /// A message has been accepted, or refused, at this place, for so many upstreams.
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

    /// Something happened at an upstream to the message at this place.
    pub(crate) fn at(&self, position: Position, what: TraceEvent, upstream: &str, now: u64) {
        let mut all = self.all.lock();
        if let Some(trace) = all.iter_mut().find(|trace| trace.position == Some(position)) {
            trace.step(now, what, Some(upstream));
            if matches!(what, TraceEvent::Settled(_)) {
                trace.waits_for = trace.waits_for.saturating_sub(1);
            }
        }
    }

    /// Notes when messages that are followed become safe, until `cancel`. Sleeps while none is.
    pub(super) async fn watch(&self, journal: &Journal, clock: &SharedClock, cancel: CancellationToken) {
        let mut synced = journal.synced();
        loop {
            let news = self.news.notified();
            let wait = async {
                match self.first_unsynced() {
                    Some(first) => synced.wait_for(|synced| *synced >= first).await.is_ok(),
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

/// The id that encoded properties carry.
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
    use crate::message::{Draft, Message, Origin, Qos};

    fn message(id: &str) -> Message {
        let mut properties = vec![38];
        for text in [TRACE_PROPERTY, id] {
            properties.extend((text.len() as u16).to_be_bytes());
            properties.extend(text.as_bytes());
        }
        Message::new(&Draft {
            topic: "a",
            payload: b"x",
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: &properties,
            expiry: None,
            boot_ms: 0,
            origin: Origin::http(),
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
