//! Argon2id hashes that replace mosquitto's weaker ones.
//!
//! mosquitto's hashes are quick to guess against. When a user with such a hash first signs in, the gateway knows the
//! password for a moment and makes an argon2id hash from it, against which it checks from then on. The gateway does not
//! write the configuration, so it keeps the new hash in its data directory, under a digest of the old one. Changing
//! `password_hash` in the configuration therefore replaces both. User names are not kept here.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::hash::{is_from_mosquitto, is_usable};
use crate::secret::sha256_hex;

/// Most hashes that are kept.
const MOST: usize = 4096;

/// Argon2id hashes by the digest of the hash that they replace. The text form has one line for each: digest, tab, hash.
#[derive(Debug, Default)]
pub struct Replaced {
    hashes: Mutex<BTreeMap<Box<str>, Box<str>>>,
    changed: watch::Sender<u64>,
}

fn name(hash: &str) -> Box<str> {
    sha256_hex(hash.as_bytes()).into()
}

impl Replaced {
    /// The hash to check instead of this configured one, if it was replaced.
    pub(crate) fn get(&self, configured: &str) -> Option<String> {
        // argon2id hashes are never replaced, and looking them up would take time at every sign-in
        is_from_mosquitto(configured).then(|| self.hashes.lock().get(&name(configured)).map(|hash| (**hash).into()))?
    }

    /// Stores a hash that replaces a configured one.
    pub(crate) fn set(&self, configured: &str, made: &str) {
        let mut hashes = self.hashes.lock();
        if hashes.len() < MOST && hashes.insert(name(configured), made.into()).is_none() {
            drop(hashes);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Forgets replacements for hashes that are not configured any more.
    pub(crate) fn retain<'a>(&self, configured: impl Iterator<Item = &'a str>) {
        let names: Vec<_> = configured.filter(|hash| is_from_mosquitto(hash)).map(name).collect();
        let mut hashes = self.hashes.lock();
        let before = hashes.len();
        hashes.retain(|name, _| names.contains(name));
        let is_changed = hashes.len() != before;
        drop(hashes);
        if is_changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// A counter that changes when there is something new to store.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The text form, kept over restarts.
    pub fn to_text(&self) -> String {
        self.hashes.lock().iter().map(|(name, hash)| format!("{name}\t{hash}\n")).collect()
    }

    /// Adds the entries of a text form where none is known, and skips lines that cannot be read; for those the configured
    /// hash counts.
    pub fn read(&self, text: &str) {
        let lines = text.lines().filter_map(|line| line.split_once('\t'));
        let lines = lines.filter(|(_, hash)| is_usable(hash) && !is_from_mosquitto(hash));
        let mut hashes = self.hashes.lock();
        for (name, hash) in lines {
            if hashes.len() < MOST {
                hashes.entry(name.into()).or_insert_with(|| hash.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str =
        "$6$NnORNO+Hq9AG2LI5$2UB54qxnjCLgjn/JLSIUgxwJqz0NgHwVBurKcrYHRMWCoD9LrqUBg8JkFSHFV5rAvIjPGIfVr29fTMRCFEUvIw==";
    const NEW: &str = super::super::hash::NOBODY;

    #[test]
    fn what_is_kept_is_read_and_names_nobody() {
        let replaced = Replaced::default();
        assert_eq!(replaced.get(OLD), None);
        replaced.set(OLD, NEW);
        assert_eq!(replaced.get(OLD).as_deref(), Some(NEW));
        assert_eq!(replaced.get(NEW), None);
        let text = replaced.to_text();
        assert!(!text.contains("$6$") && text.contains(NEW), "{text}");
        let again = Replaced::default();
        again.read(&format!("{text}damaged\nx\tsecret\ny\t{OLD}\n"));
        assert_eq!(again.to_text(), text, "nothing that is no argon2id hash");
    }

    #[test]
    fn another_hash_in_the_configuration_wins() {
        let replaced = Replaced::default();
        replaced.set(OLD, NEW);
        let mut changed = replaced.changed();
        changed.mark_unchanged();
        replaced.retain([OLD].into_iter());
        assert!(replaced.get(OLD).is_some() && !changed.has_changed().unwrap());
        replaced.retain([NEW].into_iter());
        assert!(replaced.get(OLD).is_none() && changed.has_changed().unwrap());
    }
}
