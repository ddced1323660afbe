//! How long to wait between attempts to connect.

use std::time::Duration;

use super::settings::Retry;

/// A connection that held this long was a good one: the next attempt after it does not wait longer than the first.
const LASTED: Duration = Duration::from_secs(30);
/// An upstream that has sent us away for a while is left alone at least this long at first, and then ever longer.
const SENT_AWAY: Retry = Retry { min: Duration::from_secs(60), max: Duration::from_secs(900) };

/// Waits that double from the shortest to the longest, each shortened at random by up to half, so that gateways that lost
/// the same upstream do not come back at the same moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    retry: Retry,
    failures: u32,
    sent_away: u32,
}

impl Backoff {
    /// One that waits so.
    pub fn new(retry: Retry) -> Backoff {
        Backoff { retry, ..Backoff::default() }
    }

    /// From now on it waits so.
    pub fn set_retry(&mut self, retry: Retry) {
        self.retry = retry;
    }

    /// The next wait; `random` is any random number.
    pub fn next(&mut self, random: u64) -> Duration {
        let whole = doubled(self.retry, self.failures);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// The next wait after the upstream has said that it takes no connection for a while: never less than it began with.
    pub fn next_long(&mut self, random: u64) -> Duration {
        let whole = doubled(SENT_AWAY, self.sent_away).max(self.retry.max);
        self.sent_away = self.sent_away.saturating_add(1);
        whole + whole.mul_f64(random as f64 / u64::MAX as f64 / 4.0)
    }

    /// A connection held this long.
    pub fn connected_for(&mut self, time: Duration) {
        self.sent_away = 0;
        if time >= LASTED {
            self.failures = 0;
        }
    }

    /// What has ended connections is known, and others got through.
    pub fn made_progress(&mut self) {
        self.failures = 0;
    }
}

fn doubled(retry: Retry, times: u32) -> Duration {
    retry.min.saturating_mul(1 << times.min(20)).min(retry.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_begin_anew_after_a_good_connection() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next(u64::MAX).as_secs_f64().round() as u64).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30, 30]);
        assert_eq!(backoff.next(0), Duration::from_secs(15));
        backoff.connected_for(Duration::from_secs(5));
        assert_eq!(backoff.next(0), Duration::from_secs(15));
        backoff.connected_for(LASTED);
        assert_eq!(backoff.next(0), Duration::from_millis(500));
    }

    #[test]
    fn whoever_is_sent_away_stays_away_for_long() {
        let mut backoff = Backoff::new(Retry { min: Duration::from_millis(10), max: Duration::from_millis(20) });
        assert_eq!(backoff.next(u64::MAX), Duration::from_millis(10));
        let waits: Vec<_> = (0..7).map(|_| backoff.next_long(0).as_secs()).collect();
        assert_eq!(waits, [60, 120, 240, 480, 900, 900, 900]);
        backoff.connected_for(Duration::ZERO);
        assert_eq!(backoff.next_long(u64::MAX), Duration::from_secs(75));
    }
}
