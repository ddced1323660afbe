//! Named values and retained messages, which are kept in their present state and not until somebody has read them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bytes::Bytes;

use crate::message::Message;

/// Separates the name of a session from the rest of the name of one of its parts. Neither user names nor client ids nor
/// filters contain NUL [MQTT-1.5.4-2], and a session's name has no two of them in a row.
pub(crate) const PART: &str = "\0\0";

/// The kept values and messages.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Persistent sessions. Names that begin with NUL belong to values of other rooms.
    values: BTreeMap<Box<str>, Bytes>,
    /// Retained messages by topic.
    retained: HashMap<Box<str>, Message>,
}

impl Kept {
    /// Keeps or deletes the retained message of a topic.
    pub(crate) fn retain(&mut self, message: Message) {
        let view = message.view();
        if view.payload().is_empty() {
            self.retained.remove(view.topic());
        } else {
            self.retained.insert(view.topic().into(), message);
        }
    }

    /// Deletes the retained message of a topic.
    pub(crate) fn forget_retained(&mut self, topic: &str) {
        self.retained.remove(topic);
    }

    pub(crate) fn retained(&self) -> impl ExactSizeIterator<Item = &Message> {
        self.retained.values()
    }

    pub(crate) fn retained_on(&self, topic: &str) -> Option<&Message> {
        self.retained.get(topic)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = (&Box<str>, &Bytes)> {
        self.values.iter()
    }

    pub(crate) fn value(&self, name: &str) -> Option<&Bytes> {
        self.values.get(name)
    }

    pub(crate) fn keep(&mut self, name: &str, value: &[u8]) {
        self.values.insert(name.into(), Bytes::copy_from_slice(value));
    }

    /// Deletes a named value with its parts.
    pub(crate) fn forget(&mut self, name: &str) {
        self.values.remove(name);
        let parts = format!("{name}{PART}");
        let known: Vec<Box<str>> = self.beginning_with(&parts).map(|(name, _)| name.clone()).collect();
        for name in known {
            self.values.remove(&name);
        }
    }

    /// The named values with this prefix.
    pub(crate) fn beginning_with<'a>(&'a self, begin: &'a str) -> impl Iterator<Item = (&'a Box<str>, &'a Bytes)> {
        let from = (Bound::Included(begin), Bound::Unbounded);
        self.values.range::<str, _>(from).take_while(move |(name, _)| name.starts_with(begin))
    }

    /// Deletes parts of values that do not exist, which damage can leave behind.
    pub(crate) fn forget_lost_parts(&mut self) {
        let is_lost = |name: &str| name.split_once(PART).is_some_and(|(whole, _)| !self.values.contains_key(whole));
        let lost: Vec<Box<str>> =
            self.values.keys().filter(|name| !name.starts_with('\0') && is_lost(name)).cloned().collect();
        for name in lost {
            self.values.remove(&name);
        }
    }

    /// The sessions of clients, without the wills and marks that are stored beside them.
    pub(crate) fn client_sessions(&self) -> impl Iterator<Item = (&Box<str>, &Bytes)> {
        self.values.iter().filter(|(name, _)| !name.starts_with('\0') && !name.contains(PART))
    }
}
