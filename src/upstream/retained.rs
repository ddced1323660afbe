//! Keeps the messages that the upstream retains because of us equal to those retained here.
//!
//! Three rules are enough, without reading the retained messages there, most of which belong to others:
//! 1. A message keeps its retain flag on the way to the upstream only while it is the retained message of its topic here. A
//!    message that was replaced in the meantime is sent without the flag, so an older value never replaces a newer one
//!    there, in whatever order messages arrive.
//! 2. The topics that the upstream retains because of us are recorded in the journal until their deletion is acknowledged.
//! 3. A **pass** follows once all waiting messages are sent, if the upstream has forgotten our session, and so perhaps more,
//!    if messages for it were lost (by the limits of the journal, by expiry or by damage), or if the gateway had crashed. A
//!    pass deletes recorded topics that are no longer retained here, and sends all retained values that were not sent on
//!    this connection anyway. Topics that also come from the upstream are left out of passes, because the value there may be
//!    newer.
//!
//! Limits: at most [`MOST_KEPT`] topics are recorded for each upstream. Beyond that, a deletion may be lost together with
//! its message. A message that was refused, is too large or ends connections is not tried again. With MQTT 3.1.1 the
//! upstream is not told when a value expires. A retained message at QoS 0 for which the journal had no room is sent only in
//! the next pass.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;

use tracing::{debug, info, warn};

use super::{asked, mark, shelf};
use crate::journal::{Backlog, Journal, Outcome, Position};
use crate::message::{Message, TopicFilter};

/// The most topics that are recorded for one upstream.
pub(crate) const MOST_KEPT: usize = 20_000;
/// The most topics that are remembered as sent on this connection. Others are sent again by a pass.
const MOST_SENT: usize = 65_536;
/// The least time between passes on one connection, in milliseconds.
const PASS_EVERY_MS: u64 = 300_000;
/// The number of connections in a row that passes may end before there is a rest, because one of the values may be the
/// reason.
const STRIKES: u32 = 3;
const REST_MS: u64 = 3_600_000;
/// The number of retained messages that are read at a time.
pub(crate) const PAGE: usize = 32;
/// The prefix of the records in the journal. No client id begins like this.
const PREFIX: &str = "\0retained/";

/// Whether both messages are the same. Times of a converted boot clock may differ a little.
pub(crate) fn is_same(a: &Message, b: &Message) -> bool {
    let (a, b) = (a.view(), b.view());
    let is_as_old = a.expiry().is_none() || (a.boot_ms() as i64).abs_diff(b.boot_ms() as i64) < 1_000;
    a.payload() == b.payload() && a.properties() == b.properties() && a.expiry() == b.expiry() && is_as_old
}

/// An item of a pass, to be sent if it is still correct.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// The retained message of its topic.
    Value(Message),
    /// A deletion, because no message is retained on the local topic.
    Clear {
        /// The local topic.
        local: String,
        /// The remote topic.
        remote: String,
    },
}

/// What a pass needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing, because there is no pass, or it waits.
    Nothing,
    /// The topics that are no longer retained here, see [`Passes::clears`].
    Clears,
    /// The retained messages that match this filter on topics after this one, see [`Passes::values`].
    Values(TopicFilter, String),
    /// Nothing, because there are items to send.
    Items,
    /// The answers to all items, which have been sent.
    Answers,
}

#[derive(Debug)]
struct Pass {
    /// The number of losses when the pass began.
    losses: u64,
    is_clearing: bool,
    filters: VecDeque<TopicFilter>,
    after: String,
    items: VecDeque<Item>,
    safe_at: Position,
    sent: u64,
}

/// Decides when passes are due, tracks their progress, and records which topics the upstream retains because of us.
#[derive(Debug)]
pub(crate) struct Passes {
    name: String,
    /// The recorded topics: remote to local.
    kept: BTreeMap<String, String>,
    /// The number of losses when the last pass was complete. `None` means that there was none since a crash, in which the
    /// gateway may have lost what was not on disk yet.
    noted: Option<u64>,
    is_due: bool,
    /// No pass begins before this time on this connection.
    not_before: u64,
    /// When the pass that is wanted may begin.
    wanted_at: Option<u64>,
    /// No pass begins before this time on any connection.
    rests_until: u64,
    pass: Option<Pass>,
    sent: HashSet<u64>,
    hasher: RandomState,
    strikes: u32,
    /// Whether the limit of topics has been logged.
    is_full: bool,
}

/// The number of messages that may have been the last on their topic and never reached the upstream.
pub(crate) fn losses(backlog: &Backlog) -> u64 {
    backlog.dropped + backlog.lost + backlog.settled_as(Outcome::Expired)
}

fn prefix(upstream: &str) -> String {
    format!("{PREFIX}{upstream}\0")
}

fn kept<'a>(journal: &Journal, prefix: &'a str) -> impl Iterator<Item = (&'a str, Box<str>)> {
    journal.kept(prefix).into_iter().map(move |(name, _)| (prefix, name))
}

/// Deletes the records of upstreams that do not exist any more.
pub(crate) fn forget_unknown(journal: &Journal, is_known: impl Fn(&str) -> bool) {
    for (prefix, name) in
        [PREFIX, mark::PREFIX, shelf::PREFIX, asked::PREFIX].iter().flat_map(|prefix| kept(journal, prefix))
    {
        let upstream = name.strip_prefix(prefix).and_then(|rest| rest.split_once('\0'));
        if upstream.is_some_and(|(upstream, _)| !is_known(upstream)) {
            // a record that stays now is deleted at the next start
            let _ = journal.keep(&name, None, true);
        }
    }
}

impl Passes {
    /// Reads the records from the journal.
    pub(crate) fn restore(journal: &Journal, upstream: &str) -> Passes {
        let prefix = prefix(upstream);
        let (mut kept, mut noted) = (BTreeMap::new(), None);
        for (name, value) in journal.kept(&prefix) {
            let remote = &name[prefix.len()..];
            match (remote, <[u8; 8]>::try_from(&*value), String::from_utf8(value.to_vec())) {
                ("", Ok(losses), _) => {
                    noted = Some(u64::from_le_bytes(losses));
                    // written again at the end of an orderly run
                    let _ = journal.keep(&name, None, false);
                }
                ("", ..) | (_, _, Err(_)) => {}
                (remote, _, Ok(local)) => drop(kept.insert(remote.to_owned(), local)),
            }
        }
        Passes {
            name: upstream.to_owned(),
            kept,
            noted,
            is_due: false,
            not_before: 0,
            wanted_at: None,
            rests_until: 0,
            pass: None,
            sent: HashSet::new(),
            hasher: RandomState::new(),
            strikes: 0,
            is_full: false,
        }
    }

    /// Handles a new connection.
    pub(crate) fn connected(&mut self, session_present: bool, losses: u64, now: u64) {
        self.end();
        self.not_before = self.rests_until;
        self.is_due = now >= self.not_before && (!session_present || Some(losses) != self.noted);
    }

    /// Handles the end of a connection. `by_message` tells that the upstream may have closed it because of a message of the
    /// pass.
    pub(crate) fn disconnected(&mut self, by_message: bool, now: u64) {
        if by_message && self.pass.as_ref().is_some_and(|pass| pass.sent > 0) {
            self.strikes += 1;
            if self.strikes == STRIKES {
                (self.strikes, self.rests_until) = (0, now + REST_MS);
                warn!(
                    upstream = self.name,
                    "the connection ends whenever retained messages are brought up to date: not tried again for an hour"
                );
            }
        }
        self.end();
    }

    fn end(&mut self) {
        (self.is_due, self.pass, self.sent, self.wanted_at) = (false, None, HashSet::new(), None);
    }

    /// Updates the number of losses.
    pub(crate) fn losses(&mut self, losses: u64, now: u64) {
        let is_wanted = !self.is_active() && Some(losses) != self.noted;
        self.is_due |= is_wanted && now >= self.not_before;
        self.wanted_at = Some(self.not_before).filter(|_| is_wanted && !self.is_due);
    }

    /// When [`Passes::losses`] must be called at the latest.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.wanted_at
    }

    /// Whether a pass is due or running.
    pub(crate) fn is_active(&self) -> bool {
        self.is_due || self.pass.is_some()
    }

    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Begins a pass, because all waiting messages were sent.
    pub(crate) fn begin(&mut self, filters: Vec<TopicFilter>, losses: u64, now: u64) {
        self.is_due = false;
        self.not_before = now + PASS_EVERY_MS;
        debug!(upstream = self.name, kept = self.kept.len(), "retained messages are brought up to date");
        self.pass = Some(Pass {
            losses,
            is_clearing: true,
            filters: filters.into(),
            after: String::new(),
            items: VecDeque::new(),
            safe_at: Position(0),
            sent: 0,
        });
    }

    /// What the pass needs next. Everything up to `synced` is on disk.
    pub(crate) fn need(&self, synced: Position) -> Need {
        let Some(pass) = &self.pass else { return Need::Nothing };
        match pass.filters.front() {
            _ if !pass.items.is_empty() && pass.safe_at > synced => Need::Nothing,
            _ if !pass.items.is_empty() => Need::Items,
            _ if pass.is_clearing => Need::Clears,
            Some(filter) => Need::Values(filter.clone(), pass.after.clone()),
            None => Need::Answers,
        }
    }

    /// Whether the pass waits for the disk.
    pub(crate) fn waits_for_disk(&self, synced: Position) -> bool {
        self.pass.as_ref().is_some_and(|pass| !pass.items.is_empty() && pass.safe_at > synced)
    }

    /// Examines the next recorded topics. `is_absent` tells that no message is retained on a local topic, and `barrier`
    /// gives the position in the journal at which that is on disk.
    pub(crate) fn clears(&mut self, is_absent: impl Fn(&str) -> bool, barrier: impl FnOnce() -> Position) {
        let Some(pass) = &mut self.pass else { return };
        let behind = (Bound::Excluded(pass.after.as_str()), Bound::Unbounded);
        let mut last = None;
        for (remote, local) in self.kept.range::<str, _>(behind).take(PAGE) {
            last = Some(remote.clone());
            if is_absent(local) {
                pass.items.push_back(Item::Clear { local: local.clone(), remote: remote.clone() });
            }
        }
        pass.safe_at = barrier();
        pass.is_clearing = last.is_some();
        pass.after = last.unwrap_or_default();
    }

    /// Adds the retained messages that were asked for.
    pub(crate) fn values(&mut self, messages: Vec<Message>, safe_at: Position) {
        let Some(pass) = &mut self.pass else { return };
        pass.safe_at = safe_at;
        match messages.last() {
            Some(last) => pass.after = last.view().topic().to_owned(),
            None => {
                pass.filters.pop_front();
                pass.after.clear();
            }
        }
        pass.items = messages.into_iter().map(Item::Value).collect();
    }

    pub(crate) fn next_item(&mut self) -> Option<Item> {
        self.pass.as_mut()?.items.pop_front()
    }

    /// Counts a message of the pass that was sent.
    pub(crate) fn count(&mut self) {
        if let Some(pass) = &mut self.pass {
            pass.sent += 1;
        }
    }

    /// Completes the pass, because everything was answered.
    pub(crate) fn complete(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        (self.noted, self.strikes) = (Some(pass.losses), 0);
        self.sent = HashSet::new();
        if pass.sent > 0 {
            info!(upstream = self.name, messages = pass.sent, "retained messages brought up to date");
        }
    }

    /// Repeats the pass later, because the upstream did not accept all of it.
    pub(crate) fn put_off(&mut self) {
        self.end();
        self.noted = None;
    }

    /// Records at an orderly end that nothing has to be repeated.
    pub(crate) fn close(&self, journal: &Journal) {
        if let Some(noted) = self.noted.filter(|_| !self.kept.is_empty()) {
            // if this cannot be written, there is an unnecessary pass
            let _ = journal.keep(&prefix(&self.name), Some(&noted.to_le_bytes()), true);
        }
    }

    /// Whether a pass need not send this topic.
    pub(crate) fn was_sent(&self, remote: &str) -> bool {
        self.sent.contains(&self.hasher.hash_one(remote))
    }

    /// Records that a retained message was sent: the upstream may retain it from now on, and no older one follows.
    pub(crate) fn handed_over(&mut self, journal: &Journal, remote: &str, local: &str, is_value: bool) {
        if self.is_active() && self.sent.len() < MOST_SENT {
            self.sent.insert(self.hasher.hash_one(remote));
        }
        if !is_value || self.kept.get(remote).is_some_and(|known| known == local) {
            return;
        }
        if self.kept.len() >= MOST_KEPT && !self.kept.contains_key(remote) {
            if !std::mem::replace(&mut self.is_full, true) {
                warn!(upstream = self.name, MOST_KEPT, "more retained topics go up than are kept in mind");
            }
            return;
        }
        self.kept.insert(remote.to_owned(), local.to_owned());
        // written before the message is settled, because that is written later
        let _ = journal.keep(&(prefix(&self.name) + remote), Some(local.as_bytes()), false);
    }

    /// Records that the upstream no longer retains this topic because of us.
    pub(crate) fn forget(&mut self, journal: &Journal, remote: &str) {
        if self.kept.remove(remote).is_some() {
            let _ = journal.keep(&(prefix(&self.name) + remote), None, true);
        }
    }

    /// The local topic of a remote topic that the upstream retains because of us.
    pub(crate) fn local(&self, remote: &str) -> Option<&str> {
        self.kept.get(remote).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Origin, Qos};

    fn message(topic: &str, payload: &[u8]) -> Message {
        Message::new(&Draft {
            qos: Qos::AtLeastOnce,
            retain: true,
            origin: Origin::http(),
            ..Draft::new(topic, payload)
        })
    }

    fn filter() -> Vec<TopicFilter> {
        vec![TopicFilter::new("a/#").unwrap()]
    }

    #[test]
    fn a_pass_is_due_when_the_session_is_gone_or_something_was_lost() {
        let journal = Journal::default();
        let mut passes = Passes::restore(&journal, "home");
        passes.handed_over(&journal, "up/a", "a", true);
        passes.connected(true, 3, 0);
        assert!(passes.is_due(), "the first");
        passes.begin(filter(), 3, 2);
        passes.clears(|_| false, || Position(0));
        passes.clears(|_| false, || Position(0));
        passes.values(Vec::new(), Position(0));
        assert_eq!(passes.need(Position(0)), Need::Answers);
        passes.complete();
        passes.losses(4, 3);
        assert!(!passes.is_due() && passes.deadline() == Some(2 + PASS_EVERY_MS), "not that soon again");
        passes.losses(4, 2 + PASS_EVERY_MS);
        assert!(passes.is_due());
        passes.connected(true, 3, 2);
        assert!(!passes.is_due());
        passes.connected(false, 3, 2);
        assert!(passes.is_due());
        let mut other = Passes::restore(&journal, "other");
        other.connected(false, 0, 0);
        other.begin(filter(), 0, 0);
        other.put_off();
        other.losses(0, PASS_EVERY_MS - 1);
        assert!(!other.is_due());
        other.losses(0, PASS_EVERY_MS);
        assert!(other.is_due());
        // after an orderly restart it is known that nothing has to be repeated
        passes.close(&journal);
        let mut passes = Passes::restore(&journal, "home");
        passes.connected(true, 3, 0);
        assert!(!passes.is_due());
        passes.connected(true, 4, 0);
        assert!(passes.is_due());
        let mut passes = Passes::restore(&journal, "home");
        passes.connected(true, 3, 0);
        assert!(passes.is_due(), "after a crash");
    }

    #[test]
    fn a_pass_deletes_what_is_gone_and_sends_the_rest_once_it_is_safe() {
        let journal = Journal::default();
        let mut passes = Passes::restore(&journal, "home");
        for topic in ["a/1", "a/2", "a/3"] {
            passes.handed_over(&journal, &format!("up/{topic}"), topic, true);
        }
        passes.forget(&journal, "up/a/3");
        let mut passes = Passes::restore(&journal, "home");
        assert_eq!((passes.local("up/a/1"), passes.local("up/a/3")), (Some("a/1"), None));
        assert!(Passes::restore(&journal, "other").kept.is_empty());
        passes.connected(false, 0, 0);
        passes.handed_over(&journal, "up/a/4", "a/4", true);
        passes.begin(filter(), 0, 0);
        assert_eq!(passes.need(Position(0)), Need::Clears);
        passes.clears(|local| local != "a/2", || Position(7));
        assert!(passes.need(Position(6)) == Need::Nothing && passes.waits_for_disk(Position(6)));
        assert_eq!(passes.need(Position(7)), Need::Items);
        assert!(matches!(passes.next_item(), Some(Item::Clear { remote, .. }) if remote == "up/a/1"));
        assert!(matches!(passes.next_item(), Some(Item::Clear { remote, .. }) if remote == "up/a/4"));
        assert_eq!(passes.need(Position(7)), Need::Clears);
        passes.clears(|_| true, || Position(7));
        assert_eq!(passes.need(Position(7)), Need::Values(filter()[0].clone(), String::new()));
        passes.values(vec![message("a/2", b"x")], Position(8));
        assert!(matches!(passes.next_item(), Some(Item::Value(_))));
        assert_eq!(passes.need(Position(8)), Need::Values(filter()[0].clone(), "a/2".into()));
        assert!(passes.was_sent("up/a/4") && !passes.was_sent("up/a/2"));
    }

    #[test]
    fn a_pass_that_ends_every_connection_rests() {
        let journal = Journal::default();
        let mut passes = Passes::restore(&journal, "home");
        for _ in 0..STRIKES {
            passes.connected(false, 0, 0);
            assert!(passes.is_due());
            passes.begin(filter(), 0, 0);
            passes.count();
            passes.disconnected(true, 0);
        }
        passes.connected(false, 0, REST_MS - 1);
        assert!(!passes.is_due());
        passes.connected(false, 0, REST_MS);
        assert!(passes.is_due());
    }

    #[test]
    fn upstreams_that_are_gone_are_forgotten() {
        let journal = Journal::default();
        for name in ["home", "gone"] {
            Passes::restore(&journal, name).handed_over(&journal, "up/a", "a", true);
        }
        forget_unknown(&journal, |name| name == "home");
        assert_eq!(journal.kept(PREFIX).len(), 1);
        assert!(journal.recovered().sessions.is_empty());
    }
}
