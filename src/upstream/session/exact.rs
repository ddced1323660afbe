//! Exactly once, on the way up [MQTT-4.3.3].
//!
//! A message at QoS 2 has the same packet id on every connection, since the upstream knows by it whether it has the message:
//! it follows from the lane and the message's ordinal, which the journal keeps anyway, so nothing need be written before
//! PUBLISH. PUBREC is written before PUBREL leaves, many of them in one sync; a message that the journal knows to be there is
//! not sent again, only its PUBREL. PUBCOMP settles the message. Where the upstream has forgotten our session, it is sent
//! again with all that is in flight, as at QoS 1.
//!
//! Packet ids come again after [`IDS`] messages. Where the PUBREL that frees one and the PUBLISH that uses it anew leave
//! together, and the connection ends before either is answered, it is freed once more, so that the later message cannot be
//! taken for the earlier one: it may come twice then.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use super::{SentFrom, SentMessage, SessionAction, UpstreamSession};
use crate::message::Qos;
use crate::upstream::lanes::Lane;

/// Packet ids of a lane.
const IDS: u64 = 0x4000;
/// Packet ids that the upstream is told to forget before it has answered about the first of them.
const MOST_ASKED: usize = 16;
/// Packet ids of messages at QoS 2.
pub(crate) const EXACT_IDS: RangeInclusive<u16> = 0x4000..=0xbfff;
/// [MQTT-5 3.5.2.1] Packet identifier in use.
pub(super) const IN_USE: u8 = 0x91;

/// The packet id of a message at QoS 2; those of the two lanes differ from each other and from those of QoS 1.
pub(super) fn packet_id(lane: Lane, ordinal: u64) -> u16 {
    let first = match lane {
        Lane::First => 0x4000,
        Lane::Second => 0x8000,
    };
    first + (ordinal % IDS) as u16
}

/// Ordinals handed out on a connection, per lane.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// Nothing older is in flight.
    oldest: [u64; 2],
    newest: [u64; 2],
}

impl Spread {
    /// The journal has handed out a message; whether it did so for the first time on this connection.
    fn deliver(&mut self, lane: Lane, ordinal: u64) -> bool {
        let (oldest, newest) = (&mut self.oldest[lane.index()], &mut self.newest[lane.index()]);
        let is_first = ordinal > *newest;
        *oldest = if *newest == 0 { ordinal } else { ordinal.min(*oldest) };
        *newest = ordinal.max(*newest);
        is_first
    }

    fn is_wider_than(&self, ids: u64) -> bool {
        self.newest.iter().zip(&self.oldest).any(|(newest, oldest)| newest - oldest >= ids)
    }
}

/// What an upstream may know of exchanges that are not under way on this connection. Decides and does nothing.
#[derive(Debug, Default)]
pub(super) struct BegunExchanges {
    /// Sent in the session that the upstream has of us, and interrupted, by lane and ordinal: where their packet ids are in
    /// use, it is by them.
    certain: BTreeSet<(usize, u64)>,
    /// The same before the process began, or in a session that may have been another one: perhaps they were not sent at all,
    /// and their packet ids are in use by something else.
    possible: [Range<u64>; 2],
    /// Packet ids that the upstream is still to be told to forget, and those that it has not answered about.
    to_free: BTreeSet<u16>,
    asked: BTreeSet<u16>,
}

/// What is known of a message that is handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// It comes for the first time on this connection.
    pub(crate) is_first: bool,
    /// The session that the upstream has of us has had it.
    pub(crate) is_begun: bool,
    /// It may have had it.
    pub(crate) is_possible: bool,
}

impl BegunExchanges {
    /// This message is handed out after all of its lane that come before it: those that are left have ended here, and their
    /// packet ids are free.
    fn deliver(&mut self, lane: Lane, ordinal: u64) -> (bool, bool) {
        let at = lane.index();
        while let Some(old) = self.certain.range((at, 0)..(at, ordinal)).next().copied() {
            self.certain.remove(&old);
            self.to_free.insert(packet_id(lane, old.1));
        }
        let possible = &mut self.possible[at];
        let passed = possible.start..ordinal.min(possible.end);
        if !passed.is_empty() {
            // there are no more packet ids than that
            let from = passed.start.max(passed.end.saturating_sub(IDS));
            self.to_free.extend((from..passed.end).map(|old| packet_id(lane, old)));
        }
        let is_possible = possible.contains(&ordinal);
        possible.start = possible.start.max(ordinal + 1);
        (self.certain.remove(&(at, ordinal)), is_possible)
    }

    /// Which session the upstream has of us is not certain any more.
    fn doubt(&mut self) {
        for (at, ordinal) in std::mem::take(&mut self.certain) {
            self.may_have_begun(at, ordinal);
        }
    }

    fn may_have_begun(&mut self, at: usize, ordinal: u64) {
        let possible = &mut self.possible[at];
        *possible = match possible.is_empty() {
            true => ordinal..ordinal + 1,
            false => possible.start.min(ordinal)..possible.end.max(ordinal + 1),
        };
    }

    /// Packet ids to release now.
    fn free(&mut self) -> impl Iterator<Item = u16> {
        let count = MOST_ASKED.saturating_sub(self.asked.len());
        let now: Vec<u16> = self.to_free.iter().take(count).copied().collect();
        for packet_id in &now {
            self.to_free.remove(packet_id);
            self.asked.insert(*packet_id);
        }
        now.into_iter()
    }

    /// Whether a packet id must be released before it is used.
    fn is_due(&mut self, packet_id: u16) -> bool {
        let is_due = self.to_free.remove(&packet_id);
        if is_due {
            self.asked.insert(packet_id);
        }
        is_due
    }

    /// These are to be handed out again, and what is known of them counts then: also of one that has not been sent this time.
    fn interrupted<'a>(&mut self, in_flight: impl Iterator<Item = &'a SentMessage>) {
        for message in in_flight.filter(|message| message.outcome.is_none() && !message.again) {
            let Some(source) = &message.source else { continue };
            let (at, ordinal) = (source.lane.index(), source.ordinal);
            // what was not written has not been sent
            if source.is_begun || message.is_exact && message.is_unanswered() && message.packet_id.is_some() {
                self.certain.insert((at, ordinal));
            } else if source.resent && (message.is_exact || message.held) {
                self.may_have_begun(at, ordinal);
            }
        }
    }
}

impl UpstreamSession {
    /// Whether the next packet id may still be in use: by a message that has been held back for very long.
    pub(super) fn is_out_of_ids(&self) -> bool {
        self.spread.is_wider_than(IDS / 2) && self.rules.is_exact()
    }

    /// Finds what is the oldest in flight, in time before that matters.
    pub(super) fn look_at_spread(&mut self) {
        if !self.spread.is_wider_than(IDS / 4) {
            return;
        }
        for lane in Lane::ALL {
            let mut sources = self.in_flight.iter().filter_map(|message| message.source.as_ref());
            let oldest = sources.find(|source| source.lane == lane).map(|source| source.ordinal);
            let newest = self.spread.newest[lane.index()];
            self.spread.oldest[lane.index()] = oldest.map_or(newest, |oldest| oldest.min(newest));
        }
    }

    /// The journal hands this message out, after all of its lane that come before it: what is known of it from before.
    pub(super) fn begin_exchange(&mut self, lane: Lane, ordinal: u64, actions: &mut Vec<SessionAction>) -> Before {
        let is_first = self.spread.deliver(lane, ordinal);
        self.look_at_spread();
        let (is_begun, is_possible) = self.begun.deliver(lane, ordinal);
        self.free_ids(actions);
        Before { is_first, is_begun, is_possible }
    }

    fn free_ids(&mut self, actions: &mut Vec<SessionAction>) {
        if !self.begun.to_free.is_empty() && self.is_exact_there() {
            actions.extend(self.begun.free().map(SessionAction::Release));
        }
    }

    /// The gateway has started: these may have been under way when it ended.
    pub(crate) fn may_have_begun(&mut self, lane: Lane, ordinals: Range<u64>) {
        self.begun.possible[lane.index()] = ordinals;
    }

    /// The session that the upstream has of us may not be the one that exchanges were begun in.
    pub(crate) fn doubt_exchanges(&mut self) {
        self.begun.doubt();
    }

    /// Every packet id there is being released.
    pub(crate) fn forget_exchanges(&mut self) {
        self.begun = BegunExchanges::default();
    }

    /// There is a connection.
    pub(super) fn resume_exchanges(&mut self, session_present: bool, actions: &mut Vec<SessionAction>) {
        if !session_present {
            self.forget_exchanges();
        }
        self.free_ids(actions);
    }

    /// The connection is gone: the packet ids of these may be in use there.
    pub(super) fn interrupt_exchanges(&mut self) {
        self.begun.to_free.append(&mut self.begun.asked);
        self.begun.interrupted(self.in_flight.iter());
        self.spread = Spread::default();
    }

    /// What is in flight comes again on this connection.
    pub(super) fn put_off_exchanges(&mut self) {
        self.begun.interrupted(self.in_flight.iter());
    }

    /// Whether the upstream knows exchanges at QoS 2.
    fn is_exact_there(&self) -> bool {
        self.rules.is_exact() && self.link.is_some_and(|link| link.max_qos == Qos::ExactlyOnce)
    }

    /// A message that may have been sent at QoS 2 is not sent so any more: the upstream may forget its packet id, which would
    /// otherwise stand for it until a later message has the same.
    pub(super) fn abandon_exchange(&mut self, source: &SentFrom, actions: &mut Vec<SessionAction>) {
        if source.resent && self.is_exact_there() {
            self.begun.to_free.insert(packet_id(source.lane, source.ordinal));
            self.free_ids(actions);
        }
    }

    /// A packet id is to be used: nothing else stands for it there.
    pub(super) fn use_id(&mut self, packet_id: u16, actions: &mut Vec<SessionAction>) {
        if self.begun.is_due(packet_id) {
            actions.push(SessionAction::Release(packet_id));
        }
    }

    /// The upstream says that a packet id is in use, and it is not certain by what.
    pub(super) fn free_id(&mut self, packet_id: u16, actions: &mut Vec<SessionAction>) {
        self.begun.asked.insert(packet_id);
        actions.push(SessionAction::Release(packet_id));
    }

    /// Whether a refusal says that the upstream has a message: the packet id is in use, and it can only be by this message,
    /// which this process has sent in the same session there before. Where that is not certain, such as after a crash, the
    /// packet id is freed and the message sent again: it may come twice, and is not lost.
    pub(super) fn is_there(&self, at: usize, reason: u8) -> bool {
        let is_begun = |message: &SentMessage| message.source.as_ref().is_some_and(|source| source.is_begun);
        let is_open = |message: &&SentMessage| message.is_exact && is_begun(message) && !message.is_recorded;
        reason == IN_USE && self.in_flight.get(at).filter(is_open).is_some()
    }

    /// The upstream has done with a packet id (PUBCOMP).
    pub(crate) fn completed(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        let was_asked = self.begun.asked.remove(&packet_id);
        let is_it = |message: &&SentMessage| message.packet_id == Some(packet_id) && message.is_unanswered();
        // before PUBREL it is for an earlier message
        if self.in_flight.iter().find(is_it).is_some_and(|message| message.is_released) {
            return self.acked(packet_id, 0, now);
        }
        self.last_answer = now;
        let mut actions = Vec::new();
        if was_asked {
            self.free_ids(&mut actions);
        }
        actions
    }

    /// PUBREL is on its way: from now on only PUBCOMP ends this message.
    pub(crate) fn released(&mut self, packet_id: u16, now: u64) {
        let is_it = |message: &&mut SentMessage| message.packet_id == Some(packet_id) && message.is_recorded;
        if let Some(message) = self.in_flight.iter_mut().find(is_it) {
            (message.is_released, message.handed_over) = (true, now);
        }
    }

    /// A message that the upstream has, as the journal knows.
    pub(super) fn hand_over_recorded(&mut self, source: SentFrom, now: u64, actions: &mut Vec<SessionAction>) {
        self.under_way.begin(&source);
        let packet_id = packet_id(source.lane, source.ordinal);
        let mut recorded = SentMessage::new(Some(source), now);
        (recorded.packet_id, recorded.is_exact) = (Some(packet_id), true);
        (recorded.is_recorded, recorded.is_released) = (true, true);
        self.in_flight.push_back(recorded);
        actions.push(SessionAction::Release(packet_id));
    }

    /// The upstream has a message (PUBREC).
    pub(crate) fn recorded(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        self.last_answer = now;
        let is_it = |message: &&mut SentMessage| message.packet_id == Some(packet_id) && message.is_unanswered();
        match self.in_flight.iter_mut().find(is_it) {
            // while it is being written here, nothing more is to be said
            Some(SentMessage { is_recorded: true, .. }) => Vec::new(),
            Some(SentMessage { source: Some(source), is_recorded, .. }) => {
                *is_recorded = true;
                vec![SessionAction::Record(source.lane, source.ordinal, packet_id)]
            }
            // what it would wait for otherwise [MQTT-4.3.3]
            _ => vec![SessionAction::Release(packet_id)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::client::MESSAGE_IDS;

    #[test]
    fn packet_ids_of_the_lanes_and_of_qos_1_differ() {
        let ids = |lane| (0..2 * IDS).map(move |ordinal| packet_id(lane, ordinal));
        assert_eq!((ids(Lane::First).min(), ids(Lane::First).max()), (Some(MESSAGE_IDS + 1), Some(0x7fff)));
        assert_eq!((ids(Lane::Second).min(), ids(Lane::Second).max()), (Some(0x8000), Some(0xbfff)));
        assert_eq!(packet_id(Lane::First, 7), packet_id(Lane::First, 7 + IDS));
        assert_ne!(packet_id(Lane::First, 7), packet_id(Lane::First, 6 + IDS));
    }
}
