//! Checks the machine: versions, clock, power supply and memory.

use std::process::Command;

use super::{DoctorFinding, System};
use crate::time::{Clock, SystemClock};

/// The versions of pigateway, the system and the kernel.
pub(super) fn versions(system: &System) -> Vec<DoctorFinding> {
    let name = rustix::system::uname();
    let os = system.text("/etc/os-release").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?.to_owned();
        Some(line.trim_matches('"').to_owned())
    });
    let os = os.unwrap_or_else(|| "an unknown system".into());
    let (kernel, machine) = (name.release().to_string_lossy(), name.machine().to_string_lossy());
    let model = system.model().unwrap_or_else(|| "not a Raspberry Pi".into());
    vec![
        DoctorFinding::good(format!("pigateway {}, {os}, Linux {kernel}, {machine}", env!("CARGO_PKG_VERSION"))),
        DoctorFinding::good(model),
    ]
}

/// Whether the clock is synchronised, so that times can be trusted.
pub(super) fn clock() -> DoctorFinding {
    if SystemClock.is_synchronised() {
        return DoctorFinding::good("the clock is synchronised");
    }
    DoctorFinding::warning(
        "the clock is not synchronised: messages carry no time until it is",
        "`timedatectl` says why; `sudo apt install systemd-timesyncd` where nothing sets the clock",
    )
}

/// Bits of the firmware's report about power and heat.
const UNDERVOLTAGE_NOW: u32 = 1;
const THROTTLED_NOW: u32 = 1 << 2;
const UNDERVOLTAGE_SINCE_BOOT: u32 = 1 << 16;
const THROTTLED_SINCE_BOOT: u32 = 1 << 18;

/// The state of a Pi's power supply, as the firmware reports it.
pub(super) fn power(system: &System) -> Vec<DoctorFinding> {
    let Some(bits) = throttled(system).or_else(|| alarm(system)) else {
        return match system.model() {
            Some(_) => vec![DoctorFinding::warning(
                "the firmware does not say how the power supply is",
                "install vcgencmd (libraspberrypi-bin)",
            )],
            None => Vec::new(),
        };
    };
    let supply = "use a power supply for this model and a short cable; undervoltage damages cards";
    if bits & UNDERVOLTAGE_NOW != 0 {
        return vec![DoctorFinding::problem("the voltage is too low now", supply)];
    }
    let mut findings = Vec::new();
    if bits & UNDERVOLTAGE_SINCE_BOOT != 0 {
        findings.push(DoctorFinding::warning("the voltage has been too low since boot", supply));
    }
    if bits & (THROTTLED_NOW | THROTTLED_SINCE_BOOT) != 0 {
        findings.push(DoctorFinding::warning("the processor is or was slowed down", "see to cooling and power supply"));
    }
    if findings.is_empty() {
        findings.push(DoctorFinding::good("the power supply has been sufficient since boot"));
    }
    findings
}

fn throttled(system: &System) -> Option<u32> {
    let parse = |text: &str| {
        u32::from_str_radix(text.trim().trim_start_matches("throttled=").trim_start_matches("0x"), 16).ok()
    };
    if let Some(text) = system.text("/sys/devices/platform/soc/soc:firmware/get_throttled") {
        return parse(&text);
    }
    system.model()?;
    let output = Command::new("vcgencmd").arg("get_throttled").output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The kernel's alarm for undervoltage, which newer systems have instead of the firmware's report.
fn alarm(system: &System) -> Option<u32> {
    for entry in std::fs::read_dir(system.path("/sys/class/hwmon")).ok()?.flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        if read("name").is_some_and(|name| name.trim() == "rpi_volt") {
            return read("in0_lcrit_alarm").map(|text| u32::from(text.trim() == "1"));
        }
    }
    None
}

/// Whether the memory limits of the systemd unit are in effect.
pub(super) fn memory(system: &System) -> Vec<DoctorFinding> {
    let mut findings = Vec::new();
    if let Some(text) = system.text("/sys/fs/cgroup/cgroup.controllers") {
        if text.split_whitespace().any(|word| word == "memory") {
            findings.push(DoctorFinding::good("memory is counted per service: the unit's limits hold"));
        } else {
            findings.push(DoctorFinding::warning(
                "memory is not counted per service: MemoryHigh and MemoryMax of the unit do nothing",
                "add cgroup_enable=memory to the line in /boot/firmware/cmdline.txt, and reboot",
            ));
        }
    }
    let available = system.text("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.to_owned();
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    match available.map(|kib| kib >> 10) {
        Some(mebibytes) if mebibytes < 64 => findings.push(DoctorFinding::warning(
            format!("{mebibytes} MiB of memory are available"),
            "stop what is not needed: the gateway takes 10 to 100 MiB",
        )),
        Some(mebibytes) => findings.push(DoctorFinding::good(format!("{mebibytes} MiB of memory are available"))),
        None => {}
    }
    findings
}
