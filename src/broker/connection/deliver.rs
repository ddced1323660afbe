//! What clients get.

use std::collections::HashMap;

use super::super::codec::publish::{Outgoing, encode};
use super::super::codec::write::{self, Ack};
use super::super::codec::{Reason, Version};
use super::super::inbox::Queued;
use super::super::session::{Send, Source};
use super::super::stats::Stats;
use super::Connection;
use super::run::OUT_FULL;
use crate::message::{Message, Qos};
use bytes::BytesMut;

/// Messages taken out of the inbox at a time.
const TAKE: usize = 64;
/// Most aliases that are assigned, whatever the client allows.
const MOST_ALIASES: u16 = 64;

/// Topic aliases towards the client: the first topics get one each.
#[derive(Debug)]
pub struct OutboundAliases {
    maximum: u16,
    by_topic: HashMap<Box<str>, u16>,
}

impl OutboundAliases {
    /// At most as many as the client takes.
    pub fn new(maximum: u16) -> OutboundAliases {
        OutboundAliases { maximum: maximum.min(MOST_ALIASES), by_topic: HashMap::new() }
    }

    /// The alias of a topic and whether the client knows it.
    fn get(&self, topic: &str) -> Option<(u16, bool)> {
        if self.maximum == 0 {
            return None;
        }
        let next = self.by_topic.len() as u16 + 1;
        match self.by_topic.get(topic) {
            Some(alias) => Some((*alias, true)),
            None => (next <= self.maximum).then_some((next, false)),
        }
    }

    fn sent(&mut self, topic: &str, alias: Option<(u16, bool)>) {
        if let Some((alias, false)) = alias {
            self.by_topic.insert(topic.into(), alias);
        }
    }
}

/// Writes one message; says whether it went out, or is too large for the client or expired.
#[allow(clippy::too_many_arguments)]
fn write_one(
    out: &mut BytesMut,
    aliases: &mut OutboundAliases,
    stats: &Stats,
    version: Version,
    max: usize,
    now_boot_ms: u64,
    queued: &Queued,
    (packet_id, dup): (u16, bool),
) -> bool {
    let message = queued.message.view();
    let Ok(expiry) = message.remaining_expiry(now_boot_ms) else {
        stats.publish_expired.add(1);
        return false;
    };
    let alias = aliases.get(message.topic());
    let how = Outgoing {
        dup,
        qos: queued.grant.qos,
        retain: queued.grant.retain,
        packet_id,
        expiry,
        subscription_ids: &queued.grant.ids,
        alias,
    };
    if !encode(out, message, &how, version, max) {
        stats.publish_dropped.add(1);
        return false;
    }
    aliases.sent(message.topic(), alias);
    stats.packets_sent.add(1);
    stats.publish_sent.add(1);
    stats.publish_bytes_sent.add(message.payload().len() as u64);
    true
}

impl Connection {
    /// Writes what waits for the client, as far as its window and the output buffer allow. Says whether nothing more can be
    /// delivered before something new comes in.
    pub(super) fn deliver(&mut self) -> bool {
        self.resend();
        while self.out.len() < OUT_FULL {
            if let Some(queued) = self.session.retained.pop_front() {
                if let Err(queued) = self.send(queued, Source::Live) {
                    self.session.retained.push_front(queued);
                    return false;
                }
                continue;
            }
            if let Some(queued) = self.pending.pop_front() {
                let source = queued.grant.share.clone().map_or(Source::Live, Source::Shared);
                if let Err(queued) = self.send(queued, source) {
                    self.pending.push_front(queued);
                    return false;
                }
                continue;
            }
            self.subscriber.inbox.take(TAKE, &mut self.pending);
            let from_journal = self.deliver_from_journal();
            if self.pending.is_empty() && !from_journal {
                return true;
            }
        }
        false
    }

    /// Sends a run of messages from the journal; says whether there was one.
    fn deliver_from_journal(&mut self) -> bool {
        let mut any = false;
        for _ in 0..TAKE {
            if self.session.outbound.room() == 0 || self.out.len() >= OUT_FULL {
                break;
            }
            let Some(durable) = &mut self.session.durable else { break };
            let Some(delivery) = durable.reader.try_next() else { break };
            any = true;
            let source = Source::Journal(delivery.position);
            match self.session.grant(delivery.message.view()) {
                // there is room: it is sent, or settled where it cannot be
                Some(grant) => drop(self.send(Queued { message: delivery.message, grant }, source)),
                None => self.settle(source),
            }
        }
        any
    }

    /// Sends a message or settles it where it cannot be sent; gives it back while the window is closed.
    fn send(&mut self, queued: Queued, source: Source) -> Result<(), Queued> {
        let needs_window = queued.grant.qos > Qos::AtMostOnce;
        if needs_window && self.session.outbound.room() == 0 {
            return Err(queued);
        }
        if !self.permissions.may_receive(queued.message.view().topic()) {
            self.settle(source);
            return Ok(());
        }
        let (mut packet_id, mut on_failure) = (0, None);
        let sent = if needs_window {
            let message: Message = queued.message.clone();
            let copy = Queued { message, grant: queued.grant.clone() };
            packet_id = self.session.outbound.begin(queued, source);
            self.write(&copy, (packet_id, false))
        } else {
            let sent = self.write(&queued, (0, false));
            on_failure = Some(source);
            sent
        };
        if !sent && needs_window {
            on_failure = self.session.outbound.give_up(packet_id);
        }
        if let Some(source) = on_failure {
            self.settle(source);
        }
        Ok(())
    }

    fn write(&mut self, queued: &Queued, id: (u16, bool)) -> bool {
        let now = self.core.ingress.clock().boot_ms();
        let stats = &self.core.stats;
        write_one(&mut self.out, &mut self.outbound_aliases, stats, self.version, self.max_packet, now, queued, id)
    }

    /// Sends again what was in flight when the last connection ended.
    fn resend(&mut self) {
        if !self.session.outbound.has_held() {
            return;
        }
        let now = self.core.ingress.clock().boot_ms();
        let (out, aliases, core) = (&mut self.out, &mut self.outbound_aliases, &self.core);
        let (version, max) = (self.version, self.max_packet);
        let mut failed = Vec::new();
        self.session.outbound.resend(|send| match send {
            Send::Release(packet_id) => write::ack(out, version, Ack::PubRel, packet_id, Reason::SUCCESS),
            Send::Publish { packet_id, dup, queued } => {
                if !write_one(out, aliases, &core.stats, version, max, now, queued, (packet_id, dup)) {
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
