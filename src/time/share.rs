//! How much of the processors this process, and others on the same machine, get while many want them.
//!
//! Whoever judges by the clock how quickly somebody answers must not count the time for which the machine was busy with other
//! work: the gateway could not serve the connection in that time, and a client on the same machine could not answer. The
//! gateway knows how long its own threads have waited for a processor. While it has little to do it does not wait, so what
//! others get is estimated from the number of threads that want to run.

use std::time::Duration;

use tokio::time::Instant;

/// The interval of measurements. Each reads a file for each thread, which takes about a millisecond on a Pi Zero.
const EVERY: Duration = Duration::from_millis(50);
/// A measurement before which there was none for this long says nothing about the present.
const STALE: Duration = Duration::from_millis(500);
/// The part of a measurement in the mean number of threads that want to run.
const WEIGHT: f64 = 0.25;
/// The least share, so that nothing waits without end on a machine that has far too much to do.
const LEAST: f64 = 0.125;

/// For how long the threads of a process together have run, and for how long they have waited for a processor, in
/// nanoseconds since they were started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ThreadTimes {
    ran: u64,
    waited: u64,
}

/// The share of the time in which threads could work that they get a processor, from [`LEAST`] to 1: those of this process or
/// all of the machine, whichever is less.
#[derive(Debug)]
pub(crate) struct ProcessorShare {
    /// The number of processors; 0 if nothing is measured.
    processors: usize,
    last: Option<(Instant, ThreadTimes)>,
    /// The share of this process.
    own: f64,
    /// The mean number of threads that want to run.
    runnable: f64,
    share: f64,
}

impl ProcessorShare {
    /// A share that is measured. What the kernel does not say (`CONFIG_SCHED_INFO`) counts as 1.
    pub(crate) fn measured() -> ProcessorShare {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        ProcessorShare { processors, last: None, own: 1.0, runnable: 0.0, share: 1.0 }
    }

    /// A share that is always the same, whatever the machine does.
    #[cfg(test)]
    pub(crate) fn fixed(share: f64) -> ProcessorShare {
        ProcessorShare { processors: 0, share, ..ProcessorShare::measured() }
    }

    /// The share in the last tenth of a second or so.
    pub(crate) fn at(&mut self, now: Instant) -> f64 {
        let is_due = |(at, _): (Instant, ThreadTimes)| now.saturating_duration_since(at) >= EVERY;
        if self.processors > 0 && self.last.is_none_or(is_due) {
            self.note(now, of_this_process(), runnable());
        }
        self.share
    }

    fn note(&mut self, now: Instant, times: ThreadTimes, runnable: usize) {
        let recent = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < STALE);
        self.last = Some((now, times));
        let runnable = runnable as f64;
        if let Some((_, before)) = recent {
            // the times of a thread that has ended are gone, and then these two say nothing
            let differences = (times.ran.checked_sub(before.ran), times.waited.checked_sub(before.waited));
            if let (Some(ran), Some(waited)) = differences {
                self.own = if ran + waited == 0 { 1.0 } else { ran as f64 / (ran + waited) as f64 };
            }
            self.runnable += WEIGHT * (runnable - self.runnable);
        } else {
            (self.own, self.runnable) = (1.0, runnable);
        }
        let of_all = self.processors as f64 / self.runnable.max(1.0);
        self.share = self.own.min(of_all).clamp(LEAST, 1.0);
    }
}

/// The number of threads of the machine that run or want to run, this one included: proc_loadavg(5).
fn runnable() -> usize {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let field = text.split_ascii_whitespace().nth(3).and_then(|field| field.split_once('/'));
    field.and_then(|(running, _)| running.parse().ok()).unwrap_or(1)
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

    fn thousandths(share: &ProcessorShare) -> u64 {
        (share.share * 1000.0).round() as u64
    }

    #[test]
    fn the_share_is_what_was_got_of_what_was_needed() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let mut share = ProcessorShare { processors: 2, ..ProcessorShare::measured() };
        let mut at = |now: u64, ran: u64, waited: u64| {
            share.note(begin + ms(now), ThreadTimes { ran: ran * 1_000_000, waited: waited * 1_000_000 }, 2);
            thousandths(&share)
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
    fn others_get_less_while_many_want_to_run() {
        let begin = Instant::now();
        let mut share = ProcessorShare { processors: 2, ..ProcessorShare::measured() };
        let mut at = |step: u32, runnable: usize| {
            share.note(begin + step * EVERY, ThreadTimes::default(), runnable);
            thousandths(&share)
        };
        assert_eq!((at(0, 1), at(1, 2)), (1_000, 1_000), "there is a processor for each");
        assert!(at(2, 10) > 500, "a moment is no load");
        assert!((3..20).map(|step| at(step, 8)).last().unwrap() < 260);
        assert!((20..40).map(|step| at(step, 1)).last().unwrap() == 1_000);
    }

    #[test]
    fn the_kernel_tells_how_long_threads_have_run() {
        let before = of_this_process();
        let begun = crate::time::thread_time();
        while crate::time::thread_time() < begun + Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        assert!(before.ran > 0 && of_this_process() != before, "{before:?}");
        assert!(runnable() >= 1);
        let mut fixed = ProcessorShare::fixed(0.5);
        assert_eq!(fixed.at(Instant::now()).to_bits(), 0.5_f64.to_bits());
    }
}
