//! The last message on each recently used topic. Its size is bounded: the topic without a message for longest makes room.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::message::{Message, matches};

/// The most topics that are kept.
pub(crate) const MAX_TOPICS: usize = 2000;
/// The most bytes that are kept, including the memory of the store itself.
pub(crate) const MAX_BYTES: usize = 2 << 20;
/// The bytes that a topic needs in addition to its message: two tree entries.
const OVERHEAD: usize = 160;

#[derive(Debug)]
struct TopicSlot {
    message: Message,
    age: u64,
}

/// The last messages by topic.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    by_topic: BTreeMap<Arc<str>, TopicSlot>,
    /// The topics by the age of their messages, oldest first.
    by_age: BTreeMap<u64, Arc<str>>,
    next_age: u64,
    bytes: usize,
}

fn cost(message: &Message) -> usize {
    message.size() + message.view().topic().len() + OVERHEAD
}

impl Recent {
    /// Adds a message, which must be in memory of its own. An empty message with the retain flag removes its topic, like the
    /// retained message.
    pub(crate) fn insert(&mut self, message: &Message) {
        let view = message.view();
        let is_clearing = view.retain() && view.payload().is_empty();
        if is_clearing || cost(message) > MAX_BYTES {
            self.remove(view.topic());
            return;
        }
        let age = self.next_age;
        self.next_age += 1;
        self.bytes += cost(message);
        if let Some(slot) = self.by_topic.get_mut(view.topic()) {
            self.bytes -= cost(&slot.message);
            slot.message = message.clone();
            if let Some(topic) = self.by_age.remove(&slot.age) {
                self.by_age.insert(age, topic);
            }
            slot.age = age;
        } else {
            let topic: Arc<str> = view.topic().into();
            self.by_age.insert(age, topic.clone());
            self.by_topic.insert(topic, TopicSlot { message: message.clone(), age });
        }
        while self.bytes > MAX_BYTES || self.by_topic.len() > MAX_TOPICS {
            let Some(oldest) = self.by_age.first_key_value().map(|(_, topic)| topic.clone()) else { return };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, topic: &str) {
        if let Some(slot) = self.by_topic.remove(topic) {
            self.by_age.remove(&slot.age);
            self.bytes -= cost(&slot.message);
        }
    }

    /// The last message on a topic.
    pub(crate) fn get(&self, topic: &str) -> Option<&Message> {
        self.by_topic.get(topic).map(|slot| &slot.message)
    }

    /// The messages that match `filter` on topics after `after`, in the order of topics.
    pub(crate) fn select<'a>(&'a self, filter: &'a str, after: &'a str) -> impl Iterator<Item = &'a Message> {
        self.by_topic
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
            .filter(move |(topic, _)| matches(filter, topic))
            .map(|(_, slot)| &slot.message)
    }

    /// The numbers of topics and of bytes, as limited.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.by_topic.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::message;
    use super::*;

    #[test]
    fn the_last_message_counts_and_the_quietest_topic_gives_way() {
        let mut recent = Recent::default();
        for number in 0..MAX_TOPICS {
            recent.insert(&message(&format!("t/{number}"), "1", false));
        }
        recent.insert(&message("t/0", "2", false));
        recent.insert(&message("new", "3", false));
        assert_eq!(recent.size().0, MAX_TOPICS);
        assert!(recent.get("t/1").is_none(), "it was quiet for longest");
        assert_eq!(recent.get("t/0").unwrap().view().payload(), b"2");
        assert_eq!(recent.select("t/+", "t/98").count(), 21, "980 to 989, 99, 990 to 999");
    }

    #[test]
    fn bytes_are_bounded_and_add_up() {
        let mut recent = Recent::default();
        let large = "x".repeat(MAX_BYTES / 4);
        for number in 0..20 {
            recent.insert(&message(&format!("{number}"), &large, false));
            recent.insert(&message(&format!("{number}"), "small", number % 2 == 0));
            recent.insert(&message(&format!("{number}"), &large, false));
            assert!(recent.size().1 <= MAX_BYTES);
        }
        recent.insert(&message("19", &"x".repeat(MAX_BYTES), false));
        assert!(recent.get("19").is_none(), "better none than an old one");
        for number in 0..20 {
            recent.insert(&message(&format!("{number}"), "", true));
        }
        assert_eq!(recent.size(), (0, 0));
    }
}
