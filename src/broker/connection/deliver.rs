//! Delivers messages to the client.

use super::super::replies::NextReply;
use super::super::session::{DeliverySource, Send};
use super::BrokerConnection;
use super::output::{LARGE, SocketOutput};
use super::run::OUT_FULL;
use super::subscribe::FilterChange;
use crate::exchange::delivery::{Grant, Queued, Run};
use crate::exchange::matched_ids::MatchedIds;
use crate::exchange::shared::is_behind;
use crate::exchange::stats::TurnCount;
use crate::journal::Delivery;
use crate::message::{Message, MessageRef, Qos};
use crate::mqtt::alias::OutboundAliases;
use crate::mqtt::publish::{Outgoing, encode};
use crate::mqtt::write::{self, AckPacket, SUBACK};
use crate::mqtt::{Reason, Version};
use bytes::Bytes;

/// The number of messages that are taken from the inbox or the journal at a time.
const TAKE: usize = 64;

/// How to complete a delivery that may have begun before the gateway was started, if the client has unsubscribed since then
/// [MQTT-3.10.4-3]. A message that may have been sent at QoS 1 and was published at QoS 2 is sent at QoS 2: then it is at
/// most repeated, and a delivery that has begun at QoS 2 goes on.
fn completing(delivery: &Delivery) -> Option<Grant> {
    let qos = delivery.message.view().qos();
    delivery.resent.then(|| Grant { qos, retain: false, ids: MatchedIds::default(), share: None })
}

/// How to send a message that is granted like this.
fn outgoing(grant: &Grant, (packet_id, dup): (u16, bool)) -> Outgoing<'_> {
    Outgoing { dup, packet_id, ..Outgoing::new(grant.qos, grant.retain, grant.ids.as_slice()) }
}

/// Writes one message. Returns whether it was written; it is not if it is too large for the client or has expired.
fn write_one(
    out: &mut SocketOutput,
    aliases: &mut OutboundAliases,
    counted: &mut TurnCount,
    (version, max): (Version, usize),
    now_boot_ms: u64,
    (message, topic, how): (MessageRef<'_>, &str, Outgoing<'_>),
    payload: impl FnOnce() -> Bytes,
) -> bool {
    let expiry = match message.remaining_expiry(now_boot_ms) {
        Ok(expiry) => expiry,
        // a delivery that was begun must be completed, even if the message has expired [MQTT-4.3.3-7], [MQTT-4.4.0-1]
        Err(_) if how.dup => Some(0),
        Err(_) => {
            counted.publish_expired += 1;
            return false;
        }
    };
    let alias = aliases.get(topic);
    let payload_len = message.payload().len();
    let is_large = payload_len >= LARGE;
    if !encode(out.tail(), (message, topic, !is_large), &Outgoing { expiry, alias, ..how }, version, max) {
        counted.publish_dropped += 1;
        return false;
    }
    if is_large {
        out.share(payload());
    }
    aliases.sent(topic, alias);
    counted.packets_sent += 1;
    counted.publish_sent += 1;
    counted.publish_bytes_sent += payload_len as u64;
    true
}

impl BrokerConnection {
    /// Writes waiting messages as far as the client's window and the output buffer allow. Returns whether nothing more can
    /// be delivered until something new arrives.
    pub(super) fn deliver(&mut self) -> bool {
        let is_all = self.deliver_what_fits();
        self.counted.settle(&self.core.stats);
        self.session.retained.end_turn(&self.core.ingress, self.origin);
        // a reader that has taken something from the journal has its news already
        if let Some(durable) = &mut self.session.durable {
            durable.reader.say_settled();
            let (journal, session) = (self.core.ingress.journal(), durable.consumer);
            self.subscriber.inbox.behind.go_on(|| !is_behind(journal, session));
        }
        is_all
    }

    /// Reports how many of the bytes that wait for all clients are held by this connection, and lets shared subscriptions go
    /// on with messages for which there was no room.
    pub(super) fn note_in_hand(&mut self) {
        let pending = self.pending.as_ref().map_or(0, Run::size);
        let inbox = &self.subscriber.inbox;
        // a payload that waits for an acknowledgement and is in the output buffer too is in memory once
        inbox.set_in_hand(self.session.outbound.bytes().max(self.out.shared()) + pending);
        inbox.ask_missed();
    }

    /// Whether a message of this size may be sent that the client must acknowledge.
    fn has_window(&mut self, size: usize) -> bool {
        let outbound = &self.session.outbound;
        let has_memory =
            self.subscriber.inbox.account().is_none_or(|account| account.may_begin(outbound.bytes(), size));
        self.is_short |= !has_memory && outbound.bytes() == 0;
        has_memory && outbound.room() > 0
    }

    fn deliver_what_fits(&mut self) -> bool {
        self.is_short = false;
        self.resend();
        if self.awaits_suback() {
            // many clients drop messages for a subscription that come before its SUBACK
            return false;
        }
        while self.out.len() < OUT_FULL {
            match self.session.retained.next(&self.core.ingress, self.origin) {
                NextReply::Message(message, options) => {
                    let qos = options.qos.min(message.view().qos());
                    let grant = Grant { qos, retain: true, ids: options.id.into(), share: None };
                    if let Err(queued) = self.send(Queued { message, grant }, DeliverySource::Live) {
                        self.session.retained.put_back(queued.message);
                        return false;
                    }
                    continue;
                }
                NextReply::Later => {
                    self.has_more = true;
                    return false;
                }
                NextReply::Nothing => {}
            }
            if let Some(run) = self.pending.take() {
                self.pending = self.send_run(run);
                if self.pending.is_some() {
                    return false;
                }
                continue;
            }
            self.pending = self.subscriber.inbox.take_run(TAKE);
            let from_journal = self.deliver_from_journal();
            if self.pending.is_none() && !from_journal {
                return true;
            }
        }
        false
    }

    /// Whether the answer to a SUBSCRIBE still waits for the disk or for the rest of its filters.
    fn awaits_suback(&self) -> bool {
        self.change.as_ref().is_some_and(FilterChange::is_subscribe)
            || self.subacks.iter().any(|(_, answer)| answer.first() == Some(&SUBACK))
    }

    /// Sends a run of messages from the inbox. Returns the part for which the window or the output buffer has no room.
    fn send_run(&mut self, mut run: Run) -> Option<Run> {
        while let Some(message) = run.messages.first() {
            let qos = run.terms.qos.min(message.qos());
            let is_own = run.terms.no_local && message.origin() == self.origin;
            let is_there = run.terms.share.is_none() && self.is_there(message);
            if is_own || is_there {
                run.messages.advance();
                continue;
            }
            if self.out.len() >= OUT_FULL || (qos > Qos::AtMostOnce && !self.has_window(message.as_bytes().len())) {
                return Some(run);
            }
            if qos == Qos::AtMostOnce && run.terms.share.is_none() {
                // QoS 0 needs no state, so the message goes straight from the batch to the output
                let topic = message.topic();
                if self.permissions.may_receive(topic) {
                    let how = Outgoing::new(qos, run.terms.is_retained(message), run.terms.ids.as_slice());
                    write_one(
                        &mut self.out,
                        &mut self.outbound_aliases,
                        &mut self.counted,
                        (self.version, self.max_packet),
                        message.expiry().map_or(0, |_| self.core.ingress.clock().boot_ms()),
                        (message, topic, how),
                        || run.messages.shared_payload(),
                    );
                }
                run.messages.advance();
            } else if let Some(message) = run.messages.next_message() {
                let grant = run.terms.grant(message.view());
                let source = grant.share.clone().map_or(DeliverySource::Live, DeliverySource::Shared);
                // there is room, so the message is sent, or settled if it cannot be sent
                let _ = self.send(Queued { message, grant }, source);
            }
        }
        None
    }

    /// Sends a run of messages from the journal. Returns whether there was one.
    fn deliver_from_journal(&mut self) -> bool {
        let mut any = false;
        for _ in 0..TAKE {
            if self.session.outbound.room() == 0 || self.out.len() >= OUT_FULL {
                break;
            }
            let Some(durable) = &mut self.session.durable else { break };
            let room = self.session.outbound.room().min(TAKE);
            let Some(delivery) = durable.reader.next_of(room) else { break };
            if !self.has_window(delivery.message.size()) {
                if let Some(durable) = &mut self.session.durable {
                    durable.reader.put_back(delivery);
                }
                break;
            }
            any = true;
            let source = DeliverySource::Journal(delivery.position, delivery.ordinal);
            let grant = self.session.grant(delivery.message.view(), delivery.handed_over);
            match grant.or_else(|| completing(&delivery)) {
                Some(_) if self.is_there(delivery.message.view()) => self.settle(source),
                Some(grant) if delivery.released && grant.qos == Qos::ExactlyOnce => {
                    let packet_id = self.session.outbound.next_id(&source, true);
                    let queued = Queued { message: delivery.message, grant };
                    self.session.outbound.begin_released(packet_id, queued, source);
                    self.resend();
                }
                // there is room, so the message is sent, or settled if it cannot be sent
                Some(grant) => drop(self.send_as(Queued { message: delivery.message, grant }, source, delivery.resent)),
                None => self.settle(source),
            }
        }
        any
    }

    /// Whether the client is a gateway that has this message already, or gets it from a forwarding rule, so that it would
    /// arrive there twice. Retained messages for a new subscription are delivered nevertheless, because they may be older
    /// than the rule.
    fn is_there(&self, message: MessageRef<'_>) -> bool {
        self.gateway.is_some_and(|gateway| self.core.ingress.reaches(gateway, message))
    }

    /// Sends a message, or settles it if it cannot be sent. Returns the message if the window is closed.
    fn send(&mut self, queued: Queued, source: DeliverySource) -> Result<(), Queued> {
        self.send_as(queued, source, false)
    }

    /// Like `send`. `dup` means that the message may have been sent before.
    fn send_as(&mut self, queued: Queued, source: DeliverySource, dup: bool) -> Result<(), Queued> {
        let needs_window = queued.grant.qos > Qos::AtMostOnce;
        if needs_window && !self.has_window(queued.message.size()) {
            return Err(queued);
        }
        if !self.permissions.may_receive(queued.message.view().topic()) {
            self.settle(source);
            return Ok(());
        }
        let is_durable = self.session.durable.is_some();
        let packet_id = if needs_window { self.session.outbound.next_id(&source, is_durable) } else { 0 };
        let sent = self.write(&queued.message, &queued.grant, (packet_id, dup && needs_window));
        if sent && needs_window {
            self.session.outbound.begin(packet_id, queued, source);
        } else {
            self.settle(source);
        }
        Ok(())
    }

    fn write(&mut self, message: &Message, grant: &Grant, id: (u16, bool)) -> bool {
        // read the clock only for messages that expire
        let now = message.view().expiry().map_or(0, |_| self.core.ingress.clock().boot_ms());
        let (counted, limits) = (&mut self.counted, (self.version, self.max_packet));
        let what = (message.view(), message.view().topic(), outgoing(grant, id));
        write_one(&mut self.out, &mut self.outbound_aliases, counted, limits, now, what, || message.shared_payload())
    }

    /// Sends again what was in flight when the last connection ended.
    fn resend(&mut self) {
        if !self.session.outbound.has_held() {
            return;
        }
        let now = self.core.ingress.clock().boot_ms();
        let (out, aliases, counted) = (&mut self.out, &mut self.outbound_aliases, &mut self.counted);
        let limits = (self.version, self.max_packet);
        let mut failed = Vec::new();
        self.session.outbound.resend(|send| match send {
            Send::Release(packet_id) => write::ack(out.tail(), limits.0, AckPacket::PubRel, packet_id, Reason::SUCCESS),
            Send::Publish { packet_id, dup, queued } => {
                let message = queued.message.view();
                let what = (message, message.topic(), outgoing(&queued.grant, (packet_id, dup)));
                if !write_one(out, aliases, counted, limits, now, what, || queued.message.shared_payload()) {
                    failed.push(packet_id);
                }
            }
        });
        for packet_id in failed {
            if let Some(source) = self.session.outbound.give_up(packet_id) {
                self.settle(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::tests::connected;
    use crate::message::{Draft, Qos};

    #[tokio::test(start_paused = true)]
    async fn a_connection_answers_when_it_is_asked_for_a_turn_whatever_its_client_does() {
        for (qos, payload) in [(Qos::AtLeastOnce, 10), (Qos::AtMostOnce, 10_000)] {
            let (broker, mut client) = connected().await;
            client.write_all(&[0x82, 6, 0, 1, 0, 1, b't', qos as u8]).await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            let reader = broker.core.ingress.subscribers().any_to("t").unwrap();
            let turn = &reader.inbox.turn;
            // more than may be unacknowledged, or than the socket and the output buffer take
            let payload = vec![0; payload];
            for _ in 0..50 {
                broker.core.ingress.publish(&Draft { qos, ..Draft::new("t", &payload) }).await.unwrap();
            }
            while !turn.is_blocked() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for _ in 0..3 {
                turn.ask();
                assert!(turn.is_owed());
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(!turn.is_owed() && turn.is_blocked(), "it has had its turn, and the client has done nothing");
            }
        }
    }
}
