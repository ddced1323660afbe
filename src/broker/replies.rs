//! Retained messages for new subscriptions of a client.
//!
//! A SUBSCRIBE may select a large part of the store with each of its filters. So only the first messages are taken when it
//! is processed. For the others a position in the order of topics is remembered, from which the store is read further as the
//! client accepts messages. A topic that changes meanwhile is sent with its new message, and then also live.
//!
//! A client may have thousands of filters that find nothing more. So what is searched for it in one turn of its
//! connection is limited, and is charged as one search.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::exchange::ingress::Ingress;
use crate::exchange::meter::Walk;
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
/// The steps that a search costs in addition to the topics that it examines.
const STEPS_OF_A_SEARCH: usize = 8;

#[derive(Debug)]
struct Reply {
    filter: Arc<str>,
    options: SubscriptionOptions,
    found: VecDeque<Message>,
    /// The topic after which the search continues, if there may be more messages.
    behind: Option<Box<str>>,
}

/// The retained messages that wait for one client.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// In the order in which they are sent.
    queue: BTreeMap<u64, Reply>,
    /// The places in the queue.
    by_filter: HashMap<Arc<str>, u64>,
    next: u64,
    bytes: usize,
    turn: SearchTurn,
}

/// The searches in one turn of the connection.
#[derive(Debug, Default)]
struct SearchTurn {
    walk: Walk,
    found: usize,
}

/// The next retained message for a client.
#[derive(Debug)]
pub(crate) enum NextReply {
    /// A message with the options of its subscription.
    Message(Message, SubscriptionOptions),
    /// Nothing is left, or the client has searched the store so much that it must wait.
    Nothing,
    /// Others have their turn first.
    Later,
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
        let filter: Arc<str> = filter.into();
        self.bytes += size(&found);
        self.by_filter.insert(filter.clone(), self.next);
        self.queue.insert(self.next, Reply { filter, options, found: found.into(), behind });
        self.next += 1;
    }

    /// Drops what is left for a filter, because the subscription has ended.
    pub(crate) fn forget(&mut self, filter: &str) {
        if let Some(at) = self.by_filter.remove(filter)
            && let Some(reply) = self.queue.remove(&at)
        {
            self.bytes -= size(&reply.found);
        }
    }

    /// The next message.
    pub(crate) fn next(&mut self, ingress: &Ingress, client: Origin) -> NextReply {
        loop {
            let Some(mut first) = self.queue.first_entry() else { return NextReply::Nothing };
            let reply = first.get_mut();
            if let Some(message) = reply.found.pop_front() {
                self.bytes -= message.size();
                return NextReply::Message(message, reply.options);
            }
            let Some(behind) = &reply.behind else {
                self.by_filter.remove(&first.remove().filter);
                continue;
            };
            if self.turn.walk.steps() >= TOPICS_AT_ONCE {
                return NextReply::Later;
            }
            if ingress.meter().turn(client).is_some() {
                return NextReply::Nothing;
            }
            let most = Portion { messages: PORTION, bytes: MOST, topics: TOPICS_AT_ONCE };
            self.turn.walk.visits(STEPS_OF_A_SEARCH);
            let SelectedRetained { found, behind } =
                ingress.retained_in(&reply.filter, behind, most, &mut self.turn.walk);
            self.turn.found += found.len();
            self.bytes += size(&found);
            (reply.found, reply.behind) = (found.into(), behind);
        }
    }

    /// Ends a turn of the connection, and charges the client for what was searched in it.
    pub(crate) fn end_turn(&mut self, ingress: &Ingress, client: Origin) {
        if self.turn.walk.steps() > 0 {
            let SearchTurn { walk, found } = std::mem::take(&mut self.turn);
            ingress.meter().charge(client, walk.cost(found));
        }
    }

    /// Takes back a message that could not be sent now.
    pub(crate) fn put_back(&mut self, message: Message) {
        if let Some(mut first) = self.queue.first_entry() {
            self.bytes += message.size();
            first.get_mut().found.push_front(message);
        }
    }
}

fn size<'a>(found: impl IntoIterator<Item = &'a Message>) -> usize {
    found.into_iter().map(Message::size).sum()
}

/// For each filter of a packet, whether it appears again later in the same packet. Its retained messages are sent once, for
/// the last appearance.
pub(crate) fn repeated(filters: &[SubscribeFilter<'_>]) -> Vec<bool> {
    let mut later = HashSet::new();
    let is_wanted = |wanted: &SubscribeFilter<'_>| wanted.retain_handling == RetainHandling::Always;
    let mut found: Vec<bool> =
        filters.iter().rev().map(|wanted| is_wanted(wanted) && !later.insert(wanted.filter)).collect();
    found.reverse();
    found
}
