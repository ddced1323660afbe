//! Limits how often the same thing is logged.

use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);

/// Limits the number of log lines in a minute.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LogPace {
    since: Option<Instant>,
    lines: u32,
}

impl LogPace {
    /// Whether there may be another line, of at most `most` in a minute.
    pub(crate) fn admits(&mut self, most: u32, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= MINUTE) {
            *self = LogPace { since: Some(now), lines: 0 };
        }
        self.lines += 1;
        self.lines <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_apart() {
        let begin = Instant::now();
        let mut pace = LogPace::default();
        let lines = (0..200).filter(|second| pace.admits(2, begin + Duration::from_secs(*second))).count();
        assert_eq!(lines, 8, "at 0, 1, 60, 61, 120, 121, 180, 181");
    }
}
