//! The conversation with one upstream, as a pure state machine: it is told what happens and answers with what to do.
//!
//! **Up.** Messages come from the journal in order and are handed to the connection in order, at most a window of them
//! without an answer; the window is counted from the oldest unanswered one. A message is settled in the journal when it and
//! all before it have ended: by the upstream's PUBACK, by being sent where QoS 0 is asked for, by expiry, or by being set
//! aside with a reason. When the connection breaks, everything unsettled is sent again on the next one, so the upstream
//! sees duplicates of at most the window.
//!
//! **Later.** A refusal that says nothing about the message, but that the upstream takes none at the moment, sets nothing
//! aside: quota exceeded (0x97), and packet identifier in use (0x91), which only says that both sides count differently.
//! When everything under way is answered, the upstream gets a pause, the longer the more often, and then what it refused and
//! all after it, in order. All other refusals are for good [MQTT-5 3.4.2.1]: unspecified (0x80) and implementation specific
//! (0x83) errors mean that the upstream does not accept this message, and give no reason to expect that it ever will.
//!
//! **Live first.** Where messages come in two lanes (see [`super::lanes`]), those of the backlog leave an eighth of the window
//! free, and have at most [`BACKLOG_BYTES`] under way: what is live goes at once and does not queue up behind them on a slow
//! line. None goes while [`UNDER_WAY_BYTES`] are under way.
//!
//! **Set aside.** What the upstream refuses, or what is too large for it, does not hold up the rest. MQTT 3.1.1 has no
//! refusal: a broker that dislikes something closes the connection. What it dislikes is found out in order: first what is
//! said before any message ([`opening`]), then the retain flag, then a message, which is set aside only where others get
//! through ([`suspect`]). Failures of the network are not counted against anything. No more than `rate` is handed over.
//!
//! **Down.** A message is mapped to its local topic and acknowledged when the gateway has it safe.
//!
//! **No echo.** What came from an upstream is not sent back to it. On version 5 subscriptions have the no local option, and
//! messages name the gateways that they have passed through: none enters a gateway twice (see [`crate::message::via`]).

mod answers;
mod deadlines;
mod down;
mod exact;
mod opening;
mod outgoing;
mod rate;
mod suspect;
mod under_way;

use std::collections::VecDeque;

use bytes::Bytes;

pub(crate) use self::exact::EXACT_IDS;
use self::exact::{BegunExchanges, IN_USE, Spread};
use self::opening::SessionOpening;
use self::rate::Throttle;
use self::suspect::Suspicion;
use self::under_way::UnderWay;
#[cfg(test)]
pub(crate) use self::under_way::{BACKLOG_BYTES, UNDER_WAY_BYTES};
use super::lanes::Lane;
use super::rule::UpstreamRules;
use super::settings::UpstreamSettings;
use super::wire::{Broken, Link, OutMessage, Role};
use crate::journal::{Delivery, Position};
use crate::message::{Message, Origin, Qos, TopicFilter};
use crate::status::ledger::{Counts, DropReason, LedgerOutcome};

/// Connections that a message may end before it is set aside.
pub(crate) const STRIKES: u32 = 3;
/// An upstream that has messages to answer to and answers to none for this long is taken for dead.
pub(crate) const ANSWER_TIMEOUT_MS: u64 = 60_000;

/// Refusals that do not concern the message: packet identifier in use, quota exceeded.
const TRANSIENT: [u8; 2] = [IN_USE, 0x97];
/// [MQTT-5 3.14.2.1]
const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 60_000;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionAction {
    /// Hand this to the connection.
    Publish(OutMessage),
    /// The upstream has this message of a lane, by its ordinal, under this packet id: when that is safe here, it may know.
    Record(Lane, u64, u16),
    /// The upstream may forget this packet id.
    Release(u16),
    /// The journal may forget this message.
    Settle(Lane, Position, LedgerOutcome),
    /// Read the journal again from the oldest unsettled message on.
    Rewind,
    /// Subscribe to these, in one packet.
    Subscribe(Vec<(TopicFilter, Qos)>),
    /// Unsubscribe from these.
    Unsubscribe(Vec<TopicFilter>),
    /// The upstream has deleted its retained message on this remote topic.
    Deleted(String),
    /// End the connection: the upstream does not answer.
    Break,
}

/// A message that came down, ready to be published here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inbound {
    /// Local topic.
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    /// Retain flag.
    pub(crate) retain: bool,
    /// MQTT 5 properties, encoded.
    pub(crate) properties: Vec<u8>,
    /// Message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// What to acknowledge afterwards; 0: nothing.
    pub(crate) packet_id: u16,
    /// It came at QoS 2.
    pub(crate) is_exact: bool,
}

impl Inbound {
    /// Bytes that it takes.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }
}

/// Where a message in flight came from.
#[derive(Clone, Debug)]
struct SentFrom {
    lane: Lane,
    role: Role,
    position: Position,
    ordinal: u64,
    /// It may have been sent before.
    resent: bool,
    /// At QoS 2, and in the session that the upstream has of us.
    is_begun: bool,
    message: Message,
}

#[derive(Debug)]
struct SentMessage {
    /// `None`: a message of our own, such as the status.
    source: Option<SentFrom>,
    handed_over: u64,
    packet_id: Option<u16>,
    outcome: Option<LedgerOutcome>,
    /// The remote topic whose retained message it deletes.
    deletes: Option<String>,
    /// Answered, and to be sent again later.
    again: bool,
    /// Not sent: others go first, to see whether they get through.
    held: bool,
    /// Sent with the retain flag.
    retain: bool,
    /// The status.
    is_status: bool,
    /// Sent at QoS 2.
    is_exact: bool,
    /// The upstream has it, at QoS 2.
    is_recorded: bool,
    /// And PUBREL has left.
    is_released: bool,
}

impl SentMessage {
    fn new(source: Option<SentFrom>, now: u64) -> SentMessage {
        SentMessage {
            source,
            handed_over: now,
            packet_id: None,
            outcome: None,
            deletes: None,
            again: false,
            held: false,
            retain: false,
            is_status: false,
            is_exact: false,
            is_recorded: false,
            is_released: false,
        }
    }

    fn with(mut self, out: &OutMessage, now: u64) -> SentMessage {
        self.deletes = (out.retain && out.payload.is_empty()).then(|| out.topic.clone());
        (self.retain, self.handed_over) = (out.retain, now);
        (self.is_exact, self.is_recorded, self.is_released) = (out.qos == Qos::ExactlyOnce, false, false);
        self
    }

    fn is_unanswered(&self) -> bool {
        self.outcome.is_none() && !self.held && !self.again
    }
}

/// The upstream takes nothing at the moment.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// Until then, once everything under way is answered.
    until: Option<u64>,
    times: u32,
}

/// The state of the conversation.
#[derive(Debug)]
pub(crate) struct UpstreamSession {
    name: String,
    origin: Origin,
    announcer: Origin,
    rules: UpstreamRules,
    max_inflight: u16,
    status_topic: Option<String>,
    link: Option<Link>,
    in_flight: VecDeque<SentMessage>,
    /// Those of them that are held back.
    held: usize,
    under_way: UnderWay,
    spread: Spread,
    begun: BegunExchanges,
    last_answer: u64,
    suspicion: Suspicion,
    opening: SessionOpening,
    throttle: Throttle,
    /// The upstream does not take the retain flag.
    retain_refused: bool,
    /// It has acknowledged a message of the journal on this connection.
    got_through: bool,
    pause: Option<Pause>,
    /// Pauses in a row.
    pauses: u32,
    /// A message that is not from the journal was to come again.
    own_put_off: bool,
    counts: Counts,
    /// What every connection begins with is not logged once more.
    is_quiet: bool,
}

impl UpstreamSession {
    /// A conversation that has not begun.
    pub(crate) fn new(rules: UpstreamRules, settings: &UpstreamSettings) -> UpstreamSession {
        UpstreamSession {
            name: settings.name.clone(),
            origin: Origin::upstream(&settings.name),
            announcer: Origin::announcer(),
            rules,
            max_inflight: settings.max_inflight,
            status_topic: settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned()),
            link: None,
            in_flight: VecDeque::new(),
            held: 0,
            under_way: UnderWay::default(),
            spread: Spread::default(),
            begun: BegunExchanges::default(),
            last_answer: 0,
            suspicion: Suspicion::default(),
            opening: SessionOpening::default(),
            throttle: Throttle::new(settings.rate),
            retain_refused: false,
            got_through: false,
            pause: None,
            pauses: 0,
            own_put_off: false,
            counts: Counts::default(),
            is_quiet: false,
        }
    }

    /// Whether what the next connection begins with is logged.
    pub(crate) fn set_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// What is not about rules holds from the next connection on, at the latest.
    pub(crate) fn set_settings(&mut self, settings: &UpstreamSettings) {
        self.max_inflight = settings.max_inflight;
        self.throttle.set_rate(settings.rate);
        self.status_topic = settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned());
    }

    /// Whether messages go up at QoS 2.
    pub(crate) fn is_exact(&self) -> bool {
        self.rules.is_exact()
    }

    /// Whether messages go up or come down at QoS 2.
    pub(crate) fn has_exact(&self) -> bool {
        self.rules.is_exact() || self.rules.subscriptions().iter().any(|(_, qos)| *qos == Qos::ExactlyOnce)
    }

    /// Messages handed over and not settled.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Those of them that are not from the journal.
    pub(crate) fn own_in_flight(&self) -> usize {
        self.in_flight.iter().filter(|message| message.source.is_none()).count()
    }

    /// Whether one of them was not taken, since this was asked last.
    pub(crate) fn take_own_put_off(&mut self) -> bool {
        std::mem::take(&mut self.own_put_off)
    }

    /// Whether the upstream does not take the retain flag.
    pub(crate) fn is_retain_refused(&self) -> bool {
        self.retain_refused
    }

    /// The upstream has accepted a connection.
    pub(crate) fn connected(&mut self, link: Link, now: u64) -> Vec<SessionAction> {
        self.link = Some(link);
        let mut actions = Vec::new();
        self.resume_exchanges(link.session_present, &mut actions);
        self.suspicion.connected();
        self.got_through = false;
        self.open(now, &mut actions);
        actions
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self, why: &Broken, now: u64) -> Vec<SessionAction> {
        self.link = None;
        let mut actions = Vec::new();
        match why {
            Broken::Dismissed(RETAIN_NOT_SUPPORTED, _) => self.refuse_retain("reason code 0x9A"),
            Broken::Closed | Broken::Dismissed(..) if !self.opening_ended(now) => self.suspect(&mut actions),
            _ => {}
        }
        self.interrupt_exchanges();
        self.in_flight.clear();
        (self.held, self.under_way) = (0, UnderWay::default());
        // what was to come again does so on the next connection
        self.pause = self.pause.filter(|pause| pause.until.is_some());
        actions.push(SessionAction::Rewind);
        actions
    }

    /// Whether something that was sent is suspected of ending connections.
    pub(crate) fn blames(&self) -> bool {
        self.suspicion.blames() || self.opening.blames()
    }

    /// Whether a message was acknowledged on the last connection.
    pub(crate) fn got_through(&self) -> bool {
        self.got_through
    }

    /// Whether the next message may be handed over.
    pub(crate) fn has_room(&self, role: Role) -> bool {
        self.room(role) > 0
    }

    /// Messages that may be handed over, as things stand before the next one.
    pub(crate) fn room(&self, role: Role) -> usize {
        let Some(link) = self.link.filter(|_| self.pause.is_none()) else { return 0 };
        if self.opening.is_waiting() || self.throttle.is_closed() || self.is_out_of_ids() {
            return 0;
        }
        if self.is_cautious() {
            return usize::from(!self.in_flight.iter().any(SentMessage::is_unanswered));
        }
        let window = usize::from(self.max_inflight.min(link.receive_maximum).max(1));
        let window = match role {
            _ if self.under_way.is_enough(role) && !self.in_flight.is_empty() => 0,
            Role::Live => window,
            Role::Backlog => window - if window > 1 { (window / 8).max(1) } else { 0 },
        };
        window.saturating_sub(self.in_flight.len())
    }

    /// Whether messages go one at a time.
    fn is_cautious(&self) -> bool {
        self.held > 0 || self.suspicion.is_active()
    }

    /// A message of ours that is not in the journal. Only to be called while there is room.
    pub(crate) fn own(&mut self, out: OutMessage, now: u64) -> Vec<SessionAction> {
        self.in_flight.push_back(SentMessage::new(None, now).with(&out, now));
        self.throttle.count(now);
        vec![SessionAction::Publish(out)]
    }

    /// The journal has this message; `is_current`: if it has the retain flag, it is the retained one of its topic here. Only
    /// to be called while there is room.
    pub(crate) fn delivery(
        &mut self,
        (lane, role): (Lane, Role),
        delivery: Delivery,
        is_current: bool,
        now: u64,
    ) -> Vec<SessionAction> {
        let Delivery { position, ordinal, message, resent, released } = delivery;
        let mut actions = Vec::new();
        let before = self.begin_exchange(lane, ordinal, &mut actions);
        let is_begun = before.is_begun;
        // what comes again on the same connection has been answered to
        let resent = is_begun || (resent || before.is_possible) && before.is_first;
        let source = SentFrom { lane, role, position, ordinal, resent, is_begun, message };
        if released {
            self.hand_over_recorded(source, now, &mut actions);
            return actions;
        }
        if self.is_held_back(lane, position, &source.message) {
            self.hold_back(source, now);
            return actions;
        }
        let in_flight = SentMessage::new(Some(source), now);
        self.hand_over(in_flight, usize::MAX, is_current, now, &mut actions);
        actions
    }

    /// Settles what has ended, up to the first message that has not; while messages go one at a time, all that has ended.
    fn settle(&mut self, actions: &mut Vec<SessionAction>) {
        let mut at = 0;
        while let Some(message) = self.in_flight.get(at) {
            match message.outcome {
                Some(outcome) => {
                    if let Some(source) = self.in_flight.remove(at).and_then(|message| message.source) {
                        self.end(source, outcome, actions);
                    }
                }
                None if self.is_cautious() => at += 1,
                None => break,
            }
        }
        if self.is_out_of_ids() {
            self.look_at_spread();
        }
        if self.held == 0 {
            self.suspicion.settle();
        }
    }

    /// A message has ended.
    fn end(&mut self, source: SentFrom, outcome: LedgerOutcome, actions: &mut Vec<SessionAction>) {
        self.under_way.end(&source);
        let SentFrom { lane, position, message, .. } = source;
        self.suspicion.past(lane, position);
        let why = match outcome {
            LedgerOutcome::Dropped(DropReason::Refused) => "the upstream refuses it",
            LedgerOutcome::Dropped(DropReason::TooLarge) => "it is larger than the upstream takes",
            LedgerOutcome::Dropped(DropReason::Loop) => "it has passed through too many gateways: is there a loop?",
            _ => "",
        };
        if let LedgerOutcome::Dropped(reason) = outcome
            && !why.is_empty()
        {
            self.counts.add_loss(&self.name, reason, message.view().topic(), why);
        }
        actions.push(SessionAction::Settle(lane, position, outcome));
    }
}

#[cfg(test)]
mod tests;
