//! Keeps values and retained messages, which are not for a consumer.

use bytes::Bytes;

use super::format::{DATA, RECORD_HEAD};
use super::{Full, Journal, Position, Recovered};

impl Journal {
    /// Keeps a persistent session; `None` deletes it. It is on disk once [`Journal::synced`] has reached the returned
    /// position. `lazy` means that nobody waits for that. A name that continues after two NULs is a part of the session with
    /// the name before them, and is deleted with it. Also returns the number of bytes that are written, which is 0 if the
    /// value is known already.
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
