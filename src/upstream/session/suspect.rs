//! Which message an upstream closes the connection for.

use super::{STRIKES, Session, SessionAction, Source};
use crate::journal::Position;
use crate::status::ledger::{DropReason, Outcome};
use crate::upstream::lanes::Lane;

/// A message that was unanswered when the upstream closed the connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    position: Position,
    strikes: u32,
    /// Up to here messages go one at a time, per lane; `None`: this lane is not concerned.
    until: [Option<Position>; 2],
}

impl Suspect {
    /// What is left of the suspicion when a lane is past this place.
    pub(super) fn past(mut self, lane: Lane, position: Position) -> Option<Suspect> {
        let until = &mut self.until[lane.index()];
        *until = until.filter(|until| *until > position);
        self.until.iter().any(Option::is_some).then_some(self)
    }
}

impl Session {
    /// The upstream closed the connection while this was the oldest message without an answer.
    pub(super) fn suspect(&mut self, source: &Source, actions: &mut Vec<SessionAction>) {
        let &Source { lane, position, ref message, .. } = source;
        let mut until = self.suspect.map_or([None; 2], |suspect| suspect.until);
        for source in self.in_flight.iter().filter_map(|message| message.source.as_ref()) {
            let until = &mut until[source.lane.index()];
            *until = (*until).max(Some(source.position));
        }
        let alone = self.in_flight.iter().filter(|message| message.source.is_some()).count() == 1;
        let before = self.suspect.filter(|suspect| suspect.position == position).map_or(0, |suspect| suspect.strikes);
        let strikes = before + u32::from(alone);
        self.suspect = Some(Suspect { position, strikes, until });
        if strikes >= STRIKES {
            let why = "the upstream closes the connection whenever it gets this message";
            self.counts.add_loss(&self.name, DropReason::EndsConnection, message.view().topic(), why);
            self.suspect = self.suspect.and_then(|suspect| suspect.past(lane, position));
            actions.push(SessionAction::Settle(lane, position, Outcome::Dropped(DropReason::EndsConnection)));
        }
    }

    /// Whether messages of this lane are to be handed over before those of the other, one at a time, because one of
    /// them may be what the upstream closes connections for.
    pub fn suspects(&self, lane: Lane) -> bool {
        self.suspect.is_some_and(|suspect| suspect.until[lane.index()].is_some())
    }

    /// Nothing waits in this lane: nothing in it is suspected any more.
    pub fn acquit(&mut self, lane: Lane) {
        self.suspect = self.suspect.and_then(|suspect| suspect.past(lane, Position(u64::MAX)));
    }
}
