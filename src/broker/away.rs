//! Sessions of absent clients: which is due next, and which gives way when there are too many.
//!
//! The sessions are kept sorted, so that a client that comes or goes costs little even among ten thousand.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use super::session::Session;
use super::waiting_will::WaitingWill;
use crate::access::identity::SessionName;

/// A session whose client is absent.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) session: Session,
    /// When the session expires.
    pub(crate) expires: Instant,
    /// When its client left.
    pub(crate) since: Instant,
    /// A will that waits for its delay, with the time when it is published.
    pub(crate) will: Option<(Instant, WaitingWill)>,
}

/// Sessions sorted by a time.
type AwayOrder = BTreeSet<(Instant, Arc<str>)>;

/// The absent clients' sessions in two orders.
#[derive(Debug, Default)]
pub(crate) struct Away {
    /// By the time when something is due: the end of the session, or the end of its will's delay.
    due: AwayOrder,
    /// By the time when the client left, for each user; sessions without a user are together.
    by_owner: HashMap<Box<str>, AwayOrder>,
}

fn due_at(parked: &Parked) -> Instant {
    parked.will.as_ref().map_or(parked.expires, |(at, _)| (*at).min(parked.expires))
}

/// The user of a session. The empty text stands for none, because no user has an empty name.
fn owner(session: &str) -> &str {
    SessionName::of(session).user.unwrap_or_default()
}

impl Away {
    /// Adds the session of a client that has left.
    pub(crate) fn add(&mut self, session: &Arc<str>, parked: &Parked) {
        self.due.insert((due_at(parked), session.clone()));
        self.by_owner.entry(owner(session).into()).or_default().insert((parked.since, session.clone()));
    }

    /// Removes a session, because its client is back or the session has ended.
    pub(crate) fn remove(&mut self, session: &Arc<str>, parked: &Parked) {
        self.due.remove(&(due_at(parked), session.clone()));
        if let Some(order) = self.by_owner.get_mut(owner(session)) {
            order.remove(&(parked.since, session.clone()));
            if order.is_empty() {
                self.by_owner.remove(owner(session));
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    /// The session for which something is due next, with the time.
    pub(crate) fn next(&self) -> Option<&(Instant, Arc<str>)> {
        self.due.first()
    }

    /// The session that has been without its client for longest, of the owner with most sessions. If owners have equally
    /// many, sessions without a user name give way first.
    pub(crate) fn to_give_way(&self) -> Option<Arc<str>> {
        let most = self.by_owner.iter().max_by_key(|(owner, order)| (order.len(), owner.is_empty()))?;
        most.1.first().map(|(_, session)| session.clone())
    }
}
