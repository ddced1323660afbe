//! Who gets live messages: the subscriptions of connected clients and of everything in the gateway that listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::filters::FilterTree;
use super::inbox::{Grant, Inbox, Queued};
use crate::message::{Batch, Entry, Origin, Qos};

/// How a subscriber wants a filter's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Largest QoS to deliver with.
    pub qos: Qos,
    /// Leave out what the subscriber itself published.
    pub no_local: bool,
    /// Keep the retain flag as published.
    pub retain_as_published: bool,
    /// Subscription id.
    pub id: Option<u32>,
}

/// A live subscriber.
#[derive(Debug)]
pub struct Subscriber {
    /// Where its messages go.
    pub inbox: Inbox,
    /// Who it is when it publishes.
    pub origin: Origin,
    /// The journal feeds it with everything above QoS 0: only QoS 0 deliveries are live.
    pub is_durable: bool,
}

#[derive(Clone, Debug)]
struct Subscription {
    subscriber: Arc<Subscriber>,
    options: SubscriptionOptions,
    /// Messages from this sequence number on.
    since: u64,
}

/// All live subscriptions.
#[derive(Debug, Default)]
pub struct Subscribers {
    tree: RwLock<FilterTree<Subscription>>,
    version: AtomicU64,
    count: AtomicUsize,
}

type Selected = SmallVec<[Subscription; 4]>;

impl Subscribers {
    /// Adds a subscription to messages from `since` on; one that the subscriber has under this filter is replaced, and
    /// goes on without a gap. Says whether it is new.
    pub fn insert(&self, filter: &str, subscriber: &Arc<Subscriber>, options: SubscriptionOptions, since: u64) -> bool {
        let mut tree = self.tree.write();
        let old = tree.remove(filter, |entry| Arc::ptr_eq(&entry.subscriber, subscriber));
        let is_new = old.is_none();
        let since = old.map_or(since, |entry| entry.since);
        tree.insert(filter, Subscription { subscriber: subscriber.clone(), options, since });
        self.changed(&tree);
        is_new
    }

    /// Removes a subscription; says whether it was there.
    pub fn remove(&self, filter: &str, subscriber: &Arc<Subscriber>) -> bool {
        let mut tree = self.tree.write();
        let was_there = tree.remove(filter, |entry| Arc::ptr_eq(&entry.subscriber, subscriber)).is_some();
        self.changed(&tree);
        was_there
    }

    fn changed(&self, tree: &FilterTree<Subscription>) {
        self.count.store(tree.len(), Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Subscriptions.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Finds subscribers for messages in order, remembering the last topic: bursts are mostly on one.
#[derive(Debug, Default)]
pub struct Matcher {
    topic: String,
    version: Option<u64>,
    selected: Selected,
}

impl Matcher {
    /// Who gets `entry`, each subscriber once: pairs of subscriber and how to deliver.
    pub fn select(
        &mut self,
        subscribers: &Subscribers,
        entry: &Entry<'_>,
        mut to: impl FnMut(&Arc<Subscriber>, Grant),
    ) {
        let topic = entry.message.topic();
        let version = subscribers.version.load(Ordering::Acquire);
        if self.version != Some(version) || self.topic != topic {
            self.version = Some(version);
            self.topic.clear();
            self.topic.push_str(topic);
            self.selected.clear();
            subscribers.tree.read().matches(topic, |found| self.selected.push(found.clone()));
            // overlapping subscriptions of one client side by side
            self.selected.sort_by_key(|found| Arc::as_ptr(&found.subscriber));
        }
        for overlapping in self.selected.chunk_by(|a, b| Arc::ptr_eq(&a.subscriber, &b.subscriber)) {
            if let Some(grant) = grant(overlapping, entry) {
                to(&overlapping[0].subscriber, grant);
            }
        }
    }
}

/// One copy for all overlapping subscriptions, at the largest QoS, with all ids [MQTT-3.3.4-4].
fn grant(overlapping: &[Subscription], entry: &Entry<'_>) -> Option<Grant> {
    let message = entry.message;
    let mut granted: Option<Grant> = None;
    for subscription in overlapping {
        let options = subscription.options;
        let is_own = options.no_local && message.origin() == subscription.subscriber.origin;
        if entry.seq < subscription.since || is_own {
            continue;
        }
        let grant = granted.get_or_insert_with(|| Grant {
            qos: Qos::AtMostOnce,
            retain: false,
            ids: SmallVec::new(),
            share: None,
        });
        grant.qos = grant.qos.max(options.qos.min(message.qos()));
        grant.retain |= options.retain_as_published && message.retain();
        grant.ids.extend(options.id);
    }
    granted.filter(|grant| !(overlapping[0].subscriber.is_durable && grant.qos > Qos::AtMostOnce))
}

/// Messages collected for each subscriber, in order, before they are offered to the inboxes.
#[derive(Debug)]
pub struct Fanout {
    subscribers: Arc<Subscribers>,
    matcher: Matcher,
    /// Subscribers and what they get.
    pub outgoing: Vec<(Arc<Subscriber>, VecDeque<Queued>)>,
}

impl Fanout {
    /// Collects for these.
    pub fn new(subscribers: Arc<Subscribers>) -> Fanout {
        Fanout { subscribers, matcher: Matcher::default(), outgoing: Vec::new() }
    }

    /// Adds what everybody gets of this batch; returns the sequence number after it.
    pub fn collect(&mut self, batch: &Batch) -> u64 {
        let mut next = batch.seq();
        let outgoing = &mut self.outgoing;
        for entry in batch.iter() {
            next = entry.seq + 1;
            let mut hint = 0;
            self.matcher.select(&self.subscribers, &entry, |subscriber, grant| {
                let queued = Queued { message: batch.message_at(entry.offset), grant };
                push(outgoing, hint, subscriber, queued);
                hint += 1;
            });
        }
        next
    }
}

/// Adds a message for a subscriber. `hint` is where to look first: fan-outs repeat their order.
fn push(
    outgoing: &mut Vec<(Arc<Subscriber>, VecDeque<Queued>)>,
    hint: usize,
    subscriber: &Arc<Subscriber>,
    queued: Queued,
) {
    let at = match outgoing.get(hint) {
        Some((known, _)) if Arc::ptr_eq(known, subscriber) => Some(hint),
        _ => outgoing.iter().position(|(known, _)| Arc::ptr_eq(known, subscriber)),
    };
    match at {
        Some(at) => outgoing[at].1.push_back(queued),
        None => outgoing.push((subscriber.clone(), VecDeque::from([queued]))),
    }
}
