//! Rate limit for log lines that clients can cause.
//!
//! A client that retries for ever must neither fill the log nor hide what happens to others. So the first event of a kind is
//! logged at once, and the same event is logged again after [`PAUSE`] with the number of those in between.

use std::hash::{BuildHasher, Hash, RandomState};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

/// The same event is logged at most once in this time.
const PAUSE: Duration = Duration::from_secs(60);
/// Most lines in [`PAUSE`], for all causes and for one cause. The second limit is needed because a client can choose names
/// that make its events look different.
const MOST: usize = 256;
const MOST_OF_ONE: usize = 16;

#[derive(Debug)]
struct LimiterEntry {
    cause: u64,
    event: u64,
    logged: Instant,
    more: u64,
}

/// Decides which events are logged. It keeps only hashes, so its size does not depend on what clients send.
#[derive(Debug)]
pub(crate) struct Limiter {
    most: usize,
    most_of_one: usize,
    hasher: RandomState,
    state: Mutex<LimiterState>,
}

#[derive(Debug, Default)]
struct LimiterState {
    entries: Vec<LimiterEntry>,
    /// The number of events that no line has shown or counted yet, and when a line last counted them.
    left_out: u64,
    summed_up: Option<Instant>,
}

impl Default for Limiter {
    fn default() -> Self {
        Limiter::new(MOST, MOST_OF_ONE)
    }
}

impl Limiter {
    /// A limiter with this many lines in a minute, and this many of one cause.
    pub(crate) fn new(most: usize, most_of_one: usize) -> Limiter {
        Limiter { most, most_of_one, hasher: RandomState::new(), state: Mutex::default() }
    }

    /// Decides whether an event is logged now. `cause` is usually an address. Returns the number of equal events that were
    /// not logged since the last line, or `None` if this one is not logged either. When the limits are reached, nothing is
    /// logged until older events are a minute old.
    pub(crate) fn due(&self, cause: impl Hash, event: impl Hash) -> Option<u64> {
        self.due_at(Instant::now(), self.hasher.hash_one(cause), self.hasher.hash_one(event))
    }

    fn due_at(&self, now: Instant, cause: u64, event: u64) -> Option<u64> {
        let is_recent = |entry: &LimiterEntry| now.duration_since(entry.logged) < PAUSE;
        let state = &mut *self.state.lock();
        let entries = &mut state.entries;
        if let Some(entry) = entries.iter_mut().find(|entry| entry.cause == cause && entry.event == event) {
            if is_recent(entry) {
                entry.more += 1;
                return None;
            }
            entry.logged = now;
            return Some(std::mem::take(&mut entry.more));
        }
        if entries.iter().filter(|entry| entry.cause == cause && is_recent(entry)).count() >= self.most_of_one {
            state.left_out += 1;
            return None;
        }
        if entries.len() >= self.most {
            let oldest = entries.iter().enumerate().min_by_key(|(_, entry)| entry.logged).map(|(at, _)| at);
            match oldest {
                Some(at) if !is_recent(&entries[at]) => state.left_out += entries.swap_remove(at).more,
                _ => {
                    state.left_out += 1;
                    return None;
                }
            }
        }
        entries.push(LimiterEntry { cause, event, logged: now, more: 0 });
        Some(0)
    }

    /// The number of events that no line has shown or counted, if it is time to log that number; to be called regularly.
    /// Repetitions of a logged event are included when the event has not come back for another [`PAUSE`].
    pub(crate) fn left_out(&self) -> Option<u64> {
        self.left_out_at(Instant::now())
    }

    fn left_out_at(&self, now: Instant) -> Option<u64> {
        let state = &mut *self.state.lock();
        let left_out = &mut state.left_out;
        state.entries.retain(|entry| {
            let stays = now.duration_since(entry.logged) < 2 * PAUSE;
            *left_out += if stays { 0 } else { entry.more };
            stays
        });
        if *left_out == 0 || state.summed_up.is_some_and(|last| now.duration_since(last) < PAUSE) {
            return None;
        }
        state.summed_up = Some(now);
        Some(std::mem::take(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_next_after_a_minute_with_the_count() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        assert_eq!(limiter.due_at(now, 1, 1), Some(0));
        assert_eq!(limiter.due_at(now, 1, 1), None);
        assert_eq!(limiter.due_at(now + PAUSE / 2, 1, 1), None);
        assert_eq!(limiter.due_at(now + PAUSE / 2, 1, 2), Some(0), "another event");
        assert_eq!(limiter.due_at(now + PAUSE / 2, 2, 1), Some(0), "somebody else");
        assert_eq!(limiter.due_at(now + PAUSE, 1, 1), Some(2));
        assert_eq!(limiter.due_at(now + 2 * PAUSE, 1, 1), Some(0));
    }

    #[test]
    fn what_is_left_out_is_summed_up() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let logged = (0..1000).filter(|event| limiter.due_at(now, 1, *event).is_some()).count() as u64;
        assert_eq!(limiter.left_out_at(now), Some(1000 - logged), "at once");
        for event in 0..1000 {
            limiter.due_at(now, 1, event);
        }
        assert_eq!(limiter.left_out_at(now + PAUSE / 2), None, "once a minute");
        assert_eq!(limiter.left_out_at(now + PAUSE), Some(1000 - logged), "and nobody need do anything more for it");
        assert_eq!(limiter.due_at(now + PAUSE, 1, 0), Some(1), "what is like a logged event is counted with it");
        assert_eq!(limiter.left_out_at(now + 2 * PAUSE), Some(logged - 1), "unless that does not come back");
        assert_eq!(limiter.left_out_at(now + 9 * PAUSE), None);
        assert!(limiter.state.lock().entries.is_empty());
        // an entry that makes room for others is counted as well
        let (limiter, now) = (Limiter::new(1, 1), Instant::now());
        assert_eq!([1, 1, 2].map(|event| limiter.due_at(now, event, 0)), [Some(0), None, None]);
        assert_eq!(limiter.due_at(now + PAUSE, 3, 0), Some(0));
        assert_eq!(limiter.left_out_at(now + PAUSE), Some(2));
    }

    #[test]
    fn nobody_fills_the_log_or_takes_the_place_of_others() {
        let (limiter, now) = (Limiter::default(), Instant::now());
        let logged = (0..1000).filter(|event| limiter.due_at(now, 1, *event).is_some()).count();
        assert_eq!(logged, MOST_OF_ONE);
        assert_eq!(limiter.due_at(now, 2, 0), Some(0));
        let logged = (3..1000).filter(|cause| limiter.due_at(now, *cause, 0).is_some()).count();
        assert_eq!(logged, MOST - MOST_OF_ONE - 1);
        assert_eq!(limiter.due_at(now + PAUSE, 5000, 0), Some(0), "the oldest is forgotten");
        assert_eq!(limiter.state.lock().entries.len(), MOST);
    }

    #[test]
    fn keys_are_told_apart() {
        let limiter = Limiter::default();
        assert_eq!(limiter.due("a", ("publish", "x")), Some(0));
        assert_eq!(limiter.due("a", ("subscribe", "x")), Some(0));
        assert_eq!(limiter.due("a", ("publish", "x")), None);
    }
}
