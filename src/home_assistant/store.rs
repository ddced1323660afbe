//! The file in the data directory with what Home Assistant has been told.

use std::fs;
use std::io;
use std::path::Path;

use tokio::time::Instant;
use tracing::warn;

use super::announcer::AnnouncerMemory;
use crate::kept_file::KeptFile;
use crate::secret::{remedy_for_private, replace_private};

const NAME: &str = "home_assistant.json";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;

/// What was announced and must be removed later, in a file that only the gateway can read. A file that could not be read
/// stays as it is, and the next start reads it.
#[derive(Debug)]
pub(super) struct Store(KeptFile);

impl Store {
    pub(crate) fn new(data_dir: &Path) -> Store {
        let cost = "what goes while Home Assistant is away may stay there";
        Store(KeptFile::new(data_dir.join(NAME), LARGEST, cost).replaced_by(replace_or_remove))
    }

    /// Reads the file.
    pub(crate) async fn read(&mut self) -> AnnouncerMemory {
        let read = self.0.read().await;
        let path = self.0.path().display();
        let text = match read {
            Ok(Some(text)) => text,
            Ok(None) => return AnnouncerMemory::default(),
            Err(error) => {
                let remedy = remedy_for_private(&error);
                warn!(
                    %error,
                    "{path} cannot be read: what has gone since may stay in Home Assistant; {remedy}, and restart pigateway"
                );
                return AnnouncerMemory::default();
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            warn!(%error, "{path} is damaged: what has gone since may stay in Home Assistant, where it can be deleted");
            AnnouncerMemory::default()
        })
    }

    /// When the next attempt to write is due, if the last one has failed.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.0.again().filter(|_| self.0.is_read())
    }

    /// Replaces the whole file. If there is nothing to keep, the file is deleted.
    pub(crate) async fn write(&mut self, memory: &AnnouncerMemory) {
        let text = if memory.is_empty() { Ok(String::new()) } else { serde_json::to_string(memory) };
        // strings and JSON values can always be serialised
        if let Ok(text) = text {
            self.0.write(move || text).await;
        }
    }
}

fn replace_or_remove(path: &Path, content: &[u8]) -> io::Result<()> {
    if !content.is_empty() {
        return replace_private(path, content);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
        assert!(store.read().await.is_empty());
        let mut announcer = Announcer::default();
        announcer.announce(
            vec![gateway("homeassistant", &AnnouncedGateway { id: "loft".into(), ..AnnouncedGateway::default() })],
            0,
        );
        for _ in 0..2 {
            store.write(announcer.memory()).await;
        }
        let again = async || Store::new(dir.path()).read().await;
        assert_eq!(again().await, *announcer.memory());
        let path = dir.path().join(NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "{").unwrap();
        assert!(again().await.is_empty(), "damage is no reason not to start");
        store.write(&AnnouncerMemory::default()).await;
        assert!(!path.exists());
        store.write(&AnnouncerMemory::default()).await;
        assert_eq!(store.again(), None);
        // nothing below something that is no directory can be read
        let mut unread = Store::new(&path.join("x"));
        fs::write(&path, "").unwrap();
        assert!(unread.read().await.is_empty());
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("x")).unwrap();
        unread.write(announcer.memory()).await;
        assert!(fs::read_dir(path.join("x")).unwrap().next().is_none(), "it may hold what was announced before");
    }
}
