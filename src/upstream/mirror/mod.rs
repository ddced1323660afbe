//! Keeps the retained messages of topics that are mirrored both ways (`[[upstream.both]]`) equal on both sides.
//!
//! Messages of both sides that cross on the way, or while there was no connection, would leave each side with the message of
//! the other. Whether that has happened is known only by the upstream, so its message is read: by a SUBSCRIBE with a
//! subscription identifier that asks for retained messages and not for "no local".
//!
//! 1. A topic is **doubtful** if a message comes down while one of ours that was sent on this connection may have crossed
//!    it, or if a repeated one comes down on a topic whose last message is ours, or that may have been deleted here. A
//!    repeated one does not replace ours.
//! 2. Doubtful topics are read when they have been quiet for a moment and everything that waits is handed over. All
//!    mirrored topics are read before a pass ([`crate::upstream::retained`]), which is due when the upstream has forgotten our
//!    session, after losses and after a crash. A new subscription of the rules itself asks for no retained messages, so they come when
//!    ours that waited have gone up. What a session that was kept brings needs no reading.
//! 3. What is read replaces ours, unless ours was published or sent since the SUBSCRIBE. Then the topic is doubtful again. What is
//!    equal is not published again.
//! 4. If nothing is read on a topic, the upstream has nothing, and our message goes up again.
//!
//! Retained messages have no end mark. A reading ends when no further topic has come for [`QUIET_MS`] since the answer to SUBSCRIBE.
//! A message that comes later does no harm: its identifier is not that of a present reading, so it counts as one that has crossed
//! ours, and its topic is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// How long after the last message a reading ends, in milliseconds.
const QUIET_MS: u64 = 2_000;
/// How long a doubtful topic must have been quiet, in milliseconds.
const SETTLES_MS: u64 = 1_000;
/// For how long a message that was sent may have crossed one that comes down, in milliseconds.
const CROSSES_MS: u64 = 300_000;
/// How long the answer to a SUBSCRIBE is waited for, in milliseconds.
const ANSWER_MS: u64 = 30_000;
/// How many topics are read together at first, and at most. Each reading takes seconds, however many topics it has, so it is
/// twice as many each time as long as the upstream takes all of them.
const AT_ONCE: usize = 64;
const MOST_AT_ONCE: usize = 512;
/// The most doubtful topics, and the most bytes of one. Beyond that all mirrored topics are read, because an upstream that
/// makes topics doubtful may not fill the memory with them.
const MOST_DOUBTFUL: usize = 4_096;
const LONGEST_DOUBTFUL: usize = 1_024;
/// The most topics that are remembered as sent on this connection. Beyond that every topic counts as sent.
const MOST_SENT: usize = 65_536;
/// The most topics that a reading remembers. Beyond that nothing goes up again.
const MOST_FOUND: usize = 1 << 18;
/// The number of connections that the upstream may end at a reading, and how long readings rest then, in milliseconds.
const STRIKES: u32 = 3;
const REST_MS: u64 = 3_600_000;
/// The largest subscription identifier [MQTT-3.8.2.1.2].
const LARGEST_ID: u32 = 0x0fff_ffff;

/// A retained message that has come down on a mirrored topic, beside what is retained here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MirroredArrival<'a> {
    pub(crate) remote: &'a str,
    /// Whether it belongs to the present reading.
    pub(crate) is_read: bool,
    /// Whether it may have come before (DUP).
    pub(crate) is_repeated: bool,
    /// Whether the message here is the same.
    pub(crate) is_same: bool,
    /// Whether nothing is retained here.
    pub(crate) is_absent: bool,
    /// When the message here was published, by the clock since boot in milliseconds, if it did not come from the upstream.
    pub(crate) ours_since: Option<i64>,
}

/// What to do with a message that has come down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MirrorVerdict {
    /// It is published.
    Take,
    /// It is published without the retain flag, because ours is newer.
    WithoutRetain,
    /// It is not published.
    Leave,
}

/// The topics of a reading.
#[derive(Debug)]
enum ReadTopics {
    /// All mirrored ones.
    All,
    /// These remote ones.
    Some(BTreeSet<String>),
}

#[derive(Debug)]
struct MirrorReading {
    id: u32,
    topics: ReadTopics,
    begun_at: u64,
    /// The hashes of the topics on which something is retained.
    found: HashSet<u64>,
    /// When the answer or the last message came.
    quiet_since: Option<u64>,
    /// Whether the upstream has not answered everything, or has refused something.
    is_partial: bool,
}

impl MirrorReading {
    /// Records that something is retained on the topic with this hash. Returns whether that is new.
    fn finds(&mut self, key: u64) -> bool {
        let has_room = self.found.len() < MOST_FOUND;
        self.is_partial |= !has_room;
        has_room && self.found.insert(key)
    }
}

/// The progress of the reading of all mirrored topics.
#[derive(Debug, Default)]
enum WholeReading {
    #[default]
    NotBegun,
    /// The topics on which something is retained, by their hashes, and when the reading began.
    Read(HashSet<u64>, u64),
    /// It is not known what the upstream has.
    Unknown,
}

/// A reading that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EndedReading {
    /// The remote topics that were subscribed to; none if all mirrored ones were read.
    pub(crate) topics: Vec<String>,
    /// Those of them on which the upstream retains nothing.
    pub(crate) missing: Vec<String>,
}

/// Decides which topics are read, and what happens to messages that come down.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    /// Doubtful remote topics, and when they may be read.
    doubtful: BTreeMap<String, u64>,
    /// When a message was last sent on a topic, by the hash of the topic. Those of the last connection count as sent when this one began.
    sent: HashMap<u64, u64>,
    /// Whether there were more.
    has_sent_more: bool,
    reading: Option<MirrorReading>,
    whole: WholeReading,
    last_id: u32,
    hasher: RandomState,
    /// How often the number of topics that are read together has doubled; `None` if the upstream has not taken so many.
    doublings: Option<u32>,
    /// Whether all mirrored topics must be read.
    wants_all: bool,
    /// When the last connection ended.
    ended_at: u64,
    /// Until when a deletion of ours may cross what comes down, although it is not known any more.
    unsure_until: u64,
    ends: u32,
    rests_until: u64,
}

impl Mirror {
    /// Begins with a random subscription identifier, so that messages of earlier readings are not taken for present ones.
    pub(crate) fn new(random: u32) -> Mirror {
        Mirror { last_id: random % LARGEST_ID, doublings: Some(0), ..Mirror::default() }
    }

    /// Handles a new connection. A session that was kept may still bring what has crossed messages of the last connection.
    /// `is_unsure` tells that it is not known any more what was sent then.
    pub(crate) fn connected(&mut self, is_resumed: bool, is_unsure: bool, now: u64) {
        if is_resumed {
            let may_cross = self.ended_at.saturating_sub(CROSSES_MS);
            self.sent.retain(|_, at| *at >= may_cross);
            self.sent.values_mut().for_each(|at| *at = now);
        } else {
            self.sent.clear();
            self.has_sent_more = false;
        }
        self.unsure_until = if is_resumed && is_unsure { now + CROSSES_MS } else { 0 };
        self.whole = WholeReading::NotBegun;
    }

    /// Handles the end of a connection. Returns whether a reading may be the reason.
    pub(crate) fn disconnected(&mut self, by_upstream: bool, now: u64) -> bool {
        (self.whole, self.ended_at) = (WholeReading::NotBegun, now);
        let Some(reading) = self.reading.take() else { return false };
        if let ReadTopics::Some(topics) = reading.topics {
            if by_upstream && reading.quiet_since.is_none() {
                self.has_read(topics.len(), false);
            }
            topics.into_iter().for_each(|topic| self.doubt(&topic, now));
        }
        let may_be_it = by_upstream && reading.quiet_since.is_none();
        self.ends = if may_be_it { self.ends + 1 } else { 0 };
        if self.ends >= STRIKES {
            (self.ends, self.rests_until) = (0, now + REST_MS);
        }
        may_be_it
    }

    /// Whether nothing is read for a while.
    pub(crate) fn rests(&self, now: u64) -> bool {
        self.rests_until > now
    }

    /// Records that a retained message, or a deletion, was sent on a mirrored topic.
    pub(crate) fn sent(&mut self, remote: &str, now: u64) {
        if self.sent.len() >= MOST_SENT {
            self.sent.retain(|_, at| *at + CROSSES_MS > now);
            self.has_sent_more |= self.sent.len() >= MOST_SENT;
        }
        if self.sent.len() < MOST_SENT {
            self.sent.insert(self.hasher.hash_one(remote), now);
        }
        if self.doubtful.contains_key(remote) {
            self.doubt(remote, now);
        }
    }

    /// Records that a topic could not be sent, and must be read again.
    pub(crate) fn doubt_again(&mut self, remote: &str, now: u64) {
        self.doubt(remote, now);
    }

    fn doubt(&mut self, remote: &str, now: u64) {
        let has_room = self.doubtful.len() < MOST_DOUBTFUL && remote.len() <= LONGEST_DOUBTFUL;
        if has_room || self.doubtful.contains_key(remote) {
            self.doubtful.insert(remote.to_owned(), now + SETTLES_MS);
        } else {
            self.wants_all = true;
        }
    }

    /// Decides about a message that has come down.
    pub(crate) fn arrived(&mut self, message: MirroredArrival<'_>, now: u64) -> MirrorVerdict {
        let MirroredArrival { remote, is_read, is_repeated, is_same, is_absent, ours_since } = message;
        let key = self.hasher.hash_one(remote);
        if is_read && let Some(reading) = &mut self.reading {
            // what follows on the same topic was published meanwhile, and may do so without an end
            if reading.finds(key) {
                reading.quiet_since = reading.quiet_since.map(|_| now);
            }
            let begun_at = reading.begun_at;
            if is_same {
                return MirrorVerdict::Leave;
            }
            if ours_since.is_some_and(|since| since >= begun_at as i64) || self.was_sent_since(key, begun_at) {
                self.doubt(remote, now);
                return MirrorVerdict::Leave;
            }
            // what was sent before has arrived there, and what comes from now on is newer
            self.sent.remove(&key);
            return MirrorVerdict::Take;
        }
        if is_same {
            return MirrorVerdict::Take;
        }
        let is_being_read = self.reading.as_ref().is_some_and(|reading| match &reading.topics {
            ReadTopics::All => true,
            ReadTopics::Some(topics) => topics.contains(remote),
        });
        let is_older = is_repeated && (is_absent || ours_since.is_some());
        let was_deleted = is_absent && self.unsure_until > now;
        let crosses = was_deleted || self.was_sent_since(key, now.saturating_sub(CROSSES_MS));
        if is_older || crosses || is_being_read || self.doubtful.contains_key(remote) {
            self.doubt(remote, now);
        }
        if is_older { MirrorVerdict::WithoutRetain } else { MirrorVerdict::Take }
    }

    /// Whether these subscription identifiers name the present reading.
    pub(crate) fn is_reading_as(&self, mut ids: impl Iterator<Item = u32>) -> bool {
        self.reading.as_ref().is_some_and(|reading| ids.any(|id| id == reading.id))
    }

    /// Begins to read the doubtful topics that are due, and returns them with the subscription identifier.
    pub(crate) fn begin(&mut self, now: u64) -> Option<(Vec<String>, u32)> {
        if self.reading.is_some() || self.rests_until > now {
            return None;
        }
        let due = self.doubtful.iter().filter(|(_, at)| **at <= now).map(|(topic, _)| topic.clone());
        let topics: BTreeSet<String> = due.take(self.at_once()).collect();
        self.doubtful.retain(|topic, _| !topics.contains(topic));
        let all: Vec<_> = topics.iter().cloned().collect();
        (!all.is_empty()).then(|| (all, self.start(ReadTopics::Some(topics), now)))
    }

    /// How many topics are read together.
    fn at_once(&self) -> usize {
        (AT_ONCE << self.doublings.unwrap_or(0)).min(MOST_AT_ONCE)
    }

    /// Records whether the upstream has taken a reading of so many topics.
    fn has_read(&mut self, topics: usize, is_taken: bool) {
        let is_full = topics >= self.at_once() && topics < MOST_AT_ONCE;
        match &mut self.doublings {
            doublings if !is_taken && topics > AT_ONCE => *doublings = None,
            Some(doublings) if is_taken && is_full => *doublings += 1,
            _ => {}
        }
    }

    /// Begins to read all mirrored topics, unless that was done on this connection for the pass that is due. Returns the
    /// subscription identifier.
    pub(crate) fn begin_whole(&mut self, now: u64) -> Option<u32> {
        if self.reading.is_some() || !matches!(self.whole, WholeReading::NotBegun) {
            return None;
        }
        if self.rests_until > now {
            (self.whole, self.wants_all) = (WholeReading::Unknown, false);
            return None;
        }
        self.wants_all = false;
        Some(self.start(ReadTopics::All, now))
    }

    fn start(&mut self, topics: ReadTopics, now: u64) -> u32 {
        self.last_id = self.last_id % LARGEST_ID + 1;
        let (id, found) = (self.last_id, HashSet::new());
        let (quiet_since, is_partial) = (None, false);
        self.reading = Some(MirrorReading { id, topics, begun_at: now, found, quiet_since, is_partial });
        id
    }

    /// Records that the present reading does not see all mirrored topics.
    pub(crate) fn sees_part(&mut self) {
        self.reading.iter_mut().for_each(|reading| reading.is_partial = true);
    }

    /// Records that the upstream has a message on this topic that cannot be taken.
    pub(crate) fn found(&mut self, remote: &str) {
        let key = self.hasher.hash_one(remote);
        if let Some(reading) = &mut self.reading {
            reading.finds(key);
        }
    }

    /// Whether something is being read.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether a pass need not wait for a reading any more.
    pub(crate) fn has_read_all(&self) -> bool {
        !matches!(self.whole, WholeReading::NotBegun)
    }

    /// Records that the upstream has answered every SUBSCRIBE of the reading, with these refusals.
    pub(crate) fn answered(&mut self, refused: &[String], now: u64) {
        let Some(reading) = &mut self.reading else { return };
        let is_first = reading.quiet_since.replace(reading.quiet_since.unwrap_or(now)).is_none();
        for topic in refused {
            match &mut reading.topics {
                ReadTopics::All => reading.is_partial = true,
                // it is not known what is retained there, so it counts as found
                ReadTopics::Some(_) => reading.found.extend([self.hasher.hash_one(topic.as_str())]),
            }
        }
        if let ReadTopics::Some(topics) = &reading.topics {
            let count = topics.len();
            if count > AT_ONCE {
                // perhaps there were only too many
                refused.iter().for_each(|topic| self.doubt(topic, now));
            }
            if is_first || !refused.is_empty() {
                self.has_read(count, refused.is_empty());
            }
        }
        self.ends = 0;
    }

    /// Ends the reading if nothing follows any more.
    pub(crate) fn end(&mut self, now: u64) -> Option<EndedReading> {
        if self.deadline_of_reading()? > now {
            return None;
        }
        let mut reading = self.reading.take()?;
        reading.is_partial |= reading.quiet_since.is_none();
        match reading.topics {
            ReadTopics::All => {
                if !reading.is_partial {
                    // those that became doubtful since remain so
                    self.doubtful.retain(|_, at| *at >= reading.begun_at + SETTLES_MS);
                }
                self.whole = match reading.is_partial {
                    true => WholeReading::Unknown,
                    false => WholeReading::Read(reading.found, reading.begun_at),
                };
                Some(EndedReading { topics: Vec::new(), missing: Vec::new() })
            }
            ReadTopics::Some(topics) => {
                if reading.is_partial {
                    self.has_read(topics.len(), false);
                    let again = topics.iter().map(|topic| (topic.clone(), now + ANSWER_MS));
                    self.doubtful.extend(again);
                }
                let is_missing = |topic: &&String| {
                    let key = self.hasher.hash_one(topic.as_str());
                    let was_sent = self.was_sent_since(key, reading.begun_at);
                    !reading.is_partial && !was_sent && !reading.found.contains(&key)
                };
                let missing = topics.iter().filter(is_missing).cloned().collect();
                Some(EndedReading { topics: topics.into_iter().collect(), missing })
            }
        }
    }

    /// Whether the reading of all mirrored topics has shown that the upstream retains nothing on this one, and nothing was
    /// sent since.
    pub(crate) fn is_missing(&self, remote: &str) -> bool {
        match &self.whole {
            WholeReading::Read(found, begun_at) => {
                let key = self.hasher.hash_one(remote);
                !found.contains(&key) && !self.was_sent_since(key, *begun_at)
            }
            WholeReading::NotBegun | WholeReading::Unknown => false,
        }
    }

    fn was_sent_since(&self, key: u64, since: u64) -> bool {
        self.has_sent_more || self.sent.get(&key).is_some_and(|at| *at >= since)
    }

    /// Handles the end of a pass.
    pub(crate) fn pass_ended(&mut self) {
        self.whole = WholeReading::NotBegun;
    }

    /// Whether there are so many doubtful topics that all must be read.
    pub(crate) fn wants_all(&self) -> bool {
        self.wants_all
    }

    /// Whether nothing is doubtful.
    pub(crate) fn is_sure(&self) -> bool {
        self.doubtful.is_empty() && self.reading.is_none() && !self.wants_all
    }

    fn deadline_of_reading(&self) -> Option<u64> {
        let reading = self.reading.as_ref()?;
        Some(reading.quiet_since.map_or(reading.begun_at + ANSWER_MS, |since| since + QUIET_MS))
    }

    /// When there is something to do.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let next = || self.doubtful.values().min().map(|at| (*at).max(self.rests_until));
        self.deadline_of_reading().or_else(next)
    }
}

#[cfg(test)]
mod tests;
