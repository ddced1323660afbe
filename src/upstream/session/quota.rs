//! What is known of an upstream that answers that it takes no more for the moment.
//!
//! That may go on for long, with some messages taken and some refused each second. So it is said once, until no message was
//! refused for [`CALM_MS`]. After each pause half as many messages are sent as before, and one more whenever as many were
//! acknowledged: so few are sent in vain.

/// For how long nothing must be refused until that is over, in milliseconds.
const CALM_MS: u64 = 60_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UpstreamQuota {
    /// When a message was refused last, while that lasts.
    refused_at: Option<u64>,
    /// The most pauses in a row that were said.
    said: u32,
    /// The window, if it is smaller than both sides allow.
    window: Option<u16>,
    /// The number of messages that were acknowledged since the window was set.
    acked: u16,
}

impl UpstreamQuota {
    /// The window, which is at most so large.
    pub(super) fn window(&self, most: u16) -> u16 {
        self.window.map_or(most, |window| window.min(most))
    }

    /// Records that a message was refused for the moment.
    pub(super) fn refused(&mut self, now: u64) {
        if self.refused_at.replace(now).is_none() {
            self.said = 0;
        }
    }

    /// Records that the given pause in a row begins, with a window that is at most so large. Returns whether that is said.
    pub(super) fn rests(&mut self, times: u32, most: u16) -> bool {
        (self.window, self.acked) = (Some((self.window(most) / 2).max(1)), 0);
        let is_news = times.is_power_of_two() && times > self.said;
        self.said = self.said.max(times);
        is_news
    }

    /// Records an acknowledgement, with a window that is at most so large. Returns whether the upstream takes messages again.
    pub(super) fn acked(&mut self, most: u16, now: u64) -> bool {
        if let Some(window) = &mut self.window {
            self.acked += 1;
            if self.acked >= *window {
                (*window, self.acked) = (*window + 1, 0);
            }
            self.window = self.window.filter(|window| *window < most);
        }
        let is_over = self.refused_at.is_some_and(|at| now >= at + CALM_MS);
        if is_over {
            self.refused_at = None;
        }
        is_over
    }
}
