//! What the journal reports about itself.

use std::collections::VecDeque;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::MOST_REPORTS;

/// A problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// An incomplete write after a power cut was cut off. Nothing in it had been acknowledged.
    TornTail {
        /// The name of the file.
        file: String,
        /// The offset at which its complete records end.
        at: u64,
    },
    /// There are bytes between complete records that belong to none.
    Damaged {
        /// The name of the file.
        file: String,
        /// The number of damaged places.
        places: u32,
        /// The number of damaged bytes.
        bytes: u64,
        /// The number of missing records, as far as their numbers show it.
        records: u64,
    },
    /// One of the two headers of a file cannot be read; the other one is used.
    Header {
        /// The name of the file.
        file: String,
    },
    /// A file was renamed and is not used any more.
    SetAside {
        /// The old name.
        file: String,
        /// The new name.
        to: String,
        /// The size in bytes.
        bytes: u64,
    },
    /// A file cannot be read at all.
    Unreadable {
        /// The name of the file.
        file: String,
        /// The error of the operating system.
        error: String,
    },
}

impl Report {
    /// Whether acknowledged messages may be lost.
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

/// The state of the journal with its counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Journal")]
pub(crate) struct Status {
    /// Why nothing can be written at present, and what to do; `null` if all is well.
    pub(crate) failing: Option<String>,
    /// The last such problem, even if it is over.
    pub(crate) last_error: Option<String>,
    /// Whether messages are refused because the waiting ones fill `journal.max_size`.
    pub(crate) is_full: bool,
    /// The bytes on disk.
    pub(crate) used_bytes: u64,
    /// The limit `journal.max_size` in bytes.
    pub(crate) max_bytes: u64,
    /// The number of segments in use.
    pub(crate) segments: usize,
    /// The bytes that wait to be written.
    pub(crate) pending_bytes: usize,
    /// The highest position on disk.
    pub(crate) synced: u64,
    /// The number of messages written since the start.
    pub(crate) messages: u64,
    /// The number of records written since the start: messages, cursors and others.
    pub(crate) records: u64,
    /// The bytes written since the start, including new files, headers and snapshots.
    pub(crate) written_bytes: u64,
    /// The average number of bytes written for one message.
    pub(crate) bytes_per_message: u64,
    /// The number of syncs since the start.
    pub(crate) syncs: u64,
    /// The number of messages refused since the start because the disk is full, fails or is too slow.
    pub(crate) refused: u64,
    /// The number of messages that limits have dropped from consumers' queues since the start.
    pub(crate) dropped: u64,
    /// The number of segments given up to make room since the start.
    pub(crate) evicted: u64,
    /// The number of damages found since the start in which acknowledged messages may be lost.
    pub(crate) damaged: u64,
    /// The number of set-aside files that still exist.
    pub(crate) set_aside: usize,
}

/// The counters since the start.
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
    /// Counts a record that is on disk.
    pub(crate) fn add(&mut self, is_message: bool) {
        self.records += 1;
        self.messages += u64::from(is_message);
    }

    /// Counts bytes that were written, and syncs.
    pub(crate) fn wrote(&mut self, bytes: u64, syncs: u64) {
        self.written_bytes += bytes;
        self.syncs += syncs;
    }

    /// Counts a refused message.
    pub(crate) fn refuse(&mut self) {
        self.refused += 1;
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Counts a segment that was given up to make room.
    pub(crate) fn evict(&mut self) {
        self.evicted += 1;
    }

    /// The counters in the form of the status.
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

/// The problems of the files since the start.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// The last [`MOST_REPORTS`] problems.
    last: VecDeque<Report>,
    /// The number of problems in which acknowledged messages may be lost.
    losses: u64,
}

impl Reports {
    pub(crate) fn add(&mut self, report: Report) {
        self.losses += u64::from(report.is_loss());
        self.last.push_back(report);
        let old = self.last.len().saturating_sub(MOST_REPORTS);
        drop(self.last.drain(..old));
    }

    /// The last problems, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Report> + ExactSizeIterator {
        self.last.iter()
    }

    /// The number of problems in which acknowledged messages may be lost.
    pub(crate) fn losses(&self) -> u64 {
        self.losses
    }
}
