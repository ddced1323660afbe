//! Keeps persistent sessions and retained messages on disk, and restores them after a restart.
//!
//! The journal holds the messages that wait for a session and the steps of its QoS 2 exchanges. This module keeps additional
//! data that is small and rarely changes: expiry, the time when the client left, and the subscriptions. Each of these has
//! its own name, so that the size of a write does not depend on the number of subscriptions.
//!
//! A session is kept under its name:
//!
//! | size | what |
//! |---|---|
//! | 1 | 2, the version |
//! | 4 | session expiry interval in seconds |
//! | 8 | when the client left, as the journal stamps it; 0 while it is connected |
//! | 4 | length of the owner; version 1 has neither this field nor the owner, so the owner of such a session is unknown |
//! | | the owner |
//! | | in older gateways, for each subscription: length of the filter (2), filter, and the fields of the table below |
//!
//! A subscription is kept under the session's name, two NULs and the filter, so that it is deleted with the session:
//!
//! | size | what |
//! |---|---|
//! | 1 | QoS |
//! | 1 | bit 0 no local, bit 1 retain as published |
//! | 4 | id or 0 |

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::away::Parked;
use super::core::{Core, consumer_name, session_route};
use super::registry::expires;
use super::session::{Session, Subscription, split_share};
use super::waiting_will::WaitingWill;
use crate::access::identity::SessionName;
use crate::access::in_force::RightsInForce;
use crate::access::places::PlaceHolder;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::journal::{Full, PART, Position};
use crate::message::{Qos, check_filter};
use crate::mqtt::Will;

const VERSION: u8 = 2;
const WITHOUT_OWNER: u8 = 1;
/// How often to check whether the card has caught up.
const BEHIND: Duration = Duration::from_millis(20);

/// The data of a persistent session that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptSession {
    /// How long the session outlives its connection, in seconds.
    pub expiry: u32,
    /// The user who owns the session, as a session name; `None` if it is unknown.
    pub owner: Option<Box<str>>,
    /// When its client left, as a stamp of [`crate::journal::Journal::stamp`]; earlier versions wrote Unix time.
    pub left_unix_ms: Option<i64>,
    /// The subscriptions of a session that an older gateway has kept, by filter as the client wrote it.
    pub subscriptions: Vec<(Box<str>, SubscriptionOptions)>,
}

impl KeptSession {
    fn of(session: &Session, left_unix_ms: Option<i64>) -> KeptSession {
        KeptSession {
            expiry: session.expiry,
            owner: Some(session.owner.clone()),
            left_unix_ms,
            subscriptions: Vec::new(),
        }
    }

    /// Encodes the session in the layout of the module.
    pub fn encode(&self) -> Vec<u8> {
        let owner = self.owner.as_deref();
        let mut out = vec![if owner.is_some() { VERSION } else { WITHOUT_OWNER }];
        out.extend_from_slice(&self.expiry.to_le_bytes());
        out.extend_from_slice(&self.left_unix_ms.unwrap_or(0).to_le_bytes());
        if let Some(owner) = owner {
            out.extend_from_slice(&(owner.len() as u32).to_le_bytes());
            out.extend_from_slice(owner.as_bytes());
        }
        out
    }

    /// Decodes a session; `None` if the bytes are not valid.
    pub fn decode(bytes: &[u8]) -> Option<KeptSession> {
        let mut rest = bytes;
        let mut take = |len: usize| {
            let (part, left) = rest.split_at_checked(len)?;
            rest = left;
            Some(part)
        };
        let &[version @ (VERSION | WITHOUT_OWNER)] = take(1)? else { return None };
        let expiry = u32::from_le_bytes(take(4)?.try_into().ok()?);
        let left = i64::from_le_bytes(take(8)?.try_into().ok()?);
        let owner = match version {
            VERSION => {
                let len = u32::from_le_bytes(take(4)?.try_into().ok()?);
                Some(std::str::from_utf8(take(len as usize)?).ok()?.into())
            }
            _ => None,
        };
        let mut subscriptions = Vec::new();
        while let Some(len) = take(2) {
            let filter = std::str::from_utf8(take(usize::from(u16::from_le_bytes(len.try_into().ok()?)))?).ok()?;
            subscriptions.push((filter.into(), decode_options(take(OPTIONS_LEN)?)?));
        }
        Some(KeptSession { expiry, owner, left_unix_ms: (left != 0).then_some(left), subscriptions })
    }
}

const OPTIONS_LEN: usize = 6;

fn encode_options(options: &SubscriptionOptions) -> [u8; OPTIONS_LEN] {
    let [a, b, c, d] = options.id.unwrap_or(0).to_le_bytes();
    let flags = u8::from(options.no_local) | u8::from(options.retain_as_published) << 1;
    [options.qos as u8, flags, a, b, c, d]
}

fn decode_options(bytes: &[u8]) -> Option<SubscriptionOptions> {
    let &[qos, flags, a, b, c, d] = bytes else { return None };
    let id = u32::from_le_bytes([a, b, c, d]);
    Some(SubscriptionOptions {
        qos: Qos::from_u8(qos)?,
        no_local: flags & 1 != 0,
        retain_as_published: flags & 2 != 0,
        id: (id > 0).then_some(id),
    })
}

/// The name of a subscription of this session.
fn part(session: &str, filter: &str) -> String {
    format!("{session}{PART}{filter}")
}

impl Core {
    /// When a client may change its session again, if its user has written too much to the card, or the card is behind.
    /// Subscriptions of a session that ends with its connection are not written, so they do not wait for those who write.
    pub(super) fn card_turn(&self, session: &Session, holder: &PlaceHolder) -> Option<Instant> {
        if session.expiry == 0 && session.durable.is_none() {
            return None;
        }
        let is_behind = || self.ingress.journal().is_behind().then(|| Instant::now() + BEHIND);
        self.allowance.until(holder).or_else(is_behind)
    }

    /// The same for a client that connects.
    pub(super) async fn wait_for_card(&self, holder: &PlaceHolder) {
        self.allowance.wait(holder).await;
        self.ingress.journal().catch_up().await;
    }

    /// Whether the journal can hold a subscription of this session.
    pub(super) fn can_keep(&self, session: &Session, filter: &str) -> bool {
        let name = session.name.len() + PART.len() + filter.len();
        session.durable.is_none() || self.ingress.journal().can_keep(name, OPTIONS_LEN)
    }

    /// Keeps a subscription of a persistent session; `None` deletes it. Returns the position to wait for before the client
    /// may rely on it. Nothing is written if the journal has it already. Fails if it would be gone after a restart.
    pub(super) fn keep_subscription(
        &self,
        session: &mut Session,
        filter: &str,
        options: Option<&SubscriptionOptions>,
    ) -> Result<Option<Position>, Full> {
        if session.durable.is_none() {
            return Ok(None);
        }
        if options.is_some() && !session.is_kept {
            self.keep(session, true);
            if !session.is_kept {
                return Err(Full);
            }
        }
        let value = options.map(encode_options);
        let name = part(&session.name, filter);
        let kept = self.ingress.journal().keep_session(&name, value.as_ref().map(|value| &value[..]), false);
        let (position, bytes) = kept?;
        self.charge(session, bytes);
        Ok(Some(position))
    }

    /// Keeps the present state of a persistent session. It is written together with the next other record.
    pub(super) fn keep(&self, session: &mut Session, is_connected: bool) {
        if session.durable.is_none() {
            return;
        }
        let left = (!is_connected).then(|| self.ingress.journal().stamp());
        self.keep_as(session, &KeptSession::of(session, left));
    }

    fn keep_as(&self, session: &mut Session, kept: &KeptSession) {
        let journal = self.ingress.journal();
        if !session.is_kept {
            // subscriptions are written first, so that none is missing if a crash follows
            let kept_all = session.subscriptions.iter().all(|(filter, known)| {
                let (name, value) = (part(&session.name, filter), encode_options(&known.options));
                journal.keep_session(&name, Some(&value), true).is_ok()
            });
            if !kept_all {
                return;
            }
            session.is_kept = true;
        }
        // if the journal cannot write, the session stays in memory, and the journal has reported its failure
        match journal.keep_session(&session.name, Some(&kept.encode()), true) {
            Ok((_, bytes)) => self.charge(session, bytes),
            Err(Full) => session.is_kept = false,
        }
    }

    /// Charges the owner of a session for bytes that a change has written.
    pub(super) fn charge(&self, session: &Session, bytes: usize) {
        if let Some(holder) = session.held.holder().filter(|_| bytes > 0) {
            self.allowance.charge(holder, bytes);
        }
    }

    /// Restores what the journal has kept.
    pub(super) fn restore(self: &Arc<Core>) {
        let journal = self.ingress.journal().clone();
        let recovered = journal.recovered();
        let retained = self.ingress.restore_retained(&recovered.retained);
        let (mut sessions, mut waiting) = (0, 0);
        let mut wills: HashMap<Box<str>, Will> = self.kept_wills().into_iter().collect();
        self.find_groups();
        for (name, bytes) in &recovered.sessions {
            let Some(kept) = KeptSession::decode(bytes) else {
                warn!(client_id = %SessionName::of(name), "a kept session cannot be read: its client begins anew");
                let _ = journal.keep_session(name, None, true);
                continue;
            };
            let will = wills.remove(kept.owner.as_ref().unwrap_or(name));
            waiting += self.restore_session(name, &kept, will);
            sessions += 1;
        }
        *self.orphaned_wills.lock() = wills.into_iter().collect();
        let known: HashSet<&str> = recovered.sessions.iter().map(|(name, _)| &**name).collect();
        for (name, id, backlog) in journal.consumers() {
            if let Some(session) = name.strip_prefix("session/")
                && !known.contains(session)
            {
                let client_id = SessionName::of(session);
                info!(%client_id, messages = backlog.messages, "messages of a session that has ended are dropped");
                journal.remove(id);
            }
        }
        self.drop_lost_groups();
        if retained + sessions > 0 {
            info!(retained, sessions, waiting, "retained messages and persistent sessions are back");
        }
    }

    fn restore_session(&self, name: &str, kept: &KeptSession, will: Option<Will>) -> usize {
        let mut session = self.new_session(name, 1, true, kept.expiry);
        if let Some(owner) = &kept.owner {
            session.owner = owner.clone();
        }
        let owner = session.owner.clone();
        let identity = SessionName::of(&owner).identity();
        let rights = LazyCell::new(|| Arc::new(RightsInForce::of(&self.access, identity)));
        session.held.belongs_to(&self.subscriptions, Core::holder(&owner, None));
        let prefix = part(name, "");
        let parts = self.ingress.journal().kept(&prefix);
        let parts = parts.iter().filter_map(|(part, value)| Some((&part[prefix.len()..], decode_options(value)?)));
        let listed = kept.subscriptions.iter().map(|(filter, options)| (&**filter, *options));
        for (filter, options) in &listed.chain(parts).collect::<HashMap<_, _>>() {
            let shared = split_share(filter).filter(|_| filter.starts_with("$share/"));
            if check_filter(shared.map_or(filter, |(_, inner)| inner)).is_err() {
                continue;
            }
            let group = shared.map(|(_, inner)| self.join_group(&session, filter, inner, None, *options));
            if let Some(group) = &group {
                self.bound_group(group, 1);
                if let Some(consumer) = session.awaits(*options) {
                    group.expect(consumer, Arc::clone(&rights));
                }
            }
            if group.is_none()
                && let Some(route) = session_route(&session, *options)
            {
                self.ingress.add_route(filter, route);
            }
            session.subscribe(filter, Subscription { options: *options, group });
        }
        let journal = self.ingress.journal();
        let mut waiting = 0;
        if let Some(durable) = &mut session.durable {
            session.unreleased = journal.unreleased(durable.consumer);
            waiting = durable.reader.backlog().messages;
            durable.reader.rest();
        }
        journal.register(&consumer_name(name), self.journal_limits(1));
        if !kept.subscriptions.is_empty() {
            session.is_kept = false;
            self.keep_as(&mut session, &KeptSession { subscriptions: Vec::new(), ..kept.clone() });
        }
        let now = Instant::now();
        // a client that was connected when the gateway ended left at that time, which is about now
        let away_ms = kept.left_unix_ms.map_or(0, |left| journal.elapsed_since(left) as i64);
        let left_over = u64::from(kept.expiry).saturating_sub(away_ms as u64 / 1000);
        let bound = self.settings.load().session_expiry;
        let expires = match kept.expiry {
            u32::MAX => expires(now, u32::MAX, bound.saturating_sub(Duration::from_millis(away_ms as u64))),
            _ => expires(now, left_over as u32, bound),
        };
        let will = will.map(|will| {
            let due = now + Duration::from_secs(u64::from(will.delay));
            (due, WaitingWill::kept(&self.wills, Core::holder(&owner, None), will))
        });
        self.registry.restore(&owner, Parked { session, expires, since: now, will });
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_as_it_was_written() {
        let options =
            SubscriptionOptions { qos: Qos::ExactlyOnce, no_local: true, retain_as_published: false, id: Some(7) };
        let other = SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: true, id: None };
        for options in [options, other] {
            assert_eq!(decode_options(&encode_options(&options)), Some(options));
        }
        let kept = KeptSession { expiry: u32::MAX, owner: None, left_unix_ms: Some(5), subscriptions: Vec::new() };
        let owned = KeptSession { owner: Some("u/a\0b".into()), ..kept.clone() };
        assert_eq!(KeptSession::decode(&owned.encode()), Some(owned));
        let mut bytes = kept.encode();
        assert_eq!(KeptSession::decode(&bytes), Some(kept.clone()));
        // older gateways appended the subscriptions
        for (filter, options) in [("a/+", options), ("$share/g/ü", other)] {
            bytes.extend_from_slice(&(filter.len() as u16).to_le_bytes());
            bytes.extend_from_slice(filter.as_bytes());
            bytes.extend_from_slice(&encode_options(&options));
        }
        let subscriptions = vec![("a/+".into(), options), ("$share/g/ü".into(), other)];
        assert_eq!(KeptSession::decode(&bytes), Some(KeptSession { subscriptions, ..kept }));
        assert_eq!(KeptSession::decode(&[]), None);
        assert_eq!(KeptSession::decode(&[9; 30]), None);
    }
}
