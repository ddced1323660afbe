//! Finds out which message makes an upstream close the connection, if it is a message.
//!
//! MQTT 3.1.1 has no refusal: a broker that rejects a message closes the connection. But a broker that is being deployed, or
//! over its quota, closes it at every message. So after such an end messages are sent one at a time, and a message is set
//! aside only on evidence that it alone is the cause:
//!
//! - It was the only message in flight when the connection ended, [`STRIKES`] times, and the first and the last time it was
//!   the first message of its connection, the last time after at least 5 s without acknowledgements. So the cause is neither the
//!   number of messages on a connection nor that of the last seconds.
//! - Between these times others were acknowledged. For this, a message that has ended a connection is held back on the next
//!   one with its topic until others are acknowledged, of the same topic only if there is no other. If there are no others, nothing counts.
//! - If two messages of one topic end connections, others are acknowledged in between, and none of the topic is, the topic
//!   is the cause: see [`super::denied`].
//! - If different messages end connections in turn, none of them is the cause: all are kept and tried again in order, more
//!   and more slowly. Each begins anew when another one ends a connection, and its last attempt counts only after at least
//!   as long a time without acknowledgements as the upstream has needed before it took others: it may take so many messages
//!   in some time, and close the connection at any beyond them.
//! - If messages that have ended connections are acknowledged later, twice as many attempts are needed for an hour.
//!
//! A message with the retain flag is first sent once without it. If that is acknowledged, and the same message with the flag
//! ends the connection again, the upstream does not accept the flag. A message at QoS 2 is first sent once at QoS 1, and then
//! it is done. If this happens to two messages and none arrives at QoS 2 in between, the upstream does not accept
//! QoS 2.

use std::time::Duration;

use tracing::warn;

use super::put_off::hash;
use super::sizes::size_there;
use super::suspected::Seen;
use super::suspicion::SuspectVerdict;
use super::{SentMessage, SessionAction, UpstreamSession};
use crate::journal::Position;
use crate::message::Message;
use crate::status::ledger::LedgerOutcome;
use crate::upstream::lanes::Lane;

/// The most messages that may be held back, and their bytes.
const HELD: usize = 256;
const HELD_BYTES: usize = 1 << 20;

impl UpstreamSession {
    /// Handles the end of a connection by the upstream with a complete opening.
    pub(super) fn suspect(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let unanswered =
            |message: &&SentMessage| message.is_awaited() && message.packet_id.is_some() && !message.is_recorded;
        let under_way = self.in_flight.iter().filter(|message| message.is_awaited()).count();
        let sent: Vec<&SentMessage> = self.in_flight.iter().filter(unanswered).collect();
        let seen = sent.iter().filter_map(|message| {
            let source = message.source.as_ref()?;
            let (retain, exact) = (message.retain, message.is_exact);
            let (topic, size) = (hash(source.message.view().topic()), size_there(&source.message));
            Some(Seen { lane: source.lane, position: source.position, topic, size, retain, exact })
        });
        let seen: Vec<Seen> = seen.collect();
        let source = sent.iter().find_map(|message| message.source.clone());
        if under_way == 1 && source.as_ref().is_some_and(|source| self.ended_at_topic(source, now, actions)) {
            return;
        }
        self.suspicion.set_denied(self.has_denied());
        let topic = seen.first().map(|seen| seen.topic).filter(|_| self.denied.has_room());
        let topic_verdict = topic.map(|topic| self.denied.has_verdict(topic));
        let causes = (topic_verdict, self.denied_size());
        let verdict = self.suspicion.ended(&seen, under_way == 1, causes, now);
        if under_way == 1
            && let Some(seen) = seen.first()
        {
            self.denied.another_ended(seen.topic);
        }
        let Some(source) = source else { return };
        let upstream = &self.name;
        match verdict {
            SuspectVerdict::Open => {}
            SuspectVerdict::Guilty => {
                self.learned.is_news = true;
                self.set_aside(&source, actions);
                if !self.suspicion.has_acked_topic() {
                    self.denied.add_verdict(source.message.view().topic());
                }
            }
            SuspectVerdict::Topic(size) => self.deny(&source.message, size, now),
            SuspectVerdict::Size(size) => self.deny_size(size, now),
            SuspectVerdict::Flag => {
                self.refuse_retain("it closes the connection when it gets the flag", now);
                self.suspicion.past(source.lane, source.position);
                actions.push(SessionAction::Settle(source.lane, source.position, LedgerOutcome::Acked));
            }
            SuspectVerdict::Upstream if !self.suspicion.has_acked() => {
                warn!(
                    upstream,
                    "the upstream closes the connection whatever message it gets, and has acknowledged none so far: all are \
                     kept, and tried again ever more slowly; if it takes only QoS 0, such as mosquitto with max_qos 0, the \
                     rules need qos = 0"
                );
            }
            SuspectVerdict::Upstream => {
                warn!(
                    upstream,
                    "the upstream closes the connection whatever message it gets: all are kept, and tried again ever \
                     more slowly"
                );
            }
        }
    }

    /// Whether it has become clearer what the upstream ends connections for, or one message seems to be the reason, so that
    /// it can be connected to soon.
    pub(crate) fn is_cause_clear(&self, now: u64) -> bool {
        self.learned.is_news || self.blames() && self.got_through() && self.suspicion.is_clear(now)
    }

    /// How long the next connection must wait, so that the last attempt with the message that seems to be the reason counts.
    pub(crate) fn quiet_left(&self, now: u64) -> Duration {
        Duration::from_millis(self.suspicion.quiet_left(now))
    }

    /// Whether the upstream has received a message on this connection, also at QoS 2.
    pub(crate) fn has_received(&self) -> bool {
        self.got_through || self.has_recorded
    }

    /// Whether messages of this lane must be sent before those of the other, one at a time, because one of them may make the
    /// upstream close connections.
    pub(crate) fn suspects(&self, lane: Lane) -> bool {
        self.suspicion.concerns(lane) || self.denied.waits_for(lane)
    }

    /// Ends the suspicion in this lane, because no message waits in it.
    pub(crate) fn acquit(&mut self, lane: Lane) {
        self.suspicion.acquit(lane);
    }

    /// Whether a message must wait until others are acknowledged.
    pub(super) fn is_held_back(&self, lane: Lane, position: Position, message: &Message) -> bool {
        let topic = || hash(message.view().topic());
        if self.held == 0 {
            return self.suspicion.holds(lane, position, topic);
        }
        let held = self.in_flight.iter().filter(|message| message.held).filter_map(|held| held.source.as_ref());
        let (count, bytes) = held.fold((0, 0), |(count, bytes), held| (count + 1, bytes + held.message.size()));
        let has_room = count < HELD && bytes + message.size() <= HELD_BYTES;
        has_room && self.suspicion.holds(lane, position, topic)
    }

    /// The message that was held back and is sent next.
    pub(crate) fn held(&self) -> Option<&Message> {
        let is_waiting = self.opening.is_waiting() || self.after_answer.is_waiting();
        if self.held == 0 || self.link.is_none() || self.pause.is_some() || is_waiting {
            return None;
        }
        if self.in_flight.iter().any(SentMessage::is_awaited) {
            return None;
        }
        let held = &self.in_flight[self.next_held()?];
        held.source.as_ref().map(|source| &source.message)
    }

    /// Returns whether a held message can be sent now, because there is no other message to send.
    pub(crate) fn nothing_else(&mut self) -> bool {
        if self.held > 0 && !self.in_flight.iter().any(SentMessage::is_awaited) {
            while self.next_held().is_none() && !self.suspicion.releases() {
                self.suspicion.nothing_else();
            }
        }
        self.look_for_trial();
        self.held().is_some()
    }

    /// Sends the message of [`UpstreamSession::held`]; `is_current` as for [`UpstreamSession::delivery`].
    pub(crate) fn send_held(&mut self, is_current: bool, now: u64) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        let Some(at) = self.next_held() else { return actions };
        let Some(mut message) = self.in_flight.remove(at) else { return actions };
        message.held = false;
        self.held = self.held.saturating_sub(1);
        match message.source.take() {
            Some(source) if message.is_released => self.hand_over_recorded(source, now, &mut actions),
            source => {
                message.source = source;
                self.hand_over(message, at, is_current, now, &mut actions);
            }
        }
        actions
    }
}
