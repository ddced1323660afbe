//! Named values and retained messages: what is kept as it is now, and not until somebody has read it.

use std::ops::Bound;

use bytes::Bytes;

use super::format::RecordKind;
use super::state::JournalState;
use super::{Full, Position};
use crate::message::Message;

/// Between the name of a session and the rest of the name of a part of it. Neither user names nor client ids nor filters
/// contain NUL [MQTT-1.5.4-2], and a session's name has no two of them.
pub(crate) const PART: &str = "\0\0";

impl JournalState {
    /// Keeps or clears the retained message of a topic.
    pub(crate) fn retain(&mut self, message: Message) {
        let view = message.view();
        if view.payload().is_empty() {
            self.retained.remove(view.topic());
        } else {
            self.retained.insert(view.topic().into(), message);
        }
    }

    /// See [`super::Journal::keep_session`].
    pub(crate) fn append_session(
        &mut self,
        name: &str,
        session: Option<&[u8]>,
        lazy: bool,
    ) -> Result<(Position, usize), Full> {
        if self.sessions.get(name).map(|known| &known[..]) == session {
            // known, and perhaps not written yet
            return Ok((if lazy { Position(self.newest) } else { self.barrier() }, 0));
        }
        let Ok(len) = u16::try_from(name.len()) else { return Err(Full) };
        match session {
            Some(session) => {
                self.control(name.len() + session.len())?;
                self.sessions.insert(name.into(), Bytes::copy_from_slice(session));
            }
            None => self.forget_session(name),
        }
        if lazy {
            self.due_later()
        } else {
            self.due_now()
        }
        let body: &[&[u8]] = &[&len.to_le_bytes(), name.as_bytes(), session.unwrap_or_default()];
        let begin = self.pending.bytes.len();
        let position = self.push(RecordKind::State, 0, std::iter::empty(), body);
        Ok((position, self.pending.bytes.len() - begin))
    }

    /// Forgets a named value, and what is a part of it.
    pub(crate) fn forget_session(&mut self, name: &str) {
        self.sessions.remove(name);
        let parts = format!("{name}{PART}");
        let from = (Bound::Included(&*parts), Bound::Unbounded);
        let known = self.sessions.range::<str, _>(from).take_while(|(known, _)| known.starts_with(&parts));
        let known: Vec<Box<str>> = known.map(|(name, _)| name.clone()).collect();
        for name in known {
            self.sessions.remove(&name);
        }
    }

    /// Forgets parts of what is not there, as damage leaves them.
    pub(crate) fn forget_lost_parts(&mut self) {
        let is_lost = |name: &str| name.split_once(PART).is_some_and(|(whole, _)| !self.sessions.contains_key(whole));
        let lost: Vec<Box<str>> =
            self.sessions.keys().filter(|name| !name.starts_with('\0') && is_lost(name)).cloned().collect();
        for name in lost {
            self.sessions.remove(&name);
        }
    }

    /// The sessions of clients, without the wills and marks that are kept beside them.
    pub(crate) fn client_sessions(&self) -> impl Iterator<Item = (&Box<str>, &Bytes)> {
        self.sessions.iter().filter(|(name, _)| !name.starts_with('\0') && !name.contains(PART))
    }
}
