//! Keeps the list of former users over restarts, and ends what they have left when their names are given to other users.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::access::former::Former;
use crate::access::settings::AccessSettings;
use crate::broker::core::{Core, LONGEST_SYNC};
use crate::config::Settings;
use crate::health::{Fault, Health};
use crate::secret::{read_private, remedy_for_private, replace_private};

/// The name of the file in the data directory.
const NAME: &str = "user-names";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;
/// The interval of new attempts to read or write the file.
const AGAIN: Duration = Duration::from_secs(10);

/// The former users and the file that keeps them.
pub(crate) struct FormerUsers {
    former: Former,
    file: NamesFile,
    health: Health,
}

impl FormerUsers {
    /// Reads the file and compares it with the present users. Blocks for a moment.
    pub(crate) async fn open(settings: &Settings, core: &Core, health: Health) -> FormerUsers {
        let file = NamesFile::new(&settings.gateway.data_dir);
        let mut users = FormerUsers { former: Former::default(), file, health };
        users.update(&settings.broker.access, core).await;
        users
    }

    /// Records the users that are about to be in force; nobody new is let in before this returns. A user that no longer
    /// exists and still has sessions is remembered, even if an administrator has removed it and its sessions are about to
    /// end, because the power may fail before they have ended. The next update forgets it.
    pub(crate) async fn update(&mut self, settings: &AccessSettings, core: &Core) {
        self.read();
        let have_sessions = core.registry.users();
        for name in self.former.update(settings.all_users(), |name| have_sessions.contains(name)) {
            core.end_sessions_of(&name).await;
        }
        self.file.write(self.former.to_text()).await;
    }

    /// Reads the file if that has not been possible before.
    fn read(&mut self) {
        if self.file.written.is_some() {
            return;
        }
        match read_private(&self.file.path, LARGEST) {
            Ok(text) => {
                let text = text.unwrap_or_default();
                self.former.learn(Former::read(&text));
                self.file.written = Some(text);
                self.health.clear(NAME);
            }
            Err(error) => {
                let problem = format!(
                    "{} cannot be read ({error}): who is given the name of a former user may find its sessions",
                    self.file.path.display()
                );
                self.health.raise(NAME, &Fault::new(problem, remedy_for_private(&error)));
                self.file.again = Some(Instant::now() + AGAIN);
            }
        }
    }

    /// When [`FormerUsers::try_again`] is due, because the file could not be read or written.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.file.again
    }

    /// Tries again to read or to write the file. Does not wait for a slow disk.
    pub(crate) async fn try_again(&mut self, settings: &AccessSettings, core: &Core) {
        self.file.again = None;
        if self.file.written.is_none() {
            return self.update(settings, core).await;
        }
        self.file.go_on().await;
    }

    /// Tries a last time to write what is not on disk.
    pub(crate) async fn finish(&mut self) {
        if self.file.again.is_some() {
            self.file.write(self.former.to_text()).await;
        }
    }
}

/// The file with the names.
struct NamesFile {
    path: PathBuf,
    /// The text that is on disk; `None` as long as that is not known, and then it must not be replaced.
    written: Option<String>,
    /// The text that should be on disk.
    wanted: String,
    /// When another attempt is due.
    again: Option<Instant>,
    has_failed: bool,
    /// A write that the disk has not finished in time. A second write at the same time would interfere with it.
    under_way: Option<(String, JoinHandle<io::Result<()>>)>,
    replace: fn(&Path, &[u8]) -> io::Result<()>,
}

impl NamesFile {
    fn new(data_dir: &Path) -> NamesFile {
        let (path, wanted) = (data_dir.join(NAME), String::new());
        NamesFile {
            path,
            written: None,
            wanted,
            again: None,
            has_failed: false,
            under_way: None,
            replace: replace_private,
        }
    }

    /// Writes a changed text. A slow disk does not delay the caller: a text that cannot be written now is written later.
    async fn write(&mut self, text: String) {
        self.wanted = text;
        if self.written.is_none() {
            return;
        }
        let written = timeout(LONGEST_SYNC, self.write_in_turn()).await;
        self.judge(written.unwrap_or_else(|_| Err(io::Error::other("the disk does not answer"))));
    }

    async fn write_in_turn(&mut self) -> io::Result<()> {
        // the result of the old write does not matter, because this text includes its contents
        let _ = self.ended().await;
        self.begin();
        self.ended().await
    }

    /// Begins a write, unless the text is on disk.
    fn begin(&mut self) {
        if self.written.as_ref() != Some(&self.wanted) {
            let (path, replace, content) = (self.path.clone(), self.replace, self.wanted.clone());
            let writing = tokio::task::spawn_blocking(move || replace(&path, content.as_bytes()));
            self.under_way = Some((self.wanted.clone(), writing));
        }
    }

    /// Looks how the last write has ended, and begins another one if it is needed.
    async fn go_on(&mut self) {
        if self.under_way.as_ref().is_some_and(|(_, writing)| !writing.is_finished()) {
            self.again = Some(Instant::now() + AGAIN);
            return;
        }
        let ended = self.ended().await;
        self.begin();
        match self.under_way {
            // the next look finds its end
            Some(_) => self.again = Some(Instant::now() + AGAIN),
            None => self.judge(ended),
        }
    }

    /// Logs a change, and decides whether another attempt is due.
    fn judge(&mut self, written: io::Result<()>) {
        match &written {
            Ok(()) if self.has_failed => info!("the names of users are written again"),
            Err(error) if !self.has_failed => warn!(
                %error,
                "the names of users cannot be written: after a restart, who is given the name of a former user may find its sessions"
            ),
            _ => {}
        }
        self.has_failed = written.is_err();
        self.again = self.has_failed.then(|| Instant::now() + AGAIN);
    }

    /// Waits until no write is under way. Safe to cancel.
    async fn ended(&mut self) -> io::Result<()> {
        let Some((_, writing)) = &mut self.under_way else { return Ok(()) };
        let ended = writing.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        if let Some((text, _)) = self.under_way.take()
            && ended.is_ok()
        {
            self.written = Some(text);
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
        let mut file = NamesFile { replace: held, written: Some(String::new()), ..NamesFile::new(dir.path()) };
        let disk = DISK.lock().await;
        for text in ["a\n", "b\n"] {
            tokio::join!(file.write(text.into()), advance(LONGEST_SYNC));
            assert_eq!(file.written.as_deref(), Some(""), "nobody knows that it is");
        }
        drop(disk);
        resume();
        file.write("c\n".into()).await;
        let there = fs::read_to_string(dir.path().join(NAME)).unwrap();
        assert_eq!((file.written.as_deref(), &*there, file.again), (Some("c\n"), "c\n", None));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let full = |_: &Path, _: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let mut file = NamesFile { written: Some(String::new()), ..NamesFile::new(dir.path()) };
        for text in ["a\n", "b\n"] {
            file.replace = full;
            file.write(text.into()).await;
            assert!(file.again.is_some() && file.written.as_deref() != Some(text));
            file.replace = replace_private;
            while file.again.take().is_some() {
                file.go_on().await;
                tokio::task::yield_now().await;
            }
            assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = NamesFile::new(dir.path());
        fs::write(&file.path, "old\n").unwrap();
        file.write("new\n".into()).await;
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "old\n");
    }
}
