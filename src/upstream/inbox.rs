//! Messages from the upstream: passes them to the ingress, and acknowledges them.

use std::collections::VecDeque;

use tracing::{error, warn};

use super::door::InboxDoor;
use super::own_acks::OwnAcks;
use super::session::{Inbound, InboundLoss, NotTaken};
use super::wire::{Ack, UpstreamClient, said};
use crate::exchange::ingress::{IngressError, Receipt};
use crate::journal::{ConsumerId, Full, Journal, Note, Position};
use crate::message::{Draft, Origin, Qos};
use crate::mqtt::packet_ids::PacketIds;

/// The number of messages that are held while the gateway has no room. Further ones are not acknowledged, and come again
/// later.
const HELD: usize = 1000;

/// The most bytes of held messages. An upstream may send more than was agreed on.
const HELD_BYTES: usize = 8 << 20;

/// An entry that waits for room.
#[derive(Debug)]
enum WaitingMessage {
    Message(Inbound),
    /// A message that is not published. Its acknowledgement keeps its place in the order.
    Refused(Ack),
}

/// Messages from the upstream that are not complete. Acknowledgements leave in the order in which the messages came.
///
/// A message at QoS 2 is written together with its packet id, and PUBREC leaves when both are on disk. PUBREL frees the id,
/// and PUBCOMP leaves when that is on disk. So a message comes in exactly once, whatever ends in between, if the upstream
/// keeps our session.
pub(super) struct UpstreamInbox {
    name: String,
    origin: Origin,
    max_packet_size: usize,
    held: VecDeque<WaitingMessage>,
    /// Published messages whose receipts are not known to be settled yet.
    unsafe_yet: VecDeque<(Receipt, Ack)>,
    answers: OwnAcks,
    journal: Journal,
    consumer: ConsumerId,
    /// Packet ids of messages at QoS 2 that were received and not released.
    unreleased: PacketIds,
    /// Packet ids of an earlier session, which must be recorded as forgotten.
    stale: PacketIds,
    /// Whether nothing is accepted yet, because it must first be on disk to which session the packet ids belong.
    is_closed: bool,
    /// Packet ids that were released and must be recorded.
    releases: VecDeque<u16>,
    published: u64,
    dropped: u64,
    /// The bytes of held messages.
    held_bytes: usize,
    /// Whether there is no room and that has been logged.
    is_stuck: bool,
    /// Whether messages of this connection were not taken, so that the following ones are not either.
    has_missed: bool,
    /// Whether the upstream forgets our session with the connection, so that nothing comes again.
    is_clean: bool,
    /// The numbers of lost messages, by limit.
    lost: [u64; InboundLoss::COUNT],
}

impl UpstreamInbox {
    /// For the upstream with this consumer in the journal.
    pub(crate) fn new(name: &str, max_packet_size: usize, journal: &Journal, consumer: ConsumerId) -> UpstreamInbox {
        UpstreamInbox {
            name: name.to_owned(),
            origin: Origin::upstream(name),
            max_packet_size,
            held: VecDeque::new(),
            unsafe_yet: VecDeque::new(),
            answers: OwnAcks::default(),
            journal: journal.clone(),
            consumer,
            unreleased: journal.unreleased(consumer),
            stale: PacketIds::default(),
            is_closed: false,
            releases: VecDeque::new(),
            published: 0,
            dropped: 0,
            held_bytes: 0,
            is_stuck: false,
            has_missed: false,
            is_clean: false,
            lost: [0; InboundLoss::COUNT],
        }
    }

    /// The numbers of published and of dropped messages.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.published, self.dropped)
    }

    /// Whether messages wait for room.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty() || !self.releases.is_empty()
    }

    /// Whether packet ids are in use.
    pub(crate) fn has_steps(&self) -> bool {
        !self.unreleased.is_empty() || !self.stale.is_empty()
    }

    /// Forgets the packet ids, because the upstream has a new session for us. Nothing is accepted until
    /// [`UpstreamInbox::open`].
    pub(crate) fn forget(&mut self) {
        self.stale.extend(std::mem::take(&mut self.unreleased).iter());
        self.is_closed = true;
    }

    pub(crate) fn open(&mut self) {
        self.is_closed = false;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Records that the packet ids are forgotten, and returns the position at which that is on disk.
    pub(crate) fn note_forgotten(&mut self) -> Result<Position, Full> {
        let mut safe = Position::default();
        let stale: Vec<u16> = self.stale.iter().collect();
        for packet_id in stale {
            safe = self.journal.note(self.consumer, Note::Forgotten(packet_id))?;
            self.stale.remove(packet_id);
        }
        Ok(safe)
    }

    /// Logs the loss of a message: the first by each limit, and then whenever their number has doubled.
    fn lose(&mut self, loss: InboundLoss, topic: &str, size: usize) {
        let slot = &mut self.lost[loss as usize];
        *slot += 1;
        let (upstream, count) = (&self.name, *slot);
        if count.is_power_of_two() {
            let topic = said(topic);
            error!(upstream, topic, size, count, "message from upstream dropped: {}", loss.words());
        }
    }

    /// Acknowledges a message that is not published.
    fn refuse(&mut self, packet_id: u16, qos: Qos) {
        self.dropped += 1;
        self.answer(packet_id, qos);
    }

    fn answer(&mut self, packet_id: u16, qos: Qos) {
        let ack = match qos {
            Qos::AtMostOnce => return,
            Qos::AtLeastOnce => Ack::Taken(packet_id),
            Qos::ExactlyOnce => Ack::Recorded(packet_id),
        };
        // in the order of the messages [MQTT-4.6.0-2, MQTT-4.6.0-3]
        if self.held.is_empty() {
            self.unsafe_yet.push_back((Receipt::default(), ack));
        } else if self.held.len() < HELD && !self.has_missed {
            self.held.push_back(WaitingMessage::Refused(ack));
        } else {
            self.has_missed = true;
        }
    }

    /// Whether the connection must end, because the upstream sends again only on a new one what was not taken, and there is
    /// room now.
    pub(crate) fn needs_connection(&self) -> bool {
        self.has_missed && self.held.is_empty() && self.unsafe_yet.is_empty() && self.answers.len() == 0
    }

    /// Handles a new connection.
    pub(crate) fn connected(&mut self, is_clean: bool, now: u64) {
        (self.has_missed, self.is_clean) = (false, is_clean);
        self.answers.connected(now);
    }

    /// Handles the end of the connection, before [`UpstreamInbox::disconnected`]. Returns whether an acknowledgement
    /// may be the reason.
    pub(crate) fn ended(&mut self, by_upstream: bool, now: u64) -> bool {
        let (may_be_it, is_kept) = self.answers.ended(by_upstream, now);
        if is_kept {
            warn!(
                upstream = self.name,
                "the upstream closes the connection when messages from it are acknowledged: that waits, so that others go \
                 through; none is lost"
            );
        }
        may_be_it
    }

    /// Whether the last connection may have ended because of an acknowledgement.
    pub(crate) fn blames(&self) -> bool {
        self.answers.blames()
    }

    /// Records that the upstream has said something.
    pub(crate) fn heard(&mut self) {
        self.answers.heard();
    }

    /// When acknowledgements that are kept back leave.
    pub(crate) fn deadline(&self, now: u64) -> Option<u64> {
        self.answers.deadline(now)
    }

    /// Processes a PUBREL for this packet id.
    pub(crate) fn released(&mut self, packet_id: u16) {
        self.answers.released(packet_id);
        // there are no more packet ids than this
        if self.releases.len() <= usize::from(u16::MAX) {
            self.releases.push_back(packet_id);
        }
    }

    fn take_held(&mut self) {
        if let Some(WaitingMessage::Message(message)) = self.held.pop_front() {
            self.held_bytes = self.held_bytes.saturating_sub(message.size());
        }
    }

    fn forget_released(&mut self) {
        while let Some(packet_id) = self.releases.front().copied() {
            let mut durable = None;
            if self.unreleased.contains(packet_id) {
                let Ok(position) = self.journal.note(self.consumer, Note::Forgotten(packet_id)) else { return };
                durable = Some(position);
                self.unreleased.remove(packet_id);
            }
            self.releases.pop_front();
            self.unsafe_yet.push_back((Receipt { durable }, Ack::Completed(packet_id)));
        }
    }

    /// Processes a message of this size and QoS.
    pub(crate) fn received(&mut self, message: Result<Inbound, NotTaken>, (packet_id, qos, size): (u16, Qos, usize)) {
        match message {
            // for example a message for a subscription of an earlier configuration
            Err(NotTaken::Unwanted) => self.refuse(packet_id, qos),
            Err(NotTaken::Known) => self.answer(packet_id, qos),
            Err(NotTaken::Lost(loss, topic)) => {
                self.lose(loss, &topic, size);
                self.refuse(packet_id, qos);
            }
            Ok(message) if message.payload.len() + message.topic.len() > self.max_packet_size => {
                self.lose(InboundLoss::TooLarge, &message.topic, size);
                self.refuse(packet_id, qos);
            }
            Ok(message) if self.has_room_for(&message) => {
                self.held_bytes += message.size();
                self.held.push_back(WaitingMessage::Message(message));
            }
            Ok(message) if qos == Qos::AtMostOnce => {
                self.lose(InboundLoss::NoRoom, &message.topic, size);
                self.dropped += 1;
            }
            Ok(message) if self.is_clean => {
                self.lose(InboundLoss::NoRoomInCleanSession, &message.topic, size);
                self.refuse(packet_id, qos);
            }
            // it is not acknowledged, so the upstream sends it again on the next connection
            Ok(_) => self.has_missed = true,
        }
    }

    fn has_room_for(&self, message: &Inbound) -> bool {
        // what comes after a message that was not taken may not pass it
        let is_in_turn = !self.has_missed || message.packet_id == 0;
        let fits = self.held.len() < HELD && self.held_bytes + message.size() <= HELD_BYTES;
        // a message that is larger than the limit is held alone
        is_in_turn && (self.held.is_empty() || fits)
    }

    /// Counts the oldest held message as lost, and acknowledges it.
    fn lose_oldest(&mut self, loss: InboundLoss) {
        let Some(WaitingMessage::Message(message)) = self.held.front() else { return };
        let (topic, size, packet_id) = (message.topic.clone(), message.payload.len(), message.packet_id);
        let ack = if message.is_exact { Ack::Recorded } else { Ack::Taken };
        self.lose(loss, &topic, size);
        self.dropped += 1;
        if packet_id != 0 {
            self.unsafe_yet.push_back((Receipt::default(), ack(packet_id)));
        }
    }

    /// Publishes held messages, as far as there is room.
    pub(crate) async fn deliver(&mut self, door: &InboxDoor, now: u64) -> Result<(), IngressError> {
        if self.is_closed {
            return Ok(());
        }
        self.forget_released();
        while let Some(waiting) = self.held.front() {
            let message = match waiting {
                WaitingMessage::Message(message) => message,
                WaitingMessage::Refused(ack) => {
                    self.unsafe_yet.push_back((Receipt::default(), *ack));
                    self.take_held();
                    continue;
                }
            };
            let packet_id = message.packet_id;
            if message.is_exact && self.unreleased.contains(packet_id) {
                // the message is here, but perhaps not on disk yet
                let safe = Receipt { durable: Some(self.journal.barrier()) };
                self.unsafe_yet.push_back((safe, Ack::Recorded(packet_id)));
                self.take_held();
                continue;
            }
            let once = Some((self.consumer, packet_id)).filter(|_| message.is_exact && packet_id != 0);
            let draft = Draft {
                topic: &message.topic,
                payload: &message.payload,
                qos: message.qos,
                retain: message.retain,
                properties: &message.properties,
                expiry: message.expiry,
                boot_ms: now,
                origin: self.origin,
            };
            match door.publish(&draft, once).await {
                Ok(receipt) => {
                    self.published += 1;
                    self.is_stuck = false;
                    if packet_id != 0 {
                        let ack = if message.is_exact { Ack::Recorded } else { Ack::Taken };
                        self.unsafe_yet.push_back((receipt, ack(packet_id)));
                    }
                    self.unreleased.extend(once.map(|(_, packet_id)| packet_id));
                }
                // one with a packet id waits there
                Err(IngressError::Full(_)) if message.qos == Qos::AtMostOnce && packet_id == 0 => {
                    self.lose_oldest(InboundLoss::NoRoom);
                }
                // it would hold up all that come after it, for ever
                Err(IngressError::TooLarge) => self.lose_oldest(InboundLoss::NeverFits),
                Err(IngressError::Full(_)) => {
                    if !std::mem::replace(&mut self.is_stuck, true) {
                        warn!(upstream = self.name, "the journal is full: messages from upstream wait there");
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.take_held();
        }
        Ok(())
    }

    /// Waits until what must be kept of the oldest published message is on disk. Never ends while there is none. Safe
    /// to cancel.
    pub(crate) async fn next_settled(&mut self, door: &InboxDoor) -> Result<(), IngressError> {
        let Some((receipt, ack)) = self.unsafe_yet.front().copied() else {
            return std::future::pending().await;
        };
        door.settled(receipt).await?;
        self.unsafe_yet.pop_front();
        self.answers.push(ack);
        Ok(())
    }

    /// Sends acknowledgements as far as the connection accepts them, and returns whether the connection is alive.
    pub(crate) fn acknowledge(&mut self, client: &mut impl UpstreamClient, now: u64) -> bool {
        while let Some(ack) = self.answers.front(now)
            && client.ack(ack).is_ok()
        {
            self.answers.sent();
        }
        // packet ids have 16 bits, so an upstream that waits for answers never waits for more
        self.answers.len() + self.unsafe_yet.len() <= usize::from(u16::MAX)
    }

    /// Handles the end of the connection. Packet ids of this connection have no meaning any more. Messages without an
    /// acknowledgement come again, unless the upstream has forgotten them too.
    pub(crate) fn disconnected(&mut self, clean_session: bool) {
        self.unsafe_yet.clear();
        self.releases.clear();
        self.held.retain_mut(|waiting| match waiting {
            // messages at QoS 0 have no packet id, and nobody sends them again
            WaitingMessage::Message(message) if clean_session || message.packet_id == 0 => {
                message.packet_id = 0;
                true
            }
            _ => false,
        });
        let size = |waiting: &WaitingMessage| match waiting {
            WaitingMessage::Message(message) => message.size(),
            WaitingMessage::Refused(_) => 0,
        };
        self.held_bytes = self.held.iter().map(size).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Limits, WhenFull};

    #[test]
    fn a_message_larger_than_all_that_may_be_held_is_held_alone() {
        let journal = Journal::default();
        let limits = Limits { messages: 1, bytes: 1 << 20, when_full: WhenFull::DropOldest };
        let consumer = journal.register("upstream/home", limits);
        let mut inbox = UpstreamInbox::new("home", 4 * HELD_BYTES, &journal, consumer);
        for bytes in [2 * HELD_BYTES, 1] {
            inbox.received(Ok(message(bytes, 0)), (0, Qos::AtMostOnce, bytes));
        }
        assert_eq!((inbox.held.len(), inbox.dropped), (1, 1));
    }

    /// A message of this size, at QoS 1 if it has a packet id.
    fn message(bytes: usize, packet_id: u16) -> Inbound {
        Inbound {
            topic: "t".into(),
            payload: vec![0; bytes].into(),
            qos: if packet_id == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce },
            retain: false,
            properties: Vec::new(),
            expiry: None,
            packet_id,
            is_exact: false,
        }
    }

    #[test]
    fn what_the_upstream_does_not_send_again_stays_after_the_end_of_a_connection() {
        for (clean_session, left) in [(false, 2), (true, 3)] {
            let journal = Journal::default();
            let limits = Limits { messages: 9, bytes: 1 << 20, when_full: WhenFull::DropOldest };
            let consumer = journal.register("upstream/home", limits);
            let mut inbox = UpstreamInbox::new("home", HELD_BYTES, &journal, consumer);
            for packet_id in [7, 0, 0] {
                let qos = if packet_id == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
                inbox.received(Ok(message(10, packet_id)), (packet_id, qos, 10));
            }
            inbox.received(Err(NotTaken::Unwanted), (8, Qos::AtLeastOnce, 10));
            inbox.disconnected(clean_session);
            assert_eq!((inbox.held.len(), inbox.held_bytes), (left, left * message(10, 0).size()), "{clean_session}");
        }
    }
}
