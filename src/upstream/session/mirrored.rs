//! Reads what the upstream retains on topics that are mirrored both ways: see [`crate::upstream::mirror`].

use super::opening::{AskedFor, FILTERS};
use super::{Inbound, NotTaken, SessionAction, UpstreamSession};
use crate::message::{Qos, TopicFilter};
use crate::upstream::wire::{InMessage, Link, RetainedWanted, Version};

impl UpstreamSession {
    /// Whether what this upstream retains on mirrored topics can be read.
    pub(crate) fn reads_mirrored(&self) -> bool {
        self.rules.has_mirrored() && self.link.is_some_and(|link| self.can_read(link))
    }

    /// Reads nothing any more, so that subscriptions bring retained messages as others do.
    pub(crate) fn give_up_reading(&mut self) {
        self.reading_refused = true;
    }

    /// Whether any rule is for mirrored topics.
    pub(crate) fn is_mirroring(&self) -> bool {
        self.rules.has_mirrored()
    }

    fn can_read(&self, link: Link) -> bool {
        !self.reading_refused && link.version == Version::V5 && link.has_subscription_ids && self.takes_retain(link)
    }

    /// The subscriptions for mirrored topics that the upstream has granted, and whether these are all.
    pub(crate) fn mirrored_filters(&self) -> (Vec<(TopicFilter, Qos)>, bool) {
        let mut filters = self.rules.subscriptions();
        filters.retain(|(filter, _)| self.rules.is_for_mirrored(filter));
        let all = filters.len();
        filters.retain(|(filter, _)| !self.opening.has_left_out(filter));
        let is_whole = filters.len() == all;
        (filters, is_whole)
    }

    /// Whether the upstream keeps no messages for us, while there is no connection, on some mirrored topics.
    pub(crate) fn misses_mirrored(&self) -> bool {
        self.mirrored_filters().0.iter().any(|(_, qos)| *qos == Qos::AtMostOnce)
    }

    /// The local topic of a remote one that is mirrored.
    pub(crate) fn mirrored(&self, remote: &str) -> Option<String> {
        self.rules.mirrored(remote)
    }

    /// The highest QoS of messages on a remote topic.
    pub(crate) fn incoming_qos(&self, remote: &str) -> Option<Qos> {
        self.rules.incoming(remote).map(|(_, qos, _)| qos)
    }

    /// What a subscription by the rules asks for of retained messages.
    pub(super) fn wanted_retained(&self, filter: &TopicFilter) -> RetainedWanted {
        let is_read = self.rules.is_for_mirrored(filter) && self.link.is_some_and(|link| self.can_read(link));
        if is_read { RetainedWanted::None } else { RetainedWanted::IfNew }
    }

    /// Whether all subscriptions are answered, or given up, so that others may follow.
    pub(crate) fn has_opened(&self) -> bool {
        self.link.is_some() && self.opening.has_ended()
    }

    /// Subscribes to these filters to read what is retained there, with this subscription identifier. Subscriptions of the rules
    /// are put back to what they were.
    pub(crate) fn read(&mut self, filters: &[(TopicFilter, Qos)], id: u32, now: u64) -> Vec<SessionAction> {
        let mut actions = Vec::new();
        for part in filters.chunks(FILTERS) {
            let ours: Vec<_> = part.iter().filter(|(filter, _)| self.is_subscription(filter)).cloned().collect();
            for (part, wanted) in [(part, RetainedWanted::All(id)), (&ours, RetainedWanted::None)] {
                if !part.is_empty() {
                    let filters = part.iter().map(|(filter, _)| filter.clone()).collect();
                    self.opening.asks(filters, AskedFor::Reading, now);
                    actions.push(SessionAction::Subscribe(part.to_vec(), wanted));
                }
            }
        }
        actions
    }

    /// Whether the rules ask for this subscription.
    pub(crate) fn is_subscription(&self, filter: &TopicFilter) -> bool {
        self.rules.subscriptions().iter().any(|(known, _)| known == filter)
    }

    /// The number of unanswered SUBSCRIBEs of [`UpstreamSession::read`].
    pub(crate) fn unanswered_readings(&self) -> usize {
        self.opening.unanswered_readings()
    }

    /// The filters that could not be read, since the last call.
    pub(crate) fn take_unread(&mut self) -> Vec<TopicFilter> {
        self.opening.take_unread()
    }

    /// Like [`UpstreamSession::incoming`], for a message that the upstream retains. It may be one of ours.
    pub(crate) fn incoming_read(&self, message: InMessage) -> Result<Inbound, NotTaken> {
        let properties = crate::upstream::properties::without_way(&message.properties);
        self.incoming(InMessage { properties, ..message })
    }
}
