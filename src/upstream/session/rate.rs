//! Limits the number of messages sent in a time, because clouds end connections that exceed their quota.

use crate::upstream::settings::Rate;

/// The burst that is allowed after a pause is one part in this many of the messages of a second.
const BURST: u64 = 10;

/// Spreads messages evenly (the generic cell rate algorithm of ATM).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Throttle {
    /// Microseconds between two messages as configured; 0 means no limit.
    configured: u64,
    /// The same as the upstream has shown to want.
    learned: u64,
    /// The larger of both.
    interval: u64,
    /// How far messages may be ahead of their time, in microseconds.
    ahead: u64,
    /// When the next message is due, in microseconds of the boot clock.
    due: u64,
    closed_until: Option<u64>,
    /// When the present second began, in milliseconds of the boot clock, and the numbers of messages in it and in the one before.
    second: (u64, u64, u64),
}

impl Throttle {
    pub(crate) fn new(rate: Option<Rate>) -> Throttle {
        let mut throttle = Throttle::default();
        throttle.set_rate(rate);
        throttle
    }

    pub(crate) fn set_rate(&mut self, rate: Option<Rate>) {
        self.configured = rate.map_or(0, |rate| rate.interval().as_micros() as u64);
        self.set_interval();
    }

    /// Leaves at least this number of microseconds between two messages from now on, whatever is configured.
    pub(crate) fn slow_down(&mut self, interval: u64) {
        self.learned = interval;
        self.set_interval();
    }

    fn set_interval(&mut self) {
        self.interval = self.configured.max(self.learned);
        let burst = 1_000_000 / BURST;
        self.ahead = if self.interval <= burst { burst } else { 0 };
        if self.interval == 0 {
            self.closed_until = None;
        }
    }

    /// Whether the next message must wait.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_until.is_some()
    }

    /// When the next message may be sent.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.closed_until
    }

    /// The most messages of a second, the present one or the one before it.
    pub(crate) fn in_a_second(&self) -> u64 {
        self.second.1.max(self.second.2)
    }

    /// Counts a message that is sent at `now`, in milliseconds of the boot clock.
    pub(crate) fn count(&mut self, now: u64) {
        let (begin, present, _) = self.second;
        self.second = match now.saturating_sub(begin) {
            ..1_000 => (begin, present + 1, self.second.2),
            1_000..2_000 => (begin + 1_000, 1, present),
            _ => (now, 1, 0),
        };
        if self.interval == 0 {
            return;
        }
        let now = now * 1000;
        self.due = self.due.max(now) + self.interval;
        if self.due - now > self.ahead {
            self.closed_until = Some((self.due - self.ahead).div_ceil(1000));
        }
    }

    /// Tells the limit that the time is `now`.
    pub(crate) fn time(&mut self, now: u64) {
        self.closed_until = self.closed_until.filter(|until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages in each of 10 s, if each is sent as soon as it may.
    fn in_ten_seconds(rate: &str) -> Vec<u64> {
        let mut throttle = Throttle::new(Some(Rate::parse(rate).unwrap()));
        let mut times = Vec::new();
        for now in 1_000_000..1_010_000 {
            throttle.time(now);
            while !throttle.is_closed() && times.len() < 100_000 {
                throttle.count(now);
                times.push(now);
            }
        }
        times
    }

    #[test]
    fn no_more_than_the_rate_passes_and_no_less() {
        for (rate, expected) in
            [("50/s", 500), ("1/s", 10), ("600/min", 100), ("7/s", 70), ("3000/s", 30_000), ("6/min", 1)]
        {
            let times = in_ten_seconds(rate);
            let most = expected + expected / BURST as usize / 5 + 1;
            assert!((expected..=most).contains(&times.len()), "{rate}: {}", times.len());
        }
    }

    #[test]
    fn no_second_has_much_more_than_its_share() {
        let times = in_ten_seconds("50/s");
        for (first, last) in times.iter().zip(&times[60..]) {
            assert!(last - first >= 1_000, "60 messages from {first} to {last}");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut throttle = Throttle::new(None);
        for _ in 0..100_000 {
            throttle.count(5);
        }
        assert!(!throttle.is_closed());
    }
}
