//! How values and retained messages are kept, which are not for a consumer.

use bytes::Bytes;

use super::format::{DATA, RECORD_HEAD};
use super::{Full, Journal, Position, Recovered};

impl Journal {
    /// Keeps a persistent session; `None` forgets it. Safe once [`Journal::synced`] has reached the place returned.
    /// `lazy`: nobody waits for that.
    /// A name that goes on after two NULs is a part of the session with the name before them, and forgotten with it. Says
    /// besides how many bytes are written for it: none, if it is known.
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

    /// The same for a value of another room, whose name begins with NUL, as no client id does.
    pub fn keep(&self, name: &str, value: Option<&[u8]>, lazy: bool) -> Result<Position, Full> {
        self.keep_session(name, value, lazy).map(|(position, _)| position)
    }

    /// Whether a value of this size under a name of this length fits into the journal's files.
    pub(crate) fn can_keep(&self, name: usize, value: usize) -> bool {
        let most = self.shared.settings.segment_size() - DATA - RECORD_HEAD as u64;
        u16::try_from(name).is_ok() && (2 + name + value) as u64 <= most
    }

    /// Values of another room, by the beginning of their names.
    pub(crate) fn kept(&self, prefix: &str) -> Vec<(Box<str>, Bytes)> {
        let state = self.shared.state.lock();
        state.kept.beginning_with(prefix).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// These retained messages have expired: they need not be kept.
    pub(crate) fn expire_retained<'a>(&self, topics: impl Iterator<Item = &'a str>) {
        let mut state = self.shared.state.lock();
        for topic in topics {
            state.kept.forget_retained(topic);
        }
    }

    /// What was found at start besides messages that wait. Once.
    pub fn recovered(&self) -> Recovered {
        let state = self.shared.state.lock();
        Recovered {
            retained: state.kept.retained().cloned().collect(),
            sessions: state.kept.client_sessions().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }
}
