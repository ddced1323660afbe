//! The random suffix of the default client id at upstreams. It keeps two gateways with the same host name from disconnecting
//! each other. It is chosen when the data directory is created and then stays, because sessions and access lists depend on
//! it. Older data directories have no suffix.

use std::fs;
use std::path::Path;

use tracing::error;

use crate::config::Settings;
use crate::secret::{read_private, replace_private};

/// The name of the file with the suffix.
const FILE: &str = "client-id-suffix";
const DIGITS: usize = 6;
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 64;
/// Files that identify a machine: the serial number of a Pi, or else the id that the system got at its installation.
const MACHINE: [&str; 2] = ["/proc/device-tree/serial-number", "/etc/machine-id"];

/// Chooses the suffix for a new data directory. To be called when the directory is locked.
pub(super) fn choose(data_dir: &Path, is_new: bool) {
    if !is_new || fs::symlink_metadata(data_dir.join(FILE)).is_ok() {
        return;
    }
    let machine = MACHINE.iter().find_map(|path| fs::read(path).ok().filter(|id| id.len() >= 8));
    let hash = match machine {
        Some(id) => crate::message::fnv::hash(&id),
        None => getrandom::u64().unwrap_or_default(),
    };
    let suffix = format!("{:0width$x}", hash & 0xff_ffff, width = DIGITS);
    // if the disk cannot be written, the id stays without a suffix
    let _ = replace_private(&data_dir.join(FILE), suffix.as_bytes());
}

/// Appends the suffix to client ids that are not configured.
pub(super) fn apply(settings: &mut Settings, data_dir: &Path) {
    let file = data_dir.join(FILE);
    let suffix = match read_private(&file, LARGEST) {
        Ok(Some(suffix)) => suffix,
        Ok(None) => return,
        Err(error) => {
            let file = file.display();
            error!("{file} cannot be read ({error}): upstreams without client_id take this gateway for another one");
            return;
        }
    };
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
