//! Keeps over restarts which users there were, and ends what former users have left once their names are given to others.

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

/// The file's name in the data directory.
const NAME: &str = "user-names";
/// A larger file is none of ours.
const LARGEST: u64 = 16 << 20;

/// Users that there were, with the file that says so.
pub(crate) struct FormerUsers {
    former: Former,
    file: NamesFile,
}

impl FormerUsers {
    /// Reads the file, and compares it with the users that there are at the start. Blocks for a moment.
    pub(crate) async fn open(settings: &Settings, core: &Core) -> FormerUsers {
        let file = NamesFile::read(&settings.gateway.data_dir);
        let mut users = FormerUsers { former: Former::read(&file.written), file };
        users.update(&settings.broker.access, core).await;
        users
    }

    /// These are about to be the users, and nobody new is let in before this returns. Who is none any more and has sessions is
    /// remembered, even if a person has removed it and these are about to end: until they have, power may fail. The next
    /// update forgets it.
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
    /// What it says.
    written: String,
    /// What a disk that has not answered in time is still at. Two at a time would get in each other's way.
    under_way: Option<(String, JoinHandle<io::Result<()>>)>,
    replace: fn(&Path, &[u8]) -> io::Result<()>,
}

impl NamesFile {
    fn read(data_dir: &Path) -> NamesFile {
        let path = data_dir.join(NAME);
        let written = read_private(&path, LARGEST).unwrap_or_default();
        NamesFile { path, written, under_way: None, replace: replace_private }
    }

    /// Writes what is new. A disk that does not answer holds nobody up: what is not written by then is with the next update.
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
        // how that one ended is old news: what it had to say is in this text
        let _ = self.ended().await;
        if text != self.written {
            let (path, replace, content) = (self.path.clone(), self.replace, text.clone());
            let writing = tokio::task::spawn_blocking(move || replace(&path, content.as_bytes()));
            self.under_way = Some((text, writing));
        }
        self.ended().await
    }

    /// Waits until nothing is under way. Safe to cancel.
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

    /// A disk that answers once nobody else has it.
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
