//! Processes what the client sends.

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::super::core::session_route;
use super::super::replies::repeated;
use super::super::session::{DeliverySource, Received, Subscription, split_share};
use super::acks::{AckState, PendingAck};
use super::{BrokerConnection, ConnectionEnd};
use crate::access::authenticate::Denied;
use crate::access::guesses::network;
use crate::exchange::filters::MAX_LEVELS;
use crate::exchange::ingress::{Accepted, Receipt};
use crate::exchange::receiving::FREE;
use crate::exchange::shared::SharedGroup;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::journal::{Note, Outcome, Position};
use crate::message::{Draft, MOST_DEEP, Qos, check_filter, levels, via};
use crate::mqtt::write::AckPacket;
use crate::mqtt::{
    Error, Frame, PacketType, Publish, Reason, RetainHandling, Subscribe, SubscribeFilter, Unsubscribe, Version,
    acknowledgement, disconnect, frame, write,
};

/// The number of QoS 1 and 2 messages that a client may send before they are acknowledged.
pub(crate) const RECEIVE_MAXIMUM: u16 = 1000;
/// Most subscriptions of one session.
const MAX_FILTERS: usize = 10_000;
/// Most filters in one SUBSCRIBE or UNSUBSCRIBE. Each has a byte in the answer, which stays in memory until the client reads
/// it.
const MAX_AT_ONCE: usize = 65_535;
/// Most bytes of all topic filters of one session.
const MAX_FILTER_BYTES: usize = 2 << 20;
/// A batch of this size in bytes is sent on before more packets are parsed.
const BATCH_SIZE: usize = 64 * 1024;

impl BrokerConnection {
    /// Processes all complete packets in `input`. Returns whether all messages have got their places in the order.
    pub(super) fn receive(&mut self, input: &mut BytesMut) -> Result<bool, ConnectionEnd> {
        let max = self.core.settings.load().max_packet_size;
        let mut placed = self.place()?;
        let mut packets = 0;
        (self.held_until, self.read_at) = (None, None);
        // packets are parsed in place; only messages are copied, into their batch
        let bytes = std::mem::take(input);
        let mut at = 0;
        let result = loop {
            match frame(&bytes[at..], max, self.version) {
                Ok(Some(found)) => {
                    if !self.may_begin(found.kind) {
                        break Ok(());
                    }
                    packets += 1;
                    let packet = &bytes[at..at + found.len];
                    at += found.len;
                    if found.len > FREE {
                        self.unplaced.extend(self.receiving.take());
                    }
                    if let Err(end) = self.packet(&found, packet) {
                        break Err(end);
                    }
                    if (self.batch.size() >= BATCH_SIZE && placed) || self.is_deep() {
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
        self.core.stats.packets_received.add(packets);
        // the packets before an invalid one were valid; what waits behind a batch without room is not processed here
        if result.is_err() || !self.is_deep() {
            placed = self.place()?;
        }
        result.map(|()| placed)
    }

    /// When this client may change its session again, if its user has written too much to the card. Subscriptions of a session
    /// that ends with its connection are not written, so they do not wait for those who write.
    fn card_turn(&self) -> Option<Instant> {
        let is_kept = self.session.expiry > 0 || self.session.durable.is_some();
        is_kept.then(|| self.core.allowance.until(&self.holder)).flatten()
    }

    /// Whether a packet of this type may be processed now. If not, it waits with all that follow, for the client's turn or
    /// for room.
    fn may_begin(&mut self, kind: PacketType) -> bool {
        self.held_until = match kind {
            PacketType::Subscribe | PacketType::Unsubscribe => self.turn().max(self.card_turn()),
            PacketType::Publish if self.batch.is_empty() => self.turn(),
            _ => None,
        };
        self.held_until.is_none() && !(kind == PacketType::Publish && self.is_deep())
    }

    /// Whether the batch has as many topics of many levels as it may have.
    pub(super) fn is_deep(&self) -> bool {
        self.batch.deep() >= MOST_DEEP
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
        let session = self.session.durable.as_ref().map(|durable| durable.consumer);
        let received = session.filter(|_| !self.received.is_empty()).map(|id| (id, &self.received[..]));
        match self.core.ingress.try_publish_for(&mut self.batch, received) {
            Ok(Some(accepted)) => {
                self.received.clear();
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
        let refused = self.acks.placed(accepted, self.version.is_v5());
        for packet_id in refused {
            self.session.unreleased.remove(&packet_id);
            // the batch may have taken it to the disk as received
            self.note(Note::Forgotten(packet_id));
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
                self.acknowledgement(found.kind, packet_id, reason);
                Ok(())
            }
            PacketType::Subscribe => {
                let subscribe = Subscribe::decode(body, self.version).map_err(ConnectionEnd::Broken)?;
                self.subscribe(&subscribe)
            }
            PacketType::Unsubscribe => {
                let unsubscribe = Unsubscribe::decode(body, self.version).map_err(ConnectionEnd::Broken)?;
                self.unsubscribe(&unsubscribe)
            }
            PacketType::PingReq if !body.is_empty() => {
                Err(ConnectionEnd::Broken(Error::Malformed("PINGREQ has a body")))
            }
            PacketType::PingReq => {
                write::pingresp(self.out.tail());
                self.core.stats.packets_sent.add(1);
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
        self.core.stats.publish_received.add(1);
        self.core.stats.publish_bytes_received.add(publish.payload.len() as u64);
        let Publish { qos, packet_id, .. } = publish;
        let open = self.acks.ending() + self.session.unreleased.len();
        if qos > Qos::AtMostOnce && open >= usize::from(RECEIVE_MAXIMUM) {
            let is_repeated = self.session.unreleased.contains(&packet_id);
            if self.version.is_v5() && !is_repeated {
                return Err(ConnectionEnd::Ended(Reason::RECEIVE_MAXIMUM_EXCEEDED)); // [MQTT-3.3.4-9]
            }
        }
        let is_repeated = qos == Qos::ExactlyOnce && !self.session.unreleased.insert(packet_id);
        // the topic of a repeated message is processed too, because it may define an alias
        let accepted = self.push(&publish, is_repeated).inspect_err(|_| {
            // the connection ends and the message is sent again on the next one, where it is new
            if qos == Qos::ExactlyOnce && !is_repeated {
                self.session.unreleased.remove(&packet_id);
            }
        })?;
        if qos == Qos::AtMostOnce {
            return Ok(());
        }
        let is_v5 = self.version.is_v5();
        // MQTT 3 has no refusal, so a message that is not allowed is acknowledged and dropped [MQTT-3.3.5-2]
        let reason = accepted.err().filter(|_| is_v5).unwrap_or(Reason::SUCCESS);
        if reason.is_error() {
            self.session.unreleased.remove(&packet_id);
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

    fn acknowledgement(&mut self, kind: PacketType, packet_id: u16, reason: Reason) {
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
                let known = self.session.unreleased.remove(&packet_id);
                let reason = if known { Reason::SUCCESS } else { Reason::PACKET_ID_NOT_FOUND };
                // sent after the PUBREC of the same message, if that still waits for its receipt
                let durable = known.then(|| self.note(Note::Forgotten(packet_id))).flatten();
                let state = AckState::Waits(Receipt { durable });
                self.acks.push(PendingAck { kind: AckPacket::PubComp, packet_id, reason, state });
                None
            }
        };
        if let Some(source) = settled {
            self.settle(source);
        }
    }

    /// Answers a PUBREC with a PUBREL. In a persistent session the PUBREL waits until it is on disk that the client has the
    /// message, because otherwise it would be sent as a new message after a restart.
    fn release(&mut self, packet_id: u16, answer: &Received) {
        let (reason, ordinal) = match answer {
            Received::Release(ordinal) => (Reason::SUCCESS, *ordinal),
            _ => (Reason::PACKET_ID_NOT_FOUND, None),
        };
        let durable = ordinal.and_then(|ordinal| self.note(Note::Released(ordinal)));
        if durable.is_none() && self.acks.is_empty() {
            write::ack(self.out.tail(), self.version, AckPacket::PubRel, packet_id, reason);
        } else {
            let state = AckState::Waits(Receipt { durable });
            self.acks.push(PendingAck { kind: AckPacket::PubRel, packet_id, reason, state });
        }
    }

    /// Records a step of a QoS 2 exchange of a persistent session. If the journal cannot write, nothing waits for the
    /// record, and the message may arrive twice after a restart.
    fn note(&self, note: Note) -> Option<Position> {
        let durable = self.session.durable.as_ref()?;
        self.core.ingress.journal().note(durable.consumer, note).ok()
    }

    /// Ends a delivery: acknowledged, refused or impossible.
    pub(super) fn settle(&mut self, source: DeliverySource) {
        match source {
            DeliverySource::Live => {}
            DeliverySource::Journal(position, _) => {
                // shared subscriptions check the messages that wait for this session
                let is_looked_at = self.session.givers().next().is_some();
                if let Some(durable) = &mut self.session.durable {
                    durable.reader.settle_soon(position, Outcome::Acked);
                    if is_looked_at {
                        durable.reader.say_settled();
                    }
                }
                self.session.givers().for_each(SharedGroup::look);
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

    fn subscribe(&mut self, subscribe: &Subscribe<'_>) -> Result<(), ConnectionEnd> {
        if subscribe.filters.len() > MAX_AT_ONCE {
            return Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED));
        }
        let mut reasons: SmallVec<[Reason; 8]> = SmallVec::new();
        let is_repeated = repeated(&subscribe.filters);
        for (at, wanted) in subscribe.filters.iter().enumerate() {
            let retain_handling = if is_repeated(at) { RetainHandling::Never } else { wanted.retain_handling };
            let wanted = &SubscribeFilter { retain_handling, ..*wanted };
            let reason = self.subscribe_one(wanted, subscribe.id);
            if reason == Reason::TOPIC_FILTER_INVALID && !self.version.is_v5() {
                return Err(ConnectionEnd::Broken(Error::Malformed("invalid topic filter"))); // [MQTT-4.7.1-2], [MQTT-4.8.0-1]
            }
            // MQTT 3.1 has no refusal: the client gets a normal answer, and no messages
            let is_silent = self.version == Version::V31 && reason.is_error();
            reasons.push(if is_silent { Reason(wanted.qos as u8) } else { reason });
        }
        let mut answer = BytesMut::new();
        write::suback(&mut answer, self.version, subscribe.packet_id, &reasons);
        let granted = subscribe.filters.iter().zip(&reasons).filter(|(_, reason)| !reason.is_error());
        let kept =
            granted.filter_map(|(wanted, _)| self.core.keep_subscription(&mut self.session, wanted.filter)).max();
        self.answer_when_kept(answer, kept)
    }

    /// Sends a SUBACK or UNSUBACK. For a persistent session it is sent when the change is on disk.
    fn answer_when_kept(&mut self, answer: BytesMut, kept: Option<Position>) -> Result<(), ConnectionEnd> {
        if answer.len() > self.max_packet {
            return Err(ConnectionEnd::Ended(Reason::PACKET_TOO_LARGE)); // [MQTT-3.1.2-24]
        }
        match kept {
            Some(position) => self.subacks.push_back((position, answer)),
            None => {
                self.out.tail().extend_from_slice(&answer);
                self.core.stats.packets_sent.add(1);
            }
        }
        Ok(())
    }

    fn subscribe_one(&mut self, wanted: &SubscribeFilter<'_>, id: Option<u32>) -> Reason {
        let Some((shared, filter)) = checked(wanted.filter) else { return Reason::TOPIC_FILTER_INVALID };
        if !self.permissions.may_subscribe(filter) {
            self.core.access.denied(&self.identity, self.address, Denied::Subscribe(filter));
            return Reason::NOT_AUTHORIZED;
        }
        let known = self.session.subscriptions.contains_key(wanted.filter);
        let count = self.session.subscriptions.len();
        if !known && (count >= MAX_FILTERS || !self.session.has_room_for(wanted.filter)) {
            self.core.access.quota(&self.identity, self.address, "subscriptions");
            return Reason::QUOTA_EXCEEDED;
        }
        let filter_bytes = self.session.filter_bytes + wanted.filter.len();
        if !known && (filter_bytes > MAX_FILTER_BYTES || !self.core.can_keep(&self.session, wanted.filter)) {
            self.core.access.quota(&self.identity, self.address, "bytes of topic filters");
            return Reason::QUOTA_EXCEEDED;
        }
        let options = SubscriptionOptions {
            qos: wanted.qos,
            // a bridge like mosquitto's expects both [mosquitto.conf, bridge_attempt_unsubscribe ff.]
            no_local: wanted.no_local || self.is_bridge,
            retain_as_published: wanted.retain_as_published || self.is_bridge,
            id,
        };
        if shared {
            self.subscribe_shared(wanted.filter, filter, options);
        } else {
            self.subscribe_own(filter, options, wanted.retain_handling);
        }
        Reason(wanted.qos as u8)
    }

    fn subscribe_shared(&mut self, shared: &str, filter: &str, options: SubscriptionOptions) {
        let old = self.session.subscriptions.get(shared).map(|known| known.options);
        let group = self.core.join_group(&self.session, shared, filter, old, options);
        self.session.subscribe(shared, Subscription { options, group: Some(group.clone()) });
        group.join((&self.subscriber, &self.permissions), options, self.session.consumer());
    }

    fn subscribe_own(&mut self, filter: &str, options: SubscriptionOptions, retained: RetainHandling) {
        let old = self.session.subscribe(filter, Subscription { options, group: None });
        let is_new = old.is_none();
        let core = self.core.clone();
        let route = |options| session_route(&self.session, options);
        let routes = (old.and_then(|old| route(old.options)), route(options));
        let is_wanted = match retained {
            RetainHandling::Always => true,
            RetainHandling::IfNew => is_new,
            RetainHandling::Never => false,
        };
        let wanted = |_| is_wanted.then(|| self.session.retained.room());
        let (_, found) = core.ingress.subscribe_routed(filter, &self.subscriber, options, routes, wanted);
        if is_wanted {
            self.session.retained.add(filter, options, found);
        }
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe<'_>) -> Result<(), ConnectionEnd> {
        if unsubscribe.filters.len() > MAX_AT_ONCE {
            return Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED));
        }
        let mut reasons: SmallVec<[Reason; 8]> = SmallVec::new();
        for filter in &unsubscribe.filters {
            self.session.retained.forget(filter);
            let Some(removed) = self.session.unsubscribe(filter) else {
                reasons.push(Reason::NO_SUBSCRIPTION_EXISTED);
                continue;
            };
            match &removed.group {
                Some(group) => {
                    group.leave(&self.subscriber);
                }
                None => {
                    self.core.ingress.unsubscribe(filter, &self.subscriber);
                }
            }
            self.core.drop_subscription(&self.session, filter, &removed);
            reasons.push(Reason::SUCCESS);
        }
        let mut answer = BytesMut::new();
        write::unsuback(&mut answer, self.version, unsubscribe.packet_id, &reasons);
        let filters = unsubscribe.filters.iter();
        let kept = filters.filter_map(|filter| self.core.keep_subscription(&mut self.session, filter)).max();
        self.answer_when_kept(answer, kept)
    }
}

/// Whether the filter is shared, and the filter itself; `None` if it is invalid.
fn checked(filter: &str) -> Option<(bool, &str)> {
    let (shared, inner) = if filter.starts_with("$share/") {
        let (name, inner) = split_share(filter)?;
        if name.is_empty() || name.contains(['+', '#']) {
            return None; // [MQTT-4.8.2-1], [MQTT-4.8.2-2]
        }
        (true, inner)
    } else {
        (false, filter)
    };
    (levels(inner) <= MAX_LEVELS && check_filter(inner).is_ok()).then_some((shared, inner))
}
