//! The opening of a connection: subscriptions and the status, which are sent before any message.
//!
//! An upstream may close the connection because of one of these packets, for example by a policy or a limit. As long as one
//! is unanswered, it is suspected before any message. On the next connection they are sent one after the other, each when
//! the previous one is answered. A packet that ends the connection twice while it is the only unanswered one is left out, and
//! forwarding continues: for a minute at first, because the upstream may be restarting, and then ever longer, up to an hour.
//! One at which the connection goes silent, so that nothing is answered any more, is left
//! out at once, but only for a minute at first, because the line may be the reason. After that time it is sent on the
//! connection that there is.
//!
//! A subscription that is refused, or not answered for a minute although the connection lives, is reported, and asked
//! for again after an hour, with every connection, and when rules or settings change.

use std::collections::VecDeque;

use tracing::{debug, info, warn};

use super::{ANSWER_TIMEOUT_MS, SessionAction, UpstreamSession};
use crate::message::{Qos, TopicFilter};

/// The most filters in one packet: AWS IoT Core closes the connection if there are more.
pub(crate) const FILTERS: usize = 8;
/// How long the opening waits for an answer before it continues, in milliseconds.
pub(crate) const ANSWER_MS: u64 = 10_000;
/// How long a packet is left out before it is tried again, in milliseconds.
const LEFT_OUT_MS: u64 = 3_600_000;
/// The same for the first time; it doubles each time.
const FIRST_MS: u64 = 60_000;
/// The reason code "unspecified error" [MQTT-5 3.9.3].
const UNSPECIFIED: u8 = 0x80;
/// The number of connections that a packet may end before it is left out.
const STRIKES: u32 = 2;

/// One part of the opening.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OpeningStep {
    Filter(TopicFilter),
    Status,
}

#[derive(Clone, Debug)]
struct OpeningEntry {
    what: OpeningStep,
    strikes: u32,
    /// The time until which it is left out.
    until: Option<u64>,
}

/// Subscriptions of one packet. They stay here until the answer comes, because answers come in the order of the packets.
#[derive(Clone, Debug)]
struct AskedFilters {
    filters: Vec<TopicFilter>,
    at: u64,
    patience: AskedPatience,
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
    queue: VecDeque<(OpeningStep, Qos)>,
    /// The subscriptions that are sent and not answered.
    unanswered: VecDeque<AskedFilters>,
    /// The filters that were refused or not answered on this connection, and when they are asked for again.
    again: Vec<(TopicFilter, u64)>,
    status_unanswered: bool,
    /// When the next part is sent although there is no answer.
    patience: Option<u64>,
    /// The part whose answer did not come in time, if nothing else was answered since.
    overdue: Option<OpeningStep>,
    /// The parts that were left out on this connection.
    left_out: Vec<OpeningStep>,
    entries: Vec<OpeningEntry>,
    /// Whether the status is sent without the retain flag, to see whether the flag ends connections.
    status_without_flag: bool,
    /// Whether the last connection ended while a single part was unanswered.
    has_found: bool,
}

/// How long a part is left out after it was so many times before, in milliseconds.
fn left_out_for(times: u32) -> u64 {
    (FIRST_MS << times.min(10)).min(LEFT_OUT_MS)
}

impl SessionOpening {
    /// Whether the last connection has shown which part may be the reason for its end.
    pub(super) fn has_found(&self) -> bool {
        self.has_found
    }

    /// Whether messages must wait.
    pub(crate) fn is_waiting(&self) -> bool {
        self.patience.is_some()
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        let left_out = self.left_out.iter().filter_map(|what| self.left_out_until(what));
        let next = self.patience.or_else(|| left_out.chain(self.again.iter().map(|(_, due)| *due)).min());
        let unreported = self.unanswered.iter().filter(|asked| asked.patience != AskedPatience::Nothing);
        next.into_iter().chain(unreported.map(|asked| asked.at + ANSWER_TIMEOUT_MS)).min()
    }

    fn left_out_until(&self, what: &OpeningStep) -> Option<u64> {
        self.entries.iter().find(|entry| entry.what == *what)?.until
    }

    fn is_left_out(&self, what: &OpeningStep, now: u64) -> bool {
        self.left_out_until(what).is_some_and(|until| now < until)
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
        (self.status_unanswered, self.patience, self.overdue) = (false, None, None);
        self.left_out.clear();
        self.again.clear();
    }

    fn strike(&mut self, what: OpeningStep, now: u64) -> u32 {
        let at = self.entries.iter().position(|entry| entry.what == what).unwrap_or_else(|| {
            self.entries.push(OpeningEntry { what, strikes: 0, until: None });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        entry.strikes += 1;
        if entry.strikes >= STRIKES {
            entry.until = Some(now + left_out_for(entry.strikes - STRIKES));
        }
        entry.strikes
    }

    /// Leaves out a part at which the connection went silent, and returns for how long.
    fn strike_silent(&mut self, what: OpeningStep, now: u64) -> u64 {
        let strikes = self.strike(what.clone(), now);
        let wait = left_out_for(strikes - 1);
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.what == what) {
            entry.until = Some(now + wait);
        }
        wait
    }

    fn acquit(&mut self, what: &OpeningStep) {
        self.entries.retain(|entry| entry.what != *what);
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
            || self.again.iter().any(|(known, _)| known == filter)
    }

    /// Asks for a filter again later. Returns whether that is new.
    fn ask_later(&mut self, filter: &TopicFilter, now: u64) -> bool {
        let known = self.again.iter_mut().find(|(known, _)| known == filter);
        let is_new = known.is_none();
        match known {
            Some((_, due)) => *due = now + LEFT_OUT_MS,
            None => self.again.push((filter.clone(), now + LEFT_OUT_MS)),
        }
        is_new
    }
}

impl UpstreamSession {
    /// Starts the opening of a new connection.
    pub(super) fn open(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.clear();
        self.opening.has_found = false;
        let subscriptions = self.rules.subscriptions();
        let known = self.opening.entries.iter().map(|entry| entry.what.clone());
        self.opening.left_out = known.filter(|what| self.opening.is_left_out(what, now)).collect();
        self.opening.cautious |= !self.opening.entries.is_empty();
        if self.opening.cautious {
            let filters = subscriptions.into_iter().map(|(filter, qos)| (OpeningStep::Filter(filter), qos));
            let status = self.status_topic.is_some().then_some((OpeningStep::Status, Qos::AtLeastOnce));
            self.opening.queue = filters.chain(status).collect();
            self.say_next(now, actions);
            return;
        }
        self.subscribe(subscriptions, now, actions);
        if !self.opening.is_left_out(&OpeningStep::Status, now) {
            self.say_status(now, actions);
        }
    }

    /// Subscribes, with a few filters in each packet.
    pub(super) fn subscribe(&mut self, wanted: Vec<(TopicFilter, Qos)>, now: u64, actions: &mut Vec<SessionAction>) {
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|(f, _)| !self.opening.is_left_out(&OpeningStep::Filter(f.clone()), now))
            .collect();
        for part in wanted.chunks(if self.opening.single { 1 } else { FILTERS }) {
            let filters = part.iter().map(|(filter, _)| filter.clone()).collect();
            let patience = AskedPatience::Suspected;
            self.opening.unanswered.push_back(AskedFilters { filters, at: now, patience });
            actions.push(SessionAction::Subscribe(part.to_vec()));
        }
    }

    fn say_status(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let Some(mut status) = self.status("online") else { return };
        status.retain &= !self.opening.status_without_flag;
        self.opening.status_unanswered = status.qos != Qos::AtMostOnce;
        let mut message = super::SentMessage::new(None, now);
        message.is_status = true;
        self.count_handed(&mut message);
        self.in_flight.push_back(message);
        actions.push(SessionAction::Publish(status));
    }

    /// Sends the next part, when the previous one is answered.
    fn say_next(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.patience = None;
        while let Some((what, qos)) = self.opening.queue.pop_front() {
            if self.opening.is_left_out(&what, now) {
                continue;
            }
            self.opening.patience = Some(now + ANSWER_MS);
            match what {
                OpeningStep::Filter(filter) => self.subscribe(vec![(filter, qos)], now, actions),
                OpeningStep::Status => self.say_status(now, actions),
            }
            return;
        }
        self.opening.cautious = false;
    }

    /// Goes on after an answer.
    fn go_on(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.patience.is_some() && self.opening.is_answered() {
            self.say_next(now, actions);
        }
    }

    /// Handles the time-out of an answer.
    pub(super) fn opening_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.opening.patience.is_some_and(|until| until <= now) {
            // the part has not ended the connection, and the others are sent too
            let alone = self.opening.alone();
            while self.opening.patience.is_some() {
                self.say_next(now, actions);
            }
            for asked in self.opening.unanswered.iter_mut().filter(|asked| asked.patience != AskedPatience::Nothing) {
                asked.patience = AskedPatience::Unreported;
            }
            self.opening.status_unanswered = false;
            self.opening.overdue = alone;
        }
        self.report_unanswered(now);
        self.say_left_out(now, actions);
        self.ask_again(now, actions);
    }

    /// Reports subscriptions that have not been answered for long, although the connection lives.
    fn report_unanswered(&mut self, now: u64) {
        let opening = &mut self.opening;
        for at in 0..opening.unanswered.len() {
            let asked = &mut opening.unanswered[at];
            if asked.patience == AskedPatience::Nothing || asked.at + ANSWER_TIMEOUT_MS > now {
                continue;
            }
            asked.patience = AskedPatience::Nothing;
            for filter in asked.filters.clone() {
                let (upstream, rule) = (&self.name, self.rules.place_of(&filter));
                if opening.ask_later(&filter, now) && !self.is_quiet {
                    warn!(
                        upstream, %filter, rule,
                        "the upstream does not answer to the subscription: nothing may come down by it"
                    );
                } else {
                    debug!(upstream, %filter, "the upstream does not answer to the subscription");
                }
            }
        }
    }

    /// Asks again for what was refused or not answered on this connection, when its time has come.
    fn ask_again(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let is_due = self.opening.again.iter().any(|(_, due)| *due <= now);
        if self.link.is_none() || self.opening.patience.is_some() || !is_due {
            return;
        }
        let subscriptions = self.rules.subscriptions();
        let is_wanted = |filter: &TopicFilter| subscriptions.iter().any(|(wanted, _)| wanted == filter);
        self.opening.again.retain(|(filter, _)| is_wanted(filter));
        let due = self.opening.again.iter_mut().filter(|(_, due)| *due <= now);
        let due: Vec<TopicFilter> = due
            .map(|(filter, due)| {
                *due = now + LEFT_OUT_MS;
                filter.clone()
            })
            .collect();
        self.subscribe(subscriptions.into_iter().filter(|(filter, _)| due.contains(filter)).collect(), now, actions);
    }

    /// Sends parts that were left out on this connection, when their time has come.
    fn say_left_out(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.link.is_none() || self.opening.patience.is_some() || self.opening.left_out.is_empty() {
            return;
        }
        let (left_out, due): (Vec<_>, Vec<_>) = std::mem::take(&mut self.opening.left_out)
            .into_iter()
            .partition(|what| self.opening.is_left_out(what, now));
        self.opening.left_out = left_out;
        for what in due {
            let subscriptions = self.rules.subscriptions();
            let qos = match &what {
                OpeningStep::Filter(filter) => {
                    subscriptions.iter().find(|(known, _)| known == filter).map(|(_, qos)| *qos)
                }
                OpeningStep::Status => self.status_topic.is_some().then_some(Qos::AtLeastOnce),
            };
            self.opening.queue.extend(qos.map(|qos| (what, qos)));
        }
        if !self.opening.queue.is_empty() {
            self.say_next(now, actions);
        }
    }

    /// Processes the answer to a subscription.
    pub(crate) fn subscribed(&mut self, reasons: &[u8], now: u64) -> Vec<SessionAction> {
        self.opening.overdue = None;
        let filters = self.opening.unanswered.pop_front().map(|asked| asked.filters).unwrap_or_default();
        for (at, filter) in filters.iter().enumerate() {
            // a filter without a reason code is not granted
            let reason = reasons.get(at).copied().unwrap_or(UNSPECIFIED);
            if reason < 0x80 {
                self.opening.again.retain(|(known, _)| known != filter);
                self.say_granted(filter, reason);
            } else {
                let is_new = self.opening.ask_later(filter, now);
                let (upstream, rule) = (&self.name, self.rules.place_of(filter));
                if is_new && !self.is_quiet {
                    warn!(
                        upstream, %filter, rule, reason,
                        "the upstream refuses the subscription: nothing comes down by it"
                    );
                } else {
                    debug!(upstream, %filter, reason, "the upstream refuses the subscription");
                }
            }
            self.opening.acquit(&OpeningStep::Filter(filter.clone()));
        }
        let mut actions = Vec::new();
        self.go_on(now, &mut actions);
        actions
    }

    /// Processes the answer to the status.
    pub(super) fn status_answered(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        self.opening.status_unanswered = false;
        self.opening.acquit(&OpeningStep::Status);
        if std::mem::take(&mut self.opening.status_without_flag) {
            self.refuse_retain("it closes the connection when it gets the flag");
        }
        self.go_on(now, actions);
    }

    /// Handles the end of a connection by the upstream, and returns whether the opening was incomplete.
    pub(super) fn opening_ended(&mut self, now: u64) -> bool {
        if self.opening.is_answered() {
            return false;
        }
        let alone = self.opening.alone().filter(|_| self.opening.patience.is_some());
        let upstream = &self.name;
        (self.opening.cautious, self.opening.single) = (true, true);
        match alone {
            None => {
                info!(upstream, "the upstream closed the connection before it had answered: one thing at a time now")
            }
            Some(what) => {
                self.opening.has_found = true;
                let strikes = self.opening.strike(what.clone(), now);
                match &what {
                    OpeningStep::Filter(filter) if strikes >= STRIKES && strikes.is_power_of_two() => {
                        let rule = self.rules.place_of(filter);
                        warn!(
                            upstream, %filter, rule,
                            "the upstream closes the connection when asked for this subscription: nothing comes down by \
                             it, and it is left out for a while, up to an hour"
                        );
                    }
                    OpeningStep::Status if strikes >= STRIKES => self.status_ended(),
                    _ => {}
                }
            }
        }
        true
    }

    /// Handles the end of a silent connection, and returns whether the opening may be the reason.
    pub(super) fn opening_silent(&mut self, now: u64) -> bool {
        let alone = self.opening.alone().filter(|_| self.opening.patience.is_some());
        let what = self.opening.overdue.take().or(alone);
        if self.got_through || (what.is_none() && self.opening.is_answered()) {
            return false;
        }
        let upstream = &self.name;
        (self.opening.cautious, self.opening.single) = (true, true);
        let Some(what) = what else {
            info!(upstream, "the upstream went silent before it had answered: one thing at a time now");
            return true;
        };
        self.put_off.suspect_path(now);
        let seconds = self.opening.strike_silent(what.clone(), now) / 1000;
        match &what {
            OpeningStep::Filter(filter) => warn!(
                upstream, %filter, rule = self.rules.place_of(filter), seconds,
                "the upstream goes silent when asked for this subscription: it is left out for a while, and nothing new is \
                 subscribed to by it meanwhile"
            ),
            OpeningStep::Status => warn!(
                upstream,
                topic = self.status_topic.as_deref().unwrap_or_default(),
                seconds,
                "the upstream goes silent when it gets status_topic: the status is left out for a while"
            ),
        }
        true
    }

    /// Records that the upstream answers messages, so that it is not silent because of the opening.
    pub(super) fn is_not_silent(&mut self) {
        self.opening.overdue = None;
    }

    /// Handles a status that has ended connections: first it is tried without the retain flag.
    fn status_ended(&mut self) {
        let (upstream, topic) = (&self.name, self.status_topic.as_deref().unwrap_or_default());
        let may_be_flag = !self.retain_refused && !self.opening.status_without_flag;
        if may_be_flag {
            self.opening.status_without_flag = true;
            self.opening.acquit(&OpeningStep::Status);
            // it gets one attempt
            self.opening.entries.push(OpeningEntry { what: OpeningStep::Status, strikes: STRIKES - 1, until: None });
            return;
        }
        self.opening.status_without_flag = false;
        warn!(
            upstream,
            topic,
            "the upstream closes the connection when it gets status_topic: the status is left out for a while, up \
             to an hour"
        );
    }
}
