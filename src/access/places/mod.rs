//! Places: limits how many clients are connected, and decides who gives way when not everybody can be.
//!
//! - This host has a reserved share that nobody else can take, so a person who is logged in on the machine can always
//!   connect.
//! - Where users are configured, a part of the places is reserved for them. The rest is also open to guests, which are
//!   clients without a user name. One network can have at most three quarters of the places of guests.
//! - When no place is free, the holder that has most gives way. For a new guest this is the network with most guests, if it
//!   has at least two more than the newcomer's network. For a new user it is either all guests together or the user with
//!   most places, whichever holds more. A guest never takes the place of a user. Of those who give way, the last to connect
//!   goes.
//! - A client that comes back to its session takes precedence over clients without one, and shares the place of its own old
//!   connection until that has ended.
//! - The user of a new HTTP connection is not known yet. It takes the place of the oldest connection that has shown no
//!   password either, in the network that has most of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::guesses::network;

/// The share of this host. In a small configuration it is an eighth of the places.
const OF_THIS_HOST: usize = 8;
/// HTTP connections that are never reserved for users, so that a newcomer can always sign in.
const OF_NEWCOMERS: usize = 8;

/// The holder of a place. Guests are distinguished by their network, if that is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PlaceHolder {
    /// All clients of one user.
    User(Box<str>),
    /// All clients without a user name in one network.
    Guest(Option<IpAddr>),
}

impl PlaceHolder {
    /// The holder for a client of this user, or for a guest at this address.
    pub(crate) fn of(user: Option<&str>, from: IpAddr) -> PlaceHolder {
        match user {
            Some(user) => PlaceHolder::User(user.into()),
            None => PlaceHolder::Guest(Some(network(from))),
        }
    }

    pub(crate) fn is_guest(&self) -> bool {
        matches!(self, PlaceHolder::Guest(_))
    }
}

/// The holder for a client of this user, or for a guest whose network does not matter.
impl From<Option<&str>> for PlaceHolder {
    fn from(user: Option<&str>) -> PlaceHolder {
        user.map_or(PlaceHolder::Guest(None), |user| PlaceHolder::User(user.into()))
    }
}

/// The number of places, and for whom they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// All places, for users and guests together.
    pub(crate) most: usize,
    /// Users are configured, so places are reserved for them.
    pub(crate) has_users: bool,
}

impl Bounds {
    fn of_this_host(&self) -> usize {
        OF_THIS_HOST.min(self.most / 8)
    }

    /// Places outside the share of this host.
    fn common(&self) -> usize {
        self.most - self.of_this_host()
    }

    fn of_guests(&self) -> usize {
        let of_users = if self.has_users && self.most > 1 { (self.most / 4).max(1) } else { 0 };
        self.common() - of_users
    }

    /// Places for the guests of one network.
    pub(crate) fn of_network(&self) -> usize {
        (self.of_guests() * 3 / 4).max(1)
    }
}

/// A client that wants a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer<'a> {
    pub(crate) user: Option<&'a str>,
    pub(crate) from: IpAddr,
    /// The name of its session. A connection that already serves this session gives its place to this client.
    pub(crate) session: Option<&'a str>,
    /// Whether a stored session waits for this client.
    pub(crate) is_returning: bool,
    /// Whether the client may still turn out to be a user.
    pub(crate) is_unknown: bool,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are connected")]
pub(crate) struct NoPlace;

struct PlaceTaken {
    holder: PlaceHolder,
    is_local: bool,
    is_returning: bool,
    session: Option<Box<str>>,
    cut: CancellationToken,
    /// The connections in this place by number, each with its own way to be ended. There is more than one only while a
    /// session is being taken over.
    sitting: BTreeMap<u64, Option<Box<dyn FnOnce() + Send>>>,
    /// Cancelled to tell the newest connection that another has come into the place.
    newest: CancellationToken,
}

#[derive(Default)]
struct PlacesState {
    next: u64,
    /// By number, in the order of arrival.
    taken: BTreeMap<u64, PlaceTaken>,
    by_session: HashMap<Box<str>, u64>,
    by_holder: HashMap<PlaceHolder, usize>,
    guests: usize,
    local: usize,
    local_guests: usize,
}

/// All places of one kind, such as MQTT clients.
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
    /// The number of this connection within the place.
    seat: u64,
    bounds: Bounds,
    cut: CancellationToken,
    replaced: CancellationToken,
    /// The permit of a port that limits its connections.
    _of_port: Option<OwnedSemaphorePermit>,
}

enum Obstacle {
    /// The network has as many guests as are allowed.
    Network,
    /// All guests together have as many as are allowed.
    Guests,
    House,
}

impl Places {
    /// The number of taken places.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().taken.len()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a place, if necessary from a holder who has to give way.
    pub(crate) fn enter(self: &Arc<Self>, newcomer: &Newcomer<'_>, bounds: Bounds) -> Result<Place, NoPlace> {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let from = newcomer.from.to_canonical();
        let (holder, is_local) = (PlaceHolder::of(newcomer.user, from), from.is_loopback());
        if let Some(number) = newcomer.session.and_then(|session| state.by_session.get(session).copied()) {
            // the session registry ends one of the two connections; until then they share the place
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

    /// Lets another connection of the same session share its place, whatever address it comes from.
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

    /// The number of guests outside the share of this host.
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

    /// Chooses who gives way to a client whose user is known, or who is known to be a guest.
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

    /// Chooses who gives way to a connection whose user is not known yet.
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

    /// The guest network, or the user, with most places, and their number. Guests within the share of this host do not
    /// count.
    fn largest(&self, of_guests: bool, bounds: Bounds) -> Option<(PlaceHolder, usize)> {
        let is_spared = |holder: &PlaceHolder| {
            let is_local = matches!(holder, PlaceHolder::Guest(Some(network)) if network.is_loopback());
            is_local && self.local_guests <= bounds.of_this_host()
        };
        let holders = self.by_holder.iter().filter(|(holder, _)| holder.is_guest() == of_guests && !is_spared(holder));
        holders.max_by_key(|(_, held)| **held).map(|(holder, held)| (holder.clone(), *held))
    }

    /// The place of this holder that was taken last; places of clients without a waiting session come first.
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
    /// Adds the permit of a port that limits its connections.
    pub(crate) fn at_port(mut self, of_port: Option<OwnedSemaphorePermit>) -> Place {
        self._of_port = of_port;
        self
    }

    /// Completes when somebody else has been given the place.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Like [`Place::cut`], as an owned future.
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

    /// Sets a function that is called when somebody else has been given the place, for connections that have their own way
    /// to end.
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

    /// Assigns the place to a user who has signed in. A few places are never reserved, so that newcomers can always do this.
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
