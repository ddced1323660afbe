//! Timers of the session.

use super::{ANSWER_TIMEOUT_MS, SentMessage, SessionAction, UpstreamSession};
use crate::upstream::wire::LineProgress;

/// After this time it is known whether a line moves, in milliseconds.
const LOOK_MS: u64 = 5_000;

impl UpstreamSession {
    /// Since when the upstream owes an answer.
    fn owed_since(&self) -> Option<u64> {
        // while PUBREL waits for our disk, the upstream has nothing to answer
        let owes = |message: &&SentMessage| message.is_awaited() && (message.is_released || !message.is_recorded);
        let oldest = self.in_flight.iter().find(owes)?;
        Some(oldest.handed_over.max(self.last_answer))
    }

    fn answer_deadline(&self) -> Option<u64> {
        self.owed_since().map(|since| (since + ANSWER_TIMEOUT_MS).max(self.line_until))
    }

    /// For how long an answer has been owed, in milliseconds, if that is too long. The line may be slow, so what it does must be told by
    /// [`UpstreamSession::line`].
    pub(crate) fn overdue(&self, now: u64) -> Option<u64> {
        let is_due = self.link.is_some() && self.answer_deadline().is_some_and(|deadline| deadline <= now);
        self.owed_since().filter(|_| is_due).map(|since| now.saturating_sub(since))
    }

    /// Records what the line does while an answer is overdue.
    pub(crate) fn line(&mut self, progress: LineProgress, now: u64) {
        match progress {
            LineProgress::Nothing => {}
            LineProgress::Unsure => self.line_until = now + LOOK_MS,
            LineProgress::Moves => self.line_until = now + ANSWER_TIMEOUT_MS,
        }
    }

    /// When [`UpstreamSession::time`] must be called.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let pause = self.pause.and_then(|pause| pause.until);
        let opening = self.opening.deadline();
        let passed = self.holds_up().map(|(_, due)| due).filter(|_| self.link.is_some());
        let put_off = self.put_off_deadline().filter(|_| self.link.is_some());
        let outlived = self.after_answer.deadline();
        let again = [self.refusal_deadline(), self.status_deadline(), self.packet_limits.deadline(), outlived];
        let all = [self.answer_deadline(), pause, opening, self.throttle.deadline(), passed, put_off];
        all.into_iter().chain(again).flatten().min()
    }

    /// Tells the session that the time is `now`.
    pub(crate) fn time(&mut self, now: u64) -> Vec<SessionAction> {
        if self.pause.and_then(|pause| pause.until).is_some_and(|until| until <= now) {
            self.pause = None;
        }
        self.throttle.time(now);
        self.put_off.time(now);
        self.denied.time(now);
        let mut actions = Vec::new();
        actions.extend(self.packet_limits.time(now).then_some(SessionAction::TakeBackLarge));
        self.after_answer_time(now, &mut actions);
        self.opening_time(now, &mut actions);
        self.refusal_time(now, &mut actions);
        self.status_time(now, &mut actions);
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
