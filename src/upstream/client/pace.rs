//! Decides when a busy connection is read.
//!
//! An upstream that works through a full window answers every few microseconds. If every answer were read at once and
//! released one message, both sides, and the subscribers there, would be woken for each message, which is most of the work
//! at full speed. So the next read comes a little later and finds several answers, and one write fills their places in the
//! window. Outgoing messages never wait for this, and rare input is read when it arrives.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use tokio::io::unix::AsyncFd;

/// The pause between two reads for each message of a large window. Even a fast upstream needs several times that for each
/// message, so the pause never empties the window.
const PER_MESSAGE: Duration = Duration::from_micros(1);
/// The pause for each message of a small window, such as the 20 messages that mosquitto announces. It must be longer for
/// several answers to come together: about a quarter of the time in which a fast upstream on the same network works
/// through the window.
const PER_MESSAGE_OF_FEW: Duration = Duration::from_micros(5);
/// The longest pause for a small window.
const FEW: Duration = Duration::from_micros(100);
/// The longest pause for any window.
const LONGEST: Duration = Duration::from_micros(200);

/// Tells when to read next. It uses a timer of the system, because the runtime's timers count in milliseconds.
pub(super) struct ReadPace {
    timer: AsyncFd<OwnedFd>,
    is_set: bool,
    pause: Duration,
    next: Instant,
}

impl ReadPace {
    /// A pace without pauses until the window is known.
    pub(super) fn new() -> io::Result<ReadPace> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that exchange their descriptor; this one does not"
        )]
        let timer = AsyncFd::new(timer)?;
        Ok(ReadPace { timer, is_set: false, pause: Duration::ZERO, next: Instant::now() })
    }

    /// Sets the most messages that are unanswered at a time.
    pub(super) fn set_window(&mut self, messages: u16) {
        let (few, many) = (PER_MESSAGE_OF_FEW * messages.into(), PER_MESSAGE * messages.into());
        self.pause = few.min(FEW).max(many).min(LONGEST);
    }

    /// Starts the pause after a read.
    pub(super) fn has_read(&mut self) {
        self.next = Instant::now() + self.pause;
    }

    /// Whether the next read is not due yet.
    pub(super) fn is_pausing(&self) -> bool {
        self.next > Instant::now()
    }

    /// Waits until the next read. Safe to cancel.
    pub(super) async fn turn(&mut self) -> io::Result<()> {
        loop {
            let left = self.next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if !self.is_set {
                let zero = Timespec::default();
                let it_value = Timespec { tv_sec: 0, tv_nsec: left.as_nanos() as _ };
                timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value })?;
                self.is_set = true;
            }
            self.timer.readable().await?.clear_ready();
            self.is_set = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_read_soon_after_another_waits_and_a_late_one_does_not() {
        let mut pace = ReadPace::new().unwrap();
        pace.has_read();
        assert!(pace.turn().now_or_never().is_some(), "nothing is known yet");
        // long enough to be noticed
        pace.pause = Duration::from_millis(50);
        pace.has_read();
        let begin = Instant::now();
        assert!(pace.turn().now_or_never().is_none());
        assert!(pace.turn().now_or_never().is_none(), "cancelled, and asked again");
        pace.turn().await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(49));
        assert!(pace.turn().now_or_never().is_some(), "once is enough");
        for _ in 0..3 {
            pace.has_read();
            pace.turn().await.unwrap();
        }
        assert!(begin.elapsed() >= Duration::from_millis(190));
    }

    #[tokio::test]
    async fn the_pause_grows_with_the_window_and_has_a_bound() {
        let mut pace = ReadPace::new().unwrap();
        for (window, micros) in [(1, 5), (20, 100), (40, 100), (100, 100), (150, 150), (201, 200), (u16::MAX, 200)] {
            pace.set_window(window);
            assert_eq!(pace.pause, Duration::from_micros(micros));
        }
    }
}
