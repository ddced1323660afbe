//! The file in the data directory with what Home Assistant has been told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::announcer::AnnouncerMemory;
use crate::secret::{read_private, remedy_for_private, replace_private};

const NAME: &str = "home_assistant.json";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;
/// The interval of new attempts to write the file.
const AGAIN: Duration = Duration::from_secs(60);

/// What was announced and must be removed later, in a file that only the gateway can read.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// When the next attempt is due, if the last one has failed.
    again: Option<Instant>,
    /// Whether the file could not be read. Then it stays as it is, and the next start reads it.
    is_unread: bool,
}

impl Store {
    pub(crate) fn new(data_dir: &Path) -> Store {
        Store { path: data_dir.join(NAME), again: None, is_unread: false }
    }

    /// Reads the file. Blocks for a moment.
    pub(crate) fn read(&mut self) -> AnnouncerMemory {
        let path = self.path.display();
        let text = match read_private(&self.path, LARGEST) {
            Ok(Some(text)) => text,
            Ok(None) => return AnnouncerMemory::default(),
            Err(error) => {
                let remedy = remedy_for_private(&error);
                warn!(
                    %error,
                    "{path} cannot be read: what has gone since may stay in Home Assistant; {remedy}, and restart pigateway"
                );
                self.is_unread = true;
                return AnnouncerMemory::default();
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            warn!(%error, "{path} is damaged: what has gone since may stay in Home Assistant, where it can be deleted");
            AnnouncerMemory::default()
        })
    }

    /// When the next attempt is due, if the last one has failed.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Replaces the whole file, so that a power cut leaves either the old or the new one. If there is nothing to keep, the
    /// file is deleted.
    pub(crate) async fn write(&mut self, memory: &AnnouncerMemory) {
        if self.is_unread {
            return;
        }
        let (path, is_empty) = (self.path.clone(), memory.is_empty());
        // strings and JSON values can always be serialised
        let text = serde_json::to_vec(memory).unwrap_or_default();
        let write = move || match is_empty {
            false => replace_private(&path, &text),
            true => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        let written = tokio::task::spawn_blocking(write).await.unwrap_or(Ok(()));
        match &written {
            Ok(()) if self.again.is_some() => info!("what Home Assistant has been told is written again"),
            Err(error) if self.again.is_none() => {
                let path = self.path.display();
                warn!(%error, "{path} cannot be written: what goes while Home Assistant is away may stay there");
            }
            _ => {}
        }
        self.again = written.is_err().then(|| Instant::now() + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::announcer::Announcer;
    use super::super::device::{AnnouncedGateway, gateway};
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_nobody_elses_business() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(dir.path());
        assert!(store.read().is_empty());
        let mut announcer = Announcer::default();
        announcer.announce(
            vec![gateway("homeassistant", &AnnouncedGateway { id: "loft".into(), ..AnnouncedGateway::default() })],
            0,
        );
        for _ in 0..2 {
            store.write(announcer.memory()).await;
        }
        assert_eq!(store.read(), *announcer.memory());
        let path = dir.path().join(NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert!(store.read().is_empty(), "damage is no reason not to start");
        store.write(&AnnouncerMemory::default()).await;
        assert!(!path.exists());
        store.write(&AnnouncerMemory::default()).await;
        assert_eq!(store.again(), None);
        // nothing below something that is no directory can be read
        let mut unread = Store::new(&path.join("x"));
        fs::write(&path, "").unwrap();
        assert!(unread.read().is_empty());
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("x")).unwrap();
        unread.write(announcer.memory()).await;
        assert!(fs::read_dir(path.join("x")).unwrap().next().is_none(), "it may hold what was announced before");
    }
}
