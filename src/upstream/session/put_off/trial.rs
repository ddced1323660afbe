//! Finds out whether others get through when connections end at a message and nothing else is acknowledged on them either.
//!
//! That is so on a line that has failed and at an upstream that takes nothing, and then the order must be kept. It is
//! so as well if the message comes first and is itself the reason. So after two connections in a row that ended at it,
//! others go first on the next one, one at a time, until one of them is acknowledged. Then the message is sent at once.
//! Others are those of other topics, so the order in each topic is kept.
//!
//! If nothing else waits, messages are sent in order. Only if the message is larger than what every path carries, or if
//! connections keep ending at it, a later message of its topic goes first. That one is then sent once more in its turn, so
//! the last message of the topic is the last there too.
//!
//! If such a connection goes silent before anything is acknowledged, nothing is proved, and the next one begins in order.

use std::cmp::Reverse;

use super::super::sent::SentFrom;
use super::super::{SentMessage, UpstreamSession};
use super::ended_at::Trial;
use super::{LIKE_BYTES, PutOff};
use crate::message::{Message, Qos};
use crate::upstream::settings::OutQos;

/// The same if there are no others than those of its topic.
const ENDS_OF_TOPIC: u32 = 3;
/// Every path carries a packet with this many bytes of a message.
const SMALL: usize = 500;
/// The most messages that wait meanwhile.
const HELD: usize = 64;

impl PutOff {
    pub(super) fn begin_trial(&mut self) {
        let others_first = self.ended.is_some_and(|ended| ended.others_first);
        self.trial = if others_first { Trial::Runs } else { Trial::None };
    }

    /// Records that the last connection ended at a PUBREL. `is_exact` tells that other messages at QoS 2 are like it.
    pub(super) fn is_at_release(&mut self, is_exact: bool) {
        if let Some(ended) = &mut self.ended {
            ended.is_exact = is_exact;
        }
    }
}

impl UpstreamSession {
    fn held_sources(&self) -> impl Iterator<Item = &SentFrom> {
        self.in_flight.iter().filter(|message| message.held).filter_map(|message| message.source.as_ref())
    }

    /// Whether a message of the journal must wait until others are acknowledged. `is_released` tells that only PUBREL
    /// is sent.
    pub(in crate::upstream::session) fn waits_for_others(&mut self, source: &SentFrom, is_released: bool) -> bool {
        let Some(ended) = self.put_off.ended.filter(|_| self.put_off.trial.is_on()) else { return false };
        let (mut count, mut bytes, mut is_here, mut has_topic) = (0, 0, false, false);
        let topic = source.message.view().topic();
        for held in self.held_sources() {
            (count, bytes) = (count + 1, bytes + held.message.size());
            is_here |= (held.lane, held.position) == ended.place;
            has_topic |= held.message.view().topic() == topic;
        }
        if !is_here {
            return (source.lane, source.position) == ended.place;
        }
        if count >= HELD || bytes + source.message.size() > LIKE_BYTES {
            self.put_off.trial.end();
            return true;
        }
        let is_like = ended.is_exact && (is_released || self.goes_exactly_once(&source.message));
        has_topic || is_like || !self.is_acknowledged(&source.message)
    }

    /// Whether the upstream acknowledges such a message.
    fn is_acknowledged(&self, message: &Message) -> bool {
        let view = message.view();
        self.rules.outgoing(view.topic()).is_some_and(|target| match target.qos {
            OutQos::AtMostOnce => false,
            OutQos::Keep => view.qos() > Qos::AtMostOnce,
            OutQos::AtLeastOnce | OutQos::ExactlyOnce => true,
        })
    }

    /// The place in flight of the message that was held back and is sent next.
    pub(in crate::upstream::session) fn next_held(&self) -> Option<usize> {
        let is_next = |message: &SentMessage| match (self.put_off.trial, &message.source) {
            (Trial::Runs, _) => false,
            (Trial::Of(lane, position), Some(source)) => {
                self.suspicion.releases() && (source.lane, source.position) == (lane, position)
            }
            (_, Some(source)) => self.suspicion.frees(source.lane, source.position),
            (_, None) => self.suspicion.releases(),
        };
        self.in_flight.iter().position(|message| message.held && is_next(message))
    }

    /// Chooses what goes first if no message of another topic does.
    pub(in crate::upstream::session) fn look_for_trial(&mut self) {
        if self.held == 0
            || !self.put_off.trial.is_on()
            || self.next_held().is_some()
            || self.in_flight.iter().any(SentMessage::is_awaited)
        {
            return;
        }
        let Some(ended) = self.put_off.ended else { return };
        // what is sent twice may not be sent at QoS 2
        let others = self.held_sources().filter(|held| {
            (held.lane, held.position) != ended.place
                && !self.goes_exactly_once(&held.message)
                && self.is_acknowledged(&held.message)
        });
        let is_enough =
            |held: &&SentFrom| ended.ends >= ENDS_OF_TOPIC || ended.size > SMALL && held.message.size() < ended.size;
        // the smallest first, and of these the last; and another one each time, because it may be like the first
        let mut others: Vec<_> = others.filter(is_enough).collect();
        others.sort_by_key(|held| (held.message.size(), Reverse(held.ordinal)));
        let chosen = (ended.tries as usize).checked_rem(others.len()).map(|at| others[at]);
        self.put_off.trial = chosen.map_or(Trial::Ended, |held| Trial::Of(held.lane, held.position));
    }

    /// Whether this message went first although it is of the same topic, and must be sent again in its turn.
    pub(in crate::upstream::session) fn was_trial(&mut self, at: usize) -> bool {
        let Trial::Of(lane, position) = self.put_off.trial else { return false };
        let source = self.in_flight[at].source.as_ref();
        let is_it = source.is_some_and(|source| (source.lane, source.position) == (lane, position));
        if is_it {
            self.put_off.trial.end();
        }
        is_it
    }

    /// Handles the end of a silent connection, and returns whether others went first and did not get through either.
    pub(super) fn is_trial_fruitless(&mut self) -> bool {
        let is_fruitless = self.put_off.trial.is_on() && self.held > 0;
        if let Some(ended) = self.put_off.ended.as_mut().filter(|_| is_fruitless) {
            (ended.others_first, ended.tries) = (false, ended.tries + 1);
        }
        is_fruitless
    }
}
