//! Updates retained messages at the upstream: the steps of a pass (see [`crate::upstream::retained`]).

use super::Upstream;
use crate::message::{Origin, Qos};
use crate::upstream::retained::{Item, Need, PassEnd, losses};
use crate::upstream::rule::UpstreamRules;
use crate::upstream::wire::{Broken, OutMessage, Role, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Makes one step. Returns whether there may be more, or `None` if the connection accepts nothing.
    pub(super) fn step_pass(&mut self) -> Option<bool> {
        let now = self.clock.boot_ms();
        if self.passes.is_due() {
            let backlog = self.consumers.backlog();
            if backlog.messages > self.session.in_flight() - self.session.own_in_flight() {
                return Some(false); // waiting messages may already have what the pass would find
            }
            if !self.read_all()? {
                return Some(false);
            }
            self.passes.begin(UpstreamRules::new(&self.current).local_filters(), losses(&backlog), now);
        }
        self.note_answers(now);
        let synced = *self.synced.borrow();
        match self.passes.need(synced) {
            Need::Nothing => Some(false),
            Need::Clears => {
                self.passes.clears(|local| self.door.is_absent(local), || self.journal.barrier());
                Some(true)
            }
            Need::Values(filter, after) => {
                let (upstream, others_only) = (Origin::upstream(&self.name), !self.session.reads_mirrored());
                let messages = self.door.retained((&filter, &after), upstream, others_only);
                self.passes.values(messages, self.journal.barrier());
                Some(true)
            }
            Need::Items => self.send_items(now),
            Need::Answers => {
                if self.session.take_own_put_off() {
                    self.passes.put_off();
                    self.mirror.pass_ended();
                } else if self.session.own_in_flight() == 0 {
                    self.passes.complete();
                    self.mirror.pass_ended();
                }
                Some(false)
            }
        }
    }

    fn send_items(&mut self, now: u64) -> Option<bool> {
        while self.session.has_room(Role::Backlog) {
            if self.passes.blames() && self.session.own_in_flight() > 0 {
                return Some(false);
            }
            let Some(item) = self.passes.next_item(now) else { return Some(true) };
            let Some((out, local)) = self.still_right(item, now) else { continue };
            self.passes.handed_over(&self.journal, &out.topic, &local, !out.payload.is_empty());
            self.note_mirrored(&out.topic);
            let is_confirmed = out.qos != Qos::AtMostOnce;
            let (number, actions) = self.session.own(out, now);
            self.passes.count(number, is_confirmed);
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
                let is_missing = |remote: &str| self.mirror.is_missing(remote);
                let out = self.session.retained(&message, is_missing, now);
                let out = out.filter(|_| self.door.is_current(&message))?;
                (out, message.view().topic().to_owned())
            }
            Item::Clear { local, remote } => {
                let is_absent = self.door.is_absent(&local);
                (self.session.deletion(&local, remote).filter(|_| is_absent)?, local)
            }
        };
        // of a mirrored topic the reading tells that
        let is_mirrored = self.session.mirrored(&out.topic).is_some();
        (is_mirrored || !self.passes.was_sent(&out.topic)).then_some((out, local))
    }

    fn note_answers(&mut self, now: u64) {
        let refused = self.session.take_refused();
        self.passes.answered(self.session.oldest_own(), &refused, now);
    }

    /// Handles the end of a connection.
    pub(super) fn pass_ended(&mut self, why: &Broken) {
        self.note_answers(self.clock.boot_ms());
        // an upstream may also swallow a message, so that the line goes silent
        let by_upstream = matches!(why, Broken::Closed | Broken::Dismissed(..) | Broken::Silent);
        let end =
            PassEnd { by_message: by_upstream && self.session.own_in_flight() > 0, awaited: self.session.awaited() };
        self.passes.disconnected(end, self.clock.boot_ms());
    }

    /// Leaves out what was set aside.
    pub(super) fn leave_out(&mut self) {
        for message in self.session.take_set_aside() {
            self.passes.leave_out(message, self.clock.boot_ms());
        }
    }

    /// Records that the upstream has deleted a retained message, unless there is a new one.
    pub(super) fn deleted(&mut self, remote: &str) {
        if self.passes.local(remote).is_some_and(|local| self.door.is_absent(local)) {
            self.passes.forget(&self.journal, remote);
        }
    }
}
