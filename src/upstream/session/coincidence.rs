//! Ends of connections that have nothing to do with the messages in flight: the upstream has its own reasons, or another client
//! with the same client id takes the connection over, which MQTT 3.1.1 does not tell [MQTT-3.1.4-2].
//!
//! With traffic some message is always in flight at such an end. If it is acknowledged on the next connection, it was not the
//! reason. After [`MANY`] such ends in a row no message is suspected, so that messages are not sent one at a time for nothing.
//! A message that does end connections is the oldest unanswered one at two ends in a row sooner or later, and that begins the
//! count anew.

use super::{SentMessage, UpstreamSession};
use crate::journal::Position;
use crate::upstream::lanes::Lane;

/// The number of ends in a row after which the next one is a coincidence too.
const MANY: u32 = 2;

/// What is known of the last ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Coincidences {
    /// The oldest message that was unanswered at the last end.
    at: Option<(Lane, Position)>,
    /// Whether the last end is known to have had another reason.
    is_refuted: bool,
    in_a_row: u32,
}

impl Coincidences {
    /// Records that a message was acknowledged.
    pub(super) fn acked(&mut self, place: (Lane, Position)) {
        self.is_refuted |= self.at == Some(place);
    }

    /// Records the end of a connection with this oldest unanswered message. Returns whether it seems to be a coincidence.
    fn ended(&mut self, at: Option<(Lane, Position)>) -> bool {
        self.in_a_row = if self.is_refuted { self.in_a_row.saturating_add(1) } else { 0 };
        (self.at, self.is_refuted) = (at, at.is_none());
        self.in_a_row >= MANY
    }
}

impl UpstreamSession {
    /// Whether a connection that the upstream has ended did so whatever was in flight, as far as the ends before it tell.
    pub(super) fn is_coincidence(&mut self) -> bool {
        let mut awaited = self.in_flight.iter().filter(|message| message.is_awaited());
        let oldest = awaited.find_map(|message: &SentMessage| message.source.as_ref());
        let at = oldest.map(|source| (source.lane, source.position));
        self.coincidences.ended(at)
    }
}
