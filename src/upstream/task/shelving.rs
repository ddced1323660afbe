//! Keeps messages that no rule matches any more, and sends them when a rule matches them again.

use super::Upstream;
use crate::exchange::trace::TraceEvent;
use crate::journal::{Outcome, Position};
use crate::upstream::lanes::Lane;
use crate::upstream::rule::UpstreamRules;
use crate::upstream::wire::UpstreamClient;

impl<C: UpstreamClient> Upstream<C> {
    /// Puts a message onto the shelf.
    pub(super) fn shelve(&mut self, lane: Lane, position: Position) {
        let Some(message) = self.session.unmeant(lane, position) else { return };
        // after a crash in between both are there, because the outcome is written later
        if self.shelf.put(&message).is_ok() {
            self.readers.settle(lane, position, Outcome::Moved);
            self.door.trace(position, TraceEvent::Settled("kept: no rule matches it"), &self.name);
        } else {
            let outcome = self.session.drop_unmeant(&message);
            self.readers.settle(lane, position, outcome.in_journal());
            self.door.trace(position, TraceEvent::Settled(outcome.shown()), &self.name);
        }
    }

    /// Begins to look for messages on the shelf that the rules match.
    pub(super) fn look_at_shelf(&mut self) {
        self.shelf.look(&UpstreamRules::new(&self.current).local_filters());
    }

    /// Takes messages from the shelf that the rules match, and returns whether there may be more in memory. Others wait
    /// meanwhile, because they are newer.
    pub(super) fn take_from_shelf(&mut self) -> bool {
        let to = self.consumers.id(self.lanes.for_old());
        let session = &self.session;
        self.shelf.take_back(|topic| session.is_meant(topic), to)
    }
}
