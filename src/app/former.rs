//! Keeps the list of former users over restarts, and ends what they have left when their names are given to other users.

use std::io;
use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::access::former::Former;
use crate::access::settings::AccessSettings;
use crate::broker::core::{Core, LONGEST_SYNC};
use crate::config::Settings;
use crate::secret::{read_private, replace_private};

/// The name of the file in the data directory.
const NAME: &str = "user-names";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;

/// The former users and the file that keeps them.
pub(crate) struct FormerUsers {
    former: Former,
    file: NamesFile,
}

impl FormerUsers {
    /// Reads the file and compares it with the present users. Blocks for a moment.
    pub(crate) async fn open(settings: &Settings, core: &Core) -> FormerUsers {
        let file = NamesFile::read(&settings.gateway.data_dir);
        let mut users = FormerUsers { former: Former::read(&file.written), file };
        users.update(&settings.broker.access, core).await;
        users
    }

    /// Records the users that are about to be in force; nobody new is let in before this returns. A user that no longer
    /// exists and still has sessions is remembered, even if an administrator has removed it and its sessions are about to
    /// end, because the power may fail before they have ended. The next update forgets it.
    pub(crate) async fn update(&mut self, settings: &AccessSettings, core: &Core) {
        let have_sessions = core.registry.users();
        for name in self.former.update(settings.all_users(), |name| have_sessions.contains(name)) {
            core.end_sessions_of(&name).await;
        }
        self.file.write(self.former.to_text()).await;
    }
}

/// The file with the names.
struct NamesFile {
    path: PathBuf,
    /// The text that is on disk.
    written: String,
    /// A write that the disk has not finished in time. A second write at the same time would interfere with it.
    under_way: Option<(String, JoinHandle<io::Result<()>>)>,
    replace: fn(&Path, &[u8]) -> io::Result<()>,
}

impl NamesFile {
    fn read(data_dir: &Path) -> NamesFile {
        let path = data_dir.join(NAME);
        let written = read_private(&path, LARGEST).unwrap_or_default();
        NamesFile { path, written, under_way: None, replace: replace_private }
    }

    /// Writes a changed text. A slow disk does not delay the caller: a text that cannot be written now is included in the
    /// next update.
    async fn write(&mut self, text: String) {
        let written = timeout(LONGEST_SYNC, self.write_in_turn(text)).await;
        if let Err(why) = written.unwrap_or_else(|_| Err(io::Error::other("the disk does not answer"))) {
            warn!(
                error = %why,
                "the names of users cannot be written: after a restart, who is given the name of a former user may find its sessions"
            );
        }
    }

    async fn write_in_turn(&mut self, text: String) -> io::Result<()> {
        // the result of the old write does not matter, because this text includes its contents
        let _ = self.ended().await;
        if text != self.written {
            let (path, replace, content) = (self.path.clone(), self.replace, text.clone());
            let writing = tokio::task::spawn_blocking(move || replace(&path, content.as_bytes()));
            self.under_way = Some((text, writing));
        }
        self.ended().await
    }

    /// Waits until no write is under way. Safe to cancel.
    async fn ended(&mut self) -> io::Result<()> {
        let Some((_, writing)) = &mut self.under_way else { return Ok(()) };
        let ended = writing.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        if let Some((text, _)) = self.under_way.take()
            && ended.is_ok()
        {
            self.written = text;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::Mutex;
    use tokio::time::{advance, resume};

    use super::*;

    static DISK: Mutex<()> = Mutex::const_new(());

    /// A simulated disk that answers once the test releases it.
    fn held(path: &Path, content: &[u8]) -> io::Result<()> {
        let _disk = DISK.blocking_lock();
        replace_private(path, content)
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_nobody_up_and_is_given_the_newest_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = NamesFile { replace: held, ..NamesFile::read(dir.path()) };
        let disk = DISK.lock().await;
        for text in ["a\n", "b\n"] {
            tokio::join!(file.write(text.into()), advance(LONGEST_SYNC));
            assert!(file.written.is_empty(), "nobody knows that it is");
        }
        drop(disk);
        resume();
        file.write("c\n".into()).await;
        assert_eq!((&*file.written, &*fs::read_to_string(dir.path().join(NAME)).unwrap()), ("c\n", "c\n"));
        assert_eq!(NamesFile::read(dir.path()).written, "c\n");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_by_the_next_update() {
        let dir = tempfile::tempdir().unwrap();
        let mut file =
            NamesFile { replace: |_, _| Err(io::ErrorKind::StorageFull.into()), ..NamesFile::read(dir.path()) };
        file.write("a\n".into()).await;
        assert!(file.written.is_empty() && !dir.path().join(NAME).exists());
        file.replace = replace_private;
        file.write("a\n".into()).await;
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), "a\n");
    }
}
