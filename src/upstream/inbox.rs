//! Messages that came down, on their way to the ingress and back to the upstream as acknowledgements.

use std::collections::VecDeque;

use tracing::{error, warn};

use super::retained::{PAGE, is_same};
use super::session::Inbound;
use super::wire::UpstreamClient;
use crate::exchange::ingress::{Ingress, IngressError, Receipt};
use crate::journal::ConsumerId;
use crate::message::{Draft, Message, Origin, Qos, TopicFilter, via};

/// Messages held while the gateway has no room for them. More are not acknowledged, and come again later.
const HELD: usize = 1000;

/// The way into the gateway, which a test may watch.
pub(super) enum Door {
    Ingress(Ingress),
    #[cfg(test)]
    Test(super::tests::TestDoor),
}

impl Door {
    async fn publish(&self, draft: &Draft<'_>) -> Result<Receipt, IngressError> {
        match self {
            Door::Ingress(ingress) => ingress.publish(draft).await,
            #[cfg(test)]
            Door::Test(door) => door.publish(draft),
        }
    }

    async fn settled(&self, receipt: Receipt) -> Result<(), IngressError> {
        match self {
            Door::Ingress(ingress) => ingress.settled(receipt).await,
            #[cfg(test)]
            Door::Test(door) => door.settled(receipt).await,
        }
    }

    pub(super) fn set_filters(&self, consumer: ConsumerId, origin: Origin, filters: Vec<TopicFilter>) {
        match self {
            Door::Ingress(ingress) => ingress.set_upstream_filters(consumer, origin, filters),
            #[cfg(test)]
            Door::Test(door) => door.set_filters(&filters),
        }
    }

    /// Whether a message is the retained one of its topic.
    pub(super) fn is_current(&self, message: &Message) -> bool {
        match self {
            Door::Ingress(ingress) => match ingress.retained(message.view().topic()) {
                Some(retained) => is_same(&retained, message),
                None => message.view().payload().is_empty(),
            },
            #[cfg(test)]
            Door::Test(_) => true,
        }
    }

    /// Whether nothing is retained on a topic.
    pub(super) fn is_absent(&self, topic: &str) -> bool {
        match self {
            Door::Ingress(ingress) => ingress.retained(topic).is_none(),
            #[cfg(test)]
            Door::Test(_) => false,
        }
    }

    /// Retained messages behind a topic.
    pub(super) fn retained(&self, filter: &TopicFilter, after: &str, not_from: Origin) -> Vec<Message> {
        match self {
            Door::Ingress(ingress) => {
                ingress.select_retained(filter, after, PAGE, |message| message.view().origin() != not_from)
            }
            #[cfg(test)]
            Door::Test(_) => Vec::new(),
        }
    }

    pub(super) fn set_carried(&self, consumer: ConsumerId, gateway: Option<via::Id>, filters: Vec<TopicFilter>) {
        match self {
            Door::Ingress(ingress) => ingress.set_carried(consumer, gateway, filters),
            #[cfg(test)]
            Door::Test(_) => {}
        }
    }
}

/// What came down and is not done with. Acknowledgements leave in the order in which the messages came.
pub(super) struct Inbox {
    name: String,
    origin: Origin,
    max_packet_size: usize,
    held: VecDeque<Inbound>,
    /// Published, not yet known to be safe.
    unsafe_yet: VecDeque<(Receipt, u16)>,
    acks: VecDeque<u16>,
    published: u64,
    dropped: u64,
}

impl Inbox {
    pub fn new(name: &str, max_packet_size: usize) -> Inbox {
        Inbox {
            name: name.to_owned(),
            origin: Origin::upstream(name),
            max_packet_size,
            held: VecDeque::new(),
            unsafe_yet: VecDeque::new(),
            acks: VecDeque::new(),
            published: 0,
            dropped: 0,
        }
    }

    /// Messages published here, and those that were not.
    pub fn counts(&self) -> (u64, u64) {
        (self.published, self.dropped)
    }

    /// Whether messages wait for room.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// A message came; `None` for one that no rule wants or that has been here.
    pub fn received(&mut self, message: Option<Inbound>, packet_id: u16) {
        match message {
            None => {
                // such as what is left over from a subscription of an earlier configuration
                self.dropped += 1;
                self.acks.extend(Some(packet_id).filter(|id| *id != 0));
            }
            Some(message) if message.payload.len() + message.topic.len() > self.max_packet_size => {
                let (upstream, topic, size) = (&self.name, &message.topic, message.payload.len());
                self.dropped += 1;
                error!(upstream, topic, size, "message from upstream dropped: larger than max_packet_size");
                self.acks.extend(Some(packet_id).filter(|id| *id != 0));
            }
            Some(message) if self.held.len() < HELD => self.held.push_back(message),
            // at QoS 1 it is not acknowledged, so the upstream sends it again after the next connect
            Some(_) => self.dropped += 1,
        }
    }

    /// Publishes what is held, as far as there is room.
    pub async fn deliver(&mut self, door: &Door, now: u64) -> Result<(), IngressError> {
        while let Some(message) = self.held.front() {
            let draft = Draft {
                topic: &message.topic,
                payload: &message.payload,
                qos: message.qos,
                retain: message.retain,
                properties: &message.properties,
                expiry: message.expiry,
                boot_ms: now,
                origin: self.origin,
            };
            match door.publish(&draft).await {
                Ok(receipt) => {
                    self.published += 1;
                    if message.packet_id != 0 {
                        self.unsafe_yet.push_back((receipt, message.packet_id));
                    }
                }
                Err(IngressError::Full(_)) if message.qos == Qos::AtMostOnce => self.dropped += 1,
                Err(IngressError::Full(_)) => {
                    if self.held.len() == HELD {
                        warn!(upstream = self.name, "the journal is full: messages from upstream wait there");
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.held.pop_front();
        }
        Ok(())
    }

    /// Waits until the oldest published message is safe. Never ends while there is none. Safe to cancel.
    pub async fn next_settled(&mut self, door: &Door) -> Result<(), IngressError> {
        let Some((receipt, packet_id)) = self.unsafe_yet.front().copied() else {
            return std::future::pending().await;
        };
        door.settled(receipt).await?;
        self.unsafe_yet.pop_front();
        self.acks.push_back(packet_id);
        Ok(())
    }

    /// Sends acknowledgements as far as the connection takes them; whether it is alive.
    pub fn acknowledge(&mut self, client: &mut impl UpstreamClient) -> bool {
        while let Some(packet_id) = self.acks.front() {
            if client.ack(*packet_id).is_err() {
                // packet ids have 16 bits, so there are never more than that
                return self.acks.len() <= usize::from(u16::MAX);
            }
            self.acks.pop_front();
        }
        true
    }

    /// The connection is gone: packet ids mean nothing any more. What was not acknowledged comes again, unless the
    /// upstream has forgotten it too.
    pub fn disconnected(&mut self, clean_session: bool) {
        self.acks.clear();
        self.unsafe_yet.clear();
        if clean_session {
            self.held.iter_mut().for_each(|message| message.packet_id = 0);
        } else {
            self.held.clear();
        }
    }
}
