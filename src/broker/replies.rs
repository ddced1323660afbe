//! Retained messages for new subscriptions of a client.
//!
//! A SUBSCRIBE may select a large part of the store with each of its filters. So only the first messages are taken when it
//! is processed. For the others a position in the order of topics is remembered, from which the store is read further as the
//! client accepts messages. A topic that changes meanwhile is sent with its new message, and then also live.

use std::collections::{HashSet, VecDeque};

use crate::exchange::ingress::Ingress;
use crate::exchange::retained::{Portion, SelectedRetained};
use crate::exchange::search::TOPICS_AT_ONCE;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::message::{Message, Origin};
use crate::mqtt::{RetainHandling, SubscribeFilter};

/// The number of messages that are taken at a time.
const PORTION: usize = 64;
/// The number of topics that are examined for a filter while its packet is processed, because one packet may have thousands
/// of filters.
const TOPICS_AT_FIRST: usize = 64;
/// Most bytes of messages that a session has taken from the store and not sent yet.
const MOST: usize = 64 << 10;

#[derive(Debug)]
struct Reply {
    filter: Box<str>,
    options: SubscriptionOptions,
    found: VecDeque<Message>,
    /// The topic after which the search continues, if there may be more messages.
    behind: Option<Box<str>>,
}

/// The retained messages that wait for one client.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    queue: VecDeque<Reply>,
    bytes: usize,
}

impl Replies {
    /// The number of filters with messages left.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// How much may be taken from the store when a subscription is made.
    pub(crate) fn room(&self) -> Portion {
        Portion { messages: PORTION, bytes: MOST.saturating_sub(self.bytes), topics: TOPICS_AT_FIRST }
    }

    /// Adds what a subscription has found. It replaces what is left for the same filter.
    pub(crate) fn add(&mut self, filter: &str, options: SubscriptionOptions, selected: SelectedRetained) {
        self.forget(filter);
        let SelectedRetained { found, behind } = selected;
        if found.is_empty() && behind.is_none() {
            return;
        }
        self.bytes += found.iter().map(Message::size).sum::<usize>();
        self.queue.push_back(Reply { filter: filter.into(), options, found: found.into(), behind });
    }

    /// Drops what is left for a filter, because the subscription has ended.
    pub(crate) fn forget(&mut self, filter: &str) {
        let bytes = &mut self.bytes;
        self.queue.retain(|reply| {
            let stays = *reply.filter != *filter;
            *bytes -= if stays { 0 } else { reply.found.iter().map(Message::size).sum() };
            stays
        });
    }

    /// The next message with the options of its subscription. `None` means that nothing is left, or that the client has
    /// searched the store so much that it must wait.
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

    /// Takes back a message that could not be sent now.
    pub(crate) fn put_back(&mut self, message: Message) {
        if let Some(reply) = self.queue.front_mut() {
            self.bytes += message.size();
            reply.found.push_front(message);
        }
    }
}

/// Returns a function that tells whether a filter appears again later in the same packet. Its retained messages are sent
/// once, for the last appearance.
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
