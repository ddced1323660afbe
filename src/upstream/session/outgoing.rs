//! Converts local messages to the form in which they are sent to the upstream.

use bytes::Bytes;

use super::{SentFrom, SentMessage, SessionAction, UpstreamSession, exact};
use crate::journal::Position;
use crate::message::{Draft, Message, Origin, Qos};
use crate::status::ledger::{DropReason, LedgerOutcome};
use crate::upstream::discovery::{self, Forwarded};
use crate::upstream::lanes::Lane;
use crate::upstream::properties;
use crate::upstream::settings::OutQos;
use crate::upstream::wire::{Link, OutMessage, Version};

impl UpstreamSession {
    /// Whether messages may have the retain flag.
    pub(super) fn takes_retain(&self, link: Link) -> bool {
        link.retain_available && !self.retain_refused.is_in_force()
    }

    /// The message of [`SessionAction::Shelve`].
    pub(crate) fn unmeant(&mut self, lane: Lane, position: Position) -> Option<Message> {
        let at = self.unmeant.iter().position(|(of, at, _)| (*of, *at) == (lane, position))?;
        Some(self.unmeant.swap_remove(at).2)
    }

    /// Counts a message as dropped, because no rule is for it and the shelf has no room.
    pub(crate) fn drop_unmeant(&mut self, message: &Message) -> LedgerOutcome {
        let why = "it waited, no rule of the upstream matches it any more, and there is no room to keep it";
        self.counts.add_loss(&self.name, DropReason::NoRule, message.view().topic(), why);
        LedgerOutcome::Dropped(DropReason::NoRule)
    }

    /// Counts a message as dropped, because the upstream does not take its topic and there is no room to keep it.
    pub(crate) fn drop_denied(&mut self, message: &Message) -> LedgerOutcome {
        let why = "the upstream does not take its topic, and there is no room to keep it";
        self.counts.add_loss(&self.name, DropReason::EndsConnection, message.view().topic(), why);
        LedgerOutcome::Dropped(DropReason::EndsConnection)
    }

    /// The status message with this payload, if a status topic is configured.
    pub(crate) fn status(&self, payload: &'static str) -> Option<OutMessage> {
        let link = self.link?;
        Some(OutMessage {
            topic: self.status_topic.clone()?,
            payload: Bytes::from_static(payload.as_bytes()),
            qos: Qos::AtLeastOnce.min(link.max_qos),
            retain: self.takes_retain(link),
            properties: Vec::new(),
            packet_id: None,
            is_repeated: false,
        })
    }

    /// Sends a message of the journal, or records why it is not sent.
    pub(super) fn hand_over(
        &mut self,
        mut in_flight: SentMessage,
        at: usize,
        is_current: bool,
        now: u64,
        actions: &mut Vec<SessionAction>,
    ) {
        let Some(source) = &in_flight.source else { return };
        let (lane, position, message) = (source.lane, source.position, &source.message);
        self.under_way.begin(source);
        match self.outgoing(message, is_current, now) {
            Ok(mut out) => {
                out.retain &= !self.suspicion.leaves_out_flag(lane, position);
                out.qos = self.answered_qos(out.qos, message);
                if self.suspicion.leaves_out_exact(lane, position) {
                    // its packet id is not freed, because the end of the connection would not tell which of both was the reason
                    out.qos = out.qos.min(Qos::AtLeastOnce);
                } else if out.qos == Qos::ExactlyOnce {
                    let packet_id = exact::packet_id(lane, source.ordinal);
                    (out.packet_id, out.is_repeated) = (Some(packet_id), source.resent);
                    self.use_id(packet_id, actions);
                } else {
                    self.abandon_exchange(source, actions);
                }
                in_flight = in_flight.with(&out, now);
                self.count_handed(&mut in_flight);
                self.sends(&in_flight, out.qos, now);
                self.opening.sends(out.qos);
                self.suspicion.sent(now);
                self.throttle.count(now);
                actions.push(SessionAction::Publish(out));
            }
            Err(outcome) => {
                self.abandon_exchange(source, actions);
                in_flight.outcome = Some(outcome);
            }
        }
        self.in_flight.insert(at.min(self.in_flight.len()), in_flight);
        self.limits_reached();
        self.settle(actions);
    }

    /// Holds a message back until others are acknowledged. `is_released` tells that the upstream has it, and only PUBREL is
    /// sent.
    pub(super) fn hold_back(&mut self, source: SentFrom, is_released: bool, now: u64) {
        let mut held = SentMessage::new(Some(source), now);
        (held.held, held.is_released) = (true, is_released);
        self.held += 1;
        self.in_flight.push_back(held);
    }

    /// A retained message in its form for a pass; `None` if it is not forwarded, or also comes from the upstream and is not
    /// known to be missing there.
    pub(crate) fn retained(
        &self,
        message: &Message,
        is_missing: impl Fn(&str) -> bool,
        now: u64,
    ) -> Option<OutMessage> {
        if self.is_denied(message) {
            return None;
        }
        let mut out = match message.view().origin() == self.origin {
            true => self.returned(message, now)?,
            false => self.outgoing(message, true, now).ok()?,
        };
        // it has no ordinal, and a duplicate does no harm
        out.qos = out.qos.min(Qos::AtLeastOnce);
        let is_mirrored = || self.mirrored(&out.topic).is_some() && is_missing(&out.topic);
        (out.retain && (self.rules.incoming(&out.topic).is_none() || is_mirrored())).then_some(out)
    }

    /// A message that the upstream has sent and forgotten.
    fn returned(&self, message: &Message, now: u64) -> Option<OutMessage> {
        let properties = properties::without_way(message.view().properties());
        let draft = Draft { properties: &properties, origin: Origin::gateway(), ..message.view().to_draft() };
        let out = self.outgoing(&Message::new(&draft), true, now).ok()?;
        self.mirrored(&out.topic).is_some().then_some(out)
    }

    /// The deletion of a retained message that was sent before; `None` if it is no longer forwarded or also comes from the
    /// upstream.
    pub(crate) fn deletion(&self, local: &str, remote: String) -> Option<OutMessage> {
        let link = self.link.filter(|link| self.takes_retain(*link))?;
        let target = self.rules.outgoing(local).filter(|target| target.retain)?;
        if target.topic != remote || self.rules.incoming(&remote).is_some() {
            return None;
        }
        let qos = if target.qos == OutQos::AtMostOnce { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        let (payload, properties) = (Bytes::new(), Vec::new());
        let (qos, topic) = (qos.min(link.max_qos), target.topic);
        Some(OutMessage { topic, payload, qos, retain: true, properties, packet_id: None, is_repeated: false })
    }

    /// An announcement of the gateway with its topics mapped to remote ones; `None` if nothing useful is left.
    fn announcement(&self, payload: &[u8]) -> Option<Bytes> {
        let there = |topic: &str| self.rules.outgoing(topic).map(|target| target.topic);
        match discovery::forwarded(payload, there, self.status_topic.as_deref()) {
            Forwarded::AsItIs => Some(Bytes::copy_from_slice(payload)),
            Forwarded::Changed(changed) => Some(changed.into()),
            Forwarded::Nothing => None,
        }
    }

    fn outgoing(&self, message: &Message, is_current: bool, now: u64) -> Result<OutMessage, LedgerOutcome> {
        let Some(link) = self.link else { return Err(LedgerOutcome::Dropped(DropReason::NoRule)) };
        let view = message.view();
        if view.origin() == self.origin {
            return Err(LedgerOutcome::Dropped(DropReason::CameFromThere));
        }
        let target = self.rules.outgoing(view.topic()).ok_or(LedgerOutcome::Dropped(DropReason::NoRule))?;
        let retain = view.retain() && is_current && target.retain && self.takes_retain(link);
        // messages from before this boot have a negative time
        let age = (now as i64).saturating_sub(view.boot_ms() as i64);
        let is_too_old = target.max_age.is_some_and(|most| age > i64::try_from(most.as_millis()).unwrap_or(i64::MAX));
        // without the retained message of its topic the upstream would keep an older one
        if is_too_old && !retain {
            return Err(LedgerOutcome::Expired);
        }
        let expiry = view.remaining_expiry(now).map_err(|_| LedgerOutcome::Expired)?;
        let properties = match link.version {
            Version::V31 | Version::V311 => Vec::new(),
            Version::V5 => properties::up(view.properties(), link.gateway, expiry).map_err(LedgerOutcome::Dropped)?,
        };
        let qos = match target.qos {
            OutQos::AtMostOnce => Qos::AtMostOnce,
            OutQos::AtLeastOnce => Qos::AtLeastOnce,
            OutQos::ExactlyOnce => Qos::ExactlyOnce,
            OutQos::Keep => view.qos().min(Qos::AtLeastOnce),
        };
        let payload = match view.origin() == self.announcer {
            true => self.announcement(view.payload()).ok_or(LedgerOutcome::Dropped(DropReason::NoRule))?,
            false => message.shared_payload(),
        };
        let out = OutMessage {
            topic: target.topic,
            payload,
            qos: qos.min(link.max_qos),
            retain,
            properties,
            packet_id: None,
            is_repeated: false,
        };
        // the remaining length has 28 bits [MQTT-2.1.4]
        let limit = link.max_packet_size.map_or(268_435_455, |size| size as usize);
        if out.topic.len() > usize::from(u16::MAX) || out.packet_size(link.version) > limit {
            return Err(LedgerOutcome::Dropped(DropReason::TooLarge));
        }
        Ok(out)
    }
}
