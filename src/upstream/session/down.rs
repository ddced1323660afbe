//! Messages from the upstream, and the subscriptions for them.

use tracing::debug;

use super::{Inbound, SessionAction, UpstreamSession};
use crate::exchange::filters::MAX_LEVELS;
use crate::message::{Qos, levels};
use crate::upstream::properties;
use crate::upstream::rule::UpstreamRules;
use crate::upstream::wire::InMessage;

impl UpstreamSession {
    /// Applies new rules on the existing connection.
    pub(crate) fn set_rules(&mut self, rules: UpstreamRules, now: u64) -> Vec<SessionAction> {
        let (before, wanted) = (self.rules.subscriptions(), rules.subscriptions());
        self.rules = rules;
        self.opening.forget();
        self.retain_refused = false;
        let mut actions = Vec::new();
        if self.link.is_some() {
            let gone = before.iter().filter(|(filter, _)| wanted.iter().all(|(kept, _)| kept != filter));
            let gone: Vec<_> = gone.map(|(filter, _)| filter.clone()).collect();
            if !gone.is_empty() {
                actions.push(SessionAction::Unsubscribe(gone));
            }
            let new = wanted.into_iter().filter(|new| !before.contains(new)).collect();
            self.subscribe(new, now, &mut actions);
        }
        actions
    }

    /// Maps a message from the upstream. `None` means that no rule wants it, that its topic has too many levels, or that it
    /// has passed through this gateway; it must be acknowledged at once.
    pub(crate) fn incoming(&self, message: InMessage) -> Option<Inbound> {
        let (topic, qos, keeps_retain) = self.rules.incoming(&message.topic)?;
        if levels(&topic) > MAX_LEVELS {
            debug!(upstream = self.name, "not taken from upstream: its topic has more than {MAX_LEVELS} levels");
            return None;
        }
        let Some(properties) = properties::down(&message.properties, self.link.and_then(|link| link.gateway)) else {
            debug!(upstream = self.name, topic, "not taken from upstream: it has been here, or in too many gateways");
            return None;
        };
        Some(Inbound {
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
