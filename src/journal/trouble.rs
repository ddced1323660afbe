//! Judges errors of the disk: whether they last, and what a person can do.

use std::io::{Error, ErrorKind};

use tracing::error;

use crate::health::{Fault, Health};

/// Whether it is useless to try again at once.
pub(crate) fn is_lasting(error: &Error) -> bool {
    use ErrorKind::*;
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem | PermissionDenied)
}

/// What is wrong with the journal's directory, and what to do.
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

/// The reason why the journal cannot write.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Why nothing can be written at present.
    now: Option<String>,
    /// The last such problem, even if it is over.
    last: Option<String>,
    /// Where problems are reported in addition to the log.
    health: Health,
}

impl Trouble {
    /// Reports to this health from now on.
    pub(crate) fn report_to(&mut self, health: Health) {
        self.health = health;
        self.show();
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
