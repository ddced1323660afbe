//! Timers of the session.

use super::{ANSWER_TIMEOUT_MS, SentMessage, SessionAction, UpstreamSession};

impl UpstreamSession {
    fn answer_deadline(&self) -> Option<u64> {
        // while PUBREL waits for our disk, the upstream has nothing to answer
        let owes = |message: &&SentMessage| message.is_awaited() && (message.is_released || !message.is_recorded);
        let oldest = self.in_flight.iter().find(owes)?;
        Some(oldest.handed_over.max(self.last_answer) + ANSWER_TIMEOUT_MS)
    }

    /// When [`UpstreamSession::time`] must be called.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let pause = self.pause.and_then(|pause| pause.until);
        let opening = self.opening.deadline();
        let passed = self.holds_up().map(|(_, due)| due).filter(|_| self.link.is_some());
        let put_off = self.put_off_deadline().filter(|_| self.link.is_some());
        [self.answer_deadline(), pause, opening, self.throttle.deadline(), passed, put_off].into_iter().flatten().min()
    }

    /// Tells the session that the time is `now`.
    pub(crate) fn time(&mut self, now: u64) -> Vec<SessionAction> {
        if self.pause.and_then(|pause| pause.until).is_some_and(|until| until <= now) {
            self.pause = None;
        }
        self.throttle.time(now);
        self.put_off.time(now);
        let mut actions = Vec::new();
        self.opening_time(now, &mut actions);
        if self.link.is_some() {
            self.pass_over(now, &mut actions);
        }
        if self.link.is_some() && self.answer_deadline().is_some_and(|deadline| deadline <= now) {
            actions.push(SessionAction::Break);
        } else if self.link.is_some() && self.needs_renewal(now) && !std::mem::replace(&mut self.renews, true) {
            actions.push(SessionAction::Renew);
        }
        actions
    }
}
