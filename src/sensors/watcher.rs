//! Watches the pins of a board in a thread: follows orders, retries pins that cannot be watched, and converts the kernel's
//! times to the boot clock. [`Board`] defines what a board is.
//!
//! One thread waits for the edges of all pins. It cannot be woken, so it checks for new orders at least once a second, and
//! otherwise runs only when a pin changes.
//!
//! The kernel stamps an edge with `CLOCK_MONOTONIC`, which stands still while the machine is suspended. The offset to the
//! boot clock is taken when the edge is read. The kernel numbers the edges of a line, and drops the oldest when more than a
//! fixed number of them wait: a gap in the numbers is the number of lost edges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::edge::{EdgeSource, PinEvent, PinEventKind, SourceEnded};
use super::settings::{Bias, Level, SensorSettings};
use crate::status::Fault;

/// The longest time until the thread sees a new order.
const POLL: Duration = Duration::from_secs(1);
/// The thread counts as hung if it has not completed a turn for this long, in milliseconds.
const HUNG_MS: u64 = 15_000;
/// The time between two attempts at a pin that cannot be watched.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// Most events on their way from the thread. If they are not taken, the kernel's queues hold the next ones.
const EVENTS: usize = 256;

/// A pin that must be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(crate) pin: u8,
    pub(crate) bias: Bias,
}

/// An edge as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawEdge {
    /// The level after the edge.
    pub(crate) level: Level,
    /// On the monotonic clock.
    pub(crate) monotonic: Duration,
    /// The number among the edges of its line, from 1 on.
    pub(crate) number: u32,
}

/// A board with pins.
pub(super) trait Board: Send + 'static {
    /// A pin that is watched until this is dropped.
    type Line: Send;
    /// The error of waiting.
    type Error;

    /// Begins to watch a pin.
    fn open(&mut self, wanted: Wanted) -> Result<Self::Line, Fault>;

    /// The present level of a pin.
    fn level(&self, line: &Self::Line) -> Level;

    /// Waits for an edge at any of these pins, at most for `most`. Returns the index of the pin and the edge.
    fn wait(&mut self, lines: &[&Self::Line], most: Duration) -> Result<Option<(usize, RawEdge)>, Self::Error>;

    /// What an error of waiting means for a pin. The error does not tell which pin failed.
    fn fault(&self, pin: u8, error: &Self::Error) -> Fault;

    /// Stops watching a pin.
    fn close(&mut self, line: Self::Line);
}

#[derive(Debug, Default)]
struct Orders {
    number: u64,
    wanted: Vec<Wanted>,
}

/// The watched pins of a board. The thread ends within a second after this has been dropped.
pub(crate) struct Watched {
    orders: Arc<Mutex<Orders>>,
    events: mpsc::Receiver<PinEvent>,
    /// When the thread last completed a turn, in milliseconds of the boot clock.
    turned: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watched {
    /// Starts the thread, which watches no pin yet.
    pub(super) fn start<B: Board>(board: B) -> std::io::Result<Watched> {
        let orders = Arc::new(Mutex::new(Orders::default()));
        let (sender, events) = mpsc::channel(EVENTS);
        let turned = Arc::new(AtomicU64::new(now_boot_ms()));
        let mut watcher = Watcher {
            board,
            orders: orders.clone(),
            followed: 0,
            events: sender,
            turned: turned.clone(),
            open: Vec::new(),
            faulty: Vec::new(),
        };
        let thread = thread::Builder::new().name("gpio".into()).spawn(move || watcher.run())?;
        Ok(Watched { orders, events, turned, thread })
    }
}

impl EdgeSource for Watched {
    fn watch(&mut self, sensors: &[SensorSettings]) {
        let wanted = sensors.iter().map(|sensor| Wanted { pin: sensor.pin, bias: sensor.bias }).collect();
        let mut orders = self.orders.lock();
        *orders = Orders { number: orders.number + 1, wanted };
        drop(orders);
        self.thread.thread().unpark();
    }

    fn is_at_work(&self) -> bool {
        now_boot_ms().saturating_sub(self.turned.load(Ordering::Relaxed)) < HUNG_MS
    }

    async fn next(&mut self) -> Result<PinEvent, SourceEnded> {
        self.events.recv().await.ok_or(SourceEnded)
    }
}

struct OpenLine<L> {
    wanted: Wanted,
    line: L,
    last_number: u32,
}

struct Faulty {
    wanted: Wanted,
    fault: Fault,
    retry_at: Instant,
}

/// The state of the thread.
struct Watcher<B: Board> {
    board: B,
    orders: Arc<Mutex<Orders>>,
    /// The number of the last orders that were followed.
    followed: u64,
    events: mpsc::Sender<PinEvent>,
    turned: Arc<AtomicU64>,
    open: Vec<OpenLine<B::Line>>,
    faulty: Vec<Faulty>,
}

impl<B: Board> Watcher<B> {
    fn run(&mut self) {
        while !self.events.is_closed() {
            self.turned.store(now_boot_ms(), Ordering::Relaxed);
            self.follow_orders();
            if self.open.is_empty() {
                thread::park_timeout(POLL);
                continue;
            }
            let lines: Vec<&B::Line> = self.open.iter().map(|open| &open.line).collect();
            match self.board.wait(&lines, POLL) {
                Ok(None) => {}
                Ok(Some((index, edge))) => self.edge(index, edge),
                Err(error) => self.close_all(&error),
            }
        }
        for open in self.open.drain(..) {
            self.board.close(open.line);
        }
    }

    fn send(&self, pin: u8, kind: PinEventKind) {
        // fails only if there is no receiver any more, which `run` notices
        let _ = self.events.blocking_send(PinEvent { pin, kind });
    }

    fn edge(&mut self, index: usize, edge: RawEdge) {
        let Some(open) = self.open.get_mut(index) else { return };
        let pin = open.wanted.pin;
        let lost = lost_before(open.last_number, edge.number);
        open.last_number = edge.number;
        if lost > 0 {
            self.send(pin, PinEventKind::Lost { count: lost });
        }
        self.send(pin, PinEventKind::Edge { level: edge.level, boot_ms: boot_ms(edge.monotonic) });
    }

    fn follow_orders(&mut self) {
        let orders = self.orders.lock();
        let wanted = orders.wanted.clone();
        let is_new = std::mem::replace(&mut self.followed, orders.number) != orders.number;
        drop(orders);
        if is_new {
            let (kept, gone) = self.open.drain(..).partition(|open| wanted.contains(&open.wanted));
            self.open = kept;
            for open in gone {
                self.board.close(open.line);
            }
            for open in &self.open {
                self.send(open.wanted.pin, self.watched(&open.line));
            }
            self.faulty.clear();
        }
        let now = Instant::now();
        for wanted in wanted {
            let waits = self.faulty.iter().any(|faulty| faulty.wanted == wanted && faulty.retry_at > now);
            if waits || self.open.iter().any(|open| open.wanted == wanted) {
                continue;
            }
            match self.board.open(wanted) {
                Ok(line) => {
                    self.faulty.retain(|faulty| faulty.wanted != wanted);
                    self.send(wanted.pin, self.watched(&line));
                    self.open.push(OpenLine { wanted, line, last_number: 0 });
                }
                Err(fault) => self.fault(wanted, fault),
            }
        }
    }

    fn watched(&self, line: &B::Line) -> PinEventKind {
        PinEventKind::Watched { level: self.board.level(line), boot_ms: now_boot_ms() }
    }

    fn close_all(&mut self, error: &B::Error) {
        for open in std::mem::take(&mut self.open) {
            self.board.close(open.line);
            let fault = self.board.fault(open.wanted.pin, error);
            self.fault(open.wanted, fault);
        }
    }

    /// Records a fault, and reports it unless it is the same as before.
    fn fault(&mut self, wanted: Wanted, fault: Fault) {
        let retry_at = Instant::now() + RETRY;
        match self.faulty.iter_mut().find(|faulty| faulty.wanted == wanted) {
            Some(known) if known.fault == fault => known.retry_at = retry_at,
            known => {
                match known {
                    Some(known) => (known.fault, known.retry_at) = (fault.clone(), retry_at),
                    None => self.faulty.push(Faulty { wanted, fault: fault.clone(), retry_at }),
                }
                self.send(wanted.pin, PinEventKind::Fault(fault));
            }
        }
    }
}

/// The number of edges of a line between two that were read, by the kernel's numbers, which start at 1 and wrap around.
fn lost_before(last: u32, number: u32) -> u64 {
    u64::from(number.wrapping_sub(last).wrapping_sub(1))
}

fn nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

pub(super) fn now_boot_ms() -> u64 {
    (nanoseconds(ClockId::Boottime) / 1_000_000) as u64
}

/// The boot clock in milliseconds at a moment of the monotonic clock.
fn boot_ms(monotonic: Duration) -> u64 {
    let suspended = (nanoseconds(ClockId::Boottime) - nanoseconds(ClockId::Monotonic)).max(0);
    ((monotonic.as_nanos() as i128 + suspended) / 1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Topic;

    #[test]
    fn gaps_in_the_kernels_numbers_are_lost_edges() {
        assert_eq!(lost_before(0, 1), 0);
        assert_eq!(lost_before(1, 2), 0);
        assert_eq!(lost_before(1, 5), 3);
        assert_eq!(lost_before(u32::MAX, 0), 0);
        assert_eq!(lost_before(u32::MAX - 1, 1), 2);
    }

    #[test]
    fn a_monotonic_time_is_put_on_the_boot_clock() {
        let now = clock_gettime(ClockId::Monotonic);
        let at = boot_ms(Duration::new(now.tv_sec as u64, now.tv_nsec as u32));
        assert!(now_boot_ms().abs_diff(at) < 1_000);
    }

    /// A board whose pins a test controls.
    struct Bench {
        edges: std::sync::mpsc::Receiver<Result<(u8, RawEdge), String>>,
        is_taken: Arc<Mutex<bool>>,
    }

    impl Board for Bench {
        type Line = u8;
        type Error = String;

        fn open(&mut self, wanted: Wanted) -> Result<u8, Fault> {
            if *self.is_taken.lock() { Err(Fault::new("taken", "wait")) } else { Ok(wanted.pin) }
        }

        fn level(&self, _: &u8) -> Level {
            Level::Low
        }

        fn wait(&mut self, lines: &[&u8], _: Duration) -> Result<Option<(usize, RawEdge)>, String> {
            let Ok(edge) = self.edges.recv_timeout(Duration::from_millis(10)) else { return Ok(None) };
            let (pin, edge) = edge?;
            Ok(lines.iter().position(|line| **line == pin).map(|index| (index, edge)))
        }

        fn fault(&self, pin: u8, error: &String) -> Fault {
            Fault::new(format!("pin {pin}: {error}"), "wait")
        }

        fn close(&mut self, _: u8) {}
    }

    #[tokio::test]
    async fn pins_are_watched_their_faults_told_once_and_gaps_counted() {
        let (edges, coming) = std::sync::mpsc::channel();
        let is_taken = Arc::new(Mutex::new(false));
        let mut pins = Watched::start(Bench { edges: coming, is_taken: is_taken.clone() }).unwrap();
        let sensors = [17, 18].map(|pin| SensorSettings::new("a", pin, Topic::new("a").unwrap()));
        pins.watch(&sensors);
        for pin in [17, 18] {
            let event = pins.next().await.unwrap();
            assert!(matches!(event.kind, PinEventKind::Watched { level: Level::Low, .. }) && event.pin == pin);
        }
        let edge = |number| RawEdge { level: Level::High, monotonic: Duration::from_secs(1), number };
        edges.send(Ok((18, edge(3)))).unwrap();
        assert_eq!(pins.next().await.unwrap(), PinEvent { pin: 18, kind: PinEventKind::Lost { count: 2 } });
        assert!(matches!(pins.next().await.unwrap().kind, PinEventKind::Edge { level: Level::High, .. }));
        *is_taken.lock() = true;
        edges.send(Err("unplugged".into())).unwrap();
        for pin in [17, 18] {
            let fault = Fault::new(format!("pin {pin}: unplugged"), "wait");
            assert_eq!(pins.next().await.unwrap(), PinEvent { pin, kind: PinEventKind::Fault(fault) });
        }
        // another reason is reported, the same reason is not; then the fault ends
        for pin in [17, 18] {
            let kind = PinEventKind::Fault(Fault::new("taken", "wait"));
            assert_eq!(pins.next().await.unwrap(), PinEvent { pin, kind });
        }
        *is_taken.lock() = false;
        for pin in [17, 18] {
            let event = pins.next().await.unwrap();
            assert!(matches!(event.kind, PinEventKind::Watched { .. }) && event.pin == pin, "{event:?}");
        }
    }
}
