//! Updates retained messages at the upstream: the steps of a pass (see [`crate::upstream::retained`]).

use super::Upstream;
use crate::message::Origin;
use crate::upstream::retained::{Item, Need, losses};
use crate::upstream::rule::UpstreamRules;
use crate::upstream::wire::{OutMessage, Role, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Makes one step. Returns whether there may be more, or `None` if the connection accepts nothing.
    pub(super) fn step_pass(&mut self) -> Option<bool> {
        let now = self.clock.boot_ms();
        if self.passes.is_due() {
            let backlog = self.consumers.backlog();
            if backlog.messages > self.session.in_flight() - self.session.own_in_flight() {
                return Some(false); // waiting messages may already have what the pass would find
            }
            self.passes.begin(UpstreamRules::new(&self.current).local_filters(), losses(&backlog), now);
        }
        self.passes.answered(self.session.oldest_own());
        let synced = *self.synced.borrow();
        match self.passes.need(synced) {
            Need::Nothing => Some(false),
            Need::Clears => {
                self.passes.clears(|local| self.door.is_absent(local), || self.journal.barrier());
                Some(true)
            }
            Need::Values(filter, after) => {
                let messages = self.door.retained(&filter, &after, Origin::upstream(&self.name));
                self.passes.values(messages, self.journal.barrier());
                Some(true)
            }
            Need::Items => self.send_items(now),
            Need::Answers => {
                if self.session.take_own_put_off() {
                    self.passes.put_off();
                } else if self.session.own_in_flight() == 0 {
                    self.passes.complete();
                }
                Some(false)
            }
        }
    }

    fn send_items(&mut self, now: u64) -> Option<bool> {
        while self.session.has_room(Role::Backlog) {
            let Some(item) = self.passes.next_item() else { return Some(true) };
            let Some((out, local)) = self.still_right(item, now) else { continue };
            self.passes.handed_over(&self.journal, &out.topic, &local, !out.payload.is_empty());
            let (number, actions) = self.session.own(out, now);
            self.passes.count(number);
            if !self.perform(actions) {
                return None;
            }
        }
        Some(false)
    }

    /// The message of an item with its local topic, unless a newer message is being sent or was sent before.
    fn still_right(&mut self, item: Item, now: u64) -> Option<(OutMessage, String)> {
        let (out, local) = match item {
            Item::Value(message) => {
                let out = self.session.retained(&message, now).filter(|_| self.door.is_current(&message))?;
                (out, message.view().topic().to_owned())
            }
            Item::Clear { local, remote } => {
                let is_absent = self.door.is_absent(&local);
                (self.session.deletion(&local, remote).filter(|_| is_absent)?, local)
            }
        };
        (!self.passes.was_sent(&out.topic)).then_some((out, local))
    }

    /// Records that the upstream has deleted a retained message, unless there is a new one.
    pub(super) fn deleted(&mut self, remote: &str) {
        if self.passes.local(remote).is_some_and(|local| self.door.is_absent(local)) {
            self.passes.forget(&self.journal, remote);
        }
    }
}
