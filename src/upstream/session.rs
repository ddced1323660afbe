//! The conversation with one upstream, as a pure state machine: it is told what happens and answers with what to do.
//!
//! **Up.** Messages come from the journal in order and are handed to the connection in order, at most a window of them
//! without an answer; the window is counted from the oldest unanswered one. A message is settled in the journal when it and
//! all before it have ended: by the upstream's PUBACK, by being sent where QoS 0 is asked for, by expiry, or by being set
//! aside with a reason. When the connection breaks, everything unsettled is sent again on the next one, so the upstream
//! sees duplicates of at most the window.
//!
//! **Live first.** Where messages come in two lanes (see [`super::lanes`]), those of the backlog leave an eighth of the window
//! free, and have at most [`BACKLOG_BYTES`] under way: what is live goes at once and does not queue up behind them on a slow
//! line.
//!
//! **Set aside.** What the upstream refuses, or what is too large for it, does not hold up the rest. MQTT 3.1.1 has no
//! refusal: a broker that dislikes a message closes the connection. So when an upstream closes it while messages are
//! unanswered, these are sent one at a time on the next connection; a message that is alone and ends the connection
//! [`STRIKES`] times in a row is set aside. Failures of the network are not counted against it.
//!
//! **Down.** A message is mapped to its local topic and acknowledged when the gateway has it safe.
//!
//! **No echo.** What came from an upstream is not sent back to it. On version 5 subscriptions have the no local option, and
//! messages name the gateways that they have passed through: none enters a gateway twice (see [`via`]).

use std::collections::VecDeque;

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::lanes::Lane;
use super::ledger::{Counts, DropReason, Outcome};
use super::properties;
use super::rule::Rules;
use super::settings::{OutQos, UpstreamSettings};
use super::wire::{Broken, InMessage, Link, OutMessage, Role, Version};
use crate::journal::{Delivery, Position};
use crate::message::{Message, Origin, Qos, TopicFilter, via};

/// Connections that a message may end before it is set aside.
pub const STRIKES: u32 = 3;
/// An upstream that has messages to answer to and answers to none for this long is taken for dead.
pub const ANSWER_TIMEOUT_MS: u64 = 60_000;

/// Bytes of a backlog that may be under way: half a second on a line of 1 Mbit/s.
pub const BACKLOG_BYTES: usize = 64 << 10;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionAction {
    /// Hand this to the connection.
    Publish(OutMessage),
    /// The journal may forget this message.
    Settle(Lane, Position, Outcome),
    /// Read the journal again from the oldest unsettled message on.
    Rewind,
    /// Subscribe to these, all in one packet.
    Subscribe(Vec<(TopicFilter, Qos)>),
    /// Unsubscribe from these.
    Unsubscribe(Vec<TopicFilter>),
    /// End the connection: the upstream does not answer.
    Break,
}

/// A message that came down, ready to be published here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Local topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// QoS.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// MQTT 5 properties, encoded.
    pub properties: Vec<u8>,
    /// Message expiry interval in seconds.
    pub expiry: Option<u32>,
    /// What to acknowledge afterwards; 0: nothing.
    pub packet_id: u16,
}

/// Where a message in flight came from.
#[derive(Clone, Debug)]
struct Source {
    lane: Lane,
    role: Role,
    position: Position,
    message: Message,
}

#[derive(Debug)]
struct InFlight {
    /// `None`: a message of our own, such as the status.
    source: Option<Source>,
    handed_over: u64,
    packet_id: Option<u16>,
    outcome: Option<Outcome>,
}

impl InFlight {
    fn new(source: Option<Source>, now: u64) -> InFlight {
        InFlight { source, handed_over: now, packet_id: None, outcome: None }
    }
}

/// A message that was unanswered when the upstream closed the connection.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    position: Position,
    strikes: u32,
    /// Up to here messages go one at a time, per lane; `None`: this lane is not concerned.
    until: [Option<Position>; 2],
}

impl Suspect {
    /// What is left of the suspicion when a lane is past this place.
    fn past(mut self, lane: Lane, position: Position) -> Option<Suspect> {
        let until = &mut self.until[lane.index()];
        *until = until.filter(|until| *until > position);
        self.until.iter().any(Option::is_some).then_some(self)
    }
}

/// The state of the conversation.
#[derive(Debug)]
pub struct Session {
    name: String,
    origin: Origin,
    rules: Rules,
    max_inflight: u16,
    status_topic: Option<String>,
    link: Option<Link>,
    in_flight: VecDeque<InFlight>,
    /// Bytes of a backlog that are under way.
    backlog_bytes: usize,
    last_answer: u64,
    suspect: Option<Suspect>,
    subscribing: VecDeque<Vec<TopicFilter>>,
    counts: Counts,
}

impl Session {
    /// A conversation that has not begun.
    pub fn new(rules: Rules, settings: &UpstreamSettings) -> Session {
        Session {
            name: settings.name.clone(),
            origin: Origin::upstream(&settings.name),
            rules,
            max_inflight: settings.max_inflight,
            status_topic: settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned()),
            link: None,
            in_flight: VecDeque::new(),
            backlog_bytes: 0,
            last_answer: 0,
            suspect: None,
            subscribing: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// What is not about rules holds from the next connection on, at the latest.
    pub fn set_settings(&mut self, settings: &UpstreamSettings) {
        self.max_inflight = settings.max_inflight;
        self.status_topic = settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned());
    }

    /// How messages ended so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Messages handed over and not settled.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The upstream has accepted a connection.
    pub fn connected(&mut self, link: Link, now: u64) -> Vec<SessionAction> {
        self.link = Some(link);
        let mut actions = Vec::new();
        self.subscribe(self.rules.subscriptions(), &mut actions);
        if let Some(status) = self.status("online") {
            self.in_flight.push_back(InFlight::new(None, now));
            actions.push(SessionAction::Publish(status));
        }
        actions
    }

    /// The status message with this payload, if one is wanted.
    pub fn status(&self, payload: &'static str) -> Option<OutMessage> {
        let link = self.link?;
        Some(OutMessage {
            topic: self.status_topic.clone()?,
            payload: Bytes::from_static(payload.as_bytes()),
            qos: Qos::AtLeastOnce.min(link.max_qos),
            retain: link.retain_available,
            properties: Vec::new(),
        })
    }

    /// The connection is gone.
    pub fn disconnected(&mut self, why: &Broken) -> Vec<SessionAction> {
        self.link = None;
        self.subscribing.clear();
        let mut actions = Vec::new();
        let unanswered = self.in_flight.iter().find(|message| message.outcome.is_none());
        let unanswered = unanswered.filter(|message| message.packet_id.is_some()).and_then(|m| m.source.clone());
        let closed = matches!(why, Broken::Closed | Broken::Dismissed(_));
        if let Some(source) = unanswered.filter(|_| closed) {
            self.suspect(&source, &mut actions);
        }
        self.in_flight.clear();
        self.backlog_bytes = 0;
        actions.push(SessionAction::Rewind);
        actions
    }

    /// The upstream closed the connection while this was the oldest message without an answer.
    fn suspect(&mut self, source: &Source, actions: &mut Vec<SessionAction>) {
        let &Source { lane, position, ref message, .. } = source;
        let mut until = self.suspect.map_or([None; 2], |suspect| suspect.until);
        for source in self.in_flight.iter().filter_map(|message| message.source.as_ref()) {
            let until = &mut until[source.lane.index()];
            *until = (*until).max(Some(source.position));
        }
        let alone = self.in_flight.iter().filter(|message| message.source.is_some()).count() == 1;
        let before = self.suspect.filter(|suspect| suspect.position == position).map_or(0, |suspect| suspect.strikes);
        let strikes = before + u32::from(alone);
        self.suspect = Some(Suspect { position, strikes, until });
        if strikes >= STRIKES {
            let why = "the upstream closes the connection whenever it gets this message";
            self.counts.add_loss(&self.name, DropReason::EndsConnection, message.view().topic(), why);
            self.suspect = self.suspect.and_then(|suspect| suspect.past(lane, position));
            actions.push(SessionAction::Settle(lane, position, Outcome::Dropped(DropReason::EndsConnection)));
        }
    }

    /// Whether the next message may be handed over.
    pub fn has_room(&self, role: Role) -> bool {
        let Some(link) = self.link else { return false };
        let window = if self.suspect.is_some() { 1 } else { self.max_inflight.min(link.receive_maximum).max(1) };
        let window = usize::from(window);
        let in_flight = self.in_flight.len();
        match role {
            Role::Live => in_flight < window,
            Role::Backlog => {
                let kept_free = if window > 1 { (window / 8).max(1) } else { 0 };
                in_flight < window - kept_free && self.backlog_bytes < BACKLOG_BYTES
            }
        }
    }

    /// Whether messages of this lane are to be handed over before those of the other, one at a time, because one of
    /// them may be what the upstream closes connections for.
    pub fn suspects(&self, lane: Lane) -> bool {
        self.suspect.is_some_and(|suspect| suspect.until[lane.index()].is_some())
    }

    /// Nothing waits in this lane: nothing in it is suspected any more.
    pub fn acquit(&mut self, lane: Lane) {
        self.suspect = self.suspect.and_then(|suspect| suspect.past(lane, Position(u64::MAX)));
    }

    /// The journal has this message. Only to be called while there is room.
    pub fn delivery(&mut self, (lane, role): (Lane, Role), delivery: Delivery, now: u64) -> Vec<SessionAction> {
        let Delivery { position, message, .. } = delivery;
        let mut actions = Vec::new();
        let outgoing = self.outgoing(&message, now);
        if role == Role::Backlog {
            self.backlog_bytes += message.size();
        }
        let mut in_flight = InFlight::new(Some(Source { lane, role, position, message }), now);
        match outgoing {
            Ok(out) => actions.push(SessionAction::Publish(out)),
            Err(outcome) => in_flight.outcome = Some(outcome),
        }
        self.in_flight.push_back(in_flight);
        self.settle(&mut actions);
        actions
    }

    fn outgoing(&self, message: &Message, now: u64) -> Result<OutMessage, Outcome> {
        let Some(link) = self.link else { return Err(Outcome::Dropped(DropReason::NoRule)) };
        let view = message.view();
        if view.origin() == self.origin {
            return Err(Outcome::Dropped(DropReason::CameFromThere));
        }
        let mapped = self.rules.outgoing(view.topic());
        let (topic, policy) = mapped.ok_or(Outcome::Dropped(DropReason::NoRule))?;
        let expiry = view.remaining_expiry(now).map_err(|_| Outcome::Expired)?;
        let properties = match link.version {
            Version::V4 => Vec::new(),
            Version::V5 => properties_up(view.properties(), link.gateway, expiry).map_err(Outcome::Dropped)?,
        };
        let qos = match policy {
            OutQos::AtMostOnce => Qos::AtMostOnce,
            OutQos::AtLeastOnce => Qos::AtLeastOnce,
            OutQos::Keep => view.qos().min(Qos::AtLeastOnce),
        };
        let out = OutMessage {
            topic,
            payload: Bytes::copy_from_slice(view.payload()),
            qos: qos.min(link.max_qos),
            retain: view.retain() && link.retain_available,
            properties,
        };
        // [MQTT-2.1.4]: the remaining length has 28 bits
        let limit = link.max_packet_size.map_or(268_435_455, |size| size as usize);
        if out.topic.len() > usize::from(u16::MAX) || out.packet_size(link.version) > limit {
            return Err(Outcome::Dropped(DropReason::TooLarge));
        }
        Ok(out)
    }

    /// The oldest message handed over has been sent.
    pub fn sent(&mut self, packet_id: u16) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let waiting = |message: &&mut InFlight| message.packet_id.is_none() && message.outcome.is_none();
        if let Some(message) = self.in_flight.iter_mut().find(waiting) {
            message.packet_id = Some(packet_id);
            if packet_id == 0 {
                message.outcome = Some(Outcome::SentUnconfirmed);
                self.settle(&mut actions);
            }
        }
        actions
    }

    /// The upstream has answered to a message.
    pub fn acked(&mut self, packet_id: u16, reason: u8, now: u64) -> Vec<SessionAction> {
        self.last_answer = now;
        let mut actions = Vec::new();
        let is_it = |message: &&mut InFlight| message.packet_id == Some(packet_id) && message.outcome.is_none();
        if let Some(message) = self.in_flight.iter_mut().find(is_it) {
            let refused = reason >= 0x80;
            if let Some(source) = message.source.as_ref().filter(|_| refused) {
                let (upstream, topic) = (&self.name, source.message.view().topic());
                debug!(upstream, topic, reason, "the upstream refuses a message");
            }
            let outcome = if refused { Outcome::Dropped(DropReason::Refused) } else { Outcome::Acked };
            message.outcome = Some(outcome);
            self.settle(&mut actions);
        }
        actions
    }

    /// Settles what has ended, up to the first message that has not.
    fn settle(&mut self, actions: &mut Vec<SessionAction>) {
        while let Some(outcome) = self.in_flight.front().and_then(|oldest| oldest.outcome) {
            let Some(source) = self.in_flight.pop_front().and_then(|oldest| oldest.source) else {
                continue; // the status
            };
            let Source { lane, role, position, message } = source;
            if role == Role::Backlog {
                self.backlog_bytes -= message.size();
            }
            self.suspect = self.suspect.and_then(|suspect| suspect.past(lane, position));
            let why = match outcome {
                Outcome::Dropped(DropReason::Refused) => "the upstream refuses it",
                Outcome::Dropped(DropReason::TooLarge) => "it is larger than the upstream takes",
                Outcome::Dropped(DropReason::Loop) => "it has passed through too many gateways: is there a loop?",
                _ => "",
            };
            if let Outcome::Dropped(reason) = outcome
                && !why.is_empty()
            {
                self.counts.add_loss(&self.name, reason, message.view().topic(), why);
            }
            actions.push(SessionAction::Settle(lane, position, outcome));
        }
    }

    /// When [`Session::time`] is to be called.
    pub fn deadline(&self) -> Option<u64> {
        let oldest = self.in_flight.iter().find(|message| message.outcome.is_none())?;
        Some(oldest.handed_over.max(self.last_answer) + ANSWER_TIMEOUT_MS)
    }

    /// Time has come so far.
    pub fn time(&mut self, now: u64) -> Vec<SessionAction> {
        let silent = self.link.is_some() && self.deadline().is_some_and(|deadline| deadline <= now);
        if silent { vec![SessionAction::Break] } else { Vec::new() }
    }

    /// New rules; the connection stays.
    pub fn set_rules(&mut self, rules: Rules) -> Vec<SessionAction> {
        let (before, wanted) = (self.rules.subscriptions(), rules.subscriptions());
        self.rules = rules;
        let mut actions = Vec::new();
        if self.link.is_some() {
            let gone = before.iter().filter(|(filter, _)| wanted.iter().all(|(kept, _)| kept != filter));
            let gone: Vec<_> = gone.map(|(filter, _)| filter.clone()).collect();
            if !gone.is_empty() {
                actions.push(SessionAction::Unsubscribe(gone));
            }
            self.subscribe(wanted.into_iter().filter(|new| !before.contains(new)).collect(), &mut actions);
        }
        actions
    }

    fn subscribe(&mut self, wanted: Vec<(TopicFilter, Qos)>, actions: &mut Vec<SessionAction>) {
        if !wanted.is_empty() {
            self.subscribing.push_back(wanted.iter().map(|(filter, _)| filter.clone()).collect());
            actions.push(SessionAction::Subscribe(wanted));
        }
    }

    /// The upstream has answered to a subscription.
    pub fn subscribed(&mut self, reasons: &[u8]) {
        let upstream = &self.name;
        for (filter, reason) in self.subscribing.pop_front().unwrap_or_default().iter().zip(reasons) {
            if *reason >= 0x80 {
                warn!(upstream, %filter, reason, "the upstream refuses the subscription: nothing comes down by it");
            } else {
                info!(upstream, %filter, qos = reason, "subscribed");
            }
        }
    }

    /// A message came down; `None`: no rule wants it, or it has been here, and it is to be acknowledged at once.
    pub fn incoming(&self, message: InMessage) -> Option<Inbound> {
        let (topic, qos) = self.rules.incoming(&message.topic)?;
        let Some(properties) = properties_down(&message.properties, self.link.and_then(|link| link.gateway)) else {
            debug!(upstream = self.name, topic, "not taken from upstream: it has been here, or in too many gateways");
            return None;
        };
        Some(Inbound {
            topic,
            payload: message.payload,
            qos: message.qos.min(qos),
            retain: message.retain,
            properties,
            expiry: message.expiry,
            packet_id: message.packet_id,
        })
    }
}

/// The properties that a message has on its way up to an upstream, which may be a gateway itself.
fn properties_up(encoded: &[u8], upstream: Option<via::Id>, expiry: Option<u32>) -> Result<Vec<u8>, DropReason> {
    if upstream.is_some_and(|gateway| via::names(encoded, gateway)) {
        return Err(DropReason::CameFromThere);
    }
    if via::names(encoded, via::Id::ours()) {
        return Err(DropReason::Loop);
    }
    let mut properties = properties::kept(encoded);
    via::append(&mut properties, via::Id::ours()).map_err(|via::TooMany| DropReason::Loop)?;
    if let Some(seconds) = expiry {
        properties::add_expiry(&mut properties, seconds);
    }
    Ok(properties)
}

/// The properties of a message that came down; `None`: it must not come in here. An upstream does not write itself into
/// what it delivers to a subscription, so that is done here.
fn properties_down(encoded: &[u8], upstream: Option<via::Id>) -> Option<Vec<u8>> {
    if via::names(encoded, via::Id::ours()) {
        return None;
    }
    let mut properties = properties::kept(encoded);
    if let Some(gateway) = upstream.filter(|gateway| !via::names(encoded, *gateway)) {
        via::append(&mut properties, gateway).ok()?;
    }
    Some(properties)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
