//! What Home Assistant has been told, and what it is to be told next. Pure: it takes what happened and returns what to do.
//!
//! # Removal
//!
//! An empty message on a device's topic removes the device, and a component is removed by a configuration in which nothing
//! is left of it but its platform. Both work only in a Home Assistant that has the configuration before its eyes: one that was
//! away keeps what it knew for good, as "unavailable". So
//!
//! 1. what is to go stays announced as it was until Home Assistant says `online`, in this run or, by the file, in a later one;
//! 2. then it is announced once more and removed;
//! 3. and it is forgotten once Home Assistant has been there for [`HEARD_MS`] more: one that had vanished without a word would
//!    have been reported as away by then, and is told again.
//!
//! # A person's decision
//!
//! Whoever deletes a device in Home Assistant's page clears its configuration. It is not announced again until what is
//! configured for it here has changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::device::Device;

/// Between two answers to births.
pub(crate) const ANSWER_EVERY_MS: u64 = 10_000;
/// Longer than a connection that was cut is taken for alive: one and a half times Home Assistant's keep alive of 60 s.
pub(crate) const HEARD_MS: u64 = 120_000;
/// Devices that wait for their removal; with more, the first by name are forgotten.
pub(crate) const MOST_REMOVED: usize = 256;

/// A device that Home Assistant may know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownDevice {
    /// What was announced last, with the components that are to go.
    payload: Map<String, Value>,
    fingerprint: String,
    /// Components that are to go.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    leaving: BTreeSet<String>,
    /// The device itself is to go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    /// Boot clock, in milliseconds, when Home Assistant was told of what goes.
    #[serde(skip)]
    told_ms: Option<u64>,
}

impl KnownDevice {
    /// Whether Home Assistant has something to hear of when it comes.
    fn is_to_go(&self) -> bool {
        self.removed || !self.leaving.is_empty()
    }

    /// The payload with nothing but the platform of what goes.
    fn without_leaving(&self) -> Map<String, Value> {
        let mut payload = self.payload.clone();
        for name in &self.leaving {
            if let Some(part) = payload.get_mut("cmps").and_then(|parts| parts.get_mut(name)) {
                *part = json!({"p": part["p"]});
            }
        }
        payload
    }
}

/// What is kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncerMemory {
    #[serde(default)]
    known: BTreeMap<String, KnownDevice>,
    /// What a person has deleted in Home Assistant: topics, with the fingerprint of what was configured then.
    #[serde(default)]
    deleted: BTreeMap<String, String>,
}

impl AnnouncerMemory {
    /// Whether nothing needs to be kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.deleted.is_empty()
    }
}

/// What the task beside the announcer has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnnouncerAction {
    /// To be published, retained.
    Publish {
        /// Topic of a device.
        topic: String,
        /// Its discovery message; empty to remove it.
        payload: Vec<u8>,
    },
    /// What is kept over restarts has changed.
    Save,
}

/// Decides what Home Assistant is told and when; knows no clock and no broker.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    memory: AnnouncerMemory,
    /// What is retained because of us.
    published: BTreeMap<String, Vec<u8>>,
    is_online: bool,
    answered_ms: Option<u64>,
    /// Home Assistant has come since, and is to be answered when that may be.
    is_asked: bool,
    actions: Vec<AnnouncerAction>,
}

impl Announcer {
    /// Goes on from what an earlier run has kept.
    pub(crate) fn new(memory: AnnouncerMemory) -> Announcer {
        Announcer { memory, ..Announcer::default() }
    }

    /// What is to be kept.
    pub(crate) fn memory(&self) -> &AnnouncerMemory {
        &self.memory
    }

    /// Whether there is nothing to announce and nothing to remove.
    pub(crate) fn is_done(&self) -> bool {
        self.memory.known.is_empty()
    }

    /// These are the devices from now on.
    pub(crate) fn announce(&mut self, devices: Vec<Device>, now_ms: u64) -> Vec<AnnouncerAction> {
        let before = self.memory.clone();
        let topics: BTreeSet<String> = devices.iter().map(|device| device.topic.clone()).collect();
        for device in devices {
            match self.memory.deleted.get(&device.topic) {
                Some(fingerprint) if *fingerprint == device.fingerprint => continue,
                _ => self.memory.deleted.remove(&device.topic),
            };
            self.take(device);
        }
        self.memory.deleted.retain(|topic, _| topics.contains(topic));
        for (topic, known) in &mut self.memory.known {
            if !topics.contains(topic) && !known.removed {
                (known.removed, known.told_ms) = (true, None);
            }
        }
        self.bound();
        for topic in self.topics() {
            if self.memory.known.get(&topic).is_some_and(|known| known.told_ms.is_none()) {
                self.show(&topic);
                if self.is_online {
                    self.tell(&topic, now_ms);
                }
            }
        }
        self.finish(&before)
    }

    /// Home Assistant says that it is there.
    pub(crate) fn birth(&mut self, now_ms: u64) -> Vec<AnnouncerAction> {
        self.is_online = true;
        if self.answered_ms.is_some_and(|last| now_ms.saturating_sub(last) < ANSWER_EVERY_MS) {
            self.is_asked = true;
            return Vec::new();
        }
        self.answer(now_ms)
    }

    /// It says that it goes, or the broker says it in its place.
    pub(crate) fn offline(&mut self) {
        (self.is_online, self.is_asked) = (false, false);
        for known in self.memory.known.values_mut() {
            known.told_ms = None;
        }
    }

    /// Somebody else has cleared a topic. Of what is to go that means nothing: Home Assistant does so when it has removed it, and
    /// may still forget that in a crash.
    pub(crate) fn cleared(&mut self, topic: &str) -> Vec<AnnouncerAction> {
        let before = self.memory.clone();
        if self.memory.known.get(topic).is_some_and(|known| !known.removed)
            && let Some(known) = self.memory.known.remove(topic)
        {
            // what was published since, such as in answer to a birth, is cleared too
            self.publish(topic, Vec::new());
            self.memory.deleted.insert(topic.into(), known.fingerprint);
        }
        self.finish(&before)
    }

    /// When [`Announcer::time`] is to be called next.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let answer = self.answered_ms.filter(|_| self.is_asked).map(|last| last + ANSWER_EVERY_MS);
        let told = self.memory.known.values().filter_map(|known| known.told_ms).min().map(|told| told + HEARD_MS);
        answer.into_iter().chain(told).min()
    }

    /// Time has come so far.
    pub(crate) fn time(&mut self, now_ms: u64) -> Vec<AnnouncerAction> {
        let before = self.memory.clone();
        if self.is_asked && self.answered_ms.is_none_or(|last| now_ms >= last + ANSWER_EVERY_MS) {
            return self.answer(now_ms);
        }
        for topic in self.topics() {
            let Some(known) = self.memory.known.get_mut(&topic) else { continue };
            if known.told_ms.is_none_or(|told| now_ms < told + HEARD_MS) {
                continue;
            }
            if known.removed {
                self.memory.known.remove(&topic);
                continue;
            }
            known.told_ms = None;
            let leaving = std::mem::take(&mut known.leaving);
            if let Some(Value::Object(parts)) = known.payload.get_mut("cmps") {
                parts.retain(|name, _| !leaving.contains(name));
            }
            self.show(&topic);
        }
        self.finish(&before)
    }

    fn topics(&self) -> Vec<String> {
        self.memory.known.keys().cloned().collect()
    }

    /// Takes a device in as it is configured now, with what is to go of it.
    fn take(&mut self, device: Device) {
        let Device { topic, fingerprint, payload } = device;
        let mut new = KnownDevice { payload, fingerprint, leaving: BTreeSet::new(), removed: false, told_ms: None };
        if let Some(old) = self.memory.known.get(&topic) {
            let parts =
                |known: &KnownDevice| known.payload.get("cmps").and_then(Value::as_object).cloned().unwrap_or_default();
            let (was, is) = (parts(old), parts(&new));
            for (name, part) in was.into_iter().filter(|(name, _)| !is.contains_key(name)) {
                if let Some(Value::Object(parts)) = new.payload.get_mut("cmps") {
                    parts.insert(name.clone(), part);
                    new.leaving.insert(name);
                }
            }
            if new.leaving == old.leaving && !old.removed && new.payload == old.payload {
                new.told_ms = old.told_ms;
            }
        }
        self.memory.known.insert(topic, new);
    }

    /// Home Assistant has come: everything once more, and then what is to go.
    fn answer(&mut self, now_ms: u64) -> Vec<AnnouncerAction> {
        let before = self.memory.clone();
        (self.answered_ms, self.is_asked) = (Some(now_ms), false);
        for topic in self.topics() {
            self.published.remove(&topic);
            self.show(&topic);
            self.tell(&topic, now_ms);
        }
        self.finish(&before)
    }

    /// Has the configuration retained, as far as it is not.
    fn show(&mut self, topic: &str) {
        if let Some(known) = self.memory.known.get(topic) {
            let payload = serde_json::to_vec(&known.payload).unwrap_or_default();
            self.publish(topic, payload);
        }
    }

    /// Tells a Home Assistant that listens what goes.
    fn tell(&mut self, topic: &str, now_ms: u64) {
        let Some(known) = self.memory.known.get_mut(topic).filter(|known| known.is_to_go()) else { return };
        known.told_ms = Some(now_ms);
        let payload = match known.removed {
            true => Vec::new(),
            false => serde_json::to_vec(&known.without_leaving()).unwrap_or_default(),
        };
        self.publish(topic, payload);
    }

    fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        if self.published.get(topic) != Some(&payload) {
            self.published.insert(topic.into(), payload.clone());
            self.actions.push(AnnouncerAction::Publish { topic: topic.into(), payload });
        }
    }

    /// Keeps the file small where no Home Assistant ever comes.
    fn bound(&mut self) {
        let removed: Vec<_> =
            self.memory.known.iter().filter(|(_, known)| known.removed).map(|(topic, _)| topic.clone()).collect();
        for topic in removed.iter().take(removed.len().saturating_sub(MOST_REMOVED)) {
            self.memory.known.remove(topic);
            self.publish(topic, Vec::new());
        }
    }

    fn finish(&mut self, before: &AnnouncerMemory) -> Vec<AnnouncerAction> {
        if self.memory != *before {
            // on disk before anybody hears of it
            self.actions.insert(0, AnnouncerAction::Save);
        }
        std::mem::take(&mut self.actions)
    }
}

#[cfg(test)]
mod tests;
