//! The Pi's own pins, through rppal; the only file that names it.
//!
//! One thread polls the interrupts of all pins. rppal offers no way to wake it, so it looks for new orders at least
//! once a second, and otherwise runs only when a pin moves.
//!
//! The kernel stamps an edge with `CLOCK_MONOTONIC`, which stands still while a machine is suspended; the offset to
//! the boot clock is taken when the edge is read. It numbers the edges of a line, and drops the oldest when more than
//! 1024 of them wait: a gap in the numbers is that many lost edges.
//!
//! rppal sets a pin's function and bias in the registers before it asks the kernel for the line, which would disturb
//! whoever holds it. So the kernel is asked first who that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gpiocdev::chip::Chip;
use parking_lot::Mutex;
use rppal::gpio::{self, Gpio, InputPin, Trigger};
use rppal::system::{DeviceInfo, Model};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tracing::debug;

use super::edge::{EdgeSource, PinEvent, PinEventKind, SourceEnded};
use super::settings::{Bias, Level, SensorSettings};
use crate::status::Fault;

/// Longest time until a new order is seen.
const POLL: Duration = Duration::from_secs(1);
/// The thread has hung if it has not come around for this long.
const HUNG_MS: u64 = 15_000;
/// Time between two attempts at a pin that cannot be watched.
const RETRY: Duration = Duration::from_secs(5);
/// Events on their way from the thread. When they are not taken, the kernel's own queues take over.
const EVENTS: usize = 256;
/// Drivers of the chips that rppal drives: Pi 1 to 3 and Zero, Pi 4, Pi 5.
const DRIVERS: [&str; 3] = ["pinctrl-bcm2835", "pinctrl-bcm2711", "pinctrl-rp1"];

/// Whether this is a Raspberry Pi that rppal knows.
pub fn is_pi() -> bool {
    DeviceInfo::new().is_ok()
}

/// A pin that is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    pin: u8,
    bias: Bias,
}

#[derive(Debug, Default)]
struct Orders {
    number: u64,
    wanted: Vec<Wanted>,
}

/// The pins of the Pi. The thread ends within a second after this has been dropped.
pub struct Pins {
    orders: Arc<Mutex<Orders>>,
    events: mpsc::Receiver<PinEvent>,
    /// Boot clock, in milliseconds, when the thread came around last.
    turned: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Pins {
    /// Starts the thread, which watches no pin yet.
    pub fn new() -> std::io::Result<Pins> {
        let orders = Arc::new(Mutex::new(Orders::default()));
        let (sender, events) = mpsc::channel(EVENTS);
        let turned = Arc::new(AtomicU64::new(now_boot_ms()));
        let mut watcher = Watcher {
            orders: orders.clone(),
            followed: 0,
            events: sender,
            turned: turned.clone(),
            open: Vec::new(),
            faulty: Vec::new(),
        };
        let thread = thread::Builder::new().name("gpio".into()).spawn(move || watcher.run())?;
        Ok(Pins { orders, events, turned, thread })
    }
}

impl EdgeSource for Pins {
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

struct Open {
    wanted: Wanted,
    input: InputPin,
    last_number: u32,
}

struct Faulty {
    wanted: Wanted,
    fault: Fault,
    retry_at: Instant,
}

/// What the thread has.
struct Watcher {
    orders: Arc<Mutex<Orders>>,
    /// Number of the orders that were followed last.
    followed: u64,
    events: mpsc::Sender<PinEvent>,
    turned: Arc<AtomicU64>,
    open: Vec<Open>,
    faulty: Vec<Faulty>,
}

impl Watcher {
    fn run(&mut self) {
        while !self.events.is_closed() {
            self.turned.store(now_boot_ms(), Ordering::Relaxed);
            self.follow_orders();
            if self.open.is_empty() {
                thread::park_timeout(POLL);
                continue;
            }
            let inputs: Vec<&InputPin> = self.open.iter().map(|open| &open.input).collect();
            let polled = Gpio::new().and_then(|gpio| {
                Ok(gpio.poll_interrupts(&inputs, false, Some(POLL))?.map(|(input, event)| (input.pin(), event)))
            });
            match polled {
                Ok(None) => {}
                Ok(Some((pin, event))) => self.edge(pin, event),
                // a signal for the process happened to be handled by this thread
                Err(gpio::Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                // it is not said which pin failed
                Err(error) => self.close_all(&error),
            }
        }
        for open in self.open.drain(..) {
            close(open);
        }
    }

    fn send(&self, pin: u8, kind: PinEventKind) {
        // fails only when nobody listens any more, which `run` sees
        let _ = self.events.blocking_send(PinEvent { pin, kind });
    }

    fn edge(&mut self, pin: u8, event: gpio::Event) {
        let Some(open) = self.open.iter_mut().find(|open| open.wanted.pin == pin) else { return };
        let lost = lost_before(open.last_number, event.seqno);
        open.last_number = event.seqno;
        if lost > 0 {
            self.send(pin, PinEventKind::Lost { count: lost });
        }
        let level = if event.trigger == Trigger::RisingEdge { Level::High } else { Level::Low };
        self.send(pin, PinEventKind::Edge { level, boot_ms: boot_ms(event.timestamp) });
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
                close(open);
            }
            for open in &self.open {
                self.send(open.wanted.pin, watched(open));
            }
            self.faulty.clear();
        }
        let now = Instant::now();
        for wanted in wanted {
            let waits = self.faulty.iter().any(|faulty| faulty.wanted == wanted && faulty.retry_at > now);
            if waits || self.open.iter().any(|open| open.wanted == wanted) {
                continue;
            }
            match open(wanted) {
                Ok(open) => {
                    self.faulty.retain(|faulty| faulty.wanted != wanted);
                    self.send(wanted.pin, watched(&open));
                    self.open.push(open);
                }
                Err(fault) => self.fault(wanted, fault),
            }
        }
    }

    fn close_all(&mut self, error: &gpio::Error) {
        for open in std::mem::take(&mut self.open) {
            let wanted = open.wanted;
            close(open);
            self.fault(wanted, describe(wanted.pin, error));
        }
    }

    /// Remembers a fault, and tells of it unless that has been done.
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

/// Edges of a line between two that were read, by the kernel's numbers, which start at 1 and wrap.
fn lost_before(last: u32, number: u32) -> u64 {
    u64::from(number.wrapping_sub(last).wrapping_sub(1))
}

/// The last pin of the 40-pin header.
const LAST_OF_HEADER: u8 = 27;

/// Whether the pins beyond the header lead anywhere. On other models they serve the SD card and the network: to make one
/// of those an input would end the Pi's day.
fn has_more_than_the_header(model: Model) -> bool {
    matches!(
        model,
        Model::RaspberryPiBRev2
            | Model::RaspberryPiComputeModule
            | Model::RaspberryPiComputeModule3
            | Model::RaspberryPiComputeModule3Plus
            | Model::RaspberryPiComputeModule4
            | Model::RaspberryPiComputeModule4S
    )
}

fn open(wanted: Wanted) -> Result<Open, Fault> {
    if wanted.pin > LAST_OF_HEADER
        && let Ok(device) = DeviceInfo::new()
        && !has_more_than_the_header(device.model())
    {
        return Err(absent(wanted.pin, &device.model().to_string()));
    }
    if let Some(holder) = holder(wanted.pin) {
        return Err(taken(wanted.pin, &holder));
    }
    let ready = || {
        let pin = Gpio::new()?.get(wanted.pin)?;
        let mut input = match wanted.bias {
            Bias::Off => pin.into_input(),
            Bias::PullUp => pin.into_input_pullup(),
            Bias::PullDown => pin.into_input_pulldown(),
        };
        input.set_interrupt(Trigger::Both, None)?;
        Ok(Open { wanted, input, last_number: 0 })
    };
    ready().map_err(|error| describe(wanted.pin, &error))
}

fn watched(open: &Open) -> PinEventKind {
    let level = if open.input.is_high() { Level::High } else { Level::Low };
    PinEventKind::Watched { level, boot_ms: now_boot_ms() }
}

fn close(mut open: Open) {
    // dropping the pin alone would leave the kernel's line requested
    if let Err(error) = open.input.clear_interrupt() {
        debug!(pin = open.wanted.pin, %error, "the line was not given back");
    }
}

/// Who holds the line of a pin, if somebody does and we may know.
pub fn holder(pin: u8) -> Option<String> {
    let chip = gpiocdev::chip::chips().ok()?.into_iter().find_map(|path| {
        let chip = Chip::from_path(path).ok()?;
        DRIVERS.contains(&chip.info().ok()?.label.as_str()).then_some(chip)
    })?;
    let line = chip.line_info(u32::from(pin)).ok()?;
    line.used.then(|| if line.consumer.is_empty() { "the kernel".to_owned() } else { line.consumer })
}

fn taken(pin: u8, holder: &str) -> Fault {
    Fault {
        problem: format!("pin {pin} is in use by \"{holder}\""),
        remedy: "stop that program, or remove the overlay that uses the pin from /boot/firmware/config.txt and reboot"
            .into(),
    }
}

fn absent(pin: u8, model: &str) -> Fault {
    Fault {
        problem: format!("pin {pin} does not exist on the header of {model}"),
        remedy: "use a BCM number from 2 to 27 (17 is pin 11 of the header)".into(),
    }
}

fn describe(pin: u8, error: &gpio::Error) -> Fault {
    let (problem, remedy) = match error {
        gpio::Error::PermissionDenied(path) => (
            format!("pin {pin} may not be used: no permission for {path}"),
            "add the gateway's user to the group gpio (usermod -aG gpio USER) and restart the gateway".to_owned(),
        ),
        gpio::Error::PinNotAvailable(_) => return absent(pin, "this Pi"),
        gpio::Error::UnknownModel => (
            format!("pin {pin} cannot be used: this is not a Raspberry Pi that is known"),
            "set backend = \"simulated\" in [gpio], or update the gateway".to_owned(),
        ),
        gpio::Error::Io(error) if error.raw_os_error() == Some(EBUSY) => return taken(pin, "another program"),
        gpio::Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound => (
            format!("pin {pin} cannot be used: no GPIO device of a Pi is there ({error})"),
            "see that /dev/gpiochip0 and /dev/gpiomem exist (in a container, hand them in)".to_owned(),
        ),
        error => (
            format!("pin {pin} cannot be used: {error}"),
            "it is tried again every 5 seconds; the kernel's log (dmesg) may say more".to_owned(),
        ),
    };
    Fault { problem, remedy }
}

/// The same on every Linux that a Pi runs.
const EBUSY: i32 = 16;

fn nanoseconds(clock: ClockId) -> i128 {
    let now = clock_gettime(clock);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

fn now_boot_ms() -> u64 {
    (nanoseconds(ClockId::Boottime) / 1_000_000) as u64
}

/// The boot clock, in milliseconds, of a moment of the monotonic clock.
fn boot_ms(monotonic: Duration) -> u64 {
    let suspended = (nanoseconds(ClockId::Boottime) - nanoseconds(ClockId::Monotonic)).max(0);
    ((monotonic.as_nanos() as i128 + suspended) / 1_000_000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn faults_name_the_pin_and_a_remedy() {
        let busy = std::io::Error::from_raw_os_error(EBUSY);
        for (error, problem, remedy) in [
            (gpio::Error::PermissionDenied("/dev/gpiomem".into()), "/dev/gpiomem", "group gpio"),
            (gpio::Error::PinNotAvailable(17), "does not exist", "BCM"),
            (gpio::Error::UnknownModel, "not a Raspberry Pi", "simulated"),
            (gpio::Error::Io(busy), "in use by", "overlay"),
            (gpio::Error::Io(std::io::ErrorKind::NotFound.into()), "no GPIO device", "/dev/gpiochip0"),
            (gpio::Error::ThreadPanic, "cannot be used", "again"),
        ] {
            let fault = describe(17, &error);
            assert!(fault.problem.contains("pin 17") && fault.problem.contains(problem), "{fault}");
            assert!(fault.remedy.contains(remedy), "{fault}");
        }
    }

    #[tokio::test]
    async fn a_pin_that_cannot_be_watched_is_a_fault_told_once() {
        if is_pi() {
            return; // the pins of a Pi may be in use for something
        }
        let mut pins = Pins::new().unwrap();
        let sensor = SensorSettings::new("a", 17, crate::message::Topic::new("a").unwrap());
        pins.watch(std::slice::from_ref(&sensor));
        let event = pins.next().await.unwrap();
        assert!(matches!(event, PinEvent { pin: 17, kind: PinEventKind::Fault(_) }), "{event:?}");
        let again = tokio::time::timeout(Duration::from_millis(1_500), pins.next()).await;
        assert!(again.is_err(), "{again:?}");
    }
}
