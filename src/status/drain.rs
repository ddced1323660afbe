//! When nothing will wait any more for an upstream.

use std::time::{Duration, Instant};

/// The backlog is looked at no more often.
const LEAST: Duration = Duration::from_secs(1);
/// What is older than this counts little.
const SMOOTHED: f64 = 30.0;

/// How fast what waits becomes less, as far as anybody looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// When it was looked at last, and how many messages waited.
    last: Option<(Instant, u64)>,
    /// Messages a second by which they have become fewer, smoothed.
    rate: Option<f64>,
}

impl Drain {
    /// In how many seconds nothing will wait any more, if it goes on like this.
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
        // an upstream that stands still
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
            // a hundred a second, then ten
            let waiting = |ms: u64| 100_000 - if ms < 60_000 { ms / 10 } else { 6_000 + (ms - 60_000) / 100 };
            let times = (0..=120_000).step_by(every as usize);
            let looks = times.map(|ms| drain.seconds_left(true, waiting(ms), begin + Duration::from_millis(ms)));
            looks.last().flatten().unwrap()
        };
        let (often, seldom) = (after(100), after(10_000));
        assert!(often.abs_diff(seldom) < often / 50, "{often} {seldom}");
    }
}
