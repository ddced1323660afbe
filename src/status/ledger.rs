//! The ledger of an upstream: how every message accepted for it has ended, so that the counts always add up.

use schemars::JsonSchema;
use serde::Serialize;
use tracing::error;

use crate::journal::{Backlog, Outcome};

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The upstream refused the message (reason code 0x80 or greater).
    Refused,
    /// The message is larger than the upstream accepts.
    TooLarge,
    /// The message made the upstream end the connection several times.
    EndsConnection,
    /// The message came from this upstream, or has passed through it.
    CameFromThere,
    /// The message has passed through too many gateways.
    Loop,
    /// No rule forwards the message, perhaps because the rules have changed.
    NoRule,
}

impl DropReason {
    /// The journal's outcome for this reason. Its numbers are on disk, so their meanings must never change.
    fn in_journal(self) -> Outcome {
        match self {
            DropReason::Refused => Outcome::GivenUp(0),
            DropReason::TooLarge => Outcome::GivenUp(1),
            DropReason::EndsConnection => Outcome::GivenUp(2),
            DropReason::CameFromThere => Outcome::GivenUp(3),
            DropReason::Loop => Outcome::GivenUp(4),
            DropReason::NoRule => Outcome::NotWanted,
        }
    }
}

/// The numbers of dropped messages, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Dropped {
    /// Dropped by the limits of the journal.
    pub(crate) journal_full: u64,
    /// Lost because the disk could not be read.
    pub(crate) unreadable: u64,
    /// Dropped because the upstream refused them (reason code 0x80 or greater).
    pub(crate) refused: u64,
    /// Dropped because they are larger than the upstream accepts.
    pub(crate) too_large: u64,
    /// Dropped because they made the upstream end the connection several times.
    pub(crate) ends_connection: u64,
    /// Dropped because they came from this upstream, or have passed through it.
    pub(crate) came_from_there: u64,
    /// Dropped because they have passed through too many gateways.
    #[serde(rename = "loop")]
    pub(crate) looped: u64,
    /// Dropped because no rule forwards them.
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

    /// The number of all dropped messages.
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

/// How a message ended for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerOutcome {
    /// The upstream has acknowledged the message.
    Acked,
    /// The message was sent at QoS 0, so nobody knows whether it arrived.
    SentUnconfirmed,
    /// The expiry interval passed while the message waited.
    Expired,
    /// The message will not be sent.
    Dropped(DropReason),
}

impl LedgerOutcome {
    /// The journal's name for this outcome.
    pub(crate) fn in_journal(self) -> Outcome {
        match self {
            LedgerOutcome::Acked => Outcome::Acked,
            LedgerOutcome::SentUnconfirmed => Outcome::Unconfirmed,
            LedgerOutcome::Expired => Outcome::Expired,
            LedgerOutcome::Dropped(reason) => reason.in_journal(),
        }
    }

    /// The name of the outcome in a trace.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            LedgerOutcome::Acked => "acknowledged",
            LedgerOutcome::SentUnconfirmed => "sent at QoS 0, so nobody acknowledges it",
            LedgerOutcome::Expired => "dropped: expired",
            LedgerOutcome::Dropped(DropReason::Refused) => "dropped: refused",
            LedgerOutcome::Dropped(DropReason::TooLarge) => "dropped: too large",
            LedgerOutcome::Dropped(DropReason::EndsConnection) => "dropped: it ends connections",
            LedgerOutcome::Dropped(DropReason::CameFromThere) => "not sent: it came from there",
            LedgerOutcome::Dropped(DropReason::Loop) => "dropped: it has passed through too many gateways",
            LedgerOutcome::Dropped(DropReason::NoRule) => "not sent: no rule asks for it any more",
        }
    }
}

/// Counts the losses of this run for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    dropped: Dropped,
}

impl Counts {
    /// Counts a dropped message, which is lost data. Logs the first one, and then whenever the number has doubled.
    pub(crate) fn add_loss(&mut self, upstream: &str, reason: DropReason, topic: &str, why: &str) {
        let slot = self.dropped.slot(reason);
        *slot += 1;
        let count = *slot;
        if count.is_power_of_two() {
            error!(upstream, topic, count, "message not delivered: {why}");
        }
    }
}

/// The counts of all messages accepted for an upstream:
/// `accepted = acked + sent_unconfirmed + expired + dropped + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Ledger {
    /// The number of messages that the journal has accepted for this upstream.
    pub accepted: u64,
    /// The number of messages that the upstream has acknowledged.
    pub acked: u64,
    /// The number of messages that were sent at QoS 0.
    pub sent_unconfirmed: u64,
    /// The number of messages that expired while they waited.
    pub expired: u64,
    /// The numbers of dropped messages, by reason.
    pub dropped: Dropped,
    /// The number of messages that wait or are in flight.
    pub pending: u64,
}

impl Ledger {
    /// Makes a ledger from the counts of the journal, which outlive the process.
    pub(crate) fn of(backlog: &Backlog) -> Ledger {
        let dropped = |reason: DropReason| backlog.settled_as(reason.in_journal());
        Ledger {
            accepted: backlog.accepted,
            acked: backlog.settled_as(Outcome::Acked),
            sent_unconfirmed: backlog.settled_as(Outcome::Unconfirmed),
            expired: backlog.settled_as(Outcome::Expired),
            dropped: Dropped {
                journal_full: backlog.dropped,
                unreadable: backlog.lost,
                refused: dropped(DropReason::Refused),
                too_large: dropped(DropReason::TooLarge),
                ends_connection: dropped(DropReason::EndsConnection),
                came_from_there: dropped(DropReason::CameFromThere),
                looped: dropped(DropReason::Loop),
                no_rule: dropped(DropReason::NoRule),
            },
            pending: backlog.messages as u64,
        }
    }

    /// Whether the counts add up.
    #[cfg(test)]
    pub(crate) fn is_balanced(&self) -> bool {
        self.accepted == self.acked + self.sent_unconfirmed + self.expired + self.dropped.total() + self.pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Journal, Limits, WhenFull};
    use crate::message::{Draft, Message, Origin, Qos};

    #[test]
    fn every_end_of_a_message_has_the_place_on_disk_that_it_always_had() {
        let dropped = |reason| LedgerOutcome::Dropped(reason);
        let ends = [
            LedgerOutcome::Acked,
            LedgerOutcome::SentUnconfirmed,
            LedgerOutcome::Expired,
            dropped(DropReason::Refused),
            dropped(DropReason::TooLarge),
            dropped(DropReason::EndsConnection),
            dropped(DropReason::CameFromThere),
            dropped(DropReason::Loop),
            dropped(DropReason::NoRule),
        ];
        assert_eq!(ends.len(), Outcome::COUNT);
        for (place, end) in ends.into_iter().enumerate() {
            assert_eq!(end.in_journal().slot(), Some(place), "{end:?}");
        }
    }

    #[test]
    fn a_ledger_has_what_the_journal_has_counted() {
        let journal = Journal::default();
        let limits = Limits { messages: 100, bytes: 1 << 20, when_full: WhenFull::Refuse };
        let id = journal.register("upstream/a", limits);
        let ends = [LedgerOutcome::Expired, LedgerOutcome::Dropped(DropReason::Loop)];
        let mut reader = journal.reader(id);
        let message = Message::new(&Draft { qos: Qos::AtLeastOnce, origin: Origin::http(), ..Draft::new("t", b"x") });
        for _ in &ends {
            journal.append(&message, &[id]).unwrap();
        }
        for end in ends {
            let since = std::time::Instant::now();
            let delivery = loop {
                match reader.try_next() {
                    Some(delivery) => break delivery,
                    None => assert!(since.elapsed().as_secs() < 60, "a message"),
                }
                std::thread::yield_now();
            };
            reader.settle_as(delivery.position, end.in_journal());
        }
        let ledger = Ledger::of(&journal.backlog(id));
        assert_eq!((ledger.expired, ledger.dropped.looped, ledger.dropped.total()), (1, 1, 1));
        assert!(ledger.is_balanced() && ledger.accepted == 2);
    }
}
