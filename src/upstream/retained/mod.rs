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
//!    newer, unless they are mirrored and the upstream is known to have nothing on them ([`crate::upstream::mirror`]).
//!
//! A pass may be cut off by the end of a connection, whatever the reason is. Until one is complete, it is due on every
//! connection, also if the upstream then knows our session again, and after a restart. On a session that was kept it goes on
//! behind what the upstream has answered, so that it becomes complete even if no connection lasts long enough for all. A
//! message at which the upstream ends connections is found and left out ([`suspects`]).
//!
//! Limits: at most [`MOST_KEPT`] topics are recorded for each upstream. Beyond that, a deletion may be lost together with
//! its message. A message that was refused, is too large or ends connections is left out of passes for an hour, and longer each time. With MQTT 3.1.1 the
//! upstream is not told when a value expires. A retained message at QoS 0 for which the journal had no room is sent only in
//! the next pass.

mod pass;
mod suspects;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;

use tracing::{debug, info, warn};

use self::pass::{CutPass, Pass, PassPlace, UnansweredItem};
pub(crate) use self::pass::{Item, PassEnd};
use self::suspects::{PassSuspects, PassVerdict};
use super::{asked, mark, shelf};
use crate::journal::{Backlog, Journal, Outcome, Position};
use crate::message::{Message, TopicFilter};

/// The most topics that are recorded for one upstream.
pub(crate) const MOST_KEPT: usize = 20_000;
/// The most topics that are remembered as sent on this connection. Others are sent again by a pass.
const MOST_SENT: usize = 65_536;
/// The least time between passes on one connection, in milliseconds.
const PASS_EVERY_MS: u64 = 300_000;
/// How long passes rest if they end every connection.
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

/// Decides when passes are due, tracks their progress, and records which topics the upstream retains because of us.
#[derive(Debug)]
pub(crate) struct Passes {
    name: String,
    /// The recorded topics: remote to local.
    kept: BTreeMap<String, String>,
    /// The number of losses when the last pass was complete. `None` means that there was none since the upstream has forgotten
    /// our session, or since a crash, in which the gateway may have lost what was not on disk yet.
    noted: Option<u64>,
    /// The index of the address in use.
    address: usize,
    /// The addresses that have forgotten our session, and at which no pass was complete since. Each may be a broker of its
    /// own.
    incomplete: BTreeSet<usize>,
    cut: Option<CutPass>,
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
    suspects: PassSuspects,
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
            address: 0,
            incomplete: BTreeSet::new(),
            cut: None,
            is_due: false,
            not_before: 0,
            wanted_at: None,
            rests_until: 0,
            pass: None,
            sent: HashSet::new(),
            hasher: RandomState::new(),
            suspects: PassSuspects::default(),
            is_full: false,
        }
    }

    /// Handles a new connection to an address.
    pub(crate) fn connected(&mut self, address: usize, session_present: bool, losses: u64, now: u64) {
        self.end();
        if !session_present {
            // nothing is known of the upstream until a pass is complete, however many connections that takes
            self.noted = None;
            self.incomplete.insert(address);
        }
        self.cut = self.cut.take().filter(|_| session_present && address == self.address);
        self.address = address;
        self.not_before = self.rests_until;
        self.is_due = now >= self.not_before && self.is_wanted(losses);
    }

    /// Wants a pass, because what was sent before had no retain flag.
    pub(crate) fn begin_anew(&mut self) {
        self.noted = None;
        self.incomplete.insert(self.address);
        self.not_before = self.rests_until;
    }

    fn is_wanted(&self, losses: u64) -> bool {
        Some(losses) != self.noted || self.incomplete.contains(&self.address)
    }

    /// Handles the end of a connection, after [`Passes::answered`].
    pub(crate) fn disconnected(&mut self, end: PassEnd, now: u64) {
        if let Some(pass) = self.pass.as_mut().filter(|pass| end.by_message && !pass.unanswered.is_empty()) {
            let unanswered = pass.unanswered.len();
            let only = pass.unanswered.pop_front().filter(|_| unanswered == 1);
            if let Some(place) = only.as_ref().and_then(|only| only.place.clone()) {
                pass.answered = place; // it goes on behind it
            }
            self.judge(only.map(|only| only.item), unanswered, end.awaited > 1, now);
        }
        self.suspects.interrupted();
        if let Some(Pass { losses, filters, answered, .. }) = self.pass.take() {
            self.cut = Some(CutPass { losses, filters, answered });
        }
        self.end();
    }

    fn judge(&mut self, only: Option<Item>, unanswered: usize, is_crowded: bool, now: u64) {
        let upstream = &self.name;
        match self.suspects.ended(only, unanswered, is_crowded, now) {
            PassVerdict::Open => {}
            PassVerdict::Guilty(item) => warn!(
                upstream,
                topic = item.local(),
                "the upstream ends the connection whenever it gets this retained message, and takes others: it is left out \
                 when retained messages are brought up to date"
            ),
            PassVerdict::Rest => {
                (self.rests_until, self.noted, self.pass) = (now + REST_MS, None, None);
                warn!(
                    upstream,
                    "the connection ends whenever retained messages are brought up to date: not tried again for an hour"
                );
            }
        }
    }

    /// Whether a message of a pass may be the reason for ended connections.
    pub(crate) fn blames(&self) -> bool {
        self.suspects.is_cautious()
    }

    /// Leaves out a message that the upstream has not accepted.
    pub(crate) fn leave_out(&mut self, message: Message, now: u64) {
        self.suspects.leave_out(&Item::Value(message), now);
    }

    fn end(&mut self) {
        (self.is_due, self.pass, self.sent, self.wanted_at) = (false, None, HashSet::new(), None);
    }

    /// Records that all messages of the pass before the one with the number `oldest` were answered, and which were refused.
    pub(crate) fn answered(&mut self, oldest: Option<u64>, refused: &[u64], now: u64) {
        let Some(pass) = &mut self.pass else { return };
        for sent in pass.unanswered.iter_mut().filter(|sent| refused.contains(&sent.number)) {
            sent.is_confirmed = false;
            if self.suspects.refused(&sent.item, now) {
                let (upstream, topic) = (&self.name, sent.item.local());
                warn!(upstream, topic, "the upstream refuses this retained message");
            }
        }
        let is_answered = |sent: &UnansweredItem| oldest.is_none_or(|oldest| sent.number < oldest);
        while pass.unanswered.front().is_some_and(is_answered)
            && let Some(sent) = pass.unanswered.pop_front()
        {
            if let Some(place) = sent.place {
                pass.answered = place;
            }
            if sent.is_confirmed {
                self.suspects.arrived(sent.item, sent.is_first, now);
            }
        }
    }

    /// Updates the number of losses.
    pub(crate) fn losses(&mut self, losses: u64, now: u64) {
        let is_wanted = !self.is_active() && self.is_wanted(losses);
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

    /// Begins a pass, because all waiting messages were sent, or goes on with one that was cut off.
    pub(crate) fn begin(&mut self, filters: Vec<TopicFilter>, losses: u64, now: u64) {
        self.is_due = false;
        self.not_before = now + PASS_EVERY_MS;
        // what was lost since may belong to a topic that it has passed
        let cut = self.cut.take().filter(|cut| cut.losses == losses && cut.filters == filters);
        let begin = PassPlace { is_clearing: true, filter: 0, after: String::new() };
        let place = cut.map_or(begin, |cut| cut.answered);
        debug!(upstream = self.name, kept = self.kept.len(), ?place, "retained messages are brought up to date");
        self.pass = Some(Pass {
            losses,
            filters,
            read: place.clone(),
            answered: place.clone(),
            items: VecDeque::new(),
            taken: None,
            unanswered: VecDeque::new(),
            safe_at: Position(0),
            sent: 0,
        });
    }

    /// What the pass needs next. Everything up to `synced` is on disk.
    pub(crate) fn need(&self, synced: Position) -> Need {
        let Some(pass) = &self.pass else { return Need::Nothing };
        match pass.filters.get(pass.read.filter) {
            _ if !pass.items.is_empty() && pass.safe_at > synced => Need::Nothing,
            _ if !pass.items.is_empty() => Need::Items,
            _ if pass.read.is_clearing => Need::Clears,
            Some(filter) => Need::Values(filter.clone(), pass.read.after.clone()),
            None if self.suspects.are_left() => Need::Items,
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
        let behind = (Bound::Excluded(pass.read.after.as_str()), Bound::Unbounded);
        let mut last = None;
        for (remote, local) in self.kept.range::<str, _>(behind).take(PAGE) {
            last = Some(remote.clone());
            if is_absent(local) {
                pass.items.push_back(Item::Clear { local: local.clone(), remote: remote.clone() });
            }
        }
        pass.safe_at = barrier();
        pass.read.is_clearing = last.is_some();
        pass.read.after = last.unwrap_or_default();
    }

    /// Adds the retained messages that were asked for.
    pub(crate) fn values(&mut self, messages: Vec<Message>, safe_at: Position) {
        let Some(pass) = &mut self.pass else { return };
        pass.safe_at = safe_at;
        match messages.last() {
            Some(last) => pass.read.after = last.view().topic().to_owned(),
            None => {
                pass.read.filter += 1;
                pass.read.after.clear();
            }
        }
        pass.items = messages.into_iter().map(Item::Value).collect();
    }

    /// The next item to send. While a message may end connections, it must be called only when nothing is unanswered.
    pub(crate) fn next_item(&mut self, now: u64) -> Option<Item> {
        let pass = self.pass.as_mut()?;
        let has_read_all = !pass.read.is_clearing && pass.read.filter >= pass.filters.len();
        if let Some(item) = self.suspects.due(pass.sent == 0, pass.items.is_empty() && has_read_all) {
            pass.taken = Some((item.clone(), None));
            return Some(item);
        }
        loop {
            let item = pass.items.pop_front()?;
            if !self.suspects.leaves_out(&item, now) {
                let place = PassPlace { after: item.place().to_owned(), ..pass.read };
                pass.taken = Some((item.clone(), Some(place)));
                return Some(item);
            }
        }
    }

    /// Counts the item taken last, which was sent as the message with this number.
    pub(crate) fn count(&mut self, number: u64, is_confirmed: bool) {
        let Some(pass) = &mut self.pass else { return };
        let Some((item, place)) = pass.taken.take() else { return };
        let is_first = pass.sent == 0;
        pass.sent += 1;
        pass.unanswered.push_back(UnansweredItem { number, item, place, is_first, is_confirmed });
    }

    /// Completes the pass, because everything was answered.
    pub(crate) fn complete(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        self.noted = Some(pass.losses);
        self.suspects.forget();
        self.incomplete.remove(&self.address);
        self.sent = HashSet::new();
        if pass.sent > 0 {
            info!(upstream = self.name, messages = pass.sent, "retained messages brought up to date");
        }
    }

    /// Repeats the pass later, because the upstream did not accept all of it.
    pub(crate) fn put_off(&mut self) {
        self.suspects.interrupted();
        self.end();
        self.noted = None;
    }

    /// Asks for a pass, because it is not known what the upstream has.
    pub(crate) fn demand(&mut self) {
        self.noted = None;
        self.is_due |= self.pass.is_none();
    }

    /// Records at an orderly end that nothing has to be repeated. `is_mirroring` tells that this matters even if the upstream retains
    /// nothing because of us.
    pub(crate) fn close(&self, journal: &Journal, is_mirroring: bool) {
        let matters = is_mirroring || !self.kept.is_empty();
        if let Some(noted) = self.noted.filter(|_| matters && self.incomplete.is_empty()) {
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
mod tests;
