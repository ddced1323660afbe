//! Whether every room is at work: what systemd's watchdog is fed with, and what readiness waits for.
//!
//! A task that ends is seen by the supervisor; one that hangs is seen here. Everybody is asked, and answers where it waits
//! for its work: the router by a message that has gone through it, and so through the sequencer in front of it; the
//! sensors' task, and the thread that reads the pins behind it; the task of every upstream; HTTP where it accepts
//! connections and where it takes in messages. The journal's thread has to write what is there to be written, unless the
//! disk is known to be at fault, which a restart would not mend.
//!
//! It is the task that answers, not what it has to do with: an upstream that cannot be reached, is slow or refuses is
//! normal, and its task, which tries on, is at work. Only one that never comes back to its waiting is not. And it must
//! have had the chance: while the process stands still or starves, nobody's silence counts ([`Overdue`]), and while
//! publishers are held back for a slow reader, theirs does not.
//!
//! Nobody is woken for this but by the watchdog, and where there is none, nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::exchange::live::Room;
use crate::health::{Overdue, Pulse, PulseTaker, STEP};
use crate::journal::{Journal, Position};

/// A room that could have answered for this long and has not does not feed the watchdog.
const SILENCE: Duration = Duration::from_secs(10);
/// A disk may be busy for longer than that.
const DISK_SILENCE: Duration = Duration::from_secs(60);

/// Watches over the rooms.
pub(crate) struct Rooms {
    /// Those who are asked.
    asked: Vec<(Arc<str>, PulseTaker)>,
    room: Room,
    journal: Journal,
    /// What the journal had to write when it was looked at last, and for how long it has not.
    unwritten: Option<(Position, Overdue)>,
    late: Option<Arc<str>>,
}

impl Rooms {
    /// The journal; `room` says whether publishers are held back.
    pub(crate) fn new(room: Room, journal: Journal) -> Rooms {
        Rooms { asked: Vec::new(), room, journal, unwritten: None, late: None }
    }

    /// One more that is asked; it answers with this.
    pub(crate) fn watch(&mut self, room: impl Into<Arc<str>>) -> Pulse {
        let (taker, pulse) = PulseTaker::new();
        self.asked.push((room.into(), taker));
        pulse
    }

    /// Waits until all who are asked have answered. Safe to cancel.
    pub(crate) async fn have_answered(&mut self) {
        for (_, taker) in &mut self.asked {
            taker.answered().await;
        }
    }

    /// Whether all are at work. Asks those who have to be asked, so that the next call knows.
    pub(crate) fn are_at_work(&mut self) -> bool {
        let now = Instant::now();
        let is_held = self.room.is_held();
        let mut late: Option<Arc<str>> = None;
        // all of them, each time: who is not looked at is not asked again
        for (room, taker) in &mut self.asked {
            if is_held && &**room != ROUTER {
                taker.excuse();
            }
            if taker.silence(now) >= SILENCE {
                late.get_or_insert_with(|| room.clone());
            }
        }
        if self.journal_silence(now) >= DISK_SILENCE {
            late.get_or_insert_with(|| "journal".into());
        }
        if let Some(room) = late.as_deref().filter(|_| self.late != late) {
            warn!(room, "a part of the gateway does not answer: systemd's watchdog is not fed");
        }
        self.late = late;
        self.late.is_none()
    }

    /// Whether somebody has been asked before this moment and has not answered: then it is looked after again soon.
    fn are_waited_for(&self) -> bool {
        self.unwritten.is_some() || self.asked.iter().any(|(_, taker)| taker.is_waited_for())
    }

    /// Names of those that are asked.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> Vec<&str> {
        self.asked.iter().map(|(room, _)| &**room).collect()
    }

    /// How long the journal has not written what it has to, although it could.
    fn journal_silence(&mut self, now: Instant) -> Duration {
        let synced = *self.journal.synced().borrow();
        match &mut self.unwritten {
            Some((position, overdue)) if *position > synced && self.journal.status().failing.is_none() => {
                overdue.look(now)
            }
            _ => {
                let position = self.journal.barrier();
                self.unwritten = (position > synced).then(|| (position, Overdue::from(now)));
                Duration::ZERO
            }
        }
    }
}

/// The room without which nobody else gets on. Watched first, so that it is named first.
pub(crate) const ROUTER: &str = "router";

/// When systemd is to be told that the gateway lives.
pub(crate) struct Feeding {
    interval: Option<Duration>,
    next: Instant,
}

impl Feeding {
    /// As often as this; `None`: never.
    pub(crate) fn new(interval: Option<Duration>) -> Feeding {
        Feeding { interval, next: Instant::now() }
    }

    /// Waits until it is time to look after the rooms. Safe to cancel.
    pub(crate) async fn due(&self) {
        match self.interval {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Looks after them, and says whether systemd is to be told. However late this is, it is done once.
    pub(crate) fn look(&mut self, rooms: &mut Rooms) -> bool {
        let was_waited_for = rooms.are_waited_for();
        let is_well = rooms.are_at_work();
        let interval = self.interval.unwrap_or(STEP);
        // time counts in steps: whoever has not answered is looked after in such
        let pause = if was_waited_for && rooms.are_waited_for() { interval.min(STEP) } else { interval };
        self.next = Instant::now() + pause;
        is_well
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    fn rooms() -> (Rooms, Pulse, Pulse) {
        let mut rooms = Rooms::new(Room::default(), Journal::default());
        let (router, sensors) = (rooms.watch(ROUTER), rooms.watch("sensors"));
        (rooms, router, sensors)
    }

    #[tokio::test(start_paused = true)]
    async fn all_have_answered_when_the_last_one_has() {
        let (mut rooms, router, sensors) = rooms();
        let mut is_ready = async || timeout(Duration::from_secs(60), rooms.have_answered()).await.is_ok();
        sensors.answer();
        assert!(!is_ready().await, "nothing has gone through the router");
        router.answer();
        assert!(is_ready().await);
        rooms.watch("HTTP");
        assert!(timeout(Duration::from_secs(60), rooms.have_answered()).await.is_err());
    }

    /// Looks after the rooms as long as this takes, with this much more before every look; says who is late then.
    async fn look_for(rooms: &mut Rooms, seconds: u64, lateness: Duration) -> Option<Arc<str>> {
        let mut feeding = Feeding::new(Some(Duration::from_secs(15)));
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            feeding.due().await;
            tokio::time::advance(lateness).await;
            feeding.look(rooms);
        }
        rooms.late.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_answer_is_late() {
        let (mut rooms, router, mut sensors) = rooms();
        let answering = tokio::spawn(async move {
            loop {
                sensors.asked().await;
                sensors.answer();
            }
        });
        let begin = Instant::now();
        assert_eq!(look_for(&mut rooms, 60, Duration::ZERO).await.as_deref(), Some(ROUTER));
        router.answer();
        assert!(rooms.are_at_work());
        answering.abort();
        assert!(begin.elapsed() < Duration::from_secs(76), "{:?}", begin.elapsed());
        let _ = answering.await;
        router.answer();
        rooms.asked.remove(0);
        assert_eq!(look_for(&mut rooms, 60, Duration::ZERO).await.as_deref(), Some("sensors"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_late_while_the_process_does_not_run() {
        let (mut rooms, router, sensors) = rooms();
        for pause in [2, 12, 120] {
            let late = look_for(&mut rooms, 600, Duration::from_secs(pause)).await;
            assert_eq!(late, None, "every look comes {pause} s late");
        }
        // stopped between the question and the answer: one look late, and all is well again
        router.answer();
        sensors.answer();
        assert!(rooms.are_at_work());
        tokio::time::advance(Duration::from_secs(600)).await;
        assert!(rooms.are_at_work());
        router.answer();
        sensors.answer();
        assert!(rooms.are_at_work());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_held_back_for_a_reader_is_not_late() {
        let (mut rooms, mut router, _sensors) = rooms();
        tokio::spawn(async move {
            loop {
                router.asked().await;
                router.answer();
            }
        });
        rooms.room.hold_for_test(true);
        assert_eq!(look_for(&mut rooms, 600, Duration::ZERO).await, None);
        rooms.room.hold_for_test(false);
        assert_eq!(look_for(&mut rooms, 60, Duration::ZERO).await.as_deref(), Some("sensors"));
    }
}
