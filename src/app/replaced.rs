//! Keeps the argon2id hashes that have replaced mosquitto's hashes over restarts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Access;
use crate::access::settings::AccessSettings;
use crate::secret::{read_private, replace_private};

/// The name of the file in the data directory.
const NAME: &str = "password-hashes";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 4 << 20;

/// Reads the file and returns its text. If all users are known, forgets hashes that are no longer configured. Blocks for a
/// moment.
pub(crate) fn read(data_dir: &Path, access: &Access, settings: &AccessSettings, all_are_known: bool) -> String {
    let text = read_private(&data_dir.join(NAME), LARGEST).unwrap_or_default();
    access.passwords.replaced.read(&text);
    if all_are_known {
        access.passwords.replaced.retain(settings.hashes());
    }
    text
}

/// Writes the hashes whenever they differ from the file, until the gateway shuts down.
pub(crate) async fn keep(data_dir: PathBuf, mut written: String, access: Arc<Access>, cancel: CancellationToken) {
    let replaced = &access.passwords.replaced;
    let mut changed = replaced.changed();
    // what was forgotten at the start must be written too
    changed.mark_changed();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = changed.changed() => {}
        }
        let text = replaced.to_text();
        if text == written {
            continue;
        }
        let (path, content) = (data_dir.join(NAME), text.clone());
        let done = tokio::task::spawn_blocking(move || replace_private(&path, content.as_bytes())).await;
        match done.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok(()) if text.is_empty() => written = text,
            Ok(()) => {
                info!(
                    "passwords are checked against argon2id in place of mosquitto's hashes; \
                       `pigateway user` makes such a hash for the configuration"
                );
                written = text;
            }
            // the next replaced hash causes another attempt
            Err(error) => warn!(%error, "argon2id hashes cannot be written: after a restart mosquitto's hold again"),
        }
    }
}
