//! Exactly once, on the way up [MQTT-4.3.3].
//!
//! A message at QoS 2 has the same packet id on every connection, since the upstream knows by it whether it has the message:
//! it follows from the lane and the message's ordinal, which the journal keeps anyway, so nothing need be written before
//! PUBLISH. PUBREC is written before PUBREL leaves, many of them in one sync; a message that the journal knows to be there is
//! not sent again, only its PUBREL. PUBCOMP settles the message. Where the upstream has forgotten our session, it is sent
//! again with all that is in flight, as at QoS 1.

use super::{InFlight, Role, Session, SessionAction, Source};
use crate::upstream::lanes::Lane;

/// Packet ids of a lane.
const IDS: u64 = 0x4000;

/// The packet id of a message at QoS 2; those of the two lanes differ from each other and from those of QoS 1.
pub(super) fn packet_id(lane: Lane, ordinal: u64) -> u16 {
    let first = match lane {
        Lane::First => 0x4000,
        Lane::Second => 0x8000,
    };
    first + (ordinal % IDS) as u16
}

impl Session {
    /// Whether the next packet id may still be in use: by a message that has been held back for very long.
    pub(super) fn is_out_of_ids(&self) -> bool {
        self.rules.is_exact()
            && Lane::ALL.iter().any(|lane| {
                let ordinal = |message: &InFlight| {
                    message.source.as_ref().filter(|source| source.lane == *lane).map(|source| source.ordinal)
                };
                let oldest = self.in_flight.iter().find_map(ordinal);
                let newest = self.in_flight.iter().rev().find_map(ordinal);
                oldest.zip(newest).is_some_and(|(oldest, newest)| newest.saturating_sub(oldest) >= IDS / 2)
            })
    }

    /// A message that the upstream has, as the journal knows.
    pub(super) fn hand_over_recorded(&mut self, source: Source, now: u64, actions: &mut Vec<SessionAction>) {
        if source.role == Role::Backlog {
            self.backlog_bytes += source.message.size();
        }
        let packet_id = packet_id(source.lane, source.ordinal);
        let mut recorded = InFlight::new(Some(source), now);
        (recorded.packet_id, recorded.is_recorded) = (Some(packet_id), true);
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
