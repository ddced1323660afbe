//! Finds the retained messages that make an upstream end connections during a pass, so that all others come back.
//!
//! After a connection has ended while messages of a pass were unanswered, items are sent one at a time. An item that was
//! the only one in flight at such an end is suspected, and the pass goes on behind it. Once another item is acknowledged, the suspect
//! is tried again, as the first one of a connection or at the end of the pass. It is the cause if it ends a connection as the
//! first one, after at least as long a time without acknowledgements as the upstream has needed before it took others.
//! Then it is named, and left out of passes for an hour, and for longer each time. If connections end and nothing is
//! acknowledged, no item is the cause, and passes rest. If messages of the journal are in flight with the suspect each time, it
//! must end more connections. An item of an earlier part is sent once more if there is no other
//! that may show whether anything gets through.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::Item;

/// The number of connections in a row that may end without an acknowledgement before there is a rest.
const IN_A_ROW: u32 = 16;
/// The number of connections that a suspect may end before there is a rest, if nothing else can be sent.
const ALONE: u32 = 3;
/// The number of connections that it must end while messages of the journal are in flight with it.
const CROWDED: u32 = 3;
/// The first time for which an item is left out, and the longest one, in milliseconds.
const LEFT_OUT_MS: u64 = 3_600_000;
const MOST_LEFT_OUT_MS: u64 = 24 * LEFT_OUT_MS;
/// The most items that are left out.
const MOST_LEFT_OUT: usize = 256;
/// The longest time without acknowledgements that is waited for, in milliseconds.
const MOST_QUIET_MS: u64 = 60_000;

/// The only item of the pass that was in flight when a connection ended.
#[derive(Debug)]
struct SuspectItem {
    key: u64,
    item: Item,
    /// The number of connections that it has ended while nothing else was acknowledged.
    ends: u32,
    /// The number of connections that it has ended together with messages of the journal since.
    crowded: u32,
    /// Whether others were acknowledged since.
    others: bool,
}

#[derive(Clone, Copy, Debug)]
struct LeftOut {
    times: u32,
    until: u64,
}

/// The conclusion from the end of a connection during a pass.
#[derive(Debug)]
pub(super) enum PassVerdict {
    /// Nothing is proved yet.
    Open,
    /// This item is the cause.
    Guilty(Item),
    /// No item is the cause.
    Rest,
}

/// What is known about items that may end connections. Makes decisions without I/O.
#[derive(Debug, Default)]
pub(super) struct PassSuspects {
    suspects: VecDeque<SuspectItem>,
    /// The suspect that is being tried again, and whether it is the first one on its connection.
    trying: Option<(SuspectItem, bool)>,
    /// The number of items that are still sent one at a time.
    cautious: usize,
    /// The number of connections in a row that have ended without an acknowledgement.
    in_a_row: u32,
    /// An item that was acknowledged, and can show whether anything gets through.
    proof: Option<Item>,
    acked_at: u64,
    /// When the first connection ended since then.
    troubled_at: u64,
    /// The longest time without acknowledgements after which the upstream has taken an item again.
    needed_quiet: u64,
    left_out: HashMap<u64, LeftOut>,
    hasher: RandomState,
}

impl PassSuspects {
    fn key(&self, item: &Item) -> u64 {
        match item {
            Item::Value(message) => self.hasher.hash_one((message.view().topic(), message.view().payload())),
            Item::Clear { local, .. } => self.hasher.hash_one((local.as_str(), [].as_slice() as &[u8])),
        }
    }

    /// Whether items are sent one at a time.
    pub(super) fn is_cautious(&self) -> bool {
        self.cautious > 0 || !self.suspects.is_empty() || self.trying.is_some()
    }

    /// Whether there are suspects to try again before a pass is complete.
    pub(super) fn are_left(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Whether an item is left out, or its turn comes later.
    pub(super) fn leaves_out(&self, item: &Item, now: u64) -> bool {
        if self.suspects.is_empty() && self.left_out.is_empty() {
            return false;
        }
        let key = self.key(item);
        self.suspects.iter().any(|suspect| suspect.key == key)
            || self.left_out.get(&key).is_some_and(|left_out| now < left_out.until)
    }

    /// An item to try again before any other one. `is_first` tells that nothing of the pass was sent on this connection, and
    /// `is_at_end` that there is no other item. Must be called only while nothing of the pass is unanswered.
    pub(super) fn due(&mut self, is_first: bool, is_at_end: bool) -> Option<Item> {
        // one that was not sent is not right any more
        self.trying = None;
        let with_others = self.suspects.iter().position(|suspect| suspect.others);
        if with_others.is_none()
            && is_at_end
            && self.are_left()
            && let Some(proof) = self.proof.take()
        {
            return Some(proof);
        }
        let at = with_others.or(Some(0)).filter(|_| is_at_end || is_first && with_others.is_some())?;
        let suspect = self.suspects.remove(at)?;
        let item = suspect.item.clone();
        self.trying = Some((suspect, is_first));
        Some(item)
    }

    /// Ends the suspicion of an item, because it was answered.
    fn answered(&mut self, item: &Item) -> u64 {
        (self.in_a_row, self.cautious) = (0, self.cautious.saturating_sub(1));
        let key = self.key(item);
        self.suspects.retain(|suspect| suspect.key != key);
        self.trying = self.trying.take().filter(|(suspect, _)| suspect.key != key);
        key
    }

    /// Records that the upstream has acknowledged an item. `is_first` tells that it was the first one on its connection.
    pub(super) fn arrived(&mut self, item: Item, is_first: bool, now: u64) {
        if is_first && self.in_a_row > 0 {
            let quiet = now.saturating_sub(self.troubled_at).min(MOST_QUIET_MS);
            self.needed_quiet = self.needed_quiet.max(quiet);
        }
        self.acked_at = now;
        if self.is_cautious() || !self.left_out.is_empty() {
            let key = self.answered(&item);
            self.left_out.remove(&key);
            self.suspects.iter_mut().for_each(|suspect| suspect.others = true);
        }
        self.in_a_row = 0;
        self.proof = Some(item);
    }

    /// Records that the upstream has refused an item, and leaves it out. Returns whether that is new.
    pub(super) fn refused(&mut self, item: &Item, now: u64) -> bool {
        self.answered(item);
        self.leave_out(item, now)
    }

    /// Leaves out an item for some time. Returns whether that is new.
    pub(super) fn leave_out(&mut self, item: &Item, now: u64) -> bool {
        let key = self.key(item);
        if self.left_out.len() >= MOST_LEFT_OUT && !self.left_out.contains_key(&key) {
            let first = self.left_out.iter().min_by_key(|(_, left_out)| left_out.until).map(|(key, _)| *key);
            first.map(|first| self.left_out.remove(&first));
        }
        let left_out = self.left_out.entry(key).or_insert(LeftOut { times: 0, until: 0 });
        left_out.until = now + (LEFT_OUT_MS << left_out.times.min(8)).min(MOST_LEFT_OUT_MS);
        left_out.times += 1;
        left_out.times == 1
    }

    /// Handles the end of a connection with this number of unanswered items. `only` is the item if there was only one.
    /// `is_crowded` tells that messages of the journal were in flight too.
    pub(super) fn ended(&mut self, only: Option<Item>, unanswered: usize, is_crowded: bool, now: u64) -> PassVerdict {
        if self.in_a_row == 0 {
            self.troubled_at = now;
        }
        self.in_a_row += 1;
        self.cautious = self.cautious.max(unanswered);
        let key = only.as_ref().map(|item| self.key(item));
        let mut is_stuck = self.in_a_row >= IN_A_ROW;
        match (self.trying.take(), only.zip(key)) {
            (Some((mut tried, is_first)), Some((item, key))) if tried.key == key => {
                tried.crowded += u32::from(is_crowded);
                let is_quiet = now.saturating_sub(self.acked_at) >= self.needed_quiet;
                if tried.others && is_first && is_quiet && (!is_crowded || tried.crowded >= CROWDED) {
                    // one acknowledgement proves nothing against two
                    self.suspects.iter_mut().for_each(|suspect| suspect.others = false);
                    (self.in_a_row, self.needed_quiet) = (0, 0);
                    self.leave_out(&item, now);
                    return PassVerdict::Guilty(item);
                }
                tried.ends += u32::from(!tried.others);
                is_stuck |= tried.ends >= ALONE;
                self.suspects.push_back(tried);
            }
            (tried, only) => {
                self.suspects.extend(tried.map(|(suspect, _)| suspect));
                let new = |(item, key)| SuspectItem { key, item, ends: 1, crowded: 0, others: false };
                self.suspects.extend(only.map(new));
            }
        }
        if is_stuck {
            self.forget();
            return PassVerdict::Rest;
        }
        PassVerdict::Open
    }

    #[cfg(test)]
    pub(super) fn is_spotless(&self) -> bool {
        self.left_out.is_empty()
    }

    /// Takes back a suspect that was being tried, because the connection has ended for another reason.
    pub(super) fn interrupted(&mut self) {
        self.suspects.extend(self.trying.take().map(|(suspect, _)| suspect));
    }

    /// Forgets all suspects, because a pass is complete or none of them is the cause.
    pub(super) fn forget(&mut self) {
        self.suspects.clear();
        (self.trying, self.proof) = (None, None);
        (self.cautious, self.in_a_row, self.needed_quiet) = (0, 0, 0);
    }
}
