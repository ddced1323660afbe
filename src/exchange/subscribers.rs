//! Who gets live messages: the subscriptions of connected clients and of everything in the gateway that listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::delivery::{RetainFlag, Run, Terms};
use super::filters::FilterTree;
use super::hold::Holds;
use super::inbox::{Inbox, InboxOffer};
use super::stats::Stats;
use crate::message::{Batch, Entry, MessageRef, Origin, Qos};

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
    fn is_fed_by_the_journal(&self, qos: Qos) -> bool {
        self.is_durable && qos > Qos::AtMostOnce
    }
}

#[derive(Clone, Debug)]
struct SubscriberEntry {
    subscriber: Arc<Subscriber>,
    options: SubscriptionOptions,
    /// Messages from this sequence number on ...
    since: u64,
    /// ... and before this one: from then on other options hold.
    until: u64,
}

impl SubscriberEntry {
    fn is_for(&self, seq: u64) -> bool {
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
struct Matcher {
    topic: String,
    version: Option<u64>,
    selected: SelectedSubscriptions,
}

impl Matcher {
    /// Subscriptions to messages on a topic from this sequence number on.
    fn select(&mut self, subscribers: &Subscribers, topic: &str, seq: u64) {
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

/// What is collected for each subscriber, in order, before it is offered to the inboxes.
#[derive(Debug)]
pub(crate) struct Fanout {
    subscribers: Arc<Subscribers>,
    matcher: Matcher,
    /// Subscribers and what they get.
    outgoing: Vec<(Arc<Subscriber>, VecDeque<Run>)>,
}

/// Messages next to each other on one topic.
#[derive(Clone, Copy)]
struct Stretch {
    from: usize,
    to: usize,
    count: usize,
    first_seq: u64,
    /// Least and greatest QoS among them.
    qos: (Qos, Qos),
}

impl Stretch {
    fn seqs(&self) -> std::ops::Range<u64> {
        self.first_seq..self.first_seq + self.count as u64
    }
}

impl Fanout {
    /// Collects for these.
    pub(crate) fn new(subscribers: Arc<Subscribers>) -> Fanout {
        Fanout { subscribers, matcher: Matcher::default(), outgoing: Vec::new() }
    }

    /// Adds what everybody gets of this batch; returns the sequence number after it.
    pub(crate) fn collect(&mut self, batch: &Batch) -> u64 {
        let mut next = batch.seq();
        let mut entries = batch.iter().peekable();
        while let Some(first) = entries.next() {
            let topic = first.message.topic();
            let end = |entry: &Entry<'_>| entry.offset + entry.message.as_bytes().len();
            let qos = first.message.qos();
            let (from, first_seq) = (first.offset, first.seq);
            let mut stretch = Stretch { from, to: end(&first), count: 1, first_seq, qos: (qos, qos) };
            while let Some(more) = entries.next_if(|entry| entry.message.topic() == topic) {
                stretch.to = end(&more);
                stretch.count += 1;
                let qos = more.message.qos();
                stretch.qos = (stretch.qos.0.min(qos), stretch.qos.1.max(qos));
            }
            next = stretch.seqs().end;
            self.matcher.select(&self.subscribers, topic, stretch.first_seq);
            self.add(batch, stretch);
        }
        next
    }

    /// Here it is decided whether a message goes live to a subscriber or by the journal, which has its place among the
    /// routes of [`super::ingress`] by the same rule: nothing is queued, and nobody woken, for what the journal delivers.
    fn add(&mut self, batch: &Batch, stretch: Stretch) {
        let groups = self.matcher.selected.chunk_by(|a, b| Arc::ptr_eq(&a.subscriber, &b.subscriber));
        for (hint, overlapping) in groups.enumerate() {
            let subscriber = &overlapping[0].subscriber;
            let is_uniform = overlapping.iter().all(|entry| {
                entry.since <= stretch.first_seq
                    && stretch.seqs().end <= entry.until
                    && entry.options.no_local == overlapping[0].options.no_local
            });
            // with mixed QoS some may be durable, and some not
            if is_uniform && (!subscriber.is_durable || stretch.qos.0 == stretch.qos.1) {
                let terms = terms(overlapping.iter());
                if !subscriber.is_fed_by_the_journal(terms.qos.min(stretch.qos.1)) {
                    let messages = batch.pack(stretch.from, stretch.to, stretch.count);
                    push(&mut self.outgoing, hint, subscriber, Run { messages, terms });
                }
                continue;
            }
            // message by message; some options began within this stretch, or differ in what is the subscriber's own
            for entry in batch.iter().filter(|entry| (stretch.from..stretch.to).contains(&entry.offset)) {
                let is_own = entry.message.origin() == subscriber.origin;
                let applies = |known: &&SubscriberEntry| known.is_for(entry.seq) && !(known.options.no_local && is_own);
                if !overlapping.iter().any(|known| applies(&known)) {
                    continue;
                }
                let terms = terms(overlapping.iter().filter(applies));
                if !subscriber.is_fed_by_the_journal(terms.qos.min(entry.message.qos())) {
                    push(&mut self.outgoing, hint, subscriber, Run::one(batch.message_at(entry.offset), terms));
                }
            }
        }
    }

    /// Subscribers that get this message live, which has this sequence number or a later one.
    pub(crate) fn readers(&mut self, message: MessageRef<'_>, seq: u64) -> impl Iterator<Item = &Arc<Subscriber>> {
        self.matcher.select(&self.subscribers, message.topic(), seq);
        let is_live = move |known: &&SubscriberEntry| {
            !known.subscriber.is_fed_by_the_journal(known.options.qos.min(message.qos()))
        };
        self.matcher.selected.iter().filter(is_live).map(|known| &known.subscriber)
    }

    /// Puts what was collected of this batch into the inboxes. Waits for nobody: publishers of what does not fit are held.
    pub(crate) fn deliver(&mut self, holds: &Arc<Holds>, stats: &Stats, batch: &Batch) {
        if self.outgoing.is_empty() {
            return;
        }
        let now = Instant::now();
        let at = holds.now(now);
        for (subscriber, mut queued) in self.outgoing.drain(..) {
            let lost = match subscriber.inbox.offer(&mut queued, at) {
                InboxOffer::Done => continue,
                InboxOffer::Dropped(messages) => messages,
                InboxOffer::Full => {
                    let publisher = batch.iter().next().map(|entry| entry.message.origin());
                    publisher.map_or(0, |publisher| holds.begin(&subscriber, publisher, now))
                }
            };
            stats.publish_dropped.add(lost);
        }
    }
}

/// One copy for all overlapping subscriptions, at the largest QoS, with all ids [MQTT-3.3.4-4].
fn terms<'a>(overlapping: impl Iterator<Item = &'a SubscriberEntry>) -> Terms {
    let (retain, ids) = (RetainFlag::Clear, SmallVec::new());
    let mut terms = Terms { qos: Qos::AtMostOnce, retain, no_local: false, ids, share: None };
    for SubscriberEntry { options, .. } in overlapping {
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
