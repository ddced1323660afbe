//! Timers of the session.

use tracing::warn;

use super::{ANSWER_TIMEOUT_MS, PASSED_MS, SentMessage, SessionAction, UpstreamSession};

impl UpstreamSession {
    fn answer_deadline(&self) -> Option<u64> {
        // while PUBREL waits for our disk, the upstream has nothing to answer
        let owes = |message: &&SentMessage| message.is_unanswered() && (message.is_released || !message.is_recorded);
        let oldest = self.in_flight.iter().find(owes)?;
        Some(oldest.handed_over.max(self.last_answer) + ANSWER_TIMEOUT_MS)
    }

    /// The oldest message that holds up others which the upstream has answered, and when it is passed over.
    ///
    /// An upstream answers in the order of messages [MQTT-4.6.0-2]. One that does not may never answer this one, for
    /// instance because the queue of its topic stands still. It stays in flight, and is sent again on the next connection.
    fn holds_up(&self) -> Option<(usize, u64)> {
        if !self.is_out_of_order {
            return None;
        }
        let oldest = self.in_flight.iter().position(|message| message.is_unanswered() && !message.is_passed)?;
        let is_answered = self.in_flight.iter().skip(oldest).any(|message| message.outcome.is_some());
        is_answered.then(|| (oldest, self.in_flight[oldest].handed_over + PASSED_MS))
    }

    fn pass_over(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        while let Some((at, due)) = self.holds_up()
            && due <= now
        {
            let message = &mut self.in_flight[at];
            message.is_passed = true;
            let topic = message.source.as_ref().map(|source| source.message.view().topic());
            if !std::mem::replace(&mut self.is_passing, true) {
                warn!(
                    upstream = self.name,
                    topic,
                    "the upstream has acknowledged later messages but not this one, which no longer holds them up"
                );
            }
            self.settle(actions);
        }
    }

    /// When [`UpstreamSession::time`] must be called.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let pause = self.pause.and_then(|pause| pause.until);
        let opening = self.opening.deadline();
        let passed = self.holds_up().map(|(_, due)| due).filter(|_| self.link.is_some());
        [self.answer_deadline(), pause, opening, self.throttle.deadline(), passed].into_iter().flatten().min()
    }

    /// Tells the session that the time is `now`.
    pub(crate) fn time(&mut self, now: u64) -> Vec<SessionAction> {
        if self.pause.and_then(|pause| pause.until).is_some_and(|until| until <= now) {
            self.pause = None;
        }
        self.throttle.time(now);
        let mut actions = Vec::new();
        self.opening_time(now, &mut actions);
        if self.link.is_some() {
            self.pass_over(now, &mut actions);
        }
        if self.link.is_some() && self.answer_deadline().is_some_and(|deadline| deadline <= now) {
            actions.push(SessionAction::Break);
        }
        actions
    }
}
