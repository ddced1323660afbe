//! The groups behind shared subscriptions, and the journal consumers that keep messages for them.
//!
//! A group exists as long as a session has its subscription, whether its client is connected or not. If one of these
//! sessions is persistent and subscribed with more than QoS 0, the journal keeps messages for the group. The consumer is
//! named `share/u/USER` NUL `NAME/FILTER` if a user made the group, and `share/g/NAME/FILTER` if a client without a user
//! name did. The name shows whose share of the journal the messages use. Earlier versions made some names without the user.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::info;

use super::super::session::{Session, Subscription, split_share};
use super::{CONNECTED_FACTOR, Core};
use crate::access::identity::SessionName;
use crate::exchange::delivery::SharesOut;
use crate::exchange::shared::SharedGroup;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::journal::{ConsumerId, Journal, News};
use crate::message::Owner;

/// The most groups of one owner for which the journal keeps messages and that have the same filter without wildcards ...
const MOST_KEPT: usize = 64;
/// ... and the most that have filters with wildcards, whichever they are. A record in the journal names each group that gets
/// its message, so a message of a few bytes would take much of the card without these limits.
const MOST_KEPT_WILD: usize = 256;

/// Of the groups for which the journal keeps messages, those that are counted together: of one owner, with this filter, as
/// a hash; `None` for all filters with wildcards.
type KeptTogether = (Owner, Option<u64>);

#[derive(Debug)]
struct Group {
    group: Arc<SharedGroup>,
    /// The number of sessions with this subscription, whether their clients are connected or not.
    sessions: usize,
    /// The number of these sessions that need messages kept.
    keepers: usize,
    /// Where it is counted while there are any.
    counted: Option<KeptTogether>,
}

#[derive(Debug, Default)]
struct KnownGroups {
    by_filter: HashMap<Box<str>, Group>,
    by_consumer: HashMap<ConsumerId, Arc<SharedGroup>>,
    /// The groups for which the journal keeps messages.
    kept: HashMap<KeptTogether, usize>,
    hasher: RandomState,
    /// While sessions are restored, the names of the consumers that the journal has, by `NAME/FILTER`.
    found: HashMap<Box<str>, Box<str>>,
}

/// The groups of all shared subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    known: Mutex<KnownGroups>,
    news: Arc<News>,
}

/// Whether messages must be kept for a session while its client is absent.
fn keeps(session: &Session, options: SubscriptionOptions) -> bool {
    session.awaits(options).is_some()
}

/// The part `NAME/FILTER` of the name of a group's consumer; `None` if it is the name of another consumer.
fn group_of(consumer: &str) -> Option<&str> {
    let named = consumer.strip_prefix("share/u/").or_else(|| consumer.strip_prefix("share/g/"))?;
    Some(named.split_once('\0').map_or(named, |(_, rest)| rest))
}

/// The name of the group's consumer. If the group is new, the session's owner is part of it.
fn consumer_name(journal: &Journal, known: &KnownGroups, session: &Session, shared: &str) -> String {
    let rest = shared.strip_prefix("$share/").unwrap_or(shared);
    let own = match SessionName::of(&session.owner).user {
        Some(user) => format!("share/u/{user}\0{rest}"),
        None => format!("share/g/{rest}"),
    };
    if journal.backlog_of(&own).is_some() {
        return own;
    }
    known.found.get(rest).map_or(own, |name| name.to_string())
}

fn owner(session: &Session) -> Owner {
    Owner::of(SessionName::of(&session.owner).user)
}

impl KnownGroups {
    fn together(&self, owner: Owner, filter: &str) -> KeptTogether {
        (owner, (!filter.contains(['+', '#'])).then(|| self.hasher.hash_one(filter)))
    }

    fn count(&mut self, together: KeptTogether) {
        *self.kept.entry(together).or_default() += 1;
    }

    fn discount(&mut self, together: Option<KeptTogether>) {
        let Some(together) = together else { return };
        if let Some(count) = self.kept.get_mut(&together) {
            *count -= 1;
            if *count == 0 {
                self.kept.remove(&together);
            }
        }
    }
}

impl Core {
    /// Whether the journal may keep messages for a group if a session joins it.
    pub(in crate::broker) fn may_keep_group(
        &self,
        session: &Session,
        (shared, filter): (&str, &str),
        options: SubscriptionOptions,
    ) -> bool {
        if !keeps(session, options) {
            return true;
        }
        let known = self.groups.known.lock();
        let (owner, wild) = known.together(owner(session), filter);
        let most = if wild.is_none() { MOST_KEPT_WILD } else { MOST_KEPT };
        known.by_filter.get(shared).is_some_and(|group| group.keepers > 0)
            || known.kept.get(&(owner, wild)).is_none_or(|count| *count < most)
    }

    /// Adds a session to the group behind `$share/NAME/FILTER`. `old` has the options of a session that is in the group
    /// already.
    pub(in crate::broker) fn join_group(
        &self,
        session: &Session,
        shared: &str,
        filter: &str,
        old: Option<SubscriptionOptions>,
        new: SubscriptionOptions,
    ) -> Arc<SharedGroup> {
        let mut guard = self.groups.known.lock();
        let known = &mut *guard;
        let entry = known.by_filter.entry(shared.into()).or_insert_with(|| {
            let owner = self.ingress.group_owner(owner(session));
            let group = SharedGroup::of(owner, self.inbox_limits(), Some(&self.queues));
            Group { group, sessions: 0, keepers: 0, counted: None }
        });
        let is_new = entry.sessions == 0;
        let had = entry.keepers > 0;
        entry.sessions += usize::from(old.is_none());
        entry.keepers -= usize::from(old.is_some_and(|old| keeps(session, old)));
        entry.keepers += usize::from(keeps(session, new));
        let (has, group) = (entry.keepers > 0, entry.group.clone());
        if is_new || has != had {
            let before = entry.counted.take();
            known.discount(before);
            let consumer = has.then(|| self.begin_to_keep(session, (shared, filter), known, &group));
            self.ingress.set_group(filter, &group, consumer);
        }
        group
    }

    fn begin_to_keep(
        &self,
        session: &Session,
        (shared, filter): (&str, &str),
        known: &mut KnownGroups,
        group: &Arc<SharedGroup>,
    ) -> ConsumerId {
        let together = known.together(owner(session), filter);
        known.count(together);
        if let Some(entry) = known.by_filter.get_mut(shared) {
            entry.counted = Some(together);
        }
        let journal = self.ingress.journal();
        group.consumer().unwrap_or_else(|| {
            let name = consumer_name(journal, known, session, shared);
            let consumer = journal.register(&name, self.journal_limits(CONNECTED_FACTOR));
            known.by_consumer.insert(consumer, group.clone());
            let reader = journal.reader_with_news(consumer, self.groups.news.clone());
            group.keep(journal, consumer, reader);
            consumer
        })
    }

    /// Limits what waits for a group. The limit is lower if no member is connected.
    pub(in crate::broker) fn bound_group(&self, group: &SharedGroup, factor: usize) {
        if let Some(consumer) = group.consumer() {
            self.ingress.journal().bound(consumer, self.journal_limits(factor));
        }
    }

    /// Cleans up after a subscription, except for its live part.
    pub(in crate::broker) fn drop_subscription(&self, session: &Session, filter: &str, subscription: &Subscription) {
        let Some(group) = &subscription.group else {
            if let Some(route) = super::session_route(session, subscription.options) {
                self.ingress.remove_route(filter, &route);
            }
            return;
        };
        if let Some(consumer) = session.consumer() {
            group.forget(consumer);
        }
        let mut guard = self.groups.known.lock();
        let known = &mut *guard;
        let (Some(entry), Some((_, inner))) = (known.by_filter.get_mut(filter), split_share(filter)) else { return };
        entry.sessions -= 1;
        entry.keepers -= usize::from(keeps(session, subscription.options));
        let (sessions, keepers) = (entry.sessions, entry.keepers);
        if keepers == 0 {
            let counted = entry.counted.take();
            known.discount(counted);
        }
        if sessions == 0 {
            known.by_filter.remove(filter);
            self.ingress.remove_group(inner, group);
            if let Some(consumer) = group.consumer() {
                known.by_consumer.remove(&consumer);
                self.ingress.journal().remove(consumer);
            }
        } else if keepers == 0 {
            // the kept messages go to the remaining sessions
            self.ingress.set_group(inner, group, None);
        }
    }

    /// The number of groups.
    pub(crate) fn group_count(&self) -> usize {
        self.groups.known.lock().by_filter.len()
    }

    /// Prepares for restoring sessions: their groups find the consumers that have messages for them. Consumers of groups
    /// that are made later have no messages yet, and a search for each would look at those of all others.
    pub(in crate::broker) fn find_groups(&self) {
        let found = &mut self.groups.known.lock().found;
        for (name, ..) in self.ingress.journal().consumers() {
            let Some(group) = group_of(&name) else { continue };
            let known = found.entry(group.into()).or_insert_with(|| name.clone());
            if name < *known {
                *known = name;
            }
        }
    }

    /// Deletes what was kept for groups that no session belongs to any more.
    pub(in crate::broker) fn drop_lost_groups(&self) {
        let journal = self.ingress.journal();
        let mut known = self.groups.known.lock();
        known.found = HashMap::new();
        for (name, id, backlog) in journal.consumers() {
            if name.starts_with("share/") && !known.by_consumer.contains_key(&id) {
                let messages = backlog.messages;
                info!(consumer = &*name, messages, "messages of a shared subscription that has ended are dropped");
                journal.remove(id);
            }
        }
    }

    /// Distributes the journal's messages for groups until cancelled.
    pub(crate) async fn share(self: Arc<Self>) {
        loop {
            let consumer = tokio::select! {
                () = self.cancel.cancelled() => return,
                consumer = self.groups.news.next() => consumer,
            };
            let group = self.groups.known.lock().by_consumer.get(&consumer).cloned();
            if let Some(group) = group {
                group.look();
            }
        }
    }
}
