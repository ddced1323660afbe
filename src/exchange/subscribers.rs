//! Who gets live messages: the subscriptions of connected clients and of everything in the gateway that listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::filters::FilterTree;
use super::inbox::Inbox;
use crate::message::{Origin, Qos};

/// How a subscriber wants a filter's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Largest QoS to deliver with.
    pub(crate) qos: Qos,
    /// Leave out what the subscriber itself published.
    pub(crate) no_local: bool,
    /// Keep the retain flag as published.
    pub(crate) retain_as_published: bool,
    /// Subscription id.
    pub(crate) id: Option<u32>,
}

/// A live subscriber.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// Where its messages go.
    pub(crate) inbox: Inbox,
    /// Who it is when it publishes.
    pub(crate) origin: Origin,
    /// The journal feeds it with everything above QoS 0: only QoS 0 deliveries are live.
    pub(crate) is_durable: bool,
}

impl Subscriber {
    /// Whether the journal delivers what this subscriber gets with this QoS.
    pub(super) fn is_fed_by_the_journal(&self, qos: Qos) -> bool {
        self.is_durable && qos > Qos::AtMostOnce
    }
}

/// A subscription of a live subscriber.
#[derive(Clone, Debug)]
pub(super) struct SubscriberEntry {
    pub(super) subscriber: Arc<Subscriber>,
    pub(super) options: SubscriptionOptions,
    /// Messages from this sequence number on ...
    pub(super) since: u64,
    /// ... and before this one: from then on other options hold.
    pub(super) until: u64,
}

impl SubscriberEntry {
    pub(super) fn is_for(&self, seq: u64) -> bool {
        (self.since..self.until).contains(&seq)
    }

    /// Becomes both, if from this sequence number on that makes no difference: thousands of overlapping filters of one client
    /// cost a batch no more than one.
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

/// All live subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    tree: RwLock<FilterTree<SubscriberEntry>>,
    version: AtomicU64,
    count: AtomicUsize,
}

type SelectedSubscriptions = SmallVec<[SubscriberEntry; 4]>;

impl Subscribers {
    /// Adds a subscription to messages from `since` on; one that the subscriber has under this filter is replaced, and
    /// goes on without a gap. Where messages before `since` may still be on their way (`is_quiet` is false), those go by the
    /// options of their time. Says whether it is new.
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
        while let Some(old) = tree.remove(filter, |entry| Arc::ptr_eq(&entry.subscriber, subscriber)) {
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

    /// Removes a subscription; says whether it was there.
    pub(crate) fn remove(&self, filter: &str, subscriber: &Arc<Subscriber>) -> bool {
        let mut tree = self.tree.write();
        let mut was_there = false;
        while tree.remove(filter, |entry| Arc::ptr_eq(&entry.subscriber, subscriber)).is_some() {
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

    /// Subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// Finds subscribers for topics, remembering the last one: bursts are mostly on one topic.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    topic: String,
    version: Option<u64>,
    pub(super) selected: SelectedSubscriptions,
}

impl Matcher {
    /// Subscriptions to messages on a topic from this sequence number on.
    pub(super) fn select(&mut self, subscribers: &Subscribers, topic: &str, seq: u64) {
        let version = subscribers.version.load(Ordering::Acquire);
        if self.version != Some(version) || self.topic != topic {
            self.version = Some(version);
            self.topic.clear();
            self.topic.push_str(topic);
            self.selected.clear();
            subscribers.tree.read().matches(topic, |found| {
                let last = self.selected.last_mut();
                if !last.is_some_and(|last| last.absorbs(found, seq)) {
                    self.selected.push(found.clone());
                }
            });
            // overlapping subscriptions of one client side by side, and one wherever they can be
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
        matcher.select(&subscribers, &["a"; 12].join("/"), 3);
        // another with the same filters stands between them in the tree
        let both = Subscribers::default();
        let options =
            SubscriptionOptions { qos: Qos::AtMostOnce, no_local: false, retain_as_published: false, id: None };
        for filter in ["a/a", "a/+", "+/a", "+/+"] {
            for subscriber in [&subscriber, &other] {
                both.insert(filter, subscriber, options, 3, true);
            }
        }
        let mut of_both = Matcher::default();
        of_both.select(&both, "a/a", 3);
        assert_eq!(of_both.selected.len(), 2);
        let options = matcher.selected[0].options;
        assert_eq!((matcher.selected.len(), options.qos), (1, Qos::ExactlyOnce));
        assert!(options.retain_as_published);
        // while some of them begin in the middle of what is looked at, they are not one
        matcher.select(&subscribers, &["a"; 12].join("/"), 2);
        assert_eq!(matcher.selected.len(), 1, "remembered");
        let mut matcher = Matcher::default();
        matcher.select(&subscribers, &["a"; 12].join("/"), 2);
        assert_eq!(matcher.selected.len(), 4096);
    }
}
