//! Topics after whose answers connections end: the upstream acknowledges or refuses a message, and then closes the connection.
//!
//! What is unanswered at such an end is innocent, so [`super::suspect`] finds nothing. Whatever was answered within [`SOON_MS`] before
//! the end may be the reason instead:
//!
//! - An end counts if nothing was unanswered, or all of that was answered on the next connection. Otherwise what was unanswered may be
//!   the reason.
//! - From the second such end on, what was answered that shortly before is doubted. After the answer to a message of
//!   such a topic nothing is sent for [`SOON_MS`]. If the connection ends in this time, nothing else that was sent can have been the
//!   reason; if it does not, the topic is innocent.
//! - If a topic has ended [`ENDS`] connections so, and topics that are innocent were answered in between, it is denied ([`super::denied`]):
//!   its messages are put off, and the one that is tried counts as taken only if the connection outlives its answer.
//!
//! An upstream that ends connections for its own reasons does so after any answer. If all topics that were doubted are innocent, or one
//! that was denied is, nothing is doubted for a while, and longer each time. An upstream that takes so many messages on each
//! connection may meet the same topic each time, so the first attempt follows soon.

use std::collections::VecDeque;

use super::put_off::hash;
use super::{SentMessage, SessionAction, UpstreamSession};
use crate::journal::Position;
use crate::message::Message;
use crate::upstream::lanes::Lane;

/// An upstream that closes the connection because of a message does so within this time after its answer, in milliseconds.
pub(super) const SOON_MS: u64 = 1_000;
/// The number of connections that must have ended after answers to messages of a topic.
const ENDS: u32 = 3;
/// The most topics that are doubted at a time. Each costs a pause of [`SOON_MS`].
const MOST: usize = 16;
/// The most topics that are known as innocent.
const INNOCENT: usize = 256;
/// How long ends after answers are remembered, in milliseconds.
const REMEMBERED_MS: u64 = 600_000;
/// A connection that has lasted for longer ends for other reasons, or so rarely that it does no harm; in milliseconds.
const SHORT_MS: u64 = 60_000;
/// For how long nothing is doubted after that was in vain, at first and at most, in milliseconds.
const FIRST_REST_MS: u64 = 60_000;
const LONGEST_REST_MS: u64 = 3_600_000;
/// The most unanswered messages at an end that counts if they are answered later.
const UNANSWERED: usize = 256;
/// The number of answers on a connection up to which messages are sent one at a time while a topic is doubted.
const ONE_BY_ONE: u32 = 32;

/// A topic that may be what connections end for.
#[derive(Clone, Copy, Debug)]
struct DoubtedTopic {
    topic: u64,
    /// The number of connections that have ended while nothing but its answer can have been the reason.
    ends: u32,
    /// Whether a message of a topic that is innocent was answered since the last of them.
    others: bool,
}

/// The answer after which nothing is sent until it is known whether the connection outlives it.
#[derive(Clone, Debug)]
struct Outlived {
    topic: u64,
    message: Message,
    until: u64,
}

/// An end of a connection that counts when all that was unanswered has been answered.
#[derive(Debug)]
struct OpenEnd {
    unanswered: Vec<(Lane, Position)>,
    topics: Vec<u64>,
    /// Whether answers were looked at.
    is_looking: bool,
}

/// What the end of a connection tells.
#[derive(Debug)]
enum AfterVerdict {
    Nothing,
    /// It ended because of the last answer.
    Explained(u64),
    /// That has happened often enough.
    Topic(Message),
}

/// What is known of ends after answers. Makes decisions without I/O.
#[derive(Debug, Default)]
pub(super) struct AfterAnswer {
    /// Until when answers are looked at.
    until: u64,
    /// Until when nothing is doubted, and how often that was in vain.
    rests_until: u64,
    in_vain: u32,
    begun_at: u64,
    /// Whether this connection has lasted for so long that it is not looked at any more.
    lasts: bool,
    /// The number of answers on this connection while answers are looked at.
    count: u32,
    /// A topic that was answered while answers are looked at, and whether another one was: of a single one nothing can be found out.
    one: Option<u64>,
    has_others: bool,
    /// The last end of a connection, if it is not known yet whether it counts.
    open: Option<OpenEnd>,
    /// The topics that were answered on this connection shortly before now, and when.
    answered: VecDeque<(u64, u64)>,
    doubted: Vec<DoubtedTopic>,
    /// The topics that were doubted and are innocent.
    innocent: Vec<u64>,
    outlived: Option<Outlived>,
    /// Whether the last connection ended because of an answer.
    has_ended: bool,
}

impl AfterAnswer {
    /// Handles a new connection.
    pub(super) fn connected(&mut self, now: u64) {
        (self.begun_at, self.lasts, self.count) = (now, false, 0);
        self.answered.clear();
        (self.outlived, self.has_ended) = (None, false);
    }

    /// Whether the last connection ended because of an answer, or nothing is sent until it is known whether this one does.
    pub(super) fn blames(&self) -> bool {
        self.has_ended || self.outlived.is_some()
    }

    /// Whether nothing may be sent.
    pub(super) fn is_waiting(&self) -> bool {
        self.outlived.is_some()
    }

    /// Whether messages are sent one at a time, because otherwise an end would not tell after which answer it came.
    pub(super) fn is_doubting(&self) -> bool {
        let is_open = self.open.as_ref().is_some_and(|open| open.is_looking);
        (!self.doubted.is_empty() || is_open) && self.count < ONE_BY_ONE && !self.lasts
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        let lasts = self.is_doubting().then_some(self.begun_at + SHORT_MS);
        self.outlived.as_ref().map(|it| it.until).or(lasts)
    }

    fn is_looking(&self, now: u64) -> bool {
        now < self.until
    }

    /// Records that the upstream has answered the message of this place, which may have been unanswered when the last connection ended.
    fn answered_later(&mut self, place: (Lane, Position), now: u64) {
        let Some(open) = &mut self.open else { return };
        open.unanswered.retain(|it| *it != place);
        if let Some(open) = self.open.take_if(|open| open.unanswered.is_empty()) {
            self.count_end(&open.topics, now);
        }
    }

    /// Records that the upstream has answered this message. `is_denied` tells that its topic is denied for such an end.
    fn answered(&mut self, topic: u64, message: &Message, is_denied: bool, now: u64) {
        self.outlive(now);
        self.count = self.count.saturating_add(1);
        self.has_others |= *self.one.get_or_insert(topic) != topic;
        self.answered.retain(|(of, _)| *of != topic);
        if self.answered.len() >= MOST {
            self.answered.pop_front();
        }
        self.answered.push_back((topic, now));
        if self.innocent.contains(&topic) {
            self.doubted.iter_mut().for_each(|it| it.others = true);
        }
        if !self.doubted.is_empty() && self.is_doubting() && self.innocent.len() < MOST {
            // whether it is innocent is only known if nothing follows its answer at once
            self.doubt(topic);
        }
        if is_denied || self.doubted.iter().any(|it| it.topic == topic) {
            self.outlived = Some(Outlived { topic, message: message.clone(), until: now + SOON_MS });
        }
    }

    /// Finds topics innocent whose answers this connection has outlived.
    fn outlive(&mut self, now: u64) {
        while let Some((topic, _)) = self.answered.front().copied().filter(|(_, at)| at + SOON_MS <= now) {
            self.answered.pop_front();
            self.is_innocent(topic, now);
        }
    }

    fn is_innocent(&mut self, topic: u64, now: u64) {
        self.doubted.iter_mut().filter(|it| it.topic != topic).for_each(|it| it.others = true);
        let Some(at) = self.doubted.iter().position(|it| it.topic == topic) else { return };
        self.doubted.swap_remove(at);
        if self.innocent.len() >= INNOCENT {
            self.innocent.remove(0);
        }
        self.innocent.push(topic);
        if self.doubted.is_empty() {
            self.rest(now);
        }
    }

    /// Doubts nothing for a while, because that was in vain.
    pub(super) fn rest(&mut self, now: u64) {
        (self.doubted, self.innocent, self.open) = Default::default();
        self.until = 0;
        self.rests_until = now + (FIRST_REST_MS << self.in_vain.min(10)).min(LONGEST_REST_MS);
        self.in_vain += 1;
    }

    /// Tells that the time is `now`. Returns the message whose answer the connection has outlived, if that was waited for.
    fn time(&mut self, now: u64) -> Option<Message> {
        self.lasts |= self.begun_at + SHORT_MS <= now;
        let outlived = self.outlived.take_if(|it| it.until <= now)?;
        self.outlive(now);
        Some(outlived.message)
    }

    /// Handles the end of a connection by the upstream. `last_answer` is the time of its last answer, and `unanswered` are the places
    /// of the messages that were not answered; `None` if something else was not, or too many.
    fn ended(&mut self, last_answer: u64, unanswered: Option<Vec<(Lane, Position)>>, now: u64) -> AfterVerdict {
        self.outlive(now);
        self.open = None;
        let has_all = unanswered.as_ref().is_some_and(Vec::is_empty);
        if let Some(outlived) = self.outlived.take().filter(|_| has_all) {
            return self.not_outlived(outlived, now);
        }
        let is_soon = last_answer >= self.begun_at && now < last_answer + SOON_MS;
        if !is_soon && !has_all && !self.doubted.is_empty() {
            // connections end without answers as well, so what is unanswered is looked at, and nothing waits meanwhile
            self.rest(now);
        }
        if !is_soon || now < self.rests_until || self.begun_at + SHORT_MS < now {
            return AfterVerdict::Nothing;
        }
        let topics: Vec<u64> = self.answered.iter().map(|(topic, _)| *topic).collect();
        match unanswered {
            None => {}
            Some(unanswered) if unanswered.is_empty() => self.count_end(&topics, now),
            Some(unanswered) => self.open = Some(OpenEnd { unanswered, topics, is_looking: self.is_looking(now) }),
        }
        AfterVerdict::Nothing
    }

    /// Handles the end of a connection when nothing but this answer can have been the reason.
    fn not_outlived(&mut self, outlived: Outlived, now: u64) -> AfterVerdict {
        let Outlived { topic, message, .. } = outlived;
        self.has_ended = true;
        let Some(at) = self.doubted.iter().position(|it| it.topic == topic) else {
            self.in_vain = 0;
            return AfterVerdict::Explained(topic);
        };
        self.until = now + REMEMBERED_MS;
        let it = &mut self.doubted[at];
        if it.ends == 0 || it.others {
            (it.ends, it.others) = (it.ends + 1, false);
        }
        if it.ends < ENDS {
            return AfterVerdict::Explained(topic);
        }
        self.doubted.swap_remove(at);
        AfterVerdict::Topic(message)
    }

    /// Counts an end that came shortly after answers to messages of these topics.
    fn count_end(&mut self, topics: &[u64], now: u64) {
        if !self.is_looking(now) {
            self.until = now + REMEMBERED_MS;
            (self.doubted, self.innocent, self.one, self.has_others) = Default::default();
            return;
        }
        if !self.has_others {
            return;
        }
        if topics.iter().all(|topic| self.innocent.contains(topic)) {
            // connections end after their answers as well
            self.rest(now);
            return;
        }
        topics.iter().for_each(|topic| self.doubt(*topic));
    }

    fn doubt(&mut self, topic: u64) {
        let is_known = self.innocent.contains(&topic) || self.doubted.iter().any(|it| it.topic == topic);
        if !is_known && self.doubted.len() < MOST {
            self.doubted.push(DoubtedTopic { topic, ends: 0, others: false });
        }
    }
}

impl UpstreamSession {
    /// Records that the upstream has answered this message in flight, or has completed the exchange of it.
    pub(super) fn watch_after(&mut self, at: usize, now: u64) {
        let is_looking = self.after_answer.is_looking(now);
        if !is_looking && self.after_answer.open.is_none() && self.denied.is_empty() {
            return;
        }
        let Some(source) = &self.in_flight[at].source else { return };
        self.after_answer.answered_later((source.lane, source.position), now);
        let topic = hash(source.message.view().topic());
        let is_denied = self.denied.ends_after(topic);
        if is_denied || is_looking {
            self.after_answer.answered(topic, &source.message, is_denied, now);
        }
    }

    /// Tells that the time is `now`.
    pub(super) fn after_answer_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if let Some(message) = self.after_answer.time(now) {
            self.topic_outlived(&message, now, actions);
        }
    }

    /// Whether the connection ends because of an answer if the upstream ends it now.
    pub(crate) fn is_after_answer(&self) -> bool {
        self.after_answer.is_waiting() && !self.in_flight.iter().any(SentMessage::is_awaited)
    }

    /// Handles the end of a connection by the upstream. Returns whether an answer that came just before explains it.
    pub(super) fn ended_after_answer(&mut self, now: u64, actions: &mut Vec<SessionAction>) -> bool {
        let unanswered = self.unanswered_at_end();
        match self.after_answer.ended(self.last_answer, unanswered, now) {
            AfterVerdict::Nothing => {
                self.denied.ended_otherwise();
                return false;
            }
            AfterVerdict::Explained(topic) => self.topic_not_outlived(topic, now, actions),
            AfterVerdict::Topic(message) => {
                if self.denied.has_room() && self.suspicion.needed(now) == super::STRIKES {
                    self.deny_after(&message, now);
                }
            }
        }
        self.learned.is_news = true;
        true
    }

    /// The places of the messages that were not answered; `None` if something else was not, or too many, or it is being found out
    /// already whether a message that was not is the reason.
    fn unanswered_at_end(&self) -> Option<Vec<(Lane, Position)>> {
        if !self.opening.has_ended() || self.suspicion.has_strikes() {
            return None;
        }
        let awaited = || self.in_flight.iter().filter(|message| message.is_awaited());
        let places = awaited().map(|message| message.source.as_ref().map(|it| (it.lane, it.position)));
        (awaited().count() <= UNANSWERED).then(|| places.collect()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Draft;

    /// The upstream answers messages of these topics, a tenth of a second apart unless it is waited for, and then ends the
    /// connection. Returns the topic that is found to be the reason.
    fn connection(after: &mut AfterAnswer, topics: &[&str], now: &mut u64) -> Option<String> {
        after.connected(*now);
        for topic in topics {
            *now += 100;
            let message = Message::new(&Draft::new(topic, b""));
            after.answered(hash(topic), &message, false, *now);
            if Some(topic) != topics.last()
                && let Some(until) = after.outlived.as_ref().map(|it| it.until)
            {
                *now = until;
                assert!(after.time(*now).is_some_and(|message| message.view().topic() == *topic));
            }
        }
        *now += 10;
        match after.ended(*now - 10, Some(Vec::new()), *now) {
            AfterVerdict::Topic(message) => Some(message.view().topic().to_owned()),
            _ => None,
        }
    }

    #[test]
    fn the_topic_after_whose_answers_connections_end_is_found() {
        let (mut after, mut now) = (AfterAnswer::default(), 0);
        let found: Vec<_> = (0..5).map(|_| connection(&mut after, &["a", "b", "q"], &mut now)).collect();
        assert_eq!(found, [None, None, None, None, Some("q".to_owned())]);
        assert!(after.blames());
    }

    #[test]
    fn an_end_counts_only_if_what_was_unanswered_is_answered_on_the_next_connection() {
        let (good, bad) = ((Lane::First, Position(1)), (Lane::First, Position(2)));
        for (answers_bad, finds) in [(true, true), (false, false)] {
            let (mut after, mut now) = (AfterAnswer::default(), 0);
            for _ in 0..6 {
                after.connected(now);
                after.answered_later(good, now);
                if answers_bad {
                    after.answered_later(bad, now);
                }
                for topic in ["a", "b"] {
                    after.answered(hash(topic), &Message::new(&Draft::new(topic, b"")), false, now);
                }
                now += 10;
                assert!(matches!(after.ended(now - 10, Some(vec![good, bad]), now), AfterVerdict::Nothing));
            }
            assert_eq!(!after.doubted.is_empty(), finds);
        }
    }

    #[test]
    fn an_upstream_that_ends_connections_after_any_answer_finds_no_topic() {
        for topics in [&["a", "b", "q"][..], &["a"], &["a", "b"]] {
            let (mut after, mut now) = (AfterAnswer::default(), 0);
            for round in 0..50 {
                let mut topics = topics.to_vec();
                let count = topics.len();
                topics.rotate_left(round % count);
                assert_eq!(connection(&mut after, &topics, &mut now), None, "{topics:?}");
            }
        }
    }

    #[test]
    fn what_is_in_vain_is_done_rarely() {
        let (mut after, mut now, mut pauses) = (AfterAnswer::default(), 0, 0);
        while now < 24 * LONGEST_REST_MS {
            after.connected(now);
            for topic in ["a", "b", "c"] {
                now += 3_000;
                after.answered(hash(topic), &Message::new(&Draft::new(topic, b"")), false, now);
                pauses += u32::from(after.is_waiting());
                if after.is_waiting() {
                    now += SOON_MS;
                    assert!(after.time(now).is_some());
                }
            }
            now += 10;
            assert!(matches!(after.ended(now - 10, Some(Vec::new()), now), AfterVerdict::Nothing));
        }
        assert!(pauses < 150, "{pauses}");
    }
}
