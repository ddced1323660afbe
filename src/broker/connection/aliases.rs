//! The topic aliases that a client has defined.

use std::collections::HashMap;

use super::ConnectionEnd;
use crate::mqtt::publish::Publish;
use crate::mqtt::{Error, Reason};

/// The number of topic aliases that a client may use.
pub(crate) const TOPIC_ALIAS_MAXIMUM: u16 = 32;
/// Most bytes of all topics that have an alias.
const MAX_ALIAS_BYTES: usize = 128 << 10;

/// The topics of the client's aliases.
#[derive(Debug, Default)]
pub(super) struct InboundAliases {
    topics: HashMap<u16, Box<str>>,
    bytes: usize,
}

impl InboundAliases {
    /// The topic of a PUBLISH. If the PUBLISH defines an alias, the topic is stored.
    ///
    /// # Errors
    ///
    /// The connection ends if the alias is not in the agreed range [MQTT-3.3.2-8], is not defined yet, or if the topics of
    /// all aliases are too long together.
    pub(super) fn topic_of<'a>(&'a mut self, publish: &Publish<'a>) -> Result<&'a str, ConnectionEnd> {
        match publish.alias {
            None => Ok(publish.topic),
            Some(alias) if alias == 0 || alias > TOPIC_ALIAS_MAXIMUM => {
                Err(ConnectionEnd::Ended(Reason::TOPIC_ALIAS_INVALID))
            }
            Some(alias) if publish.topic.is_empty() => match self.topics.get(&alias) {
                Some(topic) => Ok(topic),
                None => Err(ConnectionEnd::Broken(Error::Protocol("a topic alias that was not set"))),
            },
            Some(alias) => {
                let old = self.topics.insert(alias, publish.topic.into());
                self.bytes += publish.topic.len();
                self.bytes -= old.map_or(0, |old| old.len());
                if self.bytes > MAX_ALIAS_BYTES {
                    return Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED));
                }
                Ok(publish.topic)
            }
        }
    }
}
