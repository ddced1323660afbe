//! Targets for the configuration, users, configurations of other programs, and the gateway's own notes.

use std::path::{Path, PathBuf};

use pigateway::access::familiar::Familiar;
use pigateway::access::hash::{is_from_mosquitto, is_usable};
use pigateway::access::replaced::Replaced;
use pigateway::broker::keep::KeptSession;
use pigateway::config::{Environment, made_users_text, read, read_made_users};
use pigateway::home_assistant::announcer::AnnouncerMemory;
use pigateway::import::{ImportError, Imported, Options, mosquitto, mqtt_io};

use super::meter::paid_by;

fn environment() -> Environment {
    Environment { host_name: "fuzz".into(), state_dir: None, credentials_dir: None }
}

/// A configuration: it gives valid settings, or at least one problem with its place.
pub(super) fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match read(text, Path::new("fuzz/none/pigateway.toml"), &environment()) {
        Ok(loaded) => assert!(!loaded.settings.broker.listeners.is_empty()),
        Err(problems) => {
            assert!(!problems.problems.is_empty());
            assert!(!problems.to_string().is_empty());
        }
    }
}

/// The file of users that were made by HTTP: it gives users that are the same after they are written and read again, or
/// problems.
pub(super) fn users(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match read_made_users(text, "users.toml") {
        Ok(made) => {
            let users = made.settings();
            for user in &users {
                assert!(!user.is_admin, "a file of the gateway's own makes an administrator");
                assert!(user.password_hash.as_deref().is_none_or(is_usable));
            }
            let again = read_made_users(&made_users_text(&users), "again").map(|made| made.settings());
            assert_eq!(again.ok(), Some(users));
        }
        Err(problems) => assert!(!problems.problems.is_empty()),
    }
}

/// A directory for files that must have names, in memory if possible. It is the same for all inputs, which leave nothing in it
/// that the next one reads, and it is removed with the thread.
fn place() -> PathBuf {
    thread_local! {
        static PLACE: tempfile::TempDir = {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            match made {
                Ok(place) => place,
                Err(error) => panic!("{error}"),
            }
        };
    }
    PLACE.with(|place| place.path().to_owned())
}

fn written(place: &Path, name: &str, data: &[u8]) -> PathBuf {
    let path = place.join(name);
    if let Err(error) = std::fs::write(&path, data) {
        panic!("{}: {error}", path.display());
    }
    path
}

/// A hash as `pigateway user` makes it.
const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A file of mosquitto (its configuration, passwords or access control list, recognised by its contents) or of mqtt-io.
/// Every line has exactly one outcome, and `check` can read the result.
pub(super) fn imports(data: &[u8]) {
    if data.len() > 4096 {
        return;
    }
    // a hash is meant to be slow, and its text is the same kind for every password
    let options = Options { host_name: "fuzz", keeps_secrets: true, hash: |_| Ok(HASH.into()) };
    let place = place();
    let path = written(&place, "file", data);
    for imported in [mosquitto::import(std::slice::from_ref(&path), &options), mqtt_io::import(&path, &options)] {
        match imported {
            Ok(Imported { text, summary, secrets }) => {
                let fates = [summary.taken, summary.differ, summary.not_needed, summary.not_taken];
                assert_eq!(fates.iter().sum::<usize>() + summary.not_understood, summary.lines, "{summary:?}");
                assert!(text.chars().all(|c| c == '\n' || !c.is_ascii_control()), "{text:?}");
                for secret in &secrets {
                    assert!(!secret.name.contains('/') && !secret.name.starts_with('.'), "{}", secret.name);
                    written(&place, &secret.name, secret.password.as_bytes());
                }
                // an empty or invalid name is taken over unchanged, so that `check` reports it
                if let Err(problems) = read(&text, &place.join("pigateway.toml"), &environment()) {
                    assert!(!problems.problems.is_empty());
                }
                secrets.iter().for_each(|secret| _ = std::fs::remove_file(place.join(&secret.name)));
            }
            Err(error) => assert!(!error.to_string().is_empty() && !matches!(error, ImportError::Hash(_))),
        }
    }
}

/// The gateway's own notes in its data directory, with damage. Everything that can be read must be the same after it is
/// written and read again.
pub(super) fn notes(data: &[u8]) {
    paid_by(data.len(), (64 << 10, 512), || {
        if let Some(kept) = KeptSession::decode(data) {
            // newer versions keep subscriptions in notes of their own
            let again = KeptSession { subscriptions: Vec::new(), ..kept };
            assert_eq!(KeptSession::decode(&again.encode()), Some(again));
        }
        if let Ok(memory) = serde_json::from_slice::<AnnouncerMemory>(data) {
            let text = serde_json::to_vec(&memory).unwrap_or_default();
            assert_eq!(serde_json::from_slice::<AnnouncerMemory>(&text).ok(), Some(memory));
        }
        let Ok(text) = std::str::from_utf8(data) else { return };
        let (familiar, again) = (Familiar::default(), Familiar::default());
        familiar.read(text);
        again.read(&familiar.to_text());
        assert_eq!(again.to_text(), familiar.to_text());
        let (replaced, again) = (Replaced::default(), Replaced::default());
        replaced.read(text);
        again.read(&replaced.to_text());
        assert_eq!(again.to_text(), replaced.to_text());
        for line in text.lines().take(4) {
            assert!(!is_from_mosquitto(line) || is_usable(line));
        }
    });
}
