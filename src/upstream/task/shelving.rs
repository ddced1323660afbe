//! Keeps messages that no rule matches any more, and sends them when a rule matches them again; and those whose topic the
//! upstream does not take.

use super::Upstream;
use crate::exchange::trace::TraceEvent;
use crate::journal::{Outcome, Position};
use crate::upstream::lanes::Lane;
use crate::upstream::rule::UpstreamRules;
use crate::upstream::shelf::ShelfMove;
use crate::upstream::wire::{Role, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Puts a message onto the shelf.
    pub(super) fn shelve(&mut self, lane: Lane, position: Position) {
        let Some(message) = self.session.unmeant(lane, position) else { return };
        // after a crash in between both are there, because the outcome is written later
        if let Ok(place) = self.shelf.put_unmeant(&message) {
            self.readers.settle(lane, position, Outcome::Moved);
            self.door.trace_move((position, place), Some("held: no rule matches it any more"), &self.name);
        } else {
            let outcome = self.session.drop_unmeant(&message);
            self.readers.settle(lane, position, outcome.in_journal());
            self.door.trace(position, TraceEvent::Settled(outcome.shown()), &self.name);
        }
    }

    /// Puts a message aside because of its topic.
    pub(super) fn put_aside(&mut self, lane: Lane, position: Position) {
        let Some(message) = self.session.unmeant(lane, position) else { return };
        let place = self.denied.put(&message).ok();
        if let Some(place) = place {
            self.readers.settle(lane, position, Outcome::Moved);
            let why = "held: the upstream closes the connection at messages on its topic";
            self.door.trace_move((position, place), Some(why), &self.name);
        } else {
            let outcome = self.session.drop_denied(&message);
            self.readers.settle(lane, position, outcome.in_journal());
            self.door.trace(position, TraceEvent::Settled(outcome.shown()), &self.name);
        }
        if place.is_some() && !self.session.is_denied(message.view().topic()) {
            self.look_at_denied();
        }
    }

    /// Begins to look for messages that may go up although their topic was denied.
    pub(super) fn look_at_denied(&mut self) {
        // what comes back goes before what is newer
        if self.denied.backlog().messages > 0 && self.consumers.add_second() {
            self.readers.add_second(&self.consumers);
        }
        self.wants_denied = self.denied.look_at_all();
        if !self.wants_denied {
            self.session.took_back();
        }
    }

    /// Begins to look for messages that are to be tried because of their topics, if all that waits was read and they were not
    /// there. Returns whether it does.
    pub(super) fn look_for_tried(&mut self) -> bool {
        let was_read =
            || self.session.has_room(Role::Live) && Lane::ALL.iter().all(|lane| !self.readers.has_unread(*lane));
        if self.session.denied_topics() == 0 || !was_read() || !self.session.misses_tried() {
            return false;
        }
        self.look_at_denied();
        true
    }

    /// Whether a shelf is being looked through. New messages wait for that.
    pub(super) fn is_looking(&self) -> bool {
        self.shelf.is_looking() || self.denied.is_looking()
    }

    /// Takes messages from the shelves, and returns whether there may be more in memory.
    pub(super) fn take_from_shelves(&mut self) -> bool {
        if self.shelf.is_looking() {
            return self.take_from_shelf();
        }
        let to = self.consumers.id(self.lanes.for_old());
        let session = &mut self.session;
        let more = self.denied.take_back(|topic| session.takes_back(topic), to);
        let moves = self.denied.take_moves();
        self.trace_moves(moves, "taken up again: its topic is tried");
        if self.denied.is_done() {
            self.wants_denied = false;
            self.session.took_back();
        }
        more
    }

    /// Begins to look for messages on the shelf that the rules match.
    pub(super) fn look_at_shelf(&mut self) {
        self.shelf.look(&UpstreamRules::new(&self.current).local_filters());
    }

    /// Takes messages from the shelf that the rules match, and returns whether there may be more in memory. Others wait
    /// meanwhile, because they are newer.
    fn take_from_shelf(&mut self) -> bool {
        let to = self.consumers.id(self.lanes.for_old());
        let session = &self.session;
        let more = self.shelf.take_back(|topic| session.is_meant(topic), to);
        let moves = self.shelf.take_moves();
        self.trace_moves(moves, "taken up again: a rule matches it");
        more
    }

    /// Follows traced messages to where they were moved.
    fn trace_moves(&self, moves: Vec<ShelfMove>, why: &'static str) {
        if !self.door.is_tracing() {
            return;
        }
        for ShelfMove { places, is_back } in moves {
            self.door.trace_move(places, is_back.then_some(why), &self.name);
        }
    }
}
