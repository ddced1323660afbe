//! Keeps what waited and fits no rule any more, and what waits because the upstream does not take its topic.
//!
//! A changed rule may be a mistake, so messages that wait and that no rule matches are not dropped: they go to a consumer of
//! their own in the journal, the shelf, which is the first to give way when the journal is full. When rules are applied, the
//! shelf is looked through, and what they match goes back to a lane whose messages are sent before new ones. Messages are moved as
//! one that is put off is: written once more and settled in the old place, so a crash in between may double them.
//!
//! Messages whose topic an upstream denies ([`super::session`]) go to a second shelf. They come back when the session says so. The
//! oldest of them gives way when a limit is reached, also with `when_full = "refuse"`, because they must not keep out messages
//! that the upstream takes. The same holds for a third shelf, for messages that are larger than the present address takes.

mod look;

use std::future::pending;

use bytes::Bytes;
use tracing::{info, warn};

pub(super) use self::look::ShelfMove;
use self::look::{LookStep, ShelfLook};
use crate::access::owner::{SHELF, denied_consumer, large_consumer, shelf_consumer};
use crate::journal::{Backlog, ConsumerId, Full, Journal, Limits, Position, WhenFull};
use crate::message::{Message, TopicFilter};

/// The number of messages that are looked at before other work gets a turn.
const AT_ONCE: usize = 128;

/// The prefix of the records of the filters with which the shelf was looked through last, so that it is not done again with every
/// connection.
pub(super) const PREFIX: &str = "\0shelf/";

/// One shelf of one upstream.
#[derive(Debug)]
pub(super) struct Shelf {
    journal: Journal,
    upstream: String,
    /// The name of its consumer in the journal.
    consumer: String,
    limits: Limits,
    id: Option<ConsumerId>,
    look: Option<ShelfLook>,
    /// The last ordinal of those messages that an unfinished look must put behind the others: see [`ShelfLook`].
    turn: Option<u64>,
    /// Whether the last look has seen everything.
    is_done: bool,
    is_said: bool,
    /// What ended looks have moved since this was last taken.
    moves: Vec<ShelfMove>,
}

impl Shelf {
    /// The shelf of this upstream for what fits no rule.
    pub(super) fn new(journal: &Journal, upstream: &str, limits: Limits) -> Shelf {
        Shelf::named(journal, upstream, shelf_consumer(upstream), limits)
    }

    /// The shelf of this upstream for denied topics.
    pub(super) fn of_denied(journal: &Journal, upstream: &str, limits: Limits) -> Shelf {
        let limits = Limits { when_full: WhenFull::DropOldest, ..limits };
        Shelf::named(journal, upstream, denied_consumer(upstream), limits)
    }

    /// The shelf of this upstream for what is larger than its address takes.
    pub(super) fn of_large(journal: &Journal, upstream: &str, limits: Limits) -> Shelf {
        let limits = Limits { when_full: WhenFull::DropOldest, ..limits };
        Shelf::named(journal, upstream, large_consumer(upstream), limits)
    }

    fn named(journal: &Journal, upstream: &str, consumer: String, limits: Limits) -> Shelf {
        let (journal, upstream) = (journal.clone(), upstream.to_owned());
        let is_known = journal.consumers().iter().any(|(known, ..)| **known == *consumer);
        let mut shelf = Shelf {
            journal,
            upstream,
            consumer,
            limits,
            id: None,
            look: None,
            turn: None,
            is_done: false,
            is_said: false,
            moves: Vec::new(),
        };
        if is_known {
            shelf.register();
            let turn = shelf.kept(&shelf.turn_record()).and_then(|turn| <[u8; 8]>::try_from(&*turn).ok());
            shelf.turn = turn.map(u64::from_le_bytes);
        }
        shelf
    }

    fn register(&mut self) -> ConsumerId {
        *self.id.get_or_insert_with(|| {
            let id = self.journal.register(&self.consumer, self.limits);
            self.journal.orphan(id);
            id
        })
    }

    /// The name of the record of the filters.
    fn record(&self) -> String {
        format!("{PREFIX}{}\0", self.upstream)
    }

    /// The name of the record of [`Shelf::turn`].
    fn turn_record(&self) -> String {
        format!("{PREFIX}{}\0turn\0{}", self.upstream, self.consumer)
    }

    fn kept(&self, record: &str) -> Option<Bytes> {
        self.journal.kept(record).into_iter().find(|(name, _)| **name == *record).map(|(_, value)| value)
    }

    /// Keeps what the session has noted of the size that the upstream does not take.
    pub(super) fn note_size(&self, note: Option<&[u8]>) {
        // without it, a start tries these messages one after the other
        let _ = self.journal.keep(&self.size_record(), note, true);
    }

    /// What was kept.
    pub(super) fn size_note(&self) -> Option<Bytes> {
        self.kept(&self.size_record())
    }

    fn size_record(&self) -> String {
        format!("{PREFIX}{}\0size", self.upstream)
    }

    /// Whether a message can be put onto the shelf later, if there is no room for it now.
    pub(super) fn may_have_room_for(&self, message: &Message) -> bool {
        !self.journal.appender().is_too_large(message, 1)
    }

    /// Puts a message onto the shelf, and returns its place in the journal.
    pub(super) fn put(&mut self, message: &Message) -> Result<Position, Full> {
        let id = self.register();
        self.journal.append(message, &[id])
    }

    /// The consumer of the shelf, once there is one, and the ordinal of the message that was put there last.
    pub(super) fn last(&self) -> Option<(ConsumerId, u64)> {
        self.id.map(|id| (id, self.journal.newest(id)))
    }

    /// What was moved since the last call.
    pub(super) fn take_moves(&mut self) -> Vec<ShelfMove> {
        let mut moves = std::mem::take(&mut self.moves);
        moves.extend(self.look.iter_mut().flat_map(ShelfLook::take_moves));
        moves
    }

    /// Puts a message onto the shelf that fits no rule any more.
    pub(super) fn put_unmeant(&mut self, message: &Message) -> Result<Position, Full> {
        let place = self.put(message)?;
        if !std::mem::replace(&mut self.is_said, true) {
            // what was looked through before does not contain it
            let _ = self.journal.keep(&self.record(), None, false);
            warn!(
                upstream = self.upstream,
                topic = message.view().topic(),
                "messages waited that no rule of the upstream matches any more: they are kept, go up when a rule matches them \
                 again, and are the first to give way when the journal is full; pigateway journal DIR --discard {}{SHELF} \
                 removes them",
                self.upstream
            );
        }
        Ok(place)
    }

    /// What lies on the shelf.
    pub(super) fn backlog(&self) -> Backlog {
        self.id.map(|id| self.journal.backlog(id)).unwrap_or_default()
    }

    /// Begins to look for messages that these filters match, unless that was done with the same filters before.
    pub(super) fn look(&mut self, filters: &[TopicFilter]) {
        self.moves = self.take_moves();
        (self.look, self.is_said) = (None, false);
        let filters: Vec<_> = filters.iter().map(ToString::to_string).collect();
        let filters = filters.join("\n");
        let is_new = self.turn.is_some() || self.kept(&self.record()).is_none_or(|last| last != filters);
        if let Some(id) = self.id.filter(|_| is_new && self.backlog().messages > 0) {
            self.begin_look(id, Some(filters));
        }
    }

    /// Begins to look at all messages. Returns whether there are any.
    pub(super) fn look_at_all(&mut self) -> bool {
        self.moves = self.take_moves();
        self.look = None;
        if let Some(id) = self.id.filter(|_| self.backlog().messages > 0) {
            self.begin_look(id, None);
        }
        self.is_looking()
    }

    fn begin_look(&mut self, id: ConsumerId, filters: Option<String>) {
        self.is_done = false;
        self.look = Some(ShelfLook::new(&self.journal, id, filters, self.turn));
    }

    /// Whether the shelf is being looked through. New messages wait for that.
    pub(super) fn is_looking(&self) -> bool {
        self.look.is_some()
    }

    /// Whether the last look has seen everything.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Waits until there is more to look at. Safe to cancel.
    pub(super) async fn ready(&self) {
        match &self.look {
            Some(look) => look.ready().await,
            None => pending().await,
        }
    }

    /// Whether the look goes on when the journal has room for what it moves: when more is on disk.
    pub(super) fn waits_for_room(&self) -> bool {
        self.look.as_ref().is_some_and(ShelfLook::waits_for_room)
    }

    /// Looks at the next messages, and moves those that fit to this consumer. Returns whether there is more to do at once, here
    /// or, if the look is over, with new messages.
    pub(super) fn take_back(&mut self, mut fits: impl FnMut(&Message) -> bool, to: ConsumerId) -> bool {
        for _ in 0..AT_ONCE {
            let Some(look) = &mut self.look else { return false };
            match look.step(&self.journal, to, &mut fits) {
                LookStep::Next => {}
                LookStep::Turns(turn) => {
                    // if that cannot be written, a crash meanwhile may change the order
                    let value = turn.map(u64::to_le_bytes);
                    let _ = self.journal.keep(&self.turn_record(), value.as_ref().map(|it| &it[..]), turn.is_none());
                    self.turn = turn;
                }
                LookStep::Waits => return false,
                LookStep::Done => {
                    self.ended();
                    return true;
                }
            }
        }
        true
    }

    fn ended(&mut self) {
        let Some(mut look) = self.look.take() else { return };
        self.is_done = true;
        self.moves.append(&mut look.take_moves());
        let messages = look.moved();
        let Some(filters) = look.into_filters() else { return };
        // if this cannot be written, the shelf is looked through once more
        let _ = self.journal.keep(&self.record(), Some(filters.as_bytes()), false);
        if messages > 0 {
            info!(
                upstream = self.upstream,
                messages, "messages that had waited without a rule go up, because a rule matches them again"
            );
        }
    }
}

#[cfg(test)]
mod tests;
