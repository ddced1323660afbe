//! Finds out which messages reach another gateway without a subscription.

use super::Ingress;
use crate::journal::ConsumerId;
use crate::message::{MessageRef, TopicFilter, matches, via};

/// The filters that are forwarded unchanged to an upstream that is a gateway too.
#[derive(Debug)]
pub(super) struct Carried {
    consumer: ConsumerId,
    to: via::Id,
    filters: Vec<TopicFilter>,
}

impl Ingress {
    /// Sets what is forwarded unchanged to an upstream, and the upstream's id if it is a gateway.
    pub(crate) fn set_carried(&self, consumer: ConsumerId, gateway: Option<via::Id>, filters: Vec<TopicFilter>) {
        let mut carried = self.inner.carried.lock();
        carried.retain(|known| known.consumer != consumer);
        carried.extend(gateway.map(|to| Carried { consumer, to, filters }));
    }

    /// Whether a message reaches this gateway without a subscription, because it has passed through it or is forwarded to
    /// it.
    pub(crate) fn reaches(&self, gateway: via::Id, message: MessageRef<'_>) -> bool {
        let forwards = |to: &Carried| {
            to.to == gateway && to.filters.iter().any(|filter| matches(filter.as_str(), message.topic()))
        };
        via::names(message.properties(), gateway) || self.inner.carried.lock().iter().any(forwards)
    }
}
