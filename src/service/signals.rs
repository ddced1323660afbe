//! The signals that a person or systemd sends.

use std::io;

use rustix::process::Signal as Number;
use tokio::runtime::Builder;
use tokio::signal::unix::{self, SignalKind};

/// A signal, by its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT, from Ctrl-C: stop.
    Interrupt,
    /// SIGTERM, from systemd: stop.
    Terminate,
    /// SIGHUP: read the configuration again.
    Hangup,
}

/// Receives SIGHUP from the very beginning of the program, so that a request to read the configuration again does not end a
/// gateway that is still starting. It is answered when the gateway runs. The other signals still end the start.
pub(crate) fn early_hangup() -> io::Result<unix::Signal> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _guard = runtime.enter();
    unix::signal(SignalKind::hangup())
}

/// Receives the signals from its creation on. They no longer end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    /// Not waited for: a file that must not become as large (`ulimit -f`) is an error of its write, and not the end.
    _too_large: unix::Signal,
}

impl Signals {
    /// Starts to receive the signals; SIGHUP has been received since [`early_hangup`]. Needs a runtime.
    pub(crate) fn new(hangup: unix::Signal) -> io::Result<Signals> {
        Ok(Signals {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup,
            _too_large: unix::signal(SignalKind::from_raw(Number::XFSZ.as_raw()))?,
        })
    }

    /// Waits for the next signal. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.hangup.recv() => Signal::Hangup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{getpid, kill_process};

    /// One test, because the signals of another would come here too.
    #[test]
    fn signals_are_told_apart_and_an_early_hangup_is_answered_later() {
        let hangup = early_hangup().unwrap();
        kill_process(getpid(), Number::HUP).unwrap();
        Builder::new_current_thread().enable_io().build().unwrap().block_on(async {
            let mut signals = Signals::new(hangup).unwrap();
            assert_eq!(signals.next().await, Signal::Hangup);
            for (number, expected) in
                [(Number::HUP, Signal::Hangup), (Number::TERM, Signal::Terminate), (Number::INT, Signal::Interrupt)]
            {
                kill_process(getpid(), number).unwrap();
                assert_eq!(signals.next().await, expected);
            }
        });
    }
}
