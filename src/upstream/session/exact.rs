//! Exactly once, on the way up [MQTT-4.3.3].
//!
//! A message at QoS 2 has the same packet id on every connection, since the upstream knows by it whether it has the message:
//! it follows from the lane and the message's ordinal, which the journal keeps anyway, so nothing need be written before
//! PUBLISH. PUBREC is written before PUBREL leaves, many of them in one sync; a message that the journal knows to be there is
//! not sent again, only its PUBREL. PUBCOMP settles the message. Where the upstream has forgotten our session, it is sent
//! again with all that is in flight, as at QoS 1.

use std::ops::RangeInclusive;

use super::{InFlight, Role, Session, SessionAction, Source};
use crate::message::Qos;
use crate::upstream::lanes::Lane;

/// Packet ids of a lane.
const IDS: u64 = 0x4000;
/// Packet ids of messages at QoS 2.
pub const EXACT_IDS: RangeInclusive<u16> = 0x4000..=0xbfff;
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

impl Session {
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

    /// The journal hands this message out, after all of its lane that come before it: whether it does so for the first time
    /// on this connection. What was in flight before and is not handed out again has ended here, and its packet id is free.
    pub(super) fn begin_exchange(&mut self, lane: Lane, ordinal: u64, actions: &mut Vec<SessionAction>) -> bool {
        let is_first = self.spread.deliver(lane, ordinal);
        self.look_at_spread();
        if !self.begun.is_empty() {
            let is_exact_there = self.is_exact_there();
            self.begun.retain(|(begun, old)| {
                if *begun != lane.index() || *old > ordinal {
                    return true;
                }
                if *old < ordinal && is_exact_there {
                    actions.push(SessionAction::Release(packet_id(lane, *old)));
                }
                false
            });
        }
        is_first
    }

    /// The gateway has started: a window of messages from this one on may have been under way when it ended.
    pub fn may_have_begun(&mut self, lane: Lane, oldest: u64) {
        let window = oldest..oldest + u64::from(self.max_inflight);
        self.begun.extend(window.map(|ordinal| (lane.index(), ordinal)));
    }

    /// The connection is gone: the packet ids of these may be in use there.
    pub(super) fn interrupt_exchanges(&mut self) {
        let interrupted = self.in_flight.iter().filter(|message| message.is_exact && message.is_unanswered());
        let sources = interrupted.filter_map(|message| message.source.as_ref());
        self.begun.extend(sources.map(|source| (source.lane.index(), source.ordinal)));
        self.spread = Spread::default();
    }

    /// Whether the upstream knows exchanges at QoS 2.
    fn is_exact_there(&self) -> bool {
        self.rules.is_exact() && self.link.is_some_and(|link| link.max_qos == Qos::ExactlyOnce)
    }

    /// A message that may have been sent at QoS 2 is not sent so any more: the upstream may forget its packet id, which would
    /// otherwise stand for it until a later message has the same.
    pub(super) fn abandon_exchange(&self, source: &Source, actions: &mut Vec<SessionAction>) {
        if source.resent && self.is_exact_there() {
            actions.push(SessionAction::Release(packet_id(source.lane, source.ordinal)));
        }
    }

    /// Whether a refusal says that the upstream has a message: it was sent on an earlier connection under the same packet id,
    /// which is in use.
    pub(super) fn is_there(&self, at: usize, reason: u8) -> bool {
        let is_open = |message: &&InFlight| message.is_exact && message.is_repeated && !message.is_recorded;
        reason == IN_USE && self.in_flight.get(at).filter(is_open).is_some()
    }

    /// The upstream has done with a packet id (PUBCOMP).
    pub fn completed(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        let is_it = |message: &&InFlight| message.packet_id == Some(packet_id) && message.is_unanswered();
        // before PUBREL it is for an earlier message
        if self.in_flight.iter().find(is_it).is_some_and(|message| message.is_released) {
            return self.acked(packet_id, 0, now);
        }
        self.last_answer = now;
        Vec::new()
    }

    /// PUBREL is on its way: from now on only PUBCOMP ends this message.
    pub fn released(&mut self, packet_id: u16, now: u64) {
        let is_it = |message: &&mut InFlight| message.packet_id == Some(packet_id) && message.is_recorded;
        if let Some(message) = self.in_flight.iter_mut().find(is_it) {
            (message.is_released, message.handed_over) = (true, now);
        }
    }

    /// A message that the upstream has, as the journal knows.
    pub(super) fn hand_over_recorded(&mut self, source: Source, now: u64, actions: &mut Vec<SessionAction>) {
        if source.role == Role::Backlog {
            self.backlog_bytes += source.message.size();
        }
        let packet_id = packet_id(source.lane, source.ordinal);
        let mut recorded = InFlight::new(Some(source), now);
        (recorded.packet_id, recorded.is_exact) = (Some(packet_id), true);
        (recorded.is_recorded, recorded.is_released) = (true, true);
        self.in_flight.push_back(recorded);
        actions.push(SessionAction::Release(packet_id));
    }

    /// The upstream has a message (PUBREC).
    pub fn recorded(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        self.last_answer = now;
        let is_it = |message: &&mut InFlight| message.packet_id == Some(packet_id) && message.is_unanswered();
        match self.in_flight.iter_mut().find(is_it) {
            // while it is being written here, nothing more is to be said
            Some(InFlight { is_recorded: true, .. }) => Vec::new(),
            Some(InFlight { source: Some(source), is_recorded, .. }) => {
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
