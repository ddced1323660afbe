//! What may be written a little later, because nobody waits for it.

use bytes::Bytes;

use super::super::WhenFull;
use super::super::format::{CONSUMER_LEN, FLAG_RETAINED, RECORD_HEAD, RecordKind};
use super::super::later::LateSubject;
use super::super::parts::usable;
use super::super::pending::Purpose;
use super::super::settings::JournalSettings;
use super::{Full, JournalState, Stop};
use crate::message::{Draft, Message};

/// The number of bytes after which no more of it is added to a write, because somebody may wait for that.
const AT_ONCE: usize = 1 << 20;

impl JournalState {
    /// See [`super::super::Appender::retain_later`].
    pub(in crate::journal) fn retain_later(
        &mut self,
        message: &Message,
        settings: &JournalSettings,
    ) -> Result<(), Full> {
        let view = message.view();
        if (RECORD_HEAD + CONSUMER_LEN + message.size()) as u64 > usable(settings) {
            self.counts.refuse();
            return Err(Full);
        }
        let existed = self.kept.retained_on(view.topic()).is_some();
        self.kept.retain(message.clone());
        self.note_later(LateSubject::Retained(view.topic().into()), existed, !view.payload().is_empty());
        Ok(())
    }

    /// Keeps or deletes a named value. Returns the number of bytes that are written because of that.
    pub(super) fn keep_later(&mut self, name: &str, value: Option<&[u8]>) -> usize {
        let existed = self.kept.value(name).is_some();
        match value {
            Some(value) => self.kept.keep(name, value),
            None => self.kept.forget(name),
        }
        let is_new = self.note_later(LateSubject::Value(name.into()), existed, value.is_some());
        if is_new { RECORD_HEAD + 2 + name.len() + value.map_or(0, <[u8]>::len) } else { 0 }
    }

    fn note_later(&mut self, subject: LateSubject, existed: bool, exists: bool) -> bool {
        let is_new = self.later.note(subject, existed, exists);
        if is_new {
            self.pending.due_later();
        } else if self.later.is_empty() {
            self.pending.not_due_later();
        }
        is_new
    }

    /// Adds records of what may be written later to the waiting ones, or of a part of it. Returns whether there were any.
    pub(super) fn push_outdated(&mut self, settings: &JournalSettings) -> bool {
        let begin = self.pending.len();
        // at an orderly end everything is written if that is possible at all
        let spares_room = settings.when_full == WhenFull::Refuse && self.stopping() != Some(Stop::Orderly);
        while self.pending.len() - begin < AT_ONCE
            && let Some(subject) = self.later.first()
        {
            let len = self.length_of(&subject);
            if spares_room {
                if !self.has_space(len, &[], settings) {
                    break;
                }
                self.space.take(len as u64);
            }
            match &subject {
                LateSubject::Retained(topic) => self.push_retained(topic),
                LateSubject::Value(name) => _ = self.push_value(Purpose::Own, name),
            }
            self.later.forget(&subject);
        }
        self.pending.len() > begin
    }

    /// The length of a record of the present state of this.
    fn length_of(&self, subject: &LateSubject) -> usize {
        let (name, state) = match subject {
            LateSubject::Retained(topic) => (topic, self.kept.retained_on(topic).map_or(0, Message::size)),
            LateSubject::Value(name) => (name, self.kept.value(name).map_or(0, Bytes::len)),
        };
        RECORD_HEAD + CONSUMER_LEN + name.len() + state
    }

    fn push_retained(&mut self, topic: &str) {
        let message = self.kept.retained_on(topic).cloned();
        let message = message.unwrap_or_else(|| Message::new(&Draft { retain: true, ..Draft::new(topic, &[]) }));
        let body: &[&[u8]] = &[message.view().as_bytes()];
        self.push(Purpose::Own, RecordKind::Message, FLAG_RETAINED, std::iter::empty(), body);
    }

    /// Makes the rest be written soon if a part of it was added to this write, and otherwise when there may be room for it.
    pub(super) fn go_on_later(&mut self, is_part: bool) {
        match self.later.is_empty() {
            true => {}
            false if is_part => self.pending.due_now(),
            false => self.pending.due_later(),
        }
    }
}
