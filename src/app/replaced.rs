//! Keeps the argon2id hashes that have replaced mosquitto's hashes over restarts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::Access;
use crate::access::settings::AccessSettings;
use crate::secret::{read_private, remedy_for_private, replace_private};

/// The name of the file in the data directory.
const NAME: &str = "password-hashes";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 4 << 20;
/// The interval of new attempts while the file cannot be read or written.
const AGAIN: Duration = Duration::from_secs(60);

/// Reads the file and returns its text, or `None` if that was not possible. If all users are known, forgets hashes that are
/// no longer configured. Blocks for a moment.
pub(crate) fn read(data_dir: &Path, access: &Access, settings: &AccessSettings, all_are_known: bool) -> Option<String> {
    let text = learn(data_dir, access);
    if let Err(error) = &text {
        let path = data_dir.join(NAME);
        warn!(%error, "{} cannot be read: mosquitto's hashes hold; {}", path.display(), remedy_for_private(error));
    } else if all_are_known {
        access.passwords.replaced.retain(settings.hashes());
    }
    text.ok()
}

/// Adds what is in the file, and returns its text.
fn learn(data_dir: &Path, access: &Access) -> io::Result<String> {
    let text = read_private(&data_dir.join(NAME), LARGEST)?.unwrap_or_default();
    access.passwords.replaced.read(&text);
    Ok(text)
}

/// Writes the hashes if they differ from `written`, the file's text, and returns what the text is then. A file that could not
/// be read is read before it is replaced.
fn write(data_dir: &Path, written: Option<String>, access: &Access) -> io::Result<(String, bool)> {
    let written = written.map_or_else(|| learn(data_dir, access), Ok)?;
    let text = access.passwords.replaced.to_text();
    let differs = text != written;
    if differs {
        replace_private(&data_dir.join(NAME), text.as_bytes())?;
    }
    Ok((text, differs))
}

/// Writes the hashes whenever they differ from the file, until the gateway shuts down.
pub(crate) async fn keep(
    data_dir: PathBuf,
    mut written: Option<String>,
    access: Arc<Access>,
    cancel: CancellationToken,
) {
    let replaced = &access.passwords.replaced;
    let mut changed = replaced.changed();
    // what was forgotten at the start must be written too
    changed.mark_changed();
    let mut has_failed = false;
    loop {
        let is_last = tokio::select! {
            () = cancel.cancelled() => true,
            _ = changed.changed() => false,
            () = sleep(AGAIN), if has_failed => false,
        };
        if is_last && !has_failed {
            return;
        }
        let (dir, known, access) = (data_dir.clone(), written.clone(), access.clone());
        let done = tokio::task::spawn_blocking(move || write(&dir, known, &access)).await;
        match done.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok((text, is_new)) => {
                if is_new && !text.is_empty() {
                    info!(
                        "passwords are checked against argon2id in place of mosquitto's hashes; \
                           `pigateway user` makes such a hash for the configuration"
                    );
                }
                (written, has_failed) = (Some(text), false);
            }
            Err(error) => {
                if !has_failed {
                    warn!(%error, "argon2id hashes cannot be written: after a restart mosquitto's hold again");
                }
                has_failed = true;
            }
        }
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_or_written_is_later() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // something that is no directory: nothing in it can be read or written
        fs::write(&data, "").unwrap();
        let access = Arc::new(Access::new(&AccessSettings::default()));
        let kept = read(&data, &access, &AccessSettings::default(), true);
        assert_eq!(kept, None);
        let cancel = CancellationToken::new();
        let keeping = tokio::spawn(keep(data.clone(), kept, access.clone(), cancel.clone()));
        let made = crate::access::hash::make("x").unwrap();
        access.passwords.replaced.set("$7$new", &made);
        sleep(AGAIN * 3).await;
        fs::remove_file(&data).unwrap();
        fs::create_dir(&data).unwrap();
        let old = format!("00\t{made}\n");
        fs::write(data.join(NAME), &old).unwrap();
        let there = || fs::read_to_string(data.join(NAME)).unwrap();
        let late = tokio::time::Instant::now() + AGAIN * 10;
        while there() == old && tokio::time::Instant::now() < late {
            sleep(AGAIN / 4).await;
        }
        assert!(there().starts_with(&old) && there().lines().count() == 2, "{}", there());
        cancel.cancel();
        keeping.await.unwrap();
    }
}
