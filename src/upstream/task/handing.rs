//! Sends the messages that wait in the journal.

use super::{AT_ONCE, Upstream};
use crate::exchange::trace::TraceEvent;
use crate::journal::Delivery;
use crate::message::Message;
use crate::upstream::lanes::Lane;
use crate::upstream::session::SessionAction;
use crate::upstream::wire::{Role, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Sends messages as far as there is room. Returns whether there may be more, or `None` if the connection accepts
    /// nothing.
    pub(super) fn take_from_journal(&mut self) -> Option<bool> {
        let now = self.clock.boot_ms();
        let is_traced = self.door.is_tracing();
        for _ in 0..AT_ONCE {
            let (message, next) = if let Some(held) = self.session.held() {
                (held.clone(), None)
            } else if let Some((turn, delivery)) = self.next_delivery() {
                (delivery.message.clone(), Some((turn, delivery)))
            } else if self.session.nothing_else() {
                continue;
            } else {
                return Some(false);
            };
            let is_current = message.view().retain() && self.door.is_current(&message);
            let position = next.as_ref().filter(|_| is_traced).map(|(_, delivery)| delivery.position);
            let actions = match next {
                Some((turn, delivery)) => self.session.delivery(turn, delivery, is_current, now),
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
        }
        Some(true)
    }

    fn note_retained(&mut self, message: &Message, actions: &[SessionAction]) {
        for action in actions {
            if let SessionAction::Publish(out) = action
                && out.retain
            {
                let local = message.view().topic();
                self.passes.handed_over(&self.journal, &out.topic, local, !out.payload.is_empty());
            }
        }
    }

    /// The next message, from the first lane in turn that has one and may send it.
    fn next_delivery(&mut self) -> Option<((Lane, Role), Delivery)> {
        let mut turns = self.lanes.in_turn();
        if !self.session.suspects(turns[0].0) && self.session.suspects(turns[1].0) {
            turns.swap(0, 1);
        }
        for turn @ (lane, role) in turns {
            let room = self.session.room(role);
            if room > 0
                && let Some(delivery) = self.readers.next_of(lane, room)
            {
                return Some((turn, delivery));
            }
            if self.session.suspects(lane) && self.readers.is_empty(lane) {
                self.session.acquit(lane);
            }
        }
        None
    }
}
