//! Keeps messages that no rule matches any more, and sends them when a rule matches them again; and those whose topic the
//! upstream does not take, or that are larger than its address takes.

use super::Upstream;
use crate::exchange::trace::TraceEvent;
use crate::journal::{Outcome, Position};
use crate::message::Message;
use crate::upstream::lanes::Lane;
use crate::upstream::rule::UpstreamRules;
use crate::upstream::session::SessionAction;
use crate::upstream::shelf::{Shelf, ShelfMove};
use crate::upstream::wire::{Role, UpstreamClient};

/// What a shelf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShelfFor {
    /// Messages that no rule matches.
    NoRule,
    /// Messages whose topic or size the upstream does not take.
    Denied,
    /// Messages that are larger than the present address takes.
    Large,
}

impl ShelfFor {
    /// What a trace says of a message that goes there.
    fn held(self) -> &'static str {
        match self {
            ShelfFor::NoRule => "held: no rule matches it any more",
            ShelfFor::Denied => "held: the upstream closes the connection at messages of its topic or size",
            ShelfFor::Large => "held: it is larger than this address of the upstream takes",
        }
    }
}

/// A message of a lane that is to be put onto a shelf.
#[derive(Debug)]
pub(super) struct ToShelve {
    shelf: ShelfFor,
    lane: Lane,
    position: Position,
    message: Message,
}

impl<C: UpstreamClient> Upstream<C> {
    /// Performs the actions that concern shelves.
    pub(super) fn perform_on_shelf(&mut self, action: &SessionAction) {
        match action {
            SessionAction::Shelve(lane, position) => self.put_on(ShelfFor::NoRule, *lane, *position),
            SessionAction::Deny(lane, position) => self.put_on(ShelfFor::Denied, *lane, *position),
            SessionAction::KeepLarge(lane, position) => self.put_on(ShelfFor::Large, *lane, *position),
            SessionAction::TakeBack => self.look_at_denied(),
            SessionAction::TakeBackLarge => self.look_at_large(),
            _ => {}
        }
    }

    fn put_on(&mut self, shelf: ShelfFor, lane: Lane, position: Position) {
        let Some(message) = self.session.unmeant(lane, position) else { return };
        self.to_shelve.push_back(ToShelve { shelf, lane, position, message });
        self.put_all();
    }

    /// Puts messages onto their shelves, in order, as long as there is room. Returns whether all are there. Until then no
    /// further ones are taken from the journal, so few are in memory.
    pub(super) fn put_all(&mut self) -> bool {
        while let Some(next) = self.to_shelve.front() {
            let (is_for, message) = (next.shelf, &next.message);
            let shelf = match is_for {
                ShelfFor::NoRule => &mut self.shelf,
                ShelfFor::Denied => &mut self.denied,
                ShelfFor::Large => &mut self.large,
            };
            // what it moves is older
            if shelf.is_looking() {
                return false;
            }
            let result = if is_for == ShelfFor::NoRule { shelf.put_unmeant(message) } else { shelf.put(message) };
            if result.is_err() && shelf.may_have_room_for(message) {
                return false;
            }
            let Some(ToShelve { lane, position, message, .. }) = self.to_shelve.pop_front() else { return true };
            match (&result, is_for) {
                // after a crash in between both are there, because the outcome is written later
                (Ok(place), _) => {
                    self.readers.settle(lane, position, Outcome::Moved);
                    self.door.trace_move((position, *place), Some(is_for.held()), &self.name);
                    self.trace_hold(is_for, *place, None);
                }
                (Err(_), _) => {
                    let outcome = match is_for {
                        ShelfFor::NoRule => self.session.drop_unmeant(&message),
                        ShelfFor::Denied => self.session.drop_denied(&message),
                        ShelfFor::Large => self.session.drop_large(&message),
                    };
                    self.readers.settle(lane, position, outcome.in_journal());
                    self.door.trace(position, TraceEvent::Settled(outcome.shown()), &self.name);
                }
            }
            if result.is_ok() && is_for == ShelfFor::Denied && self.session.is_on_shelf(&message) {
                self.look_at_denied();
            }
        }
        true
    }

    /// Forgets what had no room on a shelf yet, because the journal hands it out again.
    pub(super) fn forget_to_shelve(&mut self) {
        self.to_shelve.clear();
    }

    /// Whether messages for a shelf, or from one, wait until more is on disk.
    pub(super) fn waits_for_room(&self) -> bool {
        let is_waiting = [&self.shelf, &self.denied, &self.large].into_iter().any(Shelf::waits_for_room);
        is_waiting || !self.to_shelve.is_empty()
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
        if !self.session.has_denied() || !was_read() || !self.session.misses_tried() {
            return false;
        }
        self.look_at_denied();
        true
    }

    /// Whether a shelf is being looked through. New messages wait for that.
    pub(super) fn is_looking(&self) -> bool {
        self.shelf.is_looking() || self.denied.is_looking() || self.large.is_looking()
    }

    /// Takes messages from the shelves, and returns whether there may be more in memory.
    pub(super) fn take_from_shelves(&mut self) -> bool {
        if self.shelf.is_looking() {
            return self.take_from_shelf();
        }
        if self.large.is_looking() {
            return self.take_large();
        }
        let to = self.consumers.id(self.lanes.for_old());
        let session = &mut self.session;
        let more = self.denied.take_back(|message| session.takes_back(message), to);
        let moves = self.denied.take_moves();
        self.trace_moves(ShelfFor::Denied, moves, "taken up again: its topic or size is tried");
        if self.denied.is_done() {
            self.wants_denied = false;
            self.session.took_back();
        }
        more
    }

    /// Begins to look for messages that were too large for an earlier connection, if this one may take them, or none does.
    pub(super) fn look_at_large(&mut self) {
        if self.large.backlog().messages == 0 {
            self.session.took_back_large();
            return;
        }
        if !self.session.wants_large() {
            return;
        }
        // what comes back goes before what is newer
        if self.consumers.add_second() {
            self.readers.add_second(&self.consumers);
        }
        self.large.look_at_all();
    }

    /// Takes large messages from their shelf, and returns whether there may be more in memory.
    fn take_large(&mut self) -> bool {
        let to = self.consumers.id(self.lanes.for_old());
        let session = &self.session;
        let more = self.large.take_back(|message| session.takes_back_large(message), to);
        let moves = self.large.take_moves();
        self.trace_moves(ShelfFor::Large, moves, "taken up again: it may be sent now");
        if self.large.is_done() {
            self.session.took_back_large();
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
        let more = self.shelf.take_back(|message| session.is_meant(message.view().topic()), to);
        let moves = self.shelf.take_moves();
        self.trace_moves(ShelfFor::NoRule, moves, "taken up again: a rule matches it");
        more
    }

    /// Follows traced messages to where they were moved.
    fn trace_moves(&self, shelf: ShelfFor, moves: Vec<ShelfMove>, why: &'static str) {
        if !self.door.is_tracing() {
            return;
        }
        for ShelfMove { places, ordinal } in moves {
            self.door.trace_move(places, ordinal.is_none().then_some(why), &self.name);
            if ordinal.is_some() {
                self.trace_hold(shelf, places.1, ordinal);
            }
        }
    }

    /// Follows a traced message that was put onto a shelf at this place, as the last one or with this ordinal, in case it
    /// gives way there.
    fn trace_hold(&self, shelf: ShelfFor, place: Position, ordinal: Option<u64>) {
        if !self.door.is_tracing() {
            return;
        }
        let shelf = match shelf {
            ShelfFor::NoRule => &self.shelf,
            ShelfFor::Denied => &self.denied,
            ShelfFor::Large => &self.large,
        };
        if let Some((id, last)) = shelf.last() {
            self.door.trace_hold(place, &self.name, &self.journal, (id, ordinal.unwrap_or(last)));
        }
    }
}
