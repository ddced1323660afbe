//! The last message on each recently used topic. Its size is bounded: of the owner that has most, the topic without a message for
//! longest makes room.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::message::{Message, Owner, matches};

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

/// What one owner has here.
#[derive(Debug, Default)]
struct OwnedTopics {
    /// The topics by the age of their messages, oldest first.
    by_age: BTreeMap<u64, Arc<str>>,
    bytes: usize,
}

/// The last messages by topic.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    by_topic: BTreeMap<Arc<str>, TopicSlot>,
    by_owner: HashMap<Owner, OwnedTopics>,
    next_age: u64,
    bytes: usize,
}

fn cost(message: &Message) -> usize {
    message.size() + message.view().topic().len() + OVERHEAD
}

fn owner(message: &Message) -> Owner {
    message.view().origin().owner
}

impl Recent {
    /// Adds a message, which must be in memory of its own. An empty message with the retain flag removes its topic, like the
    /// retained message.
    pub(crate) fn insert(&mut self, message: &Message) {
        let view = message.view();
        // the name is shared with the slot that it replaces
        let known = self.remove(view.topic());
        let is_clearing = view.retain() && view.payload().is_empty();
        if is_clearing || cost(message) > MAX_BYTES {
            return;
        }
        let age = self.next_age;
        self.next_age += 1;
        self.bytes += cost(message);
        let topic = known.unwrap_or_else(|| view.topic().into());
        let owned = self.by_owner.entry(owner(message)).or_default();
        owned.by_age.insert(age, topic.clone());
        owned.bytes += cost(message);
        self.by_topic.insert(topic, TopicSlot { message: message.clone(), age });
        while let Some(oldest) = self.in_excess() {
            self.remove(&oldest);
        }
    }

    /// The topic that makes room, if there is too much: the oldest of the owner that has most of what there is too much of.
    fn in_excess(&self) -> Option<Arc<str>> {
        let owned = self.by_owner.values();
        let most = if self.bytes > MAX_BYTES {
            owned.max_by_key(|owned| owned.bytes)
        } else if self.by_topic.len() > MAX_TOPICS {
            owned.max_by_key(|owned| owned.by_age.len())
        } else {
            None
        };
        most?.by_age.first_key_value().map(|(_, topic)| topic.clone())
    }

    /// Removes a topic, and returns its name if it was there.
    fn remove(&mut self, topic: &str) -> Option<Arc<str>> {
        let (name, slot) = self.by_topic.remove_entry(topic)?;
        let (owner, cost) = (owner(&slot.message), cost(&slot.message));
        self.bytes -= cost;
        if let Some(owned) = self.by_owner.get_mut(&owner) {
            owned.by_age.remove(&slot.age);
            owned.bytes -= cost;
            if owned.by_age.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(name)
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
    use crate::message::{Draft, Origin};

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
    fn whoever_has_most_gives_way_first() {
        let mut recent = Recent::default();
        let of = |owner: Owner, topic: &str, payload: &str| {
            let origin = Origin::gateway().owned_by(owner);
            Message::new(&Draft { origin, ..Draft::new(topic, payload.as_bytes()) })
        };
        let user = Owner::of(Some("user"));
        recent.insert(&of(user, "theirs", "1"));
        for number in 0..2 * MAX_TOPICS {
            recent.insert(&of(Owner::GUESTS, &format!("guest/{number}"), "1"));
        }
        assert_eq!(recent.size().0, MAX_TOPICS);
        for number in 0..20 {
            recent.insert(&of(Owner::GUESTS, &format!("large/{number}"), &"x".repeat(MAX_BYTES / 3)));
        }
        assert!(recent.get("theirs").is_some(), "others do not displace it");
        // whoever published last to a topic has it
        recent.insert(&of(Owner::GUESTS, "theirs", "2"));
        recent.insert(&of(user, "large/19", "2"));
        assert_eq!(recent.by_owner[&user].by_age.len(), 1);
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
