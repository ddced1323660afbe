//! What reaches another gateway without a subscription of its own.

use super::Ingress;
use crate::journal::ConsumerId;
use crate::message::{MessageRef, TopicFilter, matches, via};

/// What the gateway forwards, unchanged, to an upstream that is a gateway too.
#[derive(Debug)]
pub(super) struct Carried {
    consumer: ConsumerId,
    to: via::Id,
    filters: Vec<TopicFilter>,
}

impl Ingress {
    /// Says what an upstream gets unchanged, and which gateway it is, if it is one.
    pub(crate) fn set_carried(&self, consumer: ConsumerId, gateway: Option<via::Id>, filters: Vec<TopicFilter>) {
        let mut carried = self.inner.carried.lock();
        carried.retain(|known| known.consumer != consumer);
        carried.extend(gateway.map(|to| Carried { consumer, to, filters }));
    }

    /// Whether a message gets to this gateway without a subscription: it has been there, or is forwarded there.
    pub(crate) fn reaches(&self, gateway: via::Id, message: MessageRef<'_>) -> bool {
        let forwards = |to: &Carried| {
            to.to == gateway && to.filters.iter().any(|filter| matches(filter.as_str(), message.topic()))
        };
        via::names(message.properties(), gateway) || self.inner.carried.lock().iter().any(forwards)
    }
}
