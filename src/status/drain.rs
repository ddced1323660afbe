//! Estimates when the backlog of an upstream will be empty.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The least time between two measurements of the backlog.
const LEAST: Duration = Duration::from_secs(1);
/// The time constant of the smoothing in seconds: older measurements count little.
const SMOOTHED: f64 = 30.0;
/// A backlog that has not shrunk for this long does not shrink.
const LATELY: Duration = Duration::from_secs(30);

/// The speed at which a backlog shrinks, measured whenever it is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Drain {
    /// The times of measurements and the numbers of messages then. The first is the last one before [`LATELY`], or the first
    /// of all.
    looks: VecDeque<(Instant, u64)>,
    /// The smoothed number of messages by which the backlog shrinks in a second.
    rate: Option<f64>,
}

impl Drain {
    /// The number of seconds until the backlog is empty, if it continues to shrink at this speed.
    pub(super) fn seconds_left(&mut self, is_connected: bool, waiting: u64, now: Instant) -> Option<u64> {
        if !is_connected {
            *self = Drain::default();
            return None;
        }
        let Some((then, before)) = self.looks.back().copied() else {
            self.looks.push_back((now, waiting));
            return None;
        };
        let elapsed = now.saturating_duration_since(then);
        if elapsed >= LEAST {
            let seconds = elapsed.as_secs_f64();
            let rate = (before as f64 - waiting as f64) / seconds;
            let weight = 1.0 - (-seconds / SMOOTHED).exp();
            self.rate = Some(self.rate.map_or(rate, |known| known + weight * (rate - known)));
            self.looks.push_back((now, waiting));
            while self.looks.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= LATELY) {
                self.looks.pop_front();
            }
        }
        let has_shrunk = self.looks.front().is_some_and(|(_, lately)| waiting < *lately);
        let rate = self.rate.filter(|rate| *rate > 0.0 && waiting > 0 && has_shrunk)?;
        Some((waiting as f64 / rate).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_rate() {
        let mut drain = Drain::default();
        let begin = Instant::now();
        let mut look = |seconds: u64, waiting, is_connected| {
            drain.seconds_left(is_connected, waiting, begin + Duration::from_secs(seconds))
        };
        assert_eq!(look(0, 10_000, true), None);
        assert_eq!(look(10, 9_000, true), Some(90));
        assert_eq!(look(20, 8_000, true), Some(80));
        // an upstream that takes nothing any more, and then something again
        assert!(look(40, 8_000, true) > Some(80));
        assert_eq!(look(50, 8_000, true), None);
        assert_eq!(look(300, 8_000, true), None);
        assert!(look(301, 7_900, true).is_some());
        assert_eq!(look(310, 9_000, true), None);
        assert_eq!(look(360, 8_000, false), None);
        assert_eq!(look(370, 8_000, true), None);
        assert_eq!(look(380, 0, true), None);
    }

    #[test]
    fn however_often_it_is_asked_for_the_estimate_is_the_same() {
        let begin = Instant::now();
        let after = |every: u64| {
            let mut drain = Drain::default();
            // a hundred messages a second, and later ten
            let waiting = |ms: u64| 100_000 - if ms < 60_000 { ms / 10 } else { 6_000 + (ms - 60_000) / 100 };
            let times = (0..=120_000).step_by(every as usize);
            let looks = times.map(|ms| drain.seconds_left(true, waiting(ms), begin + Duration::from_millis(ms)));
            looks.last().flatten().unwrap()
        };
        let (often, seldom) = (after(100), after(10_000));
        assert!(often.abs_diff(seldom) < often / 50, "{often} {seldom}");
    }
}
