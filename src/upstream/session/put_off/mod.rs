//! Messages that do not get through although others do: they are put off, and others go first.
//!
//! An upstream may never acknowledge one message although it acknowledges later ones, for example because the queue of its
//! topic stands still. And connections may go silent whenever a certain message is sent, for example because the line
//! swallows packets of its size. The message may be innocent of both, so it is kept. It is put off when
//!
//! - the upstream has acknowledged later messages and not this one for [`PASSED_MS`], or for [`LATER`] times as long as it has
//!   been late with one before, or
//! - [`STRIKES`] connections went silent while it was the oldest unanswered message, or the upstream closed them when it got
//!   its PUBREL, although others were acknowledged on these. If no other message gets through either, the line or the upstream
//!   is the reason, and the order is kept; to see whether others get through, one may go first ([`trial`]).
//!
//! A message that is put off is tried again after 20 s, and then more and more rarely, up to once an hour. Until it has
//! arrived, others like it wait behind it: those of its topic if the upstream acknowledges none of them, and those at
//! QoS 2 if the upstream has never answered a PUBREL. Of messages that are at least as large as one at which
//! connections went silent, one more silent connection is enough.
//!
//! For an hour after such a silence, connections are made with small TCP segments, because a path may swallow larger
//! packets. So the message may get through as well.
//!
//! On its connection a packet id that is never acknowledged stays in use and takes a place of the window. When such ids take
//! half of the window, when their messages are due, and before they would be used again, there is a new connection.
//!
//! At most [`MOST_PASSED`] messages go past a message, because a crash repeats these. Then it is appended to the
//! journal once more, as the last of its lane, and its old place is settled. At QoS 2 the packet id depends on the
//! place, so such a message stays, and at most [`MOST_PASSED_EXACT`] go past it.

mod ended_at;
mod entries;
mod trial;

use std::hash::{DefaultHasher, Hash, Hasher};

use tracing::warn;

pub(super) use self::entries::PutOff;
use self::entries::PutOffEntry;
use super::{ANSWER_TIMEOUT_MS, MOST_PASSED, SentFrom, SentMessage, SessionAction, UpstreamSession};
use crate::journal::Position;
use crate::message::Message;
use crate::status::ledger::LedgerOutcome;
use crate::upstream::client::MESSAGE_IDS;
use crate::upstream::lanes::Lane;
use crate::upstream::settings::OutQos;

/// The time for which a message holds up those behind it although the upstream has acknowledged some of them.
pub(super) const PASSED_MS: u64 = 10_000;
/// The time of an upstream that answers out of order is so many times as long as the latest answer that came.
const LATER: u64 = 3;
/// The same past a message at QoS 2. After a crash they are not repeated, because each step of them is on disk.
pub(super) const MOST_PASSED_EXACT: u64 = 4_096;
/// The same past a message whose topic is denied: it waits for hours, and meanwhile every crash repeats them.
const MOST_PASSED_DENIED: u64 = 50;
/// The number of connections in a row that must end at a message.
const STRIKES: u32 = 2;
/// The first pause before another attempt, and the longest.
pub(super) const FIRST_MS: u64 = 20_000;
const LONGEST_MS: u64 = 3_600_000;
/// The most messages that wait because they are like one of these, and their bytes.
const LIKE: usize = 256;
const LIKE_BYTES: usize = 1 << 20;

pub(super) fn hash(topic: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    hasher.finish()
}

impl UpstreamSession {
    /// Whether a message of the journal must wait.
    pub(super) fn puts_off(&self, source: &SentFrom, now: u64) -> bool {
        if self.put_off.entries.is_empty() {
            return false;
        }
        let waiting =
            self.in_flight.iter().filter(|message| message.waits).filter_map(|message| message.source.as_ref());
        let (count, bytes) = waiting.fold((0, 0), |(count, bytes), source| (count + 1, bytes + source.message.size()));
        let has_room = count < LIKE && bytes + source.message.size() <= LIKE_BYTES;
        self.put_off.holds(source, |entry| has_room && self.is_like(source, entry), now)
    }

    /// Whether a message is like one that is put off.
    fn is_like(&self, source: &SentFrom, entry: &PutOffEntry) -> bool {
        let is_of =
            |topic| topic == hash(source.message.view().topic()) || self.denied.key(&source.message) == Some(topic);
        entry.topic.is_some_and(is_of) && !self.denied.has_probe((source.lane, source.position))
            || entry.exact && self.goes_exactly_once(&source.message)
    }

    /// Whether the rules send a message at QoS 2.
    fn goes_exactly_once(&self, message: &Message) -> bool {
        self.rules.is_exact()
            && self.rules.outgoing(message.view().topic()).is_some_and(|target| target.qos == OutQos::ExactlyOnce)
    }

    /// Makes a message of the journal wait. `is_released` tells that the upstream has it, and only PUBREL is sent.
    pub(super) fn put_off(&mut self, source: SentFrom, is_released: bool, now: u64) {
        let mut waiting = SentMessage::new(Some(source), now);
        (waiting.waits, waiting.is_released) = (true, is_released);
        self.waiting += 1;
        self.in_flight.push_back(waiting);
    }

    /// Forgets messages that were not handed out in their turn before this one, because the journal does not have them
    /// any more.
    pub(super) fn forget_missing(&mut self, lane: Lane, position: Position) {
        let is_missing = |entry: &PutOffEntry| entry.lane == lane && entry.position < position;
        if !self.put_off.entries.iter().any(is_missing) {
            return;
        }
        let here: Vec<_> = self.in_flight.iter().filter_map(|message| message.source.as_ref()).collect();
        let is_here =
            |entry: &PutOffEntry| here.iter().any(|it| (it.lane, it.position) == (entry.lane, entry.position));
        self.put_off.entries.retain(|entry| !is_missing(entry) || is_here(entry));
        self.put_off.is_news = true;
    }

    /// The place in flight of the next message that was put off and is sent now.
    fn due_at(&mut self, now: u64) -> Option<usize> {
        self.lets_out = false;
        if self.waiting == 0 || !(self.put_off.is_news || self.put_off.entries.iter().any(|entry| entry.due <= now)) {
            return None;
        }
        let holds = |source: &SentFrom| self.put_off.holds(source, |entry| self.is_like(source, entry), now);
        let is_due =
            |message: &SentMessage| message.waits && message.source.as_ref().is_some_and(|source| !holds(source));
        let at = self.in_flight.iter().position(is_due);
        self.put_off.is_news &= at.is_some();
        if let Some(source) = at.and_then(|at| self.in_flight[at].source.as_ref()) {
            self.denied.tries((source.lane, source.position));
        }
        let at =
            at.filter(|at| self.in_flight[*at].source.as_ref().is_some_and(|source| self.room(source.role) > 0))?;
        // messages become known as sent in the order in which they stand here
        self.lets_out = self.in_flight.iter().any(|message| message.is_unanswered() && message.packet_id.is_none());
        (!self.lets_out).then_some(at)
    }

    /// The message that was put off and is sent now.
    pub(crate) fn due(&mut self, now: u64) -> Option<&Message> {
        let at = self.due_at(now)?;
        self.in_flight[at].source.as_ref().map(|source| &source.message)
    }

    /// Where the journal has the message of [`UpstreamSession::due`], or that of [`UpstreamSession::held`].
    pub(crate) fn waiting_position(&mut self, now: u64) -> Option<Position> {
        let at = self.due_at(now).or_else(|| self.next_held())?;
        self.in_flight[at].source.as_ref().map(|source| source.position)
    }

    /// Sends the message of [`UpstreamSession::due`]; `is_current` as for [`UpstreamSession::delivery`].
    pub(crate) fn send_due(&mut self, is_current: bool, now: u64) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let Some(at) = self.due_at(now) else { return actions };
        let Some(mut message) = self.in_flight.remove(at) else { return actions };
        message.waits = false;
        self.waiting -= 1;
        match message.source.take() {
            Some(source) if message.is_released => self.hand_over_recorded(source, now, &mut actions),
            source => {
                message.source = source;
                self.hand_over(message, at, is_current, now, &mut actions);
            }
        }
        actions
    }

    /// The oldest message that holds up others which the upstream has answered, and when it is passed over.
    ///
    /// An upstream answers in the order of messages [MQTT-4.6.0-2]. One that does not may never answer this one.
    pub(super) fn holds_up(&self) -> Option<(usize, u64)> {
        if !self.is_out_of_order {
            return None;
        }
        let oldest = self.in_flight.iter().position(SentMessage::is_awaited)?;
        let is_answered = self.in_flight.iter().skip(oldest).any(|message| message.outcome.is_some());
        let patience = (LATER * self.put_off.latest).clamp(PASSED_MS, ANSWER_TIMEOUT_MS);
        is_answered.then(|| (oldest, self.in_flight[oldest].handed_over + patience))
    }

    /// Records how late the answer to this message comes, if the upstream has answered later ones before: one that answers in
    /// such a way should not get the message again.
    pub(super) fn answers_late(&mut self, at: usize, now: u64) {
        let message = &self.in_flight[at];
        let mut later = self.in_flight.iter().skip(at + 1);
        if message.is_passed || self.is_out_of_order && later.any(|later| later.outcome.is_some()) {
            self.put_off.latest = self.put_off.latest.max(now.saturating_sub(message.handed_over));
        }
    }

    pub(super) fn pass_over(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        while let Some((at, due)) = self.holds_up()
            && due <= now
        {
            self.in_flight[at].is_passed = true;
            let number = self.in_flight[at].number;
            self.oldest_passed = Some(self.oldest_passed.map_or(number, |oldest| oldest.min(number)));
            let source = self.in_flight[at].source.clone();
            let topic = source.as_ref().map(|source| source.message.view().topic());
            if let Some(source) = &source {
                let topic = source.message.view().topic();
                let has_answered = |message: &SentMessage| {
                    message.outcome.is_some()
                        && message.source.as_ref().is_some_and(|other| other.message.view().topic() == topic)
                };
                let is_alone = self.in_flight.iter().any(has_answered);
                let (_, entry) = self.put_off.add(source, now);
                entry.topic = (!is_alone).then(|| hash(topic));
            }
            if !std::mem::replace(&mut self.is_passing, true) {
                warn!(
                    upstream = self.name,
                    topic,
                    "the upstream has acknowledged later messages but not this one, which no longer holds them up: it is \
                     kept, and sent again later"
                );
            }
            self.settle(actions);
        }
    }

    /// Numbers a message that is handed over.
    pub(super) fn count_handed(&mut self, message: &mut SentMessage) {
        self.handed += 1;
        message.number = self.handed;
    }

    /// Records the answer to a message that was passed over.
    pub(super) fn answered_late(&mut self, at: usize) {
        let others = self.in_flight.iter().enumerate().filter(|(other, message)| *other != at && message.is_passed);
        self.oldest_passed = others.filter(|(_, message)| message.is_unanswered()).map(|(_, it)| it.number).min();
    }

    /// Whether a packet id that is in use would soon be used again.
    fn is_short_of_ids(&self) -> bool {
        self.oldest_passed.is_some_and(|oldest| self.handed - oldest > u64::from(MESSAGE_IDS) / 2)
    }

    /// When messages that were put off are due, or `None` if there are none on this connection.
    pub(super) fn put_off_deadline(&self) -> Option<u64> {
        if self.is_short_of_ids() && !self.renews {
            return Some(0);
        }
        let is_here = |lane, position| {
            self.in_flight.iter().any(|message| {
                let is_it = |source: &SentFrom| (source.lane, source.position) == (lane, position);
                (message.waits || message.is_passed) && message.source.as_ref().is_some_and(is_it)
            })
        };
        let here = self.put_off.entries.iter().filter(|entry| is_here(entry.lane, entry.position));
        here.filter(|entry| !entry.is_told).map(|entry| entry.due).min()
    }

    /// Whether packet ids that the upstream does not acknowledge make a new connection necessary.
    pub(super) fn needs_renewal(&self, now: u64) -> bool {
        let Some(link) = self.link else { return false };
        let in_use = || {
            let passed = self.in_flight.iter().filter(|message| message.is_passed && message.is_unanswered());
            passed.filter(|message| message.source.is_some() || message.gone_to.is_some())
        };
        let window = usize::from(self.most_in_flight(link));
        let is_due = |message: &SentMessage| {
            let place = message.gone_to.or(message.source.as_ref().map(|source| (source.lane, source.position)));
            let mut entries = self.put_off.entries.iter();
            place.is_some_and(|place| entries.any(|entry| (entry.lane, entry.position) == place && entry.due <= now))
        };
        in_use().count() >= window.div_ceil(2) || in_use().any(is_due) || self.is_short_of_ids()
    }

    /// Handles the end of a silent connection: the message at which it went silent may be put off.
    pub(super) fn went_silent(&mut self, now: u64) {
        if self.is_trial_fruitless() {
            self.put_off.suspect_path(now);
            return;
        }
        let awaited = || self.in_flight.iter().filter(|message| message.is_awaited());
        let mut sources = awaited().filter_map(|message| message.source.as_ref());
        let known = sources.clone().find(|source| self.put_off.knows(source.lane, source.position));
        let Some(source) = known.or_else(|| sources.next()).cloned() else { return };
        self.put_off.suspect_path(now);
        if let Some((is_new, entry)) = self.put_off.ended(&source, self.got_through, now) {
            entry.size = Some(source.message.size());
            if !is_new {
                return;
            }
            warn!(
                upstream = self.name,
                topic = source.message.view().topic(),
                size = source.message.size(),
                "connections to the upstream go silent at this message: it is kept, and others go first"
            );
        }
    }

    /// Whether TCP should send small segments on the next connection: a path may swallow large packets without a word, and
    /// then only what is small gets through.
    pub(crate) fn has_small_segments(&self, now: u64) -> bool {
        now < self.put_off.small_until
    }

    /// Handles the end of a connection by the upstream while packet ids were being freed, if they were.
    pub(super) fn ended_while_freeing(&mut self) -> bool {
        let is_given_up = self.begun.ended_while_freeing();
        if is_given_up == Some(true) {
            warn!(upstream = self.name, "the upstream closes the connection at PUBREL: packet ids are not freed there");
        }
        is_given_up.is_some()
    }

    /// Handles the end of a connection by the upstream at a PUBREL, if it was that: the message may be put off.
    pub(super) fn ended_at_release(&mut self, now: u64) -> bool {
        self.put_off.at_release = self.in_flight.iter().any(|message| message.is_awaited() && message.is_released);
        let mut awaited = self.in_flight.iter().filter(|message| message.is_awaited());
        let Some(source) = awaited.next().filter(|message| message.is_released).and_then(|it| it.source.clone()) else {
            return false;
        };
        let others = awaited.any(|message| !message.is_released);
        if others && !self.put_off.knows(source.lane, source.position) {
            return false;
        }
        let exact = !self.put_off.has_completed;
        if let Some((is_new, entry)) = self.put_off.ended(&source, self.got_through, now) {
            entry.exact = exact;
            if is_new {
                warn!(
                    upstream = self.name,
                    topic = source.message.view().topic(),
                    "the upstream closes the connection at PUBREL for this message: it is kept, and others go first"
                );
            }
        }
        self.put_off.is_at_release(exact);
        true
    }

    /// Begins to append a message to the journal once more, because too many have gone past it.
    pub(super) fn start_move(&mut self, at: usize, actions: &mut Vec<SessionAction>) {
        let message = &mut self.in_flight[at];
        let Some(source) = message.source.as_ref().filter(|_| !message.is_moving) else { return };
        actions.push(SessionAction::Move(source.lane, source.position));
        message.is_moving = true;
    }

    /// The number of messages that may go past one that is put off.
    pub(super) fn may_pass(&self, message: &SentMessage) -> u64 {
        let source = message.source.as_ref();
        if source.is_some_and(|it| !message.is_released && self.put_off.is_denied(it.lane, it.position)) {
            // the upstream has taken it under no packet id, and it waits for long
            return MOST_PASSED_DENIED;
        }
        let is_exact = message.is_exact
            || message.is_released
            || source.is_some_and(|source| source.is_begun || self.goes_exactly_once(&source.message));
        if is_exact { MOST_PASSED_EXACT } else { MOST_PASSED }
    }

    /// The message of [`SessionAction::Move`].
    pub(crate) fn moving(&self, lane: Lane, position: Position) -> Option<Message> {
        let mut sources = self.in_flight.iter().filter_map(|message| message.source.as_ref());
        sources.find(|it| (it.lane, it.position) == (lane, position)).map(|source| source.message.clone())
    }

    /// Records that a message was appended to the journal once more, at `new`, and settled at `old`; or that the journal has
    /// no room for it now.
    pub(crate) fn moved(&mut self, lane: Lane, old: Position, new: Option<Position>) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let is_it = |source: &SentFrom| (source.lane, source.position) == (lane, old);
        let mut messages = self.in_flight.iter();
        let Some(at) = messages.position(|message| message.source.as_ref().is_some_and(is_it)) else { return actions };
        self.in_flight[at].is_moving = false;
        let Some(new) = new else { return actions };
        if let Some(entry) = self.put_off.entry(lane, old) {
            entry.position = new;
        }
        self.denied.moved((lane, old), (lane, new));
        self.suspicion.past(lane, old);
        for gone in self.in_flight.iter_mut().filter(|message| message.gone_to == Some((lane, old))) {
            gone.gone_to = Some((lane, new));
        }
        if self.in_flight[at].waits {
            self.in_flight.remove(at);
            self.waiting -= 1;
        } else if let Some(source) = self.in_flight[at].source.take() {
            self.in_flight[at].gone_to = Some((lane, new));
            self.under_way.end(&source);
        }
        self.settle(&mut actions);
        actions
    }

    /// Records that the upstream has acknowledged a message by its earlier place.
    pub(super) fn copy_arrived(&mut self, lane: Lane, position: Position) {
        if let Some(entry) = self.put_off.entry(lane, position) {
            entry.has_arrived = true;
        }
        let is_it = |source: &SentFrom| (source.lane, source.position) == (lane, position);
        let copy = |message: &&mut SentMessage| message.waits && message.source.as_ref().is_some_and(is_it);
        if let Some(message) = self.in_flight.iter_mut().find(copy) {
            (message.waits, message.outcome) = (false, Some(LedgerOutcome::Acked));
            self.waiting -= 1;
        }
    }

    /// Whether the upstream has acknowledged a message of the journal by its earlier place.
    pub(super) fn has_arrived(&mut self, lane: Lane, position: Position) -> bool {
        self.put_off.entry(lane, position).is_some_and(|entry| entry.has_arrived)
    }
}
