//! Judges errors of the disk: whether they last, and what a person can do.

use std::io::{Error, ErrorKind};

use rustix::io::Errno;
use tracing::error;

use crate::health::{Fault, Health};

/// A journal, or a file of it, that this run has not read. It may hold what an earlier run has acknowledged, so nothing is
/// written beside it, and only a restart reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRead {
    /// The directory was not there or could not be read at the start, or another one has taken its place.
    #[error("it holds a journal that was not there or could not be read at the start")]
    Journal,
    /// A file could not be read at the start.
    #[error("{file}: {}", Error::from_raw_os_error(*.errno))]
    File {
        /// The name of the file.
        file: String,
        /// The error of errno(3).
        errno: i32,
    },
}

impl From<NotRead> for Error {
    fn from(unread: NotRead) -> Error {
        Error::new(ErrorKind::AlreadyExists, unread)
    }
}

/// What was not read, if that is the error.
pub(crate) fn unread(error: &Error) -> Option<&NotRead> {
    error.get_ref()?.downcast_ref()
}

/// Whether a file of that name is there already, of which nobody knows what it is.
pub(crate) fn is_taken(error: &Error) -> bool {
    error.kind() == ErrorKind::AlreadyExists && unread(error).is_none()
}

/// Whether it is useless to try again at once.
pub(crate) fn is_lasting(error: &Error) -> bool {
    use ErrorKind::*;
    unread(error).is_some()
        || matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | PermissionDenied)
}

/// What is wrong with the journal's directory, and what to do.
pub(crate) fn advice(error: &Error, place: &str) -> String {
    use ErrorKind::*;
    match unread(error) {
        Some(NotRead::Journal) => {
            return format!("{place} must not be written, because {error}: restart pigateway, which then reads it");
        }
        Some(NotRead::File { errno, .. }) => {
            let remedy = match Error::from_raw_os_error(*errno).kind() {
                PermissionDenied => "give it to the user that pigateway runs as",
                _ => "see dmesg for the reason",
            };
            return format!(
                "{place} must not be written, because a file in it cannot be read ({error}): {remedy}, and restart pigateway"
            );
        }
        None => {}
    }
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
        _ if matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE)) => {
            format!("{place} cannot be opened ({error}): fewer clients, or a higher LimitNOFILE; it is tried again")
        }
        NotADirectory if error.raw_os_error().is_none() => format!(
            "{place} is a symbolic link, and nothing is written where one leads: set gateway.data_dir to where it leads, or \
             mount that there (mount --bind)"
        ),
        NotFound => format!(
            "{place} or a file in it was removed, moved or mounted over while in use ({error}): it is made again"
        ),
        _ => format!("{place} cannot be written ({error}): see dmesg; the card may be worn out: replace it"),
    }
}

/// The reason why the journal cannot write.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Why nothing can be written at present.
    now: Option<String>,
    /// The last such problem, even if it is over.
    last: Option<String>,
    /// Why the journal could not be read at the start, as long as nobody has been told.
    at_start: Option<Error>,
    /// Where problems are reported in addition to the log.
    health: Health,
}

impl Trouble {
    /// Reports to this health from now on.
    pub(crate) fn report_to(&mut self, health: Health) {
        self.health = health;
        self.show();
    }

    /// Records why something could not be read at the start.
    pub(crate) fn meet(&mut self, error: Error) {
        self.at_start = Some(error);
    }

    /// Why the journal could not be read at the start. To be called once.
    pub(crate) fn take_met(&mut self) -> Option<Error> {
        self.at_start.take()
    }

    fn show(&self) {
        let fault = self.now.as_ref().map(|why| Fault::new("what must be kept is not acknowledged", why.as_str()));
        self.health.set("journal", fault.as_ref());
    }

    /// Why nothing can be written at present.
    pub(crate) fn now(&self) -> Option<&String> {
        self.now.as_ref()
    }

    /// The last problem, even if it is over.
    pub(crate) fn last(&self) -> Option<&String> {
        self.last.as_ref()
    }

    /// Records that something could not be written.
    pub(crate) fn note(&mut self, what: String) {
        self.last = Some(what);
    }

    /// Records that nothing can be written, for this reason.
    pub(crate) fn begin(&mut self, why: String) {
        if self.now.as_ref() != Some(&why) {
            error!("journal: messages that must be kept are not acknowledged any more: {why}");
            (self.last, self.now) = (Some(why.clone()), Some(why));
            self.show();
        }
    }

    /// Records a successful write, and returns whether that ends a problem.
    pub(crate) fn end(&mut self) -> bool {
        let is_over = self.now.take().is_some();
        if is_over {
            self.show();
        }
        is_over
    }
}
