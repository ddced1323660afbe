//! How sessions end.
//!
//! The end of a session takes a while, because the session may have ten thousand subscriptions. Until it is over, its name is
//! in somebody's hand, who holds a [`Claim`]: a client that connects with that name waits. Otherwise it would get a new
//! session with the same consumer in the journal, and the end of the old session would delete both.

use std::sync::Arc;

use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::super::away::Parked;
use super::super::registry::Claim;
use super::super::session::Session;
use super::portions::Portions;
use super::{Core, LONGEST_SYNC, origin};
use crate::access::identity::SessionName;
use crate::exchange::delivery::Share;
use crate::exchange::ingress::Receipt;
use crate::workers::worked;

impl Core {
    /// Ends a session and deletes everything that was kept for it. Once the receipt is complete, a crash cannot bring it
    /// back.
    pub(in crate::broker) async fn end(&self, mut session: Session) -> Receipt {
        let receipt = self.forget(&session);
        session.outbound.shares().for_each(Share::give_up);
        let filters: Vec<Box<str>> = session.subscriptions.keys().cloned().collect();
        let mut portions = Portions::of(self, &session.owner);
        for filter in filters {
            portions.next().await;
            if let Some(subscription) = session.unsubscribe(&filter) {
                self.drop_subscription(&session, &filter, &subscription);
            }
        }
        portions.end();
        receipt
    }

    /// Deletes what the journal keeps of a session.
    fn forget(&self, session: &Session) -> Receipt {
        let Some(durable) = &session.durable else { return Receipt::default() };
        let journal = self.ingress.journal();
        // no group hands anything over to it any more
        let groups = session.subscriptions.values().filter_map(|known| known.group.as_ref());
        groups.for_each(|group| group.forget(durable.consumer));
        journal.remove(durable.consumer);
        // if this cannot be written now, the session comes back after the next start and expires then
        let ended = journal.keep_session(&session.name, None, false).ok();
        self.charge(session, ended.map_or(0, |(_, bytes)| bytes));
        Receipt { durable: ended.map(|(position, _)| position) }
    }

    /// Ends the session of an absent client, and with it the delay of its will [MQTT-3.1.2-8]. Does not wait for the turn of
    /// a client that has cost the others too much: only its will does.
    async fn end_parked(&self, parked: Parked) -> Receipt {
        if let Some((_, will)) = parked.will {
            self.publish_due(&parked.session.owner, will).await;
        }
        self.end(parked.session).await
    }

    /// Ends a session that is in the broker's hand, or that its connection has left with nobody to come back for it.
    pub(in crate::broker) async fn end_in_hand(&self, (claim, parked): (Claim, Parked)) -> Receipt {
        let ended = self.end_parked(parked).await;
        let _ = self.registry.release(claim, None);
        ended
    }

    /// Continues the session that a client has found which has arrived at this time. The session ends here if the client wants
    /// a new one or has come back too late, so that it waits for the end of no session but its own.
    pub(in crate::broker) async fn take_up(
        &self,
        mut parked: Parked,
        arrived: Instant,
        wants_new: bool,
    ) -> Option<Session> {
        let has_expired = parked.expires <= arrived;
        if wants_new || has_expired {
            self.stats.sessions_expired.add(u64::from(has_expired));
            let ended = self.end_parked(parked).await;
            // CONNACK reports that the session is gone [MQTT-3.1.2-4], so a restart must not bring it back; but a disk that
            // does not respond must not keep the client out
            let _ = timeout(LONGEST_SYNC, self.ingress.settled(ended)).await;
            return None;
        }
        // only a client that comes back within the delay prevents its will [MQTT-3.1.3-9]
        if let Some((_, will)) = parked.will.take_if(|(at, _)| *at <= arrived) {
            self.publish_due(&parked.session.owner, will).await;
        }
        Some(parked.session)
    }

    /// Ends all sessions of a user that was removed, with the messages that wait in them. A later user of that name finds
    /// nothing, even after a power cut.
    pub(crate) async fn end_sessions_of(&self, user: &str) {
        let mut last = Receipt::default();
        for held in self.registry.take_all_of(user) {
            info!(client_id = %SessionName::of(&held.1.session.owner), "its session has ended: its user was removed");
            let ended = self.end_in_hand(held).await;
            last = if ended.durable.is_some() { ended } else { last };
        }
        // a disk that does not respond must not delay the caller
        let _ = timeout(LONGEST_SYNC, self.ingress.settled(last)).await;
        self.access.passwords.familiar.forget(user);
    }

    /// Ends expired sessions and publishes delayed wills, until cancelled.
    pub async fn sweep(self: Arc<Self>) {
        while !self.cancel.is_cancelled() {
            let now = Instant::now();
            let most = self.settings.load().max_sessions;
            // one at a time: the client of a session that has not had its turn can still claim it
            let (late, due) = (self.late_wills.take_due(now), self.registry.take_due(now, most));
            if late.is_none() && due.is_none() {
                tokio::select! {
                    () = self.cancel.cancelled() => return,
                    () = self.registry.due() => continue,
                    () = self.late_wills.due() => continue,
                }
            }
            if let Some((session, will)) = late {
                self.publish_late(&session, will).await;
            }
            if let Some(due) = due {
                self.attend(due, now).await;
            }
            worked();
            yield_now().await;
        }
    }

    /// Does what is due of a session.
    async fn attend(&self, (claim, mut parked): (Claim, Parked), now: Instant) {
        let has_expired = parked.expires <= now;
        if !has_expired && parked.will.as_ref().is_some_and(|(at, _)| *at <= now) {
            // nobody else waits for the turn of this client
            if let Some(turn) = self.ingress.meter().turn(origin(&parked.session.owner)) {
                parked.will = parked.will.map(|(_, will)| (turn, will));
            } else if let Some((_, will)) = parked.will.take() {
                self.publish_delayed(&parked.session.owner, &will).await;
            }
            // in the meantime its user may have been removed
            if let Some(over) = self.registry.release(claim, Some(parked)) {
                self.end_in_hand(over).await;
            }
            return;
        }
        let name = SessionName::of(&parked.session.owner);
        if !has_expired && let Some(more_since_last) = self.access.limiter.due(name.user, "max_sessions") {
            warn!(
                client_id = %name,
                more_since_last,
                "more clients are away than broker.max_sessions: of whoever has most sessions, the one longest away is given up"
            );
        }
        self.stats.sessions_expired.add(1);
        self.end_in_hand((claim, parked)).await;
    }
}
