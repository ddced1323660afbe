//! Decides what to tell Home Assistant next, from what it has been told. A pure state machine: it takes events and returns
//! actions.
//!
//! # Removal
//!
//! An empty message on a device's topic removes the device. A component is removed by a configuration in which only its
//! platform is left. Both work only in a Home Assistant that is running and knows the configuration: one that was absent
//! keeps the old state for ever, as "unavailable". So:
//!
//! 1. what must be removed stays announced unchanged until Home Assistant says `online`, in this run or, by the file, in a
//!    later one;
//! 2. then it is announced once more and removed;
//! 3. it is forgotten when Home Assistant has stayed for [`HEARD_MS`] more. If Home Assistant had vanished without a
//!    message, it would have been reported as offline by then, and would be told again.
//!
//! # A person's decision
//!
//! If a person deletes a device on Home Assistant's page, Home Assistant clears the device's configuration. The device is
//! not announced again until its configuration here has changed. Switching the announcement off and on is no such change.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::device::Device;

/// The least time between two answers to births, in milliseconds.
pub(crate) const ANSWER_EVERY_MS: u64 = 10_000;
/// Longer than a broken connection counts as alive, which is one and a half times Home Assistant's keep alive of 60 s. In
/// milliseconds.
pub(crate) const HEARD_MS: u64 = 120_000;
/// Most devices that wait for their removal. If there are more, the first by name are forgotten.
pub(crate) const MOST_REMOVED: usize = 256;

/// A device that Home Assistant may know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownDevice {
    /// The last announcement, with the components that must be removed.
    payload: Map<String, Value>,
    fingerprint: String,
    /// The components that must be removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    leaving: BTreeSet<String>,
    /// Whether the device itself must be removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    /// When Home Assistant was told of the removal, in milliseconds of the boot clock.
    #[serde(skip)]
    told_ms: Option<u64>,
}

impl KnownDevice {
    /// Whether Home Assistant must be told of a removal when it comes.
    fn is_to_go(&self) -> bool {
        self.removed || !self.leaving.is_empty()
    }

    /// The announcement, with only the platform left of components that must be removed.
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

/// The state that is kept over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnnouncerMemory {
    #[serde(default)]
    known: BTreeMap<String, KnownDevice>,
    /// The topics of devices that a person has deleted in Home Assistant, with the fingerprints of their configuration at
    /// that time.
    #[serde(default)]
    deleted: BTreeMap<String, String>,
}

impl AnnouncerMemory {
    /// Whether Home Assistant knows nothing that would have to be removed.
    pub(crate) fn has_none_known(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether there is nothing to keep.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.deleted.is_empty()
    }
}

/// An action for the task that runs the announcer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AnnouncerAction {
    /// Publish a retained message.
    Publish {
        /// The topic of a device.
        topic: String,
        /// Its discovery message; empty to remove the device.
        payload: Vec<u8>,
    },
    /// Write the kept state, because it has changed.
    Save,
}

/// Decides what Home Assistant is told and when. It has no access to clock and broker.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    memory: AnnouncerMemory,
    /// The retained messages that the gateway has published.
    published: BTreeMap<String, Vec<u8>>,
    is_online: bool,
    answered_ms: Option<u64>,
    /// Whether Home Assistant has come since the last answer, and must be answered.
    is_asked: bool,
    actions: Vec<AnnouncerAction>,
}

impl Announcer {
    /// Continues from the state that an earlier run has kept.
    pub(crate) fn new(memory: AnnouncerMemory) -> Announcer {
        Announcer { memory, ..Announcer::default() }
    }

    /// The state to keep.
    pub(crate) fn memory(&self) -> &AnnouncerMemory {
        &self.memory
    }

    /// Whether there is nothing to announce and nothing to remove.
    pub(crate) fn is_done(&self) -> bool {
        self.memory.has_none_known()
    }

    /// Replaces the announced devices. There are none while the announcement is switched off.
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
        if !topics.is_empty() {
            self.memory.deleted.retain(|topic, _| topics.contains(topic));
        }
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

    /// Processes Home Assistant's message that it is online.
    pub(crate) fn birth(&mut self, now_ms: u64) -> Vec<AnnouncerAction> {
        self.is_online = true;
        if self.answered_ms.is_some_and(|last| now_ms.saturating_sub(last) < ANSWER_EVERY_MS) {
            self.is_asked = true;
            return Vec::new();
        }
        self.answer(now_ms)
    }

    /// Processes the message that Home Assistant is offline, from itself or from the broker as its will.
    pub(crate) fn offline(&mut self) {
        (self.is_online, self.is_asked) = (false, false);
        for known in self.memory.known.values_mut() {
            known.told_ms = None;
        }
    }

    /// Processes the deletion of a topic by somebody else. For a device that must be removed it means nothing: Home
    /// Assistant deletes the topic when it has removed the device, and may forget the removal in a crash.
    pub(crate) fn cleared(&mut self, topic: &str) -> Vec<AnnouncerAction> {
        let before = self.memory.clone();
        if self.memory.known.get(topic).is_some_and(|known| !known.removed)
            && let Some(known) = self.memory.known.remove(topic)
        {
            // what was published since then, such as an answer to a birth, is deleted too
            self.publish(topic, Vec::new());
            self.memory.deleted.insert(topic.into(), known.fingerprint);
        }
        self.finish(&before)
    }

    /// When [`Announcer::time`] must be called next.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let answer = self.answered_ms.filter(|_| self.is_asked).map(|last| last + ANSWER_EVERY_MS);
        let told = self.memory.known.values().filter_map(|known| known.told_ms).min().map(|told| told + HEARD_MS);
        answer.into_iter().chain(told).min()
    }

    /// Tells the announcer the present time.
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

    /// Adds a device with its present configuration, and keeps what must be removed from it.
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

    /// Answers Home Assistant: announces everything once more, and then removes what must be removed.
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

    /// Publishes the configuration as a retained message, unless it is already.
    fn show(&mut self, topic: &str) {
        if let Some(known) = self.memory.known.get(topic) {
            let payload = serde_json::to_vec(&known.payload).unwrap_or_default();
            self.publish(topic, payload);
        }
    }

    /// Tells Home Assistant what must be removed.
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

    /// Limits the size of the file where no Home Assistant ever comes.
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
            // the file must be written before anybody sees the messages
            self.actions.insert(0, AnnouncerAction::Save);
        }
        std::mem::take(&mut self.actions)
    }
}

#[cfg(test)]
mod tests;
