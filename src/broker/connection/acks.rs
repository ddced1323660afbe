//! Acknowledgements that wait to be sent in the order of the packets that they acknowledge [MQTT-4.6.0-2].

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::exchange::ingress::{Accepted, Receipt};
use crate::mqtt::Reason;
use crate::mqtt::write::AckPacket;

/// The number of entries for which there is memory while none waits. One read can bring more than ten thousand messages.
pub(super) const ENTRIES_KEPT: usize = 256;

#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingAck {
    pub(crate) kind: AckPacket,
    pub(crate) packet_id: u16,
    pub(crate) reason: Reason,
    /// Before the message has its place in the order, its index in the batch; after that, its receipt.
    pub(crate) state: AckState,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum AckState {
    InBatch(u32),
    Waits(Receipt),
}

impl PendingAck {
    /// Whether it ends an exchange that the client began, so that the client may begin another [MQTT-4.9.0-3].
    fn ends_an_exchange(&self) -> bool {
        match self.kind {
            AckPacket::PubAck => true,
            // a PUBREL for an unknown message belongs to no exchange
            AckPacket::PubComp => !self.reason.is_error(),
            // otherwise the exchange continues, and the session counts it
            AckPacket::PubRec => self.reason.is_error(),
            AckPacket::PubRel => false,
        }
    }
}

/// The waiting acknowledgements of a connection.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    queue: VecDeque<PendingAck>,
    ending: usize,
}

impl Acks {
    pub(crate) fn push(&mut self, ack: PendingAck) {
        self.ending += usize::from(ack.ends_an_exchange());
        self.queue.push_back(ack);
    }

    pub(crate) fn front(&self) -> Option<&PendingAck> {
        self.queue.front()
    }

    pub(crate) fn pop(&mut self) {
        if let Some(ack) = self.queue.pop_front() {
            self.ending -= usize::from(ack.ends_an_exchange());
        }
        if self.queue.is_empty() {
            self.queue.shrink_to(ENTRIES_KEPT);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The number of the client's exchanges for which only the last acknowledgement is missing.
    pub(crate) fn ending(&self) -> usize {
        self.ending
    }

    /// Records that the batch has its place in the order. Returns the packet ids of messages that were not accepted and that
    /// the client may send again.
    pub(crate) fn placed(&mut self, accepted: &Accepted, is_v5: bool) -> SmallVec<[u16; 4]> {
        let mut refused = SmallVec::new();
        self.queue.retain_mut(|ack| {
            let AckState::InBatch(place) = ack.state else { return true };
            ack.state = AckState::Waits(accepted.receipt);
            let is_refused = accepted.refused.contains(&place);
            // MQTT 3 has no refusal. Without a PUBACK the client sends the message again, and with it all that it has to say
            // would wait for ever for a message that never fits. So that one is acknowledged and dropped, as mosquitto does
            if is_refused && !is_v5 && accepted.never_fit.iter().any(|message| message.place == place) {
                return true;
            }
            if is_refused || (is_v5 && accepted.unretained.contains(&place)) {
                refused.push(ack.packet_id);
                ack.reason = Reason::QUOTA_EXCEEDED;
            }
            is_v5 || !is_refused
        });
        if !refused.is_empty() {
            self.ending = self.queue.iter().filter(|ack| ack.ends_an_exchange()).count();
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::ingress::NeverFits;

    fn ack(kind: AckPacket, packet_id: u16, reason: Reason) -> PendingAck {
        PendingAck { kind, packet_id, reason, state: AckState::InBatch(u32::from(packet_id)) }
    }

    #[test]
    fn an_exchange_counts_once_whatever_waits_for_it() {
        let mut acks = Acks::default();
        for (kind, reason, ending) in [
            (AckPacket::PubAck, Reason::SUCCESS, 1),
            (AckPacket::PubRec, Reason::SUCCESS, 1),
            (AckPacket::PubRec, Reason::NOT_AUTHORIZED, 2),
            (AckPacket::PubComp, Reason::SUCCESS, 3),
            (AckPacket::PubComp, Reason::PACKET_ID_NOT_FOUND, 3),
            (AckPacket::PubRel, Reason::SUCCESS, 3),
        ] {
            acks.push(ack(kind, acks.len() as u16, reason));
            assert_eq!(acks.ending(), ending, "{kind:?} {reason:?}");
        }
        let refused = acks.placed(&Accepted { refused: [1].into_iter().collect(), ..Accepted::default() }, true);
        assert_eq!((&refused[..], acks.ending()), (&[1][..], 4), "the refused PUBREC ends its exchange");
        while !acks.is_empty() {
            acks.pop();
        }
        assert_eq!(acks.ending(), 0);
    }

    #[test]
    fn a_burst_leaves_no_large_queue_behind() {
        let mut acks = Acks::default();
        for count in [10_000, 1] {
            (0..count).for_each(|id| acks.push(ack(AckPacket::PubRec, id, Reason::SUCCESS)));
            assert!(acks.queue.capacity() >= usize::from(count));
            while !acks.is_empty() {
                acks.pop();
            }
            // some memory stays, so that not every message allocates
            assert!((1..=2 * ENTRIES_KEPT).contains(&acks.queue.capacity()), "{}", acks.queue.capacity());
        }
    }

    #[test]
    fn what_never_fits_is_acknowledged_to_those_who_would_repeat_it_for_ever() {
        let never_fit = vec![NeverFits { place: 2, topic: "t".into(), size: 9 }];
        let accepted = Accepted { refused: [1, 2].into_iter().collect(), never_fit, ..Accepted::default() };
        for (is_v5, refused, answers) in [
            (false, &[1][..], &[(0, Reason::SUCCESS), (2, Reason::SUCCESS)][..]),
            (true, &[1, 2], &[(0, Reason::SUCCESS), (1, Reason::QUOTA_EXCEEDED), (2, Reason::QUOTA_EXCEEDED)]),
        ] {
            let mut acks = Acks::default();
            (0..3).for_each(|id| acks.push(ack(AckPacket::PubAck, id, Reason::SUCCESS)));
            assert_eq!(&acks.placed(&accepted, is_v5)[..], refused);
            let sent: Vec<_> = acks.queue.iter().map(|ack| (ack.packet_id, ack.reason)).collect();
            assert_eq!(sent, answers);
        }
    }
}
