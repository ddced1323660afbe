//! Who gets live messages: the subscriptions of connected clients and of everything in the gateway that listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;

use super::filters::FilterTree;
use super::inbox::{Inbox, RetainFlag, Run, Terms};
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

/// Finds subscribers for topics, remembering the last one: bursts are mostly on one topic.
#[derive(Debug, Default)]
struct Matcher {
    topic: String,
    version: Option<u64>,
    selected: Selected,
}

impl Matcher {
    fn select(&mut self, subscribers: &Subscribers, topic: &str) {
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
    }
}

/// What is collected for each subscriber, in order, before it is offered to the inboxes.
#[derive(Debug)]
pub struct Fanout {
    subscribers: Arc<Subscribers>,
    matcher: Matcher,
    /// Subscribers and what they get.
    pub outgoing: Vec<(Arc<Subscriber>, VecDeque<Run>)>,
}

/// Messages next to each other on one topic.
#[derive(Clone, Copy)]
struct Stretch {
    from: usize,
    to: usize,
    count: usize,
    first_seq: u64,
}

impl Fanout {
    /// Collects for these.
    pub fn new(subscribers: Arc<Subscribers>) -> Fanout {
        Fanout { subscribers, matcher: Matcher::default(), outgoing: Vec::new() }
    }

    /// Adds what everybody gets of this batch; returns the sequence number after it.
    pub fn collect(&mut self, batch: &Batch) -> u64 {
        let mut next = batch.seq();
        let mut entries = batch.iter().peekable();
        while let Some(first) = entries.next() {
            let topic = first.message.topic();
            let end = |entry: &Entry<'_>| entry.offset + entry.message.as_bytes().len();
            let mut stretch = Stretch { from: first.offset, to: end(&first), count: 1, first_seq: first.seq };
            while let Some(more) = entries.next_if(|entry| entry.message.topic() == topic) {
                stretch.to = end(&more);
                stretch.count += 1;
            }
            next = stretch.first_seq + stretch.count as u64;
            self.matcher.select(&self.subscribers, topic);
            self.add(batch, stretch);
        }
        next
    }

    fn add(&mut self, batch: &Batch, stretch: Stretch) {
        let groups = self.matcher.selected.chunk_by(|a, b| Arc::ptr_eq(&a.subscriber, &b.subscriber));
        for (hint, overlapping) in groups.enumerate() {
            let subscriber = &overlapping[0].subscriber;
            let is_uniform = overlapping.iter().all(|entry| {
                entry.since <= stretch.first_seq && entry.options.no_local == overlapping[0].options.no_local
            });
            if is_uniform {
                let messages = batch.pack(stretch.from, stretch.to, stretch.count);
                let terms = terms(overlapping.iter());
                push(&mut self.outgoing, hint, subscriber, Run { messages, terms });
                continue;
            }
            // some began within this stretch, or differ in what is their own: message by message
            for entry in batch.iter().filter(|entry| (stretch.from..stretch.to).contains(&entry.offset)) {
                let is_own = entry.message.origin() == subscriber.origin;
                let applies = |known: &&Subscription| known.since <= entry.seq && !(known.options.no_local && is_own);
                if overlapping.iter().any(|known| applies(&known)) {
                    let terms = terms(overlapping.iter().filter(applies));
                    push(&mut self.outgoing, hint, subscriber, Run::one(batch.message_at(entry.offset), terms));
                }
            }
        }
    }
}

/// One copy for all overlapping subscriptions, at the largest QoS, with all ids [MQTT-3.3.4-4].
fn terms<'a>(overlapping: impl Iterator<Item = &'a Subscription>) -> Terms {
    let (retain, ids) = (RetainFlag::Clear, SmallVec::new());
    let mut terms = Terms { qos: Qos::AtMostOnce, retain, no_local: false, ids, share: None };
    for Subscription { options, .. } in overlapping {
        terms.qos = terms.qos.max(options.qos);
        terms.no_local |= options.no_local;
        if options.retain_as_published {
            terms.retain = RetainFlag::AsPublished;
        }
        terms.ids.extend(options.id);
    }
    terms
}

/// Adds a run for a subscriber. `hint` is where to look first: fan-outs repeat their order.
fn push(outgoing: &mut Vec<(Arc<Subscriber>, VecDeque<Run>)>, hint: usize, subscriber: &Arc<Subscriber>, run: Run) {
    let at = match outgoing.get(hint) {
        Some((known, _)) if Arc::ptr_eq(known, subscriber) => Some(hint),
        _ => outgoing.iter().position(|(known, _)| Arc::ptr_eq(known, subscriber)),
    };
    match at {
        Some(at) => outgoing[at].1.push_back(run),
        None => outgoing.push((subscriber.clone(), VecDeque::from([run]))),
    }
}
