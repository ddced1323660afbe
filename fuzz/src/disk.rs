//! Files in memory, of which an input changes few: those that it does not change are shared by all inputs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use pigateway::journal::storage::Storage;

/// The contents of a file.
type Contents = Cow<'static, [u8]>;

/// A disk without faults. It counts the bytes that are read, because a start that reads its files many times takes too long
/// on a slow card.
#[derive(Debug, Default)]
pub(super) struct Disk {
    files: Mutex<BTreeMap<String, Contents>>,
    read: AtomicU64,
}

impl Disk {
    /// A disk with these files, which are copied when they are changed.
    pub(super) fn of(base: &'static BTreeMap<String, Vec<u8>>) -> Disk {
        let files = base.iter().map(|(name, bytes)| (name.clone(), Cow::Borrowed(bytes.as_slice())));
        Disk { files: Mutex::new(files.collect()), ..Disk::default() }
    }

    /// An independent copy.
    pub(super) fn copy(&self) -> Disk {
        Disk { files: Mutex::new(self.files.lock().clone()), ..Disk::default() }
    }

    pub(super) fn size(&self) -> u64 {
        self.files.lock().values().map(|contents| contents.len() as u64).sum()
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Calls a function with a file.
    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Contents) -> T) -> io::Result<T> {
        self.files.lock().get_mut(name).map(act).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Disk {
    fn place(&self) -> String {
        "memory".into()
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.files.lock().iter().map(|(name, contents)| (name.clone(), contents.len() as u64)).collect())
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.read.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.with(name, |contents| {
            let from = contents.get(offset as usize..).unwrap_or_default();
            let count = from.len().min(buffer.len());
            buffer[..count].copy_from_slice(&from[..count]);
            count
        })
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(name, |contents| {
            let (contents, end) = (contents.to_mut(), offset as usize + bytes.len());
            contents.resize(contents.len().max(end), 0);
            contents[offset as usize..end].copy_from_slice(bytes);
        })
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.files.lock().insert(name.into(), Cow::Owned(vec![0; len as usize]));
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.with(name, |_| ())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock();
        let contents = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.into(), contents);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
