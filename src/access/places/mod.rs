//! Places: who may be connected when not everybody can be.
//!
//! - This host has a share of its own, which nobody else can take. So a person who is logged in gets through, whatever
//!   happens on the network.
//! - Where there are users, a part of the places is theirs and not for guests, who are clients without a user name. Of the
//!   places of guests, a network has three quarters at most.
//! - When there is no place for somebody, whoever holds most gives way: for a guest the network with most guests, if that
//!   has at least two more than the newcomer's; for a user whoever has more: the guests together, or the user who
//!   has most. A guest never takes the place of a user. Of whoever gives way, the last to come goes.
//! - A client that comes back to its session goes before those who have none, and shares the place of its own old connection
//!   until that has ended.
//! - Nobody knows yet who a new HTTP connection is. It takes the place of the oldest one of the network that has most
//!   which has not shown a password either.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::guesses::network;

/// The share of this host; of a small house an eighth.
const OF_THIS_HOST: usize = 8;
/// Of HTTP connections, so many are never a user's, so that somebody new can say who it is.
const OF_NEWCOMERS: usize = 8;

/// Who holds something. Guests are told apart by their network, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PlaceHolder {
    /// All clients of this user.
    User(Box<str>),
    /// Clients without a user name in this network.
    Guest(Option<IpAddr>),
}

impl PlaceHolder {
    /// A client of this user, if it has one, at this address.
    pub(crate) fn of(user: Option<&str>, from: IpAddr) -> PlaceHolder {
        match user {
            Some(user) => PlaceHolder::User(user.into()),
            None => PlaceHolder::Guest(Some(network(from))),
        }
    }

    /// Whether it is no user.
    pub(crate) fn is_guest(&self) -> bool {
        matches!(self, PlaceHolder::Guest(_))
    }
}

/// How many places there are, and for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Places in all, whoever has them.
    pub(crate) most: usize,
    /// There are users, and places that are theirs.
    pub(crate) has_users: bool,
}

impl Bounds {
    fn of_this_host(&self) -> usize {
        OF_THIS_HOST.min(self.most / 8)
    }

    /// For all but the share of this host.
    fn common(&self) -> usize {
        self.most - self.of_this_host()
    }

    fn of_guests(&self) -> usize {
        let of_users = if self.has_users && self.most > 1 { (self.most / 4).max(1) } else { 0 };
        self.common() - of_users
    }

    /// For guests of one network.
    pub(crate) fn of_network(&self) -> usize {
        (self.of_guests() * 3 / 4).max(1)
    }
}

/// Somebody who wants a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer<'a> {
    /// Its user, if it has one.
    pub(crate) user: Option<&'a str>,
    /// Where it comes from.
    pub(crate) from: IpAddr,
    /// The name of its session: a connection that has it already gives its place to this one.
    pub(crate) session: Option<&'a str>,
    /// A session waits for it.
    pub(crate) is_returning: bool,
    /// It may still turn out to be a user.
    pub(crate) is_unknown: bool,
}

/// There is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are connected")]
pub(crate) struct NoPlace;

struct PlaceTaken {
    holder: PlaceHolder,
    is_local: bool,
    is_returning: bool,
    session: Option<Box<str>>,
    cut: CancellationToken,
    /// Those who are in it, with their own way to end, by number: more than one only while a session is taken over.
    sitting: BTreeMap<u64, Option<Box<dyn FnOnce() + Send>>>,
    /// The newest of them is told when another comes.
    newest: CancellationToken,
}

#[derive(Default)]
struct PlacesState {
    next: u64,
    /// By number, the first to come first.
    taken: BTreeMap<u64, PlaceTaken>,
    by_session: HashMap<Box<str>, u64>,
    by_holder: HashMap<PlaceHolder, usize>,
    guests: usize,
    local: usize,
    local_guests: usize,
}

/// All places of a kind.
#[derive(Default)]
pub(crate) struct Places {
    state: Mutex<PlacesState>,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").field("taken", &self.len()).finish()
    }
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    /// Which of those in it.
    seat: u64,
    bounds: Bounds,
    cut: CancellationToken,
    replaced: CancellationToken,
    /// Its place among the connections of its port, where these are bounded.
    _of_port: Option<OwnedSemaphorePermit>,
}

enum Obstacle {
    /// Its network has as many guests as it may have.
    Network,
    /// All guests together have as many as they may have.
    Guests,
    /// All places are taken.
    House,
}

impl Places {
    /// Places that are taken.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().taken.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place, if need be that of somebody who has to give way.
    pub(crate) fn enter(self: &Arc<Self>, newcomer: &Newcomer<'_>, bounds: Bounds) -> Result<Place, NoPlace> {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let from = newcomer.from.to_canonical();
        let (holder, is_local) = (PlaceHolder::of(newcomer.user, from), from.is_loopback());
        if let Some(number) = newcomer.session.and_then(|session| state.by_session.get(session).copied()) {
            // whoever keeps the sessions ends one of the two; until then they have the place together
            let place = state.join(number, (holder, is_local), self, bounds);
            return place.ok_or(NoPlace);
        }
        let new = PlaceTaken {
            holder,
            is_local,
            is_returning: newcomer.is_returning,
            session: newcomer.session.map(Into::into),
            cut: CancellationToken::new(),
            sitting: BTreeMap::from([(0, None)]),
            newest: CancellationToken::new(),
        };
        let mut has_place = true;
        while has_place && let Some(obstacle) = state.obstacle(&new, bounds) {
            let victim = if newcomer.is_unknown {
                state.oldest_stranger(&new, &obstacle, bounds)
            } else {
                state.victim(&new, &obstacle, bounds)
            };
            has_place = victim.and_then(|number| state.remove(number)).map(|victim| gone.push(victim)).is_some();
        }
        let place = has_place.then(|| {
            let (cut, replaced) = (new.cut.clone(), new.newest.clone());
            let number = state.add(new);
            Place { places: self.clone(), number, seat: 0, bounds, cut, replaced, _of_port: None }
        });
        drop(state);
        gone.into_iter().for_each(PlaceTaken::end);
        place.ok_or(NoPlace)
    }
}

impl PlaceTaken {
    fn end(self) {
        self.cut.cancel();
        self.sitting.into_values().flatten().for_each(|then| then());
    }
}

impl PlacesState {
    fn add(&mut self, taken: PlaceTaken) -> u64 {
        let number = self.next;
        self.next += 1;
        if let Some(session) = &taken.session {
            self.by_session.insert(session.clone(), number);
        }
        self.count(&taken, true);
        self.taken.insert(number, taken);
        number
    }

    /// Another connection of the same session comes into its place, from wherever it is.
    fn join(
        &mut self,
        number: u64,
        (holder, is_local): (PlaceHolder, bool),
        places: &Arc<Places>,
        bounds: Bounds,
    ) -> Option<Place> {
        let mut taken = self.taken.remove(&number)?;
        self.count(&taken, false);
        (taken.holder, taken.is_local) = (holder, is_local);
        self.count(&taken, true);
        std::mem::take(&mut taken.newest).cancel();
        let seat = taken.sitting.last_key_value().map_or(0, |(seat, _)| seat + 1);
        taken.sitting.insert(seat, None);
        let (cut, replaced) = (taken.cut.clone(), taken.newest.clone());
        self.taken.insert(number, taken);
        Some(Place { places: places.clone(), number, seat, bounds, cut, replaced, _of_port: None })
    }

    fn remove(&mut self, number: u64) -> Option<PlaceTaken> {
        let taken = self.taken.remove(&number)?;
        if let Some(session) = &taken.session {
            self.by_session.remove(session);
        }
        self.count(&taken, false);
        Some(taken)
    }

    fn count(&mut self, taken: &PlaceTaken, is_new: bool) {
        let (is_local, is_guest) = (taken.is_local, taken.holder.is_guest());
        let counters =
            [(&mut self.guests, is_guest), (&mut self.local, is_local), (&mut self.local_guests, is_local && is_guest)];
        for (counter, counts) in counters {
            *counter = *counter + usize::from(counts && is_new) - usize::from(counts && !is_new);
        }
        let held = self.by_holder.entry(taken.holder.clone()).or_default();
        *held = if is_new { *held + 1 } else { *held - 1 };
        if *held == 0 {
            self.by_holder.remove(&taken.holder);
        }
    }

    fn held(&self, holder: &PlaceHolder) -> usize {
        self.by_holder.get(holder).copied().unwrap_or(0)
    }

    /// Guests besides those in the share of this host.
    fn common_guests(&self, bounds: Bounds) -> usize {
        self.guests - self.local_guests.min(bounds.of_this_host())
    }

    fn obstacle(&self, new: &PlaceTaken, bounds: Bounds) -> Option<Obstacle> {
        let share = bounds.of_this_host();
        if new.holder.is_guest() && !(new.is_local && self.local_guests < share) {
            if !new.is_local && self.held(&new.holder) >= bounds.of_network() {
                return Some(Obstacle::Network);
            }
            if self.common_guests(bounds) >= bounds.of_guests() {
                return Some(Obstacle::Guests);
            }
        }
        let common = self.taken.len() - self.local.min(share);
        let is_full = common >= bounds.common() && !(new.is_local && self.local < share);
        is_full.then_some(Obstacle::House)
    }

    /// Who has to give way to a client that is known.
    fn victim(&self, new: &PlaceTaken, obstacle: &Obstacle, bounds: Bounds) -> Option<u64> {
        let own = self.held(&new.holder);
        if let Obstacle::Network = obstacle {
            return if new.is_returning { self.last_of(&new.holder, true) } else { None };
        }
        let guests = self.largest(true, bounds);
        if new.is_returning {
            let strangers = guests.as_ref().and_then(|(holder, _)| self.last_of(holder, true));
            if let Some(stranger) = strangers.or_else(|| self.last_of(&new.holder, true)) {
                return Some(stranger);
            }
        }
        if new.holder.is_guest() {
            let (holder, held) = guests?;
            return if held >= own + 2 { self.last(&holder) } else { None };
        }
        let user = self.largest(false, bounds).filter(|(_, held)| *held >= own + 2);
        let all_guests = self.common_guests(bounds);
        let guests = guests.filter(|_| all_guests > own && user.as_ref().is_none_or(|(_, held)| *held <= all_guests));
        self.last(&guests.or(user)?.0)
    }

    /// Who has to give way to a connection that may still turn out to be a user's.
    fn oldest_stranger(&self, new: &PlaceTaken, obstacle: &Obstacle, bounds: Bounds) -> Option<u64> {
        let own = self.held(&new.holder);
        let holder = match (obstacle, self.largest(true, bounds)) {
            (Obstacle::Network, _) => new.holder.clone(),
            (_, Some((holder, held))) if own == 0 || held >= own + 2 => holder,
            _ if own > 0 => new.holder.clone(),
            _ => return None,
        };
        self.taken.iter().find(|(_, taken)| taken.holder == holder).map(|(number, _)| *number)
    }

    /// Who has most of all guests, or of all users, and how many. This host's guests do not count within its share.
    fn largest(&self, of_guests: bool, bounds: Bounds) -> Option<(PlaceHolder, usize)> {
        let is_spared = |holder: &PlaceHolder| {
            let is_local = matches!(holder, PlaceHolder::Guest(Some(network)) if network.is_loopback());
            is_local && self.local_guests <= bounds.of_this_host()
        };
        let holders = self.by_holder.iter().filter(|(holder, _)| holder.is_guest() == of_guests && !is_spared(holder));
        holders.max_by_key(|(_, held)| **held).map(|(holder, held)| (holder.clone(), *held))
    }

    /// The last to come of this holder, of those who have come without a session first.
    fn last(&self, holder: &PlaceHolder) -> Option<u64> {
        self.last_of(holder, true).or_else(|| self.last_of(holder, false))
    }

    fn last_of(&self, holder: &PlaceHolder, is_stranger: bool) -> Option<u64> {
        let mut last = self.taken.iter().rev();
        let is_it = |taken: &PlaceTaken| taken.holder == *holder && taken.is_returning != is_stranger;
        last.find(|(_, taken)| is_it(taken)).map(|(number, _)| *number)
    }
}

impl Place {
    /// The same, with a place among the connections of a port where these are bounded.
    pub(crate) fn at_port(mut self, of_port: Option<OwnedSemaphorePermit>) -> Place {
        self._of_port = of_port;
        self
    }

    /// Completes when somebody else has the place.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// The same as a future of its own.
    pub(crate) fn ending(&self) -> WaitForCancellationFutureOwned {
        self.cut.clone().cancelled_owned()
    }

    #[cfg(test)]
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Completes when another connection of the same session has come into the place.
    pub(crate) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    /// For whoever has its own way to end things: called when somebody else has the place.
    pub(crate) fn on_cut(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.places.state.lock();
        match state.taken.get_mut(&self.number) {
            Some(taken) => _ = taken.sitting.insert(self.seat, Some(Box::new(then))),
            None => {
                drop(state);
                then();
            }
        }
    }

    /// It has turned out whose place this is. Newcomers always find a few that are no user's.
    pub fn belongs_to(&self, user: &str) {
        let bounds = self.bounds;
        let mut state = self.places.state.lock();
        let is_known = |taken: &PlaceTaken| matches!(&taken.holder, PlaceHolder::User(name) if **name == *user);
        if state.taken.get(&self.number).is_none_or(is_known) {
            return;
        }
        let holder = PlaceHolder::User(user.into());
        let users = state.taken.len() - state.guests;
        let is_full = users >= bounds.common().saturating_sub(OF_NEWCOMERS).max(1);
        let largest = if is_full { state.largest(false, bounds) } else { None };
        let first = largest.and_then(|(holder, _)| {
            state.taken.iter().find(|(_, taken)| taken.holder == holder).map(|(number, _)| *number)
        });
        let gone = first.and_then(|number| state.remove(number));
        if let Some(mut taken) = state.taken.remove(&self.number) {
            state.count(&taken, false);
            taken.holder = holder;
            state.count(&taken, true);
            state.taken.insert(self.number, taken);
        }
        drop(state);
        gone.into_iter().for_each(PlaceTaken::end);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        let Some(taken) = state.taken.get_mut(&self.number) else { return };
        taken.sitting.remove(&self.seat);
        if taken.sitting.is_empty() {
            state.remove(self.number);
        }
    }
}

#[cfg(test)]
mod tests;
