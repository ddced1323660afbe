//! Handles packets and messages that are too large.

use std::time::Duration;

use tracing::{error, warn};

use super::{BrokerConnection, ConnectionEnd};
use crate::access::guesses::network;
use crate::exchange::ingress::NeverFits;
use crate::health::{CLIENT_PART, Fault, beginning};
use crate::mqtt::{Error, PacketType, topic_of_publish};

/// How long it is shown as a problem that a client has sent too much at once. Most clients come back at once and send the same
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
        self.core.health.note(&self.part(), &fault, CUT_OFF);
        Err(ConnectionEnd::Broken(Error::TooLarge(size, most)))
    }

    /// Reports a message that must be kept and that the journal can never take. MQTT 5 tells the client; with MQTT 3 the
    /// message is lost, and only this says so.
    pub(super) fn never_fits(&self, message: &NeverFits) {
        let NeverFits { topic, size, .. } = message;
        let client_id = &*self.identity.client_id;
        self.core.stats.publish_dropped.add(1);
        if let Some(more_since_last) = self.core.access.limiter.due(network(self.address), ("fits", client_id, topic)) {
            error!(
                client_id,
                %topic,
                size,
                more_since_last,
                "publication not taken: its {size} bytes must be kept, and the journal can never take them \
                 (journal.max_size)"
            );
        }
        let fault = Fault::new(
            format!("its messages of {size} bytes on {topic} are dropped: the journal can never take them"),
            format!("set max_size under [journal] to more than four times {size} bytes, or make it send less"),
        );
        self.core.health.note(&self.part(), &fault, CUT_OFF);
    }

    /// The client as a part that has a problem.
    fn part(&self) -> String {
        format!("{CLIENT_PART}{}", beginning(&self.identity.client_id, SHOWN))
    }
}
