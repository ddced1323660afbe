//! Clocks. A Pi has no battery-backed clock: its wall time is wrong after boot until the network has corrected it. So
//! events carry the boot clock, which only ever goes forward, and wall time is worked out from it when it is known.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// What time it is. One of the project's few traits, so that tests decide.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    fn boot_ms(&self) -> u64;
    /// Milliseconds since the Unix epoch, as the system believes.
    fn unix_ms(&self) -> i64;
    /// Whether the system's clock has been synchronised with a source of time since boot.
    fn is_synchronised(&self) -> bool;

    /// Unix time, in milliseconds, of a moment of the boot clock, by today's knowledge.
    fn unix_ms_at(&self, boot_ms: u64) -> i64 {
        self.unix_ms() - (self.boot_ms() as i64 - boot_ms as i64)
    }
}

/// A clock that rooms share.
pub type SharedClock = Arc<dyn Clock>;

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

    fn is_synchronised(&self) -> bool {
        // systemd-timesyncd, chrony under systemd and ntpsec all lead to this file (systemd-timesyncd.service(8));
        // without systemd, a date before this program was written cannot be right
        std::path::Path::new("/run/systemd/timesync/synchronized").exists()
            || (!std::path::Path::new("/run/systemd/system").exists() && self.unix_ms() > 1_760_000_000_000)
    }
}

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct TestClock {
    boot_ms: AtomicU64,
    unix_ms: AtomicI64,
    synchronised: AtomicBool,
}

impl TestClock {
    /// A clock at these times, not synchronised.
    pub fn new(boot_ms: u64, unix_ms: i64) -> Arc<TestClock> {
        Arc::new(TestClock { boot_ms: boot_ms.into(), unix_ms: unix_ms.into(), synchronised: false.into() })
    }

    /// Lets time pass.
    pub fn advance(&self, ms: u64) {
        self.boot_ms.fetch_add(ms, Ordering::Relaxed);
        self.unix_ms.fetch_add(ms as i64, Ordering::Relaxed);
    }

    /// Sets wall time right, as a time server would.
    pub fn synchronise(&self, unix_ms: i64) {
        self.unix_ms.store(unix_ms, Ordering::Relaxed);
        self.synchronised.store(true, Ordering::Relaxed);
    }
}

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
    fn the_boot_clock_of_the_system_goes_forward() {
        let first = SystemClock.boot_ms();
        assert!(first > 0 && SystemClock.boot_ms() >= first);
        assert!(SystemClock.unix_ms() > 0);
    }
}
