//! Handles packets that are too large.

use std::time::Duration;

use tracing::warn;

use super::{BrokerConnection, ConnectionEnd};
use crate::access::guesses::network;
use crate::health::{CLIENT_PART, Fault, beginning};
use crate::mqtt::{Error, PacketType, topic_of_publish};

/// How long a disconnection for a too large packet is shown as a problem. Most clients come back at once and send the same
/// packet again.
const CUT_OFF: Duration = Duration::from_secs(600);
/// The number of bytes of a client id that are shown.
const SHOWN: usize = 64;

impl BrokerConnection {
    /// Ends the connection for a packet that is too large, as soon as its topic is known.
    pub(super) fn too_large(&self, bytes: &[u8], size: usize, most: usize) -> Result<(), ConnectionEnd> {
        let is_publish = bytes.first().is_some_and(|first| first >> 4 == PacketType::Publish as u8);
        let topic = if is_publish { topic_of_publish(bytes) } else { None };
        // few clients send the header of a packet separately
        if is_publish && topic.is_none() {
            return Ok(());
        }
        let client_id = &*self.identity.client_id;
        if let Some(more_since_last) = self.core.access.limiter.due(network(self.address), ("size", client_id, topic)) {
            warn!(
                client_id,
                topic,
                size,
                more_since_last,
                "disconnected: it has sent a packet of {size} bytes; broker.max_packet_size is {most} bytes"
            );
        }
        let what = topic.map_or_else(String::new, |topic| format!(" on {topic}"));
        let fault = Fault::new(
            format!("it was disconnected because it has sent a packet of {size} bytes{what}, and {most} are allowed"),
            format!("set max_packet_size under [broker] to more than {size} bytes, or make it send less"),
        );
        self.core.health.note(&format!("{CLIENT_PART}{}", beginning(client_id, SHOWN)), &fault, CUT_OFF);
        Err(ConnectionEnd::Broken(Error::TooLarge(size, most)))
    }
}
