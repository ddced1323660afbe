//! Changes the client's subscriptions.
//!
//! A SUBSCRIBE or UNSUBSCRIBE may have thousands of filters. They are processed in portions, between which others have their
//! turns, and what the portions cost is charged to the client. The packets after it wait until it is answered.

use bytes::BytesMut;

use super::super::core::portions::{FILTERS_AT_ONCE, STEPS_OF_A_FILTER, TIME_AT_ONCE};
use super::super::core::session_route;
use super::super::replies::repeated;
use super::super::session::{Subscription, split_share};
use super::{BrokerConnection, ConnectionEnd};
use crate::access::authenticate::Denied;
use crate::exchange::filters::MAX_LEVELS;
use crate::exchange::meter::Walk;
use crate::exchange::receiving::Reservation;
use crate::exchange::subscribers::SubscriptionOptions;
use crate::journal::{Full, Position};
use crate::message::{Qos, check_filter, levels};
use crate::mqtt::{Error, Reason, RetainHandling, Subscribe, SubscribeFilter, Unsubscribe, Version, write};

/// Most subscriptions of one session.
const MAX_FILTERS: usize = 10_000;
/// Most filters in one SUBSCRIBE or UNSUBSCRIBE. Each has a byte in the answer, which stays in memory until the client reads
/// it.
const MAX_AT_ONCE: usize = 65_535;
/// Most bytes of all topic filters of one session.
const MAX_FILTER_BYTES: usize = 2 << 20;
/// A SUBSCRIBE or UNSUBSCRIBE that is being processed.
pub(super) struct FilterChange {
    packet_id: u16,
    /// `None` for an UNSUBSCRIBE.
    subscribe: Option<SubscribeTerms>,
    /// The filters, one after another, and where each ends.
    filters: String,
    ends: Vec<usize>,
    /// Where the next filter begins.
    begin: usize,
    /// The answers so far.
    reasons: Vec<Reason>,
    /// The position to wait for before the client may rely on the changes so far.
    kept: Option<Position>,
    /// The memory of the packet, if it is large.
    _memory: Option<Reservation>,
}

struct SubscribeTerms {
    id: Option<u32>,
    /// For each filter, what the packet says of it.
    each: Vec<FilterTerms>,
}

/// How the client wants the messages of a filter.
#[derive(Clone, Copy)]
struct FilterTerms {
    qos: Qos,
    no_local: bool,
    retain_as_published: bool,
    retain_handling: RetainHandling,
}

impl FilterChange {
    fn new<'a>(packet_id: u16, filters: impl Iterator<Item = &'a str>, memory: Option<Reservation>) -> FilterChange {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for filter in filters {
            text.push_str(filter);
            ends.push(text.len());
        }
        FilterChange {
            packet_id,
            subscribe: None,
            filters: text,
            ends,
            begin: 0,
            reasons: Vec::new(),
            kept: None,
            _memory: memory,
        }
    }

    /// Whether its answer is a SUBACK.
    pub(super) fn is_subscribe(&self) -> bool {
        self.subscribe.is_some()
    }
}

impl BrokerConnection {
    pub(super) fn subscribe(
        &mut self,
        subscribe: &Subscribe<'_>,
        memory: Option<Reservation>,
    ) -> Result<(), ConnectionEnd> {
        if subscribe.filters.len() > MAX_AT_ONCE {
            return Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED));
        }
        let each = subscribe.filters.iter().zip(repeated(&subscribe.filters)).map(|(wanted, is_repeated)| {
            let SubscribeFilter { qos, no_local, retain_as_published, retain_handling, .. } = *wanted;
            let retain_handling = if is_repeated { RetainHandling::Never } else { retain_handling };
            FilterTerms { qos, no_local, retain_as_published, retain_handling }
        });
        let terms = SubscribeTerms { id: subscribe.id, each: each.collect() };
        let filters = subscribe.filters.iter().map(|wanted| wanted.filter);
        let change = FilterChange::new(subscribe.packet_id, filters, memory);
        self.change(FilterChange { subscribe: Some(terms), ..change })
    }

    pub(super) fn unsubscribe(
        &mut self,
        unsubscribe: &Unsubscribe<'_>,
        memory: Option<Reservation>,
    ) -> Result<(), ConnectionEnd> {
        if unsubscribe.filters.len() > MAX_AT_ONCE {
            return Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED));
        }
        self.change(FilterChange::new(unsubscribe.packet_id, unsubscribe.filters.iter().copied(), memory))
    }

    /// Continues with a packet of which only a part was processed. Returns whether other packets may follow.
    pub(super) fn continue_change(&mut self) -> Result<bool, ConnectionEnd> {
        if self.change.is_some() {
            self.held_until = self.turn().max(self.core.card_turn(&self.session, &self.holder));
        }
        if self.held_until.is_none()
            && let Some(change) = self.change.take()
        {
            self.change(change)?;
        }
        Ok(self.change.is_none())
    }

    /// Processes the next filters of a packet, and answers it after the last.
    fn change(&mut self, mut change: FilterChange) -> Result<(), ConnectionEnd> {
        let first = change.reasons.len();
        let mut walk = if first == 0 { Walk::default() } else { Walk::beyond_what_is_free() };
        let mut found = 0;
        let next = change.ends[first..].iter().take(FILTERS_AT_ONCE);
        let begun = std::time::Instant::now();
        for (at, end) in (first..).zip(next) {
            if at > first && begun.elapsed() >= TIME_AT_ONCE {
                break;
            }
            let filter = &change.filters[std::mem::replace(&mut change.begin, *end)..*end];
            walk.visits(STEPS_OF_A_FILTER);
            let (reason, kept) = match &change.subscribe {
                Some(SubscribeTerms { id, each }) => {
                    match self.subscribe_one(filter, each[at], *id, (&mut walk, &mut found))? {
                        Ok(kept) => (Reason(each[at].qos as u8), kept),
                        Err(reason) => (reason, None),
                    }
                }
                None => {
                    let reason = self.unsubscribe_one(filter);
                    (reason, self.core.keep_subscription(&mut self.session, filter, None).unwrap_or_default())
                }
            };
            change.kept = change.kept.max(kept);
            // MQTT 3.1 has no refusal: the client gets a normal answer, and no messages
            let silent = change.subscribe.as_ref().filter(|_| self.version == Version::V31 && reason.is_error());
            change.reasons.push(silent.map_or(reason, |terms| Reason(terms.each[at].qos as u8)));
        }
        self.core.ingress.meter().charge(self.origin, walk.cost(found));
        if change.reasons.len() < change.ends.len() {
            self.has_more = true;
            self.change = Some(change);
            return Ok(());
        }
        let mut answer = BytesMut::new();
        if change.is_subscribe() {
            write::suback(&mut answer, self.version, change.packet_id, &change.reasons);
        } else {
            write::unsuback(&mut answer, self.version, change.packet_id, &change.reasons);
        }
        self.answer_when_kept(answer, change.kept)
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

    /// Adds a subscription. Returns the position to wait for before the client may rely on it, or why it is refused.
    fn subscribe_one(
        &mut self,
        wanted: &str,
        terms: FilterTerms,
        id: Option<u32>,
        search: (&mut Walk, &mut usize),
    ) -> Result<Result<Option<Position>, Reason>, ConnectionEnd> {
        let Some((shared, filter)) = checked(wanted) else {
            return match self.version.is_v5() {
                true => Ok(Err(Reason::TOPIC_FILTER_INVALID)),
                false => Err(ConnectionEnd::Broken(Error::Malformed("invalid topic filter"))), // [MQTT-4.7.1-2], [MQTT-4.8.0-1]
            };
        };
        if !self.permissions.may_subscribe(filter) {
            self.core.access.denied(&self.identity, self.address, Denied::Subscribe(filter));
            return Ok(Err(Reason::NOT_AUTHORIZED));
        }
        let known = self.session.subscriptions.contains_key(wanted);
        let count = self.session.subscriptions.len();
        if !known && (count >= MAX_FILTERS || !self.session.has_room_for(wanted)) {
            self.core.access.quota(&self.identity, self.address, "subscriptions");
            return Ok(Err(Reason::QUOTA_EXCEEDED));
        }
        let filter_bytes = self.session.filter_bytes + wanted.len();
        if !known && (filter_bytes > MAX_FILTER_BYTES || !self.core.can_keep(&self.session, wanted)) {
            self.core.access.quota(&self.identity, self.address, "bytes of topic filters");
            return Ok(Err(Reason::QUOTA_EXCEEDED));
        }
        let options = SubscriptionOptions {
            qos: terms.qos,
            // a bridge like mosquitto's expects both [mosquitto.conf, bridge_attempt_unsubscribe ff.]
            no_local: terms.no_local || self.is_bridge,
            retain_as_published: terms.retain_as_published || self.is_bridge,
            id,
        };
        if shared && !self.core.may_keep_group(&self.session, (wanted, filter), options) {
            self.core.access.quota(&self.identity, self.address, "shared subscriptions for which messages are kept");
            return Ok(Err(Reason::QUOTA_EXCEEDED));
        }
        let kept = match self.core.keep_subscription(&mut self.session, wanted, Some(&options)) {
            Ok(kept) => kept,
            Err(Full) => return Ok(Err(Reason::QUOTA_EXCEEDED)),
        };
        if shared {
            self.subscribe_shared(wanted, filter, options);
        } else {
            self.subscribe_own(filter, options, terms.retain_handling, search);
        }
        Ok(Ok(kept))
    }

    fn subscribe_shared(&mut self, shared: &str, filter: &str, options: SubscriptionOptions) {
        let old = self.session.subscriptions.get(shared).map(|known| known.options);
        let group = self.core.join_group(&self.session, shared, filter, old, options);
        self.session.subscribe(shared, Subscription { options, group: Some(group.clone()) });
        group.join((&self.subscriber, &self.permissions), options, self.session.consumer());
    }

    fn subscribe_own(
        &mut self,
        filter: &str,
        options: SubscriptionOptions,
        retained: RetainHandling,
        (walk, count): (&mut Walk, &mut usize),
    ) {
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
        let (_, found) = core.ingress.subscribe_routed(filter, &self.subscriber, options, routes, (wanted, walk));
        if is_wanted {
            *count += found.found.len();
            self.session.retained.add(filter, options, found);
        }
    }

    fn unsubscribe_one(&mut self, filter: &str) -> Reason {
        self.session.retained.forget(filter);
        let Some(removed) = self.session.unsubscribe(filter) else { return Reason::NO_SUBSCRIPTION_EXISTED };
        match &removed.group {
            Some(group) => {
                group.leave(&self.subscriber);
            }
            None => {
                self.core.ingress.unsubscribe(filter, &self.subscriber);
            }
        }
        self.core.drop_subscription(&self.session, filter, &removed);
        Reason::SUCCESS
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
