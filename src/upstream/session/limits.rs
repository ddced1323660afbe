//! What an upstream takes that ends connections with MQTT 5 because of too much at a time.
//!
//! DISCONNECT with 0x93 (receive maximum exceeded) tells that fewer messages may be unanswered than it has announced, and
//! 0x96 (message rate too high) that fewer may be sent in a time. Sent again as before, the same messages would only end the
//! next connection. So half of what was under way is the limit from then on, over reconnects too, and half again if that is
//! still too much. A limit is raised by a half when it has held for [`FIRST_HOLD_MS`] and has been reached meanwhile. If that
//! ends a connection, the limit is as before, and the next try follows after twice the time, up to [`LONGEST_HOLD_MS`].

use tracing::{debug, warn};

use super::UpstreamSession;
use crate::upstream::wire::EndReason;

/// For how long a limit holds until it is raised, in milliseconds: at first, and at most.
const FIRST_HOLD_MS: u64 = 60_000;
const LONGEST_HOLD_MS: u64 = 3_600_000;
/// A pace is counted in messages in so many seconds, so that it can be less than one a second.
const PACE_SECONDS: u64 = 1_000;
/// The slowest pace, a message a minute.
const SLOWEST: u64 = PACE_SECONDS / 60;
/// A pace at which there is no limit any more.
const FASTEST: u64 = 10_000 * PACE_SECONDS;

/// One limit, which is looked for.
#[derive(Clone, Copy, Debug, Default)]
struct LearnedLimit {
    /// The limit, if one is known.
    most: Option<u64>,
    /// The limit before it was raised, while it is not certain that the upstream takes more.
    before: Option<u64>,
    /// Whether the limit has been reached since it was set.
    is_reached: bool,
    /// Until when it is not raised, in milliseconds of the boot clock, and for how long it was to hold.
    until: u64,
    hold: u64,
}

impl LearnedLimit {
    /// Records that a connection was ended when so much was under way. The limit is never less than `least`. Returns whether
    /// it has changed.
    fn exceeded(&mut self, under_way: u64, least: u64, now: u64) -> bool {
        let known = self.most.unwrap_or(u64::MAX).min(under_way);
        let raised = self.before.take();
        let most = match raised.filter(|before| *before < known) {
            Some(before) => before,
            None => (known / 2).max(least),
        };
        self.hold = match raised {
            Some(_) => (self.hold * 2).min(LONGEST_HOLD_MS),
            None => self.hold.max(FIRST_HOLD_MS),
        };
        (self.until, self.is_reached) = (now + self.hold, false);
        self.most.replace(most) != Some(most)
    }

    /// Records that the upstream still takes messages, and raises the limit when that is due. From `plenty` on there is none.
    fn holds(&mut self, plenty: u64, now: u64) -> bool {
        let Some(most) = self.most.filter(|_| self.is_reached && now >= self.until) else { return false };
        let raised = most + (most / 2).max(1);
        (self.most, self.before, self.is_reached) = (Some(raised), Some(most), false);
        self.until = now + FIRST_HOLD_MS;
        if raised > plenty {
            *self = LearnedLimit::default();
        }
        true
    }
}

/// The limits of one address.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LearnedLimits {
    /// The most messages without an answer.
    window: LearnedLimit,
    /// The most messages in [`PACE_SECONDS`].
    pace: LearnedLimit,
}

impl LearnedLimits {
    /// The window, which is at most so large.
    pub(super) fn window(&self, most: u16) -> u16 {
        self.window.most.map_or(most, |window| most.min(u16::try_from(window).unwrap_or(u16::MAX)))
    }

    /// The time between two messages, in microseconds; 0 without a limit.
    pub(super) fn interval(&self) -> u64 {
        self.pace.most.map_or(0, |pace| PACE_SECONDS * 1_000_000 / pace)
    }
}

impl UpstreamSession {
    /// The number of messages whose answer the upstream owes.
    fn unanswered(&self) -> u64 {
        self.in_flight.iter().filter(|message| message.is_unanswered()).count() as u64
    }

    /// Handles the end of a connection for one of these reasons. Returns whether messages may be the reason.
    pub(super) fn limit_exceeded(&mut self, reason: EndReason, now: u64) -> bool {
        let (unanswered, in_a_second) = (self.unanswered(), self.throttle.in_a_second());
        let limits = &mut self.limits;
        let (was_known, is_news) = match reason {
            EndReason::WindowExceeded if unanswered > 0 => {
                (limits.window.most.is_some(), limits.window.exceeded(unanswered, 1, now))
            }
            EndReason::PaceExceeded if in_a_second > 0 => {
                (limits.pace.most.is_some(), limits.pace.exceeded(in_a_second * PACE_SECONDS, SLOWEST, now))
            }
            _ => return false,
        };
        self.learned.is_news |= is_news;
        self.throttle.slow_down(limits.interval());
        let (upstream, window, interval_ms) = (&self.name, limits.window.most, limits.interval() / 1000);
        if was_known {
            debug!(upstream, window, interval_ms, "the upstream still ends the connection because of too much");
        } else if reason == EndReason::WindowExceeded {
            warn!(
                upstream,
                window,
                "the upstream takes fewer messages at a time than it announces: fewer are sent, none is lost \
                 (max_inflight says the same)"
            );
        } else {
            warn!(
                upstream,
                interval_ms,
                "the upstream takes fewer messages in a time: they are sent more slowly, none is lost (rate says the same)"
            );
        }
        true
    }

    /// Records whether what was handed over has reached a limit.
    pub(super) fn limits_reached(&mut self) {
        if let Some(window) = self.limits.window.most {
            self.limits.window.is_reached |= self.unanswered() >= window;
        }
        self.limits.pace.is_reached |= self.throttle.is_closed();
    }

    /// Records that a message was acknowledged. Limits that have held for long are raised.
    pub(super) fn limits_hold(&mut self, now: u64) {
        let most = self.link.map_or(1, |link| self.most_in_flight(link));
        self.limits.window.holds(u64::from(most), now);
        if self.limits.pace.holds(FASTEST, now) {
            self.throttle.slow_down(self.limits.interval());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays an upstream that takes `takes` at a time, and returns the numbers of connections that it has ended after each
    /// of these minutes, and the limit then.
    fn played(takes: u64, minutes: &[u64]) -> Vec<(u32, Option<u64>)> {
        let (mut limit, mut ended, mut seen) = (LearnedLimit::default(), 0, Vec::new());
        for second in 0..(minutes.iter().max().unwrap() + 1) * 60 {
            let now = second * 1000;
            let sent = limit.most.unwrap_or(100);
            limit.is_reached = true;
            if sent > takes {
                assert!(limit.exceeded(takes + 1, 1, now) || sent == 1);
                ended += 1;
            } else {
                limit.holds(100, now);
            }
            if second % 60 == 59 && minutes.contains(&(second / 60)) {
                seen.push((ended, limit.most));
            }
        }
        seen
    }

    #[test]
    fn a_limit_is_found_soon_kept_and_looked_beyond_ever_more_seldom() {
        // 100, then half of 11; 7, 10 and 15 are tried
        assert_eq!(played(10, &[0, 1, 2]), [(1, Some(5)), (1, Some(7)), (1, Some(10))]);
        let day = played(10, &[60, 120, 600, 660]);
        assert!(day.iter().all(|(_, most)| matches!(most, Some(8..=10 | 15))), "{day:?}");
        assert!(day[0].0 < 10 && day[3].0 - day[2].0 <= 1, "{day:?}");
        // whoever takes all again gets all again
        assert_eq!(played(1_000, &[1]), [(0, None)]);
    }

    #[test]
    fn a_limit_that_is_not_reached_says_nothing() {
        let mut limit = LearnedLimit::default();
        assert!(limit.exceeded(16, 1, 0));
        assert!(!limit.holds(100, 10 * LONGEST_HOLD_MS), "few messages show nothing");
        limit.is_reached = true;
        assert!(!limit.holds(100, FIRST_HOLD_MS - 1) && limit.holds(100, FIRST_HOLD_MS));
        assert_eq!(limit.most, Some(12));
        for now in (2..20).map(|minute| minute * FIRST_HOLD_MS) {
            limit.is_reached = true;
            limit.holds(100, now);
        }
        assert_eq!(limit.most, None, "there is none any more");
    }

    #[test]
    fn a_pace_has_an_end() {
        let mut limits = LearnedLimits::default();
        assert_eq!(limits.interval(), 0);
        for _ in 0..30 {
            limits.pace.exceeded(16 * PACE_SECONDS, SLOWEST, 0);
        }
        assert_eq!(limits.interval() / 1_000_000, 62, "seconds");
    }
}
