//! Answers to messages from the upstream, and the suspicion that they make it end connections.
//!
//! An upstream may close the connection when it gets a PUBACK, PUBREC or PUBCOMP, for example because it has a fault in
//! QoS 2. It then sends the same message on every connection, among the first ones, so no connection lasts. If two in a row end
//! so, answers are kept back for a minute, and longer each time, so that forwarding goes on. If a connection ends all the same
//! meanwhile, the answers are not the reason, and are trusted for an hour. An upstream that is restarted also ends a
//! connection after an answer if it is busy, but that connection has lasted, or many answers were borne on it.

use std::collections::VecDeque;

use super::wire::Ack;
use crate::mqtt::packet_ids::PacketIds;

/// The number of connections in a row that must end after an answer.
const STRIKES: u32 = 2;
/// How long such a connection lasts at most, in milliseconds, and how many answers are followed by something else on it.
const SHORT_MS: u64 = 60_000;
const FEW: u32 = 32;
/// The first time for which answers are kept back, and the longest, in milliseconds. For the longest one they are also
/// trusted.
const FIRST_MS: u64 = 60_000;
const LONGEST_MS: u64 = 3_600_000;

/// The answers that wait for the connection. Makes decisions without I/O.
#[derive(Debug, Default)]
pub(super) struct OwnAcks {
    queue: VecDeque<Ack>,
    /// PUBRECs sent on this connection that were not followed by a PUBREL.
    open: PacketIds,
    /// Whether nothing has been heard since the last answer.
    is_unheard: bool,
    /// The number of times that something has been heard after an answer on this connection, and when it began.
    borne: u32,
    begun_at: u64,
    /// The number of connections in a row that ended after an answer.
    ends: u32,
    times: u32,
    kept_until: u64,
    trusted_until: u64,
}

impl OwnAcks {
    /// Handles a new connection.
    pub(super) fn connected(&mut self, now: u64) {
        (self.borne, self.begun_at) = (0, now);
    }

    pub(super) fn push(&mut self, ack: Ack) {
        self.queue.push_back(ack);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// When answers that are kept back leave.
    pub(super) fn deadline(&self, now: u64) -> Option<u64> {
        (!self.queue.is_empty() && self.kept_until > now).then_some(self.kept_until)
    }

    /// Whether the last connection may have ended because of an answer.
    pub(super) fn blames(&self) -> bool {
        self.ends > 0
    }

    /// The next answer, which the caller sends or leaves here.
    pub(super) fn front(&self, now: u64) -> Option<Ack> {
        self.queue.front().filter(|_| self.kept_until <= now).copied()
    }

    /// Records that the next answer was sent.
    pub(super) fn sent(&mut self) {
        if let Some(Ack::Recorded(packet_id)) = self.queue.pop_front() {
            self.open.insert(packet_id);
        }
        self.is_unheard = true;
    }

    /// Records that something has been heard. The upstream may not have read the last answer before that, but then more
    /// follows.
    pub(super) fn heard(&mut self) {
        self.borne = self.borne.saturating_add(u32::from(self.is_unheard));
        self.is_unheard = false;
    }

    /// Records a PUBREL.
    pub(super) fn released(&mut self, packet_id: u16) {
        if self.open.remove(packet_id) {
            (self.ends, self.times) = (0, 0);
        }
    }

    /// Handles the end of a connection. Returns whether an answer may be the reason, and whether answers are kept back from
    /// now on because of it.
    pub(super) fn ended(&mut self, by_upstream: bool, now: u64) -> (bool, bool) {
        self.queue.clear();
        let open = std::mem::take(&mut self.open);
        let is_early = now < self.begun_at + SHORT_MS && self.borne < FEW;
        let may_be_it = by_upstream && is_early && (self.is_unheard || !open.is_empty());
        let was_kept = now < self.kept_until;
        self.is_unheard = false;
        if by_upstream && was_kept {
            (self.kept_until, self.ends, self.trusted_until) = (0, 0, now + LONGEST_MS);
        } else if may_be_it && now >= self.trusted_until {
            self.ends += 1;
            if self.ends >= STRIKES {
                self.kept_until = now + (FIRST_MS << self.times.min(10)).min(LONGEST_MS);
                (self.ends, self.times) = (STRIKES - 1, self.times + 1);
                return (true, true);
            }
            return (true, false);
        } else if by_upstream {
            self.ends = 0;
        }
        (false, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(answers: &mut OwnAcks, ack: Ack, now: u64) {
        answers.push(ack);
        while answers.front(now).is_some() {
            answers.sent();
        }
    }

    #[test]
    fn answers_at_which_connections_end_are_kept_back_for_a_while() {
        let mut answers = OwnAcks::default();
        answer(&mut answers, Ack::Recorded(7), 0);
        answers.heard();
        assert_eq!(answers.ended(true, 0), (true, false), "nothing has answered the PUBREC");
        answer(&mut answers, Ack::Recorded(7), 0);
        assert_eq!(answers.ended(true, 0), (true, true));
        answer(&mut answers, Ack::Recorded(7), 1);
        assert_eq!((answers.len(), answers.deadline(1)), (1, Some(FIRST_MS)));
        answers.connected(FIRST_MS);
        answer(&mut answers, Ack::Recorded(8), FIRST_MS);
        assert_eq!((answers.len(), answers.deadline(FIRST_MS)), (0, None));
        assert_eq!(answers.ended(true, FIRST_MS), (true, true), "longer from now on");
        answer(&mut answers, Ack::Recorded(7), FIRST_MS);
        assert_eq!(answers.deadline(FIRST_MS), Some(3 * FIRST_MS));
        answers.connected(3 * FIRST_MS);
        answer(&mut answers, Ack::Recorded(9), 3 * FIRST_MS);
        answers.released(7);
        answers.heard();
        assert_eq!(answers.ended(false, 3 * FIRST_MS), (false, false), "the line has failed");
        answer(&mut answers, Ack::Recorded(9), 3 * FIRST_MS);
        assert_eq!(answers.ended(true, 3 * FIRST_MS), (true, false), "it had answered one in between");
    }

    #[test]
    fn answers_are_innocent_if_connections_end_without_them() {
        let mut answers = OwnAcks::default();
        for expected in [(true, false), (true, true), (false, false), (false, false), (false, false)] {
            answer(&mut answers, Ack::Taken(1), 0);
            assert_eq!(answers.ended(true, 0), expected);
        }
        answers.connected(LONGEST_MS);
        answer(&mut answers, Ack::Taken(1), LONGEST_MS);
        assert_eq!(answers.ended(true, LONGEST_MS), (true, false));
    }

    #[test]
    fn what_was_heard_after_an_answer_shows_that_the_upstream_bears_it() {
        let mut answers = OwnAcks::default();
        for _ in 0..5 {
            answer(&mut answers, Ack::Taken(1), 0);
            answers.heard();
            assert_eq!(answers.ended(true, 0), (false, false));
        }
    }

    #[test]
    fn restarts_of_a_busy_upstream_are_no_reason() {
        let mut answers = OwnAcks::default();
        for restart in 1..5 {
            let (begin, end) = (restart * SHORT_MS * 2, restart * SHORT_MS * 2 + SHORT_MS);
            answers.connected(begin);
            answer(&mut answers, Ack::Taken(1), begin);
            assert_eq!(answers.ended(true, end), (false, false), "it has lasted");
            answers.connected(end);
            for _ in 0..FEW {
                answer(&mut answers, Ack::Taken(1), end);
                answers.heard();
            }
            answer(&mut answers, Ack::Taken(1), end);
            assert_eq!(answers.ended(true, end), (false, false), "it has borne many");
        }
    }
}
