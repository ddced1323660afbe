//! One beat for all periodic checks that may run a little later, such as keep alives, statistics and probes.
//!
//! Each timer that ends alone wakes the processor, and a timer of the runtime does so up to three times: it waits in wheels
//! of 64 slots of 1 ms, 64 ms and 4,096 ms, and moves to the next faster wheel at the beginning of its slot. A timer that
//! ends exactly where a slot of the slowest of these wheels begins wakes the processor once, together with all other timers
//! on the same beat.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The time between two beats, which is a slot of the runtime's third wheel: 64 × 64 ms.
pub(crate) const BEAT: Duration = Duration::from_millis(64 * 64);

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// The runtime rounds deadlines up to its milliseconds, so it may begin this much later than the beats.
const ROUNDED: Duration = Duration::from_millis(1);

/// Sets the origin of the beats. The runtime has been started since `before`, and its wheels have turned from some moment in
/// between. If that took too long for both to coincide, the beats begin now: each then comes a little after the beginning of
/// a slot, which costs one more waking, while one that comes a little before it would cost two. Only the first call counts.
pub(crate) fn begin(before: Instant) {
    ORIGIN.get_or_init(|| {
        let now = Instant::now();
        if now - before < ROUNDED { before } else { now }
    });
}

/// The first beat that is not before this moment.
pub(crate) fn at_or_after(moment: Instant) -> Instant {
    let origin = *ORIGIN.get_or_init(Instant::now);
    let beats = moment.saturating_duration_since(origin).as_nanos().div_ceil(BEAT.as_nanos());
    origin + BEAT * u32::try_from(beats).unwrap_or(u32::MAX)
}

/// Sleeps until the first beat after this pause.
pub(crate) async fn sleep_at_least(pause: Duration) {
    sleep_until(at_or_after(Instant::now() + pause)).await;
}

/// The last beat within this pause, for callers that must not be late. If the pause is shorter than the time between two
/// beats, the end of the pause.
pub(crate) fn within(pause: Duration) -> Instant {
    let now = Instant::now();
    pause.checked_sub(BEAT).map_or(now + pause, |least| at_or_after(now + least))
}

/// Sleeps until the last beat within this time.
pub(crate) async fn sleep_at_most(pause: Duration) {
    sleep_until(within(pause)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_sleeps_until_a_beat_wakes_with_all_others() {
        begin(Instant::now());
        let mut ends = Vec::new();
        for (least, most) in [(0, 4096), (1, 4097), (5_000, 9_096), (60_000, 64_096), (365 * 86_400_000, u64::MAX)] {
            let begin = Instant::now();
            let end = at_or_after(begin + Duration::from_millis(least));
            assert!(end >= begin + Duration::from_millis(least), "{least}");
            assert!(end - begin <= Duration::from_millis(most), "{least}");
            assert_eq!(at_or_after(end), end, "{least}");
            ends.push(end);
        }
        let first = ends[0];
        assert!(ends.iter().all(|end| (*end - first).as_nanos().is_multiple_of(BEAT.as_nanos())), "{ends:?}");
        let begin = Instant::now();
        sleep_at_least(Duration::from_secs(10)).await;
        assert!((10_000..=14_097).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_must_not_be_late_is_not() {
        for seconds in [1, 4, 5, 10, 60] {
            let begin = Instant::now();
            sleep_at_most(Duration::from_secs(seconds)).await;
            let slept = begin.elapsed();
            assert!(slept <= Duration::from_millis(seconds * 1000 + 2), "{slept:?} of {seconds} s");
            assert!(slept + BEAT >= Duration::from_secs(seconds), "{slept:?} of {seconds} s");
        }
    }
}
