//! Conclusions from connections that end at a message: see [`super::suspect`]. Makes decisions without I/O.

use super::suspected::{Flag, Seen, Suspect};
use super::{STRIKES, sizes};
use crate::journal::Position;
use crate::upstream::lanes::Lane;

/// The most messages that are remembered because they have ended connections.
const ENTRIES: usize = 256;
/// The number of such connections up to which the attempts are as quick as they can be.
const QUICK: u32 = 3;
/// How long it is remembered that innocent messages have ended connections, in milliseconds.
const REMEMBERED_MS: u64 = 3_600_000;
/// The number of such messages after which more evidence is needed; one may have met with a restart of the upstream.
const INNOCENTS: u32 = 2;
/// The longest time without acknowledgements that the last attempt waits for, in milliseconds.
const MOST_QUIET_MS: u64 = 60_000;
/// The least such time before the last attempt while a topic is put off, in milliseconds.
const DENIED_QUIET_MS: u64 = 15_000;
/// The same while one message seems to be the cause, in milliseconds. A quota that takes longer than that meets others as well.
const CLEAR_QUIET_MS: u64 = 5_000;
/// The number of connections without any acknowledgement after which others are sent before a message that is tried for the
/// last time.
const ALONE: u32 = 4;

/// The number of messages that arrive at QoS 1 and not at QoS 2 after which QoS 2 is not used any more.
const EXACT_DOUBTS: u32 = 2;

/// What may be sent before a suspected message on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Plan {
    /// Nothing; messages are sent in order.
    #[default]
    InOrder,
    /// This number of other messages, one after the other.
    Others(u32),
    /// This number of messages of other topics, so that the suspected topics keep their order.
    OtherTopics(u32),
}

/// The conclusion from the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuspectVerdict {
    /// Nothing is proved yet.
    Open,
    /// This message is the cause.
    Guilty,
    /// The retain flag is the cause; the message has arrived without it.
    Flag,
    /// The topic of this message is the cause; or, if a size is given, perhaps that messages have at least this size.
    Topic(Option<usize>),
    /// The cause is that messages have at least this size.
    Size(usize),
    /// No message is the cause.
    Upstream,
}

/// What is known about messages that may end connections. Makes decisions without I/O.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    /// The positions up to which messages are sent one at a time, for each lane; `None` if the lane is not concerned.
    until: [Option<Position>; 2],
    /// The positions reached in the lanes.
    passed: [Position; 2],
    entries: Vec<Suspect>,
    /// Messages that were found to be the cause, to see whether their size is the reason.
    guilty: Vec<Suspect>,
    plan: Plan,
    /// The number of connections in a row that ended at a single message, without any acknowledgement.
    failures: u32,
    /// The number of messages sent on this connection.
    sent: u32,
    /// Whether different messages have ended connections in turn.
    in_turn: bool,
    /// The number of messages that have ended connections and were acknowledged later, and when the last one was.
    innocents: u32,
    innocent_at: u64,
    acked_at: Option<u64>,
    /// The time without acknowledgements before the first message of this connection was sent.
    quiet: u64,
    /// The longest such time after which the upstream has taken another message.
    needed_quiet: u64,
    /// The number of messages in a row that have arrived at QoS 1 and not at QoS 2.
    exact_doubts: u32,
    /// Whether a topic is put off. If the reason is a quota after all, few others are left that would show it.
    has_denied: bool,
    /// Whether a message of the topic was acknowledged before the last verdict.
    has_acked_topic: bool,
    /// Whether others were to be sent, and nothing but suspects waited.
    is_exhausted: bool,
    /// The size of the largest message that was acknowledged since a size was found to be the cause.
    largest: usize,
    /// Until when it is not said again that the upstream is the cause.
    said_until: u64,
}

impl Suspicion {
    /// Whether messages are sent one at a time.
    pub(crate) fn is_active(&self) -> bool {
        !self.entries.is_empty() || self.until.iter().any(Option::is_some)
    }

    /// Whether a message is suspected.
    pub(crate) fn blames(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Whether an end counts against a message.
    pub(crate) fn has_strikes(&self) -> bool {
        self.entries.iter().any(|entry| entry.strikes > 0)
    }

    /// Whether messages of this lane are sent one at a time.
    pub(crate) fn concerns(&self, lane: Lane) -> bool {
        self.until[lane.index()].is_some() || self.entries.iter().any(|entry| entry.lane == lane)
    }

    /// Whether one message seems to be the cause, and not the upstream.
    pub(crate) fn is_clear(&self, now: u64) -> bool {
        !self.in_turn && !self.has_denied && self.needed(now) == STRIKES
    }

    /// The number of strikes that are needed.
    pub(crate) fn needed(&self, now: u64) -> u32 {
        let is_erratic = self.innocents >= INNOCENTS && now < self.innocent_at + REMEMBERED_MS;
        if is_erratic { 2 * STRIKES } else { STRIKES }
    }

    /// Handles a new connection.
    pub(crate) fn connected(&mut self, now: u64) {
        self.sent = 0;
        let needed = self.needed(now);
        let is_stuck = self.failures > 8 && self.failures % 8 == 4;
        if is_stuck && std::mem::take(&mut self.is_exhausted) {
            self.keep_the_first();
        }
        let is_last = self.has_last(needed);
        let strikes = self.entries.iter().map(|entry| entry.strikes).max();
        let is_trying = self.entries.iter().any(|entry| matches!(entry.flag, Flag::LeftOut | Flag::Proving));
        self.plan = match (strikes, self.failures) {
            (None | Some(0), _) => Plan::InOrder,
            _ if is_trying => Plan::InOrder,
            (_, failures) if is_last && failures <= ALONE => Plan::InOrder,
            // others were acknowledged since, so more of them are needed
            (Some(strikes), 0..=QUICK) => {
                if strikes > 1 {
                    Plan::Others(8)
                } else {
                    Plan::OtherTopics(2)
                }
            }
            (_, failures) if is_stuck || failures.is_multiple_of(8) => Plan::Others(1),
            (_, failures) if failures % 3 == 1 || self.has_one_topic() => Plan::OtherTopics(1),
            _ => Plan::InOrder,
        };
    }

    /// Whether the next attempt with one of the suspects is the last.
    fn has_last(&self, needed: u32) -> bool {
        self.entries.iter().any(|entry| entry.strikes + 1 >= needed && entry.others)
    }

    /// For how many milliseconds nothing more may be acknowledged before the last attempt with the message that seems to be the
    /// cause. An earlier attempt would prove nothing.
    pub(crate) fn quiet_left(&self, now: u64) -> u64 {
        let until = self.acked_at.map_or(0, |at| at + CLEAR_QUIET_MS);
        if self.is_clear(now) && self.has_last(STRIKES) { until.saturating_sub(now) } else { 0 }
    }

    /// Whether all suspects are of one topic: then others of it tell nothing new.
    fn has_one_topic(&self) -> bool {
        self.entries.windows(2).all(|two| two[0].topic == two[1].topic)
    }

    /// Forgets all suspects but the one of which most is known, because everything that waits is suspected: so the others are what
    /// may show whether anything gets through.
    fn keep_the_first(&mut self) {
        let most = self.entries.iter().map(|entry| entry.strikes).max();
        let first = self.entries.iter().filter(|entry| Some(entry.strikes) == most).min_by_key(|entry| entry.position);
        self.entries = first.copied().into_iter().collect();
    }

    /// Whether this message must wait for later ones.
    pub(crate) fn holds(&self, lane: Lane, position: Position, topic: impl FnOnce() -> u64) -> bool {
        match self.plan {
            Plan::InOrder => false,
            Plan::Others(_) => self.entry(lane, position).is_some(),
            Plan::OtherTopics(_) => {
                let topic = topic();
                self.entries.iter().any(|entry| entry.topic == topic)
            }
        }
    }

    /// Whether a message that is held back may be sent.
    pub(crate) fn frees(&self, lane: Lane, position: Position) -> bool {
        match self.plan {
            Plan::InOrder => true,
            Plan::Others(_) => self.entry(lane, position).is_none(),
            Plan::OtherTopics(_) => false,
        }
    }

    /// Whether held messages have waited long enough.
    pub(crate) fn releases(&self) -> bool {
        self.plan == Plan::InOrder
    }

    /// Decides what follows because nothing else waits that may go first: others of a suspected topic if nothing was
    /// acknowledged since the last attempt, and otherwise all in order.
    pub(crate) fn nothing_else(&mut self) {
        self.is_exhausted |= matches!(self.plan, Plan::Others(_));
        let is_proving = self.entries.iter().any(|entry| entry.strikes > 0 && entry.others);
        self.plan = match self.plan {
            Plan::OtherTopics(more) if self.failures <= QUICK && !is_proving => Plan::Others(more),
            _ => Plan::InOrder,
        };
    }

    /// Whether a message is sent without its retain flag this time.
    pub(crate) fn leaves_out_flag(&self, lane: Lane, position: Position) -> bool {
        self.entry(lane, position).is_some_and(|entry| entry.flag == Flag::LeftOut && !entry.exact)
    }

    /// Whether a message is sent at QoS 1 instead of QoS 2 this time.
    pub(crate) fn leaves_out_exact(&self, lane: Lane, position: Position) -> bool {
        self.entry(lane, position).is_some_and(|entry| entry.flag == Flag::LeftOut && entry.exact)
    }

    pub(crate) fn sent(&mut self, now: u64) {
        if self.sent == 0 {
            self.quiet = self.acked_at.map_or(MOST_QUIET_MS, |at| now.saturating_sub(at).min(MOST_QUIET_MS));
        }
        self.sent = self.sent.saturating_add(1);
    }

    fn entry(&self, lane: Lane, position: Position) -> Option<&Suspect> {
        self.entries.iter().find(|entry| (entry.lane, entry.position) == (lane, position))
    }

    /// Handles the end of a connection by the upstream with these messages unanswered. `alone` tells that nothing else was.
    /// `topic_verdict` tells whether an earlier message of the topic was set aside; it is `None` if no topic can be put off.
    /// `known_size` is the size from which on messages are put off.
    pub(crate) fn ended(
        &mut self,
        unanswered: &[Seen],
        alone: bool,
        (topic_verdict, known_size): (Option<bool>, Option<usize>),
        now: u64,
    ) -> SuspectVerdict {
        for seen in unanswered {
            let until = &mut self.until[seen.lane.index()];
            *until = (*until).max(Some(seen.position));
        }
        let (Some(&seen), true) = (unanswered.first(), alone) else {
            return SuspectVerdict::Open;
        };
        self.failures += 1;
        let at = self.entry_of(seen);
        if self.is_topic(at, topic_verdict, now) {
            let size = sizes::possible_size(self.entries.iter().filter(|entry| entry.topic == seen.topic));
            self.entries.retain(|entry| entry.topic != seen.topic);
            (self.failures, self.in_turn) = (0, false);
            return SuspectVerdict::Topic(size);
        }
        self.others_end_too(at);
        let proved = self.strike(at, seen, now);
        if let Some(size) = self.size_of_cause(at, known_size.is_some(), proved, now) {
            self.entries.retain(|entry| entry.size < size);
            self.guilty.clear();
            (self.failures, self.in_turn) = (0, false);
            return SuspectVerdict::Size(size);
        }
        if let Some(verdict) = proved {
            let entry = self.entries.remove(at);
            self.has_acked_topic = entry.has_acked_topic;
            if verdict == SuspectVerdict::Guilty {
                sizes::remember(&mut self.guilty, entry);
            }
            self.in_turn = false;
            return verdict;
        }
        let ends_whatever = self.failures > 1 && self.entries.len() > 1 || self.failures >= ALONE && !self.has_acked();
        if ends_whatever && now >= self.said_until {
            self.said_until = now + REMEMBERED_MS;
            return SuspectVerdict::Upstream;
        }
        SuspectVerdict::Open
    }

    /// Counts a connection that has ended at this message against it. Returns what that proves, if anything.
    fn strike(&mut self, at: usize, seen: Seen, now: u64) -> Option<SuspectVerdict> {
        let is_first = self.sent <= 1;
        let quiet = match (self.is_clear(now), self.has_denied) {
            (true, _) => CLEAR_QUIET_MS,
            (_, true) => self.needed_quiet.max(DENIED_QUIET_MS),
            _ => self.needed_quiet,
        };
        let is_due = is_first && self.quiet >= quiet;
        // without its flag the message has arrived, so nothing is lost with it
        let is_flag_due = is_first && (self.is_clear(now) || is_due);
        let needed = self.needed(now);
        let entry = &mut self.entries[at];
        match entry.flag {
            Flag::Proving => is_flag_due.then_some(SuspectVerdict::Flag),
            Flag::LeftOut => {
                entry.flag = Flag::Innocent;
                None
            }
            Flag::Unknown | Flag::Innocent => {
                let counts = match entry.strikes {
                    0 => is_first,
                    strikes if strikes + 1 >= needed => is_due,
                    _ => true,
                };
                if entry.others && counts {
                    entry.strikes += 1;
                    entry.others = false;
                }
                if entry.strikes > 0 && (seen.retain || entry.exact) && entry.flag == Flag::Unknown {
                    entry.flag = Flag::LeftOut;
                }
                (entry.strikes >= needed).then_some(SuspectVerdict::Guilty)
            }
        }
    }

    /// The size from which on messages are the cause, if it is that. If one `is_known`, it may be smaller; then it needs the same
    /// evidence as to set the message aside, and all that was acknowledged since must be smaller.
    fn size_of_cause(&mut self, at: usize, is_known: bool, proved: Option<SuspectVerdict>, now: u64) -> Option<usize> {
        let size = self.entries[at].size;
        if is_known {
            return (proved == Some(SuspectVerdict::Guilty) && size > self.largest).then_some(size);
        }
        let all = self.entries.iter().chain(&self.guilty);
        self.largest = all.map(|entry| entry.largest).max().unwrap_or_default();
        sizes::denied_size(&self.entries, at, &self.guilty).filter(|_| self.needed(now) == STRIKES)
    }

    /// Whether the topic of this message is the cause: two of its messages have ended connections, others were acknowledged in
    /// between, and none of it was. That sets no message aside, so it needs less evidence.
    fn is_topic(&self, at: usize, verdict: Option<bool>, now: u64) -> bool {
        let of_topic = || self.entries.iter().enumerate().filter(|(_, entry)| entry.topic == self.entries[at].topic);
        let Some(has_verdict) = verdict.filter(|_| self.needed(now) == STRIKES) else { return false };
        if of_topic().any(|(_, entry)| entry.has_acked_topic) {
            return false;
        }
        let mut others = of_topic().filter(|(other, entry)| *other != at && entry.is_plain());
        has_verdict || others.any(|(_, entry)| entry.others_only)
    }

    /// Whether a message was found to be the cause although a message of its topic was acknowledged meanwhile, as of the last
    /// verdict.
    pub(crate) fn has_acked_topic(&self) -> bool {
        self.has_acked_topic
    }

    /// Whether a message was acknowledged.
    pub(crate) fn has_acked(&self) -> bool {
        self.acked_at.is_some()
    }

    /// Records whether a topic is put off.
    pub(crate) fn set_denied(&mut self, has_denied: bool) {
        self.has_denied = has_denied;
    }

    /// Records that the message that was acknowledged last had ended connections.
    pub(crate) fn found_innocent(&mut self) {
        let now = self.acked_at.unwrap_or_default();
        let is_recent = now < self.innocent_at + REMEMBERED_MS;
        self.innocents = if is_recent { self.innocents.saturating_add(1) } else { 1 };
        self.innocent_at = now;
    }

    /// The time without acknowledgements that the last attempt needs, at least so long, in milliseconds.
    pub(crate) fn needed_quiet(&self, least_ms: u64) -> u64 {
        self.needed_quiet.max(least_ms)
    }

    /// Whether the message that was sent last was the first one of its connection, after as long a time without
    /// acknowledgements as others have needed, and at least so long.
    pub(crate) fn was_first_after(&self, quiet_ms: u64) -> bool {
        self.sent <= 1 && self.quiet >= self.needed_quiet(quiet_ms)
    }

    /// The index of what is known about a message.
    fn entry_of(&mut self, seen: Seen) -> usize {
        let at = self.entries.iter().position(|entry| (entry.lane, entry.position) == (seen.lane, seen.position));
        at.unwrap_or_else(|| {
            if self.entries.len() >= ENTRIES {
                self.entries.remove(0);
            }
            let Seen { lane, position, topic, size, retain, exact } = seen;
            self.entries.push(Suspect {
                lane,
                position,
                topic,
                size,
                acked: 0,
                largest: 0,
                strikes: 0,
                others: true,
                others_only: false,
                has_acked_topic: false,
                has_flag: retain || exact,
                exact,
                flag: Flag::Unknown,
            });
            self.entries.len() - 1
        })
    }

    /// Lets all messages but this one begin anew, because they are not the only ones that end connections.
    fn others_end_too(&mut self, at: usize) {
        let others = self.entries.iter_mut().enumerate().filter(|(other, entry)| *other != at && entry.strikes > 0);
        let mut any = false;
        for (_, entry) in others {
            (entry.strikes, entry.others) = (1, false);
            any = true;
        }
        if any && !std::mem::replace(&mut self.in_turn, true) {
            self.needed_quiet = 0;
        }
    }

    /// Records an acknowledgement of a message of this size. Returns `false` if the message must be sent once more, with its
    /// retain flag.
    pub(crate) fn acked(
        &mut self,
        (lane, position): (Lane, Position),
        (topic, size): (impl FnOnce() -> u64, usize),
        now: u64,
    ) -> bool {
        (self.failures, self.is_exhausted) = (0, false);
        self.largest = self.largest.max(size);
        self.acked_at = Some(now);
        let tells_quiet = self.sent == 1 && !self.is_clear(now);
        let is_it = |entry: &Suspect| (entry.lane, entry.position) == (lane, position);
        if !self.entries.is_empty() || !self.guilty.is_empty() {
            let topic = topic();
            for entry in self.entries.iter_mut().chain(&mut self.guilty).filter(|entry| !is_it(entry)) {
                entry.passed_by(topic, size);
            }
        }
        match self.entries.iter_mut().find(|entry| is_it(entry)) {
            Some(entry) if entry.flag == Flag::LeftOut && entry.exact => self.exact_doubts += 1,
            Some(entry) if entry.flag == Flag::LeftOut => {
                entry.flag = Flag::Proving;
                return false;
            }
            Some(entry) if entry.strikes > 0 => self.found_innocent(),
            _ if tells_quiet => self.needed_quiet = self.needed_quiet.max(self.quiet),
            _ => {}
        }
        self.plan = match self.plan {
            Plan::Others(more) if more > 1 => Plan::Others(more - 1),
            Plan::OtherTopics(more) if more > 1 => Plan::OtherTopics(more - 1),
            _ => Plan::InOrder,
        };
        true
    }

    /// Records that a message has arrived at QoS 2.
    pub(crate) fn arrived_exactly(&mut self) {
        self.exact_doubts = 0;
    }

    /// Whether messages arrive at QoS 1 and not at QoS 2.
    pub(crate) fn doubts_exact(&self) -> bool {
        self.exact_doubts >= EXACT_DOUBTS
    }

    /// Records that a message has ended, with whatever outcome.
    pub(crate) fn past(&mut self, lane: Lane, position: Position) {
        self.entries.retain(|entry| (entry.lane, entry.position) != (lane, position));
        let passed = &mut self.passed[lane.index()];
        *passed = (*passed).max(position);
    }

    /// Ends the suspicion of messages that have ended, because nothing is held back.
    pub(crate) fn settle(&mut self) {
        if self.entries.is_empty() {
            self.in_turn = false;
            for (until, passed) in self.until.iter_mut().zip(&mut self.passed) {
                *until = until.filter(|until| *until > *passed);
                if until.is_none() {
                    *passed = Position(0);
                }
            }
        }
    }

    /// Ends the suspicion in this lane, because no message waits in it.
    pub(crate) fn acquit(&mut self, lane: Lane) {
        self.until[lane.index()] = None;
        self.entries.retain(|entry| entry.lane != lane);
    }
}
