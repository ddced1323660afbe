//! The data directory: made where it is missing, proved to be writable, and locked against a second gateway.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::AppError;

/// The data directory, ours until dropped.
#[derive(Debug)]
pub struct DataDir {
    /// Its lock goes with it, whatever way the process ends.
    _lock: File,
}

impl DataDir {
    /// Opens it.
    pub fn open(path: &Path) -> Result<DataDir, AppError> {
        let failed = |source: io::Error| AppError::DataDir { path: path.into(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        Ok(DataDir { _lock: lock })
    }
}

/// What to do about an error.
pub fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::WouldBlock => " (another pigateway uses it: stop that one, or set gateway.data_dir)",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            " (gateway.data_dir must be a directory that this user may write)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_gateway_is_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let error = DataDir::open(&path).unwrap_err();
        assert!(error.to_string().contains("another pigateway uses it"), "{error}");
        assert_eq!(error.exit_code(), 73);
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        assert_eq!(DataDir::open(&path).unwrap_err().exit_code(), 73);
    }
}
