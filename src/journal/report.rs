//! What the journal has to say about itself.

use std::fmt;

/// Something that was wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A write that a power cut had interrupted was cut off. Nothing in it had been acknowledged.
    TornTail {
        /// The file.
        file: String,
        /// Where its whole records end.
        at: u64,
    },
    /// Between whole records there are bytes that are none.
    Damaged {
        /// The file.
        file: String,
        /// Places.
        places: u32,
        /// Bytes.
        bytes: u64,
        /// Records that are missing, where their numbers tell.
        records: u64,
    },
    /// One of the two headers of a file was not readable; the other one is used.
    Header {
        /// The file.
        file: String,
    },
    /// A file was renamed and is not used any more.
    SetAside {
        /// Its name before.
        file: String,
        /// Its name now.
        to: String,
        /// Its size.
        bytes: u64,
    },
    /// A file cannot be read at all.
    Unreadable {
        /// The file.
        file: String,
        /// What the system says.
        error: String,
    },
}

impl Report {
    /// Whether acknowledged messages may be concerned.
    pub fn is_loss(&self) -> bool {
        matches!(self, Report::Damaged { .. } | Report::SetAside { .. } | Report::Unreadable { .. })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::TornTail { file, at } => {
                write!(f, "{file}: an interrupted write was cut off at {at}; nothing in it was acknowledged")
            }
            Report::Damaged { file, places, bytes, records } => {
                write!(f, "{file}: damaged in {places} places ({bytes} bytes, {records} records); the rest is used")
            }
            Report::Header { file } => write!(f, "{file}: one of its two headers is damaged; nothing is lost"),
            Report::SetAside { file, to, bytes } => write!(f, "{file}: set aside as {to} ({bytes} bytes)"),
            Report::Unreadable { file, error } => write!(f, "{file}: cannot be read: {error}"),
        }
    }
}

/// How the journal is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Why nothing can be written now; `None`: all is well.
    pub failing: Option<String>,
    /// Segments in use.
    pub segments: usize,
    /// Bytes that wait to be written.
    pub pending: usize,
    /// Greatest place that is safe.
    pub synced: u64,
    /// Records written since the start.
    pub records: u64,
    /// Bytes given to the system since the start, to be written.
    pub bytes: u64,
    /// Syncs since the start.
    pub syncs: u64,
    /// Messages refused because the disk is full, fails or is too slow, since the start.
    pub refused: u64,
    /// Messages that bounds have pushed out of consumers' queues, since the start.
    pub dropped: u64,
    /// Segments given up to make room, since the start.
    pub evicted: u64,
}
