//! Messages that are handed to the connection and not settled yet.

use super::super::lanes::Lane;
use super::super::wire::{OutMessage, Role};
use crate::journal::Position;
use crate::message::{Message, Qos};
use crate::status::ledger::LedgerOutcome;

/// The place in the journal of a message in flight.
#[derive(Clone, Debug)]
pub(super) struct SentFrom {
    pub(super) lane: Lane,
    pub(super) role: Role,
    pub(super) position: Position,
    pub(super) ordinal: u64,
    /// Whether it may have been sent before.
    pub(super) resent: bool,
    /// Whether it may have been sent at QoS 2 in the upstream's present session, before the start of the process or in
    /// a session of which it is not certain that it is the same.
    pub(super) is_possible: bool,
    /// Whether it was sent at QoS 2 in the upstream's present session.
    pub(super) is_begun: bool,
    pub(super) message: Message,
}

#[derive(Debug)]
pub(super) struct SentMessage {
    /// `None` for a message that is not from the journal, such as the status.
    pub(super) source: Option<SentFrom>,
    pub(super) handed_over: u64,
    /// The number among the messages of its connection.
    pub(super) number: u64,
    pub(super) packet_id: Option<u16>,
    pub(super) outcome: Option<LedgerOutcome>,
    /// The remote topic whose retained message it deletes.
    pub(super) deletes: Option<String>,
    /// Whether it was answered and must be sent again later.
    pub(super) again: bool,
    /// Whether it is held back, to see whether others get through.
    pub(super) held: bool,
    /// Whether it is put off, so that others go first.
    pub(super) waits: bool,
    /// Whether those behind it are settled before it.
    pub(super) is_passed: bool,
    /// Whether it is being appended to the journal once more, as the last of its lane.
    pub(super) is_moving: bool,
    /// Where the journal has it now, if it was appended once more; here only its packet id is in use.
    pub(super) gone_to: Option<(Lane, Position)>,
    /// Whether it was sent with the retain flag.
    pub(super) retain: bool,
    /// Whether it is the status message.
    pub(super) is_status: bool,
    /// Whether it was sent at QoS 2.
    pub(super) is_exact: bool,
    /// Whether the upstream has it (PUBREC at QoS 2).
    pub(super) is_recorded: bool,
    /// Whether PUBREL has left.
    pub(super) is_released: bool,
}

impl SentMessage {
    pub(super) fn new(source: Option<SentFrom>, now: u64) -> SentMessage {
        SentMessage {
            source,
            handed_over: now,
            number: 0,
            packet_id: None,
            outcome: None,
            deletes: None,
            again: false,
            held: false,
            waits: false,
            is_passed: false,
            is_moving: false,
            gone_to: None,
            retain: false,
            is_status: false,
            is_exact: false,
            is_recorded: false,
            is_released: false,
        }
    }

    pub(super) fn with(mut self, out: &OutMessage, now: u64) -> SentMessage {
        self.deletes = (out.retain && out.payload.is_empty()).then(|| out.topic.clone());
        (self.retain, self.handed_over) = (out.retain, now);
        (self.is_exact, self.is_recorded, self.is_released) = (out.qos == Qos::ExactlyOnce, false, false);
        self
    }

    pub(super) fn is_unanswered(&self) -> bool {
        self.outcome.is_none() && !self.held && !self.waits && !self.again
    }

    /// Whether the others must wait for the answer to it.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_unanswered() && !self.is_passed
    }

    /// The same message when the journal hands it out again, and only its packet id is in use here.
    pub(super) fn with_id_only(mut self) -> SentMessage {
        if let Some(source) = self.source.take() {
            self.gone_to = Some((source.lane, source.position));
        }
        self
    }
}
