//! Where messages go that must be kept.

use std::sync::Arc;

use super::super::filters::FilterValue;
use super::super::shared::together::FilterGroups;
use crate::journal::ConsumerId;
use crate::message::{Origin, Owner, Qos};

/// A receiver that must get messages whether it is connected or not.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// An upstream, which does not get its own messages back.
    Upstream {
        /// Its consumer in the journal.
        consumer: ConsumerId,
        /// The origin of its own messages.
        origin: Origin,
        /// Whether the filter names its first level explicitly, which messages of the announcer require.
        is_named: bool,
    },
    /// A persistent session, for everything that is delivered above QoS 0.
    Session {
        /// Its consumer in the journal.
        consumer: ConsumerId,
        /// The highest QoS, which is not 0.
        qos: Qos,
        /// The origin of messages that are left out.
        not_from: Option<Origin>,
    },
    /// The groups of shared subscriptions with this filter that have the same owner.
    Groups(Arc<FilterGroups>),
}

/// The consumer or the group of a route.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum RouteKey {
    Consumer(ConsumerId),
    /// The owner of the groups.
    Groups(Owner),
}

impl FilterValue for Route {
    type Key = RouteKey;

    fn key(&self) -> RouteKey {
        match self {
            Route::Upstream { consumer, .. } | Route::Session { consumer, .. } => RouteKey::Consumer(*consumer),
            Route::Groups(groups) => RouteKey::Groups(groups.owner().owner()),
        }
    }
}
