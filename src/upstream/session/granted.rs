//! What an upstream grants less than the rules ask for, or refuses, is said once, with what follows from it: not with each
//! connection, of which there may be many. It is said again when it changes, and after a reload. What brings down nothing at
//! present is shown meanwhile.

use tracing::{debug, info, warn};

use super::{RETAIN_NOT_SUPPORTED, UpstreamSession};
use crate::message::{Qos, TopicFilter};
use crate::upstream::wire::Link;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct Granted {
    /// The highest QoS that the upstream takes, and whether it takes the retain flag.
    limits: Option<(Qos, bool)>,
    /// What became of the subscriptions that the rules ask for, of each at most one.
    fates: Vec<KnownFate>,
}

/// What became of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionFate {
    /// It is granted at this QoS.
    Granted(u8),
    /// It is refused with this reason code.
    Refused(u8),
    /// The upstream does not answer, although the connection lives.
    Unanswered,
}

/// What is known of one subscription.
#[derive(Debug)]
struct KnownFate {
    filter: TopicFilter,
    fate: SubscriptionFate,
    is_said: bool,
}

impl Granted {
    /// Records what became of a subscription. Returns whether that is to be said: it is new, and connections are logged.
    fn is_to_say(&mut self, filter: &TopicFilter, fate: SubscriptionFate, is_quiet: bool) -> bool {
        let at = self.fates.iter().position(|known| known.filter == *filter).unwrap_or_else(|| {
            self.fates.push(KnownFate { filter: filter.clone(), fate, is_said: false });
            self.fates.len() - 1
        });
        let known = &mut self.fates[at];
        known.is_said &= known.fate == fate;
        known.fate = fate;
        !is_quiet && !std::mem::replace(&mut known.is_said, true)
    }
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

    /// Reports what became of a subscription, once while that stays the same.
    pub(super) fn say_fate(&mut self, filter: &TopicFilter, fate: SubscriptionFate) {
        use SubscriptionFate::{Granted, Refused, Unanswered};
        let upstream = &self.name;
        let asked = self.rules.subscriptions().into_iter().find(|(wanted, _)| wanted == filter);
        // a late answer may be to what no rule asks for any more
        let Some(asked) = asked.map(|(_, asked)| asked as u8) else {
            debug!(upstream, %filter, ?fate, "no rule asks for this subscription any more");
            return;
        };
        if !self.granted.is_to_say(filter, fate, self.is_quiet) {
            debug!(upstream, %filter, ?fate, asked, "the answer to a subscription is as before");
            return;
        }
        let rule = self.rules.place_of(filter);
        match fate {
            Granted(qos) if qos >= asked => info!(upstream, %filter, qos, "subscribed"),
            Granted(0) => warn!(
                upstream, %filter, rule, qos = 0, asked,
                "the upstream grants the subscription at QoS 0 only: what is lost on the way or while there is no \
                 connection does not come again"
            ),
            Granted(qos) => warn!(
                upstream, %filter, rule, qos, asked,
                "the upstream grants the subscription at QoS 1 only: messages may come down twice"
            ),
            Refused(reason) => warn!(
                upstream, %filter, rule, reason,
                "the upstream refuses the subscription: nothing comes down by it"
            ),
            Unanswered => warn!(
                upstream, %filter, rule,
                "the upstream does not answer to the subscription: nothing may come down by it"
            ),
        }
    }

    /// The subscriptions by which nothing comes down at present, each with the reason.
    pub(crate) fn missing_subscriptions(&self) -> Vec<String> {
        let fates = self.granted.fates.iter().filter_map(|known| match known.fate {
            SubscriptionFate::Granted(_) => None,
            SubscriptionFate::Refused(reason) => Some(format!("{} (refused, reason code {reason:#04x})", known.filter)),
            SubscriptionFate::Unanswered => Some(format!("{} (not answered)", known.filter)),
        });
        let left_out = self.opening.left_out_filters().filter(|filter| {
            let mut fates = self.granted.fates.iter().filter(|known| known.filter == **filter);
            fates.all(|known| matches!(known.fate, SubscriptionFate::Granted(_)))
        });
        fates.chain(left_out.map(|filter| format!("{filter} (left out, connections end at it)"))).collect()
    }

    /// Forgets what was said, because rules have changed.
    pub(super) fn forget_granted(&mut self) {
        self.granted = Granted::default();
    }
}
