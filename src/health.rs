//! Whether the gateway is well: the pulse of its tasks, and the problems that a person should hear of.
//!
//! Every room may write here, and those who show it read: what stands here is bounded and grows with neither time nor
//! traffic.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

/// Problems remembered.
pub const MAX_PROBLEMS: usize = 50;
/// Longest text of a problem, in bytes.
pub const MAX_PROBLEM: usize = 1000;

/// A warning or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Number, from 1 on.
    pub number: u64,
    /// Milliseconds since the Unix epoch, as the system believed.
    pub unix_ms: i64,
    /// `"warn"`: recovered and nothing lost; `"error"`: data lost, or a person is needed.
    pub level: &'static str,
    /// Where it comes from.
    pub target: String,
    /// What happened.
    pub text: String,
}

/// The last problems: at most [`MAX_PROBLEMS`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    inner: Arc<ProblemsInner>,
}

#[derive(Debug, Default)]
struct ProblemsInner {
    last: Mutex<VecDeque<Problem>>,
    count: watch::Sender<u64>,
}

impl Problems {
    /// Remembers one.
    pub fn push(&self, unix_ms: i64, level: &'static str, target: &str, mut text: String) {
        if text.len() > MAX_PROBLEM {
            let end = (0..=MAX_PROBLEM).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        let mut last = self.inner.last.lock();
        if last.len() >= MAX_PROBLEMS {
            last.pop_front();
        }
        let number = last.back().map_or(1, |problem| problem.number + 1);
        last.push_back(Problem { number, unix_ms, level, target: target.into(), text });
        drop(last);
        self.inner.count.send_replace(number);
    }

    /// Those remembered, oldest first.
    pub fn last(&self) -> Vec<Problem> {
        self.inner.last.lock().iter().cloned().collect()
    }

    /// Changes with every problem: their number so far.
    pub fn count(&self) -> watch::Receiver<u64> {
        self.inner.count.subscribe()
    }
}

/// Shows that a task is at work: it answers when it gets around to being asked.
#[derive(Debug)]
pub struct Pulse {
    asked: watch::Receiver<u64>,
    answered: watch::Sender<u64>,
}

impl Pulse {
    /// Waits for a question. Safe to cancel.
    pub async fn asked(&mut self) {
        let answered = *self.answered.borrow();
        if self.asked.wait_for(|asked| *asked > answered).await.is_err() {
            // nobody asks any more
            std::future::pending().await
        }
    }

    /// Answers it.
    pub fn answer(&self) {
        self.answered.send_replace(*self.asked.borrow());
    }

    /// Answers for as long as `wait` takes: for what may take long without anything being wrong.
    pub async fn during<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                done = &mut wait => return done,
                () = self.asked() => self.answer(),
            }
        }
    }
}

/// The other side of a [`Pulse`].
#[derive(Debug)]
pub struct PulseTaker {
    ask: watch::Sender<u64>,
    answered: watch::Receiver<u64>,
    since: Instant,
}

impl PulseTaker {
    /// Asks for the first time.
    pub fn new() -> (PulseTaker, Pulse) {
        let (ask, asked) = watch::channel(1);
        let (answer, answered) = watch::channel(0);
        (PulseTaker { ask, answered, since: Instant::now() }, Pulse { asked, answered: answer })
    }

    /// Waits for the answer to the last question. Safe to cancel.
    pub async fn answered(&mut self) {
        let asked = *self.ask.borrow();
        if self.answered.wait_for(|answered| *answered == asked).await.is_err() {
            // whoever would answer has gone
            std::future::pending().await
        }
    }

    /// How long the last question has been without an answer. Asks again where it has one.
    pub fn silence(&mut self, now: Instant) -> Duration {
        let asked = *self.ask.borrow();
        if *self.answered.borrow() == asked {
            self.since = now;
            self.ask.send_replace(asked + 1);
        }
        now.duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_problems_give_way_and_long_ones_are_cut() {
        let problems = Problems::default();
        for number in 0..MAX_PROBLEMS + 5 {
            problems.push(0, "warn", "t", format!("{number}{}", "ü".repeat(MAX_PROBLEM)));
        }
        let last = problems.last();
        assert_eq!((last.len(), last[0].number, *problems.count().borrow()), (MAX_PROBLEMS, 6, 55));
        assert!(last.iter().all(|problem| problem.text.len() <= MAX_PROBLEM + 3));
    }
}
