//! Packet ids, and what is asked with them. The answers to SUBSCRIBE and UNSUBSCRIBE are told by their ids, because an
//! upstream may answer out of order, twice, or not at all.

use std::collections::VecDeque;

use super::{Busy, ClientEvent};

/// The first of these ids; they reach to the last one that there is.
const FIRST: u16 = 0xff00;
/// The most packets without an answer. There are more ids, so one that is free is found soon.
const MOST: usize = 200;

/// Assigns the packet ids of a range in turn. The range is longer than the number of unanswered packets can be.
pub(in crate::upstream::client) struct Ids {
    first: u16,
    last: u16,
    next: u16,
}

impl Ids {
    pub(in crate::upstream::client) fn new(first: u16, last: u16) -> Ids {
        Ids { first, last, next: first }
    }

    pub(in crate::upstream::client) fn take(&mut self) -> u16 {
        let id = self.next;
        self.next = if id == self.last { self.first } else { id + 1 };
        id
    }
}

/// A packet that is answered by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedKind {
    Subscribe,
    Unsubscribe,
}

/// The unanswered packets of one connection.
pub(super) struct AskedPackets {
    ids: Ids,
    /// Ids with the numbers of the packets among those of their kind.
    open: VecDeque<(u16, AskedKind, u32)>,
    subscribed: u32,
    unsubscribed: u32,
}

impl AskedPackets {
    pub(super) fn new() -> AskedPackets {
        let open = VecDeque::new();
        AskedPackets { ids: Ids::new(FIRST, u16::MAX), open, subscribed: 0, unsubscribed: 0 }
    }

    /// Whether there is an id for another packet.
    pub(super) fn has_room(&self) -> Result<(), Busy> {
        if self.open.len() < MOST { Ok(()) } else { Err(Busy) }
    }

    /// The id of the next packet of this kind. It is in no use: [MQTT-2.2.1-3].
    pub(super) fn next(&mut self, kind: AskedKind) -> u16 {
        let mut id = self.ids.take();
        while self.open.iter().any(|(used, ..)| *used == id) {
            id = self.ids.take();
        }
        let count = match kind {
            AskedKind::Subscribe => &mut self.subscribed,
            AskedKind::Unsubscribe => &mut self.unsubscribed,
        };
        self.open.push_back((id, kind, *count));
        *count += 1;
        id
    }

    /// What the answer with this packet id and these reason codes tells.
    pub(super) fn event(&mut self, id: u16, kind: AskedKind, reasons: Vec<u8>) -> ClientEvent {
        match (self.answered(id, kind), kind) {
            (Some(number), AskedKind::Subscribe) => ClientEvent::Subscribed(number, reasons),
            (Some(number), AskedKind::Unsubscribe) => ClientEvent::Unsubscribed(number, reasons),
            (None, _) => ClientEvent::Unasked(id),
        }
    }

    /// The number of the packet that is answered; `None` if there is no such packet without an answer.
    fn answered(&mut self, id: u16, kind: AskedKind) -> Option<u32> {
        let at = self.open.iter().position(|(asked, of, _)| (*asked, *of) == (id, kind))?;
        self.open.remove(at).map(|(.., number)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_not_used_again_before_its_answer() {
        let mut asked = AskedPackets::new();
        let kept = asked.next(AskedKind::Subscribe);
        for number in 0..600 {
            let id = asked.next(AskedKind::Unsubscribe);
            assert!(id >= FIRST && id != kept);
            assert_eq!(asked.answered(id, AskedKind::Subscribe), None, "of another kind");
            assert_eq!(asked.answered(id, AskedKind::Unsubscribe), Some(number));
            assert_eq!(asked.answered(id, AskedKind::Unsubscribe), None, "twice");
        }
        assert_eq!(asked.answered(kept, AskedKind::Subscribe), Some(0));
        while asked.has_room().is_ok() {
            asked.next(AskedKind::Subscribe);
        }
        assert_eq!(asked.open.len(), MOST);
    }
}
