//! What to make of an error that the disk gives: whether it lasts, and what a person can do about it.

use std::io::{Error, ErrorKind};

/// Whether trying again at once is of no use.
pub(crate) fn is_lasting(error: &Error) -> bool {
    use ErrorKind::*;
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | PermissionDenied)
}

/// What is the matter with the place that the journal is in, and what to do.
pub(crate) fn advice(error: &Error, place: &str) -> String {
    use ErrorKind::*;
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => format!(
            "{place} has no room left ({error}): delete what is not needed on that file system; nothing that waits is \
             given up for that"
        ),
        ReadOnlyFilesystem => format!(
            "{place} is on a file system that is read-only ({error}): mount it for writing; where the kernel has done \
             that by itself, see dmesg and check or replace the card"
        ),
        PermissionDenied => {
            format!("{place} must not be written ({error}): give it to the user that pigateway runs as")
        }
        NotADirectory if error.raw_os_error().is_none() => format!(
            "{place} is a symbolic link, and nothing is written where one leads: set gateway.data_dir to where it leads, or \
             mount that there (mount --bind)"
        ),
        NotFound => format!("{place} or a file in it was removed while in use ({error}): it is made again"),
        _ => format!("{place} cannot be written ({error}): see dmesg; the card may be worn out: replace it"),
    }
}
