//! The registry of sessions: those in use, with one connection each [MQTT-3.1.4-3], and those of absent clients.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::away::{Away, Parked};
use crate::access::identity::{Identity, SessionName};
use crate::mqtt::Reason;

/// Ends a connection from outside of its task.
#[derive(Debug, Default)]
pub(crate) struct Kick {
    reason: Mutex<Option<Reason>>,
    notify: Notify,
    /// Whether the session ends with the connection, because its client must not come back for it.
    ends_session: AtomicBool,
}

impl Kick {
    /// Ends the connection with this reason. Only the first call counts.
    pub(crate) fn kick(&self, reason: Reason) {
        self.reason.lock().get_or_insert(reason);
        self.notify.notify_one();
    }

    /// Makes the session end with the connection.
    pub(crate) fn end_session(&self) {
        self.ends_session.store(true, Ordering::Release);
    }

    pub(crate) fn ends_session(&self) -> bool {
        self.ends_session.load(Ordering::Acquire)
    }

    /// Waits until the connection must end. Safe to cancel.
    pub(crate) async fn kicked(&self) -> Reason {
        loop {
            if let Some(reason) = *self.reason.lock() {
                return reason;
            }
            self.notify.notified().await;
        }
    }
}

#[derive(Debug)]
enum SessionSlot {
    /// In use. `arrived` is when its connection arrived; `None` if the broker itself has the session in hand.
    Active {
        generation: u64,
        arrived: Option<Instant>,
        kick: Arc<Kick>,
        done: oneshot::Receiver<Parked>,
    },
    Parked(Box<Parked>),
}

/// The right of one connection, or of the broker itself, to use a session.
#[derive(Debug)]
pub(crate) struct Claim {
    session: Arc<str>,
    generation: u64,
    /// Ends this connection when another one claims the session.
    pub(crate) kick: Arc<Kick>,
    done: Option<oneshot::Sender<Parked>>,
}

#[derive(Debug, Default)]
struct RegistryState {
    slots: HashMap<Arc<str>, SessionSlot>,
    generation: u64,
    away: Away,
    /// The number of absent clients' sessions that the broker has in hand.
    in_hand: usize,
    /// For each client id, the number of users' sessions with it.
    of_users: HashMap<Box<str>, usize>,
}

/// Sessions in use and those of absent clients, by their [names](SessionName).
#[derive(Debug, Default)]
pub(crate) struct Registry {
    state: Mutex<RegistryState>,
    /// Notified when a session is parked, so that the sweeper looks again.
    changed: Notify,
}

impl Registry {
    /// Claims a session. Ends the connection that uses it, waits until that has released it, and returns what it has left.
    /// Returns `None` if a connection that arrived later has the session, because of two connections in quick succession the
    /// newer one may be processed first.
    pub(crate) async fn claim(&self, session: &str, arrived: Instant) -> Option<(Claim, Option<Parked>)> {
        let (claim, old) = {
            let mut state = self.state.lock();
            if let Some(SessionSlot::Active { arrived: Some(later), .. }) = state.slots.get(session)
                && *later > arrived
            {
                return None;
            }
            state.activate(&session.into(), Some(arrived))
        };
        let parked = match old {
            None => None,
            Some(SessionSlot::Parked(parked)) => Some(*parked),
            Some(SessionSlot::Active { kick, done, .. }) => {
                kick.kick(Reason::SESSION_TAKEN_OVER);
                done.await.ok()
            }
        };
        Some((claim, parked))
    }

    /// Releases a session. What is left of it waits for its client, or goes to the connection that has claimed it meanwhile.
    /// If nobody can come back for it, it is returned to be ended, with the claim to be released afterwards. That is so for
    /// the session of a user that was removed, and for the session of a client without a user name whose client id a user
    /// has by now.
    #[must_use]
    pub(crate) fn release(&self, mut claim: Claim, parked: Option<Parked>) -> Option<(Claim, Parked)> {
        let mut state = self.state.lock();
        // under the lock, so that the removal of a user finds either this connection or what it has left
        let parked = match parked {
            Some(parked) if claim.kick.ends_session() => return Some((claim, parked)),
            parked => parked,
        };
        let is_ours = matches!(state.slots.get(&claim.session),
            Some(SessionSlot::Active { generation, .. }) if *generation == claim.generation);
        match (is_ours, parked) {
            (true, Some(parked)) if state.is_outdated(&claim.session) => return Some((claim, parked)),
            (true, Some(parked)) => {
                state.put(&claim.session, SessionSlot::Parked(Box::new(parked)));
                self.changed.notify_one();
            }
            (true, None) => {
                state.remove(&claim.session);
            }
            (false, Some(parked)) => {
                if let Some(done) = claim.done.take() {
                    // the claiming connection may have ended meanwhile; then the session ends here
                    let _ = done.send(parked);
                }
            }
            (false, None) => {}
        }
        None
    }

    /// Adds the session of a client from before the start of the gateway.
    pub(crate) fn restore(&self, session: &str, parked: Parked) {
        self.state.lock().put(&session.into(), SessionSlot::Parked(Box::new(parked)));
        self.changed.notify_one();
    }

    /// Whether the session of another user has this client id.
    pub(crate) fn has_another_user(&self, identity: &Identity) -> bool {
        let state = self.state.lock();
        let of_users = state.of_users.get(&identity.client_id).copied().unwrap_or(0);
        let own = identity.user.is_some() && state.slots.contains_key(&*identity.session());
        of_users > usize::from(own)
    }

    /// Whether a session of this name exists, with its client connected or absent.
    pub(crate) fn knows(&self, session: &str) -> bool {
        self.state.lock().slots.contains_key(session)
    }

    /// Takes out the session of an absent client if it is wanted.
    pub(crate) fn take(&self, session: &str, is_wanted: impl FnOnce(&Parked) -> bool) -> Option<Parked> {
        let mut state = self.state.lock();
        match state.slots.get(session) {
            Some(SessionSlot::Parked(parked)) if is_wanted(parked) => state.take(&session.into()),
            _ => None,
        }
    }

    /// Takes an absent client's session in hand. It must be released afterwards, like all that the broker takes in hand. If
    /// its client comes back before, it waits for that, because a new session of the same name would be ended with the old
    /// one.
    pub(crate) fn take_in_hand(&self, session: &str) -> Option<(Claim, Parked)> {
        self.state.lock().take_in_hand(&session.into())
    }

    /// Takes the sessions of a user's absent clients in hand, all at once so that none of them is found any more. The sessions
    /// of connected clients end with their connections.
    pub(crate) fn take_all_of(&self, user: &str) -> Vec<(Claim, Parked)> {
        let mut state = self.state.lock();
        let is_of_user = |session: &&Arc<str>| SessionName::of(session).user == Some(user);
        let sessions: Vec<Arc<str>> = state.slots.keys().filter(is_of_user).cloned().collect();
        let mut away = Vec::new();
        for session in sessions {
            if let Some(SessionSlot::Active { kick, .. }) = state.slots.get(&session) {
                kick.end_session();
            }
            away.extend(state.take_in_hand(&session));
        }
        away
    }

    /// The users that have sessions, with their clients connected or absent.
    pub(crate) fn users(&self) -> HashSet<Box<str>> {
        let state = self.state.lock();
        state.slots.keys().filter_map(|session| SessionName::of(session).user.map(Into::into)).collect()
    }

    pub(crate) fn kick_all(&self, reason: Reason) {
        for slot in self.state.lock().slots.values() {
            if let SessionSlot::Active { kick, .. } = slot {
                kick.kick(reason);
            }
        }
    }

    /// The numbers of connected clients and of sessions of absent clients.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.state.lock();
        let away = state.away.len() + state.in_hand;
        (state.slots.len() - away, away)
    }

    /// Takes the session in hand of which something is due next, if it is due by `now`: its end or its delayed will. If nothing
    /// is due and more than `most` clients are absent, takes the session that has been without its client for longest, of the
    /// owner who has most. Clients without a user name count as one owner.
    pub(crate) fn take_due(&self, now: Instant, most: usize) -> Option<(Claim, Parked)> {
        let mut state = self.state.lock();
        let session = match state.away.next() {
            Some((at, session)) if *at <= now => session.clone(),
            _ if state.away.len() > most => state.away.to_give_way()?,
            _ => return None,
        };
        state.take_in_hand(&session)
    }

    /// Waits until a parked session or a delayed will is due, or until a session is parked.
    pub(crate) async fn due(&self) {
        let next = self.state.lock().away.next().map(|(at, _)| *at);
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

impl RegistryState {
    /// Claims a session for a connection that has arrived at this time, or for the broker. Also returns its old slot.
    fn activate(&mut self, session: &Arc<str>, arrived: Option<Instant>) -> (Claim, Option<SessionSlot>) {
        let kick = Arc::new(Kick::default());
        let (done, end) = oneshot::channel();
        self.generation += 1;
        let generation = self.generation;
        let old = self.put(session, SessionSlot::Active { generation, arrived, kick: kick.clone(), done: end });
        (Claim { session: session.clone(), generation, kick, done: Some(done) }, old)
    }

    /// Takes the session of an absent client in hand.
    fn take_in_hand(&mut self, session: &Arc<str>) -> Option<(Claim, Parked)> {
        let Some(SessionSlot::Parked(_)) = self.slots.get(session) else { return None };
        match self.activate(session, None) {
            (claim, Some(SessionSlot::Parked(parked))) => Some((claim, *parked)),
            _ => None,
        }
    }

    /// Replaces the slot of a session, and returns the old one.
    fn put(&mut self, session: &Arc<str>, slot: SessionSlot) -> Option<SessionSlot> {
        let old = self.remove(session);
        match &slot {
            SessionSlot::Parked(parked) => self.away.add(session, parked),
            SessionSlot::Active { arrived, .. } => self.in_hand += usize::from(arrived.is_none()),
        }
        let name = SessionName::of(session);
        if name.user.is_some() {
            *self.of_users.entry(name.client_id.into()).or_default() += 1;
        }
        self.slots.insert(session.clone(), slot);
        old
    }

    /// Removes the slot of a session with everything that belongs to it.
    fn remove(&mut self, session: &Arc<str>) -> Option<SessionSlot> {
        let old = self.slots.remove(session)?;
        match &old {
            SessionSlot::Parked(parked) => self.away.remove(session, parked),
            SessionSlot::Active { arrived, .. } => self.in_hand -= usize::from(arrived.is_none()),
        }
        let name = SessionName::of(session);
        if name.user.is_some()
            && let Some(count) = self.of_users.get_mut(name.client_id)
        {
            *count -= 1;
            if *count == 0 {
                self.of_users.remove(name.client_id);
            }
        }
        Some(old)
    }

    /// Takes out the session of an absent client.
    fn take(&mut self, session: &Arc<str>) -> Option<Parked> {
        match self.slots.get(session) {
            Some(SessionSlot::Parked(_)) => match self.remove(session) {
                Some(SessionSlot::Parked(parked)) => Some(*parked),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the session belongs to a client without a user name whose client id a user has by now.
    fn is_outdated(&self, session: &str) -> bool {
        let name = SessionName::of(session);
        name.user.is_none() && !name.is_unowned && self.of_users.contains_key(name.client_id)
    }
}

/// When a session that asks for `expiry` seconds ends, within the broker's limit.
pub(crate) fn expires(now: Instant, expiry: u32, bound: Duration) -> Instant {
    now + Duration::from_secs(u64::from(expiry)).min(bound)
}

#[cfg(test)]
mod tests {
    use super::super::session::Session;
    use super::*;

    fn parked(client_id: &str, seconds: u64) -> Parked {
        let now = Instant::now();
        let expires = now + Duration::from_secs(seconds);
        Parked { session: Session::new(client_id, 1, None, 0), expires, since: now, will: None }
    }

    /// Ends what is due, or more than `most`. Returns the names of these sessions.
    fn ended(registry: &Registry, most: usize) -> Vec<Box<str>> {
        let due = std::iter::from_fn(|| registry.take_due(Instant::now(), most));
        due.map(|(claim, parked)| {
            assert!(registry.release(claim, None).is_none());
            parked.session.owner
        })
        .collect()
    }

    /// A claim that waits for the release of the session.
    async fn claiming(registry: &Arc<Registry>, session: &'static str, arrived: Instant) -> Claiming {
        let registry = registry.clone();
        let next = tokio::spawn(async move { registry.claim(session, arrived).await.unwrap() });
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        next
    }

    type WayIntoHand = fn(&Registry) -> Option<(Claim, Parked)>;
    type Claiming = tokio::task::JoinHandle<(Claim, Option<Parked>)>;

    #[tokio::test]
    async fn who_comes_back_while_the_broker_has_its_session_in_hand_waits() {
        let node = "u/ada\0node";
        let ways: [WayIntoHand; 3] = [
            |registry| registry.take_due(Instant::now(), 0),
            |registry| registry.take_all_of("ada").pop(),
            |registry| registry.take_in_hand("u/ada\0node"),
        ];
        for (take, has_ended) in ways.into_iter().flat_map(|take| [(take, true), (take, false)]) {
            let registry = Arc::new(Registry::default());
            let arrived = Instant::now();
            registry.restore(node, parked(node, 9));
            let (claim, held) = take(&registry).unwrap();
            assert_eq!(registry.counts(), (0, 1), "it is still that of an absent client");
            let next = claiming(&registry, node, arrived).await;
            assert_eq!(registry.counts(), (1, 0));
            assert!(registry.release(claim, (!has_ended).then_some(held)).is_none());
            assert_eq!(next.await.unwrap().1.is_none(), has_ended);
        }
    }

    #[tokio::test]
    async fn claims_follow_one_another_and_hand_the_session_on() {
        let registry = Arc::new(Registry::default());
        let (first, none) = registry.claim("a", Instant::now()).await.unwrap();
        assert!(none.is_none());
        let second = tokio::spawn({
            let registry = registry.clone();
            async move { registry.claim("a", Instant::now()).await.unwrap() }
        });
        assert_eq!(first.kick.kicked().await, Reason::SESSION_TAKEN_OVER);
        assert!(registry.release(first, Some(parked("a", 9))).is_none());
        let (second, session) = second.await.unwrap();
        assert!(session.is_some());
        assert!(registry.release(second, session).is_none());
        assert_eq!(registry.counts(), (0, 1));
        let (third, session) = registry.claim("a", Instant::now()).await.unwrap();
        assert!(session.is_some());
        assert!(registry.release(third, None).is_none());
        assert_eq!(registry.counts(), (0, 0), "nothing is kept of a clean session");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_arrived_earlier_does_not_take_a_session_from_who_has_arrived_later() {
        let registry = Registry::default();
        let earlier = Instant::now();
        let (newer, _) = registry.claim("a", earlier + Duration::from_millis(1)).await.unwrap();
        assert!(registry.claim("a", earlier).await.is_none());
        assert!(registry.claim("b", earlier).await.is_some(), "another session");
        assert!(newer.kick.reason.lock().is_none(), "it stays");
        assert!(registry.release(newer, Some(parked("a", 9))).is_none());
        assert!(registry.claim("a", earlier).await.unwrap().1.is_some(), "nobody has it any more");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_down_does_not_block_its_client_id() {
        let registry = Registry::default();
        let (first, _) = registry.claim("a", Instant::now()).await.unwrap();
        drop(first);
        let (second, session) = registry.claim("a", Instant::now()).await.unwrap();
        assert!(session.is_none());
        assert!(registry.release(second, None).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_expire_and_the_longest_away_give_way() {
        let registry = Registry::default();
        for (client_id, seconds) in [("a", 5), ("b", 50), ("c", 50)] {
            let (claim, _) = registry.claim(client_id, Instant::now()).await.unwrap();
            assert!(registry.release(claim, Some(parked(client_id, seconds))).is_none());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let begin = Instant::now();
        registry.due().await; // a session was parked
        registry.due().await;
        assert_eq!(begin.elapsed(), Duration::from_secs(2));
        let gone = ended(&registry, 1);
        assert_eq!(gone, ["a".into(), "b".into()] as [Box<str>; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_sessions_gives_way_first() {
        let registry = Registry::default();
        let user = "u/ada\0node";
        registry.restore(user, parked(user, 50));
        for number in 0..20 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let guest = SessionName::of_guest(&number.to_string());
            registry.restore(&guest, parked(&guest, 50));
        }
        let gone = ended(&registry, 5);
        let oldest: Vec<_> = (0..16).map(|number| SessionName::of_guest(&number.to_string())).collect();
        assert_eq!(gone, oldest, "the user's, longest away of all, stays");
        assert!(registry.take(user, |_| true).is_some());
    }

    #[tokio::test]
    async fn a_session_without_a_user_ends_when_a_user_has_its_client_id() {
        let registry = Arc::new(Registry::default());
        let (guest, user) = ("g/\0node", "u/ada\0node");
        let (guests, _) = registry.claim(guest, Instant::now()).await.unwrap();
        let (users, none) = registry.claim(user, Instant::now()).await.unwrap();
        assert!(none.is_none(), "it is another session");
        let (guests, _) = registry.release(guests, Some(parked(guest, 9))).expect("nobody can come back for it");
        let next = claiming(&registry, guest, Instant::now()).await;
        assert!(registry.release(guests, None).is_none());
        let (next, none) = next.await.unwrap();
        assert!(none.is_none() && registry.release(next, None).is_none());
        assert!(registry.release(users, Some(parked(user, 9))).is_none());
        assert_eq!(registry.counts(), (0, 1));
    }

    #[tokio::test]
    async fn nobody_comes_back_for_the_sessions_of_a_user_who_was_removed() {
        let registry = Arc::new(Registry::default());
        let (away, connected, other) = ("u/ada\0away", "u/ada\0connected", "u/adam\0away");
        registry.restore(away, parked(away, 9));
        registry.restore(other, parked(other, 9));
        let (claim, _) = registry.claim(connected, Instant::now()).await.unwrap();
        assert_eq!(registry.users(), HashSet::from(["ada".into(), "adam".into()]));
        let taken: Vec<_> = registry.take_all_of("ada").into_iter().map(|(_, parked)| parked.session.owner).collect();
        assert_eq!(taken, [away.into()] as [Box<str>; 1]);
        // the next connection with that name waits until the session has ended, and finds nothing
        let next = claiming(&registry, connected, Instant::now()).await;
        assert_eq!(claim.kick.kicked().await, Reason::SESSION_TAKEN_OVER);
        let (claim, _) = registry.release(claim, Some(parked(connected, 9))).unwrap();
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        assert!(registry.release(claim, None).is_none());
        assert!(next.await.unwrap().1.is_none());
        assert!(registry.take(other, |_| true).is_some());
    }
}
