//! Topics that an upstream does not take: it closes the connection at each of their messages, as the policies of clouds demand.
//!
//! A topic counts as denied when two of its messages have ended connections, messages of other topics were acknowledged in
//! between, and none of its own was ([`super::suspicion`]). Then all of its messages are put off, and those of other
//! topics go on:
//!
//! - The oldest one stays in its lane as the one that is tried: after [`FIRST_MS`], and then ever more rarely, up to once in
//!   [`LONGEST_MS`]. An attempt is the only message in flight, so it costs one connection and tells what it is about. As soon
//!   as the upstream acknowledges a message of the topic, all is forgotten.
//! - The later ones are moved to a shelf in the journal ([`crate::upstream::shelf`]), where they use no memory, keep their order
//!   and are the first to give way. They come back when the topic is taken, before newer messages.
//! - The reason may be the message and not the topic. So it is set aside when [`super::STRIKES`] attempts have failed, others
//!   were acknowledged in between, and then another one that is the first message of its connection after [`QUIET_MS`]
//!   without any, or as long a time as others have needed. Then the next message of the topic is tried.
//!
//! Messages may also be put off because of their size ([`large`]).
//!
//! Where the upstream answers such a message before it closes the connection ([`super::after_answer`]), the one that is tried has
//! ended with its answer. So its topic is taken again only if the connection outlives that answer, and otherwise the next
//! message of the topic is tried.
//!
//! After a start nothing is known of the topics, but what lies on the shelf shows which they were. Of each the first message in
//! the lanes is tried, which is the one that was tried before. If there is none, the oldest one comes back from the shelf.

mod after;
mod back;
mod large;

use tracing::{info, warn};

use self::large::DeniedLarge;
use super::put_off::hash;
use super::sizes::size_there;
use super::{SentFrom, SentMessage, SessionAction, UpstreamSession};
use crate::journal::Position;
use crate::message::Message;
use crate::status::ledger::{DropReason, LedgerOutcome};
use crate::upstream::lanes::Lane;

/// The most topics that are known. Messages of further ones are suspected one by one.
const TOPICS: usize = 64;
/// The pause before the first attempt, and the longest, in milliseconds.
pub(super) const FIRST_MS: u64 = 60_000;
const LONGEST_MS: u64 = 3_600_000;
/// The least time between attempts for different topics, in milliseconds.
const APART_MS: u64 = 20_000;
/// For how long nothing else is sent before the attempt that may set a message aside, in milliseconds.
const QUIET_MS: u64 = 30_000;

/// The outcome of messages that are about to be put onto the shelf.
const SHELVED: LedgerOutcome = LedgerOutcome::Dropped(DropReason::EndsConnection);

/// A topic of which messages have ended connections.
#[derive(Debug)]
struct DeniedTopic {
    /// The hash of the topic, or the key of its large messages.
    topic: u64,
    /// Whether only its large messages are concerned.
    is_large: bool,
    /// Whether its messages are put off; otherwise one of them was set aside.
    is_put_off: bool,
    /// Whether the upstream answers its messages before it closes the connection.
    is_after: bool,
    /// Whether a connection has ended for another reason since the last attempt.
    is_erratic: bool,
    /// The message that is tried.
    tried: Option<(Lane, Position)>,
    /// Whether a message comes back from the shelf to be tried.
    comes_back: bool,
    /// Whether there may be messages on the shelf.
    has_shelved: bool,
    /// When it is tried.
    due: u64,
    /// The number of attempts that count for the pauses.
    times: u32,
    /// The number of attempts with the present message that count against it.
    strikes: u32,
    /// Whether others were acknowledged since the last attempt.
    others: bool,
    /// The number of the last attempt, among those of large messages.
    last: u64,
    /// Whether its large message makes room for others.
    retires: bool,
    /// The size of the large message that is tried; of a topic the size that may be the reason instead, or 0.
    size: usize,
    /// The smaller message of the topic that shows whether the size is the reason, and whether there may be one.
    probe: Option<(Lane, Position)>,
    may_probe: bool,
}

/// The attempt of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TopicAttempt {
    #[default]
    None,
    /// Nothing else is sent until it is due.
    Quiet(u64, Lane),
    /// It is sent as soon as nothing else is in flight. `true` if it may set the message aside.
    Alone(u64, bool),
}

/// What is known of denied topics.
#[derive(Debug, Default)]
pub(super) struct DeniedTopics {
    topics: Vec<DeniedTopic>,
    large: DeniedLarge,
    attempt: TopicAttempt,
    /// Whether the last connection ended because of a topic.
    has_ended: bool,
    /// Whether it is known what lies on the shelf.
    knows_shelf: bool,
    /// Whether what the journal keeps of sizes has changed.
    has_news: bool,
}

impl DeniedTopics {
    pub(super) fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.large.least.is_none()
    }

    /// The key of the attempt.
    fn attempt_key(&self) -> Option<u64> {
        match self.attempt {
            TopicAttempt::None => None,
            TopicAttempt::Quiet(key, _) | TopicAttempt::Alone(key, _) => Some(key),
        }
    }

    /// Whether a further topic can be put off.
    pub(super) fn has_room(&self) -> bool {
        self.topics.iter().filter(|it| it.is_put_off && !it.is_large).count() < TOPICS
    }

    /// Whether a message of this topic was set aside, and none was acknowledged since.
    pub(super) fn has_verdict(&self, topic: u64) -> bool {
        self.topics.iter().any(|it| it.topic == topic && !it.is_put_off)
    }

    /// Whether an acknowledgement of another topic would tell that a topic that is put off is the reason.
    pub(super) fn wants_others(&self) -> bool {
        self.topics.iter().any(|it| it.is_put_off && !it.others)
    }

    /// Whether the last connection ended because of a topic.
    pub(super) fn blames(&self) -> bool {
        self.has_ended
    }

    /// Whether an attempt is due or under way, so that messages are sent one at a time.
    pub(super) fn is_trying(&self) -> bool {
        self.attempt != TopicAttempt::None
    }

    /// Whether a message of this lane must be there before anything else is sent.
    pub(super) fn waits_for(&self, lane: Lane) -> bool {
        matches!(self.attempt, TopicAttempt::Quiet(_, of) if of == lane)
    }

    /// Handles a new connection.
    pub(super) fn connected(&mut self) {
        self.has_ended = false;
        if matches!(self.attempt, TopicAttempt::Alone(..)) {
            self.attempt = TopicAttempt::None;
        }
    }

    /// Tells that the time is `now`.
    pub(super) fn time(&mut self, now: u64) {
        if let TopicAttempt::Quiet(topic, _) = self.attempt
            && self.put_off(topic).is_none_or(|it| it.due + QUIET_MS <= now)
        {
            self.attempt = TopicAttempt::None;
        }
    }

    fn put_off(&mut self, topic: u64) -> Option<&mut DeniedTopic> {
        self.topics.iter_mut().find(|it| it.is_put_off && it.topic == topic)
    }

    /// The record of a topic, if there is room.
    fn record(&mut self, topic: u64) -> Option<&mut DeniedTopic> {
        let known = self.topics.iter().position(|it| it.topic == topic);
        let at = known.or_else(|| {
            if self.topics.len() >= TOPICS + large::MOST {
                let unused = self.topics.iter().position(|it| !it.is_put_off)?;
                self.topics.remove(unused);
            }
            self.topics.push(DeniedTopic {
                topic,
                is_large: false,
                is_put_off: false,
                is_after: false,
                is_erratic: false,
                tried: None,
                comes_back: false,
                has_shelved: false,
                due: 0,
                times: 0,
                strikes: 0,
                others: false,
                last: 0,
                retires: false,
                size: 0,
                probe: None,
                may_probe: false,
            });
            Some(self.topics.len() - 1)
        })?;
        Some(&mut self.topics[at])
    }

    /// Records that a message of this topic was set aside.
    pub(super) fn add_verdict(&mut self, topic: &str) {
        self.record(hash(topic));
    }

    /// Records that a message of this topic has ended a connection alone: then the others are not the only reason.
    pub(super) fn another_ended(&mut self, topic: u64) {
        self.topics.iter_mut().filter(|it| it.topic != topic).for_each(|it| it.strikes = 0);
    }

    /// Records that a message that was put off is sent as soon as possible. If it is the one of a topic, that is an attempt.
    pub(super) fn tries(&mut self, place: (Lane, Position)) {
        let Some(it) = self.topics.iter().find(|it| it.tried == Some(place)) else { return };
        self.attempt = match self.attempt {
            TopicAttempt::Quiet(topic, _) if topic == it.topic => TopicAttempt::Alone(topic, true),
            TopicAttempt::Alone(..) => return,
            _ => TopicAttempt::Alone(it.topic, false),
        };
    }

    /// Records that a message has another place in the journal now.
    pub(super) fn moved(&mut self, old: (Lane, Position), new: (Lane, Position)) {
        self.topics.iter_mut().filter(|it| it.tried == Some(old)).for_each(|it| it.tried = Some(new));
    }

    /// Ends the attempt of a topic.
    fn end_attempt(&mut self, topic: u64) {
        if self.attempt_key() == Some(topic) {
            self.attempt = TopicAttempt::None;
        }
    }

    /// Lets an attempt of each topic follow at once.
    fn try_all(&mut self) {
        self.topics.iter_mut().for_each(|it| (it.due, it.times) = (0, 0));
        self.large.try_at_once();
    }
}

impl UpstreamSession {
    /// Whether messages like this one are put off because of their topic or size.
    pub(crate) fn is_denied(&self, message: &Message) -> bool {
        self.denied.key(message).is_some()
    }

    /// The number of topics whose messages are put off, whatever their size.
    pub(crate) fn denied_topics(&self) -> usize {
        self.denied.topics.iter().filter(|it| it.is_put_off && !it.is_large).count()
    }

    /// Whether messages are put off because of their topic or size.
    pub(crate) fn has_denied(&self) -> bool {
        self.denied.topics.iter().any(|it| it.is_put_off) || self.denied.large.least.is_some()
    }

    /// Puts off the messages of the topic of this one.
    /// If a size is given, that may be the reason instead, so one smaller message of the topic is sent.
    pub(super) fn deny(&mut self, message: &Message, size: Option<usize>, now: u64) {
        if self.puts_off_topic(message, size, false, now) {
            let topic = message.view().topic();
            warn!(
                upstream = self.name,
                topic,
                rule = self.rules.place_of_out(topic),
                "the upstream closes the connection at messages on this topic, and takes others: they are kept and do not hold up \
                 the others, one of them is tried after a minute and then ever more rarely, up to once an hour, and they are the \
                 first to give way when the journal is full"
            );
        }
    }

    /// Puts off the messages of the topic of this one. `is_after` tells that the upstream answers them before it closes the
    /// connection. Returns whether there was room for the topic.
    fn puts_off_topic(&mut self, message: &Message, size: Option<usize>, is_after: bool, now: u64) -> bool {
        let topic = hash(message.view().topic());
        let head = self.denied.end_head(topic);
        let Some(it) = self.denied.record(topic) else { return false };
        if let Some(head) = head {
            (it.tried, it.comes_back, it.has_shelved) = (head.tried, head.comes_back, head.has_shelved);
            head.tried.into_iter().for_each(|tried| self.put_off.set_topic(tried, it.topic));
        }
        (it.is_put_off, it.due, it.times, it.strikes, it.others) = (true, now + FIRST_MS, 0, 0, false);
        (it.size, it.probe, it.may_probe) = (size.unwrap_or(0), None, size.is_some());
        it.is_after = is_after;
        self.denied.has_ended = true;
        true
    }

    /// Lets an attempt of each topic follow at once, because rules or settings have changed, or the address.
    pub(super) fn try_denied(&mut self) {
        self.denied.try_all();
        self.put_off.try_denied();
    }

    /// Appends the messages that are tried to the journal once more, so that a start repeats nothing that went past them.
    pub(crate) fn move_denied(&mut self) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        for at in 0..self.in_flight.len() {
            let message = &self.in_flight[at];
            let source = message.source.as_ref().filter(|_| message.waits && !message.is_released);
            if source.is_some_and(|it| self.put_off.is_denied(it.lane, it.position)) {
                self.start_move(at, &mut actions);
            }
        }
        actions
    }

    /// Whether nothing may be sent before the attempt of a topic.
    pub(super) fn is_quiet_for_topic(&self) -> bool {
        let TopicAttempt::Quiet(topic, _) = self.denied.attempt else { return false };
        let tried = self.denied.topics.iter().find(|it| it.topic == topic).and_then(|it| it.tried);
        let is_it = |source: &SentFrom| Some((source.lane, source.position)) == tried;
        self.in_flight.iter().any(|message| message.waits && message.source.as_ref().is_some_and(is_it))
    }

    /// Puts off a message of the journal whose topic is denied. Returns it if its topic is not.
    pub(super) fn take_denied(
        &mut self,
        source: SentFrom,
        is_released: bool,
        now: u64,
        actions: &mut Vec<SessionAction>,
    ) -> Option<SentFrom> {
        if self.denied.is_empty() {
            return Some(source);
        }
        let Some(topic) = self.denied.key(&source.message) else { return Some(source) };
        let place = (source.lane, source.position);
        if self.denied.is_probe(topic, size_there(&source.message), place) {
            return Some(source);
        }
        // the upstream may have it, by the packet id of this place
        let is_begun = is_released || source.is_begun || source.is_possible;
        if !is_begun && self.denied.retires(topic, place) {
            self.put_off.past(source.lane, source.position);
            self.shelve(source, now, actions);
            return None;
        }
        if self.denied.put_off(topic).is_none() {
            let (put_off, frees) = (&self.put_off, &mut self.denied);
            let frees = frees.free_missing_heads(|lane, position| put_off.knows(lane, position));
            actions.extend(frees.then_some(SessionAction::TakeBack));
            let is_shelving = self.in_flight.iter().any(|message| message.outcome == Some(SHELVED));
            let size = size_there(&source.message);
            if !self.denied.begins_head(topic, size, (is_begun, is_shelving)) {
                if is_begun {
                    return Some(source);
                }
                self.shelve(source, now, actions);
                return None;
            }
        }
        let Some(it) = self.denied.put_off(topic) else { return Some(source) };
        if it.tried.is_some_and(|(lane, position)| !self.put_off.knows(lane, position)) {
            // the journal does not have it any more
            (it.tried, it.strikes) = (None, 0);
            actions.extend(it.has_shelved.then_some(SessionAction::TakeBack));
        }
        if it.tried.is_none() && (it.comes_back || !it.has_shelved || is_begun) {
            (it.tried, it.comes_back) = (Some(place), false);
            let size = size_there(&source.message);
            it.size = if it.is_large { size } else { it.size.min(size) };
        }
        let is_tried = it.tried == Some(place);
        if is_tried {
            self.put_off.deny(&source, topic, it.due);
        }
        if is_tried || is_begun {
            self.put_off(source, is_released, now);
            return None;
        }
        it.has_shelved = true;
        self.shelve(source, now, actions);
        None
    }

    /// Puts a message onto the shelf when those before it are settled.
    fn shelve(&mut self, source: SentFrom, now: u64, actions: &mut Vec<SessionAction>) {
        self.under_way.begin(&source);
        let mut shelved = SentMessage::new(Some(source), now);
        shelved.outcome = Some(SHELVED);
        self.in_flight.push_back(shelved);
        self.settle(actions);
    }

    /// Records how a message has ended, while topics are known.
    pub(super) fn topic_ended(
        &mut self,
        place: (Lane, Position),
        message: &Message,
        outcome: LedgerOutcome,
        actions: &mut Vec<SessionAction>,
    ) {
        let topic = hash(message.view().topic());
        // what the connection may not outlive tells nothing
        let is_taken = outcome == LedgerOutcome::Acked && !self.denied.ends_after(topic);
        if is_taken {
            self.denied.topics.iter_mut().for_each(|it| it.others = true);
            self.took_size(message, actions);
        } else if let Some(head) = self.denied.topics.iter().find(|it| it.is_large && it.tried == Some(place)) {
            let key = head.topic;
            actions.extend(self.denied.free_head(key).then_some(SessionAction::TakeBack));
            return;
        }
        let Some(at) = self.denied.topics.iter().position(|it| it.topic == topic) else { return };
        let it = &mut self.denied.topics[at];
        if outcome == LedgerOutcome::Acked && it.is_put_off && it.is_after {
            // whether that is good is known when the connection has outlived it
            if it.tried == Some(place) {
                (it.tried, it.strikes) = (None, 0);
            }
            return;
        }
        if outcome == LedgerOutcome::Acked {
            let it = self.denied.topics.swap_remove(at);
            if let Some(tried) = it.tried {
                self.put_off.set_due(tried, 0);
            }
            if it.is_put_off && it.probe == Some(place) {
                self.deny_size_instead(&it);
            } else if it.is_put_off {
                self.suspicion.found_innocent();
                info!(upstream = self.name, topic = message.view().topic(), "the upstream takes this topic again");
            }
            actions.extend(it.has_shelved.then_some(SessionAction::TakeBack));
        } else if it.tried == Some(place) {
            (it.tried, it.strikes) = (None, 0);
            actions.extend(it.has_shelved.then_some(SessionAction::TakeBack));
        } else {
            it.probe = it.probe.filter(|probe| *probe != place);
            return;
        }
        self.denied.end_attempt(topic);
    }

    /// Handles the end of a connection by the upstream while only this message was unanswered. Returns whether it was the
    /// attempt of a topic.
    pub(super) fn ended_at_topic(&mut self, source: &SentFrom, now: u64, actions: &mut Vec<SessionAction>) -> bool {
        if self.denied.is_empty() {
            return false;
        }
        let Some(topic) = self.denied.key(&source.message) else { return false };
        let place = (source.lane, source.position);
        if self.denied.ended_at_probe(topic, place) {
            return true;
        }
        let is_last = self.denied.attempt == TopicAttempt::Alone(topic, true);
        let needed = self.suspicion.needed(now);
        let Some(it) = self.denied.put_off(topic).filter(|it| it.tried == Some(place)) else { return false };
        let counts = u32::from(std::mem::take(&mut it.others));
        (it.strikes, it.times) = (it.strikes + counts, it.times + counts);
        let is_next_last = !is_last && it.strikes >= needed;
        let quiet = self.suspicion.needed_quiet(QUIET_MS);
        let pause = if is_next_last { quiet } else { (FIRST_MS << it.times.min(10)).min(LONGEST_MS) };
        it.due = now + pause;
        it.may_probe = !it.is_large;
        let (is_large, has_shelved) = (it.is_large, it.has_shelved);
        if is_large {
            self.denied.after_attempt(topic, counts, is_next_last.then_some(now + quiet), now);
        }
        self.denied.has_ended = true;
        self.denied.attempt = if is_next_last { TopicAttempt::Quiet(topic, source.lane) } else { TopicAttempt::None };
        self.keep_topics_apart(topic, now);
        if let Some(it) = self.denied.put_off(topic) {
            self.put_off.deny(source, topic, it.due);
        }
        if is_last && self.suspicion.was_first_after(QUIET_MS) {
            self.set_aside(source, actions);
            if let Some(it) = self.denied.put_off(topic) {
                (it.tried, it.strikes) = (None, 0);
            }
            let takes_back = if is_large { self.denied.free_head(topic) } else { has_shelved };
            actions.extend(takes_back.then_some(SessionAction::TakeBack));
        }
        true
    }

    /// Drops a message that ends connections.
    pub(super) fn set_aside(&mut self, source: &SentFrom, actions: &mut Vec<SessionAction>) {
        let why = "the upstream closes the connection whenever it gets this message, and takes others";
        self.counts.add_loss(&self.name, DropReason::EndsConnection, source.message.view().topic(), why);
        self.suspicion.past(source.lane, source.position);
        self.put_off.past(source.lane, source.position);
        let outcome = LedgerOutcome::Dropped(DropReason::EndsConnection);
        self.not_accepted.settled(&source.message, outcome);
        actions.push(SessionAction::Settle(source.lane, source.position, outcome));
    }
}
