//! Checks GPIO: whether this user may use it, and which program holds the pins of the sensors.

use super::{DoctorFinding, System};
use crate::config::Settings;
use crate::sensors::holder;
use crate::sensors::settings::GpioBackend;

/// The findings, if there are sensors.
pub(super) fn all(settings: &Settings, system: &System) -> Vec<DoctorFinding> {
    if settings.sensors.is_empty() || settings.gpio.backend == GpioBackend::Simulated {
        return Vec::new();
    }
    let chips = std::fs::read_dir(system.path("/dev")).into_iter().flatten().flatten();
    let chips: Vec<_> =
        chips.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("gpiochip")).collect();
    if chips.is_empty() {
        return vec![DoctorFinding::warning(
            "there is no GPIO on this machine: sensors cannot be read",
            "run the gateway on a Raspberry Pi; backend = \"simulated\" under [gpio] makes motion up",
        )];
    }
    if chips.iter().all(|path| std::fs::OpenOptions::new().read(true).write(true).open(path).is_err()) {
        return vec![DoctorFinding::problem(
            "this user may not use the GPIO",
            "add it to the group gpio (`sudo usermod -aG gpio USER`) and log in again; the unit has SupplementaryGroups=gpio",
        )];
    }
    let mut findings = vec![DoctorFinding::good("this user may use the GPIO")];
    for sensor in &settings.sensors {
        let (name, pin) = (&sensor.name, sensor.pin);
        findings.push(match holder(pin) {
            None => DoctorFinding::good(format!("sensor {name}: pin {pin} is free")),
            Some(who) if who.contains("pigateway") => {
                DoctorFinding::good(format!("sensor {name}: pin {pin} is in use by a running gateway ({who})"))
            }
            Some(who) => DoctorFinding::problem(
                format!("sensor {name}: pin {pin} is in use by \"{who}\""),
                "stop that program, or remove the overlay that uses the pin from /boot/firmware/config.txt and reboot",
            ),
        });
    }
    findings
}
