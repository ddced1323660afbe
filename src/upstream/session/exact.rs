//! Exactly-once delivery to the upstream [MQTT-4.3.3].
//!
//! A message at QoS 2 has the same packet id on every connection, because the upstream recognises it by this id. The id is
//! derived from the lane and the message's ordinal, which the journal keeps anyway, so nothing has to be written before
//! PUBLISH. A PUBREC is written before PUBREL leaves, many of them in one sync. For a message that is known to be there,
//! only PUBREL is sent again. PUBCOMP settles the message. If the upstream has forgotten our session, the message is sent
//! again with everything in flight, as at QoS 1.
//!
//! Packet ids repeat after [`IDS`] messages. If the PUBREL that frees an id and the PUBLISH that uses it again leave
//! together, and the connection ends before either is answered, the id is freed once more, so that the later message cannot
//! be taken for the earlier one. The later message may then arrive twice.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use super::{SentFrom, SentMessage, SessionAction, UpstreamSession};
use crate::message::Qos;
use crate::mqtt::packet_ids::PacketIds;
use crate::upstream::lanes::Lane;
use crate::upstream::wire::Link;

/// The number of packet ids of a lane.
const IDS: u64 = 0x4000;
/// The most packet ids that the upstream is asked to free before it has answered about the first of them.
const MOST_ASKED: usize = 16;
/// The number of connections in a row that the upstream may close while it is asked.
const MOST_ENDS: u32 = 2;
/// The most messages in flight to an upstream that cannot say how many it allows. By default mosquitto keeps 20 unreleased
/// messages of a client (`max_inflight_messages`), drops what comes beyond them, and answers that like the others, because
/// PUBREC has no reason code before version 5.
pub(super) const EXACT_UNSAID: u16 = 20;
/// The packet ids of messages at QoS 2.
pub(crate) const EXACT_IDS: RangeInclusive<u16> = 0x4000..=0xbfff;
/// The reason code "packet identifier in use" [MQTT-5 3.5.2.1].
pub(super) const IN_USE: u8 = 0x91;

/// The packet id of a message at QoS 2. The ids of the two lanes differ from each other and from those of QoS 1.
pub(super) fn packet_id(lane: Lane, ordinal: u64) -> u16 {
    let first = match lane {
        Lane::First => 0x4000,
        Lane::Second => 0x8000,
    };
    first + (ordinal % IDS) as u16
}

/// The ordinals that were handed out on a connection, for each lane.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// For each lane an ordinal, below which none is in flight.
    oldest: [u64; 2],
    newest: [u64; 2],
}

impl Spread {
    /// Records a message from the journal, and returns whether it is the first time on this connection.
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

/// What an upstream may know of exchanges that are not in flight on this connection. Makes decisions without I/O.
#[derive(Debug, Default)]
pub(super) struct BegunExchanges {
    /// Exchanges that were sent in the upstream's present session and interrupted, by lane and ordinal. If their packet ids
    /// are in use there, it is by these messages.
    certain: BTreeSet<(usize, u64)>,
    /// Exchanges from before the start of the process, or from a session that may have been another one. They may not have
    /// been sent, and their packet ids may be in use by other messages.
    possible: [Range<u64>; 2],
    /// Of the possible ones of each lane, those before this ordinal fit into the window that was in flight.
    likely_until: [u64; 2],
    /// Packet ids that the upstream must still free, or has not answered about.
    to_free: PacketIds,
    asked: PacketIds,
    /// The number of connections in a row that the upstream closed while it was asked.
    ends: u32,
}

/// What is known of a message from the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// Whether it comes for the first time on this connection.
    pub(crate) is_first: bool,
    /// Whether it was sent in the upstream's present session.
    pub(crate) is_begun: bool,
    /// Whether it may have been sent in it.
    pub(crate) is_possible: bool,
}

impl BegunExchanges {
    /// Records that this message comes after all earlier ones of its lane: exchanges before it have ended, and their packet
    /// ids are free.
    fn deliver(&mut self, lane: Lane, ordinal: u64) -> (bool, bool) {
        let at = lane.index();
        while let Some(old) = self.certain.range((at, 0)..(at, ordinal)).next().copied() {
            self.certain.remove(&old);
            self.to_free.insert(packet_id(lane, old.1));
        }
        let possible = &mut self.possible[at];
        let passed = possible.start..ordinal.min(possible.end);
        if !passed.is_empty() {
            // there are no more packet ids than this
            let from = passed.start.max(passed.end.saturating_sub(IDS));
            self.to_free.extend((from..passed.end).map(|old| packet_id(lane, old)));
        }
        let is_possible = possible.contains(&ordinal);
        possible.start = possible.start.max(ordinal + 1);
        (self.certain.remove(&(at, ordinal)), is_possible)
    }

    /// Whether any exchange may have begun.
    fn is_any(&self) -> bool {
        !self.certain.is_empty() || self.possible.iter().any(|possible| !possible.is_empty())
    }

    /// Records a new connection with this window.
    fn resume(&mut self, window: u16) {
        self.likely_until = self.possible.each_ref().map(|range| range.end.min(range.start + u64::from(window)));
    }

    /// Whether an exchange of this lane has not been handed out again on this connection.
    fn is_open(&self, lane: Lane) -> bool {
        let at = lane.index();
        let is_likely = self.possible[at].start < self.likely_until[at];
        is_likely || self.certain.range((at, 0)..(at + 1, 0)).next().is_some()
    }

    /// Records that it is not certain any more which session the upstream has for us.
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

    /// The packet ids to free now.
    fn free(&mut self) -> impl Iterator<Item = u16> {
        let count = MOST_ASKED.saturating_sub(self.asked.len());
        let now: Vec<u16> = self.to_free.iter().take(count).collect();
        for packet_id in now.iter().copied() {
            self.to_free.remove(packet_id);
            self.asked.insert(packet_id);
        }
        now.into_iter()
    }

    /// Whether a packet id must be freed before it is used.
    fn is_due(&mut self, packet_id: u16) -> bool {
        let is_due = self.to_free.remove(packet_id);
        if is_due {
            self.asked.insert(packet_id);
        }
        is_due
    }

    /// Handles the end of a connection by the upstream. `None` means that it was not asked to free a packet id. After a
    /// few such ends it is not asked any more, and `true` is returned: if an id is still in use there, its next message
    /// is not released either, and stays here.
    pub(super) fn ended_while_freeing(&mut self) -> Option<bool> {
        if self.asked.is_empty() {
            return None;
        }
        self.ends += 1;
        let is_given_up = self.ends >= MOST_ENDS;
        if is_given_up {
            self.ends = 0;
            (self.asked, self.to_free) = Default::default();
        }
        Some(is_given_up)
    }

    /// Records interrupted messages, which will be handed out again. They count as known even if one was not sent this time.
    fn interrupted<'a>(&mut self, in_flight: impl Iterator<Item = &'a SentMessage>) {
        for message in in_flight.filter(|message| message.outcome.is_none() && !message.again) {
            let Some(source) = &message.source else { continue };
            let (at, ordinal) = (source.lane.index(), source.ordinal);
            // a message that was not written has not been sent
            if source.is_begun || message.is_exact && message.is_unanswered() && message.packet_id.is_some() {
                self.certain.insert((at, ordinal));
            } else if source.resent && (message.is_exact || message.held || message.waits) {
                self.may_have_begun(at, ordinal);
            }
        }
    }
}

impl UpstreamSession {
    /// Whether the next packet id may still be in use, by a message that has been held back for very long.
    pub(super) fn is_out_of_ids(&self) -> bool {
        self.spread.is_wider_than(IDS / 2) && self.rules.is_exact()
    }

    /// Finds the oldest message in flight, before the distance to it matters.
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

    /// Returns what is known of a message that the journal hands out after all earlier ones of its lane.
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

    /// Records that these messages may have been in flight when the gateway ended.
    pub(crate) fn may_have_begun(&mut self, lane: Lane, ordinals: Range<u64>) {
        self.begun.possible[lane.index()] = ordinals;
    }

    /// Records that the upstream's session may not be the one in which exchanges were begun.
    pub(crate) fn doubt_exchanges(&mut self) {
        self.begun.doubt();
    }

    /// Forgets all exchanges, because every packet id there is being freed.
    pub(crate) fn forget_exchanges(&mut self) {
        self.begun = BegunExchanges::default();
    }

    /// Handles a new connection.
    pub(super) fn resume_exchanges(&mut self, session_present: bool, actions: &mut Vec<SessionAction>) {
        if !session_present {
            self.forget_exchanges();
        }
        let window = self.link.map_or(1, |link| self.most_in_flight(link));
        self.begun.resume(window);
        self.free_ids(actions);
    }

    /// Whether exchanges of this lane have not been handed out again, and the other lane must wait for them: together with its
    /// messages they may be more than an upstream has room for that can only drop the rest, because it cannot say so.
    pub(crate) fn resumes(&self, lane: Lane) -> bool {
        let is_mute = |link: Link| link.session_present && !link.version.is_v5();
        self.link.is_some_and(is_mute) && self.is_exact_there() && self.begun.is_open(lane)
    }

    /// Handles the end of a connection: the packet ids of messages in flight may be in use there.
    pub(super) fn interrupt_exchanges(&mut self) {
        self.begun.to_free.extend(std::mem::take(&mut self.begun.asked).iter());
        self.begun.interrupted(self.in_flight.iter());
        self.spread = Spread::default();
    }

    /// Records that everything in flight is sent again on this connection.
    pub(super) fn put_off_exchanges(&mut self) {
        self.begun.interrupted(self.in_flight.iter());
    }

    /// Whether the upstream supports QoS 2.
    pub(super) fn is_exact_there(&self) -> bool {
        self.rules.is_exact() && self.link.is_some_and(|link| link.max_qos == Qos::ExactlyOnce)
    }

    /// Whether exchanges that the upstream may know of go on before anything else is sent.
    pub(super) fn is_freed_first(&self) -> bool {
        let has_session = self.link.is_some_and(|link| link.session_present);
        has_session && self.is_exact_there() && self.begun.is_any()
    }

    /// Frees the packet id of a message that may have been sent at QoS 2 and is no longer sent so. Otherwise the id would
    /// stay in use until a later message has the same one.
    pub(super) fn abandon_exchange(&mut self, source: &SentFrom, actions: &mut Vec<SessionAction>) {
        if (source.is_begun || source.is_possible) && self.is_exact_there() {
            self.begun.to_free.insert(packet_id(source.lane, source.ordinal));
            self.free_ids(actions);
        }
    }

    /// Prepares the use of a packet id: it must not be in use there by another message.
    pub(super) fn use_id(&mut self, packet_id: u16, actions: &mut Vec<SessionAction>) {
        if self.begun.is_due(packet_id) {
            actions.push(SessionAction::Release(packet_id));
        }
    }

    /// Frees a packet id that is in use, according to the upstream, by an unknown message.
    pub(super) fn free_id(&mut self, packet_id: u16, actions: &mut Vec<SessionAction>) {
        self.begun.asked.insert(packet_id);
        actions.push(SessionAction::Release(packet_id));
    }

    /// Whether a refusal shows that the upstream has the message: the packet id is in use, and only this message can use it,
    /// because this process has sent it in the same session before. If that is not certain, for example after a crash, the
    /// id is freed and the message is sent again. It may then arrive twice, but is not lost.
    pub(super) fn is_there(&self, at: usize, reason: u8) -> bool {
        let is_begun = |message: &SentMessage| message.source.as_ref().is_some_and(|source| source.is_begun);
        let is_open = |message: &&SentMessage| message.is_exact && is_begun(message) && !message.is_recorded;
        reason == IN_USE && self.in_flight.get(at).filter(is_open).is_some()
    }

    /// Processes a PUBCOMP for this packet id.
    pub(crate) fn completed(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        self.put_off.has_completed = true;
        self.begun.ends = 0;
        let was_asked = self.begun.asked.remove(packet_id);
        let is_it = |message: &&SentMessage| message.packet_id == Some(packet_id) && message.is_unanswered();
        // before our PUBREL, it belongs to an earlier message
        if self.in_flight.iter().find(is_it).is_some_and(|message| message.is_released) {
            return self.acked(packet_id, 0, now);
        }
        self.last_answer = now;
        let mut actions = self.others_answered(now);
        if was_asked {
            self.free_ids(&mut actions);
        }
        actions
    }

    /// Records that PUBREL is being sent: from now on only PUBCOMP ends this message.
    pub(crate) fn released(&mut self, packet_id: u16, now: u64) {
        let is_it = |message: &&mut SentMessage| message.packet_id == Some(packet_id) && message.is_recorded;
        if let Some(message) = self.in_flight.iter_mut().find(is_it) {
            (message.is_released, message.handed_over) = (true, now);
        }
    }

    /// Handles a message that the upstream has, according to the journal: only PUBREL is sent.
    pub(super) fn hand_over_recorded(&mut self, source: SentFrom, now: u64, actions: &mut Vec<SessionAction>) {
        self.under_way.begin(&source);
        let packet_id = packet_id(source.lane, source.ordinal);
        let mut recorded = SentMessage::new(Some(source), now);
        (recorded.packet_id, recorded.is_exact) = (Some(packet_id), true);
        (recorded.is_recorded, recorded.is_released) = (true, true);
        self.in_flight.push_back(recorded);
        actions.push(SessionAction::Release(packet_id));
    }

    /// Processes a PUBREC for this packet id.
    pub(crate) fn recorded(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        (self.last_answer, self.has_recorded) = (now, true);
        let mut actions = self.others_answered(now);
        let is_it = |message: &&mut SentMessage| message.packet_id == Some(packet_id) && message.is_unanswered();
        match self.in_flight.iter_mut().find(is_it) {
            // while this is being written, nothing more is sent
            Some(SentMessage { is_recorded: true, .. }) => {}
            Some(SentMessage { source: Some(source), is_recorded, .. }) => {
                *is_recorded = true;
                actions.push(SessionAction::Record(source.lane, source.ordinal, packet_id));
            }
            // the upstream would wait for it otherwise [MQTT-4.3.3]
            _ => actions.push(SessionAction::Release(packet_id)),
        }
        actions
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
