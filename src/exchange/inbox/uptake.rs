//! Measures how much of its queue a reader has taken lately.
//!
//! A reader is quick if it has taken at least a quarter of its queue in the last [`LATELY`], or [`WINDOWS`] messages at QoS
//! 1 and 2, which it does if it acknowledges each window on a slow line or beside other work. If the queues of more than
//! [`ALONE`] readers are full at the same time, the machine is slow and they share its speed, so each needs that much less.

use std::collections::VecDeque;
use std::time::Duration;

use super::InboxLimits;
use crate::exchange::spare::Amount;

/// The period over which a reader is measured.
const LATELY: Duration = Duration::from_millis(250);
const QUARTER: f64 = 0.25;
/// Three windows of the usual 20 messages, which a client that answers at once takes in [`LATELY`] on a line of 80 ms.
const WINDOWS: f64 = 60.0;
/// Up to this number of readers with full queues, each is judged as if it were alone.
const ALONE: usize = 8;
/// The time between two marks of what a reader has taken.
const MARK: Duration = Duration::from_millis(25);

/// What a reader has taken since its beginning, in messages and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReaderTaken {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// The number of messages at QoS 1 and 2, of which the client must acknowledge each window.
    pub(crate) by_window: u64,
}

/// How fast a reader takes its messages. Times are those of any clock that goes forward.
#[derive(Debug, Default)]
pub(crate) struct Uptake {
    marks: VecDeque<(Duration, ReaderTaken)>,
    /// Since when the queue is full, and what the reader had taken by then.
    full: Option<(Duration, ReaderTaken)>,
    /// For how long the gateway owed it a turn. This time does not count.
    not_served: Duration,
}

impl Uptake {
    /// Records what the reader has taken by this time.
    pub(crate) fn mark(&mut self, now: Duration, taken: ReaderTaken) {
        let now = self.of_reader(now);
        if self.marks.back().is_some_and(|(last, _)| now < *last + MARK) {
            return;
        }
        while self.marks.front().is_some_and(|(first, _)| now > *first + LATELY) {
            self.marks.pop_front();
        }
        self.marks.push_back((now, taken));
    }

    /// Sets since when the queue is full; `None` if it is not.
    pub(crate) fn set_full(&mut self, full: Option<(Duration, ReaderTaken)>) {
        self.full = full.map(|(since, taken)| (self.of_reader(since), taken));
    }

    /// Records that the gateway owed it a turn for this long.
    pub(crate) fn was_not_served(&mut self, time: Duration) {
        self.not_served += time;
    }

    /// The time that has passed for the reader.
    fn of_reader(&self, now: Duration) -> Duration {
        now.saturating_sub(self.not_served)
    }

    /// What the reader has taken since its queue is full; nothing if the queue is not.
    pub(crate) fn since_full(&self, taken: ReaderTaken) -> Amount {
        let before = self.full.map_or(taken, |(_, before)| before);
        Amount { messages: (taken.messages - before.messages) as usize, bytes: (taken.bytes - before.bytes) as usize }
    }

    /// Whether the reader has taken a quarter of its queue lately or, if the queue has not been full for that long, whether
    /// it is about to. `full` is the number of readers with full queues.
    pub(crate) fn is_quick(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits, full: usize) -> bool {
        let enough = QUARTER * (ALONE as f64 / full.max(1) as f64).min(1.0);
        let is_about_to = self.full.as_ref().is_some_and(|(since, before)| {
            let passed = self.of_reader(now).saturating_sub(*since);
            passed <= LATELY
                && taken != *before
                && share(before, taken, limits) >= enough * passed.div_duration_f64(LATELY)
        });
        is_about_to || self.share_lately(now, taken, limits) >= enough
    }

    /// Whether the reader has taken a quarter of its queue lately.
    pub(crate) fn has_been_quick(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits) -> bool {
        self.share_lately(now, taken, limits) >= QUARTER
    }

    fn share_lately(&self, now: Duration, taken: ReaderTaken, limits: &InboxLimits) -> f64 {
        let now = self.of_reader(now);
        let lately = self.marks.iter().find(|(at, _)| now <= *at + LATELY);
        lately.map_or(0.0, |(_, before)| share(before, taken, limits))
    }
}

/// What was taken since `before`, as a part of the queue.
fn share(before: &ReaderTaken, taken: ReaderTaken, limits: &InboxLimits) -> f64 {
    let messages = (taken.messages - before.messages) as f64 / limits.messages as f64;
    let windows = QUARTER * (taken.by_window - before.by_window) as f64 / WINDOWS;
    messages.max((taken.bytes - before.bytes) as f64 / limits.bytes as f64).max(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InboxLimits = InboxLimits { messages: 1000, bytes: 100_000 };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_reader_is_quick_that_has_taken_a_quarter_within_a_quarter_of_a_second() {
        let mut uptake = Uptake::default();
        let taken = |messages| ReaderTaken { messages, bytes: messages * 10, by_window: 0 };
        assert!(!uptake.is_quick(ms(0), taken(5000), &LIMITS, 1), "nothing is known of it");
        uptake.mark(ms(0), taken(0));
        assert!(!uptake.is_quick(ms(100), taken(249), &LIMITS, 1));
        assert!(uptake.is_quick(ms(100), taken(250), &LIMITS, 1));
        assert!(uptake.is_quick(ms(250), taken(250), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(251), taken(250), &LIMITS, 1), "that was before");
        for step in 1..=20 {
            uptake.mark(ms(step * 25), taken(step * 25));
        }
        assert!(uptake.is_quick(ms(500), taken(500), &LIMITS, 1), "1,000 messages a second");
        assert!(!uptake.is_quick(ms(600), taken(510), &LIMITS, 1), "then hardly any");
        assert!(uptake.is_quick(ms(600), ReaderTaken { bytes: 40_000, ..taken(510) }, &LIMITS, 1), "but large ones");
        assert!(uptake.marks.len() <= 12);
        let windows = |by_window| ReaderTaken { by_window, ..taken(510) };
        assert!(!uptake.is_quick(ms(600), windows(59), &LIMITS, 1));
        assert!(uptake.is_quick(ms(600), windows(60), &LIMITS, 1), "but window by window");
        // the queue has just become full, so only what was taken since then counts
        uptake.set_full(Some((ms(600), taken(510))));
        assert!(!uptake.is_quick(ms(600), taken(510), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(610), taken(519), &LIMITS, 1));
        assert!(uptake.is_quick(ms(610), taken(520), &LIMITS, 1));
        assert!(uptake.is_quick(ms(800), taken(710), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(851), taken(759), &LIMITS, 1));
        assert!(!uptake.is_quick(ms(610), taken(516), &LIMITS, ALONE));
        assert!(uptake.is_quick(ms(610), taken(516), &LIMITS, 2 * ALONE), "many share the pace of the machine");
        assert!(!uptake.is_quick(ms(2000), taken(759), &LIMITS, 1000), "who takes nothing is never quick");
    }
}
