//! Finds out which message makes an upstream close the connection, if it is a message.
//!
//! MQTT 3.1.1 has no refusal: a broker that rejects a message closes the connection. But a broker that is being deployed, or
//! over its quota, closes it at every message. So after such an end messages are sent one at a time, and a message is set
//! aside only on evidence that it alone is the cause:
//!
//! - It was the only message in flight when the connection ended, [`STRIKES`] times, and the first time it was the first
//!   message of its connection. So the cause is not the number of messages on a connection.
//! - Between these times others were acknowledged. For this, a message that has ended a connection is held back on the next
//!   one until others after it are acknowledged, of another topic if there is one. If there are no others, nothing counts.
//! - If different messages end connections in turn, none of them is the cause: all are kept and tried again in order, more
//!   and more slowly.
//!
//! A message with the retain flag is first sent once without it. If that is acknowledged, and the same message with the flag
//! ends the connection again, the upstream does not accept the flag.

use tracing::warn;

use super::{STRIKES, SentMessage, SessionAction, UpstreamSession};
use crate::journal::Position;
use crate::message::Message;
use crate::status::ledger::{DropReason, LedgerOutcome};
use crate::upstream::lanes::Lane;

/// The most messages that may be held back.
const HELD: usize = 64;
/// The most messages that are remembered because they have ended connections.
const ENTRIES: usize = 64;

/// Whether the retain flag ends connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    /// It is not known yet.
    Unknown,
    /// The flag is left out the next time.
    LeftOut,
    /// Without the flag the message was acknowledged; now it is sent with the flag again.
    Proving,
    /// The flag makes no difference.
    Innocent,
}

/// A message that has ended a connection while it was the only one in flight.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    lane: Lane,
    position: Position,
    strikes: u32,
    /// Whether others were acknowledged since the last strike.
    others: bool,
    flag: Flag,
}

/// What may be sent before a suspected message on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Plan {
    /// Nothing; messages are sent in order.
    #[default]
    InOrder,
    /// This number of other messages, one after the other.
    Others(u32),
    /// A message of another topic.
    OtherTopic,
}

/// A message that was in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(crate) lane: Lane,
    pub(crate) position: Position,
    /// Whether it was sent with the retain flag.
    pub(crate) retain: bool,
}

/// The conclusion from the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SuspectVerdict {
    /// Nothing is proved yet.
    Open,
    /// This message is the cause.
    Guilty,
    /// The retain flag is the cause; the message has arrived without it.
    Flag,
    /// No message is the cause.
    Upstream,
}

/// What is known about messages that may end connections. Makes decisions without I/O.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    /// The positions up to which messages are sent one at a time, for each lane; `None` if the lane is not concerned.
    until: [Option<Position>; 2],
    /// The positions reached in the lanes.
    passed: [Position; 2],
    entries: Vec<Suspect>,
    plan: Plan,
    /// The number of connections in a row that ended at a single message, without any acknowledgement.
    failures: u32,
    /// The number of messages sent on this connection.
    sent: u32,
    said: bool,
}

impl Suspicion {
    /// Whether messages are sent one at a time.
    pub(crate) fn is_active(&self) -> bool {
        !self.entries.is_empty() || self.until.iter().any(Option::is_some)
    }

    /// Whether a message is suspected.
    pub(crate) fn blames(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Whether messages of this lane are sent one at a time.
    pub(crate) fn concerns(&self, lane: Lane) -> bool {
        self.until[lane.index()].is_some() || self.entries.iter().any(|entry| entry.lane == lane)
    }

    /// Handles a new connection.
    pub(crate) fn connected(&mut self) {
        self.sent = 0;
        let strikes = self.entries.iter().map(|entry| entry.strikes).max();
        let is_trying = self.entries.iter().any(|entry| matches!(entry.flag, Flag::LeftOut | Flag::Proving));
        self.plan = match (strikes, self.failures) {
            (None | Some(0), _) => Plan::InOrder,
            _ if is_trying => Plan::InOrder,
            // others were acknowledged since, so more of them are needed
            (Some(strikes), 0) => Plan::Others(if strikes > 1 { 4 } else { 1 }),
            (Some(strikes), 1) => Plan::Others(if strikes > 1 { 4 } else { 1 }),
            (_, failures) if failures % 8 == 0 => Plan::Others(1),
            (_, failures) if failures % 3 == 1 => Plan::OtherTopic,
            _ => Plan::InOrder,
        };
    }

    /// Whether this message must wait for later ones. `is_held` tells that a message of its topic waits.
    pub(crate) fn holds(&self, lane: Lane, position: Position, is_held: bool) -> bool {
        let is_known = self.entries.iter().any(|entry| (entry.lane, entry.position) == (lane, position));
        match self.plan {
            Plan::InOrder => false,
            Plan::Others(_) => is_known,
            Plan::OtherTopic => is_known || is_held,
        }
    }

    /// Whether held messages have waited long enough.
    pub(crate) fn releases(&self) -> bool {
        self.plan == Plan::InOrder
    }

    /// Goes back to the order of messages, because there is no other message to send before the held ones.
    pub(crate) fn in_order(&mut self) {
        self.plan = Plan::InOrder;
    }

    /// Whether a message is sent without its retain flag this time.
    pub(crate) fn leaves_out_flag(&self, lane: Lane, position: Position) -> bool {
        self.entry(lane, position).is_some_and(|entry| entry.flag == Flag::LeftOut)
    }

    pub(crate) fn sent(&mut self) {
        self.sent = self.sent.saturating_add(1);
    }

    fn entry(&self, lane: Lane, position: Position) -> Option<&Suspect> {
        self.entries.iter().find(|entry| (entry.lane, entry.position) == (lane, position))
    }

    /// Handles the end of a connection by the upstream with these messages unanswered. `alone` tells that nothing else was.
    pub(crate) fn ended(&mut self, unanswered: &[Seen], alone: bool) -> SuspectVerdict {
        for seen in unanswered {
            let until = &mut self.until[seen.lane.index()];
            *until = (*until).max(Some(seen.position));
        }
        let (Some(&Seen { lane, position, retain }), true) = (unanswered.first(), alone) else {
            return SuspectVerdict::Open;
        };
        self.failures += 1;
        let is_first = self.sent <= 1;
        let at = self.entries.iter().position(|entry| (entry.lane, entry.position) == (lane, position));
        let at = at.unwrap_or_else(|| {
            if self.entries.len() >= ENTRIES {
                self.entries.remove(0);
            }
            self.entries.push(Suspect { lane, position, strikes: 0, others: true, flag: Flag::Unknown });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[at];
        match entry.flag {
            Flag::Proving => {
                self.entries.remove(at);
                return SuspectVerdict::Flag;
            }
            Flag::LeftOut => entry.flag = Flag::Innocent,
            Flag::Unknown | Flag::Innocent => {
                if entry.others && (entry.strikes > 0 || is_first) {
                    entry.strikes += 1;
                    entry.others = false;
                }
                if entry.strikes > 0 && retain && entry.flag == Flag::Unknown {
                    entry.flag = Flag::LeftOut;
                }
                if entry.strikes >= STRIKES {
                    self.entries.remove(at);
                    return SuspectVerdict::Guilty;
                }
            }
        }
        let is_news = self.failures > 1 && self.entries.len() > 1 && !std::mem::replace(&mut self.said, true);
        if is_news { SuspectVerdict::Upstream } else { SuspectVerdict::Open }
    }

    /// Records an acknowledgement. Returns `false` if the message must be sent once more, with its retain flag.
    pub(crate) fn acked(&mut self, lane: Lane, position: Position) -> bool {
        (self.failures, self.said) = (0, false);
        let is_it = |entry: &Suspect| (entry.lane, entry.position) == (lane, position);
        self.entries.iter_mut().filter(|entry| !is_it(entry)).for_each(|entry| entry.others = true);
        if let Some(entry) = self.entries.iter_mut().find(|entry| is_it(entry))
            && entry.flag == Flag::LeftOut
        {
            entry.flag = Flag::Proving;
            return false;
        }
        self.plan = match self.plan {
            Plan::Others(more) if more > 1 => Plan::Others(more - 1),
            _ => Plan::InOrder,
        };
        true
    }

    /// Records that a message has ended, with whatever outcome.
    pub(crate) fn past(&mut self, lane: Lane, position: Position) {
        self.entries.retain(|entry| (entry.lane, entry.position) != (lane, position));
        let passed = &mut self.passed[lane.index()];
        *passed = (*passed).max(position);
    }

    /// Ends the suspicion of messages that have ended, because nothing is held back.
    pub(crate) fn settle(&mut self) {
        if self.entries.is_empty() {
            for (until, passed) in self.until.iter_mut().zip(&mut self.passed) {
                *until = until.filter(|until| *until > *passed);
                if until.is_none() {
                    *passed = Position(0);
                }
            }
        }
    }

    /// Ends the suspicion in this lane, because no message waits in it.
    pub(crate) fn acquit(&mut self, lane: Lane) {
        self.until[lane.index()] = None;
        self.entries.retain(|entry| entry.lane != lane);
    }
}

impl UpstreamSession {
    /// Handles the end of a connection by the upstream with a complete opening.
    pub(super) fn suspect(&mut self, actions: &mut Vec<SessionAction>) {
        let unanswered =
            |message: &&SentMessage| message.is_awaited() && message.packet_id.is_some() && !message.is_recorded;
        let under_way = self.in_flight.iter().filter(|message| message.is_awaited()).count();
        let sent: Vec<&SentMessage> = self.in_flight.iter().filter(unanswered).collect();
        let seen = sent.iter().filter_map(|message| {
            let source = message.source.as_ref()?;
            Some(Seen { lane: source.lane, position: source.position, retain: message.retain })
        });
        let seen: Vec<Seen> = seen.collect();
        let verdict = self.suspicion.ended(&seen, under_way == 1);
        let source = sent.iter().find_map(|message| message.source.clone());
        let Some(source) = source else { return };
        let upstream = &self.name;
        match verdict {
            SuspectVerdict::Open => {}
            SuspectVerdict::Guilty => {
                let why = "the upstream closes the connection whenever it gets this message, and takes others";
                self.counts.add_loss(upstream, DropReason::EndsConnection, source.message.view().topic(), why);
                self.suspicion.past(source.lane, source.position);
                let outcome = LedgerOutcome::Dropped(DropReason::EndsConnection);
                actions.push(SessionAction::Settle(source.lane, source.position, outcome));
            }
            SuspectVerdict::Flag => {
                self.refuse_retain("it closes the connection when it gets the flag");
                self.suspicion.past(source.lane, source.position);
                actions.push(SessionAction::Settle(source.lane, source.position, LedgerOutcome::Acked));
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

    /// Sends everything without the retain flag from now on.
    pub(super) fn refuse_retain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.retain_refused, true) {
            warn!(
                upstream = self.name,
                "the upstream does not take the retain flag ({why}): status, will and messages go without it from now \
                 on; retain = false on a rule says the same"
            );
        }
    }

    /// Whether messages of this lane must be sent before those of the other, one at a time, because one of them may make the
    /// upstream close connections.
    pub(crate) fn suspects(&self, lane: Lane) -> bool {
        self.suspicion.concerns(lane)
    }

    /// Ends the suspicion in this lane, because no message waits in it.
    pub(crate) fn acquit(&mut self, lane: Lane) {
        self.suspicion.acquit(lane);
    }

    /// Whether a message must wait until others are acknowledged.
    pub(super) fn is_held_back(&self, lane: Lane, position: Position, message: &Message) -> bool {
        if self.held == 0 {
            return self.suspicion.holds(lane, position, false);
        }
        let topic = message.view().topic();
        let held = self.in_flight.iter().filter(|message| message.held).filter_map(|held| held.source.as_ref());
        let (mut count, mut has_topic) = (0, false);
        for source in held {
            count += 1;
            has_topic |= source.message.view().topic() == topic;
        }
        count < HELD && self.suspicion.holds(lane, position, has_topic)
    }

    /// The message that was held back and is sent next.
    pub(crate) fn held(&self) -> Option<&Message> {
        if self.held == 0
            || self.link.is_none()
            || self.pause.is_some()
            || self.opening.is_waiting()
            || !self.suspicion.releases()
        {
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
        if self.held > 0 && !self.suspicion.releases() && !self.in_flight.iter().any(SentMessage::is_awaited) {
            self.suspicion.in_order();
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
