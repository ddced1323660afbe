//! Last wills: publishes them, and keeps them on disk for the case that the gateway ends.
//!
//! A will must be published when its client is cut off, and a power cut cuts off all clients. Without kept wills, "offline"
//! would be missing for a node that never comes back. So a will is kept while its client is connected, or while it waits for
//! its delay, and is published after the next start unless the client has cancelled it [MQTT-3.1.2-8]. If its session is
//! still there, the delay starts again, and the client may be back before it ends.
//!
//! No client waits until its will is on disk. So a client that was connected for less than ten seconds may leave no will, or
//! leave one although it has sent DISCONNECT. Wills larger than [`MOST_KEPT`] are not kept. Wills are also not kept for a
//! user whose changes of sessions have to wait ([`super::allowance`]), because a will cannot wait.
//!
//! What publishes the wills of absent clients also does all else for the sessions of others, so it never waits for the turn
//! of a client that has cost the others too much. If the session of such a client ends, its will waits by itself
//! ([`super::late_wills`]).
//!
//! | size | what |
//! |---|---|
//! | 1 | 1, the version |
//! | 4 | delay in seconds |
//! | | the message |

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use super::core::{Core, origin};
use super::waiting_will::WaitingWill;
use crate::access::authorise::Permissions;
use crate::access::identity::{Identity, SessionName};
use crate::access::places::PlaceHolder;
use crate::exchange::ingress::IngressError;
use crate::message::{Draft, Message};
use crate::mqtt::Will;

const VERSION: u8 = 1;
/// The prefix of the names of kept wills. No client id begins with NUL.
const PREFIX: &str = "\0will/";
/// The largest will that is kept, in bytes.
pub(crate) const MOST_KEPT: usize = 4096;

fn draft(will: &Will, session: &str, boot_ms: u64) -> Message {
    Message::new(&Draft {
        topic: &will.topic,
        payload: &will.payload,
        qos: will.qos,
        retain: will.retain,
        properties: &will.properties,
        expiry: will.expiry,
        boot_ms,
        origin: origin(session),
    })
}

fn encode(will: &Will) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&will.delay.to_le_bytes());
    out.extend_from_slice(draft(will, "", 0).view().as_bytes());
    out
}

fn decode(bytes: &Bytes) -> Option<Will> {
    let (&version, rest) = bytes.split_first()?;
    let delay = rest.first_chunk()?;
    let message = Message::from_bytes(bytes.slice(1 + delay.len()..)).filter(|_| version == VERSION)?;
    let view = message.view();
    Some(Will {
        topic: view.topic().into(),
        payload: view.payload().into(),
        qos: view.qos(),
        retain: view.retain(),
        delay: u32::from_le_bytes(*delay),
        expiry: view.expiry(),
        properties: view.properties().into(),
    })
}

impl Core {
    /// Keeps the will of a client of this holder that has connected, if it has one.
    pub(super) fn keep_will_of(&self, holder: &PlaceHolder, session: &str, will: Option<&Will>) {
        let is_free = self.allowance.until(holder).is_none();
        let written = self.keep_will(session, will.filter(|_| is_free));
        if written > 0 {
            self.allowance.charge(holder, written);
        }
    }

    /// Keeps the will of a connected client. `None` deletes it, because the client has none, or it was published or
    /// cancelled. Returns the number of bytes written.
    pub(super) fn keep_will(&self, session: &str, will: Option<&Will>) -> usize {
        let kept = will.map(encode).filter(|bytes| bytes.len() <= MOST_KEPT);
        // if the journal cannot write, it has reported that
        let kept = self.ingress.journal().keep_session(&format!("{PREFIX}{session}"), kept.as_deref(), true);
        kept.map_or(0, |(_, bytes)| bytes)
    }

    /// The wills that were kept when the gateway ended, with the names of their sessions.
    pub(super) fn kept_wills(&self) -> Vec<(Box<str>, Will)> {
        let kept = self.ingress.journal().kept(PREFIX);
        let read = |(name, bytes): (Box<str>, Bytes)| Some((name.strip_prefix(PREFIX)?.into(), decode(&bytes)?));
        kept.into_iter().filter_map(read).collect()
    }

    /// Publishes the wills of clients whose sessions ended with the gateway. To be called before any client is served.
    pub(crate) async fn publish_orphaned_wills(&self) {
        let orphaned = std::mem::take(&mut *self.orphaned_wills.lock());
        for (session, will) in orphaned {
            self.publish_delayed(&session, &will).await;
        }
    }

    /// Publishes the last will of a client, if the client may publish it. Does not wait for its turn.
    pub(super) async fn publish_will(&self, identity: &Identity, permissions: &Permissions, will: &Will) {
        if permissions.may_publish(&will.topic) {
            self.hand_in_will(identity, will).await;
        } else {
            self.say_will_denied(identity, will);
        }
    }

    fn say_will_denied(&self, identity: &Identity, will: &Will) {
        let (client_id, topic) = (&*identity.client_id, &*will.topic);
        // clients choose their ids and topics, so the lines of a user are counted together
        if let Some(more_since_last) = self.access.limiter.due(&identity.user, ("will", client_id)) {
            info!(client_id, topic, more_since_last, "last will not published: no permission");
        }
    }

    async fn hand_in_will(&self, identity: &Identity, will: &Will) {
        let message = draft(will, &identity.session(), self.ingress.clock().boot_ms());
        match self.ingress.publish_in_turn(&message.view().to_draft(), None).await {
            Ok(_) | Err(IngressError::Closed) => {}
            Err(error) => warn!(client_id = &*identity.client_id, %error, "last will not published"),
        }
    }

    /// Publishes the will of a session that ends or goes on without it, now or when its client's turn has come.
    pub(super) async fn publish_due(&self, session: &str, will: WaitingWill) {
        match self.ingress.meter().turn(origin(session)) {
            Some(turn) => self.publish_later(turn, session, will),
            None => self.publish_delayed(session, &will).await,
        }
    }

    fn publish_later(&self, turn: Instant, session: &str, mut will: WaitingWill) {
        if will.may_wait_longer() {
            self.late_wills.add(turn, session, will);
        } else if let Some(more_since_last) = self.access.limiter.due(session, "last wills that wait") {
            let client_id = SessionName::of(session);
            warn!(%client_id, more_since_last, "last will not published: too many wait for their clients' turns");
        }
    }

    /// Publishes a will that has waited for its client's turn.
    pub(super) async fn publish_late(&self, session: &str, will: WaitingWill) {
        if let Some(turn) = self.ingress.meter().turn(origin(session)) {
            return self.publish_later(turn, session, will);
        }
        self.publish_authorised(session, &will).await;
        // a client that has the session's name by now has a will of its own
        if !self.registry.knows(session) {
            self.keep_will(session, None);
        }
    }

    /// Publishes a will that has waited, see [`Core::publish_authorised`].
    pub(super) async fn publish_delayed(&self, session: &str, will: &Will) {
        self.publish_authorised(session, will).await;
        self.keep_will(session, None);
    }

    /// Publishes a will that has waited, if its client may publish it now. Rights may have been taken away meanwhile. A will
    /// whose user was not recorded was authorised when its client connected.
    async fn publish_authorised(&self, session: &str, will: &Will) {
        let name = SessionName::of(session);
        let identity = name.identity();
        if name.is_unowned || self.access.authoriser.may_publish(&identity, &will.topic) {
            self.hand_in_will(&identity, will).await;
        } else {
            self.say_will_denied(&identity, will);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Qos;

    #[test]
    fn a_will_is_read_as_it_was_written() {
        let will = Will {
            topic: "a/status".into(),
            payload: (*b"offline").into(),
            qos: Qos::AtLeastOnce,
            retain: true,
            delay: 7,
            expiry: Some(60),
            properties: [3, 0, 1, b'x'].into(),
        };
        let bytes = Bytes::from(encode(&will));
        assert_eq!(decode(&bytes), Some(will));
        for end in 0..bytes.len() {
            assert_eq!(decode(&bytes.slice(..end)), None);
        }
        assert_eq!(decode(&Bytes::from(vec![2; 80])), None);
    }
}
