//! Topic aliases that the gateway assigns to outgoing messages [MQTT-3.3.2.3.4].

use std::collections::HashMap;

/// Most aliases that are assigned, even if the other side allows more.
const MOST_ALIASES: u16 = 64;
/// Most bytes of all topics that have an alias.
const MOST_ALIAS_BYTES: usize = 16 << 10;

/// The topic aliases of the outgoing direction of a connection. The first topics get one each.
#[derive(Debug)]
pub(crate) struct OutboundAliases {
    maximum: u16,
    by_topic: HashMap<Box<str>, u16>,
    bytes: usize,
}

impl OutboundAliases {
    /// Assigns at most as many aliases as the other side accepts.
    pub(crate) fn new(maximum: u16) -> OutboundAliases {
        OutboundAliases { maximum: maximum.min(MOST_ALIASES), by_topic: HashMap::new(), bytes: 0 }
    }

    /// The alias of a topic, and whether the other side knows it already.
    pub(crate) fn get(&self, topic: &str) -> Option<(u16, bool)> {
        if self.maximum == 0 {
            return None;
        }
        let next = self.by_topic.len() as u16 + 1;
        match self.by_topic.get(topic) {
            Some(alias) => Some((*alias, true)),
            None => {
                let fits = next <= self.maximum && self.bytes + topic.len() <= MOST_ALIAS_BYTES;
                fits.then_some((next, false))
            }
        }
    }

    /// Records that a packet with this alias is being sent.
    pub(crate) fn sent(&mut self, topic: &str, alias: Option<(u16, bool)>) {
        if let Some((alias, false)) = alias {
            self.by_topic.insert(topic.into(), alias);
            self.bytes += topic.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends on this topic, and returns whether the packet had only the alias.
    fn send(aliases: &mut OutboundAliases, topic: &str) -> bool {
        let alias = aliases.get(topic);
        aliases.sent(topic, alias);
        alias.is_some()
    }

    #[test]
    fn there_are_no_more_than_the_other_side_takes_and_no_more_bytes_than_are_kept() {
        for (maximum, len, most) in [(0, 10, 0), (3, 10, 3), (u16::MAX, 10, 64), (u16::MAX, 1000, 16), (9, 65_000, 0)] {
            let mut aliases = OutboundAliases::new(maximum);
            let topic = |number: usize| format!("{number:0len$}");
            assert_eq!((0..1000).filter(|number| send(&mut aliases, &topic(*number))).count(), most, "{maximum} {len}");
            assert_eq!(aliases.get(&topic(0)).is_some_and(|(_, is_known)| is_known), most > 0);
        }
    }
}
