//! One turn of a conversation: what is done before the task waits for the next event.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;

use super::{ConversationEnd, SOON, Upstream, UpstreamError};
use crate::upstream::wire::{Role, UpstreamClient};

/// What a conversation waits for, besides packets.
pub(super) struct Waits {
    /// Whether the connection cannot be used after the next event.
    pub(super) is_last: bool,
    /// Whether there is more in the journal that may be sent at once.
    pub(super) has_more: bool,
    /// Whether the upstream takes more messages.
    pub(super) has_room: bool,
    pub(super) for_disk: bool,
    pub(super) wake: Option<Duration>,
    /// Whether the preferred address may be tried.
    pub(super) is_first_welcome: bool,
}

impl<C: UpstreamClient> Upstream<C> {
    /// Does what needs no event. Returns what to wait for, or why the conversation ends.
    pub(super) async fn advance(&mut self) -> Result<ControlFlow<ConversationEnd, Waits>, UpstreamError> {
        let synced = *self.synced.borrow_and_update();
        let was_closed = self.inbox.is_closed();
        let is_ready = self.release_safe(synced);
        if self.exact.is_overdue() {
            return Ok(ControlFlow::Break(ConversationEnd::Broken(self.disk_is_slow())));
        }
        if was_closed && !self.inbox.is_closed() {
            self.inbox.deliver(&self.door, self.clock.boot_ms()).await?;
        }
        let more = self.send_waiting(is_ready);
        self.readers.say_settled();
        let for_disk = self.passes.waits_for_disk(synced) || self.exact.waits_for_disk() || self.waits_for_room();
        let is_open = self.open_further();
        let is_alive = self.inbox.acknowledge(&mut self.client, self.clock.boot_ms()) && more.is_some() && is_open;
        if self.inbox.needs_connection() {
            return Ok(ControlFlow::Break(ConversationEnd::Missed));
        }
        if self.approach.asks_again_at(self.address).is_some_and(|at| at <= self.clock.boot_ms()) {
            return Ok(ControlFlow::Break(ConversationEnd::AsksAgain));
        }
        Ok(ControlFlow::Continue(Waits {
            is_last: !is_alive,
            has_more: more == Some(true),
            has_room: self.session.has_room(Role::Live),
            for_disk,
            wake: self.wake(),
            is_first_welcome: self.approach.left_alone_until(0) <= self.clock.boot_ms(),
        }))
    }

    /// Sends the next part of a cautious opening, if it is due. Returns whether the connection stays open.
    fn open_further(&mut self) -> bool {
        if !self.session.is_opening() {
            return true;
        }
        let under_way = self.session.in_flight() - self.session.own_in_flight();
        let is_idle = self.consumers.backlog().messages <= under_way;
        let actions = self.session.open_further(is_idle, self.clock.boot_ms());
        self.perform(actions)
    }

    /// The time until there is work without an event. Nothing is polled, so that a Pi can sleep meanwhile.
    fn wake(&self) -> Option<Duration> {
        let now = self.clock.boot_ms();
        let again = self.approach.asks_again_at(self.address);
        // what is due and was not done waits for something else
        let later = |at: u64| if at <= now { now + SOON.as_millis() as u64 } else { at };
        let mirror = self.mirror.deadline().filter(|_| self.session.reads_mirrored()).map(later);
        let deadlines = [self.session.deadline(), self.passes.deadline(), self.inbox.deadline(now), again, mirror];
        let deadlines = deadlines.into_iter().flatten();
        let deadlines = deadlines.map(|deadline| Duration::from_millis(deadline.saturating_sub(now)));
        // a disk that fails says nothing when it works again
        let held = (self.inbox.is_holding() || self.waits_for_room()).then_some(SOON);
        let at = [self.show_at, self.exact.deadline()].into_iter().flatten();
        let show = at.map(|at| at.saturating_duration_since(Instant::now()));
        deadlines.chain(held).chain(show).min()
    }
}
