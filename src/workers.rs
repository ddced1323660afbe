//! The threads that serve connections: one while one is enough, as many as there are cores while it is not.
//!
//! At a home's load, a few messages a second, most of what a message costs is waking threads. tokio wakes a second thread as
//! soon as there are two things to do, though the first would have done both before the second is awake; and what a
//! connection has in one core's cache is fetched from another's. So all threads but one rest while the load is light. They rest
//! inside a task that blocks ([`Crew::rest`]): for tokio they are at work, and it neither wakes them nor gives them anything.
//!
//! - The one that serves sees that it is not enough ([`Shift::parks`], [`worked`]): it has found no time to wait for
//!   [`LONG`], or has waited for little of the last [`LOOK`]. It lets the others in.
//! - Once the whole process has needed little of one core over a [`CALM`], the others rest again.
//!
//! With one core there is one thread, and nothing of this.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

/// A thread that has been at work for this long without a pause needs help: somebody waits.
const LONG: Duration = Duration::from_millis(5);
/// How far a thread looks back to see how busy it is.
const LOOK: Duration = Duration::from_millis(20);
/// Half of the time at work is busy: what comes waits for what is there often enough for another thread to pay.
const BUSY: (u32, u32) = (1, 2);
/// How long the load must have been light for the others to rest.
const CALM: Duration = Duration::from_millis(500);
/// Light is what takes less than a quarter of one core, all threads together: half of what calls the others, so that
/// they do not come and go.
const LIGHT: (u32, u32) = (1, 4);
/// What still runs when the gateway ends is given up after this time: threads that wait for a disk or for pins.
const LEFT_BEHIND: Duration = Duration::from_millis(200);

/// The runtime of the gateway and its threads.
pub struct Workers {
    /// Taken when it ends.
    runtime: Option<Runtime>,
    crew: Arc<Crew>,
}

impl Workers {
    /// Starts threads for this many cores.
    ///
    /// # Errors
    ///
    /// The system refuses threads, timers or descriptors.
    pub fn start(cores: usize) -> io::Result<Workers> {
        Workers::start_by(cores, processor_time)
    }

    /// The same, where this says how much time of processors was taken.
    fn start_by(cores: usize, used: fn() -> Duration) -> io::Result<Workers> {
        let crew = Arc::new(Crew::new(used));
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(cores).thread_name("pigateway-io").enable_all();
        if cores > 1 {
            let starting = crew.clone();
            builder
                .on_thread_start(move || SHIFT.set(Some(Shift::new(starting.clone()))))
                .on_thread_park(|| with_shift(Shift::parks))
                .on_thread_unpark(|| with_shift(Shift::begins));
        }
        let runtime = builder.build()?;
        for _ in 1..cores {
            runtime.spawn(rest_again_and_again(crew.clone()));
        }
        Ok(Workers { runtime: Some(runtime), crew })
    }

    /// Runs this to its end, on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("it is taken only at the end").block_on(future)
    }
}

impl Drop for Workers {
    /// However the gateway ends, nobody may be left resting: the runtime waits for its threads.
    fn drop(&mut self) {
        self.crew.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LEFT_BEHIND);
        }
    }
}

/// Said by whoever has done a piece of work that many may follow: a batch, a turn of a connection. The thread may have been
/// at work for long without a pause, which nobody else sees.
pub fn worked() {
    with_shift(|shift| {
        if !shift.crew.is_open() && shift.begun.elapsed() >= LONG {
            shift.crew.open();
        }
    });
}

thread_local! {
    static SHIFT: RefCell<Option<Shift>> = const { RefCell::new(None) };
}

fn with_shift(act: impl FnOnce(&mut Shift)) {
    SHIFT.with_borrow_mut(|shift| {
        if let Some(shift) = shift {
            act(shift);
        }
    });
}

/// One thread's time.
struct Shift {
    crew: Arc<Crew>,
    /// At work since.
    begun: Instant,
    /// Waiting since, where it waits.
    parked: Instant,
    /// It looks at the time from here on,
    since: Instant,
    /// of which it has waited for this long.
    idle: Duration,
}

impl Shift {
    fn new(crew: Arc<Crew>) -> Shift {
        let now = Instant::now();
        Shift { crew, begun: now, parked: now, since: now, idle: Duration::ZERO }
    }

    /// It begins to wait.
    fn parks(&mut self) {
        self.parked = Instant::now();
        if self.crew.is_open() {
            (self.since, self.idle) = (self.parked, Duration::ZERO);
            self.crew.close_if_calm(self.parked);
            return;
        }
        let time = self.parked - self.since;
        if time >= LOOK {
            if time.saturating_sub(self.idle) * BUSY.1 >= time * BUSY.0 {
                self.crew.open();
            }
            (self.since, self.idle) = (self.parked, Duration::ZERO);
        }
    }

    /// It has something to do again.
    fn begins(&mut self) {
        self.begun = Instant::now();
        self.idle += self.begun - self.parked;
    }
}

/// What the threads share.
struct Crew {
    /// All may work.
    is_open: AtomicBool,
    /// The same, for those who rest, and whether the gateway ends.
    gate: Mutex<Gate>,
    opened: Condvar,
    closed: Notify,
    /// How much time of processors was taken so far.
    used: fn() -> Duration,
}

#[derive(Default)]
struct Gate {
    is_open: bool,
    is_over: bool,
    /// When the load was looked at last, and how much time of processors the process had taken then.
    looked: Option<(Instant, Duration)>,
}

impl Gate {
    fn close(&mut self, crew: &Crew) {
        self.is_open = false;
        crew.is_open.store(false, Ordering::Relaxed);
        crew.closed.notify_waiters();
    }
}

impl Crew {
    fn new(used: fn() -> Duration) -> Crew {
        Crew {
            is_open: AtomicBool::new(false),
            gate: Mutex::default(),
            opened: Condvar::new(),
            closed: Notify::new(),
            used,
        }
    }

    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    fn gate(&self) -> std::sync::MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all work.
    fn open(&self) {
        let mut gate = self.gate();
        gate.is_open = true;
        gate.looked = None;
        self.is_open.store(true, Ordering::Relaxed);
        self.opened.notify_all();
    }

    /// All may work, from now on and for ever.
    fn end(&self) {
        self.gate().is_over = true;
        self.open();
    }

    /// Lets all but one rest if the load has been light.
    fn close_if_calm(&self, now: Instant) {
        // whoever else looks at this moment sees the same
        let Ok(mut gate) = self.gate.try_lock() else { return };
        if gate.is_over || gate.looked.is_some_and(|(before, _)| now.saturating_duration_since(before) < CALM) {
            return;
        }
        let used = (self.used)();
        if let Some((before, used_before)) = gate.looked.replace((now, used))
            && used.saturating_sub(used_before) * LIGHT.1 <= (now - before) * LIGHT.0
        {
            gate.close(self);
        }
    }

    /// Waits until all but one may rest.
    async fn until_closed(&self) {
        let mut closed = std::pin::pin!(self.closed.notified());
        // before looking, so that it is not missed
        closed.as_mut().enable();
        if self.is_open() {
            closed.await;
        }
    }

    /// Keeps this thread from working until all may; says whether they may for ever.
    fn rest(&self) -> bool {
        let mut gate = self.gate();
        while !gate.is_open {
            gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.is_over
    }
}

/// How much time of processors the process has taken so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// The task that one thread rests in.
async fn rest_again_and_again(crew: Arc<Crew>) {
    loop {
        crew.until_closed().await;
        hand_on();
        let is_over = crew.rest();
        with_shift(|shift| *shift = Shift::new(shift.crew.clone()));
        if is_over {
            return;
        }
    }
}

/// Leaves what waits on this thread to others.
fn hand_on() {
    // A task that has let others go first, and the one that was woken last, are in places of their own where no other thread
    // finds them. Whoever is about to block puts them into the thread's queue. tokio then offers this thread's place to another
    // one, which mostly comes too late for it; if not, one more serves until the next rest.
    tokio::task::block_in_place(|| {});
    // What waits in that queue is taken by others only when they look for work, and the one that stays may be waiting
    // already. A task that comes from outside of the runtime makes it look.
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || handle.spawn(async {}));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread::ThreadId;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Longer than anything here takes, on any machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Threads as the gateway starts them, which do not see what other tests of this process take.
    fn start(cores: usize) -> Workers {
        Workers::start_by(cores, || Duration::ZERO).unwrap()
    }

    trait End: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> End for T {}

    async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let waiting = async {
            while !is_so() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
    }

    /// Pairs of tasks that hand bytes to and fro, woken by each other or by the system, and note where they run.
    async fn play(pairs: usize, rounds: usize) -> BTreeSet<String> {
        fn ends(number: usize) -> (Box<dyn End>, Box<dyn End>) {
            if number.is_multiple_of(2) {
                let (one, other) = tokio::io::duplex(1);
                return (Box::new(one), Box::new(other));
            }
            let (one, other) = UnixStream::pair().unwrap();
            (Box::new(one), Box::new(other))
        }
        async fn one(mut end: Box<dyn End>, rounds: usize, begins: bool) -> Vec<ThreadId> {
            let mut noted = Vec::new();
            for _ in 0..rounds {
                if begins {
                    end.write_u8(7).await.unwrap();
                }
                assert_eq!(end.read_u8().await.unwrap(), 7);
                tokio::task::yield_now().await;
                if !begins {
                    end.write_u8(7).await.unwrap();
                }
                let here = std::thread::current().id();
                if !noted.contains(&here) {
                    noted.push(here);
                }
            }
            noted
        }
        let mut players = Vec::new();
        for number in 0..pairs {
            let (here, there) = ends(number);
            players.extend([tokio::spawn(one(here, rounds, true)), tokio::spawn(one(there, rounds, false))]);
        }
        let mut threads = BTreeSet::new();
        for player in players {
            let noted = timeout(PATIENCE, player).await.expect("nobody is left behind").unwrap();
            threads.extend(noted.iter().map(|id| format!("{id:?}")));
        }
        threads
    }

    #[test]
    fn one_thread_serves_while_the_load_is_light() {
        let workers = start(4);
        workers.block_on(async {
            // where the machine is busy with others, they may be called for a while
            let (mut in_a_row, mut before) = (0, BTreeSet::new());
            let begun = Instant::now();
            while in_a_row < 20 {
                assert!(begun.elapsed() < PATIENCE, "others take part: {before:?}");
                let threads = tokio::spawn(play(5, 3)).await.unwrap();
                in_a_row = if threads.len() == 1 && threads == before { in_a_row + 1 } else { 0 };
                before = threads;
                sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn who_is_at_work_for_long_calls_the_others_and_they_rest_again() {
        let workers = start(2);
        workers.block_on(async {
            assert!(!workers.crew.is_open());
            let crew = workers.crew.clone();
            let work = tokio::spawn(async move {
                let begun = Instant::now();
                while !crew.is_open() {
                    assert!(begun.elapsed() < PATIENCE, "nobody was called");
                    worked();
                    tokio::task::yield_now().await;
                }
            });
            work.await.unwrap();
            let crew = workers.crew.clone();
            // light work, which the threads see by: they look whenever they begin to wait
            let light = tokio::spawn(async move { until("they rest again", || !crew.is_open()).await });
            light.await.unwrap();
        });
    }

    #[test]
    fn who_hardly_waits_calls_the_others() {
        let crew = Arc::new(Crew::new(processor_time));
        let mut shift = Shift::new(crew.clone());
        let now = Instant::now();
        // half of the time is waited for, and a bit more
        shift.since = now.checked_sub(Duration::from_secs(10)).unwrap();
        shift.idle = Duration::from_millis(5_100);
        shift.parks();
        assert!(!crew.is_open());
        shift.since = shift.since.checked_sub(Duration::from_secs(10)).unwrap();
        shift.idle = Duration::from_millis(4_900);
        shift.parks();
        assert!(crew.is_open());
    }

    #[test]
    fn nobody_is_left_behind_however_often_they_come_and_go() {
        let workers = start(3);
        workers.block_on(async {
            for round in 0..500 {
                workers.crew.open();
                let playing = tokio::spawn(play(10, 20));
                // on a thread that is none of theirs, so that it comes at any moment
                std::thread::sleep(Duration::from_micros(round % 41 * 25));
                workers.crew.gate().close(&workers.crew);
                playing.await.unwrap();
            }
        });
    }

    #[test]
    fn the_end_does_not_wait_for_who_rests() {
        let workers = start(4);
        let (said, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            drop(workers);
            said.send(()).unwrap();
        });
        ended.recv_timeout(PATIENCE).expect("the runtime ends");
    }
}
