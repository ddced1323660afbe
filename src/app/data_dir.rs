//! The data directory: made where it is missing and locked against a second gateway.
//!
//! A disk that is full or read-only is no reason not to start: local clients are served all the same. The journal says
//! what cannot be kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tracing::error;

use super::AppError;

/// The data directory, ours until dropped.
#[derive(Debug)]
pub struct DataDir {
    /// Its lock goes with it, whatever way the process ends. `None`: there is nothing to lock.
    _lock: Option<File>,
}

impl DataDir {
    /// Opens it.
    pub fn open(path: &Path) -> Result<DataDir, AppError> {
        let failed = |source: io::Error| AppError::DataDir { path: path.into(), source };
        let name = path.join("lock");
        let make = || {
            fs::create_dir_all(path)?;
            OpenOptions::new().create(true).truncate(false).write(true).open(&name)
        };
        let lock = match make() {
            Ok(lock) => Some(lock),
            Err(error) if takes_nothing(&error) => {
                error!("{} takes nothing: {error}; messages that must be kept are not acknowledged", path.display());
                File::open(&name).or_else(|_| File::open(path)).ok()
            }
            Err(error) => return Err(failed(error)),
        };
        if let Some(lock) = &lock {
            flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        }
        Ok(DataDir { _lock: lock })
    }
}

/// Whether that may be over one day without anybody changing the configuration.
fn takes_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// What to do about an error.
pub fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::WouldBlock => " (another pigateway uses it: stop that one, or set gateway.data_dir)",
        io::ErrorKind::PermissionDenied => " (gateway.data_dir must be a directory that this user may write)",
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
