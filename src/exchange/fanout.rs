//! Distributes a batch to the inboxes: which subscriber gets which messages, and on what terms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::delivery::{RetainFlag, Run, Terms};
use super::hold::Holds;
use super::inbox::InboxOffer;
use super::matched_ids::MatchedIds;
use super::meter::{Meter, Walk};
use super::spare::Amount;
use super::stats::Stats;
use super::subscribers::{Matcher, Subscriber, SubscriberEntry, Subscribers};
use crate::message::{Batch, Entry, MessageRef, Origin, Qos};

/// What each subscriber gets, in order, before it is offered to the inboxes.
#[derive(Debug)]
pub(crate) struct Fanout {
    subscribers: Arc<Subscribers>,
    matcher: Matcher,
    meter: Arc<Meter>,
    /// Processor time of searches that no delivery covers, and that is not yet charged.
    cost: Duration,
    outgoing: Vec<(Arc<Subscriber>, VecDeque<Run>)>,
    /// The last ids that several messages may share.
    ids: MatchedIds,
}

/// Consecutive messages on one topic.
#[derive(Clone, Copy)]
struct Stretch {
    from: usize,
    to: usize,
    count: usize,
    first_seq: u64,
    /// The lowest and the highest QoS among them.
    qos: (Qos, Qos),
}

impl Stretch {
    fn seqs(&self) -> std::ops::Range<u64> {
        self.first_seq..self.first_seq + self.count as u64
    }
}

impl Fanout {
    pub(crate) fn new(subscribers: Arc<Subscribers>, meter: Arc<Meter>) -> Fanout {
        let (matcher, outgoing, ids) = (Matcher::default(), Vec::new(), MatchedIds::default());
        Fanout { subscribers, matcher, meter, cost: Duration::ZERO, outgoing, ids }
    }

    /// Adds the deliveries of a batch, and returns the sequence number after it.
    pub(crate) fn collect(&mut self, batch: &Batch) -> u64 {
        let mut next = batch.seq();
        let mut entries = batch.iter().peekable();
        while let Some(first) = entries.next() {
            let topic = first.message.topic();
            let end = |entry: &Entry<'_>| entry.offset + entry.message.as_bytes().len();
            let qos = first.message.qos();
            let (from, first_seq) = (first.offset, first.seq);
            let mut stretch = Stretch { from, to: end(&first), count: 1, first_seq, qos: (qos, qos) };
            while let Some(more) = entries.next_if(|entry| entry.message.is_on(topic)) {
                stretch.to = end(&more);
                stretch.count += 1;
                let qos = more.message.qos();
                stretch.qos = (stretch.qos.0.min(qos), stretch.qos.1.max(qos));
            }
            next = stretch.seqs().end;
            let mut walk = Walk::default();
            self.matcher.select(&self.subscribers, topic, stretch.first_seq, &mut walk);
            walk.visits(self.matcher.selected.len());
            let readers = self.add(batch, stretch);
            self.cost += walk.cost(readers);
        }
        if let Some(first) = batch.iter().next() {
            self.charge(first.message.origin());
        }
        next
    }

    /// Decides whether a message goes to a subscriber live or through the journal. The routes of [`super::ingress`] follow
    /// the same rule, so nothing is queued and nobody is woken for what the journal delivers. Returns the number of
    /// subscribers.
    fn add(&mut self, batch: &Batch, stretch: Stretch) -> usize {
        let mut readers = 0;
        let groups = self.matcher.selected.chunk_by(|a, b| Arc::ptr_eq(&a.subscriber, &b.subscriber));
        for (hint, overlapping) in groups.enumerate() {
            readers += 1;
            let subscriber = &overlapping[0].subscriber;
            let is_uniform = overlapping.iter().all(|entry| {
                entry.since <= stretch.first_seq
                    && stretch.seqs().end <= entry.until
                    && entry.options.no_local == overlapping[0].options.no_local
            });
            // with mixed QoS some messages may go through the journal, and others not
            if is_uniform && (!subscriber.is_durable || stretch.qos.0 == stretch.qos.1) {
                let terms = terms(overlapping.iter(), &mut self.ids);
                if !subscriber.is_fed_by_the_journal(terms.qos.min(stretch.qos.1)) {
                    let messages = batch.pack(stretch.from, stretch.to, stretch.count);
                    push(&mut self.outgoing, hint, subscriber, Run { messages, terms });
                }
                continue;
            }
            // message by message, because some options begin within this stretch or depend on the publisher
            for entry in batch.iter().filter(|entry| (stretch.from..stretch.to).contains(&entry.offset)) {
                let is_own = entry.message.origin() == subscriber.origin;
                let applies = |known: &&SubscriberEntry| known.is_for(entry.seq) && !(known.options.no_local && is_own);
                if !overlapping.iter().any(|known| applies(&known)) {
                    continue;
                }
                let terms = terms(overlapping.iter().filter(applies), &mut self.ids);
                if !subscriber.is_fed_by_the_journal(terms.qos.min(entry.message.qos())) {
                    push(&mut self.outgoing, hint, subscriber, Run::one(batch.message_at(entry.offset), terms));
                }
            }
        }
        readers
    }

    /// Charges a publisher for the searches for its subscribers.
    pub(crate) fn charge(&mut self, publisher: Origin) {
        self.meter.charge(publisher, std::mem::take(&mut self.cost));
    }

    /// Where publishers are charged.
    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// The subscribers that get this message live. Its sequence number is `seq` or higher.
    pub(crate) fn readers(&mut self, message: MessageRef<'_>, seq: u64) -> impl Iterator<Item = &Arc<Subscriber>> {
        let mut walk = Walk::default();
        self.matcher.select(&self.subscribers, message.topic(), seq, &mut walk);
        self.cost += walk.cost(0);
        let is_live = move |known: &&SubscriberEntry| {
            !known.subscriber.is_fed_by_the_journal(known.options.qos.min(message.qos()))
        };
        self.matcher.selected.iter().filter(is_live).map(|known| &known.subscriber)
    }

    /// Puts the deliveries of this batch into the inboxes. Never waits: publishers of messages that do not fit are held.
    pub(crate) fn deliver(&mut self, holds: &Arc<Holds>, stats: &Stats, batch: &Batch) {
        if self.outgoing.is_empty() {
            return;
        }
        let now = Instant::now();
        let at = holds.now(now);
        let mut counted = None;
        for (subscriber, mut queued) in self.outgoing.drain(..) {
            let lost = match subscriber.inbox.offer(&mut queued, at) {
                InboxOffer::Done => continue,
                InboxOffer::Dropped(messages) => messages,
                InboxOffer::Full => {
                    let publisher = batch.iter().next().map(|entry| entry.message.origin());
                    let amount = || Amount { messages: batch.iter().count(), bytes: batch.size() };
                    let amount = *counted.get_or_insert_with(amount);
                    publisher.map_or(0, |publisher| holds.begin(&subscriber, (publisher, amount), now))
                }
            };
            stats.publish_dropped.add(lost);
        }
    }
}

/// One copy for all overlapping subscriptions, with the highest QoS and all ids [MQTT-3.3.4-4].
fn terms<'a>(overlapping: impl Iterator<Item = &'a SubscriberEntry>, last_ids: &mut MatchedIds) -> Terms {
    let (retain, mut ids) = (RetainFlag::Clear, SmallVec::new());
    let mut terms = Terms { qos: Qos::AtMostOnce, retain, no_local: false, ids: MatchedIds::default(), share: None };
    for SubscriberEntry { options, .. } in overlapping {
        terms.qos = terms.qos.max(options.qos);
        terms.no_local |= options.no_local;
        if options.retain_as_published {
            terms.retain = RetainFlag::AsPublished;
        }
        ids.extend(options.id);
    }
    terms.ids = MatchedIds::like(last_ids, ids);
    terms
}

/// Adds a run for a subscriber. `hint` is the index to look at first, because batches often repeat the order of subscribers.
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
