//! Messages that are not from the journal: the status, and those of a pass (see [`crate::upstream::retained`]).

use super::{DropReason, LedgerOutcome, Message, OutMessage, SentMessage, SessionAction, UpstreamSession};

/// The most messages that are remembered because the upstream has not accepted them.
const NOT_TAKEN: usize = 64;

/// What the upstream has not accepted, and passes must know.
#[derive(Debug, Default)]
pub(super) struct NotAccepted {
    /// The numbers of messages of a pass that were refused.
    refused: Vec<u64>,
    /// Messages of the journal with the retain flag that were set aside.
    set_aside: Vec<Message>,
}

impl NotAccepted {
    /// Records the end of a message that is not from the journal.
    pub(super) fn ended(&mut self, number: u64, outcome: LedgerOutcome) {
        if outcome == LedgerOutcome::Dropped(DropReason::Refused) {
            self.refused.push(number);
        }
    }

    /// Handles a new connection, on which messages have other numbers.
    pub(super) fn connected(&mut self) {
        self.refused.clear();
    }

    /// Records the end of a message of the journal.
    pub(super) fn settled(&mut self, message: &Message, outcome: LedgerOutcome) {
        use DropReason::{EndsConnection, Refused, TooLarge};
        if let LedgerOutcome::Dropped(Refused | TooLarge | EndsConnection) = outcome
            && message.view().retain()
            && self.set_aside.len() < NOT_TAKEN
        {
            self.set_aside.push(message.clone());
        }
    }
}

impl UpstreamSession {
    fn own_messages(&self) -> impl Iterator<Item = &SentMessage> {
        self.in_flight.iter().filter(|message| message.source.is_none() && message.gone_to.is_none())
    }

    /// The number of messages in flight that are not from the journal.
    pub(crate) fn own_in_flight(&self) -> usize {
        self.own_messages().count()
    }

    /// The number, on this connection, of the oldest message of a pass in flight.
    pub(crate) fn oldest_own(&self) -> Option<u64> {
        self.own_messages().filter(|message| !message.is_status).map(|message| message.number).min()
    }

    /// The number of messages that an answer is awaited for.
    pub(crate) fn awaited(&self) -> usize {
        self.in_flight.iter().filter(|message| message.is_awaited()).count()
    }

    /// The numbers of messages of a pass that were refused since the last call.
    pub(crate) fn take_refused(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.not_accepted.refused)
    }

    /// The messages with the retain flag that were set aside since the last call.
    pub(crate) fn take_set_aside(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.not_accepted.set_aside)
    }

    /// Whether a message that is not from the journal must be sent again, since the last call.
    pub(crate) fn take_own_put_off(&mut self) -> bool {
        std::mem::take(&mut self.own_put_off)
    }

    /// Sends a message that is not from the journal. Must be called only while there is room. Also returns its number on
    /// this connection.
    pub(crate) fn own(&mut self, out: OutMessage, now: u64) -> (u64, Vec<SessionAction>) {
        let mut message = SentMessage::new(None, now).with(&out, now);
        self.count_handed(&mut message);
        let number = message.number;
        self.opening.sends(out.qos);
        self.in_flight.push_back(message);
        self.throttle.count(now);
        self.limits_reached();
        (number, vec![SessionAction::Publish(out)])
    }
}
