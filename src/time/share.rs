//! How much of the processors this process gets while others use them as well.
//!
//! Whoever judges by the clock how quickly somebody answers must not count the time for which the machine was busy with other
//! work: the gateway could not serve the connection in that time, and a client on the same machine could not answer.

use std::time::Duration;

use tokio::time::Instant;

/// The interval of measurements. Each reads a file for each thread, which takes about a millisecond on a Pi Zero.
const EVERY: Duration = Duration::from_millis(50);
/// A measurement before which there was none for this long says nothing about the present.
const STALE: Duration = Duration::from_millis(500);
/// The least share, so that nothing waits without end on a machine that has far too much to do.
const LEAST: f64 = 0.125;

/// For how long the threads of a process together have run, and for how long they have waited for a processor, in
/// nanoseconds since they were started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ThreadTimes {
    ran: u64,
    waited: u64,
}

/// The share of the time in which threads of this process could work that they got a processor, from [`LEAST`] to 1.
#[derive(Debug)]
pub(crate) struct ProcessorShare {
    is_measured: bool,
    last: Option<(Instant, ThreadTimes)>,
    share: f64,
}

impl ProcessorShare {
    /// A share that is measured. It is 1 where the kernel does not say how long threads wait (`CONFIG_SCHED_INFO`).
    pub(crate) fn measured() -> ProcessorShare {
        ProcessorShare { is_measured: true, last: None, share: 1.0 }
    }

    /// A share that is always the same, whatever the machine does.
    #[cfg(test)]
    pub(crate) fn fixed(share: f64) -> ProcessorShare {
        ProcessorShare { is_measured: false, last: None, share }
    }

    /// The share in the last tenth of a second or so.
    pub(crate) fn at(&mut self, now: Instant) -> f64 {
        let is_due = |(at, _): (Instant, ThreadTimes)| now.saturating_duration_since(at) >= EVERY;
        if self.is_measured && self.last.is_none_or(is_due) {
            self.note(now, of_this_process());
        }
        self.share
    }

    fn note(&mut self, now: Instant, times: ThreadTimes) {
        let recent = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < STALE);
        self.last = Some((now, times));
        let Some((_, before)) = recent else {
            self.share = 1.0;
            return;
        };
        // the times of a thread that has ended are gone, and then these two say nothing
        let differences = (times.ran.checked_sub(before.ran), times.waited.checked_sub(before.waited));
        if let (Some(ran), Some(waited)) = differences {
            let all = ran + waited;
            self.share = if all == 0 { 1.0 } else { (ran as f64 / all as f64).max(LEAST) };
        }
    }
}

/// The times of all threads of this process: schedstat in proc_pid_schedstat(5) and `Documentation/scheduler/sched-stats`.
fn of_this_process() -> ThreadTimes {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return ThreadTimes::default() };
    let times = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let mut nanos = text.split_ascii_whitespace().map_while(|figure| figure.parse().ok());
        Some((nanos.next()?, nanos.next()?))
    });
    times.fold(ThreadTimes::default(), |sum, (ran, waited): (u64, u64)| ThreadTimes {
        ran: sum.ran + ran,
        waited: sum.waited + waited,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_was_got_of_what_was_needed() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let mut share = ProcessorShare::measured();
        let mut at = |now: u64, ran: u64, waited: u64| {
            share.note(begin + ms(now), ThreadTimes { ran: ran * 1_000_000, waited: waited * 1_000_000 });
            (share.share * 1000.0).round() as u64
        };
        assert_eq!(at(0, 900, 5_000), 1_000, "nothing is known of the present yet");
        assert_eq!(at(50, 925, 5_075), 250);
        assert_eq!(at(100, 925, 5_075), 1_000, "nothing was to be done");
        assert_eq!(at(150, 926, 5_175), 125, "no less");
        assert_eq!(at(200, 400, 2_000), 125, "a thread has ended");
        assert_eq!(at(250, 450, 2_000), 1_000);
        assert_eq!(at(300, 460, 2_030), 250);
        assert_eq!(at(900, 500, 3_000), 1_000, "that was long ago");
    }

    #[test]
    fn the_kernel_tells_how_long_threads_have_run() {
        let before = of_this_process();
        let begun = crate::time::thread_time();
        while crate::time::thread_time() < begun + Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(before.ran > 0 && of_this_process() != before, "{before:?}");
        let mut fixed = ProcessorShare::fixed(0.5);
        assert_eq!(fixed.at(Instant::now()).to_bits(), 0.5_f64.to_bits());
    }
}
