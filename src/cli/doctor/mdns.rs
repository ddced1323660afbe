//! mDNS: whether there is an Avahi that can announce the ports. It is no problem where there is none.

use std::os::unix::net::UnixStream;

use super::{Finding, Level, System};
use crate::config::Settings;

/// What is to be said where ports are to be announced.
pub(super) fn all(settings: &Settings, system: &System) -> Vec<Finding> {
    if !settings.mdns.enabled {
        return Vec::new();
    }
    let answers = |path: &str| UnixStream::connect(system.path(path)).is_ok();
    let note = |what: &str, remedy: &str| Finding { level: Level::Good, what: what.into(), remedy: remedy.into() };
    vec![if !answers("/run/avahi-daemon/socket") {
        note(
            "mDNS: Avahi does not run here, so the network is not told of this gateway",
            "`sudo apt install avahi-daemon` if it is to be; it is told as soon as Avahi runs",
        )
    } else if !answers("/run/dbus/system_bus_socket") {
        note(
            "mDNS: Avahi runs, but there is no system bus to tell it of this gateway",
            "`sudo apt install dbus`, and enable-dbus=yes in /etc/avahi/avahi-daemon.conf; or see docs/install.md for a file",
        )
    } else {
        Finding::good("mDNS: Avahi runs, and announces the open ports")
    }]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::Environment;

    #[test]
    fn a_host_without_avahi_is_told_what_it_misses_and_is_well() {
        let dir = tempfile::tempdir().unwrap();
        let system = System(dir.path().into());
        let mut settings = Settings::defaults(&Environment::current());
        let said = |settings: &Settings| all(settings, &system).pop().map(|finding| (finding.level, finding.what));
        let (level, what) = said(&settings).unwrap();
        assert!(level == Level::Good && what.contains("Avahi does not run here"), "{what}");
        let listen = |path: &str| {
            let path = system.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            UnixListener::bind(path).unwrap()
        };
        let _avahi = listen("/run/avahi-daemon/socket");
        assert!(said(&settings).unwrap().1.contains("there is no system bus"));
        let _bus = listen("/run/dbus/system_bus_socket");
        assert!(said(&settings).unwrap().1.contains("announces the open ports"));
        settings.mdns.enabled = false;
        assert_eq!(said(&settings), None);
    }
}
