//! What the journal has to say about itself.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::settings::JournalSettings;
use super::state::JournalState;
use super::{ConsumerId, Journal};

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

impl Journal {
    /// Ordinals that this consumer has not settled and that may have been sent before the process began, where its task has never
    /// had more unsettled at a time.
    pub(crate) fn maybe_sent(&self, id: ConsumerId, in_hand: u64) -> std::ops::Range<u64> {
        self.shared.state.lock().queues.get(&id).map_or(0..0, |queue| queue.maybe_sent(in_hand))
    }

    /// The least of the lasting names that are of this kind; looks through all of them.
    pub(crate) fn find_consumer(&self, is_it: impl Fn(&str) -> bool) -> Option<Box<str>> {
        let state = self.shared.state.lock();
        state.by_name.keys().filter(|name| is_it(name)).min().cloned()
    }
}

/// A disk that has not answered for so long is taken for one that fails.
const STANDS_STILL: Duration = Duration::from_secs(20);

impl JournalState {
    /// What is to be said of a write that gets nowhere.
    fn standing_still(&self) -> Option<String> {
        let seconds = self.writing_since.map(|since| since.elapsed()).filter(|since| *since >= STANDS_STILL)?.as_secs();
        Some(format!("the disk has not taken a write for {seconds} s: see dmesg; the card may be worn out"))
    }
}

impl Status {
    /// As things are.
    pub(crate) fn of(state: &JournalState, settings: &JournalSettings) -> Status {
        let segments: u64 = state.segments.values().map(|segment| segment.header.size).sum();
        Status {
            failing: state.failing.clone().or_else(|| state.standing_still()),
            is_full: state.is_full || state.was_full,
            used_bytes: segments + state.spare.len() as u64 * settings.segment_size() + state.snapshot_bytes,
            max_bytes: settings.max_size,
            segments: state.segments.len(),
            pending_bytes: state.pending.bytes.len(),
            synced: state.committed,
            bytes_per_message: state.counts.written_bytes / state.counts.messages.max(1),
            set_aside: state.aside.len(),
            ..state.counts.clone()
        }
    }
}
