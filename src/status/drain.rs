//! Estimates when the backlog of an upstream will be empty.

use std::time::{Duration, Instant};

/// The least time between two measurements of the backlog.
const LEAST: Duration = Duration::from_secs(1);
/// The time constant of the smoothing in seconds: older measurements count little.
const SMOOTHED: f64 = 30.0;

/// The speed at which a backlog shrinks, measured whenever it is shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// The time of the last measurement, and the number of messages at that time.
    last: Option<(Instant, u64)>,
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
        let (then, before) = *self.last.get_or_insert((now, waiting));
        let elapsed = now.saturating_duration_since(then);
        if elapsed >= LEAST {
            let seconds = elapsed.as_secs_f64();
            let rate = (before as f64 - waiting as f64) / seconds;
            let weight = 1.0 - (-seconds / SMOOTHED).exp();
            self.rate = Some(self.rate.map_or(rate, |known| known + weight * (rate - known)));
            self.last = Some((now, waiting));
        }
        let rate = self.rate.filter(|rate| *rate > 0.0 && waiting > 0)?;
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
        // an upstream that takes nothing any more
        assert!(look(50, 8_000, true) > Some(120));
        assert_eq!(look(60, 8_000, false), None);
        assert_eq!(look(70, 8_000, true), None);
        assert_eq!(look(80, 0, true), None);
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
