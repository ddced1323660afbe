//! Keeps over restarts the hashes that are in place of mosquitto's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Access;
use crate::access::settings::AccessSettings;
use crate::secret::replace_private;

/// The file's name in the data directory.
const NAME: &str = "password-hashes";
/// A larger file is none of ours.
const LARGEST: u64 = 4 << 20;

/// Reads what is there, and forgets what is not configured any more. Blocks for a moment.
pub fn read(data_dir: &Path, access: &Access, settings: &AccessSettings) {
    let path = data_dir.join(NAME);
    let is_ours = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= LARGEST);
    if is_ours && let Ok(text) = fs::read_to_string(&path) {
        access.passwords.replaced.read(&text);
        access.passwords.replaced.retain(settings.hashes());
    }
}

/// Writes what has changed, until the gateway goes down.
pub async fn keep(data_dir: PathBuf, access: Arc<Access>, cancel: CancellationToken) {
    let replaced = &access.passwords.replaced;
    let mut changed = replaced.changed();
    // what was forgotten at the start too
    changed.mark_changed();
    let mut written = fs::read_to_string(data_dir.join(NAME)).unwrap_or_default();
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
        match done.unwrap_or(Ok(())) {
            Ok(()) => {
                info!(
                    "passwords are checked against argon2id in place of mosquitto's hashes; \
                       `pigateway user` makes such a hash for the configuration"
                );
                written = text;
            }
            // the next one that is replaced has them written again
            Err(error) => warn!(%error, "argon2id hashes cannot be written: after a restart mosquitto's hold again"),
        }
    }
}
