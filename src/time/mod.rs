//! Clocks. A Pi has no battery-backed clock, so its wall time is wrong after boot until the network has corrected it. Events
//! therefore carry the boot clock, which never goes back, and their wall time is computed once it is known.

pub(crate) mod beat;
pub(crate) mod share;
pub(crate) mod zone;

use std::path::Path;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The kernel's id of this boot of the host, as its file has it: proc_sys_kernel(5).
pub(crate) fn kernel_boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// The processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

/// A source of time. It is a trait, so that tests can control it.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    fn boot_ms(&self) -> u64;
    /// Milliseconds since the Unix epoch, by the system's clock, which may be wrong.
    fn unix_ms(&self) -> i64;
    /// Whether the system's clock has been synchronised with a time source since boot.
    fn is_synchronised(&self) -> bool;

    /// Whether the clock is being kept correct at present, so that its time may be compared with other boots. A clock that
    /// was correct once and has been moved by hand since is not.
    fn is_kept_right(&self) -> bool {
        self.is_synchronised()
    }

    /// The Unix time in milliseconds of a moment of the boot clock, by what is known at present.
    fn unix_ms_at(&self, boot_ms: u64) -> i64 {
        self.unix_ms() - (self.boot_ms() as i64 - boot_ms as i64)
    }
}

/// A clock that rooms share.
pub(crate) type SharedClock = Arc<dyn Clock>;

/// Differences between two measurements of wall time minus boot clock up to this have no meaning, in milliseconds.
const JITTER_MS: u64 = 2;

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_ms(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
    }

    fn unix_ms(&self) -> i64 {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    }

    /// The same moment has the same time until somebody sets the clock, although two clocks cannot be read at once: what is
    /// told again is told as before.
    fn unix_ms_at(&self, boot_ms: u64) -> i64 {
        let (measured, told) = (wall_minus_boot_ms(), OFFSET_MS.load(Ordering::Relaxed));
        let offset = if measured.abs_diff(told) > JITTER_MS { measured } else { told };
        OFFSET_MS.store(offset, Ordering::Relaxed);
        offset + boot_ms as i64
    }

    fn is_synchronised(&self) -> bool {
        if WAS_SET.load(Ordering::Relaxed) {
            return true;
        }
        if self.is_kept_right() || Path::new("/run/systemd/timesync/synchronized").exists() {
            SystemClock::was_set();
            return true;
        }
        // without systemd, a date before this program was written cannot be correct
        !Path::new("/run/systemd/system").exists() && self.unix_ms() > 1_760_000_000_000
    }

    fn is_kept_right(&self) -> bool {
        pigateway_clock::is_synchronised().unwrap_or(false)
    }
}

/// Wall time minus boot clock in milliseconds, as it was last used. Both clocks are slowed and sped up together, so it
/// changes only when the clock is set.
static OFFSET_MS: AtomicI64 = AtomicI64::new(0);

/// Wall time minus boot clock: the best of a few measurements, because a thread may have to wait between two readings.
fn wall_minus_boot_ms() -> i64 {
    let nanoseconds = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec * 1_000_000_000 + now.tv_nsec
    };
    let measured = (0..3).map(|_| {
        let before = nanoseconds(ClockId::Boottime);
        let wall = nanoseconds(ClockId::Realtime);
        let took = nanoseconds(ClockId::Boottime) - before;
        (took, wall - before - took / 2)
    });
    let (_, offset) = measured.min().unwrap_or_default();
    offset.div_euclid(1_000_000)
}

/// Whether the clock was synchronised in this boot. The kernel withdraws that after hours without a time source, although a
/// clock that was set runs on as well as before. So the answer is remembered.
static WAS_SET: AtomicBool = AtomicBool::new(false);

impl SystemClock {
    /// Records that the clock was set in this boot, which is known from before a restart of the gateway.
    pub(crate) fn was_set() {
        WAS_SET.store(true, Ordering::Relaxed);
    }
}

/// A clock that a test controls.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct TestClock {
    boot_ms: AtomicU64,
    unix_ms: AtomicI64,
    synchronised: AtomicBool,
    kept_right: AtomicBool,
}

#[cfg(test)]
impl TestClock {
    /// A clock at these times, not synchronised.
    pub(crate) fn new(boot_ms: u64, unix_ms: i64) -> Arc<TestClock> {
        Arc::new(TestClock {
            boot_ms: boot_ms.into(),
            unix_ms: unix_ms.into(),
            synchronised: false.into(),
            kept_right: false.into(),
        })
    }

    /// Moves both clocks forward.
    pub(crate) fn advance(&self, ms: u64) {
        self.boot_ms.fetch_add(ms, Ordering::Relaxed);
        self.unix_ms.fetch_add(ms as i64, Ordering::Relaxed);
    }

    /// Corrects the wall time, as a time server would.
    pub(crate) fn synchronise(&self, unix_ms: i64) {
        self.unix_ms.store(unix_ms, Ordering::Relaxed);
        self.synchronised.store(true, Ordering::Relaxed);
        self.kept_right.store(true, Ordering::Relaxed);
    }

    /// Moves the wall time, as a person would: the kernel no longer says that it is correct.
    pub(crate) fn step(&self, ms: i64) {
        self.unix_ms.fetch_add(ms, Ordering::Relaxed);
        self.kept_right.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Clock for TestClock {
    fn boot_ms(&self) -> u64 {
        self.boot_ms.load(Ordering::Relaxed)
    }

    fn unix_ms(&self) -> i64 {
        self.unix_ms.load(Ordering::Relaxed)
    }

    fn is_synchronised(&self) -> bool {
        self.synchronised.load(Ordering::Relaxed)
    }

    fn is_kept_right(&self) -> bool {
        self.kept_right.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_of_an_event_follows_a_corrected_clock() {
        let clock = TestClock::new(1_000, 50_000);
        clock.advance(500);
        assert_eq!(clock.unix_ms_at(1_000), 50_000);
        clock.synchronise(1_700_000_000_000);
        assert_eq!(clock.unix_ms_at(1_000), 1_699_999_999_500);
    }

    #[test]
    fn a_moment_has_the_same_wall_time_whenever_it_is_told() {
        let told = SystemClock.unix_ms_at(1_000);
        assert!(told.abs_diff(SystemClock.unix_ms() - SystemClock.boot_ms() as i64 + 1_000) < 1_000);
        for _ in 0..20_000 {
            assert_eq!(SystemClock.unix_ms_at(1_000), told);
        }
    }

    #[test]
    fn the_boot_clock_of_the_system_goes_forward() {
        let first = SystemClock.boot_ms();
        assert!(first > 0 && SystemClock.boot_ms() >= first);
        assert!(SystemClock.unix_ms() > 0);
    }
}
