//! Keeps the snapshot of the upstream up to date, which others show.

use super::{Upstream, losses};
use crate::status::UpstreamState;
use crate::upstream::wire::{UpstreamClient, Version};

impl<C: UpstreamClient> Upstream<C> {
    pub(super) fn set_state(&mut self, state: UpstreamState, version: Option<Version>) {
        self.shown.state = state;
        self.shown.version = version;
        self.shown.since_boot_ms = self.clock.boot_ms();
        self.show();
    }

    pub(super) fn show(&mut self) {
        self.show_at = None;
        if self.session.take_wants_retained() {
            self.passes.begin_anew();
        }
        if self.shown.state == UpstreamState::Connected {
            self.passes.losses(losses(&self.consumers.backlog()), self.clock.boot_ms());
        }
        self.shown.count(&self.consumers.all_backlog());
        self.shown.in_flight = self.session.in_flight();
        self.shown.denied_topics = self.session.denied_topics();
        self.shown.denied_size = self.session.denied_size();
        self.look_at_missing();
        (self.shown.received, self.shown.received_dropped) = self.inbox.counts();
        let shown = &self.shown;
        self.snapshots.send_if_modified(|last| {
            let is_new = last != shown;
            if is_new {
                last.clone_from(shown);
            }
            is_new
        });
    }
}
