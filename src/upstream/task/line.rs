//! Looks at the line when an answer is overdue.

use std::time::Duration;

use super::Upstream;
use crate::upstream::wire::UpstreamClient;

impl<C: UpstreamClient> Upstream<C> {
    /// If an answer is overdue, finds out whether a slow line is the reason.
    pub(super) fn look_at_line(&mut self) {
        let now = self.clock.boot_ms();
        if let Some(owed) = self.session.overdue(now) {
            let progress = self.client.line(Duration::from_millis(owed));
            self.session.line(progress, now);
        }
    }
}
