//! What a pass consists of, and how far it is.

use std::collections::VecDeque;

use crate::journal::Position;
use crate::message::{Message, TopicFilter};

/// An item of a pass, to be sent if it is still correct.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// The retained message of its topic.
    Value(Message),
    /// A deletion, because no message is retained on the local topic.
    Clear {
        /// The local topic.
        local: String,
        /// The remote topic.
        remote: String,
    },
}

impl Item {
    /// The topic by which a pass orders its items.
    pub(super) fn place(&self) -> &str {
        match self {
            Item::Value(message) => message.view().topic(),
            Item::Clear { remote, .. } => remote,
        }
    }

    pub(super) fn local(&self) -> &str {
        match self {
            Item::Value(message) => message.view().topic(),
            Item::Clear { local, .. } => local,
        }
    }
}

/// How far a pass is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PassPlace {
    /// Whether it is still at the deletions, which come first.
    pub(super) is_clearing: bool,
    /// The index of the filter whose retained messages are sent.
    pub(super) filter: usize,
    /// The topic behind which it goes on.
    pub(super) after: String,
}

/// An item that was sent and not answered.
#[derive(Debug)]
pub(super) struct UnansweredItem {
    /// The number of the message on its connection.
    pub(super) number: u64,
    pub(super) item: Item,
    /// The place behind it, unless it was tried again out of turn.
    pub(super) place: Option<PassPlace>,
    /// Whether it is the first one on its connection.
    pub(super) is_first: bool,
    /// Whether the answer to it means that it has arrived.
    pub(super) is_confirmed: bool,
}

/// The end of a connection, as far as it concerns a pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassEnd {
    /// Whether the upstream may have ended the connection because of a message of the pass.
    pub(crate) by_message: bool,
    /// The number of messages that an answer was awaited for, those of the journal included.
    pub(crate) awaited: usize,
}

#[derive(Debug)]
pub(super) struct Pass {
    /// The number of losses when the pass began.
    pub(super) losses: u64,
    pub(super) filters: Vec<TopicFilter>,
    /// The place up to which items were read.
    pub(super) read: PassPlace,
    /// The place up to which everything was answered.
    pub(super) answered: PassPlace,
    pub(super) items: VecDeque<Item>,
    /// The item that was taken last, with the place behind it.
    pub(super) taken: Option<(Item, Option<PassPlace>)>,
    pub(super) unanswered: VecDeque<UnansweredItem>,
    pub(super) safe_at: Position,
    pub(super) sent: u64,
}

/// A pass that the end of a connection has cut off.
#[derive(Debug)]
pub(super) struct CutPass {
    pub(super) losses: u64,
    pub(super) filters: Vec<TopicFilter>,
    pub(super) answered: PassPlace,
}
