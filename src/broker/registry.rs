//! Which client ids are in use: one connection each [MQTT-3.1.4-3], and the sessions of those who are away.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::session::Session;
use crate::mqtt::{Reason, Will};

/// A session whose client is away.
#[derive(Debug)]
pub struct Parked {
    /// Its state.
    pub session: Session,
    /// When it ends.
    pub expires: Instant,
    /// Its client has gone at this time.
    pub since: Instant,
    /// A will that waits for its delay.
    pub will: Option<(Instant, Will)>,
}

/// Ends a connection from outside.
#[derive(Debug, Default)]
pub struct Kick {
    reason: Mutex<Option<Reason>>,
    notify: Notify,
}

impl Kick {
    /// Ends the connection with this reason; the first one counts.
    pub fn kick(&self, reason: Reason) {
        self.reason.lock().get_or_insert(reason);
        self.notify.notify_one();
    }

    /// Waits for the end. Safe to cancel.
    pub async fn kicked(&self) -> Reason {
        loop {
            if let Some(reason) = *self.reason.lock() {
                return reason;
            }
            self.notify.notified().await;
        }
    }
}

#[derive(Debug)]
enum Slot {
    Active { generation: u64, kick: Arc<Kick>, done: oneshot::Receiver<Parked> },
    Parked(Box<Parked>),
}

/// The right to a client id, for one connection.
#[derive(Debug)]
pub struct Claim {
    client_id: Box<str>,
    generation: u64,
    /// Ends this connection when somebody else claims the id.
    pub kick: Arc<Kick>,
    done: Option<oneshot::Sender<Parked>>,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Box<str>, Slot>,
    generation: u64,
}

/// Client ids in use.
#[derive(Debug, Default)]
pub struct Registry {
    state: Mutex<State>,
    /// Something was parked: the sweeper looks again.
    changed: Notify,
}

impl Registry {
    /// Claims a client id: ends its connection, waits until that has let go, and returns what it left.
    pub async fn claim(&self, client_id: &str) -> (Claim, Option<Parked>) {
        let kick = Arc::new(Kick::default());
        let (done, end) = oneshot::channel();
        let (claim, old) = {
            let mut state = self.state.lock();
            state.generation += 1;
            let generation = state.generation;
            let old = state.slots.insert(client_id.into(), Slot::Active { generation, kick: kick.clone(), done: end });
            (Claim { client_id: client_id.into(), generation, kick, done: Some(done) }, old)
        };
        let parked = match old {
            None => None,
            Some(Slot::Parked(parked)) => Some(*parked),
            Some(Slot::Active { kick, done, .. }) => {
                kick.kick(Reason::SESSION_TAKEN_OVER);
                done.await.ok()
            }
        };
        (claim, parked)
    }

    /// Gives a client id back: what is left of the session waits for its client, or goes to who has claimed the id
    /// meanwhile.
    pub fn release(&self, mut claim: Claim, parked: Option<Parked>) {
        let mut state = self.state.lock();
        let is_ours = matches!(state.slots.get(&claim.client_id),
            Some(Slot::Active { generation, .. }) if *generation == claim.generation);
        match (is_ours, parked) {
            (true, Some(parked)) => {
                state.slots.insert(claim.client_id.clone(), Slot::Parked(Box::new(parked)));
                self.changed.notify_one();
            }
            (true, None) => {
                state.slots.remove(&claim.client_id);
            }
            (false, Some(parked)) => {
                if let Some(done) = claim.done.take() {
                    // the claimant may have gone meanwhile: then the session ends here
                    let _ = done.send(parked);
                }
            }
            (false, None) => {}
        }
    }

    /// The session of a client that was there before the gateway was started.
    pub fn restore(&self, client_id: &str, parked: Parked) {
        self.state.lock().slots.insert(client_id.into(), Slot::Parked(Box::new(parked)));
        self.changed.notify_one();
    }

    /// Ends every connection.
    pub fn kick_all(&self, reason: Reason) {
        for slot in self.state.lock().slots.values() {
            if let Slot::Active { kick, .. } = slot {
                kick.kick(reason);
            }
        }
    }

    /// Connected clients, and sessions whose clients are away.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        let parked = state.slots.values().filter(|slot| matches!(slot, Slot::Parked(_))).count();
        (state.slots.len() - parked, parked)
    }

    /// Takes out sessions that have expired by `now`, and the sessions longest away as long as more than `most` are.
    pub fn expired(&self, now: Instant, most: usize) -> Vec<Parked> {
        let mut state = self.state.lock();
        let mut away: Vec<(Instant, Box<str>)> = Vec::new();
        let mut gone: Vec<Box<str>> = Vec::new();
        for (client_id, slot) in &state.slots {
            match slot {
                Slot::Parked(parked) if parked.expires <= now => gone.push(client_id.clone()),
                Slot::Parked(parked) => away.push((parked.since, client_id.clone())),
                Slot::Active { .. } => {}
            }
        }
        if away.len() > most {
            let excess = away.len() - most;
            away.sort();
            gone.extend(away.into_iter().take(excess).map(|(_, client_id)| client_id));
        }
        gone.into_iter()
            .filter_map(|client_id| match state.slots.remove(&client_id) {
                Some(Slot::Parked(parked)) => Some(*parked),
                _ => None,
            })
            .collect()
    }

    /// Takes out delayed wills that are due by `now`, with the client ids they belong to.
    pub fn due_wills(&self, now: Instant) -> Vec<(Box<str>, Will)> {
        let mut due = Vec::new();
        for (client_id, slot) in &mut self.state.lock().slots {
            if let Slot::Parked(parked) = slot
                && parked.will.as_ref().is_some_and(|(at, _)| *at <= now)
                && let Some((_, will)) = parked.will.take()
            {
                due.push((client_id.clone(), will));
            }
        }
        due
    }

    /// Waits until a parked session or a delayed will is due, or something new is parked.
    pub async fn due(&self) {
        let next = self
            .state
            .lock()
            .slots
            .values()
            .filter_map(|slot| match slot {
                Slot::Parked(parked) => {
                    Some(parked.will.as_ref().map_or(parked.expires, |(at, _)| (*at).min(parked.expires)))
                }
                Slot::Active { .. } => None,
            })
            .min();
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = self.changed.notified() => {}
        }
    }
}

/// When a session that asks for `expiry` seconds ends, given the broker's bound.
pub fn expires(now: Instant, expiry: u32, bound: Duration) -> Instant {
    now + Duration::from_secs(u64::from(expiry)).min(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(client_id: &str, seconds: u64) -> Parked {
        let now = Instant::now();
        let expires = now + Duration::from_secs(seconds);
        Parked { session: Session::new(client_id, 1, None, 0), expires, since: now, will: None }
    }

    #[tokio::test]
    async fn claims_follow_one_another_and_hand_the_session_on() {
        let registry = Arc::new(Registry::default());
        let (first, none) = registry.claim("a").await;
        assert!(none.is_none());
        let second = tokio::spawn({
            let registry = registry.clone();
            async move { registry.claim("a").await }
        });
        assert_eq!(first.kick.kicked().await, Reason::SESSION_TAKEN_OVER);
        registry.release(first, Some(parked("a", 9)));
        let (second, session) = second.await.unwrap();
        assert!(session.is_some());
        registry.release(second, session);
        assert_eq!(registry.counts(), (0, 1));
        let (third, session) = registry.claim("a").await;
        assert!(session.is_some());
        registry.release(third, None);
        assert_eq!(registry.counts(), (0, 0), "nothing is kept of a clean session");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_down_does_not_block_its_client_id() {
        let registry = Registry::default();
        let (first, _) = registry.claim("a").await;
        drop(first);
        let (second, session) = registry.claim("a").await;
        assert!(session.is_none());
        registry.release(second, None);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_expire_and_the_longest_away_give_way() {
        let registry = Registry::default();
        for (client_id, seconds) in [("a", 5), ("b", 50), ("c", 50)] {
            let (claim, _) = registry.claim(client_id).await;
            registry.release(claim, Some(parked(client_id, seconds)));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let begin = Instant::now();
        registry.due().await; // something was parked
        registry.due().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(2));
        let gone: Vec<_> = registry.expired(Instant::now(), 1).into_iter().map(|p| p.session.client_id).collect();
        assert_eq!(gone, ["a".into(), "b".into()] as [Box<str>; 2]);
    }
}
