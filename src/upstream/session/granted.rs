//! What an upstream grants less than the rules ask for is said once, with what follows from it.

use tracing::{debug, info, warn};

use super::{RETAIN_NOT_SUPPORTED, UpstreamSession};
use crate::message::{Qos, TopicFilter};
use crate::upstream::wire::Link;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Granted {
    /// The highest QoS that the upstream takes, and whether it takes the retain flag.
    limits: Option<(Qos, bool)>,
    /// The filters with less than was asked for, and what was granted.
    filters: Vec<(TopicFilter, u8)>,
}

impl UpstreamSession {
    /// Reports what the upstream does not take on a new connection.
    pub(super) fn say_limits(&mut self, link: Link) {
        let limits = (link.max_qos, link.retain_available);
        if self.granted.limits.replace(limits) == Some(limits) {
            return;
        }
        let upstream = &self.name;
        if link.max_qos == Qos::AtMostOnce && self.rules.wants_answers() {
            warn!(
                upstream,
                "the upstream takes only QoS 0: it confirms nothing, so what is lost on the way is not noticed, and counts as \
                 sent unconfirmed"
            );
        } else if link.max_qos < Qos::ExactlyOnce && self.rules.is_exact() {
            warn!(upstream, "the upstream does not take QoS 2: messages of rules with qos = 2 may come there twice");
        }
        if !link.retain_available && (self.status_topic.is_some() || self.rules.keeps_retain()) {
            warn!(
                upstream,
                "the upstream takes no retained messages: all go up without the flag, and who subscribes there later does not \
                 get the last ones"
            );
        }
    }

    /// Reports that the upstream refuses the status with this reason code, once, or that it does not any more.
    pub(super) fn status_refused(&mut self, reason: Option<u8>, now: u64) {
        if std::mem::replace(&mut self.status_refusal, reason) == reason {
            return;
        }
        let (upstream, topic) = (&self.name, self.status_topic.as_deref().unwrap_or_default());
        match reason {
            Some(RETAIN_NOT_SUPPORTED) => self.refuse_retain("reason code 0x9A, for the status", now),
            Some(reason) => warn!(
                upstream,
                topic,
                "the upstream refuses the message to status_topic (reason code {reason:#04x}): the status there may be wrong"
            ),
            None => info!(upstream, topic, "the upstream takes the status again"),
        }
    }

    /// Reports a subscription that the upstream has granted at this QoS.
    pub(super) fn say_granted(&mut self, filter: &TopicFilter, qos: u8) {
        let upstream = &self.name;
        let asked = self.rules.subscriptions().into_iter().find(|(wanted, _)| wanted == filter);
        let less = asked.map(|(_, asked)| asked as u8).filter(|asked| qos < *asked);
        let Some(asked) = less else {
            self.granted.filters.retain(|(known, _)| known != filter);
            if self.is_quiet {
                debug!(upstream, %filter, qos, "subscribed");
            } else {
                info!(upstream, %filter, qos, "subscribed");
            }
            return;
        };
        let known = self.granted.filters.iter_mut().find(|(known, _)| known == filter);
        let is_known = known.as_ref().is_some_and(|(_, known)| *known == qos);
        match known {
            Some((_, known)) => *known = qos,
            None => self.granted.filters.push((filter.clone(), qos)),
        }
        if is_known {
            debug!(upstream, %filter, qos, asked, "subscribed");
            return;
        }
        let rule = self.rules.place_of(filter);
        if qos == 0 {
            warn!(
                upstream, %filter, rule, qos, asked,
                "the upstream grants the subscription at QoS 0 only: what is lost on the way or while there is no \
                 connection does not come again"
            );
        } else {
            warn!(upstream, %filter, rule, qos, asked, "the upstream grants the subscription at QoS 1 only: messages may come down twice");
        }
    }

    /// Forgets what was said, because rules have changed.
    pub(super) fn forget_granted(&mut self) {
        self.granted = Granted::default();
    }
}
