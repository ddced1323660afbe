//! Feeds the watchdog and hears signals while something is done that may take long: a file on a disk that does not answer, or
//! the end of thousands of sessions.

use std::pin::pin;

use tokio::time::timeout;

use super::SHUTDOWN;
use super::pulse::{Feeding, Rooms};
use crate::service::notify;
use crate::service::signals::{Signal, Signals};
use crate::supervise::{Exit, Supervisor};

/// Why the gateway ends before the work is done.
pub(super) enum Ending {
    /// A signal has said so.
    Told,
    /// An essential part has ended.
    Failed(Exit),
}

/// What is attended to meanwhile.
pub(super) struct Attention<'a> {
    pub(super) signals: &'a mut Signals,
    pub(super) supervisor: &'a Supervisor,
    pub(super) rooms: &'a mut Rooms,
    pub(super) feeding: &'a mut Feeding,
}

impl Attention<'_> {
    /// Does the work. Returns whether SIGHUP has come meanwhile.
    pub(super) async fn during(&mut self, work: impl Future<Output = ()>) -> Result<bool, Ending> {
        let mut work = pin!(work);
        let mut is_hangup = false;
        loop {
            tokio::select! {
                () = &mut work => return Ok(is_hangup),
                signal = self.signals.next() => match signal {
                    Signal::Hangup => is_hangup = true,
                    Signal::Interrupt | Signal::Terminate => {
                        // what is on disk already acts from the next start on
                        let _ = timeout(SHUTDOWN / 4, work).await;
                        return Err(Ending::Told);
                    }
                },
                exit = self.supervisor.first_exit() => return Err(Ending::Failed(exit)),
                () = self.feeding.due() => if self.feeding.look(self.rooms) {
                    notify::watchdog();
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::signal::unix::{SignalKind, signal};
    use tokio::time::sleep;

    use super::*;
    use crate::exchange::live::Room;
    use crate::journal::Journal;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_and_a_failure_is_noticed_while_something_takes_long() {
        let mut signals = Signals::new(signal(SignalKind::hangup()).unwrap()).unwrap();
        let supervisor = Supervisor::default();
        let mut rooms = Rooms::new(Room::default(), Journal::default());
        let mut feeding = Feeding::new(Some(Duration::from_secs(15)));
        let mut attention =
            Attention { signals: &mut signals, supervisor: &supervisor, rooms: &mut rooms, feeding: &mut feeding };
        assert!(matches!(attention.during(sleep(Duration::from_secs(101))).await, Ok(false)));
        let next = timeout(Duration::from_secs(16), feeding.due());
        assert!(timeout(Duration::ZERO, next).await.is_err(), "it was fed meanwhile, and is not due now");
        supervisor.spawn("part", async { Err::<(), _>(std::io::Error::other("it has failed")) });
        let mut attention =
            Attention { signals: &mut signals, supervisor: &supervisor, rooms: &mut rooms, feeding: &mut feeding };
        let Err(Ending::Failed(exit)) = attention.during(pending()).await else { panic!("the work never ends") };
        assert_eq!(&*exit.name, "part");
    }
}
