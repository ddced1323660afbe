//! The journal's state in memory, behind one lock that is never held while the disk works. Each part has its own type, which
//! alone changes it; operations on several parts are here.

mod giving_way;
mod outdated;

use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::boots::{Boots, encode_boot};
use super::consumers::{CURSOR_LEN, ConsumerQueues, Queue};
use super::format::{CONSUMER_LEN, FLAG_HANDED_OVER, FLAG_RECEIVED, FLAG_RETAINED, RECORD_HEAD, RecordKind, u64_at};
use super::kept::Kept;
use super::later::{LateSubject, Later};
use super::log::{Log, Segment};
use super::loss::Losses;
use super::pending::{Pending, Purpose};
use super::record::{RecordRef, longest};
use super::report::{JournalCounts, Report, Reports, Status};
use super::settings::JournalSettings;
use super::space_left::SpaceLeft;
use super::trouble::Trouble;
use super::{Backlog, ConsumerId, Extra, Full, Limits, Note, Position};
use crate::message::{Message, Qos, fnv::hash};
use crate::time::Clock;

/// How the threads end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After everything is written.
    Orderly,
    /// At once.
    Now,
}

/// The state of the journal, which all of its threads share.
#[derive(Debug, Default)]
pub struct JournalState {
    /// Records that are not on disk yet.
    pub(super) pending: Pending,
    /// What becomes records later.
    pub(super) later: Later,
    pub(super) queues: ConsumerQueues,
    pub(super) kept: Kept,
    /// The segments and files on disk.
    pub(super) log: Log,
    pub(super) boots: Boots,
    /// What is known of the space that is left.
    pub(super) space: SpaceLeft,
    /// Messages that limits have dropped.
    pub(super) losses: Losses,
    /// Why nothing can be written.
    pub(super) trouble: Trouble,
    /// Problems of the files.
    pub(super) reports: Reports,
    pub(super) counts: JournalCounts,
    stop: Option<Stop>,
}

impl JournalState {
    /// Ends the threads. Only the first call counts.
    pub(super) fn stop(&mut self, how: Stop) {
        self.stop.get_or_insert(how);
    }

    /// How the threads must end, if they must.
    pub(super) fn stopping(&self) -> Option<Stop> {
        self.stop
    }

    /// The segments of the log, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.log.segments().values()
    }

    /// Adds a record to the waiting ones, and returns its position.
    fn push(
        &mut self,
        purpose: Purpose,
        kind: RecordKind,
        flags: u8,
        consumers: impl ExactSizeIterator<Item = (u64, u64)>,
        body: &[&[u8]],
    ) -> Position {
        self.pending.push(purpose, (kind, flags, self.boots.number()), consumers, body)
    }

    /// See [`super::Journal::append_with`].
    pub(super) fn append(
        &mut self,
        message: &Message,
        consumers: &[ConsumerId],
        extra: Extra,
        settings: &JournalSettings,
    ) -> Result<Position, Full> {
        let (view, size) = (message.view(), message.size());
        let purpose = if view.qos() == Qos::AtMostOnce { Purpose::Unasked } else { Purpose::Asked };
        let owner = view.origin().owner;
        self.admit((owner, purpose), longest(size, consumers.len()), consumers, settings)?;
        if consumers.iter().any(|id| self.queues.get(*id).is_some_and(|queue| queue.refuses(size))) {
            return Err(Full);
        }
        let mut pairs: SmallVec<[(u64, u64); 4]> = SmallVec::new();
        let mut flags = 0;
        if let Some((id, packet_id)) = extra.received
            && let Some(queue) = self.queues.get(id)
        {
            flags |= FLAG_RECEIVED;
            pairs.push((queue.key(), u64::from(packet_id)));
        }
        if let Some((id, ordinal)) = extra.handed_over
            && let Some(queue) = self.queues.get(id)
        {
            flags |= FLAG_HANDED_OVER;
            pairs.push((queue.key(), ordinal));
        }
        let mut lost: SmallVec<[(ConsumerId, u64); 4]> = SmallVec::new();
        for id in consumers {
            if let Some((key, ordinal, dropped)) = self.queues.accept(*id, size, view.boot_ms()) {
                pairs.push((key, ordinal));
                if dropped > 0 {
                    lost.push((*id, dropped));
                }
            }
        }
        for (id, messages) in lost {
            self.lost(id, messages, "broker.max_queued_messages, broker.max_queued_size");
        }
        if extra.retained {
            flags |= FLAG_RETAINED;
            self.kept.retain(message.clone());
            if !self.later.is_empty() {
                self.later.forget(&LateSubject::Retained(view.topic().into()));
            }
        }
        let kind = (RecordKind::Message, flags, self.boots.number());
        let position = self.pending.push_message((owner, purpose), kind, pairs.into_iter(), &[view.as_bytes()]);
        self.pending.due_now();
        Ok(position)
    }

    fn has_memory(&self, purpose: Purpose, len: usize) -> Result<(), Full> {
        if self.pending.has_room(purpose, len) { Ok(()) } else { Err(Full) }
    }

    /// See [`super::Journal::received`].
    pub(super) fn append_received(&mut self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
        self.has_memory(Purpose::Steps, RECORD_HEAD + CONSUMER_LEN)?;
        let Some(key) = self.queues.get(id).map(Queue::key) else { return Ok(self.pending.newest()) };
        self.pending.due_now();
        Ok(self.push(
            Purpose::Steps,
            RecordKind::Message,
            FLAG_RECEIVED,
            [(key, u64::from(packet_id))].into_iter(),
            &[],
        ))
    }

    /// See [`super::Journal::note`].
    pub(super) fn append_note(&mut self, id: ConsumerId, note: Note) -> Result<Position, Full> {
        self.has_memory(Purpose::Steps, RECORD_HEAD + CONSUMER_LEN + 16)?;
        let Some(key) = self.queues.get(id).map(Queue::key) else { return Ok(self.pending.newest()) };
        let (what, value) = match note {
            Note::Forgotten(packet_id) => (0u64, u64::from(packet_id)),
            Note::Released(ordinal) => (1, ordinal),
            Note::Again(ordinal) => (2, ordinal),
        };
        self.pending.due_now();
        let body: &[&[u8]] = &[&what.to_le_bytes(), &value.to_le_bytes()];
        Ok(self.push(Purpose::Steps, RecordKind::Note, 0, [(key, 0)].into_iter(), body))
    }

    /// Keeps or deletes a named value, see [`super::Journal::keep_session`].
    pub(super) fn append_value(
        &mut self,
        name: &str,
        value: Option<&[u8]>,
        lazy: bool,
    ) -> Result<(Position, usize), Full> {
        let Ok(len) = u16::try_from(name.len()) else { return Err(Full) };
        let known = self.kept.value(name).map(|known| &known[..]);
        let is_known = known == value;
        // what belongs to a session is not written before the session's first state, and not deleted after a later one
        let has_place = !name.starts_with('\0') && (known.is_none() || value.is_none());
        if lazy && (is_known || !has_place) {
            let bytes = if is_known { 0 } else { self.keep_later(name, value) };
            return Ok((self.pending.newest(), bytes));
        }
        if is_known && !self.later.has(&LateSubject::Value(name.into())) {
            // known already, but perhaps not on disk yet
            return Ok((self.barrier(), 0));
        }
        if let Some(value) = value {
            self.has_memory(Purpose::Sessions, RECORD_HEAD + usize::from(len) + value.len())?;
        }
        match value {
            Some(value) => self.kept.keep(name, value),
            None => self.kept.forget(name),
        }
        if lazy {
            self.pending.due_later()
        } else {
            self.pending.due_now()
        }
        let begin = self.pending.len();
        let position = self.push_value(Purpose::Sessions, name);
        self.later.forget(&LateSubject::Value(name.into()));
        Ok((position, self.pending.len() - begin))
    }

    /// Adds a record of the present state of a named value.
    fn push_value(&mut self, purpose: Purpose, name: &str) -> Position {
        let value = self.kept.value(name).cloned().unwrap_or_default();
        let body: &[&[u8]] = &[&(name.len() as u16).to_le_bytes(), name.as_bytes(), &value];
        self.push(purpose, RecordKind::State, 0, std::iter::empty(), body)
    }

    /// See [`super::Journal::barrier`].
    pub(super) fn barrier(&mut self) -> Position {
        if self.pending.newest().0 > self.log.committed() && self.pending.len() > 0 {
            self.pending.due_now();
        }
        self.pending.newest()
    }

    /// See [`super::Journal::register`].
    pub(super) fn register(&mut self, name: &str, limits: Limits) -> ConsumerId {
        if let Some(id) = self.queues.id_of(name) {
            if let Some(queue) = self.queues.get_mut(id) {
                queue.claim(limits);
            }
            return id;
        }
        let mut key = hash(name.as_bytes());
        while let Some(queue) = self.queues.of_key(key) {
            if queue.name().is_empty() {
                // its name was in a damaged record
                return self.name(key, name, limits);
            }
            key = key.wrapping_add(1);
        }
        let base = self.pending.newest().0;
        self.push(Purpose::Sessions, RecordKind::Consumer, 0, [(key, base)].into_iter(), &[name.as_bytes()]);
        self.insert(name, key, base, limits)
    }

    /// Gives this name to the consumer with this key, whose name was lost.
    fn name(&mut self, key: u64, name: &str, limits: Limits) -> ConsumerId {
        let Some((id, queue)) = self.queues.id_of_key(key).and_then(|id| Some((id, self.queues.get_mut(id)?))) else {
            return self.insert(name, key, self.pending.newest().0, limits);
        };
        queue.bound(limits);
        let base = queue.base();
        self.push(Purpose::Sessions, RecordKind::Consumer, 0, [(key, base)].into_iter(), &[name.as_bytes()]);
        self.rename(id, name);
        id
    }

    /// Restores a lost name, and returns whether the consumer's part of the journal has changed.
    pub(super) fn rename(&mut self, id: ConsumerId, name: &str) -> bool {
        let moved = self.queues.rename(id, name);
        self.space.forget();
        if let Some((key, part)) = moved {
            self.log.count_for(key, part);
        }
        moved.is_some()
    }

    /// Creates a consumer whose next message has the ordinal `base + 1`.
    pub(super) fn insert(&mut self, name: &str, key: u64, base: u64, limits: Limits) -> ConsumerId {
        let id = self.queues.insert(name, key, base, limits);
        // what is kept free for its part is not available for others any more
        self.space.forget();
        id
    }

    /// See [`super::Journal::remove`].
    pub(super) fn remove(&mut self, id: ConsumerId) -> Backlog {
        let Some(queue) = self.forget(id) else { return Backlog::default() };
        self.push(Purpose::Sessions, RecordKind::ConsumerRemoved, 0, [(queue.key(), 0)].into_iter(), &[]);
        self.pending.due_later();
        queue.backlog()
    }

    pub(super) fn forget(&mut self, id: ConsumerId) -> Option<Queue> {
        let queue = self.queues.forget(id)?;
        self.space.forget();
        Some(queue)
    }

    /// Makes a consumer's messages give way first.
    pub(super) fn orphan(&mut self, id: ConsumerId) {
        if let Some(queue) = self.queues.get_mut(id) {
            queue.orphan();
        }
        self.space.changed();
    }

    /// Records that a consumer has settled messages, and returns whether to wake the writing thread.
    pub(super) fn moved(&mut self, id: ConsumerId) -> bool {
        let (has_moved, is_urgent) = self.queues.moved(id);
        if has_moved {
            self.space.changed();
        }
        has_moved && (is_urgent || self.space.is_full())
    }

    /// Counts messages of a consumer that limits have dropped.
    fn lost(&mut self, id: ConsumerId, messages: u64, bounds: &str) {
        if messages > 0 {
            self.moved(id);
            if let Some(queue) = self.queues.get_mut(id) {
                self.losses.note(queue, messages, bounds);
            }
        }
    }

    /// Adds the moved cursors to the waiting records, if it is time.
    pub(super) fn push_cursors(&mut self, orderly: bool) {
        let Some(body) = self.queues.take_cursors(orderly) else { return };
        for part in body.chunks(CURSOR_LEN * 500) {
            self.push(Purpose::Own, RecordKind::Cursors, 0, std::iter::empty(), &[part, &[u8::from(orderly)]]);
        }
        self.pending.due_now();
    }

    /// Adds the moved cursors to the waiting records now.
    pub(super) fn save_cursors(&mut self) {
        self.queues.save_moved();
        self.push_cursors(false);
    }

    /// Adds the state of the clock to the waiting records, if it has changed.
    pub(super) fn push_clock(&mut self, clock: &dyn Clock) {
        if let Some(boot) = self.boots.observe(clock) {
            let mut body = Vec::new();
            encode_boot(self.boots.number(), &boot, &mut body);
            self.push(Purpose::Own, RecordKind::Clock, 0, std::iter::empty(), &[&body]);
        }
    }

    /// Makes a write due if the state of the clock has changed, even if there is nothing else to write. An empty log stays
    /// empty.
    pub(super) fn observe_clock(&mut self, clock: &dyn Clock) {
        if self.pending.newest() > Position(0) && !self.boots.is_known(clock) {
            self.pending.due_now();
        }
    }

    /// Processes a record that is on disk.
    pub(super) fn commit(&mut self, record: &RecordRef<'_>, generation: u64, room: bool, behind: &mut Vec<ConsumerId>) {
        let is_message = record.kind() == Some(RecordKind::Message);
        self.log.add_record(generation, record, is_message, &self.queues);
        self.counts.add(is_message);
        if is_message {
            self.commit_message(record, room, behind);
        } else if record.kind() == Some(RecordKind::Note) {
            self.follow_note(record);
        }
    }

    fn commit_message(&mut self, record: &RecordRef<'_>, room: bool, behind: &mut Vec<ConsumerId>) {
        let (position, body) = (record.position(), record.body());
        if let Some((key, packet_id)) = record.received()
            && let Some(queue) = self.queues.of_key_mut(key)
        {
            queue.receive(packet_id as u16);
        }
        if let Some((key, ordinal)) = record.handed_over()
            && let Some(queue) = self.queues.of_key_mut(key)
        {
            queue.note(1, ordinal);
        }
        let mut message: Option<Message> = None;
        for (key, ordinal) in record.consumers() {
            let Some(id) = self.queues.id_of_key(key) else { continue };
            let Some(queue) = self.queues.get_mut(id) else { continue };
            let was_behind = queue.is_behind();
            if room && queue.takes(ordinal) && message.is_none() {
                message = Message::from_bytes(Bytes::copy_from_slice(body));
            }
            queue.commit(message.as_ref().map(|message| (message, record.is_second_hand())), ordinal, position, room);
            if !was_behind && queue.is_behind() {
                behind.push(id);
            }
        }
    }

    /// Applies a note that is on disk.
    pub(super) fn follow_note(&mut self, record: &RecordRef<'_>) {
        if let Some((key, _)) = record.consumers().next()
            && let Some(queue) = self.queues.of_key_mut(key)
        {
            queue.note(u64_at(record.body(), 0), u64_at(record.body(), 8));
        }
    }

    /// Records that a file was renamed, or could not be, so that it is not used any more. Returns the set-aside files that
    /// are too many.
    pub(super) fn set_aside(
        &mut self,
        file: String,
        to: String,
        bytes: u64,
        renamed: std::io::Result<()>,
    ) -> Vec<String> {
        self.reports.add(match renamed {
            Ok(()) => {
                self.log.note_aside(to.clone());
                Report::SetAside { file, to, bytes }
            }
            Err(error) => Report::Unreadable { file, error: error.to_string() },
        });
        self.log.take_old_aside()
    }

    pub(super) fn status(&self, settings: &JournalSettings) -> Status {
        Status {
            failing: self.trouble.now().cloned().or_else(|| self.pending.standing_still()),
            last_error: self.trouble.last().cloned(),
            is_full: self.space.refuses(),
            used_bytes: self.log.used_bytes(settings),
            max_bytes: settings.max_size,
            segments: self.log.segments().len(),
            pending_bytes: self.pending.len(),
            synced: self.log.committed(),
            dropped: self.losses.messages(),
            damaged: self.reports.losses(),
            set_aside: self.log.aside().len(),
            ..self.counts.shown()
        }
    }

    /// Gives the waiting records to the writing thread.
    pub(super) fn take_pending(
        &mut self,
        bytes: &mut Vec<u8>,
        (clock, settings): (&dyn Clock, &JournalSettings),
        now: Instant,
    ) {
        let is_part = self.push_outdated(settings);
        self.push_cursors(false);
        self.push_clock(clock);
        self.pending.take(bytes, now);
        self.go_on_later(is_part);
    }
}
