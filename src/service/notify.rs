//! Messages to systemd (sd_notify(3)). Without systemd they are dropped.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Reports that the gateway is ready, after its start and after a reload.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that the gateway reads its configuration again. [`ready`] must follow, whether that succeeds or not.
pub(crate) fn reloading() {
    // a unit of Type=notify-reload needs the time of the reload
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

/// Sets the status line for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Reports that the gateway is shutting down.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the watchdog of systemd that the gateway works.
pub(crate) fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// The interval at which [`watchdog`] must be called, which is half of what systemd allows; `None` means never.
pub(crate) fn watchdog_interval() -> Option<Duration> {
    let mut usec = 0;
    sd_notify::watchdog_enabled(false, &mut usec).then(|| Duration::from_micros(usec / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// Runs only in the child process of the test below, because a process must not change its own environment.
    #[test]
    #[ignore = "needs the environment that systemd sets"]
    fn tells() {
        ready("2 sensors");
        reloading();
        watchdog();
        stopping();
        assert_eq!(watchdog_interval(), Some(Duration::from_secs(15)));
    }

    #[test]
    fn systemd_hears_what_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        // WATCHDOG_PID must be the child's process id, which only the child knows
        let child = std::process::Command::new("sh")
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "service::notify::tests::tells", "--ignored"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "30000000")
            .output()
            .unwrap();
        assert!(child.status.success(), "{child:?}");
        let mut buffer = [0; 256];
        let mut heard = || {
            let len = socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..len].to_vec()).unwrap()
        };
        assert_eq!(heard(), "READY=1\nSTATUS=2 sensors\n");
        assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(heard(), "WATCHDOG=1\n");
        assert_eq!(heard(), "STOPPING=1\n");
    }

    #[test]
    fn without_systemd_nothing_happens() {
        status("fine");
        assert_eq!(watchdog_interval(), None);
    }
}
