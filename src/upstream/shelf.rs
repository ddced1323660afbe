//! Keeps what waited and fits no rule any more, and what waits because the upstream does not take its topic.
//!
//! A changed rule may be a mistake, so messages that wait and that no rule matches are not dropped: they go to a consumer of
//! their own in the journal, the shelf, which is the first to give way when the journal is full. When rules are applied, the
//! shelf is looked through, and what they match goes back to a lane whose messages are sent before new ones. Messages are moved as
//! one that is put off is: written once more and settled in the old place, so a crash in between may double them.
//!
//! Messages whose topic an upstream denies ([`super::session`]) go to a second shelf. They come back when the session says so. The
//! oldest of them gives way when a limit is reached, also with `when_full = "refuse"`, because they must not keep out messages
//! that the upstream takes.

use std::collections::VecDeque;
use std::future::pending;

use tracing::{info, warn};

use crate::access::owner::{SHELF, denied_consumer, shelf_consumer};
use crate::journal::{Backlog, ConsumerId, Delivery, Full, Journal, Limits, Outcome, Position, Reader, WhenFull};
use crate::message::{Message, TopicFilter};

/// The number of messages that are looked at before other work gets a turn.
const AT_ONCE: usize = 128;
/// The most messages without a rule that are held while the shelf is looked through. Beyond them, the oldest becomes the last one.
const HELD: usize = 1000;

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
    /// Whether the last look has seen everything.
    is_done: bool,
    is_said: bool,
    /// What was moved since this was last taken.
    moves: Vec<ShelfMove>,
}

/// A message that was moved, from one place in the journal to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShelfMove {
    pub(super) places: (Position, Position),
    /// Whether it has left the shelf.
    pub(super) is_back: bool,
}

/// A look through the shelf.
#[derive(Debug)]
struct ShelfLook {
    reader: Reader,
    /// The filters with which it is looked through, if there are such.
    filters: Option<String>,
    /// The number of messages that have not been looked at.
    left: usize,
    /// Those without a rule.
    held: VecDeque<Delivery>,
    moved: usize,
    /// Whether those without a rule are written once more, in order, behind those that have not been looked at.
    is_turning: bool,
}

impl ShelfLook {
    /// Moves a message to the end of this consumer's, and returns both places if the journal has taken it.
    fn move_to(&mut self, journal: &Journal, delivery: &Delivery, to: ConsumerId) -> Option<(Position, Position)> {
        let there = journal.append(&delivery.message, &[to]).ok()?;
        self.reader.settle_as(delivery.position, Outcome::Moved);
        Some((delivery.position, there))
    }

    /// Moves the oldest held message to the end of the shelf.
    fn move_held(&mut self, journal: &Journal, shelf: ConsumerId) -> Option<ShelfMove> {
        let oldest = self.held.pop_front()?;
        self.move_to(journal, &oldest, shelf).map(|places| ShelfMove { places, is_back: false })
    }
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

    fn named(journal: &Journal, upstream: &str, consumer: String, limits: Limits) -> Shelf {
        let (journal, upstream) = (journal.clone(), upstream.to_owned());
        let is_known = journal.consumers().iter().any(|(known, ..)| **known == *consumer);
        let (id, look, moves) = (None, None, Vec::new());
        let mut shelf = Shelf { journal, upstream, consumer, limits, id, look, is_done: false, is_said: false, moves };
        if is_known {
            shelf.register();
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

    fn record(&self) -> String {
        format!("{PREFIX}{}\0", self.upstream)
    }

    /// Puts a message onto the shelf, and returns its place in the journal.
    pub(super) fn put(&mut self, message: &Message) -> Result<Position, Full> {
        let id = self.register();
        self.journal.append(message, &[id])
    }

    /// What was moved since the last call.
    pub(super) fn take_moves(&mut self) -> Vec<ShelfMove> {
        std::mem::take(&mut self.moves)
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
        (self.look, self.is_said) = (None, false);
        let filters: Vec<_> = filters.iter().map(ToString::to_string).collect();
        let (filters, left) = (filters.join("\n"), self.backlog().messages);
        let last = self.journal.kept(&self.record()).into_iter().next();
        if let Some(id) = self.id.filter(|_| left > 0 && last.is_none_or(|(_, last)| last != filters)) {
            self.begin_look(id, left, Some(filters));
        }
    }

    /// Begins to look at all messages. Returns whether there are any.
    pub(super) fn look_at_all(&mut self) -> bool {
        let left = self.backlog().messages;
        if let Some(id) = self.id.filter(|_| left > 0) {
            self.begin_look(id, left, None);
        }
        self.is_looking()
    }

    fn begin_look(&mut self, id: ConsumerId, left: usize, filters: Option<String>) {
        self.is_done = false;
        let (reader, held) = (self.journal.reader(id), VecDeque::new());
        self.look = Some(ShelfLook { reader, filters, left, held, moved: 0, is_turning: false });
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
            Some(look) => look.reader.ready().await,
            None => pending().await,
        }
    }

    /// Looks at the next messages, and moves those that fit to this consumer. Returns whether there are more in memory.
    pub(super) fn take_back(&mut self, mut fits: impl FnMut(&str) -> bool, to: ConsumerId) -> bool {
        let (Some(look), Some(shelf)) = (&mut self.look, self.id) else { return false };
        for _ in 0..AT_ONCE {
            // limits may have dropped some meanwhile
            if look.left == 0 || self.journal.backlog(shelf).messages <= look.held.len() {
                self.ended();
                return false;
            }
            let Some(delivery) = look.reader.try_next() else { return false };
            look.left -= 1;
            let does_fit = fits(delivery.message.view().topic());
            if !does_fit {
                look.held.push_back(delivery);
                if look.held.len() <= HELD {
                    continue;
                }
                look.is_turning = true;
                let Some(moved) = look.move_held(&self.journal, shelf) else {
                    self.look = None;
                    return false;
                };
                self.moves.push(moved);
            } else if let Some(places) = look.move_to(&self.journal, &delivery, to) {
                look.moved += 1;
                self.moves.push(ShelfMove { places, is_back: true });
            } else {
                // it stays here until the next connection
                self.look = None;
                return false;
            }
        }
        true
    }

    fn ended(&mut self) {
        let Some(mut look) = self.look.take() else { return };
        self.is_done = true;
        while let Some(id) = self.id.filter(|_| look.is_turning && !look.held.is_empty()) {
            let Some(moved) = look.move_held(&self.journal, id) else { break };
            self.moves.push(moved);
        }
        let Some(filters) = look.filters else { return };
        // if this cannot be written, the shelf is looked through once more
        let _ = self.journal.keep(&self.record(), Some(filters.as_bytes()), false);
        if look.moved > 0 {
            let (upstream, messages) = (&self.upstream, look.moved);
            info!(
                upstream,
                messages, "messages that had waited without a rule go up, because a rule matches them again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::WhenFull;
    use crate::message::{Draft, matches};

    const LIMITS: Limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts.iter().map(|text| TopicFilter::new(*text).unwrap()).collect()
    }

    async fn take_back(shelf: &mut Shelf, texts: &[&str], to: ConsumerId) {
        let filters = filters(texts);
        shelf.look(&filters);
        while shelf.is_looking() {
            let more = shelf.take_back(|topic| filters.iter().any(|filter| matches(filter, topic)), to);
            if !more && shelf.is_looking() {
                shelf.ready().await;
            }
        }
    }

    #[tokio::test]
    async fn what_a_rule_matches_again_leaves_in_order_and_the_rest_stays() {
        let journal = Journal::default();
        let lane = journal.register("upstream/home", LIMITS);
        let mut shelf = Shelf::new(&journal, "home", LIMITS);
        let count = 5 * HELD;
        for number in 0..count {
            let topic = if number % 5 == 4 { "attic" } else { "loft" };
            shelf.put_unmeant(&Message::new(&Draft::new(topic, number.to_string().as_bytes()))).unwrap();
        }
        // as after a restart
        drop(shelf);
        let mut shelf = Shelf::new(&journal, "home", LIMITS);
        take_back(&mut shelf, &["lofts"], lane).await;
        assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (count, 0));
        shelf.look(&filters(&["lofts"]));
        assert!(!shelf.is_looking(), "with these filters it was done");
        take_back(&mut shelf, &["attic"], lane).await;
        assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (count / 5 * 4, count / 5));
        take_back(&mut shelf, &["#"], lane).await;
        assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (0, count));
        let mut reader = journal.reader(lane);
        let (attic, loft): (Vec<_>, Vec<_>) = (0..count).partition(|number| number % 5 == 4);
        for number in attic.into_iter().chain(loft) {
            let delivery = loop {
                match reader.try_next() {
                    Some(delivery) => break delivery,
                    None => reader.ready().await,
                }
            };
            assert_eq!(delivery.message.view().payload(), number.to_string().as_bytes());
        }
        shelf.put_unmeant(&Message::new(&Draft::new("loft", b""))).unwrap();
        shelf.look(&filters(&["#"]));
        assert!(shelf.is_looking(), "it was not there when these filters were looked with");
    }
}
