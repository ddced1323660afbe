//! A look through a shelf: what fits goes to a lane, and the rest stays.
//!
//! What stays is only read, and not kept in memory. It is not written either, because it is where it should be: a look at which
//! nothing goes, or only what is oldest, writes nothing else, however large the shelf is.
//!
//! The cursor of the shelf cannot move over what stays, so a restart would hand out again what has gone past it. If that is more
//! than [`MOST_PASSED`], the shelf turns: it is read again from the beginning, and what stays is written once more, behind all
//! others, so that at the end the order is the same as before.
//!
//! If a look ends while the shelf turns, those that are not turned yet would come before older ones. So it is recorded up to which
//! message the shelf turns, and the next look first finishes that.
//!
//! The journal takes only so much at a time. If it has no room, the look stops and goes on from there when more is on disk.

use crate::journal::{ConsumerId, Delivery, Journal, Outcome, Position, Reader};
use crate::message::Message;

/// The most messages that a restart hands out again because they went past those that stay.
pub(super) const MOST_PASSED: usize = 50;

/// A message that was moved, from one place in the journal to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct ShelfMove {
    pub(in crate::upstream) places: (Position, Position),
    /// Its ordinal on the shelf; `None` if it has left that.
    pub(in crate::upstream) ordinal: Option<u64>,
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
    /// The same, and puts those that stay behind the others.
    Turns(u64),
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
    /// Whether a message stays where it is.
    has_staying: bool,
    moved: usize,
    /// What was moved since this was last taken.
    moves: Vec<ShelfMove>,
    /// The number of moves since the cursor of the shelf was written.
    unsaved: usize,
    /// The number of messages that have gone past those that stay, in this look or an earlier one.
    passed: usize,
    waits_for_room: bool,
}

impl ShelfLook {
    /// Begins a look. `turn` is what an earlier one has not finished.
    pub(super) fn new(journal: &Journal, id: ConsumerId, filters: Option<String>, turn: Option<u64>) -> ShelfLook {
        let reader = journal.reader(id);
        ShelfLook {
            passed: reader.passed(),
            reader,
            id,
            filters,
            phase: turn.map_or_else(|| LookPhase::Looks(journal.newest(id)), LookPhase::Rest),
            seen: 0,
            next: None,
            has_staying: false,
            moved: 0,
            moves: Vec::new(),
            unsaved: 0,
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
            LookPhase::Looks(last) | LookPhase::Turns(last) => self.look(journal, last, to, fits),
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
                self.passed = self.reader.passed();
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
        let turns = matches!(self.phase, LookPhase::Turns(_));
        let (delivery, does_fit) = match self.next.take() {
            Some(next) => next,
            None => match self.next_up_to(last) {
                Ok(delivery) => {
                    let does_fit = fits(&delivery.message);
                    (delivery, does_fit)
                }
                Err(true) if turns => {
                    self.phase = LookPhase::Looks(self.seen);
                    return Some(LookStep::Turns(None));
                }
                Err(true) => return Some(LookStep::Done),
                Err(false) => return Some(LookStep::Waits),
            },
        };
        if !does_fit && !turns {
            self.reader.let_go(&delivery);
            self.has_staying = true;
            return Some(LookStep::Next);
        }
        if !self.move_to(journal, &delivery, if does_fit { to } else { self.id }) {
            self.next = Some((delivery, does_fit));
            return None;
        }
        self.moved += usize::from(does_fit);
        self.passed += usize::from(does_fit && self.has_staying);
        Some(if !turns && self.passed > MOST_PASSED { self.turn(last) } else { LookStep::Next })
    }

    /// Begins again with the oldest message, and puts those that stay behind the others.
    fn turn(&mut self, last: u64) -> LookStep {
        self.reader.rewind();
        (self.phase, self.seen) = (LookPhase::Turns(last), 0);
        LookStep::Turns(Some(last))
    }

    /// Moves a message to the end of this consumer's. Returns whether the journal has taken it.
    fn move_to(&mut self, journal: &Journal, delivery: &Delivery, to: ConsumerId) -> bool {
        let Ok(there) = journal.append(&delivery.message, &[to]) else { return false };
        self.reader.settle_as(delivery.position, Outcome::Moved);
        let ordinal = (to == self.id).then(|| journal.newest(to));
        self.moves.push(ShelfMove { places: (delivery.position, there), ordinal });
        self.unsaved += 1;
        if self.unsaved >= MOST_REPEATED {
            self.save(journal);
        }
        true
    }
}
