//! Where every message accepted for an upstream has ended, so that the counts always add up.

use schemars::JsonSchema;
use serde::Serialize;
use tracing::error;

use crate::journal::{self, Backlog};

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
    /// It came from this upstream, or has been there.
    CameFromThere,
    /// It has passed through too many gateways.
    Loop,
    /// No rule maps it (any more).
    NoRule,
}

/// Messages dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Dropped {
    /// The bounds of the journal pushed them out.
    pub(crate) journal_full: u64,
    /// The disk did not give them back.
    pub(crate) unreadable: u64,
    /// See [`DropReason::Refused`].
    pub(crate) refused: u64,
    /// See [`DropReason::TooLarge`].
    pub(crate) too_large: u64,
    /// See [`DropReason::EndsConnection`].
    pub(crate) ends_connection: u64,
    /// See [`DropReason::CameFromThere`].
    pub(crate) came_from_there: u64,
    /// See [`DropReason::Loop`].
    #[serde(rename = "loop")]
    pub(crate) looped: u64,
    /// See [`DropReason::NoRule`].
    pub(crate) no_rule: u64,
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
            + self.unreadable
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
pub(crate) enum LedgerOutcome {
    /// The upstream has it.
    Acked,
    /// Sent at QoS 0: nobody will say whether it arrived.
    SentUnconfirmed,
    /// Its expiry interval passed while it waited.
    Expired,
    /// It will not be sent.
    Dropped(DropReason),
}

impl LedgerOutcome {
    /// As the journal counts it.
    pub(crate) fn in_journal(self) -> journal::Outcome {
        match self {
            LedgerOutcome::Acked => journal::Outcome::Acked,
            LedgerOutcome::SentUnconfirmed => journal::Outcome::Unconfirmed,
            LedgerOutcome::Expired => journal::Outcome::Expired,
            LedgerOutcome::Dropped(DropReason::Refused) => journal::Outcome::Refused,
            LedgerOutcome::Dropped(DropReason::TooLarge) => journal::Outcome::TooLarge,
            LedgerOutcome::Dropped(DropReason::EndsConnection) => journal::Outcome::EndsConnection,
            LedgerOutcome::Dropped(DropReason::CameFromThere) => journal::Outcome::CameFromThere,
            LedgerOutcome::Dropped(DropReason::Loop) => journal::Outcome::Loop,
            LedgerOutcome::Dropped(DropReason::NoRule) => journal::Outcome::NotWanted,
        }
    }
}

/// Losses of this run, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    dropped: Dropped,
}

impl Counts {
    /// One more was dropped, which is lost data: the first time is logged, and then every doubling.
    pub(crate) fn add_loss(&mut self, upstream: &str, reason: DropReason, topic: &str, why: &str) {
        let slot = self.dropped.slot(reason);
        *slot += 1;
        let count = *slot;
        if count.is_power_of_two() {
            error!(upstream, topic, count, "message not delivered: {why}");
        }
    }
}

/// Every message accepted for an upstream:
/// `accepted = acked + sent_unconfirmed + expired + dropped + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
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
    /// As the journal counts, because its counts outlive the process.
    pub(crate) fn of(backlog: &Backlog) -> Ledger {
        let count = |outcome: journal::Outcome| backlog.settled_as[outcome as usize];
        Ledger {
            accepted: backlog.accepted,
            acked: count(journal::Outcome::Acked),
            sent_unconfirmed: count(journal::Outcome::Unconfirmed),
            expired: count(journal::Outcome::Expired),
            dropped: Dropped {
                journal_full: backlog.dropped,
                unreadable: backlog.lost,
                refused: count(journal::Outcome::Refused),
                too_large: count(journal::Outcome::TooLarge),
                ends_connection: count(journal::Outcome::EndsConnection),
                came_from_there: count(journal::Outcome::CameFromThere),
                looped: count(journal::Outcome::Loop),
                no_rule: count(journal::Outcome::NotWanted),
            },
            pending: backlog.messages as u64,
        }
    }

    /// Whether every message is accounted for.
    #[cfg(test)]
    pub(crate) fn is_balanced(&self) -> bool {
        self.accepted == self.acked + self.sent_unconfirmed + self.expired + self.dropped.total() + self.pending
    }
}
