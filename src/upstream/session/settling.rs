//! Settles messages in the journal when they and those before them have ended.

use super::{DropReason, LedgerOutcome, MOST_PASSED, SentFrom, SentMessage, SessionAction, UpstreamSession};

impl UpstreamSession {
    /// Settles ended messages up to the first one that has not ended and is not passed over. While messages are sent
    /// one at a time, settles all ended ones.
    pub(super) fn settle(&mut self, actions: &mut Vec<SessionAction>) {
        let mut at = 0;
        // the first message of each lane that is passed over: the ordinal from which on nothing goes past it, and its place
        let mut passed: [Option<(u64, usize)>; 2] = [None; 2];
        let is_far = |passed: &[Option<(u64, usize)>; 2], source: &SentFrom| {
            passed[source.lane.index()].is_some_and(|(end, _)| source.ordinal >= end)
        };
        while let Some(message) = self.in_flight.get(at) {
            match (message.outcome, &message.source) {
                (Some(_), Some(source)) if is_far(&passed, source) => {
                    if let Some((_, first)) = passed[source.lane.index()]
                        && self.may_pass(&self.in_flight[first]) <= MOST_PASSED
                    {
                        self.start_move(first, actions);
                    }
                    at += 1;
                }
                (Some(outcome), _) => match self.in_flight.remove(at) {
                    Some(SentMessage { source: Some(source), .. }) => self.end(source, outcome, actions),
                    Some(SentMessage { number, .. }) => self.not_accepted.ended(number, outcome),
                    None => {}
                },
                (None, source) if message.is_passed || message.waits => {
                    if let Some(source) = source {
                        let end = source.ordinal + self.may_pass(message);
                        passed[source.lane.index()].get_or_insert((end, at));
                    }
                    at += 1;
                }
                (None, _) if self.is_cautious() => at += 1,
                (None, _) => break,
            }
        }
        if self.is_out_of_ids() {
            self.look_at_spread();
        }
        if self.held == 0 {
            self.suspicion.settle();
        }
    }

    /// Ends a message with this outcome.
    pub(super) fn end(&mut self, source: SentFrom, outcome: LedgerOutcome, actions: &mut Vec<SessionAction>) {
        self.under_way.end(&source);
        let SentFrom { lane, position, mut message, .. } = source;
        if outcome == LedgerOutcome::Dropped(DropReason::TooLarge) {
            match self.keep_for_others((lane, position), message, actions) {
                Some(dropped) => message = dropped,
                None => return,
            }
        }
        self.suspicion.past(lane, position);
        self.put_off.past(lane, position);
        if !self.denied.is_empty() {
            self.topic_ended((lane, position), &message, outcome, actions);
        }
        if outcome == LedgerOutcome::Acked {
            self.coincidences.acked((lane, position));
        }
        self.not_accepted.settled(&message, outcome);
        let why = match outcome {
            LedgerOutcome::Dropped(DropReason::Refused) => "the upstream refuses it",
            LedgerOutcome::Dropped(DropReason::TooLarge) => "it is larger than the upstream takes",
            // of the gateway's own announcements only useful ones are meant for an upstream
            LedgerOutcome::Dropped(DropReason::NoRule) if message.view().origin() != self.announcer => {
                if !self.rules.is_meant(message.view().topic()) {
                    self.unmeant.push((lane, position, message));
                    actions.push(SessionAction::Shelve(lane, position));
                    return;
                }
                "its topic would not be valid there"
            }
            LedgerOutcome::Dropped(DropReason::EndsConnection) => {
                self.unmeant.push((lane, position, message));
                actions.push(SessionAction::Deny(lane, position));
                return;
            }
            LedgerOutcome::Dropped(DropReason::Loop) => "it has passed through too many gateways: is there a loop?",
            _ => "",
        };
        if let LedgerOutcome::Dropped(reason) = outcome
            && !why.is_empty()
        {
            self.counts.add_loss(&self.name, reason, message.view().topic(), why);
        }
        actions.push(SessionAction::Settle(lane, position, outcome));
    }
}
