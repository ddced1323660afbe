//! The signals that a person or systemd sends.

use std::io;

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

/// Receives the signals from its creation on. They no longer end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// Starts to receive the signals. Needs a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
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
    use rustix::process::{Signal as Number, getpid, kill_process};

    #[tokio::test]
    async fn signals_are_told_apart() {
        let mut signals = Signals::new().unwrap();
        for (number, expected) in
            [(Number::HUP, Signal::Hangup), (Number::TERM, Signal::Terminate), (Number::INT, Signal::Interrupt)]
        {
            kill_process(getpid(), number).unwrap();
            assert_eq!(signals.next().await, expected);
        }
    }
}
