//! Files in memory, for tests: writes that were not synced can be lost, calls can be made to fail, and all changes can be
//! recorded and replayed up to any byte.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Storage;
use crate::journal::format::DATA;

/// A change of the files.
#[derive(Clone, Debug)]
pub enum FileChange {
    /// The creation of a file of zeros, with its name and length.
    Create(String, u64),
    /// A write to a file, with its offset and bytes.
    Write(String, u64, Vec<u8>),
    /// A sync of a file.
    Sync(String),
    /// A change of a file's name, from the first to the second.
    Rename(String, String),
    /// The removal of a file.
    Remove(String),
}

/// The file of the first segment.
const FIRST: &str = "00000000.segment";

/// The faults that are simulated. The error numbers are those of errno(3).
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The error with which every creation of a file fails.
    pub create: Option<i32>,
    /// The error with which every write fails.
    pub write: Option<i32>,
    /// The error with which every sync fails. The bytes that were to be synced are lost, as under Linux.
    pub sync: Option<i32>,
    /// The number of syncs that fail before they succeed again; `None` if all fail.
    pub syncs: Option<u32>,
    /// Whether every sync waits until this is no longer set.
    pub hold_sync: bool,
    /// Whether every sync of a file that is being merged waits until this is no longer set.
    pub hold_merge: bool,
    /// The same, from the second merge on that was begun since the changes are recorded.
    pub hold_second_merge: bool,
    /// The error with which every read of records fails; headers can be read.
    pub read: Option<i32>,
    /// The number of reads of records that fail before they succeed again; `None` if all fail.
    pub reads: Option<u32>,
    /// Whether only reads of the first segment's file fail.
    pub read_of_first: bool,
    /// The error with which every read of a header fails.
    pub read_header: Option<i32>,
    /// Whether every removal of a file waits until this is no longer set.
    pub hold_remove: bool,
}

impl Faults {
    /// No faults at all.
    pub const NONE: Faults = Faults {
        create: None,
        write: None,
        sync: None,
        syncs: None,
        hold_sync: false,
        hold_merge: false,
        hold_second_merge: false,
        read: None,
        reads: None,
        read_of_first: false,
        read_header: None,
        hold_remove: false,
    };
}

#[derive(Clone, Debug, Default)]
struct FileContents {
    /// The bytes that a reader sees.
    seen: Vec<u8>,
    /// The bytes that a power cut leaves.
    safe: Vec<u8>,
    /// Whether a sync has failed. The kernel then considers the pages clean, and no later sync brings them to the disk.
    poisoned: bool,
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<String, FileContents>,
    changes: Option<Vec<FileChange>>,
    faults: Faults,
    /// Whether a removal waits for [`Faults::hold_remove`].
    removing: bool,
}

/// The files in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    disk: Arc<(Mutex<Disk>, Condvar)>,
}

fn missing() -> io::Error {
    io::Error::from_raw_os_error(2)
}

fn write(contents: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if contents.len() < end {
        contents.resize(end, 0);
    }
    contents[offset as usize..end].copy_from_slice(bytes);
}

impl MemoryStorage {
    /// Replaces the simulated faults.
    pub fn set_faults(&self, faults: Faults) {
        self.disk.0.lock().faults = faults;
        self.disk.1.notify_all();
    }

    /// Whether a removal waits, see [`Faults::hold_remove`].
    pub fn is_removing(&self) -> bool {
        self.disk.0.lock().removing
    }

    /// Records every change from now on.
    pub fn record(&self) {
        self.disk.0.lock().changes = Some(Vec::new());
    }

    /// The changes that were recorded so far.
    pub fn recorded(&self) -> Vec<FileChange> {
        self.disk.0.lock().changes.clone().unwrap_or_default()
    }

    /// The files as a power cut would leave them now: writes that were not synced are lost.
    pub fn after_power_cut(&self) -> MemoryStorage {
        let mut files = self.disk.0.lock().files.clone();
        for contents in files.values_mut() {
            contents.seen.clone_from(&contents.safe);
        }
        MemoryStorage { disk: Arc::new((Mutex::new(Disk { files, ..Disk::default() }), Condvar::new())) }
    }

    /// An independent copy of the files.
    pub fn copy(&self) -> MemoryStorage {
        let files = self.disk.0.lock().files.clone();
        MemoryStorage { disk: Arc::new((Mutex::new(Disk { files, ..Disk::default() }), Condvar::new())) }
    }

    /// Makes a recorded change. Of a write only the first `most` bytes are made.
    pub fn apply(&self, change: &FileChange, most: usize) {
        // every recorded change has succeeded once
        let _ = match change {
            FileChange::Create(name, len) => self.create(name, *len),
            FileChange::Write(name, offset, bytes) => self.write_at(name, *offset, &bytes[..most.min(bytes.len())]),
            FileChange::Sync(name) => self.sync(name),
            FileChange::Rename(from, to) => self.rename(from, to),
            FileChange::Remove(name) => self.remove(name),
        };
    }

    /// Inverts one bit of a file.
    pub fn flip(&self, name: &str, bit: usize) {
        self.change(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
    }

    /// Fills a part of a file with zeros.
    pub fn blank(&self, name: &str, offset: usize, len: usize) {
        self.change(name, |bytes| {
            let end = (offset + len).min(bytes.len());
            bytes[offset..end].fill(0);
        });
    }

    fn change(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        if let Some(contents) = self.disk.0.lock().files.get_mut(name) {
            change(&mut contents.seen);
            change(&mut contents.safe);
        }
    }

    /// The contents of a file, and nothing if it does not exist.
    pub fn contents(&self, name: &str) -> Vec<u8> {
        self.disk.0.lock().files.get(name).map(|contents| contents.seen.clone()).unwrap_or_default()
    }
}

impl Disk {
    fn holds_merge(&self, name: &str) -> bool {
        let is_merging = self.files.get(name).is_some_and(|contents| contents.seen.get(10) == Some(&2));
        let is_first = || {
            let begun =
                |change: &&FileChange| matches!(change, FileChange::Write(_, 0, bytes) if bytes.get(10) == Some(&2));
            let first = self.changes.iter().flatten().find(begun);
            matches!(first, Some(FileChange::Write(first, ..)) if first == name)
        };
        is_merging && (self.faults.hold_merge || (self.faults.hold_second_merge && !is_first()))
    }

    fn note(&mut self, change: impl FnOnce() -> FileChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }
}

fn fault(number: Option<i32>) -> io::Result<()> {
    number.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
}

impl Storage for MemoryStorage {
    fn place(&self) -> String {
        "memory".into()
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let disk = self.disk.0.lock();
        Ok(disk.files.iter().map(|(name, contents)| (name.clone(), contents.seen.len() as u64)).collect())
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.disk.0.lock();
        if offset < DATA && (!disk.faults.read_of_first || name == FIRST) {
            fault(disk.faults.read_header)?;
        }
        if offset >= DATA && (!disk.faults.read_of_first || name == FIRST) && disk.faults.reads != Some(0) {
            disk.faults.reads = disk.faults.reads.map(|left| left - 1);
            fault(disk.faults.read)?;
        }
        let seen = &disk.files.get(name).ok_or_else(missing)?.seen;
        let from = seen.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        fault(disk.faults.write)?;
        write(&mut disk.files.get_mut(name).ok_or_else(missing)?.seen, offset, bytes);
        disk.note(|| FileChange::Write(name.into(), offset, bytes.into()));
        Ok(())
    }

    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        fault(disk.faults.create)?;
        if disk.files.contains_key(name) {
            return fault(Some(17));
        }
        let zeros = vec![0; len as usize];
        disk.files.insert(name.into(), FileContents { seen: zeros.clone(), safe: zeros, poisoned: false });
        disk.note(|| FileChange::Create(name.into(), len));
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        while disk.faults.hold_sync || disk.holds_merge(name) {
            self.disk.1.wait(&mut disk);
        }
        if disk.faults.sync.is_some() && disk.faults.syncs != Some(0) {
            disk.faults.syncs = disk.faults.syncs.map(|left| left - 1);
            disk.files.get_mut(name).ok_or_else(missing)?.poisoned = true;
            return fault(disk.faults.sync);
        }
        let contents = disk.files.get_mut(name).ok_or_else(missing)?;
        if !contents.poisoned {
            contents.safe.clone_from(&contents.seen);
        }
        disk.note(|| FileChange::Sync(name.into()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        let contents = disk.files.remove(from).ok_or_else(missing)?;
        disk.files.insert(to.into(), contents);
        disk.note(|| FileChange::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        while disk.faults.hold_remove {
            disk.removing = true;
            self.disk.1.wait(&mut disk);
        }
        disk.removing = false;
        disk.files.remove(name).ok_or_else(missing)?;
        disk.note(|| FileChange::Remove(name.into()));
        Ok(())
    }
}
