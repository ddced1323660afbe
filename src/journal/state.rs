//! What the journal knows in memory, behind one lock that is never held while the disk works.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::boots::Boots;
use super::format::{
    CONSUMER_LEN, DATA, FLAG_HANDED_OVER, FLAG_RECEIVED, FLAG_RETAINED, RECORD_HEAD, RecordKind, u64_at,
};
use super::loss::LossPace;
use super::parts::PARTS;
use super::queue::{Cursor, Queue};
use super::record::{self, RecordDraft, RecordRef};
use super::report::{Report, Status};
use super::segment::Segment;
use super::settings::JournalSettings;
use super::{
    Backlog, CURSOR_AGE, CURSOR_EVERY, ConsumerId, Extra, Full, LAZY, Limits, MOST_REPORTS, Note, Outcome, PENDING_MAX,
    Position,
};
use crate::health::{Fault, Health};
use crate::message::{Message, fnv::hash};

/// How the threads shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// When everything is written.
    Orderly,
    /// At once.
    Now,
}

/// Bytes of a cursor in a record.
pub(crate) const CURSOR_LEN: usize = 8 * (5 + Outcome::COUNT);

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Records without CRCs.
    pub(crate) bytes: Vec<u8>,
    /// When they are to be written; `None`: together with the next that has a time.
    pub(crate) due: Option<Instant>,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct JournalState {
    /// Place of the newest record.
    pub(crate) newest: u64,
    /// Greatest place that is safe.
    pub(crate) committed: u64,
    /// What waits to be written.
    pub(crate) pending: Pending,
    /// Consumers.
    pub(crate) queues: HashMap<ConsumerId, Queue>,
    /// By lasting name.
    pub(crate) by_name: HashMap<Box<str>, ConsumerId>,
    /// By key in records.
    pub(crate) by_key: HashMap<u64, ConsumerId>,
    next_consumer: u32,
    /// Persistent sessions; names that begin with NUL are values of other rooms.
    pub(crate) sessions: BTreeMap<Box<str>, Bytes>,
    /// Retained messages by topic.
    pub(crate) retained: HashMap<Box<str>, Message>,
    /// The log, by generation; the last one is written to.
    pub segments: BTreeMap<u64, Segment>,
    /// Greatest place that the snapshot covers.
    pub(crate) covered: u64,
    pub(crate) boots: Boots,
    /// Consumers whose cursors have moved since they were written.
    pub(crate) moved: Vec<ConsumerId>,
    /// Since when there are such.
    pub(crate) moved_since: Option<Instant>,
    /// Consumers that the reading thread shall read ahead for.
    pub(crate) fills: VecDeque<ConsumerId>,
    /// Files that the background check has still to read, by generation.
    pub(crate) unverified: VecDeque<u64>,
    /// Files that are ready to become segments.
    pub(crate) spare: Vec<String>,
    /// A file that the reading thread shall make, or is making, before it is needed.
    pub(crate) making: Option<String>,
    /// Set aside, oldest first.
    pub(crate) aside: VecDeque<String>,
    /// What was wrong.
    pub(crate) reports: VecDeque<Report>,
    /// Size of the snapshot.
    pub(crate) snapshot_bytes: u64,
    /// Why nothing can be written.
    pub(crate) failing: Option<String>,
    /// Who hears of that besides the log.
    pub(crate) health: Health,
    /// No file can be written to without giving up messages that wait, and these must not be given up.
    pub(crate) is_full: bool,
    /// Bytes that are being written.
    pub(crate) writing: usize,
    /// When the writing thread has last got something done, while it writes.
    pub(crate) writing_since: Option<Instant>,
    /// Bytes that the disk space that is ours takes at least, by part and in all, where messages are refused rather than
    /// given up.
    pub(super) room: ([u64; PARTS], u64),
    /// Messages as large as this one had no room when that was looked at last, and nothing has changed since: by whose they
    /// were, a bit for each part.
    pub(super) full_for: [Option<u64>; 1 << PARTS],
    /// How often that was looked at.
    #[cfg(test)]
    pub(super) looks: u64,
    /// Whether there was none when somebody looked last.
    pub(crate) was_full: bool,
    /// Lines in the log about losses.
    pub(crate) said: LossPace,
    /// Lines in the log about having no room.
    pub(crate) full_lines: LossPace,
    /// The last of them was not followed by one that there is room again.
    pub(crate) said_full: bool,
    /// Counters.
    pub(crate) counts: Status,
    /// End.
    pub(crate) stop: Option<Stop>,
}

impl JournalState {
    /// Adds a record to what waits; returns its place.
    pub(super) fn push(
        &mut self,
        kind: RecordKind,
        flags: u8,
        consumers: impl ExactSizeIterator<Item = (u64, u64)>,
        body: &[&[u8]],
    ) -> Position {
        self.newest += 1;
        let draft = RecordDraft { kind, flags, boot: self.boots.current, body };
        record::encode(&mut self.pending.bytes, self.newest, &draft, consumers);
        Position(self.newest)
    }

    pub(super) fn due_now(&mut self) {
        self.pending.due = Some(Instant::now());
    }

    pub(super) fn due_later(&mut self) {
        self.pending.due.get_or_insert_with(|| Instant::now() + LAZY);
    }

    /// See [`super::Journal::append_with`].
    pub(crate) fn append(
        &mut self,
        message: &Message,
        consumers: &[ConsumerId],
        extra: Extra,
        settings: &JournalSettings,
    ) -> Result<Position, Full> {
        let (view, size) = (message.view(), message.size());
        self.admit(RECORD_HEAD + CONSUMER_LEN * (consumers.len() + 1) + size, consumers, settings)?;
        if consumers.iter().any(|id| self.queues.get(id).is_some_and(|queue| queue.refuses(size))) {
            return Err(Full);
        }
        let mut pairs: SmallVec<[(u64, u64); 4]> = SmallVec::new();
        let mut flags = 0;
        if let Some((id, packet_id)) = extra.received
            && let Some(queue) = self.queues.get(&id)
        {
            flags |= FLAG_RECEIVED;
            pairs.push((queue.key, u64::from(packet_id)));
        }
        if let Some((id, ordinal)) = extra.handed_over
            && let Some(queue) = self.queues.get(&id)
        {
            flags |= FLAG_HANDED_OVER;
            pairs.push((queue.key, ordinal));
        }
        let mut lost: SmallVec<[(ConsumerId, u64); 4]> = SmallVec::new();
        for id in consumers {
            if let Some(queue) = self.queues.get_mut(id) {
                let dropped = queue.cursor.dropped;
                pairs.push((queue.key, queue.accept(size, view.boot_ms())));
                if queue.cursor.dropped > dropped {
                    lost.push((*id, queue.cursor.dropped - dropped));
                }
                if queue.unsaved > 0 {
                    mark_moved(&mut self.moved, &mut self.moved_since, *id, queue);
                }
            }
        }
        for (id, messages) in lost {
            self.lost(id, messages, "broker.max_queued_messages, broker.max_queued_size");
        }
        if extra.retained {
            flags |= FLAG_RETAINED;
            self.retain(message.clone());
        }
        let position = self.push(RecordKind::Message, flags, pairs.into_iter(), &[view.as_bytes()]);
        if extra.lazy {
            self.due_later()
        } else {
            self.due_now()
        }
        Ok(position)
    }

    pub(super) fn control(&mut self, len: usize) -> Result<(), Full> {
        // small, and what they say may set space free: twice as much room as for messages
        if self.pending.bytes.len() + len > 2 * PENDING_MAX { Err(Full) } else { Ok(()) }
    }

    /// See [`super::Journal::received`].
    pub(crate) fn append_received(&mut self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
        self.control(0)?;
        let Some(key) = self.queues.get(&id).map(|queue| queue.key) else { return Ok(Position(self.newest)) };
        self.due_now();
        Ok(self.push(RecordKind::Message, FLAG_RECEIVED, [(key, u64::from(packet_id))].into_iter(), &[]))
    }

    /// See [`super::Journal::note`].
    pub(crate) fn append_note(&mut self, id: ConsumerId, note: Note) -> Result<Position, Full> {
        self.control(0)?;
        let Some(key) = self.queues.get(&id).map(|queue| queue.key) else { return Ok(Position(self.newest)) };
        let (what, value) = match note {
            Note::Forgotten(packet_id) => (0u64, u64::from(packet_id)),
            Note::Released(ordinal) => (1, ordinal),
            Note::Again(ordinal) => (2, ordinal),
        };
        self.due_now();
        let body: &[&[u8]] = &[&what.to_le_bytes(), &value.to_le_bytes()];
        Ok(self.push(RecordKind::Note, 0, [(key, 0)].into_iter(), body))
    }

    /// See [`super::Journal::barrier`].
    pub(crate) fn barrier(&mut self) -> Position {
        if self.newest > self.committed && !self.pending.bytes.is_empty() {
            self.due_now();
        }
        Position(self.newest)
    }

    /// See [`super::Journal::register`].
    pub(crate) fn register(&mut self, name: &str, limits: Limits) -> ConsumerId {
        if let Some(id) = self.by_name.get(name) {
            if let Some(queue) = self.queues.get_mut(id) {
                queue.limits = limits;
                queue.is_orphan = false;
            }
            return *id;
        }
        let mut key = hash(name.as_bytes());
        loop {
            match self.by_key.get(&key).and_then(|id| self.queues.get(id)) {
                None => break,
                // its name was in a record that is damaged
                Some(queue) if queue.name.is_empty() => {
                    return self.name(key, name, limits);
                }
                Some(_) => key = key.wrapping_add(1),
            }
        }
        let base = self.newest;
        self.push(RecordKind::Consumer, 0, [(key, base)].into_iter(), &[name.as_bytes()]);
        self.insert(name, key, base, limits)
    }

    fn name(&mut self, key: u64, name: &str, limits: Limits) -> ConsumerId {
        let id = self.by_key[&key];
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.limits = limits;
            let base = queue.cursor.base;
            self.push(RecordKind::Consumer, 0, [(key, base)].into_iter(), &[name.as_bytes()]);
        }
        self.rename(id, name);
        id
    }

    /// A consumer's name was lost and is known again; says whether it counts for another part of the journal from now on.
    pub(crate) fn rename(&mut self, id: ConsumerId, name: &str) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else { return false };
        let old = queue.part;
        queue.rename(name);
        let (key, part) = (queue.key, queue.part);
        self.by_name.insert(name.into(), id);
        (self.room, self.full_for) = Default::default();
        if part != old {
            // which messages were counted for the other part is not known
            for segment in self.segments.values_mut().filter(|segment| segment.shares.contains_key(&key)) {
                segment.in_part[part as usize] = segment.end - DATA;
            }
        }
        part != old
    }

    /// Makes a consumer whose next message has the ordinal `base + 1`.
    pub(crate) fn insert(&mut self, name: &str, key: u64, base: u64, limits: Limits) -> ConsumerId {
        let id = ConsumerId(self.next_consumer);
        self.next_consumer += 1;
        let mut queue = Queue::new(name, key, limits);
        (queue.accepted, queue.committed, queue.cursor.base, queue.cursor.read) = (base, base, base, base);
        if let Some(old) = self.by_key.insert(key, id) {
            self.queues.remove(&old);
        }
        if !name.is_empty() {
            self.by_name.insert(name.into(), id);
        }
        self.queues.insert(id, queue);
        // what is kept free for its part is not free for others any more
        (self.room, self.full_for) = Default::default();
        id
    }

    /// See [`super::Journal::remove`].
    pub(crate) fn remove(&mut self, id: ConsumerId) -> Backlog {
        let Some(queue) = self.forget(id) else { return Backlog::default() };
        self.push(RecordKind::ConsumerRemoved, 0, [(queue.key, 0)].into_iter(), &[]);
        self.due_later();
        queue.backlog()
    }

    /// Takes a consumer out.
    pub(crate) fn forget(&mut self, id: ConsumerId) -> Option<Queue> {
        let queue = self.queues.remove(&id)?;
        self.by_name.remove(&queue.name);
        self.by_key.remove(&queue.key);
        (self.room, self.full_for) = Default::default();
        Some(queue)
    }

    /// A consumer has settled messages; says whether the writing thread should know.
    pub(crate) fn moved(&mut self, id: ConsumerId) -> bool {
        let Some(queue) = self.queues.get_mut(&id) else { return false };
        if queue.unsaved == 0 {
            return false;
        }
        self.full_for = Default::default();
        let is_first = self.moved_since.is_none();
        mark_moved(&mut self.moved, &mut self.moved_since, id, queue);
        is_first || queue.unsaved >= CURSOR_EVERY || self.is_full
    }

    /// Adds the cursors that have moved to what waits, if it is time.
    pub(crate) fn push_cursors(&mut self, orderly: bool) {
        let is_time =
            orderly || self.moved_since.is_some_and(|since| since.elapsed() >= CURSOR_AGE) || self.wants_cursors();
        if !is_time || (self.moved.is_empty() && !orderly) {
            return;
        }
        let mut body = Vec::new();
        let ids: Vec<ConsumerId> =
            if orderly { self.queues.keys().copied().collect() } else { std::mem::take(&mut self.moved) };
        for id in ids {
            if let Some(queue) = self.queues.get_mut(&id) {
                (queue.unsaved, queue.is_moved) = (0, false);
                encode_cursor(queue.key, &queue.cursor, &mut body);
            }
        }
        self.moved.clear();
        self.moved_since = None;
        for part in body.chunks(CURSOR_LEN * 500) {
            self.push(RecordKind::Cursors, 0, std::iter::empty(), &[part, &[u8::from(orderly)]]);
        }
        self.due_now();
    }

    /// Whether a cursor is due, whatever else is written.
    pub(crate) fn wants_cursors(&self) -> bool {
        self.moved.iter().any(|id| self.queues.get(id).is_some_and(|queue| queue.unsaved >= CURSOR_EVERY))
    }

    /// Adds what the clock says to what waits, if that is news.
    pub(crate) fn push_clock(&mut self, clock: &dyn crate::time::Clock) {
        if let Some(boot) = self.boots.observe(clock) {
            let mut body = Vec::new();
            super::snapshot::encode_boot(self.boots.current, &boot, &mut body);
            self.push(RecordKind::Clock, 0, std::iter::empty(), &[&body]);
        }
    }

    /// Looks at the clock where nothing else is written, and has written what is news. An empty log is left alone.
    pub(crate) fn observe_clock(&mut self, clock: &dyn crate::time::Clock) {
        if self.newest > 0 && !self.boots.is_known(clock) {
            self.due_now();
        }
    }

    /// Says whether messages can be kept.
    pub(crate) fn show_failing(&self) {
        let fault = self.failing.as_ref().map(|why| Fault::new("what must be kept is not acknowledged", why.as_str()));
        self.health.set("journal", fault.as_ref());
    }

    /// Whether more may be read ahead.
    pub(crate) fn has_room_ahead(&self) -> bool {
        self.queues.values().map(Queue::ready_bytes).sum::<usize>() < super::AHEAD_ALL
    }

    /// A record has become safe.
    pub(crate) fn commit(&mut self, record: &RecordRef<'_>, generation: u64, room: bool, behind: &mut Vec<ConsumerId>) {
        let (position, body) = (record.position(), record.body());
        let mut segment = self.segments.get_mut(&generation);
        if let Some(segment) = &mut segment {
            segment.last = position;
            segment.end += record.padded_len() as u64;
            segment.records += 1;
        }
        self.counts.records += 1;
        match record.kind() {
            Some(RecordKind::Message) => {
                self.counts.messages += 1;
                if let Some((key, packet_id)) = record.received()
                    && let Some(queue) = self.by_key.get(&key).and_then(|id| self.queues.get_mut(id))
                {
                    queue.received.insert(packet_id as u16);
                }
                if let Some((key, ordinal)) = record.handed_over()
                    && let Some(queue) = self.by_key.get(&key).and_then(|id| self.queues.get_mut(id))
                {
                    queue.note(1, ordinal);
                }
                let mut message: Option<Message> = None;
                if let Some(segment) = &mut segment {
                    segment.add_message(record, |key| Some(self.queues.get(self.by_key.get(&key)?)?.part));
                }
                for (key, ordinal) in record.consumers() {
                    let Some(id) = self.by_key.get(&key) else { continue };
                    let Some(queue) = self.queues.get_mut(id) else { continue };
                    let was_behind = queue.behind.is_some();
                    if room && queue.takes(ordinal) && message.is_none() {
                        message = Message::from_bytes(Bytes::copy_from_slice(body));
                    }
                    queue.commit(message.as_ref(), ordinal, position, room);
                    if !was_behind && queue.behind.is_some() {
                        behind.push(*id);
                    }
                }
            }
            Some(RecordKind::Note) => {
                let Some((key, _)) = record.consumers().next() else { return };
                let Some(queue) = self.by_key.get(&key).and_then(|id| self.queues.get_mut(id)) else { return };
                queue.note(u64_at(body, 0), u64_at(body, 8));
            }
            _ => {}
        }
    }

    /// Asks for reading ahead where it is wanted; says whether it is.
    pub(crate) fn request_fills(&mut self, ids: &[ConsumerId]) -> bool {
        let mut any = false;
        for id in ids {
            if let Some(queue) = self.queues.get_mut(id).filter(|queue| queue.wants_fill()) {
                queue.filling = true;
                self.fills.push_back(*id);
                any = true;
            }
        }
        any
    }

    /// The consumer's cursor is not on disk any more as it is.
    pub(crate) fn mark_moved(&mut self, id: ConsumerId) {
        self.full_for = Default::default();
        if let Some(queue) = self.queues.get_mut(&id) {
            mark_moved(&mut self.moved, &mut self.moved_since, id, queue);
        }
    }

    /// Something was wrong with a file.
    pub(crate) fn report(&mut self, report: Report) {
        self.counts.damaged += u64::from(report.is_loss());
        self.reports.push_back(report);
        let old = self.reports.len().saturating_sub(MOST_REPORTS);
        drop(self.reports.drain(..old));
    }
}

fn mark_moved(moved: &mut Vec<ConsumerId>, since: &mut Option<Instant>, id: ConsumerId, queue: &mut Queue) {
    if !queue.is_moved {
        queue.is_moved = true;
        moved.push(id);
    }
    since.get_or_insert_with(Instant::now);
}

/// Appends a cursor as records hold it.
pub(crate) fn encode_cursor(key: u64, cursor: &Cursor, out: &mut Vec<u8>) {
    for value in [key, cursor.base, cursor.read, cursor.dropped, cursor.lost].iter().chain(&cursor.settled) {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// The cursors in a body, and whether they were written at an orderly end.
pub(crate) fn decode_cursors(body: &[u8]) -> (impl Iterator<Item = (u64, Cursor)> + '_, bool) {
    let cursors = body.chunks_exact(CURSOR_LEN).map(|bytes| {
        let value = |at: usize| u64_at(bytes, at * 8);
        let mut settled = [0; Outcome::COUNT];
        for (at, count) in settled.iter_mut().enumerate() {
            *count = value(5 + at);
        }
        let place = |at: usize| value(at).min(super::format::FAR);
        (value(0), Cursor { base: place(1), read: place(2), settled, dropped: value(3), lost: value(4) })
    });
    (cursors, body.len() % CURSOR_LEN == 1 && body.last() == Some(&1))
}
