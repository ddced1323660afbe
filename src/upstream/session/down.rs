//! Messages from the upstream, and the subscriptions for them.

use bytes::Bytes;
use tracing::debug;

use super::{SessionAction, UpstreamSession};
use crate::exchange::filters::MAX_LEVELS;
use crate::message::{Qos, TopicFilter, levels};
use crate::status::ledger::DropReason;
use crate::upstream::properties;
use crate::upstream::rule::UpstreamRules;
use crate::upstream::wire::InMessage;

/// A message from the upstream, ready to be published here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inbound {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// The MQTT 5 properties, encoded.
    pub(crate) properties: Vec<u8>,
    /// The message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// The packet id to acknowledge after the publication; 0 for none.
    pub(crate) packet_id: u16,
    /// Whether it was sent at QoS 2.
    pub(crate) is_exact: bool,
}

/// Why a message from the upstream is not published here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// No rule asks for it, or it has been here.
    Unwanted,
    /// The gateway has the same, or a newer one.
    Known,
    /// A limit of the gateway excludes this message of a topic.
    Lost(InboundLoss, String),
}

/// A limit that excludes a message from the upstream, which is lost data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InboundLoss {
    /// The topic has too many levels.
    Levels,
    /// The local topic is longer than MQTT allows.
    LongTopic,
    /// It has passed through too many gateways.
    Loop,
    /// It is larger than the gateway accepts.
    TooLarge,
    /// There is no room for it, and at QoS 0 it does not come again.
    NoRoom,
    /// The same at another QoS, with a session that the upstream forgets.
    NoRoomInCleanSession,
    /// The journal never has room for a message of this size.
    NeverFits,
}

impl InboundLoss {
    /// The number of kinds.
    pub(crate) const COUNT: usize = 7;

    /// The limit in words.
    pub(crate) fn words(self) -> &'static str {
        match self {
            InboundLoss::Levels => "its topic has more than 200 levels",
            InboundLoss::LongTopic => "its topic would be longer than 65,535 bytes here",
            InboundLoss::Loop => "it has passed through too many gateways: is there a loop?",
            InboundLoss::TooLarge => "larger than max_packet_size",
            InboundLoss::NoRoom => "it came at QoS 0, and there is no room for it",
            InboundLoss::NoRoomInCleanSession => {
                "there is no room for it, and with clean_session it does not come again"
            }
            InboundLoss::NeverFits => "larger than the journal can take: journal.max_size is too small for it",
        }
    }
}

impl Inbound {
    /// The size in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }
}

impl UpstreamSession {
    /// Applies new rules on the existing connection.
    pub(crate) fn set_rules(&mut self, rules: UpstreamRules, now: u64) -> Vec<SessionAction> {
        let (before, wanted) = (self.rules.subscriptions(), rules.subscriptions());
        self.rules = rules;
        let before: Vec<_> = before.into_iter().filter(|(filter, _)| !self.opening.has_left_out(filter)).collect();
        let lacks_status = self.opening.has_left_out_status();
        self.opening.forget();
        self.learned.forget();
        self.try_denied();
        self.forget_granted();
        self.reading_refused = false;
        let mut actions = Vec::new();
        if self.link.is_some() {
            let gone = before.iter().filter(|(filter, _)| wanted.iter().all(|(kept, _)| kept != filter));
            let gone: Vec<_> = gone.map(|(filter, _)| filter.clone()).collect();
            if !gone.is_empty() {
                actions.push(SessionAction::Unsubscribe(gone));
            }
            let new = wanted.into_iter().filter(|new| !before.contains(new)).collect();
            self.subscribe(new, now, &mut actions);
            if lacks_status {
                self.say_status_again(now, &mut actions);
            }
        }
        self.lift_refusals(now, &mut actions);
        actions
    }

    /// The subscriptions that the rules ask for.
    pub(crate) fn subscriptions(&self) -> Vec<(TopicFilter, Qos)> {
        self.rules.subscriptions()
    }

    /// Whether any rule is for a message on this local topic.
    pub(crate) fn is_meant(&self, topic: &str) -> bool {
        self.rules.is_meant(topic)
    }

    /// Why a message on this remote topic that is larger than the gateway accepts is not taken.
    pub(crate) fn too_large(&self, topic: &str) -> NotTaken {
        match self.rules.incoming(topic) {
            Some((topic, ..)) => NotTaken::Lost(InboundLoss::TooLarge, topic),
            None => NotTaken::Unwanted,
        }
    }

    /// Maps a message from the upstream. One that is not taken must be acknowledged at once.
    pub(crate) fn incoming(&self, message: InMessage) -> Result<Inbound, NotTaken> {
        let (topic, qos, keeps_retain) = self.rules.incoming(&message.topic).ok_or(NotTaken::Unwanted)?;
        if levels(&topic) > MAX_LEVELS {
            return Err(NotTaken::Lost(InboundLoss::Levels, topic));
        }
        if topic.len() > usize::from(u16::MAX) {
            return Err(NotTaken::Lost(InboundLoss::LongTopic, message.topic));
        }
        let properties = match properties::down(&message.properties, self.link.and_then(|link| link.gateway)) {
            Ok(properties) => properties,
            Err(DropReason::Loop) => return Err(NotTaken::Lost(InboundLoss::Loop, topic)),
            Err(_) => {
                debug!(upstream = self.name, topic, "not taken from upstream: it has been here");
                return Err(NotTaken::Unwanted);
            }
        };
        Ok(Inbound {
            topic,
            payload: message.payload,
            qos: message.qos.min(qos),
            retain: message.retain && keeps_retain,
            properties,
            expiry: message.expiry,
            packet_id: message.packet_id,
            is_exact: message.qos == Qos::ExactlyOnce,
        })
    }
}
