//! Places of those who wait for the check of a password.
//!
//! A place costs a socket, so there are only so many. Users at familiar addresses have places of their own, and so have all
//! others, and this host has a few more of either. When there is none for a newcomer, one of whoever has most gives way: of
//! the user with most, if it has at least two more than the newcomer's user, and otherwise of the network with most, if it
//! has at least two more than the newcomer's. Strangers may give any name, so only their networks count. Of those who give
//! way, the last to come goes, because the others will have their turns sooner.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::guesses::network;

/// Places of users at familiar addresses.
const FAMILIAR: usize = 448;
/// Places of all others.
const STRANGE: usize = 256;
/// All of them.
pub(crate) const MOST: usize = FAMILIAR + STRANGE;
/// Places of either kind that this host has in addition.
const OF_THIS_HOST: usize = 64;

/// Those who wait for the check of a password.
#[derive(Debug)]
pub(super) struct PasswordQueue {
    key: RandomState,
    familiar: Mutex<Crowd>,
    strange: Mutex<Crowd>,
}

impl Default for PasswordQueue {
    fn default() -> Self {
        let crowd = |most| Mutex::new(Crowd { most, next: 0, waiting: VecDeque::new() });
        PasswordQueue { key: RandomState::new(), familiar: crowd(FAMILIAR), strange: crowd(STRANGE) }
    }
}

/// Places that compete with one another.
#[derive(Debug)]
struct Crowd {
    most: usize,
    next: u64,
    /// In the order of arrival.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    /// A hash of the user's name; the same for all strangers.
    user: u64,
    network: IpAddr,
    cut: CancellationToken,
}

/// A place among those who wait, given back when dropped.
#[derive(Debug)]
pub(super) struct QueuePlace<'a> {
    crowd: &'a Mutex<Crowd>,
    number: u64,
    cut: CancellationToken,
}

impl PasswordQueue {
    /// Takes a place, if necessary from somebody who has to give way; `None` if nobody has.
    pub(super) fn enter(&self, user: &str, from: IpAddr, is_familiar: bool) -> Option<QueuePlace<'_>> {
        let crowd = if is_familiar { &self.familiar } else { &self.strange };
        let user = if is_familiar { self.key.hash_one(user) } else { 0 };
        let cut = CancellationToken::new();
        let mut state = crowd.lock();
        let number = state.next;
        state.next += 1;
        let gone = state.enter(Waiter { number, user, network: network(from), cut: cut.clone() })?;
        drop(state);
        if let Some(gone) = gone {
            gone.cut.cancel();
        }
        Some(QueuePlace { crowd, number, cut })
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        [&self.familiar, &self.strange].iter().all(|crowd| crowd.lock().waiting.is_empty())
    }
}

impl Waiter {
    fn is_local(&self) -> bool {
        self.network.is_loopback()
    }
}

impl Crowd {
    /// Adds this one and returns who has given way, if somebody had to; `None` if there is no place.
    fn enter(&mut self, new: Waiter) -> Option<Option<Waiter>> {
        let local = self.waiting.iter().filter(|waiter| waiter.is_local()).count();
        let is_free = new.is_local() && local < OF_THIS_HOST;
        let has_room = is_free || self.waiting.len() - local.min(OF_THIS_HOST) < self.most;
        let gone = if has_room { None } else { Some(self.victim(&new, local <= OF_THIS_HOST)?) };
        self.waiting.push_back(new);
        Some(gone.and_then(|number| self.remove(number)))
    }

    /// Chooses who gives way to a newcomer.
    fn victim(&self, new: &Waiter, is_host_spared: bool) -> Option<u64> {
        let waiting = || self.waiting.iter().filter(|waiter| !(is_host_spared && waiter.is_local()));
        let user = largest(waiting().map(|waiter| waiter.user), Some(new.user));
        let of_user = || waiting().filter(|waiter| user.is_none_or(|user| waiter.user == user));
        let rival = if user.is_some() { None } else { Some(new.network) };
        let network = largest(of_user().map(|waiter| waiter.network), rival)?;
        of_user().rfind(|waiter| waiter.network == network).map(|waiter| waiter.number)
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let at = self.waiting.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
        self.waiting.remove(at)
    }
}

/// The most frequent of these, if it occurs at least twice more often than its rival.
fn largest<K: Copy + Eq + Hash>(all: impl Iterator<Item = K>, rival: Option<K>) -> Option<K> {
    let mut counts: HashMap<K, usize> = HashMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    let enough = rival.map_or(1, |rival| counts.get(&rival).copied().unwrap_or(0) + 2);
    counts.into_iter().filter(|(_, count)| *count >= enough).max_by_key(|(_, count)| *count).map(|(one, _)| one)
}

impl QueuePlace<'_> {
    /// Completes when somebody else has been given the place.
    pub(super) async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.crowd.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill<'a>(queue: &'a PasswordQueue, users: &[&str], hosts: &[u8], is_familiar: bool) -> Vec<QueuePlace<'a>> {
        let places = (0..2 * MOST).map(|number| {
            let host = hosts[number % hosts.len()];
            queue.enter(users[number / hosts.len() % users.len()], IpAddr::from([192, 0, 2, host]), is_familiar)
        });
        places.flatten().collect()
    }

    fn cut(places: &[QueuePlace<'_>]) -> usize {
        places.iter().filter(|place| place.cut.is_cancelled()).count()
    }

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));

    #[test]
    fn the_user_with_most_gives_way_whatever_the_addresses() {
        let queue = PasswordQueue::default();
        let bobs = fill(&queue, &["bob"], &[1, 2, 3, 4, 5], true);
        assert_eq!((bobs.len(), cut(&bobs)), (FAMILIAR, 0), "nobody gives way to more of the same user");
        let adas: Vec<_> = (0..FAMILIAR / 2).map(|_| queue.enter("ada", HOME, true).unwrap()).collect();
        assert_eq!(cut(&bobs), FAMILIAR / 2);
        assert!(!bobs[0].cut.is_cancelled(), "the last to come goes");
        assert!(queue.enter("ada", HOME, true).is_none(), "both have the same");
        assert!(queue.enter("cyd", HOME, true).is_some());
        assert_eq!(cut(&bobs) + cut(&adas), FAMILIAR / 2 + 1);
        drop((bobs, adas));
        assert!(queue.is_empty());
    }

    #[test]
    fn the_network_with_most_gives_way_whatever_the_users() {
        let queue = PasswordQueue::default();
        // somebody guesses for everybody at an address where all have signed in, ada too
        let guesses = fill(&queue, &["ada", "bob", "cyd", "dan"], &[1], true);
        assert_eq!(guesses.len(), FAMILIAR);
        let at_home: Vec<_> = (0..20).map(|_| queue.enter("ada", HOME, true).unwrap()).collect();
        assert_eq!((cut(&guesses), cut(&at_home)), (20, 0));
        let strangers = fill(&queue, &["ada"], &[1, 2, 3, 4, 5], false);
        assert_eq!(strangers.len(), STRANGE);
        assert!(queue.enter("ada", HOME, false).is_some() && cut(&strangers) == 1);
        assert_eq!((cut(&guesses), cut(&at_home)), (20, 0), "strangers take nothing from users at home");
    }

    #[test]
    fn this_host_has_places_of_its_own() {
        let queue = PasswordQueue::default();
        let each =
            |number: usize| queue.enter("x", IpAddr::from([10, 0, (number / 250) as u8, (number % 250) as u8]), false);
        let all: Vec<_> = (0..2 * MOST).filter_map(each).collect();
        assert_eq!(all.len(), STRANGE, "each has one");
        let here: Vec<_> =
            (0..2 * MOST).filter_map(|_| queue.enter("x", IpAddr::from([127, 0, 0, 1]), false)).collect();
        assert_eq!((here.len(), cut(&all)), (OF_THIS_HOST, 0));
        drop(all);
        assert!(queue.enter("x", HOME, false).is_some() && cut(&here) == 0);
    }
}
