//! Lines of a GPIO chip through the kernel's character device. They serve boards that rppal does not know, and other chips
//! that the configuration names.
//!
//! The chip of a Pi is recognised by its label. The numbers of chips change with the kernel: the chip of a Pi 5 was
//! gpiochip4 and is now gpiochip0.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::chip::Chip;
use gpiocdev::line::{self, EdgeDetection, EdgeKind, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::settings::{Bias, Level};
use super::watcher::{Board, RawEdge, Wanted, Watched};
use crate::status::Fault;

/// The last pin of the 40-pin header.
pub(super) const LAST_OF_HEADER: u8 = 27;

/// Whether the label is that of the chip behind the header of a Pi 1 to 4 or Zero, or of a Pi 5 or later.
fn is_a_pis(label: &str) -> bool {
    label.starts_with("pinctrl-bcm") || label == "pinctrl-rp1"
}

/// Chooses one of these chips, given as path and label: the named one, or without a name the one of a Pi.
fn choose(chips: &[(PathBuf, String)], named: Option<&str>) -> Option<PathBuf> {
    let is_named = |(path, label): &&(PathBuf, String)| match named {
        Some(name) => path == Path::new(name) || path.file_name().is_some_and(|file| file == name) || label == name,
        None => is_a_pis(label),
    };
    // a Pi 5 has chips of both kinds, and its header is connected to this one
    let rp1 = chips.iter().filter(is_named).find(|(_, label)| label == "pinctrl-rp1");
    rp1.or_else(|| chips.iter().find(is_named)).map(|(path, _)| path.clone())
}

/// The GPIO chips in this directory, found by the kernel's name for them. gpiocdev would examine every other device too,
/// which would be most of the system calls at the start on a Pi.
fn chips_in(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let number = |name: &OsString| name.to_str()?.strip_prefix("gpiochip")?.parse::<u32>().ok();
    let mut chips: Vec<(u32, OsString)> = names.filter_map(|name| Some((number(&name)?, name))).collect();
    chips.sort_unstable();
    chips.into_iter().map(|(_, name)| dir.join(name)).collect()
}

/// The chip with this path, name or label; `None` finds the one of a Pi.
pub(super) fn find(named: Option<&str>) -> Option<PathBuf> {
    let chips = chips_in(Path::new("/dev"));
    // the name may be a link to a chip, for example one made by udev
    let leads_to = named.filter(|name| name.starts_with('/')).and_then(|name| std::fs::canonicalize(name).ok());
    let named = leads_to.as_deref().and_then(Path::to_str).or(named);
    let labelled = |path: PathBuf| {
        let label = Chip::from_path(&path).and_then(|chip| chip.info()).map(|info| info.label);
        // a chip that cannot be opened can still be chosen by its name, and the fault then shows the reason
        (path, label.unwrap_or_default())
    };
    choose(&chips.into_iter().map(labelled).collect::<Vec<_>>(), named)
}

/// The chip behind the header, if this is a Pi.
pub(super) fn pi_chip() -> Option<PathBuf> {
    find(None)
}

/// The program that holds the line of a pin, if there is one and the gateway may see it.
pub(super) fn holder(chip: &Path, pin: u8) -> Option<String> {
    let line = Chip::from_path(chip).ok()?.line_info(u32::from(pin)).ok()?;
    line.used.then(|| if line.consumer.is_empty() { "the kernel".to_owned() } else { line.consumer })
}

pub(super) fn taken(pin: u8, holder: &str) -> Fault {
    Fault::new(
        format!("pin {pin} is in use by \"{holder}\""),
        "stop that program, or remove the overlay that uses the pin from /boot/firmware/config.txt and reboot",
    )
}

pub(super) fn absent(pin: u8, model: &str) -> Fault {
    Fault::new(
        format!("pin {pin} does not exist on the header of {model}"),
        "use a BCM number from 2 to 27 (17 is pin 11 of the header)",
    )
}

/// The lines of this chip. Lines beyond the header can be used only if the configuration names the chip, because on a Pi
/// they serve the SD card and the network.
pub(super) fn lines(chip: PathBuf, is_named: bool) -> io::Result<Watched> {
    Watched::start(WatchedLines { chip, is_named })
}

struct WatchedLines {
    chip: PathBuf,
    is_named: bool,
}

impl WatchedLines {
    fn request(&self, wanted: Wanted, bias: Option<line::Bias>) -> gpiocdev::Result<Request> {
        let mut builder = Request::builder();
        builder.on_chip(&self.chip).with_consumer("pigateway").with_line(u32::from(wanted.pin)).as_input();
        if let Some(bias) = bias {
            builder.with_bias(bias);
        }
        builder.with_edge_detection(EdgeDetection::BothEdges).request()
    }
}

/// A line that is watched.
pub(super) struct WatchedLine {
    request: Request,
    offset: u32,
}

impl Board for WatchedLines {
    type Line = WatchedLine;
    type Error = io::Error;

    fn open(&mut self, wanted: Wanted) -> Result<WatchedLine, Fault> {
        if wanted.pin > LAST_OF_HEADER && !self.is_named {
            return Err(absent(wanted.pin, "this board"));
        }
        if let Some(holder) = holder(&self.chip, wanted.pin) {
            return Err(taken(wanted.pin, &holder));
        }
        let bias = match wanted.bias {
            Bias::Off => line::Bias::Disabled,
            Bias::PullUp => line::Bias::PullUp,
            Bias::PullDown => line::Bias::PullDown,
        };
        let mut request = self.request(wanted, Some(bias));
        if request.is_err() && wanted.bias == Bias::Off {
            // a chip without bias resistors has none to switch off
            request = self.request(wanted, None);
        }
        let offset = u32::from(wanted.pin);
        request
            .map(|request| WatchedLine { request, offset })
            .map_err(|error| self.fault(wanted.pin, &io::Error::other(error)))
    }

    fn level(&self, line: &WatchedLine) -> Level {
        match line.request.value(line.offset) {
            Ok(Value::Active) => Level::High,
            _ => Level::Low,
        }
    }

    fn wait(&mut self, lines: &[&WatchedLine], most: Duration) -> Result<Option<(usize, RawEdge)>, io::Error> {
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(lines.len());
        for line in lines {
            polled.push(PollFd::from_borrowed_fd(line.request.as_fd(), PollFlags::IN));
        }
        let most = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) as _ };
        match poll(&mut polled, Some(&most)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // a signal for the process was handled by this thread
            Err(rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Some(index) = polled.iter().position(|fd| !fd.revents().is_empty()) else { return Ok(None) };
        let event = lines[index].request.read_edge_event().map_err(io::Error::other)?;
        let level = if event.kind == EdgeKind::Rising { Level::High } else { Level::Low };
        let monotonic = Duration::from_nanos(event.timestamp_ns);
        Ok(Some((index, RawEdge { level, monotonic, number: event.line_seqno })))
    }

    fn fault(&self, pin: u8, error: &io::Error) -> Fault {
        let chip = self.chip.display();
        match std::fs::File::options().read(true).write(true).open(&self.chip) {
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => Fault::new(
                format!("pin {pin} may not be used: no permission for {chip}"),
                "add the gateway's user to the group gpio (usermod -aG gpio USER) and restart the gateway",
            ),
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Fault::new(
                format!("pin {pin} cannot be used: {chip} is gone"),
                "see that it exists (in a container, hand it in)",
            ),
            _ => Fault::new(
                format!("pin {pin} of {chip} cannot be used: {error}"),
                "it is tried again every 5 seconds; the kernel's log (dmesg) may say more",
            ),
        }
    }

    fn close(&mut self, line: WatchedLine) {
        drop(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_found_by_their_names_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["gpiochip10", "gpiochip2", "gpiochip0", "gpiochip", "gpiochip1x", "tty1", "gpio"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let expected = ["gpiochip0", "gpiochip2", "gpiochip10"].map(|name| dir.path().join(name));
        assert_eq!(chips_in(dir.path()), expected);
        assert!(chips_in(Path::new("/nowhere")).is_empty());
    }

    #[test]
    fn a_pis_chip_is_known_by_its_label_wherever_it_is() {
        let chips = |labels: &[&str]| -> Vec<(PathBuf, String)> {
            let chip = |(number, label): (usize, &&str)| (format!("/dev/gpiochip{number}").into(), (*label).into());
            labels.iter().enumerate().map(chip).collect()
        };
        let pi4 = chips(&["raspberrypi-exp-gpio", "pinctrl-bcm2711"]);
        assert_eq!(choose(&pi4, None), Some("/dev/gpiochip1".into()));
        let pi5 = chips(&["pinctrl-bcm2712", "gpio-brcmstb@107d508500", "pinctrl-rp1"]);
        assert_eq!(choose(&pi5, None), Some("/dev/gpiochip2".into()));
        assert_eq!(choose(&chips(&["pinctrl-rp1", "gpio-brcmstb@107d508500"]), None), Some("/dev/gpiochip0".into()));
        // a laptop's chip has pins for its keyboard and lid
        let laptop = chips(&["INT34C5:00", "mcp23017"]);
        assert_eq!(choose(&laptop, None), None);
        for name in ["mcp23017", "gpiochip1", "/dev/gpiochip1"] {
            assert_eq!(choose(&laptop, Some(name)), Some("/dev/gpiochip1".into()), "{name}");
        }
        assert_eq!(choose(&laptop, Some("mcp23018")), None);
        assert_eq!(choose(&pi4, Some("raspberrypi-exp-gpio")), Some("/dev/gpiochip0".into()));
    }

    #[test]
    fn a_chip_that_is_gone_is_a_fault_with_a_remedy() {
        let mut lines = WatchedLines { chip: "/dev/gpiochip999".into(), is_named: false };
        let wanted = |pin| Wanted { pin, bias: Bias::Off };
        let fault = lines.open(wanted(17)).err().unwrap();
        assert!(fault.problem.contains("pin 17") && fault.problem.contains("/dev/gpiochip999 is gone"), "{fault}");
        let fault = lines.open(wanted(40)).err().unwrap();
        assert!(fault.problem.contains("does not exist on the header"), "{fault}");
    }
}
