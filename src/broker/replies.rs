//! Retained messages that a client is to get for its new subscriptions.
//!
//! What a SUBSCRIBE selects may be a large part of the store, for each of its filters. So only the first of it is taken at that
//! moment; for the rest a place in the order of topics is remembered, from which the store is read on as the client
//! takes what it gets. A topic that changes meanwhile comes with its new message, and then live as well.

use std::collections::{HashSet, VecDeque};

use crate::exchange::ingress::Ingress;
use crate::exchange::retained::{Portion, SelectedRetained};
use crate::exchange::search::TOPICS_AT_ONCE;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::message::{Message, Origin};
use crate::mqtt::{RetainHandling, SubscribeFilter};

/// Messages that are taken at a time.
const PORTION: usize = 64;
/// Topics that are looked at for a filter while its packet is dealt with; there may be thousands in one.
const TOPICS_AT_FIRST: usize = 64;
/// Bytes of messages that a session has taken and not been sent.
const MOST: usize = 64 << 10;

#[derive(Debug)]
struct Reply {
    filter: Box<str>,
    options: SubscriptionOptions,
    found: VecDeque<Message>,
    /// There may be more, on topics behind this one.
    behind: Option<Box<str>>,
}

/// The answers to one client.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    queue: VecDeque<Reply>,
    bytes: usize,
}

impl Replies {
    /// Filters with messages left.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// What may be taken from the store at the moment of a subscription.
    pub(crate) fn room(&self) -> Portion {
        Portion { messages: PORTION, bytes: MOST.saturating_sub(self.bytes), topics: TOPICS_AT_FIRST }
    }

    /// What a subscription has found. What is left of an earlier one by the same filter is a part of it.
    pub(crate) fn add(&mut self, filter: &str, options: SubscriptionOptions, selected: SelectedRetained) {
        self.forget(filter);
        let SelectedRetained { found, behind } = selected;
        if found.is_empty() && behind.is_none() {
            return;
        }
        self.bytes += found.iter().map(Message::size).sum::<usize>();
        self.queue.push_back(Reply { filter: filter.into(), options, found: found.into(), behind });
    }

    /// The subscription has ended.
    pub(crate) fn forget(&mut self, filter: &str) {
        let bytes = &mut self.bytes;
        self.queue.retain(|reply| {
            let stays = *reply.filter != *filter;
            *bytes -= if stays { 0 } else { reply.found.iter().map(Message::size).sum() };
            stays
        });
    }

    /// The next message, and how the client wants it; `None`: nothing is left, or the client has searched the store so much that
    /// it must wait for its turn.
    pub(crate) fn next(&mut self, ingress: &Ingress, client: Origin) -> Option<(Message, SubscriptionOptions)> {
        loop {
            let reply = self.queue.front_mut()?;
            if let Some(message) = reply.found.pop_front() {
                self.bytes -= message.size();
                return Some((message, reply.options));
            }
            let Some(behind) = &reply.behind else {
                self.queue.pop_front();
                continue;
            };
            if ingress.meter().turn(client).is_some() {
                return None;
            }
            let most = Portion { messages: PORTION, bytes: MOST, topics: TOPICS_AT_ONCE };
            let SelectedRetained { found, behind } = ingress.retained_behind(&reply.filter, behind, most, client);
            self.bytes += found.iter().map(Message::size).sum::<usize>();
            (reply.found, reply.behind) = (found.into(), behind);
        }
    }

    /// Takes back what could not be sent now.
    pub(crate) fn put_back(&mut self, message: Message) {
        if let Some(reply) = self.queue.front_mut() {
            self.bytes += message.size();
            reply.found.push_front(message);
        }
    }
}

/// Says of which filters the same stands further behind in the same packet: retained messages are sent once, for the last.
pub(crate) fn repeated(filters: &[SubscribeFilter<'_>]) -> impl Fn(usize) -> bool {
    let mut later = HashSet::new();
    let is_wanted = |wanted: &SubscribeFilter<'_>| wanted.retain_handling == RetainHandling::Always;
    let mut found: HashSet<usize> = HashSet::new();
    for (at, wanted) in filters.iter().enumerate().rev().filter(|(_, wanted)| is_wanted(wanted)) {
        if !later.insert(wanted.filter) {
            found.insert(at);
        }
    }
    move |at| found.contains(&at)
}
