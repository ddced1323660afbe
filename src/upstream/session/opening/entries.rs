//! What is known of parts of the opening that have ended connections.

use crate::message::TopicFilter;

/// How long a part is left out before it is tried again, in milliseconds.
const LEFT_OUT_MS: u64 = 3_600_000;
/// The same for the first time; it doubles each time.
const FIRST_MS: u64 = 60_000;
/// The number of connections that a part may end before it is left out.
pub(super) const STRIKES: u32 = 2;

/// One part of the opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OpeningStep {
    Filter(TopicFilter),
    Status,
}

#[derive(Clone, Debug)]
struct OpeningEntry {
    what: OpeningStep,
    strikes: u32,
    /// The number of strikes when the upstream had last answered something on the same connection before.
    proved: u32,
    /// The time until which it is left out.
    until: Option<u64>,
    /// Whether it is left out although the upstream had answered nothing at all, so that the first answer ends that.
    is_doubtful: bool,
}

/// The parts that have ended connections, or at which they went silent.
#[derive(Clone, Debug, Default)]
pub(super) struct OpeningEntries(Vec<OpeningEntry>);

/// How long a part is left out after it was so many times before, in milliseconds.
fn left_out_for(times: u32) -> u64 {
    (FIRST_MS << times.min(10)).min(LEFT_OUT_MS)
}

impl OpeningEntries {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn entry(&self, what: &OpeningStep) -> Option<&OpeningEntry> {
        self.0.iter().find(|entry| entry.what == *what)
    }

    /// The number of connections that a part has ended.
    pub(super) fn strikes(&self, what: &OpeningStep) -> u32 {
        self.entry(what).map_or(0, |entry| entry.strikes)
    }

    pub(super) fn left_out_until(&self, what: &OpeningStep) -> Option<u64> {
        self.entry(what)?.until
    }

    pub(super) fn is_left_out(&self, what: &OpeningStep, now: u64) -> bool {
        self.left_out_until(what).is_some_and(|until| now < until)
    }

    /// The parts that are left out at present.
    pub(super) fn left_out(&self, now: u64) -> Vec<OpeningStep> {
        let known = self.0.iter().map(|entry| entry.what.clone());
        known.filter(|what| self.is_left_out(what, now)).collect()
    }

    fn entry_of(&mut self, what: OpeningStep) -> &mut OpeningEntry {
        let at = self.0.iter().position(|entry| entry.what == what).unwrap_or_else(|| {
            self.0.push(OpeningEntry { what, strikes: 0, proved: 0, until: None, is_doubtful: false });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Counts a connection that a part has ended, and returns how many it were. `was_alive` tells that the upstream had
    /// answered something on it before.
    pub(super) fn strike(&mut self, what: OpeningStep, was_alive: bool, now: u64) -> u32 {
        let entry = self.entry_of(what);
        entry.strikes += 1;
        if was_alive {
            entry.proved = entry.strikes;
        }
        if entry.strikes >= STRIKES {
            entry.until = Some(now + left_out_for(entry.strikes - STRIKES));
            entry.is_doubtful = !was_alive;
        }
        entry.strikes
    }

    /// Leaves out a part at which the connection went silent, and returns for how long. `was_alive` as for
    /// [`OpeningEntries::strike`].
    pub(super) fn strike_silent(&mut self, what: OpeningStep, was_alive: bool, now: u64) -> u64 {
        let entry = self.entry_of(what);
        let wait = left_out_for(entry.strikes);
        if was_alive {
            entry.strikes += 1;
            entry.proved = entry.strikes;
        }
        (entry.until, entry.is_doubtful) = (Some(now + wait), !was_alive);
        wait
    }

    /// Whether the upstream was alive when this part last ended a connection.
    pub(super) fn is_proved(&self, what: &OpeningStep) -> bool {
        self.entry(what).is_some_and(|entry| entry.proved > 0)
    }

    /// Ends what was concluded while the upstream answered nothing at all, and returns the parts that may be sent because of
    /// that.
    pub(super) fn end_doubts(&mut self) -> Vec<OpeningStep> {
        let doubtful = self.0.iter_mut().filter(|entry| entry.is_doubtful);
        let ended = doubtful.map(|entry| {
            (entry.until, entry.is_doubtful) = (None, false);
            entry.strikes = entry.proved.max(entry.strikes.min(STRIKES - 1));
            entry.what.clone()
        });
        ended.collect()
    }

    /// Gives a part one more attempt.
    pub(super) fn try_once_more(&mut self, what: OpeningStep) {
        let entry = self.entry_of(what);
        (entry.strikes, entry.until, entry.is_doubtful) = (STRIKES - 1, None, false);
    }

    /// Forgets a part that was answered.
    pub(super) fn acquit(&mut self, what: &OpeningStep) {
        self.0.retain(|entry| entry.what != *what);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
