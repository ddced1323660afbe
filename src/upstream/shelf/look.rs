//! A look through a shelf: what fits goes to a lane, and the rest stays.
//!
//! The journal hands out messages in order, and those in hand are in memory. So at most [`HELD`] messages and [`HELD_BYTES`]
//! that stay are held. If there are more, the shelf turns: the held messages are written once more, behind all others, and
//! so are those that follow, so that at the end the order is the same as before. It turns as well if many messages that
//! stay were passed by others that went, because a restart would hand these out again.
//!
//! If a look ends while the shelf turns, those that are not turned yet would come before older ones. So it is recorded up to which
//! message the shelf turns, and the next look first finishes that.
//!
//! The journal takes only so much at a time. If it has no room, the look stops and goes on from there when more is on disk.

use std::collections::VecDeque;

use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Position, Reader};
use crate::message::Message;

/// The most messages that are held, and their bytes. A single message may be larger.
pub(super) const HELD: usize = 1000;
pub(super) const HELD_BYTES: usize = 4 << 20;
/// The most messages that a restart hands out again because they went past those that stay.
const MOST_PASSED: usize = 50;

/// A message that was moved, from one place in the journal to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct ShelfMove {
    pub(in crate::upstream) places: (Position, Position),
    /// Whether it has left the shelf.
    pub(in crate::upstream) is_back: bool,
}

/// A crash repeats at most so many of the messages that were moved: then the cursor of the shelf is written.
const MOST_REPEATED: usize = 32;

/// What a step of a look has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookStep {
    /// The next step may follow.
    Next,
    /// The shelf turns up to this ordinal, or not any more.
    Turns(Option<u64>),
    /// The next message is not in memory, or the journal has no room.
    Waits,
    /// All messages were looked at.
    Done,
}

/// What a look does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookPhase {
    /// It finishes what an earlier look has begun: messages up to this ordinal go behind the others.
    Rest(u64),
    /// It looks at messages up to this ordinal.
    Looks(u64),
    /// It has looked at all, and puts those that are held behind the others.
    Closes,
}

#[derive(Debug)]
pub(super) struct ShelfLook {
    reader: Reader,
    /// The shelf.
    id: ConsumerId,
    /// The filters with which it is looked through, if there are such.
    filters: Option<String>,
    phase: LookPhase,
    /// The ordinal of the last message that was looked at.
    seen: u64,
    /// The next message, if there was no room for it, and whether it goes.
    next: Option<(Delivery, bool)>,
    /// Those that stay and are not behind the others yet.
    held: VecDeque<Delivery>,
    held_bytes: usize,
    moved: usize,
    /// What was moved since this was last taken.
    moves: Vec<ShelfMove>,
    /// The number of moves since the cursor of the shelf was written.
    unsaved: usize,
    /// The number of messages that have gone past held ones.
    passed: usize,
    is_turning: bool,
    waits_for_room: bool,
}

impl ShelfLook {
    /// Begins a look. `turn` is what an earlier one has not finished.
    pub(super) fn new(journal: &Journal, id: ConsumerId, filters: Option<String>, turn: Option<u64>) -> ShelfLook {
        ShelfLook {
            reader: journal.reader(id),
            id,
            filters,
            phase: turn.map_or_else(|| LookPhase::Looks(journal.newest(id)), LookPhase::Rest),
            seen: 0,
            next: None,
            held: VecDeque::new(),
            held_bytes: 0,
            moved: 0,
            moves: Vec::new(),
            unsaved: 0,
            passed: 0,
            is_turning: false,
            waits_for_room: false,
        }
    }

    pub(super) fn moved(&self) -> usize {
        self.moved
    }

    /// What was moved since the last call.
    pub(super) fn take_moves(&mut self) -> Vec<ShelfMove> {
        std::mem::take(&mut self.moves)
    }

    pub(super) fn into_filters(self) -> Option<String> {
        self.filters
    }

    /// Waits until there is more to look at. Safe to cancel.
    pub(super) async fn ready(&self) {
        self.reader.ready().await;
    }

    pub(super) fn waits_for_room(&self) -> bool {
        self.waits_for_room
    }

    /// The bytes of the messages that are held.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held.iter().map(|held| held.message.size()).sum()
    }

    /// Does what comes next; messages that fit go to this consumer.
    pub(super) fn step(
        &mut self,
        journal: &Journal,
        to: ConsumerId,
        fits: &mut impl FnMut(&Message) -> bool,
    ) -> LookStep {
        self.waits_for_room = false;
        let step = match self.phase {
            LookPhase::Rest(last) => self.finish_turn(journal, last),
            LookPhase::Looks(last) => self.look(journal, last, to, fits),
            LookPhase::Closes => self.close(journal),
        };
        let Some(step) = step else {
            self.waits_for_room = true;
            self.save(journal);
            return LookStep::Waits;
        };
        if matches!(step, LookStep::Done | LookStep::Turns(None)) {
            self.save(journal);
        }
        step
    }

    /// Writes the cursor of the shelf, so that a crash does not repeat what was moved.
    fn save(&mut self, journal: &Journal) {
        if std::mem::take(&mut self.unsaved) > 0 {
            journal.save_cursors();
        }
    }

    /// The next message up to this ordinal, `Err(true)` if there is none, and `Err(false)` if it is not in memory yet.
    fn next_up_to(&mut self, last: u64) -> Result<Delivery, bool> {
        // limits may have dropped some meanwhile
        if self.seen >= last || !self.reader.has_unread() {
            return Err(true);
        }
        let delivery = self.reader.try_next().ok_or(false)?;
        if delivery.ordinal > last {
            self.reader.put_back(delivery);
            return Err(true);
        }
        self.seen = delivery.ordinal;
        Ok(delivery)
    }

    /// Puts the next message that an earlier look has not turned behind the others. Returns `None` if there is no room.
    fn finish_turn(&mut self, journal: &Journal, last: u64) -> Option<LookStep> {
        let next = self.next.take().map(|(delivery, _)| delivery);
        match next.map_or_else(|| self.next_up_to(last), Ok) {
            Ok(delivery) if self.move_to(journal, &delivery, self.id) => Some(LookStep::Next),
            Ok(delivery) => {
                self.next = Some((delivery, false));
                None
            }
            Err(true) => {
                self.phase = LookPhase::Looks(journal.newest(self.id));
                Some(LookStep::Turns(None))
            }
            Err(false) => Some(LookStep::Waits),
        }
    }

    /// Looks at the next message. Returns `None` if there is no room where it belongs.
    fn look(
        &mut self,
        journal: &Journal,
        last: u64,
        to: ConsumerId,
        fits: &mut impl FnMut(&Message) -> bool,
    ) -> Option<LookStep> {
        let (delivery, does_fit) = match self.next.take() {
            Some(next) => next,
            None => match self.next_up_to(last) {
                Ok(delivery) => {
                    let does_fit = fits(&delivery.message);
                    (delivery, does_fit)
                }
                Err(true) => {
                    self.phase = LookPhase::Closes;
                    return Some(LookStep::Next);
                }
                Err(false) => return Some(LookStep::Waits),
            },
        };
        let size = delivery.message.size();
        let is_full = self.held.len() >= HELD || self.held_bytes + size > HELD_BYTES;
        if !does_fit && is_full && !self.held.is_empty() {
            self.next = Some((delivery, does_fit));
            return self.turn(journal, last);
        }
        if !does_fit {
            self.held_bytes += size;
            self.held.push_back(delivery);
        } else if self.move_to(journal, &delivery, to) {
            self.moved += 1;
            self.passed += usize::from(!self.held.is_empty());
        } else {
            self.next = Some((delivery, does_fit));
            return None;
        }
        Some(LookStep::Next)
    }

    /// Puts the oldest held message behind the others, after it was recorded that the shelf turns. Returns `None` if there is
    /// no room.
    fn turn(&mut self, journal: &Journal, last: u64) -> Option<LookStep> {
        if !std::mem::replace(&mut self.is_turning, true) {
            return Some(LookStep::Turns(Some(last)));
        }
        let oldest = self.held.pop_front()?;
        if !self.move_to(journal, &oldest, self.id) {
            self.held.push_front(oldest);
            return None;
        }
        self.held_bytes -= oldest.message.size();
        Some(LookStep::Next)
    }

    /// Puts what is still held behind the others, if that is needed. Returns `None` if there is no room.
    fn close(&mut self, journal: &Journal) -> Option<LookStep> {
        if !self.held.is_empty() && (self.is_turning || self.passed > MOST_PASSED) {
            return self.turn(journal, self.seen);
        }
        if std::mem::take(&mut self.is_turning) {
            return Some(LookStep::Turns(None));
        }
        Some(LookStep::Done)
    }

    /// Moves a message to the end of this consumer's. Returns whether the journal has taken it.
    fn move_to(&mut self, journal: &Journal, delivery: &Delivery, to: ConsumerId) -> bool {
        let Ok(there) = journal.append(&delivery.message, &[to]) else { return false };
        self.reader.settle_as(delivery.position, Outcome::Moved);
        self.moves.push(ShelfMove { places: (delivery.position, there), is_back: to != self.id });
        self.unsaved += 1;
        if self.unsaved >= MOST_REPEATED {
            self.save(journal);
        }
        true
    }
}
