//! Where every message accepted for an upstream has ended, so that the counts always add up.

use serde::Serialize;
use tracing::error;

use crate::journal::Backlog;

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The upstream answered that it does not want it (reason code 0x80 or greater).
    Refused,
    /// Larger than the upstream takes.
    TooLarge,
    /// It ended the connection again and again.
    EndsConnection,
    /// It came from this upstream.
    CameFromThere,
    /// It has passed through too many gateways.
    Loop,
    /// No rule maps it (any more).
    NoRule,
}

/// Messages dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The bounds of the journal pushed them out.
    pub journal_full: u64,
    /// See [`DropReason::Refused`].
    pub refused: u64,
    /// See [`DropReason::TooLarge`].
    pub too_large: u64,
    /// See [`DropReason::EndsConnection`].
    pub ends_connection: u64,
    /// See [`DropReason::CameFromThere`].
    pub came_from_there: u64,
    /// See [`DropReason::Loop`].
    #[serde(rename = "loop")]
    pub looped: u64,
    /// See [`DropReason::NoRule`].
    pub no_rule: u64,
}

impl Dropped {
    fn slot(&mut self, reason: DropReason) -> &mut u64 {
        match reason {
            DropReason::Refused => &mut self.refused,
            DropReason::TooLarge => &mut self.too_large,
            DropReason::EndsConnection => &mut self.ends_connection,
            DropReason::CameFromThere => &mut self.came_from_there,
            DropReason::Loop => &mut self.looped,
            DropReason::NoRule => &mut self.no_rule,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.journal_full
            + self.refused
            + self.too_large
            + self.ends_connection
            + self.came_from_there
            + self.looped
            + self.no_rule
    }
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream has it.
    Acked,
    /// Sent at QoS 0: nobody will say whether it arrived.
    SentUnconfirmed,
    /// Its expiry interval passed while it waited.
    Expired,
    /// It will not be sent.
    Dropped(DropReason),
}

/// Messages that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    acked: u64,
    sent_unconfirmed: u64,
    expired: u64,
    dropped: Dropped,
}

impl Counts {
    /// One more has ended.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Acked => self.acked += 1,
            Outcome::SentUnconfirmed => self.sent_unconfirmed += 1,
            Outcome::Expired => self.expired += 1,
            Outcome::Dropped(reason) => *self.dropped.slot(reason) += 1,
        }
    }

    /// One more was dropped, which is lost data: the first time is logged, and then every doubling.
    pub fn add_loss(&mut self, upstream: &str, reason: DropReason, topic: &str, why: &str) {
        self.add(Outcome::Dropped(reason));
        let count = *self.dropped.slot(reason);
        if count.is_power_of_two() {
            error!(upstream, topic, count, "message not delivered: {why}");
        }
    }

    fn total(&self) -> u64 {
        self.acked + self.sent_unconfirmed + self.expired + self.dropped.total()
    }

    /// The ledger, with what the journal says of the consumer at this moment.
    ///
    /// Messages are settled in order. One that its bounds had pushed out of the journal while it was in flight is
    /// settled nevertheless: it counts as what became of it, not as dropped.
    pub fn ledger(&self, backlog: &Backlog) -> Ledger {
        let saved = self.total().saturating_sub(backlog.settled);
        let mut dropped = self.dropped;
        dropped.journal_full = backlog.dropped.saturating_sub(saved);
        Ledger {
            accepted: backlog.accepted,
            acked: self.acked,
            sent_unconfirmed: self.sent_unconfirmed,
            expired: self.expired,
            dropped,
            pending: backlog.messages as u64,
        }
    }
}

/// Every message accepted for an upstream:
/// `accepted = acked + sent_unconfirmed + expired + dropped + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Accepted by the journal for this upstream.
    pub accepted: u64,
    /// Acknowledged by the upstream.
    pub acked: u64,
    /// Sent at QoS 0.
    pub sent_unconfirmed: u64,
    /// Expired while they waited.
    pub expired: u64,
    /// Dropped, by reason.
    pub dropped: Dropped,
    /// Waiting or in flight.
    pub pending: u64,
}

impl Ledger {
    /// Whether every message is accounted for.
    pub fn is_balanced(&self) -> bool {
        self.accepted == self.acked + self.sent_unconfirmed + self.expired + self.dropped.total() + self.pending
    }
}
