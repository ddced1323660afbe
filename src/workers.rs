//! The threads that serve connections: one while one is enough, and up to one for each core while it is not.
//!
//! At the load of a home, which is a few messages a second, most of the cost of a message is waking threads. tokio wakes a
//! second thread as soon as there are two things to do, although the first thread would have done both before the second is
//! awake. The second thread also has to fetch the connection's data from the cache of another core. So all threads but one
//! rest while the load is light. They rest inside a blocking task ([`Crew::rest`]): tokio counts them as busy, so it neither
//! wakes them nor gives them work.
//!
//! - The serving thread notices when it is not enough ([`Shift::parks`], [`worked`]): it has worked for [`LONG`] without a
//!   pause, or has been busy for most of the last [`LOOK`]. Then it lets the other threads work.
//! - Once the whole process has needed little of one core during a [`CALM`], the others rest again.
//! - A thread that lies down may lose its place to another one, which then serves beside the first. When two threads have served
//!   in turn for a while ([`Crew::served`]), all are called, and lie down again.
//!
//! With one core there is one thread, and all of this is switched off.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

/// A thread that has worked for this long without a pause needs help, because other work is waiting.
const LONG: Duration = Duration::from_millis(5);
/// The period over which a thread measures how busy it is.
const LOOK: Duration = Duration::from_millis(20);
/// The part of that period from which a thread counts as busy. At one half, new work waits for other work often enough for
/// another thread to be worth its cost.
const BUSY: (u32, u32) = (1, 2);
/// How long the load must have been light before the other threads rest.
const CALM: Duration = Duration::from_millis(500);
/// A load is light if all threads together use less than this part of one core. It is half of what makes the others work, so
/// that they do not start and stop all the time.
const LIGHT: (u32, u32) = (1, 4);
/// The number of times that another thread than before serves, from which on two of them serve. When the others lie
/// down, it may be another one once or twice.
const TURNS: u32 = 4;
/// The number of turns of tasks after which a thread that always has something to do looks at the sockets. With tokio's own
/// number, 61, as many clients that send without a pause as there are threads make all others wait for 61 of their turns.
const LOOKS_EVERY: u32 = 5;
/// How long the end of the gateway waits for threads that are still busy, for example with a disk or with pins.
const LEFT_BEHIND: Duration = Duration::from_millis(200);

/// The runtime of the gateway with its threads.
pub struct Workers {
    /// `None` once it has been shut down.
    runtime: Option<Runtime>,
    crew: Arc<Crew>,
}

impl Workers {
    /// Starts threads for this many cores.
    ///
    /// # Errors
    ///
    /// The system may refuse threads, timers or descriptors.
    pub fn start(cores: usize) -> io::Result<Workers> {
        Workers::start_by(cores, processor_time)
    }

    /// The same, with a function that returns the processor time used so far.
    fn start_by(cores: usize, used: fn() -> Duration) -> io::Result<Workers> {
        let crew = Arc::new(Crew::new(used));
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(cores).thread_name("pigateway-io").event_interval(LOOKS_EVERY).enable_all();
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

    /// Runs a future to its end on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("it is taken only at the end").block_on(future)
    }
}

impl Drop for Workers {
    /// Wakes resting threads, because the runtime waits for its threads when it ends.
    fn drop(&mut self) {
        self.crew.end();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LEFT_BEHIND);
        }
    }
}

/// To be called after a piece of work that may be followed by many more, such as a batch or one turn of a connection. The
/// thread may have worked for long without a pause, and only this call can notice that.
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

/// Measures how busy one thread is.
struct Shift {
    crew: Arc<Crew>,
    /// When the thread last began to work.
    begun: Instant,
    /// When the thread last began to wait.
    parked: Instant,
    /// The start of the measured period.
    since: Instant,
    /// How long the thread has waited in this period.
    idle: Duration,
}

impl Shift {
    fn new(crew: Arc<Crew>) -> Shift {
        let now = Instant::now();
        Shift { crew, begun: now, parked: now, since: now, idle: Duration::ZERO }
    }

    /// The thread begins to wait.
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
            } else {
                self.crew.served();
            }
            (self.since, self.idle) = (self.parked, Duration::ZERO);
        }
    }

    /// The thread begins to work again.
    fn begins(&mut self) {
        self.begun = Instant::now();
        self.idle += self.begun - self.parked;
    }
}

/// What the threads share.
struct Crew {
    /// Whether all threads may work.
    is_open: AtomicBool,
    /// The same for resting threads, which wait for it, and whether the gateway ends.
    gate: Mutex<Gate>,
    opened: Condvar,
    closed: Notify,
    /// The processor time used so far.
    used: fn() -> Duration,
}

#[derive(Default)]
struct Gate {
    is_open: bool,
    is_over: bool,
    /// When the load was last measured, and the processor time that the process had used by then.
    looked: Option<(Instant, Duration)>,
    /// The thread that served last while the others rested, and how often it was another one than before.
    served: Option<ThreadId>,
    turns: u32,
}

impl Gate {
    fn close(&mut self, crew: &Crew) {
        self.is_open = false;
        (self.served, self.turns) = (None, 0);
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

    /// Lets all threads work.
    fn open(&self) {
        let mut gate = self.gate();
        gate.is_open = true;
        gate.looked = None;
        self.is_open.store(true, Ordering::Relaxed);
        self.opened.notify_all();
    }

    /// Notes that this thread serves, and calls all threads if it does so in turn with another one.
    fn served(&self) {
        // if another thread holds the lock, its turn is noted
        let Ok(mut gate) = self.gate.try_lock() else { return };
        let this = thread::current().id();
        if gate.served.replace(this).is_some_and(|before| before != this) {
            gate.turns += 1;
        }
        if gate.turns >= TURNS && !gate.is_open {
            drop(gate);
            self.open();
        }
    }

    /// Lets all threads work from now on, because the gateway ends.
    fn end(&self) {
        self.gate().is_over = true;
        self.open();
    }

    /// Sends all threads but one to rest if the load has been light.
    fn close_if_calm(&self, now: Instant) {
        // another thread that holds the lock is doing the same
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

    /// Waits until all threads but one may rest.
    async fn until_closed(&self) {
        let mut closed = std::pin::pin!(self.closed.notified());
        // enabled before the state is read, so that a change in between is not missed
        closed.as_mut().enable();
        if self.is_open() {
            closed.await;
        }
    }

    /// Blocks this thread until all threads may work. Returns whether the gateway ends.
    fn rest(&self) -> bool {
        let mut gate = self.gate();
        while !gate.is_open {
            gate = self.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.is_over
    }
}

/// The processor time that the process has used so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// The task in which one thread rests.
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

/// Leaves the work that is queued on this thread to other threads.
fn hand_on() {
    // tokio keeps a task that has yielded, and the task that was woken last, in places where no other thread finds them. A
    // thread that is about to block moves them to its queue. tokio then offers this thread's place to another one, which
    // mostly comes too late; otherwise one more thread serves until the next rest.
    tokio::task::block_in_place(|| {});
    // Other threads take work from that queue only when they look for work, and the remaining thread may be waiting already.
    // A task from outside of the runtime makes it look.
    let handle = Handle::current();
    tokio::task::spawn_blocking(move || handle.spawn(async {}));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// Longer than any step of these tests takes on any machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Threads like the gateway's. They ignore the processor time that other tests of this process use.
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

    /// Pairs of tasks that pass bytes back and forth, woken by each other or by the system. Returns the threads on which
    /// they ran.
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
            // on a machine that is busy with other work the threads may be called for a while
            let (mut in_a_row, mut before) = (0, BTreeSet::new());
            let begun = Instant::now();
            while in_a_row < 5 {
                assert!(begun.elapsed() < PATIENCE, "others take part: {before:?}");
                let threads = tokio::spawn(play(5, 3)).await.unwrap();
                in_a_row = if threads.len() == 1 && threads == before { in_a_row + 1 } else { 0 };
                before = threads;
                sleep(Duration::from_millis(1)).await;
            }
        });
    }

    #[test]
    fn two_threads_that_serve_in_turn_call_all_to_lie_down_again() {
        let crew = Arc::new(Crew::new(|| Duration::ZERO));
        let serve = || thread::scope(|scope| scope.spawn(|| crew.served()).join().unwrap());
        (0..100).for_each(|_| crew.served());
        assert!(!crew.is_open(), "the same thread");
        serve();
        crew.served();
        assert!(!crew.is_open(), "threads that lie down");
        serve();
        crew.served();
        assert!(crew.is_open());
        // they lie down when the load was light for a while, and the count begins anew
        let begun = Instant::now();
        crew.close_if_calm(begun);
        crew.close_if_calm(begun + CALM);
        assert!(!crew.is_open());
        serve();
        assert!(!crew.is_open());
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
            // light work, because the threads look at the load only when they begin to wait
            let light = tokio::spawn(async move { until("they rest again", || !crew.is_open()).await });
            light.await.unwrap();
        });
    }

    #[test]
    fn who_hardly_waits_calls_the_others() {
        let crew = Arc::new(Crew::new(processor_time));
        let mut shift = Shift::new(crew.clone());
        let now = Instant::now();
        // slightly more than half of the time was spent waiting
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
                // on a thread outside of the runtime, so that the call comes at any moment
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
