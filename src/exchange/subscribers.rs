//! The live subscriptions of connected clients and of everything in the gateway that listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::delivery::InboxId;
use super::filters::{FilterTree, FilterValue};
use super::inbox::Inbox;
use super::meter::Walk;
use crate::message::{Origin, Qos};

/// How a subscriber wants the messages of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionOptions {
    /// The highest QoS of deliveries.
    pub(crate) qos: Qos,
    /// Whether the subscriber's own messages are left out.
    pub(crate) no_local: bool,
    /// Whether messages keep the retain flag of the publication.
    pub(crate) retain_as_published: bool,
    pub(crate) id: Option<u32>,
}

/// Several groups of a session may have the same filter, and their entries differ at most in the options.
impl FilterValue for SubscriptionOptions {
    type Key = SubscriptionOptions;

    fn key(&self) -> SubscriptionOptions {
        *self
    }
}

#[derive(Debug)]
pub(crate) struct Subscriber {
    /// The queue of its messages.
    pub(crate) inbox: Inbox,
    /// The origin of its own messages.
    pub(crate) origin: Origin,
    /// Whether the journal delivers everything above QoS 0, so that only QoS 0 is delivered live.
    pub(crate) is_durable: bool,
}

impl Subscriber {
    /// Whether the journal delivers messages to this subscriber at this QoS.
    pub(super) fn is_fed_by_the_journal(&self, qos: Qos) -> bool {
        self.is_durable && qos > Qos::AtMostOnce
    }
}

/// A subscription of a live subscriber.
#[derive(Clone, Debug)]
pub(super) struct SubscriberEntry {
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) options: SubscriptionOptions,
    /// The first sequence number for which the subscription applies ...
    pub(super) since: u64,
    /// ... and the first for which other options apply.
    pub(super) until: u64,
}

/// An entry belongs to a subscriber, which may have one with old options beside it.
impl FilterValue for SubscriberEntry {
    type Key = InboxId;

    fn key(&self) -> InboxId {
        self.subscriber.inbox.id()
    }
}

impl SubscriberEntry {
    pub(super) fn is_for(&self, seq: u64) -> bool {
        (self.since..self.until).contains(&seq)
    }

    /// Merges with another entry if that makes no difference from this sequence number on, so that thousands of overlapping
    /// filters of one client cost a batch no more than one.
    fn absorbs(&mut self, other: &SubscriberEntry, seq: u64) -> bool {
        let is_plain =
            |known: &SubscriberEntry| known.since <= seq && known.until == u64::MAX && known.options.id.is_none();
        let is_like = Arc::ptr_eq(&self.subscriber, &other.subscriber)
            && self.options.no_local == other.options.no_local
            && is_plain(self)
            && is_plain(other);
        if is_like {
            self.options.qos = self.options.qos.max(other.options.qos);
            self.options.retain_as_published |= other.options.retain_as_published;
        }
        is_like
    }
}

#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    tree: RwLock<FilterTree<SubscriberEntry>>,
    version: AtomicU64,
    count: AtomicUsize,
}

type SelectedSubscriptions = SmallVec<[SubscriberEntry; 4]>;

impl Subscribers {
    /// Adds a subscription for messages from `since` on. It replaces an earlier one of the subscriber with the same filter,
    /// without a gap. If messages before `since` may still be on their way (`is_quiet` is false), they get the old options.
    /// Returns whether the subscription is new.
    pub(crate) fn insert(
        &self,
        filter: &str,
        subscriber: &Arc<Subscriber>,
        options: SubscriptionOptions,
        since: u64,
        is_quiet: bool,
    ) -> bool {
        let mut tree = self.tree.write();
        let mut entry = SubscriberEntry { subscriber: subscriber.clone(), options, since, until: u64::MAX };
        let mut current = None;
        while let Some(old) = tree.remove(filter, &subscriber.inbox.id()) {
            if old.until == u64::MAX {
                current = Some(old);
            }
        }
        let is_new = current.is_none();
        match current {
            Some(old) if is_quiet || old.options == options => entry.since = old.since,
            Some(old) => tree.insert(filter, SubscriberEntry { until: since, ..old }),
            None => {}
        }
        tree.insert(filter, entry);
        self.changed(usize::from(is_new), 0);
        is_new
    }

    /// Removes a subscription, and returns whether it existed.
    pub(crate) fn remove(&self, filter: &str, subscriber: &Arc<Subscriber>) -> bool {
        let mut tree = self.tree.write();
        let mut was_there = false;
        while tree.remove(filter, &subscriber.inbox.id()).is_some() {
            was_there = true;
        }
        self.changed(0, usize::from(was_there));
        was_there
    }

    fn changed(&self, more: usize, fewer: usize) {
        self.count.fetch_add(more, Ordering::Relaxed);
        self.count.fetch_sub(fewer, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// A subscriber to this topic.
    #[cfg(test)]
    pub(crate) fn any_to(&self, topic: &str) -> Option<Arc<Subscriber>> {
        let mut matcher = Matcher::default();
        matcher.select(self, topic, 0, &mut Walk::default());
        matcher.selected.first().map(|found| found.subscriber.clone())
    }

    /// The number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// Finds the subscriptions for topics, and remembers the last topic, because bursts are mostly on one.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    topic: String,
    version: Option<u64>,
    pub(super) selected: SelectedSubscriptions,
}

impl Matcher {
    /// Finds the subscriptions for messages on a topic from this sequence number on.
    pub(super) fn select(&mut self, subscribers: &Subscribers, topic: &str, seq: u64, walk: &mut Walk) {
        let version = subscribers.version.load(Ordering::Acquire);
        if self.version != Some(version) || self.topic != topic {
            self.version = Some(version);
            self.topic.clear();
            self.topic.push_str(topic);
            self.selected.clear();
            subscribers.tree.read().matches(topic, walk, |found| {
                let last = self.selected.last_mut();
                if !last.is_some_and(|last| last.absorbs(found, seq)) {
                    self.selected.push(found.clone());
                }
            });
            // put overlapping subscriptions of one client side by side, and merge them where possible
            self.selected.sort_by_key(|found| Arc::as_ptr(&found.subscriber));
            self.selected.dedup_by(|later, first| first.absorbs(later, seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::inbox::InboxLimits;
    use super::*;

    #[test]
    fn thousands_of_overlapping_filters_of_one_client_are_one_delivery() {
        let limits = InboxLimits { messages: 5, bytes: 10_000 };
        let [subscriber, other] = ["a", "b"].map(|name| {
            let inbox = Inbox::new(name, limits);
            Arc::new(Subscriber { inbox, origin: Origin::client(name), is_durable: false })
        });
        let subscribers = Subscribers::default();
        for number in 0..4096_u32 {
            let levels: Vec<&str> = (0..12).map(|bit| if number >> bit & 1 == 1 { "+" } else { "a" }).collect();
            let qos = if number == 7 { Qos::ExactlyOnce } else { Qos::AtMostOnce };
            let options = SubscriptionOptions { qos, no_local: false, retain_as_published: number == 9, id: None };
            subscribers.insert(&levels.join("/"), &subscriber, options, 3, true);
        }
        let mut matcher = Matcher::default();
        matcher.select(&subscribers, &["a"; 12].join("/"), 3, &mut Walk::default());
        // an entry of another subscriber with the same filters is between them in the tree
        let both = Subscribers::default();
        let options =
            SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };
        for filter in ["a/a", "a/+", "+/a", "+/+"] {
            for subscriber in [&subscriber, &other] {
                both.insert(filter, subscriber, options, 3, true);
            }
        }
        let mut of_both = Matcher::default();
        of_both.select(&both, "a/a", 3, &mut Walk::default());
        assert_eq!(of_both.selected.len(), 2);
        let options = matcher.selected[0].options;
        assert_eq!((matcher.selected.len(), options.qos), (1, Qos::ExactlyOnce));
        assert!(options.retain_as_published);
        // entries that begin within the examined stretch cannot be merged
        matcher.select(&subscribers, &["a"; 12].join("/"), 2, &mut Walk::default());
        assert_eq!(matcher.selected.len(), 1, "remembered");
        let mut matcher = Matcher::default();
        matcher.select(&subscribers, &["a"; 12].join("/"), 2, &mut Walk::default());
        assert_eq!(matcher.selected.len(), 4096);
    }
}
