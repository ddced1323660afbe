//! Keeps values and retained messages, which are not for a consumer.

use std::time::Duration;

use bytes::Bytes;

use super::format::{DATA, RECORD_HEAD};
use super::pending::Purpose;
use super::{Full, Journal, Position, Recovered};

/// Nobody waits for a disk that has made no progress for this long.
const SLOW: Duration = Duration::from_secs(2);

impl Journal {
    /// Keeps a persistent session; `None` deletes it. It is on disk once [`Journal::synced`] has reached the returned
    /// position. `lazy` means that nobody waits for that, so it may get its position later. A name that continues after two
    /// NULs is a part of the session with the name before them, and is deleted with it. Also returns the number of
    /// bytes that are written, which is 0 if the value is known already.
    pub(crate) fn keep_session(&self, name: &str, value: Option<&[u8]>, lazy: bool) -> Result<(Position, usize), Full> {
        let size = name.len() + value.map_or(0, <[u8]>::len);
        if !self.can_keep(name.len(), size - name.len()) {
            return Err(Full);
        }
        let mut state = self.shared.state.lock();
        let (position, bytes) = state.append_value(name, value, lazy)?;
        let is_due = state.pending.due().is_some();
        drop(state);
        if is_due && (bytes > 0 || !lazy) {
            self.shared.work.notify_one();
        }
        Ok((position, bytes))
    }

    /// The same for a value of another room. Its name begins with NUL, which no client id does.
    pub fn keep(&self, name: &str, value: Option<&[u8]>, lazy: bool) -> Result<Position, Full> {
        self.keep_session(name, value, lazy).map(|(position, _)| position)
    }

    /// Whether a value of this size, with a name of this length, fits into the journal's files.
    pub(crate) fn can_keep(&self, name: usize, value: usize) -> bool {
        let most = self.shared.settings.segment_size() - DATA - RECORD_HEAD as u64;
        u16::try_from(name).is_ok() && (2 + name + value) as u64 <= most
    }

    /// Whether a new session with this name can be kept, with its consumer.
    pub(crate) fn has_room_for_session(&self, name: &str) -> bool {
        // the name is in both records, and as that of the owner in the value
        self.shared.state.lock().pending.has_room(Purpose::Sessions, 3 * name.len() + 512)
    }

    /// Whether changes of sessions had better wait, because the disk takes them and has not taken many of them yet.
    pub(crate) fn is_behind(&self) -> bool {
        let state = self.shared.state.lock();
        state.pending.is_crowded(Purpose::Sessions) && state.pending.is_quick(SLOW)
    }

    /// Waits as long as changes of sessions had better wait.
    pub(crate) async fn catch_up(&self) {
        let mut synced = self.synced();
        while self.is_behind() {
            // if the disk responds no more, the check tells
            let _ = tokio::time::timeout(SLOW, synced.changed()).await;
        }
    }

    /// The values of another room whose names have this prefix.
    pub(crate) fn kept(&self, prefix: &str) -> Vec<(Box<str>, Bytes)> {
        let state = self.shared.state.lock();
        state.kept.beginning_with(prefix).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Records that these retained messages have expired and need not be kept.
    pub(crate) fn expire_retained<'a>(&self, topics: impl Iterator<Item = &'a str>) {
        let mut state = self.shared.state.lock();
        for topic in topics {
            state.kept.forget_retained(topic);
        }
    }

    /// What was found at the start besides waiting messages. Returned once.
    pub fn recovered(&self) -> Recovered {
        let state = self.shared.state.lock();
        Recovered {
            retained: state.kept.retained().cloned().collect(),
            sessions: state.kept.client_sessions().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }
}
