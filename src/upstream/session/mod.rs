//! The conversation with one upstream, as a pure state machine: it takes events and returns actions.
//!
//! **Up.** Messages come from the journal in order and are handed to the connection in order. At most a window of them is
//! unanswered, counted from the oldest unanswered one. A message is settled in the journal when it and all before it have
//! ended: by the upstream's PUBACK, by being sent if QoS 0 is configured, by expiry, or by being set aside with a reason.
//! When the connection breaks, all unsettled messages are sent again on the next one, so the upstream sees duplicates of at
//! most one window.
//!
//! **Later.** Two refusals only mean that the upstream accepts nothing at the moment, so they set no message aside: quota
//! exceeded (0x97), and packet identifier in use (0x91), which shows that both sides count differently. When everything in
//! flight is answered, the upstream gets a pause, which becomes longer each time, and then the refused message and all after
//! it, in order, fewer at a time ([`quota`]). All other refusals are final [MQTT-5 3.4.2.1]: unspecified (0x80) and implementation specific (0x83) errors
//! mean that the upstream does not accept this message, without a sign that it ever will.
//!
//! **Live first.** If there are two lanes (see [`super::lanes`]), messages of the backlog leave an eighth of the window free
//! and have at most [`BACKLOG_BYTES`] in flight. So live messages go at once and do not wait behind the backlog on a slow
//! line. Nothing is sent while [`UNDER_WAY_BYTES`] are in flight.
//!
//! **Set aside.** A message that the upstream refuses, or that is too large for it, does not hold up the others. MQTT 3.1.1
//! has no refusal: a broker that rejects a packet closes the connection. The reason is searched for in this order: first the
//! packets before any message ([`opening`]), then the retain flag, then single messages. A message is set aside only if
//! others are acknowledged ([`suspect`]). Failures of the network do not count. No more than `rate` is sent.
//!
//! **Denied.** If the upstream closes the connection at every message of a topic, or above a size, or just after it has answered one
//! of a topic ([`after_answer`]), these messages wait, and one of them is tried now and then ([`denied`]).
//!
//! **Put off.** A message that does not get through although others do lets others go first and is tried again later
//! ([`put_off`]).
//!
//! **Down.** A message from the upstream is mapped to its local topic, and acknowledged when what must be kept of it is
//! on disk.
//!
//! **No echo.** A message from an upstream is not sent back to it. With version 5 subscriptions have the no local option,
//! and messages name the gateways that they have passed through: none enters a gateway twice (see [`crate::message::via`]).

mod action;
mod after_answer;
mod answers;
mod coincidence;
mod deadlines;
mod denied;
mod down;
mod exact;
mod granted;
mod learned;
mod limits;
mod mirrored;
mod opening;
mod outgoing;
mod own;
mod packet_limits;
mod put_off;
mod quota;
mod rate;
mod refusals;
mod sent;
mod settling;
mod sizes;
mod suspect;
mod suspected;
mod suspicion;
mod unconfirmed;
mod under_way;

use std::collections::VecDeque;

pub(crate) use self::action::SessionAction;
use self::after_answer::AfterAnswer;
use self::coincidence::Coincidences;
use self::denied::DeniedTopics;
pub(crate) use self::down::{Inbound, InboundLoss, NotTaken};
pub(crate) use self::exact::EXACT_IDS;
use self::exact::{BegunExchanges, EXACT_UNSAID, IN_USE, Spread};
use self::granted::Granted;
use self::learned::Learned;
use self::limits::LearnedLimits;
pub(crate) use self::opening::FILTERS;
use self::opening::SessionOpening;
use self::own::NotAccepted;
use self::packet_limits::PacketLimits;
#[cfg(test)]
pub(crate) use self::packet_limits::SMALLER_MS;
use self::put_off::PutOff;
use self::quota::UpstreamQuota;
use self::rate::Throttle;
use self::refusals::RememberedRefusal;
use self::sent::{SentFrom, SentMessage};
use self::suspicion::Suspicion;
use self::unconfirmed::Unconfirmed;
use self::under_way::UnderWay;
#[cfg(test)]
pub(crate) use self::under_way::{BACKLOG_BYTES, UNDER_WAY_BYTES};
use super::lanes::Lane;
use super::rule::UpstreamRules;
use super::settings::UpstreamSettings;
use super::wire::{Broken, Link, OutMessage, Role};
use crate::journal::{Delivery, Position};
use crate::message::{Message, Origin, Qos};
use crate::status::ledger::{Counts, DropReason, LedgerOutcome};

/// The number of connections that a message may end before it is set aside.
pub(crate) const STRIKES: u32 = 3;
/// An upstream that owes answers and sends none for this long counts as dead, in milliseconds.
pub(crate) const ANSWER_TIMEOUT_MS: u64 = 60_000;
/// The most messages of a lane that are settled before one that is passed over. After a crash they may be sent once more.
const MOST_PASSED: u64 = 500;

/// Refusals that do not concern the message: packet identifier in use, quota exceeded.
const TRANSIENT: [u8; 2] = [IN_USE, 0x97];
/// The reason code "retain not supported" [MQTT-5 3.14.2.1].
const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
/// The reason code for a QoS that the upstream does not take.
const QOS_NOT_SUPPORTED: u8 = 0x9b;
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 60_000;

/// A pause, in which the upstream accepts nothing.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// The end of the pause, set when everything in flight is answered.
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
    keep_alive_ms: u64,
    status_topic: Option<String>,
    link: Option<Link>,
    in_flight: VecDeque<SentMessage>,
    /// The number of messages in flight that are held back.
    held: usize,
    under_way: UnderWay,
    spread: Spread,
    begun: BegunExchanges,
    last_answer: u64,
    /// While a slow line still carries what the answers come after: until when they are waited for.
    line_until: u64,
    suspicion: Suspicion,
    unconfirmed: Unconfirmed,
    coincidences: Coincidences,
    denied: DeniedTopics,
    after_answer: AfterAnswer,
    opening: SessionOpening,
    learned: Learned,
    limits: LearnedLimits,
    packet_limits: PacketLimits,
    granted: Granted,
    throttle: Throttle,
    /// Whether the upstream does not accept the retain flag.
    retain_refused: RememberedRefusal,
    /// Whether it takes the retain flag again, so that all retained messages are to be sent.
    wants_retained: bool,
    /// Whether the upstream does not accept QoS 2.
    exact_refused: RememberedRefusal,
    /// Whether the upstream ends connections when its retained messages are read.
    reading_refused: bool,
    /// The reason code with which the status was refused.
    status_refusal: Option<u8>,
    /// Whether the upstream has acknowledged a message of the journal on this connection.
    got_through: bool,
    /// Whether the upstream has received a message at QoS 2 on this connection.
    has_recorded: bool,
    pause: Option<Pause>,
    /// The number of pauses in a row.
    pauses: u32,
    quota: UpstreamQuota,
    /// Whether a message that is not from the journal must be sent again.
    own_put_off: bool,
    not_accepted: NotAccepted,
    /// Whether the upstream has answered a message before an earlier one on this connection.
    is_out_of_order: bool,
    /// Whether a message has been passed over, which is logged once, until such a message is answered.
    is_passing: bool,
    put_off: PutOff,
    /// The number of messages handed over on this connection, and that of the oldest one that was passed over.
    handed: u64,
    oldest_passed: Option<u64>,
    /// The number of messages in flight that are put off.
    waiting: usize,
    /// Whether nothing is handed over until all is written, because then a message that was put off is sent.
    lets_out: bool,
    /// Whether the session itself ends the connection, to get a new one.
    renews: bool,
    /// Whether the end of the connection has another reason than what the session has sent.
    is_explained: bool,
    counts: Counts,
    /// Messages that are about to be put onto a shelf.
    unmeant: Vec<(Lane, Position, Message)>,
    /// Whether the packets with which every connection begins are not logged again.
    is_quiet: bool,
}

impl UpstreamSession {
    /// A conversation before the first connection.
    pub(crate) fn new(rules: UpstreamRules, settings: &UpstreamSettings) -> UpstreamSession {
        let mut packet_limits = PacketLimits::default();
        packet_limits.set_settings(settings);
        UpstreamSession {
            name: settings.name.clone(),
            origin: Origin::upstream(&settings.name),
            announcer: Origin::announcer(),
            rules,
            max_inflight: settings.max_inflight,
            keep_alive_ms: settings.keep_alive.as_millis() as u64,
            status_topic: settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned()),
            link: None,
            in_flight: VecDeque::new(),
            held: 0,
            under_way: UnderWay::default(),
            spread: Spread::default(),
            begun: BegunExchanges::default(),
            last_answer: 0,
            line_until: 0,
            suspicion: Suspicion::default(),
            unconfirmed: Unconfirmed::default(),
            coincidences: Coincidences::default(),
            denied: DeniedTopics::default(),
            after_answer: AfterAnswer::default(),
            opening: SessionOpening::default(),
            learned: Learned::default(),
            limits: LearnedLimits::default(),
            packet_limits,
            granted: Granted::default(),
            throttle: Throttle::new(settings.rate),
            retain_refused: RememberedRefusal::default(),
            wants_retained: false,
            exact_refused: RememberedRefusal::default(),
            reading_refused: false,
            status_refusal: None,
            got_through: false,
            has_recorded: false,
            pause: None,
            pauses: 0,
            quota: UpstreamQuota::default(),
            own_put_off: false,
            not_accepted: NotAccepted::default(),
            is_out_of_order: false,
            is_passing: false,
            put_off: PutOff::default(),
            handed: 0,
            oldest_passed: None,
            waiting: 0,
            lets_out: false,
            renews: false,
            is_explained: false,
            counts: Counts::default(),
            unmeant: Vec::new(),
            is_quiet: false,
        }
    }

    /// Sets whether the beginning of the next connection is logged.
    pub(crate) fn set_quiet(&mut self, is_quiet: bool) {
        self.is_quiet = is_quiet;
    }

    /// Applies new settings. Except for rules, they take effect with the next connection at the latest.
    pub(crate) fn set_settings(&mut self, settings: &UpstreamSettings) {
        self.max_inflight = settings.max_inflight;
        self.keep_alive_ms = settings.keep_alive.as_millis() as u64;
        self.throttle.set_rate(settings.rate);
        self.packet_limits.set_settings(settings);
        self.status_topic = settings.status_topic.as_ref().map(|topic| topic.as_str().to_owned());
    }

    /// Whether messages are sent at QoS 2.
    pub(crate) fn is_exact(&self) -> bool {
        self.rules.is_exact()
    }

    /// Whether messages are sent or received at QoS 2.
    pub(crate) fn has_exact(&self) -> bool {
        self.rules.is_exact() || self.rules.subscriptions().iter().any(|(_, qos)| *qos == Qos::ExactlyOnce)
    }

    /// The number of messages that are handed over and not settled.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.iter().filter(|message| message.gone_to.is_none()).count()
    }

    /// Whether the upstream does not accept the retain flag.
    pub(crate) fn is_retain_refused(&self) -> bool {
        self.retain_refused.is_in_force()
    }

    /// Handles a connection that the upstream has accepted.
    pub(crate) fn connected(&mut self, link: Link, now: u64) -> Vec<SessionAction> {
        self.end_refusals(now);
        let link = self.taken(link);
        self.link = Some(link);
        self.learned.connected(self.keep_alive_ms, now);
        self.packet_limits.connected(link.max_packet_size, now);
        let mut actions = Vec::new();
        self.resume_exchanges(link.session_present, &mut actions);
        self.suspicion.connected(now);
        self.denied.connected();
        self.after_answer.connected(now);
        self.unconfirmed.connected();
        self.not_accepted.connected();
        (self.got_through, self.has_recorded, self.is_out_of_order) = (false, false, false);
        (self.renews, self.lets_out) = (false, false);
        (self.handed, self.oldest_passed, self.line_until) = (0, None, 0);
        self.put_off.connected();
        self.say_limits(link);
        self.open(now, &mut actions);
        actions
    }

    /// Records that the end of the connection, which follows, has another reason than what the session has sent.
    pub(crate) fn explain(&mut self) {
        self.is_explained = true;
    }

    /// Handles the end of the connection.
    pub(crate) fn disconnected(&mut self, why: &Broken, now: u64) -> Vec<SessionAction> {
        self.link = None;
        self.packet_limits.disconnected();
        let mut actions = Vec::new();
        let is_explained = std::mem::take(&mut self.is_explained);
        match why {
            Broken::Dismissed(RETAIN_NOT_SUPPORTED, _) => self.refuse_retain("reason code 0x9A", now),
            Broken::Dismissed(QOS_NOT_SUPPORTED, _) => self.refuse_exact("reason code 0x9B", now),
            _ if is_explained => {}
            // what frees packet ids is sent before all the rest
            Broken::Closed | Broken::Dismissed(..) if self.ended_while_freeing() => {}
            Broken::Closed | Broken::Dismissed(..) if self.ended_after_answer(now, &mut actions) => {}
            Broken::Closed | Broken::Dismissed(..)
                if !self.opening_ended(now) && !self.ended_at_release(now) && !self.is_coincidence() =>
            {
                self.unconfirmed.ended(now);
                self.suspect(now, &mut actions);
            }
            Broken::Ended(reason, _) if self.limit_exceeded(*reason, now) => {}
            why if why.may_be_asked_for() => drop(self.opening_ended(now)),
            Broken::Silent if !self.opening_silent(now) => self.went_silent(now),
            _ => {}
        }
        self.interrupt_exchanges();
        self.in_flight.clear();
        self.unmeant.clear();
        (self.held, self.waiting, self.under_way) = (0, 0, UnderWay::default());
        // a message that was to be sent again is sent on the next connection
        self.pause = self.pause.filter(|pause| pause.until.is_some());
        actions.push(SessionAction::Rewind);
        actions
    }

    /// Whether a message that was sent is suspected of ending connections.
    pub(crate) fn blames(&self) -> bool {
        self.suspicion.blames()
            || self.opening.blames()
            || self.put_off.blames()
            || self.denied.blames()
            || self.after_answer.blames()
    }

    /// Whether the session itself ends the connection, to get a new one.
    pub(crate) fn is_renewing(&self) -> bool {
        self.renews
    }

    /// Whether a message was acknowledged on the last connection.
    pub(crate) fn got_through(&self) -> bool {
        self.got_through
    }

    /// Whether the next message may be handed over.
    pub(crate) fn has_room(&self, role: Role) -> bool {
        self.room(role) > 0
    }

    /// The number of messages that may be handed over at present.
    pub(crate) fn room(&self, role: Role) -> usize {
        let Some(link) = self.link.filter(|_| self.pause.is_none()) else { return 0 };
        if self.opening.is_waiting() || self.throttle.is_closed() || self.is_out_of_ids() || self.lets_out {
            return 0;
        }
        if self.is_quiet_for_topic() || self.after_answer.is_waiting() {
            return 0;
        }
        if self.is_cautious() {
            return usize::from(!self.in_flight.iter().any(SentMessage::is_awaited));
        }
        let window = usize::from(self.quota.window(self.limits.window(self.most_in_flight(link))));
        let window = match role {
            _ if self.under_way.is_enough(role) && self.in_flight.len() > self.waiting => 0,
            Role::Live => window,
            Role::Backlog => window - if window > 1 { (window / 8).max(1) } else { 0 },
        };
        window.saturating_sub(self.in_flight.len() - self.waiting)
    }

    /// The most messages in flight that both sides allow. Before version 5 an upstream cannot say how many it allows.
    fn most_in_flight(&self, link: Link) -> u16 {
        let unsaid = if link.version.is_v5() || !self.is_exact_there() { u16::MAX } else { EXACT_UNSAID };
        self.max_inflight.min(link.receive_maximum).min(unsaid).max(1)
    }

    /// Whether messages are sent one at a time.
    fn is_cautious(&self) -> bool {
        self.held > 0 || self.suspicion.is_active() || self.denied.is_trying() || self.after_answer.is_doubting()
    }

    /// Sends a message of the journal. `is_current` tells, for a message with the retain flag, that it is the retained
    /// message of its topic here. Must be called only while there is room.
    pub(crate) fn delivery(
        &mut self,
        (lane, role): (Lane, Role),
        delivery: Delivery,
        is_current: bool,
        now: u64,
    ) -> Vec<SessionAction> {
        let Delivery { position, ordinal, message, resent, released, .. } = delivery;
        let mut actions = Vec::new();
        self.forget_missing(lane, position);
        let before = self.begin_exchange(lane, ordinal, &mut actions);
        let (is_begun, is_possible) = (before.is_begun, before.is_possible && before.is_first);
        // a message that comes again on the same connection has been answered
        let resent = is_begun || (resent || before.is_possible) && before.is_first;
        let source = SentFrom { lane, role, position, ordinal, resent, is_possible, is_begun, message };
        if self.has_arrived(lane, position) {
            let mut arrived = SentMessage::new(Some(source), now);
            arrived.outcome = Some(LedgerOutcome::Acked);
            self.in_flight.push_back(arrived);
            self.settle(&mut actions);
            return actions;
        }
        let Some(source) = self.take_denied(source, released, now, &mut actions) else { return actions };
        if self.puts_off(&source, now) {
            self.put_off(source, released, now);
            return actions;
        }
        if self.waits_for_others(&source, released) {
            self.hold_back(source, released, now);
            return actions;
        }
        if released {
            self.hand_over_recorded(source, now, &mut actions);
            return actions;
        }
        if self.is_held_back(lane, position, &source.message) {
            self.hold_back(source, released, now);
            return actions;
        }
        let in_flight = SentMessage::new(Some(source), now);
        self.hand_over(in_flight, usize::MAX, is_current, now, &mut actions);
        actions
    }
}

#[cfg(test)]
mod tests;
