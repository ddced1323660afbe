//! A message on its way to one subscriber, and how it is to be delivered.

use smallvec::SmallVec;

use super::shared::Share;
use crate::message::{Message, MessageRef, Packed, Qos};

/// How one message is to be delivered.
#[derive(Clone, Debug)]
pub struct Grant {
    /// QoS of the delivery.
    pub qos: Qos,
    /// Retain flag of the delivery.
    pub retain: bool,
    /// Ids of the subscriptions that it is for.
    pub ids: SmallVec<[u32; 1]>,
    /// The shared subscription that it comes from, to be told when the delivery is settled.
    pub share: Option<Share>,
}

/// A message on its way to a subscriber.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The message.
    pub message: Message,
    /// How to deliver it.
    pub grant: Grant,
}

/// Which retain flag a delivery has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetainFlag {
    /// None: it is a live message [MQTT-3.3.1-12].
    Clear,
    /// That of the publication, as the subscription wants it.
    AsPublished,
    /// Set: it comes from the retained store [MQTT-3.3.1-8].
    Set,
}

/// How a subscriber gets the messages that a filter selects.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Largest QoS.
    pub qos: Qos,
    /// Retain flag.
    pub retain: RetainFlag,
    /// What the subscriber itself published is left out.
    pub no_local: bool,
    /// Ids of the subscriptions that they are for.
    pub ids: SmallVec<[u32; 1]>,
    /// The shared subscription that they come from.
    pub share: Option<Share>,
}

impl Terms {
    /// How one message is delivered on these terms.
    pub fn grant(&self, message: MessageRef<'_>) -> Grant {
        let retain = match self.retain {
            RetainFlag::Clear => false,
            RetainFlag::AsPublished => message.retain(),
            RetainFlag::Set => true,
        };
        Grant { qos: self.qos.min(message.qos()), retain, ids: self.ids.clone(), share: self.share.clone() }
    }
}

/// Messages next to each other in a batch that go to a subscriber on the same terms: handed over with one reference,
/// however many they are.
#[derive(Clone, Debug)]
pub struct Run {
    /// The messages.
    pub messages: Packed,
    /// How to deliver them.
    pub terms: Terms,
}

impl Run {
    /// A run of one.
    pub fn one(message: Message, terms: Terms) -> Run {
        Run { messages: Packed::one(message), terms }
    }
}
