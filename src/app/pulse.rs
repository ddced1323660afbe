//! Whether every room is at work: what systemd's watchdog is fed with, and what readiness waits for.
//!
//! A task that ends is seen by the supervisor; one that hangs is seen here. The router shows by a message that has gone
//! through it, and so does the sequencer in front of it. The journal's thread has to write what is there to be written,
//! unless the disk is known to be at fault, which a restart would not mend. Everybody else is asked, and answers where
//! it waits for its work: the sensors' task, and the thread that reads the pins behind it; the task of every upstream;
//! HTTP where it accepts connections and where it takes in messages.
//!
//! It is the task that answers, not what it has to do with: an upstream that cannot be reached, is slow or refuses is
//! normal, and its task, which tries on, is at work. Only one that never comes back to its waiting is not.
//!
//! Nobody is woken for this but by the watchdog, and where there is none, nobody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::health::{Pulse, PulseTaker};
use crate::journal::{Journal, Position};

/// A room that has not answered for this long does not feed the watchdog.
const SILENCE: Duration = Duration::from_secs(15);
/// A disk may be busy for longer than that.
const DISK_SILENCE: Duration = Duration::from_secs(60);

/// Watches over the rooms.
pub struct Rooms {
    router_answered: watch::Receiver<Instant>,
    /// When nobody had answered yet.
    started: Instant,
    /// Those who are asked.
    asked: Vec<(Arc<str>, PulseTaker)>,
    journal: Journal,
    /// What the journal had to write when it was looked at last, and since when.
    unwritten: Option<(Position, Instant)>,
    late: Option<Arc<str>>,
}

impl Rooms {
    /// Router and journal, at work now.
    pub fn new(router_answered: watch::Receiver<Instant>, journal: Journal) -> Rooms {
        let started = *router_answered.borrow();
        Rooms { router_answered, started, asked: Vec::new(), journal, unwritten: None, late: None }
    }

    /// One more that is asked; it answers with this.
    pub fn watch(&mut self, room: impl Into<Arc<str>>) -> Pulse {
        let (taker, pulse) = PulseTaker::new();
        self.asked.push((room.into(), taker));
        pulse
    }

    /// Waits until a message has gone through the router and all who are asked have answered. Safe to cancel.
    pub async fn have_answered(&mut self) {
        let started = self.started;
        if self.router_answered.wait_for(|answered| *answered > started).await.is_err() {
            // the router has ended, and with it the gateway
            std::future::pending().await
        }
        for (_, taker) in &mut self.asked {
            taker.answered().await;
        }
    }

    /// Whether all are at work. Asks those who have to be asked, so that the next call knows.
    pub fn are_at_work(&mut self) -> bool {
        let now = Instant::now();
        let journal_silence = self.journal_silence(now);
        let router_silence = now.duration_since(*self.router_answered.borrow());
        let mut late: Option<Arc<str>> = None;
        // all of them, each time: who is not looked at is not asked again
        for (room, taker) in &mut self.asked {
            if taker.silence(now) >= SILENCE {
                late.get_or_insert_with(|| room.clone());
            }
        }
        if journal_silence >= DISK_SILENCE {
            late = Some("journal".into());
        }
        // without it nobody else gets on
        if router_silence >= SILENCE {
            late = Some("router".into());
        }
        if let Some(room) = late.as_deref().filter(|_| self.late != late) {
            warn!(room, "a part of the gateway does not answer: systemd's watchdog is not fed");
        }
        self.late = late;
        self.late.is_none()
    }

    /// Names of those that are asked.
    #[cfg(test)]
    pub fn asked(&self) -> Vec<&str> {
        self.asked.iter().map(|(room, _)| &**room).collect()
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
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_have_answered_when_the_last_one_has() {
        let (answered, router_answered) = watch::channel(Instant::now());
        let mut rooms = Rooms::new(router_answered, Journal::default());
        let (sensors, upstream) = (rooms.watch("sensors"), rooms.watch("upstream home"));
        let mut is_ready = async || timeout(Duration::from_secs(60), rooms.have_answered()).await.is_ok();
        sensors.answer();
        upstream.answer();
        assert!(!is_ready().await, "nothing has gone through the router");
        answered.send_replace(Instant::now());
        assert!(is_ready().await);
        rooms.watch("HTTP");
        assert!(timeout(Duration::from_secs(60), rooms.have_answered()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_answer_is_late() {
        let (answered, router_answered) = watch::channel(Instant::now());
        let mut rooms = Rooms::new(router_answered, Journal::default());
        let (mut sensors, mut upstream) = (rooms.watch("sensors"), rooms.watch("upstream home"));
        let answer = async |room: &mut Pulse| {
            room.asked().await;
            room.answer();
        };
        assert!(rooms.are_at_work());
        for _ in 0..10 {
            tokio::time::advance(Duration::from_secs(14)).await;
            answered.send_replace(Instant::now());
            answer(&mut sensors).await;
            answer(&mut upstream).await;
            assert!(rooms.are_at_work());
        }
        tokio::time::advance(Duration::from_secs(15)).await;
        answered.send_replace(Instant::now());
        assert!(!rooms.are_at_work());
        assert_eq!(rooms.late.as_deref(), Some("sensors"));
        answer(&mut sensors).await;
        assert!(!rooms.are_at_work());
        assert_eq!(rooms.late.as_deref(), Some("upstream home"));
        answer(&mut upstream).await;
        assert!(rooms.are_at_work());
        tokio::time::advance(Duration::from_secs(15)).await;
        answer(&mut sensors).await;
        answer(&mut upstream).await;
        assert!(!rooms.are_at_work());
        assert_eq!(rooms.late.as_deref(), Some("router"));
    }
}
