//! Which of the sessions of absent clients is due next, and which has to give way when there are too many.
//!
//! All of it is kept in order, so that a client that comes or goes among ten thousand costs no more than one among ten.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::session::Session;
use crate::access::identity::SessionName;
use crate::mqtt::Will;

/// A session whose client is away.
#[derive(Debug)]
pub(crate) struct Parked {
    /// Its state.
    pub(crate) session: Session,
    /// When it ends.
    pub(crate) expires: Instant,
    /// Its client has gone at this time.
    pub(crate) since: Instant,
    /// A will that waits for its delay.
    pub(crate) will: Option<(Instant, Will)>,
}

/// An order of sessions by a moment.
type AwayOrder = BTreeSet<(Instant, Arc<str>)>;

/// The order of sessions whose clients are away.
#[derive(Debug, Default)]
pub(crate) struct Away {
    /// By when something is to be done: the end of the session, or the end of its will's delay.
    due: AwayOrder,
    /// By when the client left, for each user; those without a user are one.
    by_owner: HashMap<Box<str>, AwayOrder>,
}

fn due_at(parked: &Parked) -> Instant {
    parked.will.as_ref().map_or(parked.expires, |(at, _)| (*at).min(parked.expires))
}

/// No user has an empty name.
fn owner(session: &str) -> &str {
    SessionName::of(session).user.unwrap_or_default()
}

impl Away {
    /// A client has gone.
    pub(crate) fn add(&mut self, session: &Arc<str>, parked: &Parked) {
        self.due.insert((due_at(parked), session.clone()));
        self.by_owner.entry(owner(session).into()).or_default().insert((parked.since, session.clone()));
    }

    /// A session is not one of an absent client any more.
    pub(crate) fn remove(&mut self, session: &Arc<str>, parked: &Parked) {
        self.due.remove(&(due_at(parked), session.clone()));
        if let Some(order) = self.by_owner.get_mut(owner(session)) {
            order.remove(&(parked.since, session.clone()));
            if order.is_empty() {
                self.by_owner.remove(owner(session));
            }
        }
    }

    /// Sessions.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    /// When something is to be done next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Sessions with which something is to be done by `now`.
    pub(crate) fn due(&self, now: Instant) -> Vec<Arc<str>> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, session)| session.clone()).collect()
    }

    /// The session longest away of whoever has most; of several, of those without a user name.
    pub(crate) fn to_give_way(&self) -> Option<Arc<str>> {
        let most = self.by_owner.iter().max_by_key(|(owner, order)| (order.len(), owner.is_empty()))?;
        most.1.first().map(|(_, session)| session.clone())
    }
}
