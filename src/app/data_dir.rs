//! The data directory: created if it is missing, and locked against a second gateway.
//!
//! The gateway also starts with a full or read-only disk, because it can still serve local clients; the journal reports what
//! it cannot keep. If the directory is in memory, the gateway reports that too, because a power cut then loses
//! more than elsewhere.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use tracing::{error, warn};

use super::AppError;
use super::file_system::{self, AtPowerCut, Mounts};
use crate::secret::set_aside;
use crate::status::PowerCut;

/// The name of the file that is locked.
const LOCK: &str = "lock";

/// The data directory, locked for this process until dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    /// The lock ends with the process, however that ends. `None` means that there is no file to lock.
    _lock: Option<File>,
    /// What a power cut would lose although it was promised to survive one.
    pub(crate) lost_at_power_cut: Option<PowerCut>,
    /// The largest reasonable journal in this directory, in bytes.
    pub(crate) largest_journal: u64,
}

impl DataDir {
    pub(crate) fn open(path: &Path) -> Result<DataDir, AppError> {
        let failed = |source: io::Error| AppError::DataDir { path: path.into(), source };
        let name = path.join(LOCK);
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            if fs::metadata(path)?.mode() & 0o077 != 0 && is_ours(path, &name)? {
                // if the directory belongs to another user, the files in it are private all the same
                let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
            }
            make_way(&name)?;
            let no_link = OFlags::NOFOLLOW.bits() as i32;
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).custom_flags(no_link).open(&name)
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
        let mounts = Mounts::read(Path::new("/"));
        let at_power_cut = mounts.at_power_cut(path);
        if let Some(fault) = at_power_cut.fault() {
            warn!("{fault}");
        }
        let is_certain = matches!(at_power_cut, AtPowerCut::Lost(_));
        let in_memory = if is_certain { mounts.largest_in_memory() } else { None };
        let lost_at_power_cut =
            at_power_cut.fault().map(|fault| PowerCut { cost: fault.to_string().into(), is_certain });
        let largest_journal = in_memory.unwrap_or(u64::MAX).min(file_system::largest_journal(path));
        Ok(DataDir { _lock: lock, lost_at_power_cut, largest_journal })
    }
}

/// Sets aside what stands in the place of the lock file and is no file, such as a directory or a link: nothing of that kind
/// is the lock of another gateway, and it must not keep this one from starting.
fn make_way(lock: &Path) -> io::Result<()> {
    if fs::symlink_metadata(lock).is_ok_and(|about| !about.is_file()) {
        let to = set_aside(lock)?;
        warn!("{} is no file: it was set aside as {}", lock.display(), to.display());
    }
    Ok(())
}

/// Whether a gateway has used this directory as its data directory.
pub(crate) fn is_used(path: &Path) -> bool {
    path.join(LOCK).is_file()
}

/// Whether the directory is empty, or a gateway has used it before.
fn is_ours(path: &Path, lock: &Path) -> io::Result<bool> {
    Ok(lock.exists() || fs::read_dir(path)?.next().is_none())
}

/// Whether the error may end without a change of the configuration, such as a full disk.
fn takes_nothing(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// What stands in the place of the directory or of one above it and is none, with what is valid there.
pub(crate) fn obstacle(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|part| fs::symlink_metadata(part).is_ok())?;
    let found = match (fs::metadata(there), fs::read_link(there)) {
        (Ok(about), _) if about.is_dir() => return None,
        (Ok(about), _) if about.is_file() => "a file".to_owned(),
        (Ok(_), _) => "no directory".into(),
        (Err(error), Ok(to)) if error.kind() == io::ErrorKind::NotFound => {
            format!("a link to {}, which leads nowhere", to.display())
        }
        // it may be one that only others can look at
        (Err(_), _) => return None,
    };
    Some(format!("found {found} at {}; valid: a directory, or a path at which one can be made", there.display()))
}

/// What is wrong with the directory, and what a person can do.
pub(super) fn reason(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::WouldBlock => " (another pigateway uses it: stop that one, or set gateway.data_dir)",
        io::ErrorKind::PermissionDenied => " (gateway.data_dir must be a directory that this user may write)",
        _ => "",
    };
    let lock = path.join(LOCK);
    if error.kind() == io::ErrorKind::PermissionDenied
        && OpenOptions::new()
            .write(true)
            .open(&lock)
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        && let Ok(about) = fs::symlink_metadata(&lock)
    {
        let (owner, lock) = (about.uid(), lock.display());
        return format!(
            "{error}: {lock} belongs to user {owner} (stop a gateway that runs as that user, then chown it)"
        );
    }
    obstacle(path).unwrap_or_else(|| format!("{error}{remedy}"))
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
        assert_eq!(error.exit_code().number(), 73);
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn it_is_for_its_user_alone_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        drop(DataDir::open(&path).unwrap());
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o700, 0o600));
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
        fs::write(shared.join("of-another-program"), "").unwrap();
        drop(DataDir::open(&shared).unwrap());
        assert_eq!(mode(&shared), 0o755, "where others have files it is not closed to them");
        fs::remove_file(path.join("lock")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), path.join("lock")).unwrap();
        let locked = DataDir::open(&path).unwrap();
        assert!(!dir.path().join("elsewhere").exists() && path.join("lock").symlink_metadata().unwrap().is_file());
        DataDir::open(&path).unwrap_err();
        drop(locked);
    }

    #[test]
    fn what_stands_in_the_place_of_the_lock_keeps_nobody_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lock/inside")).unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        assert!(dir.path().join("lock.1.set-aside/inside").is_dir());
        fs::remove_file(dir.path().join("lock")).unwrap();
        fs::create_dir(dir.path().join("lock")).unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("another pigateway uses it"), "{error}");
        drop(first);
    }

    #[test]
    fn a_file_in_the_way_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let nowhere = dir.path().join("link");
        std::os::unix::fs::symlink("/nowhere/data", &nowhere).unwrap();
        for (wrong, words) in [
            (path.clone(), "found a file at "),
            (path.join("below"), "found a file at "),
            (nowhere.clone(), "found a link to /nowhere/data, which leads nowhere"),
            (nowhere.join("below"), "found a link to /nowhere/data"),
            ("/dev/null".into(), "found no directory at /dev/null; valid: a directory"),
        ] {
            let error = DataDir::open(&wrong).unwrap_err();
            assert_eq!(error.exit_code().number(), 73);
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!((obstacle(dir.path()), obstacle(&dir.path().join("new/data"))), (None, None));
    }
}
