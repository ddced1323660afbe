//! Keeps over restarts the hashes that are in place of mosquitto's.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Access;
use crate::access::settings::AccessSettings;
use crate::secret::{read_private, replace_private};

/// The file's name in the data directory.
const NAME: &str = "password-hashes";
/// A larger file is none of ours.
const LARGEST: u64 = 4 << 20;

/// Reads what is there, forgets what is not configured any more if all users are known, and returns what the file says. Blocks
/// for a moment.
pub(crate) fn read(data_dir: &Path, access: &Access, settings: &AccessSettings, all_are_known: bool) -> String {
    let text = read_private(&data_dir.join(NAME), LARGEST).unwrap_or_default();
    access.passwords.replaced.read(&text);
    if all_are_known {
        access.passwords.replaced.retain(settings.hashes());
    }
    text
}

/// Writes what differs from what the file says, until the gateway goes down.
pub(crate) async fn keep(data_dir: PathBuf, mut written: String, access: Arc<Access>, cancel: CancellationToken) {
    let replaced = &access.passwords.replaced;
    let mut changed = replaced.changed();
    // what was forgotten at the start too
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
            // the next one that is replaced has them written again
            Err(error) => warn!(%error, "argon2id hashes cannot be written: after a restart mosquitto's hold again"),
        }
    }
}
