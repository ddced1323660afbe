//! The way down: subscriptions, and messages that come.

use tracing::{debug, info, warn};

use super::{Inbound, Session, SessionAction};
use crate::message::{Qos, TopicFilter};
use crate::upstream::properties;
use crate::upstream::rule::Rules;
use crate::upstream::wire::InMessage;

impl Session {
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

    pub(super) fn subscribe(&mut self, wanted: Vec<(TopicFilter, Qos)>, actions: &mut Vec<SessionAction>) {
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
        let Some(properties) = properties::down(&message.properties, self.link.and_then(|link| link.gateway)) else {
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
