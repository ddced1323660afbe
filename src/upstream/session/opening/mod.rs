//! The opening of a connection: subscriptions and the status, which are usually sent before any message.
//!
//! An upstream may close the connection because of one of these packets, for example by a policy or a limit. As long as one
//! is unanswered, it is suspected before any message. On the next connection messages go first, so that forwarding does not
//! wait for what is suspected, and then the parts follow one at a time ([`turn`]): each alone, when everything before it is
//! answered, those that have ended connections last. A packet that ends the connection twice while it is the only
//! unanswered one is left out: for a minute at first, because the upstream may be restarting, and then ever longer, up to
//! an hour. One at which the connection goes silent, so that nothing is answered any more, is left out at once, but only for
//! a minute at first, because the line may be the reason. After that time it is sent on the connection that there is.
//!
//! If a message may be the reason as well, because it was not answered either or is at QoS 0, nothing is blamed, and on the
//! next connection the parts go before the messages ([`ended`]).
//!
//! That a part is the reason is proved only if the upstream has answered something on the same connection before it: an
//! upstream that hangs, or is being started, accepts connections and answers nothing whatever is sent. Without that proof the
//! part comes back with the first answer to anything, and a ping asks for one.
//!
//! A subscription that is refused, or not answered for a minute although the connection lives, is reported once
//! ([`super::granted`]), and asked for again after an hour, with every connection, and when rules or settings change.

mod ended;
mod entries;
mod turn;

use std::collections::VecDeque;

use tracing::{debug, warn};

use self::entries::{OpeningEntries, OpeningStep};
use self::turn::OpeningTurn;
#[cfg(test)]
pub(super) use self::turn::{ANSWER_MS, TURN_MS};
use super::granted::SubscriptionFate;
use super::{ANSWER_TIMEOUT_MS, SessionAction, UpstreamSession};
use crate::message::{Qos, TopicFilter};
use crate::upstream::wire::RetainedWanted;

/// The most filters in one packet: AWS IoT Core closes the connection if there are more.
pub(crate) const FILTERS: usize = 8;
/// How long a subscription that is refused or not answered is left alone, in milliseconds.
const ASK_AGAIN_MS: u64 = 3_600_000;
/// The reason code "unspecified error" [MQTT-5 3.9.3].
const UNSPECIFIED: u8 = 0x80;

/// Subscriptions of one packet. They stay here until the answer comes.
#[derive(Clone, Debug)]
struct AskedFilters {
    /// The number of the packet on this connection.
    number: u32,
    filters: Vec<TopicFilter>,
    at: u64,
    patience: AskedPatience,
    /// Whether the upstream has answered something else since.
    others_answered: bool,
    purpose: AskedFor,
}

/// A filter that was refused or not answered on this connection.
#[derive(Clone, Debug)]
struct FilterAgain {
    filter: TopicFilter,
    due: u64,
    /// Whether nothing else was answered either, so that it is asked for again with the first answer.
    is_doubtful: bool,
}

/// What a SUBSCRIBE is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedFor {
    /// A rule asks for it.
    Rule,
    /// What is retained there is read.
    Reading,
}

/// What still depends on an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskedPatience {
    /// If the connection ends, these may be the reason.
    Suspected,
    /// Its absence is not reported yet.
    Unreported,
    Nothing,
}

/// The progress of the opening.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionOpening {
    /// Whether the parts are sent one after the other.
    cautious: bool,
    /// Whether each filter has its own packet.
    single: bool,
    /// The parts that are not sent yet on this connection.
    queue: VecDeque<OpeningStep>,
    /// The subscriptions that are sent and not answered.
    unanswered: VecDeque<AskedFilters>,
    /// The number of subscription packets on this connection.
    asked: u32,
    /// Whether it was said that the upstream answers what it was not asked.
    is_unasked_said: bool,
    /// The filters that were refused or not answered on this connection.
    again: Vec<FilterAgain>,
    /// Whether the upstream has answered anything on this connection but CONNECT.
    is_alive: bool,
    /// The filters that could not be read.
    unread: Vec<TopicFilter>,
    status_unanswered: bool,
    /// What is done at present, while the parts are sent one after the other.
    turn: Option<OpeningTurn>,
    /// Whether the parts go before messages on this connection.
    goes_first: bool,
    /// Whether the last connection may have ended because of a part or of a message.
    is_unsure: bool,
    /// Whether a message at QoS 0 was sent after the last part that was answered.
    has_unconfirmed: bool,
    /// The part whose answer did not come in time, if nothing else was answered since.
    overdue: Option<OpeningStep>,
    /// The parts that were left out on this connection.
    left_out: Vec<OpeningStep>,
    /// What is known of the parts that have ended connections.
    entries: OpeningEntries,
    /// Whether the status is sent without the retain flag, to see whether the flag ends connections.
    status_without_flag: bool,
}

impl SessionOpening {
    /// Whether messages must wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.turn.is_some_and(OpeningTurn::holds_messages)
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        let left_out = self.left_out.iter().filter_map(|what| self.entries.left_out_until(what));
        let turn = self.turn.map(OpeningTurn::until);
        let next = turn.or_else(|| left_out.chain(self.again.iter().map(|again| again.due)).min());
        let unreported = self.unanswered.iter().filter(|asked| asked.patience != AskedPatience::Nothing);
        next.into_iter().chain(unreported.map(|asked| asked.at + ANSWER_TIMEOUT_MS)).min()
    }

    /// Whether a part of the opening is suspected.
    pub(crate) fn blames(&self) -> bool {
        self.cautious || !self.entries.is_empty()
    }

    /// The unanswered part, if there is only one.
    fn alone(&self) -> Option<OpeningStep> {
        let mut suspected = self.suspected().flat_map(|asked| &asked.filters);
        match (suspected.next(), suspected.next(), self.status_unanswered) {
            (None, None, true) => Some(OpeningStep::Status),
            (Some(filter), None, false) => Some(OpeningStep::Filter(filter.clone())),
            _ => None,
        }
    }

    fn suspected(&self) -> impl Iterator<Item = &AskedFilters> {
        self.unanswered.iter().filter(|asked| asked.patience == AskedPatience::Suspected)
    }

    fn is_answered(&self) -> bool {
        self.suspected().next().is_none() && !self.status_unanswered
    }

    /// Resets the progress after the end of the connection.
    fn clear(&mut self) {
        self.queue.clear();
        self.unanswered.clear();
        self.unread.clear();
        (self.status_unanswered, self.turn, self.overdue) = (false, None, None);
        (self.has_unconfirmed, self.is_alive, self.asked) = (false, false, 0);
        self.left_out.clear();
        self.again.clear();
    }

    /// Forgets what was left out, because rules or settings have changed.
    pub(crate) fn forget(&mut self) {
        (self.single, self.status_without_flag) = (false, false);
        self.entries.clear();
        self.left_out.clear();
        self.again.clear();
    }

    /// Whether a filter was left out on this connection, refused or not answered.
    pub(crate) fn has_left_out(&self, filter: &TopicFilter) -> bool {
        self.left_out.contains(&OpeningStep::Filter(filter.clone()))
            || self.again.iter().any(|again| again.filter == *filter)
    }

    /// The filters that were left out on this connection.
    pub(super) fn left_out_filters(&self) -> impl Iterator<Item = &TopicFilter> {
        self.left_out.iter().filter_map(|what| match what {
            OpeningStep::Filter(filter) => Some(filter),
            OpeningStep::Status => None,
        })
    }

    /// Whether the status was left out on this connection.
    pub(crate) fn has_left_out_status(&self) -> bool {
        self.left_out.contains(&OpeningStep::Status)
    }

    /// Records a SUBSCRIBE that is sent. If the connection ends at one that only reads, no rule is to blame.
    pub(super) fn asks(&mut self, filters: Vec<TopicFilter>, purpose: AskedFor, now: u64) {
        let patience = if purpose == AskedFor::Rule { AskedPatience::Suspected } else { AskedPatience::Nothing };
        let number = self.asked;
        self.unanswered.push_back(AskedFilters { number, filters, at: now, patience, others_answered: false, purpose });
        self.asked += 1;
    }

    /// Whether all parts are answered, or given up.
    pub(super) fn has_ended(&self) -> bool {
        let is_given_up = |asked: &AskedFilters| asked.patience == AskedPatience::Nothing;
        self.turn.is_none() && self.queue.is_empty() && self.unanswered.iter().all(is_given_up)
    }

    pub(super) fn unanswered_readings(&self) -> usize {
        self.unanswered.iter().filter(|asked| asked.purpose == AskedFor::Reading).count()
    }

    pub(super) fn take_unread(&mut self) -> Vec<TopicFilter> {
        std::mem::take(&mut self.unread)
    }

    /// Asks for a filter again later. `is_doubtful` tells that the upstream has answered nothing else meanwhile.
    fn ask_later(&mut self, filter: &TopicFilter, is_doubtful: bool, now: u64) {
        let due = now + ASK_AGAIN_MS;
        match self.again.iter_mut().find(|again| again.filter == *filter) {
            Some(again) => (again.due, again.is_doubtful) = (due, is_doubtful),
            None => self.again.push(FilterAgain { filter: filter.clone(), due, is_doubtful }),
        }
    }
}

impl UpstreamSession {
    /// Starts the opening of a new connection.
    pub(super) fn open(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let was_waiting = self.is_opening();
        self.opening.goes_first = std::mem::take(&mut self.opening.is_unsure) || was_waiting;
        self.opening.clear();
        self.learned.is_news = false;
        let subscriptions = self.rules.subscriptions();
        self.opening.left_out = self.opening.entries.left_out(now);
        self.opening.cautious |= !self.opening.entries.is_empty();
        if !self.opening.entries.is_empty() {
            // the answer tells whether it is alive, before the parts that are suspected
            actions.push(SessionAction::Ping);
        }
        if self.opening.cautious {
            let filters = subscriptions.into_iter().map(|(filter, _)| OpeningStep::Filter(filter));
            let status = self.status_topic.is_some().then_some(OpeningStep::Status);
            let entries = &self.opening.entries;
            let parts = filters.chain(status).filter(|what| !entries.is_left_out(what, now));
            self.opening.queue = parts.collect();
            // those that have ended connections follow the others, and a status at QoS 0, which has no answer, follows all
            let has_no_answer = self.link.is_some_and(|link| link.max_qos == Qos::AtMostOnce);
            let is_last = |what: &OpeningStep| has_no_answer && *what == OpeningStep::Status;
            self.opening.queue.make_contiguous().sort_by_key(|what| (is_last(what), entries.strikes(what)));
            self.begin_turn(now, actions);
            return;
        }
        self.subscribe(subscriptions, now, actions);
        if self.opening.entries.is_left_out(&OpeningStep::Status, now) || self.status_topic.is_none() {
            return;
        }
        if self.is_freed_first() {
            // the upstream may have no room for a message before it has freed what it has from before
            self.opening.queue.push_back(OpeningStep::Status);
            // also if the last connection ended before its turn came
            self.opening.goes_first = false;
            self.begin_turn(now, actions);
        } else {
            self.say_status(now, actions);
        }
    }

    /// Subscribes, with a few filters in each packet.
    pub(super) fn subscribe(&mut self, wanted: Vec<(TopicFilter, Qos)>, now: u64, actions: &mut Vec<SessionAction>) {
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|(f, _)| !self.opening.entries.is_left_out(&OpeningStep::Filter(f.clone()), now))
            .collect();
        let most = if self.opening.single { 1 } else { FILTERS };
        for kind in [RetainedWanted::IfNew, RetainedWanted::None] {
            let of_kind: Vec<_> = wanted.iter().filter(|(f, _)| self.wanted_retained(f) == kind).cloned().collect();
            for part in of_kind.chunks(most) {
                let filters = part.iter().map(|(filter, _)| filter.clone()).collect();
                self.opening.asks(filters, AskedFor::Rule, now);
                actions.push(SessionAction::Subscribe(part.to_vec(), kind));
            }
        }
    }

    fn say_status(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let Some(mut status) = self.status("online") else { return };
        status.retain &= !self.opening.status_without_flag;
        self.opening.status_unanswered = status.qos != Qos::AtMostOnce;
        let mut message = super::SentMessage::new(None, now);
        (message.is_status, message.retain) = (true, status.retain);
        self.count_handed(&mut message);
        self.in_flight.push_back(message);
        actions.push(SessionAction::Publish(status));
    }

    /// Says the status once more on this connection, alone.
    pub(super) fn say_status_again(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.status_topic.is_some() && !self.opening.queue.contains(&OpeningStep::Status) {
            self.opening.queue.push_back(OpeningStep::Status);
        }
        if !self.opening.queue.is_empty() && self.opening.turn.is_none() {
            self.wait_for_answers(now, actions);
        }
    }

    /// Handles the time-outs of answers, and what was left out.
    pub(super) fn opening_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.turn_time(now, actions);
        self.report_unanswered(now);
        self.say_left_out(now, actions);
        self.ask_again(now, actions);
    }

    /// Reports subscriptions that have not been answered for long, although the connection lives.
    fn report_unanswered(&mut self, now: u64) {
        for at in 0..self.opening.unanswered.len() {
            let asked = &mut self.opening.unanswered[at];
            if asked.patience == AskedPatience::Nothing || asked.at + ANSWER_TIMEOUT_MS > now {
                continue;
            }
            asked.patience = AskedPatience::Nothing;
            let is_doubtful = !asked.others_answered;
            for filter in asked.filters.clone() {
                self.opening.ask_later(&filter, is_doubtful, now);
                self.say_fate(&filter, SubscriptionFate::Unanswered);
            }
        }
    }

    /// Asks again for what was refused or not answered on this connection, when its time has come.
    fn ask_again(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let is_due = self.opening.again.iter().any(|again| again.due <= now);
        if self.link.is_none() || self.opening.turn.is_some() || !is_due {
            return;
        }
        let subscriptions = self.rules.subscriptions();
        let is_wanted = |filter: &TopicFilter| subscriptions.iter().any(|(wanted, _)| wanted == filter);
        self.opening.again.retain(|again| is_wanted(&again.filter));
        let due = self.opening.again.iter_mut().filter(|again| again.due <= now);
        let due: Vec<TopicFilter> = due
            .map(|again| {
                again.due = now + ASK_AGAIN_MS;
                again.filter.clone()
            })
            .collect();
        self.subscribe(subscriptions.into_iter().filter(|(filter, _)| due.contains(filter)).collect(), now, actions);
    }

    /// Sends parts that were left out on this connection, when their time has come.
    fn say_left_out(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.link.is_none() || self.opening.turn.is_some() || self.opening.left_out.is_empty() {
            return;
        }
        let (left_out, due): (Vec<_>, Vec<_>) = std::mem::take(&mut self.opening.left_out)
            .into_iter()
            .partition(|what| self.opening.entries.is_left_out(what, now));
        self.opening.left_out = left_out;
        self.opening.queue.extend(due);
        if !self.opening.queue.is_empty() {
            self.wait_for_answers(now, actions);
        }
    }

    /// Records an answer of the upstream to a ping or to UNSUBSCRIBE. What was left out because it had answered nothing at
    /// all comes back.
    pub(crate) fn is_alive(&mut self, now: u64) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        if std::mem::replace(&mut self.opening.is_alive, true) {
            return actions;
        }
        for what in self.opening.entries.end_doubts() {
            if let Some(at) = self.opening.left_out.iter().position(|left_out| *left_out == what) {
                self.opening.left_out.remove(at);
                self.opening.queue.push_back(what);
            }
        }
        if !self.opening.queue.is_empty() && self.opening.turn.is_none() {
            self.wait_for_answers(now, &mut actions);
        }
        actions
    }

    /// Records that the upstream answers to what the session has sent, which it may not do although it answers pings. What
    /// it had not answered while it answered nothing else is asked for again.
    pub(super) fn others_answered(&mut self, now: u64) -> Vec<SessionAction> {
        let mut actions = self.is_alive(now);
        self.opening.unanswered.iter_mut().for_each(|asked| asked.others_answered = true);
        let doubtful = self.opening.again.iter_mut().filter(|again| again.is_doubtful);
        let mut is_any = false;
        for again in doubtful {
            (again.due, again.is_doubtful, is_any) = (now, false, true);
        }
        if is_any {
            self.ask_again(now, &mut actions);
        }
        actions
    }

    /// Handles an answer with the packet id of no subscription. It may be a late one to what was not waited for any more, and
    /// a second one changes nothing, so it does no harm.
    pub(crate) fn unasked(&mut self, packet_id: u16, now: u64) -> Vec<SessionAction> {
        if std::mem::replace(&mut self.opening.is_unasked_said, true) {
            debug!(upstream = self.name, packet_id, "the upstream answers a subscription that it was not asked for");
        } else {
            warn!(
                upstream = self.name,
                packet_id,
                "the upstream answers with a packet id that no subscription has: such answers are passed over"
            );
        }
        self.is_alive(now)
    }

    /// The number of the oldest unanswered subscription packet.
    #[cfg(test)]
    pub(super) fn oldest_asked(&self) -> Option<u32> {
        self.opening.unanswered.front().map(|asked| asked.number)
    }

    /// Processes the answer to the subscription packet with this number.
    pub(crate) fn subscribed(&mut self, number: u32, reasons: &[u8], now: u64) -> Vec<SessionAction> {
        let Some(at) = self.opening.unanswered.iter().position(|asked| asked.number == number) else {
            return Vec::new();
        };
        (self.opening.overdue, self.opening.has_unconfirmed) = (None, false);
        let asked = self.opening.unanswered.remove(at);
        let is_reading = asked.as_ref().is_some_and(|asked| asked.purpose == AskedFor::Reading);
        let filters = asked.map(|asked| asked.filters).unwrap_or_default();
        for (at, filter) in filters.iter().enumerate() {
            // a filter without a reason code is not granted
            let reason = reasons.get(at).copied().unwrap_or(UNSPECIFIED);
            if is_reading {
                self.opening.unread.extend(Some(filter).filter(|_| reason >= UNSPECIFIED).cloned());
                continue;
            }
            if reason < 0x80 {
                self.opening.again.retain(|again| again.filter != *filter);
                self.say_fate(filter, SubscriptionFate::Granted(reason));
            } else {
                self.opening.ask_later(filter, false, now);
                self.say_fate(filter, SubscriptionFate::Refused(reason));
            }
            self.opening.entries.acquit(&OpeningStep::Filter(filter.clone()));
        }
        let mut actions = self.others_answered(now);
        self.go_on(now, &mut actions);
        actions
    }

    /// Processes the answer to the status.
    pub(super) fn status_answered(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        (self.opening.status_unanswered, self.opening.has_unconfirmed) = (false, false);
        let is_proved = self.opening.entries.is_proved(&OpeningStep::Status);
        if !std::mem::take(&mut self.opening.status_without_flag) {
            self.opening.entries.acquit(&OpeningStep::Status);
        } else if is_proved {
            self.opening.entries.acquit(&OpeningStep::Status);
            self.refuse_retain("it closes the connection when it gets the flag", now);
        } else {
            // it had answered nothing before either, so only now it is known whether it takes the flag
            self.say_status_again(now, actions);
        }
        self.go_on(now, actions);
    }
}
