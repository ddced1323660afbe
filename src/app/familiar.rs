//! Keeps the addresses from which users have signed in over restarts, so that these clients are served first after a power
//! cut.

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
const NAME: &str = "familiar";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;
/// New addresses are collected for this time, so that a busy morning costs the card one write.
const PAUSE: Duration = Duration::from_secs(60);

/// Reads the file, and returns whether that was possible. If all users are known, forgets those that no longer exist. Blocks
/// for a moment.
pub(crate) fn read(data_dir: &Path, access: &Access, settings: &AccessSettings, all_are_known: bool) -> bool {
    if let Err(error) = learn(data_dir, access) {
        let path = data_dir.join(NAME);
        warn!(%error, "{} cannot be read: nobody goes first; {}", path.display(), remedy_for_private(&error));
        return false;
    }
    if all_are_known {
        access.passwords.familiar.retain(|name| settings.all_users().any(|user| user.name == name));
    }
    true
}

/// Adds what is in the file.
fn learn(data_dir: &Path, access: &Access) -> io::Result<()> {
    if let Some(text) = read_private(&data_dir.join(NAME), LARGEST)? {
        access.passwords.familiar.read(&text);
    }
    Ok(())
}

/// Writes changes until the gateway shuts down. A file that could not be read is read before it is replaced.
pub(crate) async fn keep(data_dir: PathBuf, mut is_read: bool, access: Arc<Access>, cancel: CancellationToken) {
    let mut changed = access.passwords.familiar.changed();
    let mut has_failed = false;
    let mut write = async |has_failed: &mut bool| {
        let (dir, access, must_read) = (data_dir.clone(), access.clone(), !is_read);
        let written = tokio::task::spawn_blocking(move || {
            if must_read {
                learn(&dir, &access)?;
            }
            write(&dir, &access.passwords.familiar.to_text())
        });
        let written = written.await.unwrap_or(Ok(()));
        is_read |= written.is_ok();
        match &written {
            Ok(()) if *has_failed => info!("the addresses of users are written again"),
            Err(error) if !*has_failed => {
                warn!(%error, "the addresses of users cannot be written: after a restart nobody goes first");
            }
            _ => {}
        }
        *has_failed = written.is_err();
    };
    loop {
        tokio::select! {
            () = cancel.cancelled() => {
                if has_failed {
                    write(&mut has_failed).await;
                }
                return;
            }
            _ = changed.changed() => {}
            () = std::future::ready(()), if has_failed => {}
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = sleep(PAUSE) => {}
        }
        changed.mark_unchanged();
        write(&mut has_failed).await;
    }
}

/// Replaces the whole file.
fn write(data_dir: &Path, text: &str) -> io::Result<()> {
    replace_private(&data_dir.join(NAME), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::access::settings::{Rights, UserSettings};

    #[test]
    fn what_is_written_is_read_and_nobody_elses_business() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(&AccessSettings::default());
        access.passwords.familiar.add("ada", [192, 0, 2, 1].into());
        for _ in 0..2 {
            write(dir.path(), &access.passwords.familiar.to_text()).unwrap();
        }
        let again = Access::new(&AccessSettings::default());
        let (name, rights, client_ids) = ("ada".to_owned(), Rights::default(), Vec::new());
        let ada = UserSettings { name, password_hash: None, rights, client_ids, is_admin: false };
        let settings = AccessSettings { users: vec![ada], ..AccessSettings::default() };
        assert!(read(dir.path(), &again, &settings, true));
        assert!(again.passwords.familiar.knows("ada", [192, 0, 2, 1].into()));
        // former users are forgotten, unless the list of users is incomplete
        for all_are_known in [true, false] {
            let later = Access::new(&AccessSettings::default());
            read(dir.path(), &later, &AccessSettings::default(), all_are_known);
            assert_ne!(later.passwords.familiar.knows("ada", [192, 0, 2, 1].into()), all_are_known);
        }
        let mode = fs::metadata(dir.path().join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(read(&dir.path().join("missing"), &again, &settings, true));
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_or_written_is_later() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // something that is no directory: nothing in it can be read or written
        fs::write(&data, "").unwrap();
        let access = Arc::new(Access::new(&AccessSettings::default()));
        assert!(!read(&data, &access, &AccessSettings::default(), true));
        let cancel = CancellationToken::new();
        let keeping = tokio::spawn(keep(data.clone(), false, access.clone(), cancel.clone()));
        sleep(PAUSE).await;
        access.passwords.familiar.add("ada", [192, 0, 2, 1].into());
        sleep(PAUSE * 3).await;
        fs::remove_file(&data).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join(NAME), "ada\t192.0.2.9\nbob\t192.0.2.2\n").unwrap();
        let there = || fs::read_to_string(data.join(NAME)).unwrap();
        let late = tokio::time::Instant::now() + PAUSE * 10;
        while !there().contains("192.0.2.1") && tokio::time::Instant::now() < late {
            sleep(PAUSE / 4).await;
        }
        assert_eq!(there(), "ada\t192.0.2.9\t192.0.2.1\nbob\t192.0.2.2\n");
        cancel.cancel();
        keeping.await.unwrap();
    }
}
