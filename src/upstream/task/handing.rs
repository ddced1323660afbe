//! Sends the messages that wait in the journal.

use super::{AT_ONCE, Upstream};
use crate::exchange::trace::TraceEvent;
use crate::journal::{Outcome, Position};
use crate::message::Message;
use crate::upstream::choice::next_delivery;
use crate::upstream::lanes::Lane;
use crate::upstream::session::SessionAction;
use crate::upstream::wire::UpstreamClient;

impl<C: UpstreamClient> Upstream<C> {
    /// Sends what waits, if messages may be sent. Returns whether there may be more, or `None` if the connection accepts nothing.
    pub(super) fn send_waiting(&mut self, is_ready: bool) -> Option<bool> {
        if self.is_looking() {
            return Some(self.take_from_shelves());
        }
        if !self.put_all() {
            return Some(false);
        }
        let more = if is_ready { self.take_from_journal() } else { Some(false) };
        match more {
            Some(false) if is_ready && self.passes.is_active() => self.step_pass(),
            Some(false) if is_ready => self.read_doubtful(),
            more => more,
        }
    }

    /// Sends messages as far as there is room. Returns whether there may be more, or `None` if the connection accepts
    /// nothing.
    pub(super) fn take_from_journal(&mut self) -> Option<bool> {
        let now = self.clock.boot_ms();
        let is_traced = self.door.is_tracing();
        for _ in 0..AT_ONCE {
            let due = self.session.due(now).cloned();
            let was_put_off = due.is_some();
            let (message, next) = if let Some(due) = due {
                (due, None)
            } else if let Some(held) = self.session.held() {
                (held.clone(), None)
            } else if let Some((turn, delivery)) = next_delivery(&self.lanes, &mut self.session, &mut self.readers) {
                (delivery.message.clone(), Some((turn, delivery)))
            } else if self.session.nothing_else() {
                continue;
            } else {
                return Some(self.look_for_tried());
            };
            let is_current = message.view().retain() && self.door.is_current(&message);
            let position = match &next {
                _ if !is_traced => None,
                Some((_, delivery)) => Some(delivery.position),
                None => self.session.waiting_position(now),
            };
            let actions = match next {
                Some((turn, delivery)) => self.session.delivery(turn, delivery, is_current, now),
                None if was_put_off => self.session.send_due(is_current, now),
                None => self.session.send_held(is_current, now),
            };
            if let Some(position) = position
                && actions.iter().any(|action| matches!(action, SessionAction::Publish(_)))
            {
                self.door.trace(position, TraceEvent::Sent, &self.name);
            }
            if is_current {
                self.note_retained(&message, &actions);
            }
            if !self.perform(actions) {
                return None;
            }
            if !self.to_shelve.is_empty() || self.is_looking() {
                return Some(self.is_looking());
            }
        }
        Some(true)
    }

    /// Appends a message to the journal once more, as the last of its lane, in place of the old one. Returns whether the
    /// connection stays open.
    pub(super) fn move_last(&mut self, lane: Lane, position: Position) -> bool {
        let Some(message) = self.session.moving(lane, position) else { return true };
        // without room it stays where it is, and the next acknowledgement tries again
        let moved = self.journal.append(&message, &[self.consumers.id(lane)]).ok();
        if let Some(place) = moved {
            // after a crash in between both are there, because the outcome is written later
            self.readers.settle(lane, position, Outcome::Moved);
            self.door.trace_move((position, place), Some("put off: it is sent later"), &self.name);
        }
        let actions = self.session.moved(lane, position, moved);
        self.perform(actions)
    }

    fn note_retained(&mut self, message: &Message, actions: &[SessionAction]) {
        for action in actions {
            if let SessionAction::Publish(out) = action
                && out.retain
            {
                let local = message.view().topic();
                self.passes.handed_over(&self.journal, &out.topic, local, !out.payload.is_empty());
                self.note_mirrored(&out.topic);
            }
        }
    }
}
