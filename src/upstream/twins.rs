//! Detects a second client with the same client id: two such clients disconnect each other for ever [MQTT-3.1.4-3]. Version
//! 5 reports that; with 3.1.1 it shows in connections that are accepted and soon ended, again and again.

use std::time::Duration;

use super::wire::Broken;

/// A connection that lasted longer than this was ended for another reason.
const SOON: Duration = Duration::from_secs(60);
/// This number of short connections in a row is no accident.
const MANY: u32 = 3;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Twins {
    times: u32,
}

impl Twins {
    /// Records the end of a connection. `is_explained` tells that something we have sent may be the reason: such an end does
    /// not count, and does not end the row either, because with traffic something is always in flight. Returns whether a second
    /// client should be reported.
    pub(crate) fn ended(&mut self, why: &Broken, lasted: Duration, is_explained: bool) -> bool {
        let certain = *why == Broken::TakenOver;
        let possible = *why == Broken::Closed && lasted < SOON && !is_explained;
        if !certain && !possible {
            if *why != Broken::Closed || lasted >= SOON {
                self.times = 0;
            }
            return false;
        }
        self.times = self.times.saturating_add(1);
        (certain && self.times.is_power_of_two())
            || (self.times >= MANY && (self.times / MANY).is_power_of_two() && self.times.is_multiple_of(MANY))
    }

    /// The number of short connections in a row.
    pub(crate) fn times(self) -> u32 {
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_time_and_again_is_said() {
        let mut twins = Twins::default();
        let said: Vec<u32> =
            (1..=30).filter(|_| twins.ended(&Broken::Closed, Duration::from_secs(2), false)).map(|_| 0).collect();
        assert_eq!(said.len(), 4, "at 3, 6, 12 and 24");
        let mut twins = Twins::default();
        assert!(twins.ended(&Broken::TakenOver, Duration::from_secs(500), true));
        assert!(twins.ended(&Broken::TakenOver, Duration::from_secs(500), true));
        assert!(!twins.ended(&Broken::Silent, Duration::ZERO, false) && twins.times() == 0);
        for _ in 0..10 {
            assert!(!twins.ended(&Broken::Closed, Duration::ZERO, true), "a message is the reason");
            assert!(!twins.ended(&Broken::Closed, SOON, false), "it held");
        }
        let ends = [false, true, false, true, true, false];
        let said: Vec<bool> =
            ends.iter().map(|is_explained| twins.ended(&Broken::Closed, Duration::ZERO, *is_explained)).collect();
        assert_eq!(said, [false, false, false, false, false, true]);
    }
}
