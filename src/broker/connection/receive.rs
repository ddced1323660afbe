//! Processes what the client sends.

use bytes::BytesMut;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::session::{DeliverySource, Received};
use super::acks::{AckState, ENTRIES_KEPT, PendingAck};
use super::turn::TURN;
use super::{BrokerConnection, ConnectionEnd};
use crate::access::authenticate::Denied;
use crate::access::guesses::network;
use crate::exchange::filters::MAX_LEVELS;
use crate::exchange::ingress::{Accepted, Receipt};
use crate::exchange::live::STRAIGHT;
use crate::exchange::meter::PaidByNetwork;
use crate::exchange::receiving::FREE;
use crate::journal::{Full, Note, Outcome, Position};
use crate::message::{Draft, MOST_DEEP, Qos, levels, via};
use crate::mqtt::write::AckPacket;
use crate::mqtt::{
    Error, Frame, PacketType, Publish, Reason, Subscribe, Unsubscribe, acknowledgement, disconnect, frame, write,
};

/// The number of QoS 1 and 2 messages that a client may send before they are acknowledged.
pub(crate) const RECEIVE_MAXIMUM: u16 = 1000;
/// A batch of this size in bytes is sent on before more packets are parsed.
const BATCH_SIZE: usize = 64 * 1024;
/// The number of small packets after which it is looked at whether the turn is over. The rest waits for the next one then, so
/// that others need not wait for all of it.
const LOOK_EVERY: usize = 16;
/// Bytes of a packet that count as another small one, because they can take as long.
const SMALL_PACKET: usize = 256;

impl BrokerConnection {
    /// Processes complete packets in `input` for one turn. Returns whether all messages have got their places in the order.
    pub(super) fn receive(&mut self, input: &mut BytesMut) -> Result<bool, ConnectionEnd> {
        let max = self.core.settings.load().max_packet_size;
        let mut placed = self.place()?;
        let mut since_look = 0;
        (self.held_until, self.read_at, self.has_input, self.has_delivered) = (None, None, false, false);
        if !self.continue_change()? {
            return Ok(placed);
        }
        // packets are parsed in place; only messages are copied, into their batch
        let bytes = std::mem::take(input);
        let begun = Instant::now();
        let mut at = 0;
        let result = loop {
            match frame(&bytes[at..], max, self.version) {
                Ok(Some(found)) => {
                    if !self.may_begin(found.kind) {
                        break Ok(());
                    }
                    since_look += 1 + found.len / SMALL_PACKET;
                    if since_look >= LOOK_EVERY {
                        if begun.elapsed() >= TURN {
                            (self.has_more, self.has_input) = (true, true);
                            break Ok(());
                        }
                        since_look = 0;
                    }
                    self.counted.packets_received += 1;
                    let packet = &bytes[at..at + found.len];
                    at += found.len;
                    if found.len > FREE {
                        self.unplaced.extend(self.receiving.take());
                    }
                    if let Err(end) = self.packet(&found, packet) {
                        break Err(end);
                    }
                    if self.change.is_some() {
                        break Ok(());
                    }
                    if (self.batch.size() >= BATCH_SIZE && placed) || self.is_costly() {
                        match self.place() {
                            Ok(now) => placed = now,
                            Err(end) => break Err(end),
                        }
                    }
                }
                Ok(None) => break Ok(()),
                Err(Error::TooLarge(size, most)) => break self.too_large(&bytes[at..], size, most),
                Err(error) => break Err(ConnectionEnd::Broken(error)),
            }
        };
        *input = bytes;
        self.consume(input, at);
        self.counted.settle(&self.core.stats);
        // the packets before an invalid one were valid; what waits behind a batch without room is not processed here
        if result.is_err() || !self.is_costly() {
            placed = self.place()?;
        }
        result.map(|()| placed)
    }

    /// Whether a packet of this type may be processed now. If not, it waits with all that follow, for the client's turn or
    /// for room.
    fn may_begin(&mut self, kind: PacketType) -> bool {
        self.held_until = match kind {
            PacketType::Subscribe | PacketType::Unsubscribe => {
                self.turn().max(self.core.card_turn(&self.session, &self.holder))
            }
            PacketType::Publish if self.batch.is_empty() => self.turn(),
            _ => None,
        };
        self.held_until.is_none() && !(kind == PacketType::Publish && self.is_costly())
    }

    /// Whether the batch has as many messages, or as many topics of many levels, as it may have.
    pub(super) fn is_costly(&self) -> bool {
        self.batch.deep() >= MOST_DEEP || self.batch.len() >= self.core.ingress.most_of_a_batch()
    }

    /// When this client may make the others wait again, if it has cost them too much.
    pub(super) fn turn(&mut self) -> Option<Instant> {
        self.first_turn.take_if(|turn| *turn <= Instant::now());
        self.first_turn.max(self.core.ingress.meter().turn(self.origin))
    }

    /// Gives the batch its place in the order, if there is room. Returns whether the batch is empty afterwards.
    fn place(&mut self) -> Result<bool, ConnectionEnd> {
        if self.batch.is_empty() {
            self.unplaced.clear();
            return Ok(true);
        }
        if self.batch.deep() > 0 {
            self.payer.iter_mut().for_each(PaidByNetwork::may_owe);
        }
        self.has_delivered = self.batch.len() <= STRAIGHT;
        let session = self.session.durable.as_ref().map(|durable| durable.consumer);
        let received = session.filter(|_| !self.received.is_empty()).map(|id| (id, &self.received[..]));
        match self.core.ingress.try_publish_for(&mut self.batch, received) {
            Ok(Some(accepted)) => {
                self.received.clear();
                self.received.shrink_to(ENTRIES_KEPT);
                self.placed(&accepted);
                self.unplaced.clear();
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(_) => Err(ConnectionEnd::Ended(Reason::SERVER_SHUTTING_DOWN)),
        }
    }

    fn placed(&mut self, accepted: &Accepted) {
        if !accepted.unretained.is_empty() {
            self.core.access.quota(&self.identity, self.address, "retained messages");
        }
        accepted.never_fit.iter().for_each(|message| self.never_fits(message));
        let refused = self.acks.placed(accepted, self.version.is_v5());
        for packet_id in refused {
            self.session.unreleased.remove(packet_id);
            // the batch may have taken it to the disk as received
            let _ = self.note(Note::Forgotten(packet_id));
        }
    }

    fn packet(&mut self, found: &Frame, packet: &[u8]) -> Result<(), ConnectionEnd> {
        let body = &packet[found.body..];
        match found.kind {
            PacketType::Publish => {
                let publish = Publish::decode(found, packet, self.version).map_err(ConnectionEnd::Broken)?;
                self.publish(publish)
            }
            PacketType::PubAck | PacketType::PubRec | PacketType::PubRel | PacketType::PubComp => {
                let (packet_id, reason) = acknowledgement(body, self.version).map_err(ConnectionEnd::Broken)?;
                self.acknowledgement(found.kind, packet_id, reason)
            }
            PacketType::Subscribe => {
                let subscribe = Subscribe::decode(body, self.version).map_err(ConnectionEnd::Broken)?;
                let memory = self.memory_of(found.len);
                self.subscribe(&subscribe, memory)
            }
            PacketType::Unsubscribe => {
                let unsubscribe = Unsubscribe::decode(body, self.version).map_err(ConnectionEnd::Broken)?;
                let memory = self.memory_of(found.len);
                self.unsubscribe(&unsubscribe, memory)
            }
            PacketType::PingReq if !body.is_empty() => {
                Err(ConnectionEnd::Broken(Error::Malformed("PINGREQ has a body")))
            }
            PacketType::PingReq => {
                write::pingresp(self.out.tail());
                self.counted.packets_sent += 1;
                Ok(())
            }
            PacketType::Disconnect => {
                let (reason, expiry) = disconnect(body, self.version).map_err(ConnectionEnd::Broken)?;
                if expiry.is_some_and(|seconds| seconds > 0) && self.session.expiry == 0 {
                    // [MQTT-3.14.2-2]
                    return Err(ConnectionEnd::Broken(Error::Protocol("DISCONNECT makes a session out of none")));
                }
                Err(ConnectionEnd::Disconnected(reason, expiry))
            }
            PacketType::Connect => Err(ConnectionEnd::Broken(Error::Protocol("a second CONNECT"))), // [MQTT-3.1.0-2]
            PacketType::Auth => Err(ConnectionEnd::Broken(Error::Protocol("AUTH without an authentication method"))),
        }
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<(), ConnectionEnd> {
        self.counted.publish_received += 1;
        self.counted.publish_bytes_received += publish.payload.len() as u64;
        let Publish { qos, packet_id, .. } = publish;
        let open = self.acks.ending() + self.session.unreleased.len();
        if qos > Qos::AtMostOnce && open >= usize::from(RECEIVE_MAXIMUM) {
            let is_repeated = self.session.unreleased.contains(packet_id);
            if self.version.is_v5() && !is_repeated {
                return Err(ConnectionEnd::Ended(Reason::RECEIVE_MAXIMUM_EXCEEDED)); // [MQTT-3.3.4-9]
            }
        }
        let is_repeated = qos == Qos::ExactlyOnce && !self.session.unreleased.insert(packet_id);
        // the topic of a repeated message is processed too, because it may define an alias
        let accepted = self.push(&publish, is_repeated).inspect_err(|_| {
            // the connection ends and the message is sent again on the next one, where it is new
            if qos == Qos::ExactlyOnce && !is_repeated {
                self.session.unreleased.remove(packet_id);
            }
        })?;
        if qos == Qos::AtMostOnce {
            return Ok(());
        }
        let is_v5 = self.version.is_v5();
        // MQTT 3 has no refusal, so a message that is not allowed is acknowledged and dropped [MQTT-3.3.5-2]
        let reason = accepted.err().filter(|_| is_v5).unwrap_or(Reason::SUCCESS);
        // nothing on disk names a message that was not taken, so its PUBREL has nothing to write either
        let is_forgotten = accepted.is_err() && !is_v5 && !is_repeated;
        if reason.is_error() || is_forgotten {
            self.session.unreleased.remove(packet_id);
        }
        let kind = if qos == Qos::AtLeastOnce { AckPacket::PubAck } else { AckPacket::PubRec };
        let state = match self.batch.len().checked_sub(1) {
            // a repeated message has its place already; the receipt of the last message comes later than its own
            Some(last) if accepted.is_ok() => {
                if qos == Qos::ExactlyOnce && !is_repeated {
                    self.received.push((last, packet_id));
                }
                AckState::InBatch(last)
            }
            // a repeated message may still be on its way to the disk
            _ if is_repeated && self.session.durable.is_some() => {
                AckState::Waits(Receipt { durable: Some(self.core.ingress.journal().barrier()) })
            }
            _ => AckState::Waits(Receipt::default()),
        };
        self.acks.push(PendingAck { kind, packet_id, reason, state });
        Ok(())
    }

    /// Adds the message to the batch, unless it is repeated or not allowed. `Err(SUCCESS)` means that the message has passed
    /// through this gateway before; it is acknowledged and dropped.
    fn push(&mut self, publish: &Publish<'_>, is_repeated: bool) -> Result<Result<(), Reason>, ConnectionEnd> {
        let topic = self.aliases.topic_of(publish)?;
        let levels = levels(topic);
        if levels > MAX_LEVELS {
            let client_id = &*self.identity.client_id;
            self.core.stats.publish_dropped.add(1);
            if let Some(more_since_last) = self.core.access.limiter.due(network(self.address), (client_id, "levels")) {
                let most = MAX_LEVELS;
                warn!(client_id, more_since_last, "publication not taken: its topic has more than {most} levels");
            }
            return Ok(Err(Reason::TOPIC_NAME_INVALID));
        }
        if !self.permissions.may_publish(topic) {
            self.core.access.denied(&self.identity, self.address, Denied::Publish(topic));
            return Ok(Err(Reason::NOT_AUTHORIZED));
        }
        if !publish.properties.is_empty() && via::names(&publish.properties, via::Id::ours()) {
            debug!(client_id = &*self.identity.client_id, topic, "publication not taken: it has been here");
            return Ok(Err(Reason::SUCCESS));
        }
        if !is_repeated {
            let draft = Draft {
                topic,
                payload: publish.payload,
                qos: publish.qos,
                retain: publish.retain,
                properties: &publish.properties,
                expiry: publish.expiry,
                boot_ms: *self.read_at.get_or_insert_with(|| self.core.ingress.clock().boot_ms()),
                origin: self.origin,
            };
            self.batch.push_of_levels(&draft, levels);
        }
        Ok(Ok(()))
    }

    fn acknowledgement(&mut self, kind: PacketType, packet_id: u16, reason: Reason) -> Result<(), ConnectionEnd> {
        let settled = match kind {
            PacketType::PubAck => self.session.outbound.acknowledged(packet_id),
            PacketType::PubComp => self.session.outbound.completed(packet_id),
            PacketType::PubRec => match self.session.outbound.received(packet_id, reason) {
                Received::Refused(source) => Some(source),
                answer => {
                    self.release(packet_id, &answer);
                    None
                }
            },
            _ => {
                let known = self.session.unreleased.contains(packet_id);
                let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
                // sent after the PUBREC of the same message, if that still waits for its receipt
                let durable = if known { self.note(Note::Forgotten(packet_id)) } else { Ok(None) };
                // with an old record the next message with this id would be taken for a repetition after a restart
                let durable = durable.map_err(|Full| ConnectionEnd::Ended(Reason::SERVER_BUSY))?;
                self.session.unreleased.remove(packet_id);
                let state = AckState::Waits(Receipt { durable });
                self.acks.push(PendingAck { kind: AckPacket::PubComp, packet_id, reason, state });
                None
            }
        };
        if let Some(source) = settled {
            self.settle(source);
        }
        Ok(())
    }

    /// Answers a PUBREC with a PUBREL. In a persistent session the PUBREL waits until it is on disk that the client has the
    /// message, because otherwise it would be sent as a new message after a restart.
    fn release(&mut self, packet_id: u16, answer: &Received) {
        let (reason, ordinal) = match answer {
            Received::Release(ordinal) => (Reason::SUCCESS, *ordinal),
            _ => (Reason::PACKET_ID_NOT_FOUND, None),
        };
        // if the journal cannot write, the message may arrive twice after a restart
        let durable = ordinal.and_then(|ordinal| self.note(Note::Released(ordinal)).ok().flatten());
        if durable.is_none() && self.acks.is_empty() {
            write::ack(self.out.tail(), self.version, AckPacket::PubRel, packet_id, reason);
        } else {
            let state = AckState::Waits(Receipt { durable });
            self.acks.push(PendingAck { kind: AckPacket::PubRel, packet_id, reason, state });
        }
    }

    /// Records a step of a QoS 2 exchange of a persistent session.
    fn note(&self, note: Note) -> Result<Option<Position>, Full> {
        let Some(durable) = &self.session.durable else { return Ok(None) };
        self.core.ingress.journal().note(durable.consumer, note).map(Some)
    }

    /// Ends a delivery: acknowledged, refused or impossible.
    pub(super) fn settle(&mut self, source: DeliverySource) {
        match source {
            DeliverySource::Live => {}
            DeliverySource::Journal(position, _) => {
                if let Some(durable) = &mut self.session.durable {
                    durable.reader.settle_soon(position, Outcome::Acked);
                }
            }
            DeliverySource::Shared(share) => share.settled(self.subscriber.inbox.id()),
        }
    }

    /// Writes the acknowledgements whose receipts are complete, in order [MQTT-4.6.0-2].
    pub(super) fn flush_acks(&mut self) {
        if self.acks.is_empty() && self.subacks.is_empty() {
            return;
        }
        let synced = *self.synced.borrow_and_update();
        let mut sent = 0;
        while let Some((_, suback)) = self.subacks.front().filter(|(position, _)| *position <= synced) {
            self.out.tail().extend_from_slice(suback);
            self.subacks.pop_front();
            sent += 1;
        }
        while let Some(ack) = self.acks.front() {
            let AckState::Waits(receipt) = ack.state else { break };
            if receipt.durable.is_some_and(|position| position > synced) {
                break;
            }
            write::ack(self.out.tail(), self.version, ack.kind, ack.packet_id, ack.reason);
            self.acks.pop();
            sent += 1;
        }
        self.core.stats.packets_sent.add(sent);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::AsyncWriteExt;
    use tokio_util::sync::CancellationToken;

    use super::super::tests::connected;
    use super::*;
    use crate::exchange::inbox::{Inbox, InboxLimits};
    use crate::exchange::shared::SharedGroup;
    use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
    use crate::message::Origin;

    #[tokio::test]
    async fn batches_are_small_while_a_topic_may_match_many_filters_with_groups() {
        let (broker, mut client) = connected().await;
        let (_taker, pulse) = crate::health::PulseTaker::new();
        tokio::spawn(broker.dispatcher.run(CancellationToken::new(), || Ok(()), pulse));
        let (ingress, limits) = (&broker.core.ingress, InboxLimits { messages: 10_000, bytes: 1 << 20 });
        let inbox = Inbox::new("reader", limits);
        let reader = Arc::new(Subscriber { inbox, origin: Origin::client("reader"), is_durable: false });
        let (qos, no_local, retain_as_published, id) = (Qos::AtMostOnce, false, false, None);
        ingress.subscribe("t", &reader, SubscriptionOptions { qos, no_local, retain_as_published, id }, |_| None);
        let groups: Vec<_> = (0..1024).map(|_| SharedGroup::new(limits, None)).collect();
        for (number, group) in groups.iter().enumerate() {
            ingress.set_group(&format!("{number}/+"), group, None);
        }
        let count = 600;
        client.write_all(&b"\x30\x04\0\x01tx".repeat(count)).await.unwrap();
        let mut batches = Vec::new();
        while batches.iter().sum::<usize>() < count {
            reader.inbox.filled().await;
            batches.extend(std::iter::from_fn(|| reader.inbox.take_run(count)).map(|run| run.messages.len()));
        }
        assert!(batches.iter().all(|batch| *batch <= 16), "{batches:?}");
        for (number, group) in groups.iter().enumerate() {
            ingress.remove_group(&format!("{number}/+"), group);
        }
        assert!(ingress.most_of_a_batch() > 1560, "as many as 64 KiB have");
    }
}
