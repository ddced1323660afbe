//! Where messages from the upstream enter the gateway, and where it looks for what the gateway has.

use super::retained::{PAGE, is_same};
use crate::exchange::filters::names_first_level;
use crate::exchange::ingress::{Ingress, IngressError, Receipt};
use crate::exchange::trace::TraceEvent;
use crate::journal::{ConsumerId, Journal, Position};
use crate::message::{Draft, Message, Origin, TopicFilter, via};

/// The entrance to the gateway, which a test can replace.
pub(super) enum InboxDoor {
    Ingress(Ingress),
    #[cfg(test)]
    Test(super::tests::TestDoor),
}

impl InboxDoor {
    pub(super) async fn publish(
        &self,
        draft: &Draft<'_>,
        received: Option<(ConsumerId, u16)>,
    ) -> Result<Receipt, IngressError> {
        match self {
            InboxDoor::Ingress(ingress) => ingress.publish_received(draft, received).await,
            #[cfg(test)]
            InboxDoor::Test(door) => door.publish(draft),
        }
    }

    pub(super) async fn settled(&self, receipt: Receipt) -> Result<(), IngressError> {
        match self {
            InboxDoor::Ingress(ingress) => ingress.settled(receipt).await,
            #[cfg(test)]
            InboxDoor::Test(door) => door.settled(receipt).await,
        }
    }

    /// Whether any message is traced.
    pub(super) fn is_tracing(&self) -> bool {
        match self {
            InboxDoor::Ingress(ingress) => ingress.traces().is_active(|| ingress.clock().boot_ms()),
            #[cfg(test)]
            InboxDoor::Test(_) => false,
        }
    }

    /// Records an event of a traced message.
    pub(super) fn trace(&self, position: Position, what: TraceEvent, upstream: &str) {
        match self {
            InboxDoor::Ingress(ingress) if self.is_tracing() => {
                ingress.traces().at(position, what, upstream, ingress.clock().boot_ms());
            }
            _ => {}
        }
    }

    /// Records that the journal has a traced message in another place now, and why if that tells something.
    pub(super) fn trace_move(&self, places: (Position, Position), why: Option<&'static str>, upstream: &str) {
        match self {
            InboxDoor::Ingress(ingress) if self.is_tracing() => {
                ingress.traces().moved(places, why, upstream, ingress.clock().boot_ms());
            }
            _ => {}
        }
    }

    /// Follows a traced message that the journal has at this place, as a message of this consumer and with this ordinal, in case
    /// it gives way there.
    pub(super) fn trace_hold(&self, place: Position, upstream: &str, journal: &Journal, at: (ConsumerId, u64)) {
        match self {
            InboxDoor::Ingress(ingress) if self.is_tracing() => ingress.traces().follow(place, upstream, journal, at),
            _ => {}
        }
    }

    pub(super) fn set_filters(&self, consumer: ConsumerId, origin: Origin, filters: Vec<TopicFilter>) {
        match self {
            InboxDoor::Ingress(ingress) => ingress.set_upstream_filters(consumer, origin, filters),
            #[cfg(test)]
            InboxDoor::Test(door) => door.set_filters(&filters),
        }
    }

    /// Whether a message is the retained message of its topic.
    pub(super) fn is_current(&self, message: &Message) -> bool {
        match self {
            InboxDoor::Ingress(ingress) => match ingress.retained(message.view().topic()) {
                Some(retained) => is_same(&retained, message),
                None => message.view().payload().is_empty(),
            },
            #[cfg(test)]
            InboxDoor::Test(_) => true,
        }
    }

    /// The message that is retained on a topic.
    pub(super) fn retained_on(&self, topic: &str) -> Option<Message> {
        match self {
            InboxDoor::Ingress(ingress) => ingress.retained(topic),
            #[cfg(test)]
            InboxDoor::Test(_) => None,
        }
    }

    /// Whether no message is retained on a topic.
    pub(super) fn is_absent(&self, topic: &str) -> bool {
        match self {
            InboxDoor::Ingress(ingress) => ingress.retained(topic).is_none(),
            #[cfg(test)]
            InboxDoor::Test(_) => false,
        }
    }

    /// Retained messages on topics after `after`, for an upstream. Those that came from it are left out if `others_only`.
    pub(super) fn retained(
        &self,
        (filter, after): (&TopicFilter, &str),
        upstream: Origin,
        others_only: bool,
    ) -> Vec<Message> {
        match self {
            InboxDoor::Ingress(ingress) => {
                let (is_named, announcer) = (names_first_level(filter), Origin::announcer());
                ingress.select_retained((filter, after), PAGE, upstream, |message| {
                    let origin = message.view().origin();
                    !(others_only && origin == upstream) && (is_named || origin != announcer)
                })
            }
            #[cfg(test)]
            InboxDoor::Test(_) => Vec::new(),
        }
    }

    pub(super) fn set_carried(&self, consumer: ConsumerId, gateway: Option<via::Id>, filters: Vec<TopicFilter>) {
        match self {
            InboxDoor::Ingress(ingress) => ingress.set_carried(consumer, gateway, filters),
            #[cfg(test)]
            InboxDoor::Test(_) => {}
        }
    }
}
