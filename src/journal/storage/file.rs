//! Stores the journal's files in a directory.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, OFlags, fstat, statat};
use tracing::warn;

use super::Storage;
use super::direct::{Opened, Sectors};
use crate::journal::format::{SEGMENT_SUFFIX, SNAPSHOT};
use crate::journal::trouble::NotRead;
use crate::secret::set_aside;

const LINK: &str = "it is a symbolic link, and none is followed here";

/// A directory. Files stay open once used. Small writes are made in sectors, see [`super::direct`].
#[derive(Debug)]
pub struct FileStorage {
    dir: PathBuf,
    read_only: bool,
    open: Mutex<HashMap<String, Arc<Opened>>>,
    /// The directory that is used, which stays open so that no other gets its number. Another one may take its place: by a
    /// mount, or because somebody moves them.
    used: Mutex<Option<File>>,
    sectors: Sectors,
}

impl FileStorage {
    /// Makes a storage of the files in `dir`, which is created at the first write.
    pub fn new(dir: &Path) -> FileStorage {
        let (open, used, sectors) = (Mutex::default(), Mutex::default(), Sectors::default());
        FileStorage { dir: dir.into(), read_only: false, open, used, sectors }
    }

    /// Makes a storage that only reads the files in `dir`.
    pub(crate) fn read_only(dir: &Path) -> FileStorage {
        FileStorage { read_only: true, sectors: Sectors::off(), ..FileStorage::new(dir) }
    }

    /// Makes a storage that sends every write through the page cache.
    #[cfg(test)]
    pub(crate) fn buffered(dir: &Path) -> FileStorage {
        FileStorage { sectors: Sectors::off(), ..FileStorage::new(dir) }
    }

    fn file(&self, name: &str) -> io::Result<Arc<Opened>> {
        if let Some(file) = self.open.lock().get(name) {
            return Ok(file.clone());
        }
        if !self.read_only {
            self.check_link()?;
            self.check_place()?;
        }
        let file = regular(ours().read(true).write(!self.read_only).open(self.dir.join(name))?)?;
        if !self.read_only {
            // if the gateway may not change the permissions, the file can be used nevertheless
            let _ = keep_private(&file);
        }
        let len = file.metadata()?.len();
        let file = Arc::new(Opened::new(file, len));
        self.open.lock().insert(name.into(), file.clone());
        Ok(file)
    }

    /// Opens a file for reading, even if it may not be written. It does not stay open, because the next write must check its
    /// permission.
    fn readable(&self, name: &str) -> io::Result<Arc<Opened>> {
        self.file(name).or_else(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory => {
                Ok(Arc::new(Opened::new(regular(ours().read(true).open(self.dir.join(name))?)?, 0)))
            }
            _ => Err(error),
        })
    }

    fn may_change(&self) -> io::Result<()> {
        let reason = "it is only looked at";
        if self.read_only { Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, reason)) } else { Ok(()) }
    }

    /// Creates the directory with access for this user only. It must be a directory, and not a link to one.
    fn make_dir(&self) -> io::Result<()> {
        make_way(&self.dir, |about| about.is_dir())?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.check_link()?;
        self.take_place()?;
        let metadata = fs::symlink_metadata(&self.dir)?;
        if metadata.mode() & 0o077 != 0 {
            // if the directory belongs to another user, the files in it are private nevertheless
            let _ = fs::set_permissions(&self.dir, Permissions::from_mode(0o700));
        }
        Ok(())
    }

    /// Fails if the directory is a link.
    fn check_link(&self) -> io::Result<()> {
        let is_link = fs::symlink_metadata(&self.dir).is_ok_and(|metadata| metadata.is_symlink());
        if is_link { Err(io::Error::new(io::ErrorKind::NotADirectory, LINK)) } else { Ok(()) }
    }

    /// Fails if another directory has taken the place of the one that is used.
    fn check_place(&self) -> io::Result<()> {
        match &*self.used.lock() {
            Some(used) if !is_same(&used.metadata()?, &fs::metadata(&self.dir)?) => {
                Err(io::Error::new(io::ErrorKind::NotFound, "another directory has taken its place"))
            }
            _ => Ok(()),
        }
    }

    /// Uses the directory that is there now, unless it holds a journal that nobody has read.
    fn take_place(&self) -> io::Result<()> {
        let mut used = self.used.lock();
        let there = File::open(&self.dir)?;
        if let Some(used) = &*used
            && is_same(&used.metadata()?, &there.metadata()?)
        {
            return Ok(());
        }
        if files(&self.dir)?.iter().any(|(name, _)| name.ends_with(SEGMENT_SUFFIX) || name == SNAPSHOT) {
            return Err(NotRead::Journal.into());
        }
        *used = Some(there);
        Ok(())
    }

    /// Fails if the name no longer leads to this file. It is looked up in the open directory, so that no path is made for
    /// each sync.
    fn check_in_place(&self, name: &str, file: &File) -> io::Result<()> {
        self.check_place()?;
        let used = self.used.lock();
        let Some(used) = &*used else { return Ok(()) };
        let (there, here) = (statat(used, name, AtFlags::SYMLINK_NOFOLLOW)?, fstat(file)?);
        let is_same = (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino);
        if is_same { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// Whether both are the same file or directory.
fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// The names and sizes of the files in a directory.
fn files(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        match entry.metadata() {
            // a link is not a file of the journal, wherever it leads
            Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(files)
}

/// The options for opening files: for this user only, never through a link, and without waiting for the other end of a FIFO.
fn ours() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

/// Fails if something else than a file was opened, such as a FIFO or a device.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// Sets aside what stands in the place of a file or directory of ours and is something else, such as a directory in the
/// place of a file. Otherwise it would keep the journal from being written for ever. Links stay, because an error names
/// them.
fn make_way(path: &Path, is_ours: impl Fn(&fs::Metadata) -> bool) -> io::Result<()> {
    let Ok(about) = fs::symlink_metadata(path) else { return Ok(()) };
    if is_ours(&about) || about.is_symlink() {
        return Ok(());
    }
    let to = set_aside(path)?;
    warn!("journal: {} is not what belongs there: it was set aside as {}", path.display(), to.display());
    Ok(())
}

/// Removes the permissions of others from a file of an older gateway.
fn keep_private(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 { file.set_permissions(Permissions::from_mode(0o600)) } else { Ok(()) }
}

impl Storage for FileStorage {
    fn place(&self) -> String {
        std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone()).display().to_string()
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let there = match File::open(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            there => there?,
        };
        let mut used = self.used.lock();
        if let Some(used) = &*used
            && !is_same(&used.metadata()?, &there.metadata()?)
        {
            return Ok(Vec::new());
        }
        let files = files(&self.dir)?;
        used.get_or_insert(there);
        Ok(files)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.readable(name)?;
        let mut done = 0;
        while done < buffer.len() {
            match file.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.sectors.write(&self.file(name)?, || self.dir.join(name), offset, bytes)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.may_change()?;
        self.make_dir()?;
        let path = self.dir.join(name);
        make_way(&path, fs::Metadata::is_file)?;
        let mut file = ours().read(true).write(true).create_new(true).open(&path)?;
        let mut fill = || {
            // written and not only allocated, because unwritten extents cost a metadata write with every sync
            let zeros = [0; 64 * 1024];
            let mut left = len;
            while left > 0 {
                let part = left.min(zeros.len() as u64);
                file.write_all(&zeros[..part as usize])?;
                left -= part;
            }
            file.sync_all()?;
            self.sync_dir()
        };
        match fill() {
            Ok(()) => {
                self.open.lock().insert(name.into(), Arc::new(Opened::new(file, len)));
                Ok(())
            }
            Err(error) => {
                // an incomplete file is useless, and others need its space
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let file = self.file(name)?;
        file.file.sync_data()?;
        let is_gone =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if self.check_in_place(name, &file.file).is_err_and(|error| is_gone(&error)) {
            // the next start would not find what was written
            self.open.lock().remove(name);
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file is not in its place any more"));
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.may_change()?;
        self.check_place()?;
        make_way(&self.dir.join(to), fs::Metadata::is_file)?;
        fs::rename(self.dir.join(from), self.dir.join(to))?;
        let mut open = self.open.lock();
        open.remove(to);
        if let Some(file) = open.remove(from) {
            open.insert(to.into(), file);
        }
        drop(open);
        self.sync_dir()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.may_change()?;
        self.check_place()?;
        self.open.lock().remove(name);
        fs::remove_file(self.dir.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_for_their_user_alone_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        FileStorage::new(&journal).create("a", 16).unwrap();
        assert_eq!((mode(&journal), mode(&journal.join("a"))), (0o700, 0o600));
        // older gateways set other permissions
        fs::set_permissions(journal.join("a"), Permissions::from_mode(0o644)).unwrap();
        let storage = FileStorage::new(&journal);
        storage.write_at("a", 0, b"x").unwrap();
        assert_eq!(mode(&journal.join("a")), 0o600);
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "theirs").unwrap();
        std::os::unix::fs::symlink(&elsewhere, journal.join("b")).unwrap();
        storage.create("b", 16).unwrap_err();
        storage.read_at("b", 0, &mut [0; 6]).unwrap_err();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"theirs");
        assert_eq!(storage.list().unwrap(), [("a".into(), 16)]);
    }

    #[test]
    fn what_stands_in_the_way_of_files_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        fs::write(&journal, "a note").unwrap();
        let storage = FileStorage::new(&journal);
        storage.create("a", 16).unwrap();
        assert_eq!(fs::read(dir.path().join("journal.1.set-aside")).unwrap(), b"a note");
        let fifo = |name: &str| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mknodat(rustix::fs::CWD, journal.join(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        };
        fs::create_dir_all(journal.join("b/inside")).unwrap();
        fifo("c");
        fifo("d");
        // neither a FIFO nor a directory is waited for or read
        storage.read_at("b", 0, &mut [0; 1]).unwrap_err();
        storage.read_at("c", 0, &mut [0; 1]).unwrap_err();
        storage.write_at("c", 0, b"x").unwrap_err();
        for name in ["b", "c"] {
            storage.create(name, 16).unwrap();
            storage.write_at(name, 0, b"x").unwrap();
        }
        storage.rename("b", "d").unwrap();
        let mut files = storage.list().unwrap();
        files.sort();
        assert_eq!(files, [("a".into(), 16), ("c".into(), 16), ("d".into(), 16)]);
        assert!(journal.join("b.1.set-aside/inside").is_dir() && journal.join("c.1.set-aside").exists());
    }

    #[test]
    fn a_journal_that_was_not_read_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, other) = (dir.path().join("journal"), dir.path().join("other"));
        let earlier = FileStorage::new(&other);
        for name in ["00000000.segment", "00000001.segment", SNAPSHOT] {
            earlier.create(name, 16).unwrap();
            fs::write(other.join(name), name).unwrap();
        }
        let begin = || {
            let storage = FileStorage::new(&journal);
            assert!(storage.list().unwrap().is_empty());
            storage
        };
        // one was not there at the start, one was empty, and one was in use
        let (missing, empty, used) = (begin(), (fs::create_dir(&journal).unwrap(), begin()).1, begin());
        used.create("00000001.segment", 16).unwrap();
        used.create("snapshot.new", 16).unwrap();
        fs::rename(&journal, dir.path().join("moved")).unwrap();
        fs::rename(&other, &journal).unwrap();
        for storage in [&missing, &empty, &used] {
            let error = storage.create("00000002.segment", 16).unwrap_err();
            let advice = crate::journal::trouble::advice(&error, &storage.place());
            assert!(advice.contains("not there or could not be read") && advice.contains("restart"), "{advice}");
        }
        let gone = |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
        gone(used.sync("00000001.segment"));
        gone(used.write_at("00000001.segment", 0, b"x"));
        gone(used.write_at("00000000.segment", 0, b"x"));
        gone(used.rename("snapshot.new", SNAPSHOT));
        gone(used.remove("00000000.segment"));
        assert!(used.list().unwrap().is_empty(), "none of them is in use");
        for name in ["00000000.segment", "00000001.segment", SNAPSHOT] {
            assert_eq!(fs::read_to_string(journal.join(name)).unwrap(), name);
        }
    }

    #[test]
    fn no_file_is_made_in_the_place_of_another_or_taken_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::new(dir.path());
        storage.create("a", 16).unwrap();
        storage.write_at("a", 0, b"x").unwrap();
        assert_eq!(storage.create("a", 16).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        storage.sync("a").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap()[0], b'x');
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(storage.sync("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        storage.create("a", 16).unwrap();
        storage.sync("a").unwrap();
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_read_and_said_to_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("journal"));
        FileStorage::new(&real).create("a", 16).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let storage = FileStorage::new(&link);
        assert_eq!(storage.read_at("a", 0, &mut [0; 16]).unwrap(), 16);
        for error in [storage.write_at("a", 0, b"x").unwrap_err(), storage.create("b", 16).unwrap_err()] {
            let advice = crate::journal::trouble::advice(&error, &storage.place());
            assert!(advice.contains("is a symbolic link") && advice.contains("gateway.data_dir"), "{advice}");
        }
        assert_eq!(storage.list().unwrap(), [("a".into(), 16)]);
    }

    #[test]
    fn a_file_whose_permissions_cannot_be_changed_is_used_all_the_same() {
        // a file that all can read and the gateway can write, and whose permissions nobody may change
        let process = std::path::PathBuf::from(format!("/proc/{}", std::process::id()));
        let storage = FileStorage::buffered(&process);
        assert!(keep_private(&File::options().write(true).open(process.join("comm")).unwrap()).is_err());
        storage.file("comm").unwrap();
    }
}
