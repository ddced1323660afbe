//! Small writes in whole sectors, past the page cache.
//!
//! Through the page cache a device gets a block of 4096 bytes for a record of 300, twice that where the record lies across
//! two: it is the page that is dirty. With `O_DIRECT` it gets the sectors of 512 bytes that have changed. Large writes go
//! through the page cache as ever: it has little to add to them, and whoever catches up finds in memory what they left.
//!
//! # Both ways into one file
//! Linux keeps them together: before a direct write it writes back what is dirty in the range and drops its pages, and
//! after the write it drops them again, so what reads through the ordinary descriptor sees the new bytes. That leaves
//! concurrent writes to one page; there are none here, as a lock is held over each write, whichever way it goes.
//! A direct write is in the device's cache when it returns: it needs the sync as others do.
//!
//! # What surrounds the bytes
//! The first and the last sector are seldom overwritten in full. A window of the file is kept in memory, read once and
//! changed with every write, so that a journal that grows seldom has to read what it has dropped from the page cache.
//! Nothing is written past the end that the file had when it was opened: sectors would make it longer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tracing::debug;

/// The least that a device takes, unless it says otherwise by refusing it.
const SECTOR: u64 = 512;
/// Writes whose sectors are more than this together go through the page cache, which writes in such blocks.
const BLOCK: u64 = 4096;
/// So much of the file is kept.
const WINDOW: usize = 4 * BLOCK as usize;

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The ordinary descriptor.
    pub(crate) file: File,
    /// How long it was when it was opened.
    len: u64,
    direct: OnceLock<File>,
}

impl Opened {
    /// A file of this length.
    pub(crate) fn new(file: File, len: u64) -> Opened {
        Opened { file, len, direct: OnceLock::new() }
    }

    /// The descriptor that leads past the page cache. The name may mean another file by now, and that one is let alone.
    fn direct(&self, path: impl Fn() -> PathBuf) -> io::Result<Option<&File>> {
        if self.direct.get().is_none() {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags((OFlags::DIRECT | OFlags::NOFOLLOW).bits() as i32)
                .open(path())?;
            let (this, that) = (self.file.metadata()?, file.metadata()?);
            if (this.dev(), this.ino()) != (that.dev(), that.ino()) {
                return Ok(None);
            }
            return Ok(Some(self.direct.get_or_init(|| file)));
        }
        Ok(self.direct.get())
    }
}

/// Writes small things in sectors where that is possible, and all else through the page cache.
#[derive(Debug, Default)]
pub(crate) struct Sectors {
    window: Mutex<Window>,
    is_off: AtomicBool,
}

impl Sectors {
    /// Everything goes through the page cache.
    pub(crate) fn off() -> Sectors {
        Sectors { is_off: true.into(), ..Sectors::default() }
    }

    /// Writes all bytes to the file, whose path is asked for once.
    pub(crate) fn write(
        &self,
        to: &Arc<Opened>,
        path: impl Fn() -> PathBuf,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        // over both ways: a window must not be read while something is written beside it
        let mut window = self.window.lock();
        if self.write_direct(&mut window, to, path, offset, bytes)? {
            return Ok(());
        }
        window.forget();
        to.file.write_all_at(bytes, offset)
    }

    /// Says whether it could.
    fn write_direct(
        &self,
        window: &mut Window,
        to: &Arc<Opened>,
        path: impl Fn() -> PathBuf,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<bool> {
        let begin = offset / SECTOR * SECTOR;
        let end = (offset + bytes.len() as u64).next_multiple_of(SECTOR);
        if bytes.is_empty() || end - begin > BLOCK || end > to.len || self.is_off.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let direct = match to.direct(path) {
            Ok(Some(direct)) => direct,
            Ok(None) => return Ok(false),
            // the ordinary descriptor says what is wrong, if that concerns it
            Err(error) => {
                self.refused(&error);
                return Ok(false);
            }
        };
        // the same: what cannot be read here may lie beyond what is to be written
        if !window.has(to, begin, end) && window.load(to, begin).is_err() {
            return Ok(false);
        }
        let part = window.part(begin, end);
        let at = (offset - begin) as usize;
        part[at..at + bytes.len()].copy_from_slice(bytes);
        match write_sectors(direct, part, begin) {
            Ok(true) => {
                #[cfg(test)]
                tests::count(window);
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(error) if self.refused(&error) => Ok(false),
            Err(error) => {
                // what of it is in the file is not known
                window.forget();
                Err(error)
            }
        }
    }

    /// Whether an error says that there are no such writes here; then there is no other attempt.
    fn refused(&self, error: &io::Error) -> bool {
        let is_refusal = matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP));
        if is_refusal && !self.is_off.swap(true, Ordering::Relaxed) {
            debug!(%error, "journal: no direct writes of single sectors on this file system or device");
        }
        is_refusal
    }
}

/// Writes sectors; says no when a part of one was written, which must be done again by other means.
fn write_sectors(to: &impl FileExt, bytes: &[u8], offset: u64) -> io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        match to.write_at(&bytes[done..], offset + done as u64) {
            Ok(count) if count > 0 && (count as u64).is_multiple_of(SECTOR) => done += count,
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Bytes of a file as they are in it.
#[derive(Debug, Default)]
struct Window {
    /// Longer than the window, so that it can begin where a device can take it from.
    memory: Vec<u8>,
    /// Weak, so that a file that was removed gives its space back.
    of: Weak<Opened>,
    begin: u64,
    end: u64,
    #[cfg(test)]
    writes: u64,
}

impl Window {
    fn forget(&mut self) {
        self.of = Weak::new();
    }

    fn has(&self, file: &Arc<Opened>, begin: u64, end: u64) -> bool {
        // an address is not used again while something points to it, be it weakly
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(file)) && self.begin <= begin && end <= self.end
    }

    /// Reads it from the block of `at` on, and no part of a sector.
    fn load(&mut self, file: &Arc<Opened>, at: u64) -> io::Result<()> {
        self.forget();
        self.memory.resize(WINDOW + BLOCK as usize, 0);
        self.begin = at / BLOCK * BLOCK;
        self.end = (self.begin + WINDOW as u64).min(file.len / SECTOR * SECTOR);
        let (begin, end) = (self.begin, self.end);
        file.file.read_exact_at(self.part(begin, end), begin)?;
        self.of = Arc::downgrade(file);
        Ok(())
    }

    fn part(&mut self, begin: u64, end: u64) -> &mut [u8] {
        // where no such address can be told, the device refuses what it gets
        let aligned = self.memory.as_ptr().align_offset(BLOCK as usize) % BLOCK as usize;
        &mut self.memory[aligned..][(begin - self.begin) as usize..(end - self.begin) as usize]
    }
}

#[cfg(test)]
mod tests;
