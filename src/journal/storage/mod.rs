//! The interface to the journal's files, so that tests can simulate faults of cards and kernels.

pub(crate) mod direct;
pub mod file;
pub mod memory;

use std::fmt::Debug;
use std::io;

/// A directory of files. Calls block.
pub trait Storage: Debug + Send + Sync + 'static {
    /// The path of the directory, for people.
    fn place(&self) -> String;
    /// The names and sizes of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes bytes, which are on disk only after [`Storage::sync`].
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Creates a file of zeros. Fails if there is one of that name. The contents and the name are on disk on return.
    fn create(&self, name: &str, len: u64) -> io::Result<()>;
    /// Brings all writes to the file to disk. After an error it is unknown which writes are on disk, and a later success
    /// does not mean that all are.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Renames a file and replaces `to`. The new name is on disk on return.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file with its name.
    fn remove(&self, name: &str) -> io::Result<()>;
}
