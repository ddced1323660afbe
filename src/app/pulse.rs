//! Whether every room is at work: what systemd's watchdog is fed with.
//!
//! A task that ends is seen by the supervisor; one that hangs is seen here. The router shows by a message that has gone
//! through it, and so does the sequencer in front of it. The sensors' task, and the thread that reads the pins behind
//! it, are asked; the journal's thread has to write what is there to be written, unless the disk is known to be at
//! fault, which a restart would not mend. An upstream that does not get on is none of it: the gateway is there without.
//!
//! Nobody is woken for this but by the watchdog, and where there is none, nobody.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::journal::{Journal, Position};
use crate::status::{Pulse, PulseTaker};

/// A room that has not answered for this long does not feed the watchdog.
const SILENCE: Duration = Duration::from_secs(15);
/// A disk may be busy for longer than that.
const DISK_SILENCE: Duration = Duration::from_secs(60);

/// Watches over the rooms.
pub struct Rooms {
    router_answered: watch::Receiver<Instant>,
    sensors: PulseTaker,
    journal: Journal,
    /// What the journal had to write when it was looked at last, and since when.
    unwritten: Option<(Position, Instant)>,
    late: Option<&'static str>,
}

impl Rooms {
    /// Rooms that are at work now. The pulse returned is the sensors'.
    pub fn new(router_answered: watch::Receiver<Instant>, journal: Journal) -> (Rooms, Pulse) {
        let (sensors, pulse) = PulseTaker::new();
        (Rooms { router_answered, sensors, journal, unwritten: None, late: None }, pulse)
    }

    /// Whether all are at work. Asks those who have to be asked, so that the next call knows.
    pub fn are_at_work(&mut self) -> bool {
        let now = Instant::now();
        let journal_silence = self.journal_silence(now);
        let router_silence = now.duration_since(*self.router_answered.borrow());
        let late = [
            ("router", router_silence, SILENCE),
            ("sensors", self.sensors.silence(now), SILENCE),
            ("journal", journal_silence, DISK_SILENCE),
        ];
        let late = late.iter().find(|(_, silence, most)| silence >= most).map(|(room, ..)| *room);
        if let Some(room) = late.filter(|_| self.late != late) {
            warn!(room, "a part of the gateway does not answer: systemd's watchdog is not fed");
        }
        self.late = late;
        late.is_none()
    }

    /// How long the journal has not written what it has to.
    fn journal_silence(&mut self, now: Instant) -> Duration {
        let synced = *self.journal.synced().borrow();
        match self.unwritten {
            Some((position, since)) if position > synced && self.journal.status().failing.is_none() => {
                now.duration_since(since)
            }
            _ => {
                let position = self.journal.barrier();
                self.unwritten = (position > synced).then_some((position, now));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_answer_is_late() {
        let (answered, router_answered) = watch::channel(Instant::now());
        let (mut rooms, mut pulse) = Rooms::new(router_answered, Journal::default());
        assert!(rooms.are_at_work());
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(14)).await;
            answered.send_replace(Instant::now());
            pulse.asked().await;
            pulse.answer();
            assert!(rooms.are_at_work());
        }
        tokio::time::advance(Duration::from_secs(15)).await;
        answered.send_replace(Instant::now());
        assert!(!rooms.are_at_work(), "the sensors have not answered");
        pulse.asked().await;
        pulse.answer();
        assert!(rooms.are_at_work());
        tokio::time::advance(Duration::from_secs(15)).await;
        pulse.asked().await;
        pulse.answer();
        assert!(!rooms.are_at_work(), "the router has not answered");
    }
}
