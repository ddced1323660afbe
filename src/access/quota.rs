//! Fair shares of a limited resource, so that nobody can take so much that others find nothing.
//!
//! A single holder may have all that the limit allows. Beyond the limit there is a reserve of a quarter of it, and the more
//! is taken, the less each holder may have: a holder may take more only while its share is less than four times of what is
//! left of limit and reserve together. So the largest holder is refused first, and what is left is divided in the same way
//! among the next.
//!
//! Each user is a holder, and all guests together are one. The share of guests is divided among their networks in the same
//! way.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::places::PlaceHolder;

/// Whether a holder may have `held` when all holders together have `total`, both including the new request.
pub(crate) fn has_room(held: usize, total: usize, most: usize) -> bool {
    held.saturating_add(total.saturating_mul(4)) <= most.saturating_mul(5)
}

/// What all holders together have of one resource.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    most: usize,
    state: Mutex<QuotaState>,
}

#[derive(Debug, Default)]
struct QuotaState {
    total: usize,
    guests: usize,
    by_holder: HashMap<PlaceHolder, usize>,
}

impl QuotaState {
    fn add(&mut self, holder: &PlaceHolder, units: usize) {
        self.total += units;
        if holder.is_guest() {
            self.guests += units;
        }
        *self.by_holder.entry(holder.clone()).or_default() += units;
    }

    fn remove(&mut self, holder: &PlaceHolder, units: usize) {
        self.total -= units;
        if holder.is_guest() {
            self.guests -= units;
        }
        if let Some(held) = self.by_holder.get_mut(holder) {
            *held -= units;
            if *held == 0 {
                self.by_holder.remove(holder);
            }
        }
    }
}

impl Quota {
    /// A quota of which a single holder may have `most`.
    pub(crate) fn new(most: usize) -> Quota {
        Quota { most, state: Mutex::default() }
    }

    #[cfg(test)]
    pub(crate) fn total(&self) -> usize {
        self.state.lock().total
    }
}

/// The share of one session or of another owner's object. It is given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    owner: Option<(Arc<Quota>, PlaceHolder)>,
    units: usize,
}

impl Holding {
    /// Assigns what is held to this holder from now on.
    pub(crate) fn belongs_to(&mut self, quota: &Arc<Quota>, holder: PlaceHolder) {
        let units = std::mem::take(&mut self.units);
        if let Some((old, before)) = self.owner.take() {
            old.state.lock().remove(&before, units);
        }
        quota.state.lock().add(&holder, units);
        (self.owner, self.units) = (Some((quota.clone(), holder)), units);
    }

    /// The owner, if known.
    pub fn holder(&self) -> Option<&PlaceHolder> {
        self.owner.as_ref().map(|(_, holder)| holder)
    }

    /// Whether this many more units are allowed.
    pub(crate) fn has_room(&self, units: usize) -> bool {
        let Some((quota, holder)) = &self.owner else { return true };
        let state = quota.state.lock();
        let held = state.by_holder.get(holder).copied().unwrap_or(0) + units;
        let total = state.total + units;
        if !holder.is_guest() {
            return has_room(held, total, quota.most);
        }
        let guests = state.guests + units;
        has_room(guests, total, quota.most) && has_room(held, guests, quota.most * 4 / 5)
    }

    /// Takes more units, whether there is room or not.
    pub(crate) fn add(&mut self, units: usize) {
        self.units += units;
        if let Some((quota, holder)) = &self.owner {
            quota.state.lock().add(holder, units);
        }
    }

    pub(crate) fn remove(&mut self, units: usize) {
        self.units -= units;
        if let Some((quota, holder)) = &self.owner {
            quota.state.lock().remove(holder, units);
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some((quota, holder)) = &self.owner {
            quota.state.lock().remove(holder, self.units);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(last: u8) -> PlaceHolder {
        PlaceHolder::of(None, std::net::IpAddr::from([192, 0, 2, last]))
    }

    fn held(quota: &Arc<Quota>, holder: PlaceHolder) -> Holding {
        let mut held = Holding::default();
        held.belongs_to(quota, holder);
        held
    }

    /// Takes as many units as are allowed.
    fn fill(held: &mut Holding) -> usize {
        while held.has_room(1) {
            held.add(1);
        }
        held.units
    }

    #[test]
    fn a_single_user_may_have_all_and_the_next_find_a_share() {
        let quota = Arc::new(Quota::new(10_000));
        let mut users: Vec<Holding> =
            (0..5).map(|number| held(&quota, PlaceHolder::User(number.to_string().into()))).collect();
        let shares: Vec<usize> = users.iter_mut().map(fill).collect();
        assert_eq!(shares, [10_000, 2000, 400, 80, 16]);
        users.clear();
        assert_eq!(quota.total(), 0);
        assert!(quota.state.lock().by_holder.is_empty());
    }

    #[test]
    fn guests_are_one_and_their_networks_share_what_that_one_may_have() {
        let quota = Arc::new(Quota::new(10_000));
        // many clients of one network count as one holder
        let mut guests: Vec<Holding> = (0..100).map(|_| held(&quota, guest(1))).collect();
        let first: usize = guests.iter_mut().map(fill).sum();
        assert_eq!(first, 8000);
        let shares: Vec<usize> = (2..100)
            .map(|network| {
                guests.push(held(&quota, guest(network)));
                fill(guests.last_mut().unwrap())
            })
            .collect();
        assert_eq!(shares[..3], [1600, 320, 64]);
        assert!(quota.total() <= 10_000);
        let mut user = held(&quota, PlaceHolder::User("ada".into()));
        assert!(fill(&mut user) >= 2000);
        // what a client held as a guest belongs to its user after sign-in
        let mut promoted = guests.swap_remove(0);
        let units = promoted.units;
        promoted.belongs_to(&quota, PlaceHolder::User("bob".into()));
        assert_eq!(quota.state.lock().by_holder[&PlaceHolder::User("bob".into())], units);
    }
}
