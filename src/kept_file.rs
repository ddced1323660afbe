//! Small files of the gateway that are read at the start and replaced as a whole when what they keep has changed.
//!
//! A disk that is full, read-only or slow costs only the file: whoever keeps something in it goes on, and tries again when
//! [`KeptFile::again`] says so. A file that cannot be read is not replaced, because nobody knows what is in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::secret::{Digest, read_private, replace_private, sha256};

/// The interval of new attempts to read or write a file.
pub(crate) const AGAIN: Duration = Duration::from_secs(10);
/// How long whoever writes waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// A small file of the gateway.
#[derive(Debug)]
pub(crate) struct KeptFile {
    path: PathBuf,
    /// The size in bytes above which the file is ignored, because the gateway does not write such a file.
    most: u64,
    /// What it costs if the file cannot be written.
    cost: &'static str,
    /// Whether it is known what was in the file.
    is_read: bool,
    /// The digest of the text that is on disk, if that is known.
    on_disk: Option<Digest>,
    /// When another attempt is due.
    again: Option<Instant>,
    has_failed: bool,
    /// A write that the disk has not finished in time. A second write at the same time would interfere with it.
    under_way: Option<JoinHandle<io::Result<(Digest, bool)>>>,
    replace: fn(&Path, &[u8]) -> io::Result<()>,
}

impl KeptFile {
    pub(crate) fn new(path: PathBuf, most: u64, cost: &'static str) -> KeptFile {
        let (is_read, has_failed) = (false, false);
        let replace = replace_private;
        KeptFile { path, most, cost, is_read, on_disk: None, again: None, has_failed, under_way: None, replace }
    }

    /// Like `new`, for a file that this function replaces.
    pub(crate) fn replaced_by(self, replace: fn(&Path, &[u8]) -> io::Result<()>) -> KeptFile {
        KeptFile { replace, ..self }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is known what was in the file. Otherwise it is not replaced.
    pub(crate) fn is_read(&self) -> bool {
        self.is_read
    }

    /// When another attempt is due, because the file could not be read or written.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Reads the file if that has not been possible before. Returns `None` if it was read before, or if there is none.
    pub(crate) async fn read(&mut self) -> io::Result<Option<String>> {
        if self.is_read {
            return Ok(None);
        }
        let (path, most) = (self.path.clone(), self.most);
        let reading = spawn_blocking(move || {
            let text = read_private(&path, most)?;
            // what the gateway has not written is replaced, whatever is to be written
            let is_known = text.is_some() || fs::symlink_metadata(&path).is_err();
            Ok((is_known.then(|| sha256(text.as_deref().unwrap_or_default().as_bytes())), text))
        });
        match reading.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok((on_disk, text)) => {
                (self.is_read, self.on_disk) = (true, on_disk);
                Ok(text)
            }
            Err(error) => {
                self.again = Some(Instant::now() + AGAIN);
                Err(error)
            }
        }
    }

    /// Has the file replaced by this text, if it differs, and returns whether it is on disk and new. A slow disk does not
    /// delay the caller for long: what cannot be written now is written later.
    pub(crate) async fn write(&mut self, make: impl FnOnce() -> String + Send + 'static) -> bool {
        if !self.is_read {
            return false;
        }
        let in_turn = async {
            // the result of the old write does not matter, because this text includes its contents
            let _ = self.ended().await;
            self.begin(make);
            self.ended().await
        };
        let written = timeout(PATIENCE, in_turn).await;
        let written = written.unwrap_or_else(|_| Err(io::Error::other("the disk does not answer")));
        let is_new = *written.as_ref().unwrap_or(&false);
        self.judge(written.map(drop));
        is_new
    }

    /// Looks how the last write has ended, and begins another one if this text is not on disk. Does not wait for the disk.
    pub(crate) async fn go_on(&mut self, text: String) {
        if self.under_way.as_ref().is_none_or(|writing| writing.is_finished()) {
            let _ = self.ended().await;
            if self.on_disk == Some(sha256(text.as_bytes())) {
                return self.judge(Ok(()));
            }
            self.begin(move || text);
        }
        // the next look finds its end
        self.again = Some(Instant::now() + AGAIN);
    }

    /// Begins a write, unless the text is on disk.
    fn begin(&mut self, make: impl FnOnce() -> String + Send + 'static) {
        let (path, replace, on_disk) = (self.path.clone(), self.replace, self.on_disk);
        self.under_way = Some(spawn_blocking(move || {
            let text = make();
            let digest = sha256(text.as_bytes());
            let is_new = on_disk != Some(digest);
            if is_new {
                replace(&path, text.as_bytes())?;
            }
            Ok((digest, is_new))
        }));
    }

    /// Waits until no write is under way, and returns whether it has changed the file. Safe to cancel.
    async fn ended(&mut self) -> io::Result<bool> {
        let Some(writing) = &mut self.under_way else { return Ok(false) };
        let ended = writing.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        self.under_way = None;
        // after an error the file may be the old or the new one
        self.on_disk = ended.as_ref().ok().map(|(digest, _)| *digest);
        ended.map(|(_, is_new)| is_new)
    }

    /// Logs a change, and decides whether another attempt is due.
    fn judge(&mut self, written: io::Result<()>) {
        let path = self.path.display();
        match &written {
            Ok(()) if self.has_failed => info!("{path} is written again"),
            Err(error) if !self.has_failed => warn!(%error, "{path} cannot be written: {}", self.cost),
            _ => {}
        }
        self.has_failed = written.is_err();
        self.again = self.has_failed.then(|| Instant::now() + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;
    use tokio::time::{advance, resume};

    use super::*;

    static DISK: Mutex<()> = Mutex::const_new(());

    /// A simulated disk that answers once the test releases it.
    fn held(path: &Path, content: &[u8]) -> io::Result<()> {
        let _disk = DISK.blocking_lock();
        replace_private(path, content)
    }

    fn full(_: &Path, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    /// A simulated disk that fails when the file is replaced already.
    fn late(path: &Path, content: &[u8]) -> io::Result<()> {
        replace_private(path, content)?;
        Err(io::Error::from_raw_os_error(5))
    }

    async fn file(dir: &tempfile::TempDir) -> KeptFile {
        let mut file = KeptFile::new(dir.path().join("kept"), 100, "it is gone after a restart");
        assert_eq!(file.read().await.unwrap(), None);
        file
    }

    fn there(file: &KeptFile) -> String {
        fs::read_to_string(file.path()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_nobody_up_and_is_given_the_newest_later() {
        let dir = tempfile::tempdir().unwrap();
        resume();
        let mut file = file(&dir).await.replaced_by(held);
        let disk = DISK.lock().await;
        tokio::time::pause();
        for text in ["a\n", "b\n"] {
            let (is_new, ()) = tokio::join!(file.write(move || text.into()), advance(PATIENCE * 2));
            assert!(!is_new && file.again().is_some() && !file.path().exists());
        }
        drop(disk);
        resume();
        assert!(file.write(|| "c\n".into()).await);
        assert_eq!((&*there(&file), file.again()), ("c\n", None));
        assert!(!file.write(|| "c\n".into()).await, "it is there");
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file(&dir).await;
        for text in ["a\n", "b\n"] {
            file.replace = full;
            assert!(!file.write(move || text.into()).await);
            file.replace = replace_private;
            while file.again.take().is_some() {
                file.go_on(text.into()).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(there(&file), text);
        }
    }

    #[tokio::test]
    async fn after_an_error_nobody_relies_on_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file(&dir).await;
        assert!(file.write(|| "a\n".into()).await);
        file.replace = late;
        assert!(!file.write(|| "b\n".into()).await);
        file.replace = replace_private;
        assert!(file.write(|| "a\n".into()).await);
        assert_eq!(there(&file), "a\n");
    }

    #[tokio::test]
    async fn what_others_have_written_is_replaced_even_by_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for (content, is_new) in [(None, false), (Some(&b"\xff"[..]), true), (Some(b""), false)] {
            if let Some(content) = content {
                fs::write(dir.path().join("kept"), content).unwrap();
            }
            let mut file = KeptFile::new(dir.path().join("kept"), 100, "");
            file.read().await.unwrap();
            assert_eq!(file.write(String::new).await, is_new, "{content:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::write(&path, "").unwrap();
        let mut file = KeptFile::new(path.join("kept"), 100, "");
        assert!(file.read().await.is_err() && file.again().is_some() && !file.is_read());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(file.path(), "old\n").unwrap();
        assert!(!file.write(|| "new\n".into()).await);
        assert_eq!(there(&file), "old\n");
        assert_eq!(file.read().await.unwrap().as_deref(), Some("old\n"));
        assert!(file.write(|| "new\n".into()).await);
    }
}
