//! The journal's files: a seam, so that tests can inject what cards and kernels do.

pub(crate) mod direct;
pub mod file;
pub mod memory;

use std::fmt::Debug;
use std::io;

/// A directory of files. Calls block.
pub trait Storage: Debug + Send + Sync + 'static {
    /// Where that is, for people.
    fn place(&self) -> String;
    /// Names and sizes of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes; safe only after [`Storage::sync`].
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file of zeros, every byte of it written and synced, its name too. Replaces a file of that name.
    fn create(&self, name: &str, len: u64) -> io::Result<()>;
    /// Makes all writes to the file safe. After an error it is unknown which of them are, and asking again does not tell.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Renames a file, replacing `to`; safe on return.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
}
