//! Small writes in whole sectors, past the page cache.
//!
//! The page cache writes whole pages, so a record of 300 bytes costs the device a block of 4096 bytes, and twice that if the
//! record crosses a page boundary. With `O_DIRECT` the device gets only the sectors of 512 bytes that have changed. Large
//! writes use the page cache: it adds little to them, and a consumer that catches up then reads from memory.
//!
//! # Direct and ordinary writes to one file
//! Linux keeps both consistent: before a direct write it writes back the dirty pages of the range and drops them, and after
//! the write it drops them again, so a read through the ordinary descriptor sees the new bytes. Only concurrent writes to
//! one page would be a problem, and a lock that is held during each write of either kind prevents them. When a direct write
//! returns, its bytes may still be in the device's cache, so it needs a sync like any other write.
//!
//! # Sectors that are overwritten in part
//! The first and the last sector of a write are seldom overwritten in full. A window of the file is kept in memory, read
//! once and changed with every write, so that a growing journal seldom has to read sectors that the direct writes have
//! dropped from the page cache. Writes beyond the length that the file had when it was opened are not direct, because whole
//! sectors would make the file longer.

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

/// The smallest unit that most devices write, in bytes. A device with larger sectors refuses such a write.
const SECTOR: u64 = 512;
/// The size of the page cache's blocks in bytes. A write whose sectors are longer than this uses the page cache.
const BLOCK: u64 = 4096;
/// The length of the window in bytes.
const WINDOW: usize = 4 * BLOCK as usize;

/// An open file with its ordinary descriptor and, once it was needed, one for direct writes.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: File,
    /// The length of the file when it was opened.
    len: u64,
    direct: OnceLock<File>,
}

impl Opened {
    /// Makes a value of an ordinary descriptor and the length of its file.
    pub(crate) fn new(file: File, len: u64) -> Opened {
        Opened { file, len, direct: OnceLock::new() }
    }

    /// The descriptor for direct writes, which is opened at the first call. Returns `None` if the path leads to another file
    /// by now, which must not be written.
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

/// Writes to files: small writes directly in sectors if that is possible, and all others through the page cache.
#[derive(Debug, Default)]
pub(crate) struct Sectors {
    window: Mutex<Window>,
    is_off: AtomicBool,
}

impl Sectors {
    /// Writes everything through the page cache.
    pub(crate) fn off() -> Sectors {
        Sectors { is_off: true.into(), ..Sectors::default() }
    }

    /// Writes all bytes to the file. Its path is needed only for the first direct write.
    pub(crate) fn write(
        &self,
        to: &Arc<Opened>,
        path: impl Fn() -> PathBuf,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        // held for both kinds of writes, because the window must not be read during an ordinary write
        let mut window = self.window.lock();
        if self.write_direct(&mut window, to, path, offset, bytes)? {
            return Ok(());
        }
        window.forget();
        to.file.write_all_at(bytes, offset)
    }

    /// Tries a direct write, and returns whether it was possible.
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
            // if the error concerns ordinary writes too, the ordinary write that follows reports it
            Err(error) => {
                self.refused(&error);
                return Ok(false);
            }
        };
        // the error is not returned, because the bytes that cannot be read may lie outside of the range to be written
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
                // it is unknown which of the bytes are in the file
                window.forget();
                Err(error)
            }
        }
    }

    /// Whether an error means that direct writes are not supported here. If so, no others are tried.
    fn refused(&self, error: &io::Error) -> bool {
        let is_refusal = matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP));
        if is_refusal && !self.is_off.swap(true, Ordering::Relaxed) {
            debug!(%error, "journal: no direct writes of single sectors on this file system or device");
        }
        is_refusal
    }
}

/// Writes sectors. Returns `false` if a sector was written only in part, so that all bytes must be written in another way.
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

/// A copy of a part of a file.
#[derive(Debug, Default)]
struct Window {
    /// Longer than the window, so that the window can begin at an address that is aligned as devices require.
    memory: Vec<u8>,
    /// The file. The reference is weak, so that a removed file is closed and its space becomes free.
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
        // the comparison is safe, because an address is not used again while a weak reference to it exists
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(file)) && self.begin <= begin && end <= self.end
    }

    /// Reads the window, from the block that contains `at` on and in whole sectors.
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
        // if no aligned address can be computed, the device refuses the write
        let aligned = self.memory.as_ptr().align_offset(BLOCK as usize) % BLOCK as usize;
        &mut self.memory[aligned..][(begin - self.begin) as usize..(end - self.begin) as usize]
    }
}

#[cfg(test)]
mod tests;
