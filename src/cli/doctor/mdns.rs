//! Checks whether there is an Avahi daemon that can announce the ports. A missing one is only a warning, not a problem.

use std::fs;

use super::{DoctorFinding, FindingLevel, System};
use crate::config::Settings;

/// The findings, if the settings ask for announcements.
pub(super) fn all(settings: &Settings, system: &System) -> Vec<DoctorFinding> {
    if !settings.mdns.enabled {
        return Vec::new();
    }
    let is_there = |path: &str| system.path(path).exists();
    // its socket belongs to systemd, and connecting to it would start an Avahi that somebody has stopped
    let runs = || {
        let pid = fs::read_to_string(system.path("/run/avahi-daemon/pid")).ok()?;
        let name = fs::read_to_string(system.path(&format!("/proc/{}/comm", pid.trim()))).ok()?;
        Some(name.trim() == "avahi-daemon")
    };
    let note = |what: &str, remedy: &str| DoctorFinding {
        level: FindingLevel::Good,
        what: what.into(),
        remedy: remedy.into(),
    };
    vec![if runs() != Some(true) {
        note(
            "mDNS: Avahi does not run here, so the network is not told of this gateway",
            "`sudo apt install avahi-daemon` if it is to be; it is told as soon as Avahi runs",
        )
    } else if !is_there("/run/dbus/system_bus_socket") {
        note(
            "mDNS: Avahi runs, but there is no system bus to tell it of this gateway",
            "`sudo apt install dbus`, and enable-dbus=yes in /etc/avahi/avahi-daemon.conf; or see docs/install.md for a file",
        )
    } else {
        DoctorFinding::good("mDNS: Avahi runs; `pigateway status` says what it announces")
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn a_host_without_avahi_is_told_what_it_misses_and_is_well() {
        let dir = tempfile::tempdir().unwrap();
        let system = System(dir.path().into());
        let mut settings = Settings::defaults(&Environment::current());
        let said = |settings: &Settings| all(settings, &system).pop().map(|finding| (finding.level, finding.what));
        let (level, what) = said(&settings).unwrap();
        assert!(level == FindingLevel::Good && what.contains("Avahi does not run here"), "{what}");
        let write = |path: &str, text: &str| {
            let path = system.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("/run/avahi-daemon/pid", "17\n");
        assert!(said(&settings).unwrap().1.contains("does not run"), "it has left that behind");
        write("/proc/17/comm", "bash\n");
        assert!(said(&settings).unwrap().1.contains("does not run"), "another has its number");
        write("/proc/17/comm", "avahi-daemon\n");
        assert!(said(&settings).unwrap().1.contains("there is no system bus"));
        write("/run/dbus/system_bus_socket", "");
        assert!(said(&settings).unwrap().1.contains("Avahi runs;"));
        settings.mdns.enabled = false;
        assert_eq!(said(&settings), None);
    }
}
