//! The pins of the Raspberry Pis that rppal knows. This is the only file that uses rppal.
//!
//! rppal sets a pin's function and bias in the registers before it asks the kernel for the line, which would disturb the
//! program that holds the line. So the kernel is asked first whether the line is in use.

use std::time::Duration;

use rppal::gpio::{self, Gpio, InputPin, Trigger};
use rppal::system::{DeviceInfo, Model};
use tracing::debug;

use super::lines::{self, LAST_OF_HEADER, absent, taken};
use super::settings::{Bias, Level};
use super::watcher::{Board, RawEdge, Wanted, Watched};
use crate::status::Fault;

/// Whether this is a Raspberry Pi that rppal knows.
pub(crate) fn is_pi() -> bool {
    DeviceInfo::new().is_ok()
}

pub(crate) fn pins() -> std::io::Result<Watched> {
    Watched::start(Pi)
}

struct Pi;

impl Board for Pi {
    type Line = InputPin;
    type Error = gpio::Error;

    fn open(&mut self, wanted: Wanted) -> Result<InputPin, Fault> {
        if wanted.pin > LAST_OF_HEADER
            && let Ok(device) = DeviceInfo::new()
            && !has_more_than_the_header(device.model())
        {
            return Err(absent(wanted.pin, &device.model().to_string()));
        }
        if let Some(holder) = lines::pi_chip().and_then(|chip| lines::holder(&chip, wanted.pin)) {
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
            Ok(input)
        };
        ready().map_err(|error| describe(wanted.pin, &error))
    }

    fn level(&self, input: &InputPin) -> Level {
        if input.is_high() { Level::High } else { Level::Low }
    }

    fn wait(&mut self, inputs: &[&InputPin], most: Duration) -> Result<Option<(usize, RawEdge)>, gpio::Error> {
        let polled = Gpio::new().and_then(|gpio| {
            Ok(gpio.poll_interrupts(inputs, false, Some(most))?.map(|(input, event)| (input.pin(), event)))
        });
        let (pin, event) = match polled {
            Ok(Some(polled)) => polled,
            Ok(None) => return Ok(None),
            // a signal for the process was handled by this thread
            Err(gpio::Error::Io(error)) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(error),
        };
        let level = if event.trigger == Trigger::RisingEdge { Level::High } else { Level::Low };
        let edge = RawEdge { level, monotonic: event.timestamp, number: event.seqno };
        Ok(inputs.iter().position(|input| input.pin() == pin).map(|index| (index, edge)))
    }

    fn fault(&self, pin: u8, error: &gpio::Error) -> Fault {
        describe(pin, error)
    }

    fn close(&mut self, mut input: InputPin) {
        // dropping the pin alone would leave the kernel's line requested
        if let Err(error) = input.clear_interrupt() {
            debug!(pin = input.pin(), %error, "the line was not given back");
        }
    }
}

/// Whether the pins beyond the header may be used. On other models they serve the SD card and the network, and making one of
/// them an input would crash the Pi.
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

fn describe(pin: u8, error: &gpio::Error) -> Fault {
    let (problem, remedy) = match error {
        gpio::Error::PermissionDenied(path) => (
            format!("pin {pin} may not be used: no permission for {path}"),
            "add the gateway's user to the group gpio (usermod -aG gpio USER) and restart the gateway".to_owned(),
        ),
        gpio::Error::PinNotAvailable(_) => return absent(pin, "this Pi"),
        gpio::Error::UnknownModel => (
            format!("pin {pin} cannot be used: this is not a Raspberry Pi that is known"),
            "set backend = \"auto\" or \"gpiocdev\" in [gpio], which know other boards".to_owned(),
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

/// The number is the same on every Linux for a Pi.
const EBUSY: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_the_pin_and_a_remedy() {
        let busy = std::io::Error::from_raw_os_error(EBUSY);
        for (error, problem, remedy) in [
            (gpio::Error::PermissionDenied("/dev/gpiomem".into()), "/dev/gpiomem", "group gpio"),
            (gpio::Error::PinNotAvailable(17), "does not exist", "BCM"),
            (gpio::Error::UnknownModel, "not a Raspberry Pi", "gpiocdev"),
            (gpio::Error::Io(busy), "in use by", "overlay"),
            (gpio::Error::Io(std::io::ErrorKind::NotFound.into()), "no GPIO device", "/dev/gpiochip0"),
            (gpio::Error::ThreadPanic, "cannot be used", "again"),
        ] {
            let fault = describe(17, &error);
            assert!(fault.problem.contains("pin 17") && fault.problem.contains(problem), "{fault}");
            assert!(fault.remedy.contains(remedy), "{fault}");
        }
    }
}
