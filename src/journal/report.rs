//! What the journal has to say about itself.

use std::collections::VecDeque;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::MOST_REPORTS;

/// Something that was wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
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
    pub(crate) fn is_loss(&self) -> bool {
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Journal")]
pub(crate) struct Status {
    /// Why nothing can be written now, and what to do; `None`: all is well.
    pub(crate) failing: Option<String>,
    /// The last such trouble, even if it is over.
    pub(crate) last_error: Option<String>,
    /// Whether messages are refused because those that wait fill `journal.max_size`.
    pub(crate) is_full: bool,
    /// Bytes on disk.
    pub(crate) used_bytes: u64,
    /// `journal.max_size`.
    pub(crate) max_bytes: u64,
    /// Segments in use.
    pub(crate) segments: usize,
    /// Bytes that wait to be written.
    pub(crate) pending_bytes: usize,
    /// Greatest place that is safe.
    pub(crate) synced: u64,
    /// Messages written since the start.
    pub(crate) messages: u64,
    /// Records written since the start: messages, cursors and the like.
    pub(crate) records: u64,
    /// Bytes given to the system to be written, since the start: files that are made, headers and snapshots included.
    pub(crate) written_bytes: u64,
    /// The same for one message, on the average.
    pub(crate) bytes_per_message: u64,
    /// Syncs since the start.
    pub(crate) syncs: u64,
    /// Messages refused because the disk is full, fails or is too slow, since the start.
    pub(crate) refused: u64,
    /// Messages that bounds have pushed out of consumers' queues, since the start.
    pub(crate) dropped: u64,
    /// Segments given up to make room, since the start.
    pub(crate) evicted: u64,
    /// Damage found since the start, see [`Report::is_loss`].
    pub(crate) damaged: u64,
    /// Files that were set aside and are still there.
    pub(crate) set_aside: usize,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct JournalCounts {
    messages: u64,
    records: u64,
    written_bytes: u64,
    syncs: u64,
    refused: u64,
    evicted: u64,
}

impl JournalCounts {
    /// A record has become safe.
    pub(crate) fn add(&mut self, is_message: bool) {
        self.records += 1;
        self.messages += u64::from(is_message);
    }

    /// Bytes were given to the system, which has synced so often.
    pub(crate) fn wrote(&mut self, bytes: u64, syncs: u64) {
        self.written_bytes += bytes;
        self.syncs += syncs;
    }

    /// A message was refused.
    pub(crate) fn refuse(&mut self) {
        self.refused += 1;
    }

    /// Messages that were refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// A segment was given up to make room.
    pub(crate) fn evict(&mut self) {
        self.evicted += 1;
    }

    /// As the status has them.
    pub(crate) fn shown(&self) -> Status {
        Status {
            messages: self.messages,
            records: self.records,
            written_bytes: self.written_bytes,
            bytes_per_message: self.written_bytes / self.messages.max(1),
            syncs: self.syncs,
            refused: self.refused,
            evicted: self.evicted,
            ..Status::default()
        }
    }
}

/// What was wrong with the files, since the start.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// The last [`MOST_REPORTS`].
    last: VecDeque<Report>,
    /// How many were about acknowledged messages.
    losses: u64,
}

impl Reports {
    /// Something was wrong with a file.
    pub(crate) fn add(&mut self, report: Report) {
        self.losses += u64::from(report.is_loss());
        self.last.push_back(report);
        let old = self.last.len().saturating_sub(MOST_REPORTS);
        drop(self.last.drain(..old));
    }

    /// The last ones, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Report> + ExactSizeIterator {
        self.last.iter()
    }

    /// How many were about acknowledged messages.
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }
}
