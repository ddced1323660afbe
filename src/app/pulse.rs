//! Checks whether every room is at work, for systemd's watchdog and for readiness.
//!
//! The supervisor sees a task that ends; this module sees a task that hangs. It asks every room a question, which the room
//! answers at the place where it waits for its work. The router answers by a message that has gone through it, and so
//! through the sequencer in front of it. The sensors' task answers together with the thread that reads the pins. The task of
//! every upstream answers, and HTTP answers both where it accepts connections and where it takes messages in. The journal is
//! at work if its thread writes what is to be written, unless the disk is known to be faulty, which a restart would not
//! repair.
//!
//! The answer concerns the task and not its peer: an upstream that cannot be reached, is slow or refuses is normal, and its
//! task keeps trying. Only a task that never returns to its waiting place is faulty. It must have had the chance to answer:
//! silence does not count while the process is stopped or gets no processor time ([`Overdue`]), and the silence of
//! publishers does not count while they are held back for a slow reader.
//!
//! Only the watchdog causes these questions. Without a watchdog no task is woken for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::exchange::live::Room;
use crate::health::{Overdue, Pulse, PulseTaker, STEP};
use crate::journal::{Journal, Position};
use crate::time::beat;

/// The watchdog is not fed if a room could have answered for this long and has not.
const SILENCE: Duration = Duration::from_secs(10);
/// The same for the journal, because a disk may be busy for longer.
const DISK_SILENCE: Duration = Duration::from_secs(60);

/// Asks the rooms and judges their answers.
pub(crate) struct Rooms {
    /// The rooms that are asked, with their names.
    asked: Vec<(Arc<str>, PulseTaker)>,
    room: Room,
    journal: Journal,
    /// The position up to which the journal had to write at the last look, and for how long it has not done so.
    unwritten: Option<(Position, Overdue)>,
    late: Option<Arc<str>>,
}

impl Rooms {
    /// `room` tells whether publishers are held back.
    pub(crate) fn new(room: Room, journal: Journal) -> Rooms {
        Rooms { asked: Vec::new(), room, journal, unwritten: None, late: None }
    }

    /// Adds a room that is asked. The room must answer with the returned [`Pulse`].
    pub(crate) fn watch(&mut self, room: impl Into<Arc<str>>) -> Pulse {
        let (taker, pulse) = PulseTaker::new();
        self.asked.push((room.into(), taker));
        pulse
    }

    /// Waits until all rooms have answered. Safe to cancel.
    pub(crate) async fn have_answered(&mut self) {
        for (_, taker) in &mut self.asked {
            taker.answered().await;
        }
    }

    /// Whether all rooms are at work. Also asks those that have answered, so that the next call knows.
    pub(crate) fn are_at_work(&mut self) -> bool {
        let now = Instant::now();
        let is_held = self.room.is_held();
        let mut late: Option<Arc<str>> = None;
        // always go through all rooms, because a room that is skipped is not asked again
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

    /// Whether a room was asked before and has not answered, so that the next look must come soon.
    fn are_waited_for(&self) -> bool {
        self.unwritten.is_some() || self.asked.iter().any(|(_, taker)| taker.is_waited_for())
    }

    /// The names of the rooms that are asked.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> Vec<&str> {
        self.asked.iter().map(|(room, _)| &**room).collect()
    }

    /// For how long the journal has not written what it has to write, although it could.
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

/// The room on which all others depend. It is watched first, so that it is named first.
pub(crate) const ROUTER: &str = "router";

/// Decides when systemd's watchdog is fed.
pub(crate) struct Feeding {
    interval: Option<Duration>,
    next: Instant,
}

impl Feeding {
    /// Feeds at this interval; `None` means never.
    pub(crate) fn new(interval: Option<Duration>) -> Feeding {
        Feeding { interval, next: Instant::now() }
    }

    /// Waits until the rooms must be looked at. Safe to cancel.
    pub(crate) async fn due(&self) {
        match self.interval {
            Some(_) => sleep_until(self.next).await,
            None => std::future::pending().await,
        }
    }

    /// Looks at the rooms and returns whether to feed the watchdog. A late call is not repeated.
    pub(crate) fn look(&mut self, rooms: &mut Rooms) -> bool {
        let was_waited_for = rooms.are_waited_for();
        let is_well = rooms.are_at_work();
        let interval = self.interval.unwrap_or(STEP);
        // silence is measured in steps, so a room that has not answered is looked at in steps too
        let pause = if was_waited_for && rooms.are_waited_for() { interval.min(STEP) } else { interval };
        self.next = if pause < interval { Instant::now() + pause } else { beat::within(interval) };
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

    /// Looks at the rooms for this many seconds, each time late by `lateness`, and returns the room that is too late.
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
        // stopped between question and answer: one look is late, and then all is well again
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
