//! Messages above a size that an upstream does not take: with MQTT 3.1.1 it closes the connection at each of them, and announces
//! no limit.
//!
//! If at least three messages have ended connections, and all of them are larger than everything that was
//! acknowledged meanwhile, messages of at least the smallest of these sizes are put off, whatever their topic. Smaller ones
//! go on, also those of the same topics, and so past larger ones.
//!
//! The large messages of one topic are like a topic of their own: their order is kept, and the oldest is the one that is
//! tried. As there may be any number of topics, this is done for [`HEADS`] topics at a time, and for more, up to [`MOST`], of which
//! each was smaller than those before, in case the limit is higher than it seemed. They are tried in turn, with the pauses of one topic,
//! so the reason may also be one of these topics and not the size. All others are on the shelf, and when the place of a topic is
//! free, because its message was set aside or has expired, the oldest of another topic takes it. The only large message of its
//! topic goes behind the others on the shelf when an attempt with it has failed, so all of these are tried.
//!
//! When the upstream acknowledges a message of such a size, only larger ones are put off, and one of these is tried at once. When
//! none is left, all is forgotten.
//!
//! The size and the topics that are tried are noted in the journal, because after a start the shelf does not show them.

use tracing::{info, warn};

use super::{DeniedTopic, DeniedTopics, FIRST_MS, LONGEST_MS};
use crate::journal::Position;
use crate::message::Message;
use crate::upstream::lanes::Lane;
use crate::upstream::session::put_off::hash;
use crate::upstream::session::sizes::size_there;
use crate::upstream::session::{SessionAction, UpstreamSession};

/// The most topics whose large messages are tried in turn.
const HEADS: usize = 4;
/// The same with those that are smaller than the others.
pub(super) const MOST: usize = 2 * HEADS;

/// What is known of large messages.
#[derive(Debug, Default)]
pub(super) struct DeniedLarge {
    /// The size from which on messages are put off.
    pub(super) least: Option<usize>,
    /// Whether there may be messages on the shelf whose topics are not tried.
    has_shelved: bool,
    /// Whether the present look through the shelf has left such messages there.
    has_left: bool,
    /// The number of attempts that count for the pauses.
    times: u32,
    /// The number of the last attempt.
    attempt: u64,
    /// Until when no attempt follows.
    due: u64,
    /// Whether the last attempt has shown that the size is larger than it seemed.
    is_rising: bool,
}

/// What distinguishes the keys of large messages from those of topics.
const OF_LARGE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key of large messages of a topic among those of topics.
fn large_key(topic: u64) -> u64 {
    topic.rotate_left(32) ^ OF_LARGE
}

/// The topic of the large messages with this key.
fn topic_of(key: u64) -> u64 {
    (key ^ OF_LARGE).rotate_right(32)
}

impl DeniedTopics {
    /// The key under which a message is put off, if it is.
    pub(in crate::upstream::session) fn key(&self, message: &Message) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let topic = hash(message.view().topic());
        if self.topics.iter().any(|it| it.is_put_off && it.topic == topic) {
            return Some(topic);
        }
        self.is_large(message).then(|| large_key(topic))
    }

    /// Whether a message is of a size that is put off.
    pub(super) fn is_large(&self, message: &Message) -> bool {
        self.large.least.is_some_and(|least| size_there(message) >= least)
    }

    fn heads(&self) -> impl Iterator<Item = &DeniedTopic> {
        self.topics.iter().filter(|it| it.is_large)
    }

    /// Whether the large messages of a further topic can be tried, of which the first has this size.
    fn has_free_head(&self, size: usize) -> bool {
        let count = self.heads().count();
        count < HEADS || count < MOST && self.heads().all(|it| size < it.size)
    }

    /// Begins to try the large messages of a topic, of which the first has this size.
    fn add_head(&mut self, key: u64, size: usize, comes_back: bool) -> bool {
        // those that wait already are tried before one from the shelf
        let is_behind = comes_back && self.heads().next().is_some();
        let due = self.large.due + if is_behind { self.large.pause() } else { 0 };
        let last = if comes_back { self.large.attempt } else { 0 };
        let Some(it) = self.record(key) else { return false };
        (it.is_put_off, it.is_large, it.comes_back, it.due) = (true, true, comes_back, due);
        (it.size, it.last) = (size, last);
        self.has_news = true;
        true
    }

    /// Decides about the large message of a topic that is not tried yet: whether it is the one that is tried. `is_begun` tells
    /// that the upstream may have it, and `is_shelving` that others are about to be put onto the shelf.
    pub(super) fn begins_head(&mut self, key: u64, size: usize, (is_begun, is_shelving): (bool, bool)) -> bool {
        let is_first = self.has_free_head(size) && !self.large.has_shelved && !is_shelving;
        (is_first || is_begun) && self.add_head(key, size, false)
    }

    /// Forgets the topic of this key, whose message has ended. Returns whether one of another topic may come back instead.
    pub(super) fn free_head(&mut self, key: u64) -> bool {
        let Some(at) = self.topics.iter().position(|it| it.is_large && it.topic == key) else { return false };
        let it = self.topics.swap_remove(at);
        self.large.has_shelved |= it.has_shelved;
        self.has_news = true;
        self.end_attempt(key);
        self.large.has_shelved
    }

    /// Forgets what is known of the large messages of a topic, because all of its messages are put off, and returns it.
    pub(super) fn end_head(&mut self, topic: u64) -> Option<DeniedTopic> {
        let key = large_key(topic);
        let at = self.topics.iter().position(|it| it.is_large && it.topic == key)?;
        self.has_news = true;
        self.end_attempt(key);
        Some(self.topics.swap_remove(at))
    }

    /// Whether this message of a topic makes room for those of others. If so, its topic is not tried any more.
    pub(super) fn retires(&mut self, key: u64, place: (Lane, Position)) -> bool {
        let retires = self.topics.iter().any(|it| it.topic == key && it.retires && it.tried == Some(place));
        if retires {
            self.free_head(key);
        }
        retires
    }

    /// Forgets topics whose message the journal does not have any more, as `knows` tells. Returns the same.
    pub(super) fn free_missing_heads(&mut self, knows: impl Fn(Lane, Position) -> bool) -> bool {
        let is_missing = |it: &DeniedTopic| it.is_large && it.tried.is_some_and(|(lane, at)| !knows(lane, at));
        let missing: Vec<u64> = self.topics.iter().filter(|it| is_missing(it)).map(|it| it.topic).collect();
        let mut frees = false;
        for key in missing {
            frees |= self.free_head(key);
        }
        frees
    }

    /// Whether a large message on the shelf goes back to its lane, because it is the first of its topic and is to be tried.
    pub(super) fn takes_back_head(&mut self, key: u64, size: usize) -> bool {
        if self.has_free_head(size) && self.add_head(key, size, true) {
            // after a start the one that was tried may be in its lane
            let stays = !self.knows_shelf;
            self.topics.iter_mut().filter(|it| it.topic == key).for_each(|it| it.has_shelved = stays);
            return !stays;
        }
        self.large.has_left = true;
        false
    }

    /// Records that all messages on the shelf were looked at.
    pub(super) fn took_back_heads(&mut self) {
        self.large.has_shelved = std::mem::take(&mut self.large.has_left);
    }

    /// Forgets the size if it is larger than it seemed, and no message waits because of it. Returns whether it did.
    pub(super) fn forgets_size(&mut self) -> bool {
        let is_over = self.large.is_rising && !self.large.has_shelved && self.heads().next().is_none();
        if is_over {
            self.large = DeniedLarge::default();
            self.has_news = true;
        }
        is_over
    }

    /// Forgets topics whose messages should have come back and are not there. Returns whether there were any.
    pub(super) fn misses_heads(&mut self) -> bool {
        let before = self.topics.len();
        self.topics.retain(|it| !it.is_large || it.tried.is_some() || !it.comes_back);
        self.has_news |= self.topics.len() < before;
        self.topics.len() < before
    }

    /// Sets when the topics are tried after an attempt with one of them has failed: the one that has waited longest is next, or
    /// the same one if `due` is given.
    pub(super) fn after_attempt(&mut self, key: u64, counts: u32, due: Option<u64>, now: u64) {
        (self.large.times, self.large.attempt) = (self.large.times + counts, self.large.attempt + 1);
        self.large.is_rising = false;
        let pause = self.large.pause();
        let (attempt, next) = (self.large.attempt, due.unwrap_or(now) + pause);
        self.large.due = next;
        let first = self.heads().filter(|it| it.topic != key).min_by_key(|it| it.last).map(|it| it.topic);
        let first = if due.is_some() { Some(key) } else { first.or(Some(key)) };
        for it in self.topics.iter_mut().filter(|it| it.is_large) {
            if it.topic == key {
                it.last = attempt;
                // without others of its topic it may go behind those that were not tried yet
                it.retires = due.is_none() && self.large.has_shelved && !it.has_shelved;
            }
            it.due = if Some(it.topic) == first { due.unwrap_or(next) } else { next + pause };
        }
    }

    /// Whether a message of a topic that is put off shows whether the size is the reason instead: it is the first one that is
    /// smaller, and after each attempt at most one.
    pub(super) fn is_probe(&mut self, topic: u64, size: usize, place: (Lane, Position)) -> bool {
        let Some(it) = self.put_off(topic).filter(|it| it.may_probe && size < it.size && it.tried != Some(place))
        else {
            return false;
        };
        *it.probe.get_or_insert(place) == place
    }

    /// Whether this message goes past others of its topic, to see whether the size is the reason.
    pub(in crate::upstream::session) fn has_probe(&self, place: (Lane, Position)) -> bool {
        self.topics.iter().any(|it| it.probe == Some(place))
    }

    /// Records that a connection has ended at this message of a topic. Returns whether that shows that the size is not the
    /// reason.
    pub(super) fn ended_at_probe(&mut self, topic: u64, place: (Lane, Position)) -> bool {
        let Some(it) = self.put_off(topic).filter(|it| it.probe == Some(place)) else { return false };
        // another one follows when the message that is tried has failed again
        (it.probe, it.may_probe) = (None, false);
        self.has_ended = true;
        true
    }

    /// Records that the upstream takes messages of this size, which was put off. Returns those in the lanes that need not wait any
    /// more, with their topics.
    fn size_is_taken(&mut self, size: usize) -> Vec<(u64, (Lane, Position))> {
        let taken: Vec<_> = self.heads().filter(|it| it.size <= size).map(|it| (it.topic, it.tried)).collect();
        let mut free = Vec::new();
        for (key, tried) in taken {
            self.free_head(key);
            free.extend(tried.map(|tried| (topic_of(key), tried)));
        }
        (self.large.least, self.large.is_rising) = (Some(size + 1), true);
        // one that is larger is tried at once
        self.large.try_at_once();
        self.topics.iter_mut().filter(|it| it.is_large).for_each(|it| it.due = 0);
        self.has_news = true;
        free
    }
}

impl DeniedLarge {
    /// The pause between attempts, in milliseconds.
    fn pause(&self) -> u64 {
        (FIRST_MS << self.times.min(10)).min(LONGEST_MS)
    }

    /// Lets an attempt follow at once.
    pub(super) fn try_at_once(&mut self) {
        (self.due, self.times) = (0, 0);
    }
}

impl UpstreamSession {
    /// Puts off messages of at least this size.
    pub(in crate::upstream::session) fn deny_size(&mut self, size: usize, now: u64) {
        let is_new = self.denied.large.least.is_none();
        let large = &mut self.denied.large;
        large.least = Some(large.least.map_or(size, |least| least.min(size)));
        if is_new {
            (large.due, large.times) = (now + FIRST_MS, 0);
        }
        (self.denied.has_news, self.denied.has_ended) = (true, true);
        warn!(
            upstream = self.name,
            size,
            "the upstream closes the connection at messages of this size and above (bytes of topic and payload), and takes \
             smaller ones: the large ones are kept and do not hold up the others, one of them is tried after a minute and then \
             ever more rarely, up to once an hour, and they are the first to give way when the journal is full; let the upstream \
             accept larger packets, or smaller messages be published"
        );
    }

    /// Puts off messages because of their size instead of the topic of this record, because a smaller one was acknowledged.
    pub(super) fn deny_size_instead(&mut self, topic: &DeniedTopic) {
        self.deny_size(topic.size, topic.due.saturating_sub(FIRST_MS));
        let Some(place) = topic.tried else { return };
        let key = large_key(topic.topic);
        if self.denied.add_head(key, topic.size, false)
            && let Some(it) = self.denied.put_off(key)
        {
            (it.tried, it.has_shelved) = (Some(place), topic.has_shelved);
        }
        self.put_off.set_topic(place, key);
    }

    /// Handles the acknowledgement of a message of a size that was put off.
    pub(super) fn took_size(&mut self, message: &Message, actions: &mut Vec<SessionAction>) {
        if !self.denied.is_large(message) {
            return;
        }
        let size = size_there(message);
        let takes_back = self.denied.large.has_shelved || self.denied.heads().any(|it| it.has_shelved);
        for (topic, place) in self.denied.size_is_taken(size) {
            // those of its topic that come back stay behind it
            self.put_off.set_topic(place, topic);
            self.put_off.set_due(place, 0);
        }
        let heads: Vec<_> = self.denied.heads().filter_map(|it| it.tried).collect();
        heads.into_iter().for_each(|place| self.put_off.set_due(place, 0));
        info!(upstream = self.name, size, "the upstream takes messages of this size: those that are not larger go on");
        match takes_back {
            true => actions.push(SessionAction::TakeBack),
            false => self.look_at_size(),
        }
    }

    /// Forgets the size if it is larger than it seemed, and no message waits because of it.
    pub(super) fn look_at_size(&mut self) {
        if self.denied.forgets_size() {
            self.suspicion.found_innocent();
        }
    }

    /// The size, in bytes of topic and payload, from which on messages are put off, if there is one.
    pub(crate) fn denied_size(&self) -> Option<usize> {
        self.denied.large.least
    }

    /// Records that a message is on the shelf. Returns whether the shelf must be looked through for one that may go up.
    pub(crate) fn is_on_shelf(&mut self, message: &Message) -> bool {
        let Some(key) = self.denied.key(message) else { return true };
        if self.denied.put_off(key).is_none() {
            self.denied.large.has_shelved = true;
            return self.denied.has_free_head(size_there(message));
        }
        false
    }

    /// What the journal is to keep of the size that is put off, if that has changed since the last time.
    pub(crate) fn size_news(&mut self) -> Option<Option<Vec<u8>>> {
        std::mem::take(&mut self.denied.has_news).then(|| {
            let least = self.denied.large.least? as u64;
            let heads = self.denied.heads().map(|it| it.topic);
            Some([least].into_iter().chain(heads).flat_map(u64::to_le_bytes).collect())
        })
    }

    /// Restores what the journal has kept, before the first connection.
    pub(crate) fn restore_size(&mut self, note: &[u8]) {
        let mut numbers = note.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let Some(least) = numbers.next().and_then(|least| usize::try_from(least).ok()) else { return };
        self.denied.large.least = Some(least);
        for key in numbers.take(MOST) {
            self.denied.add_head(key, usize::MAX, true);
        }
        self.denied.has_news = false;
    }
}
