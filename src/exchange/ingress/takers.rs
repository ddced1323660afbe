//! Who must get a message besides those who get it live.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::Route;
use crate::exchange::filters::FilterTree;
use crate::exchange::meter::Walk;
use crate::exchange::shared::spread::PAID;
use crate::exchange::shared::together::FilterGroups;
use crate::journal::ConsumerId;
use crate::message::{MessageRef, Origin, Qos};

/// The consumers and groups to which one message goes.
#[derive(Default)]
pub(super) struct Takers<'a> {
    pub(super) consumers: SmallVec<[ConsumerId; 4]>,
    pub(super) groups: SmallVec<[&'a Arc<FilterGroups>; 2]>,
    /// How many of the consumers are upstreams.
    pub(super) upstreams: usize,
    /// The time that the search has cost, which its publisher pays.
    pub(super) cost: Duration,
}

impl<'a> Takers<'a> {
    pub(super) fn of(routes: &'a FilterTree<Route>, message: MessageRef<'_>, announcer: Origin) -> Takers<'a> {
        let mut takers = Takers::default();
        let mut walk = Walk::default();
        routes.matches(message.topic(), &mut walk, |route| takers.add(route, message, announcer));
        // a session gets the message once, however many of its filters match; there may be a thousand sessions
        takers.consumers.sort_unstable();
        takers.consumers.dedup();
        takers.cost = walk.cost(takers.consumers.len() + takers.groups.len().min(PAID));
        takers
    }

    fn add(&mut self, route: &'a Route, message: MessageRef<'_>, announcer: Origin) {
        let consumers = &mut self.consumers;
        match route {
            Route::Upstream { consumer, origin, is_named } => {
                let is_wanted = *is_named || message.origin() != announcer;
                if is_wanted && message.origin() != *origin && !consumers.contains(consumer) {
                    consumers.push(*consumer);
                    self.upstreams += 1;
                }
            }
            Route::Session { consumer, qos, not_from } => {
                let is_live_only = message.qos().min(*qos) == Qos::AtMostOnce;
                if !is_live_only && *not_from != Some(message.origin()) {
                    consumers.push(*consumer);
                }
            }
            Route::Groups(groups) => {
                if groups.consumers(message.qos(), consumers) {
                    self.groups.push(groups);
                }
            }
        }
    }
}
