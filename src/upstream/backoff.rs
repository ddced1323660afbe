//! Computes the pauses between attempts to connect.

use std::time::Duration;

use super::settings::Retry;

/// A connection that lasted for this long was good: the pause after it is the shortest one.
const LASTED: Duration = Duration::from_secs(30);
/// A connection on which messages were acknowledged for this long has worked: a line that breaks again and again is no reason
/// to be away for longer than the connections hold.
const WORKED: Duration = Duration::from_secs(5);
/// The number of failures that count after such a connection at most, so that the pause is four times the shortest one.
const WORKED_FAILURES: u32 = 2;
/// The number of short connections in a row that are logged one by one.
const TOLD: u32 = 8;
/// The pauses after an upstream has asked to be left alone for a while: at least one minute at first, and then longer.
const SENT_AWAY: Retry = Retry { min: Duration::from_secs(60), max: Duration::from_secs(900) };

/// Pauses that double from the shortest to the longest. Each is shortened at random by up to half, so that gateways that
/// lost the same upstream do not come back at the same moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    retry: Retry,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(retry: Retry) -> Backoff {
        Backoff { retry, ..Backoff::default() }
    }

    /// Replaces the limits of the pauses.
    pub(crate) fn set_retry(&mut self, retry: Retry) {
        self.retry = retry;
    }

    /// The next pause; `random` is any random number.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let whole = doubled(self.retry, self.failures);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// The pause of an address that has asked this number of times in a row to be left alone. It is never shorter than the
    /// first one.
    pub(crate) fn long(&self, times: u32, random: u64) -> Duration {
        let whole = doubled(SENT_AWAY, times.saturating_sub(1)).max(self.retry.max);
        whole + whole.mul_f64(random as f64 / u64::MAX as f64 / 4.0)
    }

    /// Records how long a connection lasted.
    pub(crate) fn connected_for(&mut self, time: Duration) {
        if time >= LASTED {
            self.failures = 0;
        }
    }

    /// Records that messages were acknowledged on a connection that lasted for this long, and that none of them is suspected to
    /// have ended it.
    pub(crate) fn worked_for(&mut self, time: Duration) {
        if time >= WORKED {
            self.failures = self.failures.min(WORKED_FAILURES);
        }
    }

    /// Whether a connection is worth log lines: of short ones the first few, and then whenever their number has doubled.
    pub(crate) fn is_news(&self) -> bool {
        self.failures < TOLD || self.failures.is_power_of_two()
    }

    /// Shortens the pauses, because it has become clearer what connections end for.
    pub(crate) fn made_progress(&mut self) {
        self.failures = 0;
    }
}

fn doubled(retry: Retry, times: u32) -> Duration {
    retry.min.saturating_mul(1 << times.min(20)).min(retry.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of `docs/fleet.md`.
    #[test]
    fn ten_thousand_gateways_come_back_evenly() {
        const HOUR: u64 = 3_600_000;
        let mut state = 1u64;
        // any generator with evenly distributed numbers will do
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state ^ state >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd)
        };
        let (mut per_second, mut last_back) = ([0u32; 60], 0);
        for _ in 0..10_000 {
            let (mut backoff, mut now) = (Backoff::new(Retry::default()), 0);
            // the cluster vanishes for all gateways at once, and comes back an hour and a minute later
            while now < HOUR + 60_000 {
                if let Some(second) = now.checked_sub(HOUR) {
                    per_second[(second / 1000) as usize] += 1;
                }
                now += backoff.next(random()).as_millis() as u64;
            }
            last_back = last_back.max(now - HOUR - 60_000);
        }
        let mean = per_second.iter().sum::<u32>() / 60;
        assert!((440..450).contains(&mean), "{mean}");
        assert!(per_second.iter().all(|count| *count < 600), "{per_second:?}");
        assert!(last_back <= 30_000, "{last_back}");
    }

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
    fn a_line_that_breaks_again_and_again_is_back_within_seconds() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            backoff.worked_for(Duration::from_secs(10));
            assert!(backoff.next(u64::MAX) <= Duration::from_secs(4));
        }
        for _ in 0..20 {
            backoff.worked_for(Duration::from_secs(1));
            backoff.next(u64::MAX);
        }
        assert_eq!(backoff.next(u64::MAX), Duration::from_secs(30));
    }

    #[test]
    fn whoever_is_sent_away_stays_away_for_long() {
        let mut backoff = Backoff::new(Retry { min: Duration::from_millis(10), max: Duration::from_millis(20) });
        assert_eq!(backoff.next(u64::MAX), Duration::from_millis(10));
        let waits: Vec<_> = (1..8).map(|times| backoff.long(times, 0).as_secs()).collect();
        assert_eq!(waits, [60, 120, 240, 480, 900, 900, 900]);
        assert_eq!(backoff.long(1, u64::MAX), Duration::from_secs(75));
    }
}
