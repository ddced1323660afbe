//! How long to wait between attempts to connect.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that held this long was a good one: the next attempt after it does not wait longer than the first.
const LASTED: Duration = Duration::from_secs(30);

/// Waits that double from 1 s to 30 s, each shortened at random by up to half, so that gateways that lost the same
/// upstream do not come back at the same moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait; `random` is any random number.
    pub fn next(&mut self, random: u64) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = whole / 2;
        half + half.mul_f64(random as f64 / u64::MAX as f64)
    }

    /// A connection held this long.
    pub fn connected_for(&mut self, time: Duration) {
        if time >= LASTED {
            self.failures = 0;
        }
    }
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
}
