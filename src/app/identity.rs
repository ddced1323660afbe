//! What the default client id towards upstreams ends in, so that two gateways with one host name do not send each other
//! away. It is chosen when the data directory is made, and stays: sessions and access lists depend on it. Directories that
//! are older have none.

use std::fs;
use std::path::Path;

use crate::config::Settings;

/// The file with it.
const FILE: &str = "client-id-suffix";
const DIGITS: usize = 6;
/// What tells machines apart: the serial number of a Pi, else the id that the system was given when it was installed.
const MACHINE: [&str; 2] = ["/proc/device-tree/serial-number", "/etc/machine-id"];

/// Chooses it where there is no data directory yet. To be called when that is ours.
pub(super) fn choose(data_dir: &Path, is_new: bool) {
    if !is_new || data_dir.join(FILE).exists() {
        return;
    }
    let machine = MACHINE.iter().find_map(|path| fs::read(path).ok().filter(|id| id.len() >= 8));
    let hash = match machine {
        Some(id) => crate::message::fnv::hash(&id),
        None => getrandom::u64().unwrap_or_default(),
    };
    let suffix = format!("{:0width$x}", hash & 0xff_ffff, width = DIGITS);
    // where the disk takes nothing, the id is the plain one, and stays that
    let _ = fs::write(data_dir.join(FILE), suffix);
}

/// Appends it to the client ids that are not configured.
pub(super) fn apply(settings: &mut Settings, data_dir: &Path) {
    let Ok(suffix) = fs::read_to_string(data_dir.join(FILE)) else { return };
    let suffix = suffix.trim();
    if suffix.len() != DIGITS || !suffix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return;
    }
    for upstream in settings.upstreams.iter_mut().filter(|upstream| upstream.has_default_client_id) {
        upstream.client_id = format!("{}-{suffix}", upstream.client_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, read};

    #[test]
    fn new_directories_have_one_and_old_ones_keep_the_plain_id() {
        let dir = tempfile::tempdir().unwrap();
        let text = "[gateway]\nid = \"loft\"\n[[upstream]]\nname = \"a\"\naddresses = [\"mqtt://a\"]\n\
                    [[upstream]]\nname = \"b\"\naddresses = [\"mqtt://b\"]\nclient_id = \"mine\"\n";
        let ids = || {
            let mut settings = read(text, &dir.path().join("x.toml"), &Environment::default()).unwrap().settings;
            apply(&mut settings, dir.path());
            settings.upstreams.into_iter().map(|upstream| upstream.client_id).collect::<Vec<_>>()
        };
        choose(dir.path(), false);
        assert_eq!(ids(), ["pigateway-loft", "mine"]);
        choose(dir.path(), true);
        let chosen = ids();
        assert!(chosen[0].len() == "pigateway-loft-".len() + DIGITS && chosen[1] == "mine", "{chosen:?}");
        choose(dir.path(), true);
        assert_eq!(ids(), chosen, "it stays");
    }
}
