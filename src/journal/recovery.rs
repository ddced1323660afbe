//! Reads the state at the start. Nothing that is found prevents the start, except another version.
//!
//! Only the headers, the snapshot and the segments from the snapshot's position on are read. The reading thread checks the
//! others afterwards. Without a snapshot everything is read.

use std::collections::HashMap;
use std::io::ErrorKind;

use bytes::Bytes;
use rustix::io::Errno;

use super::boots::{Boots, decode_boot};
use super::consumers::{Queue, decode_cursors};
use super::format::{
    DATA, FileKind, HEADER_COPY, Header, HeaderError, RecordKind, SEGMENT_SUFFIX, SNAPSHOT, SNAPSHOT_NEW,
    WHOLE_HEADER_LEN, u16_at,
};
use super::log::Segment;
use super::parts::Part;
use super::record::{Damage, RecordRef, Scanner};
use super::report::Report;
use super::settings::JournalSettings;
use super::snapshot::{SnapshotTable, TableSegment};
use super::state::JournalState;
use super::storage::Storage;
use super::trouble::NotRead;
use super::{JournalError, Limits};
use crate::message::MessageRef;
use crate::secret::ASIDE_SUFFIX;
use crate::time::Clock;

/// The limits of a consumer until it is registered: nothing new comes for it.
const UNBOUNDED: Limits = Limits { messages: usize::MAX, bytes: usize::MAX, when_full: super::WhenFull::DropOldest };

/// Reads the state of a journal.
pub fn recover(
    storage: &dyn Storage,
    settings: &JournalSettings,
    boot: u64,
    clock: &dyn Clock,
) -> Result<JournalState, JournalError> {
    let mut recovery = Recovery {
        storage,
        state: JournalState::default(),
        retained: HashMap::new(),
        orderly: HashMap::new(),
        unread: Vec::new(),
    };
    let files = match storage.list() {
        Ok(files) => files,
        Err(error) => {
            let report = Report::Unreadable { file: "the directory".into(), error: error.to_string() };
            recovery.state.reports.add(report);
            recovery.state.trouble.meet(error);
            Vec::new()
        }
    };
    let table = recovery.snapshot(&files)?;
    recovery.segments(&files, settings)?;
    recovery.read(table);
    recovery.finish(boot, clock);
    Ok(recovery.state)
}

/// Reads the header of a file from the newer of its two places, and returns whether the other one is damaged.
pub fn read_header(storage: &dyn Storage, name: &str) -> Result<(Header, bool), HeaderError> {
    let mut found: [Result<Header, HeaderError>; 2] = [Err(HeaderError::Damaged); 2];
    for (at, slot) in [0, HEADER_COPY].into_iter().zip(&mut found) {
        let mut bytes = [0; WHOLE_HEADER_LEN];
        *slot = match storage.read_at(name, at, &mut bytes) {
            Ok(count) => Header::decode(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(HeaderError::Damaged),
            Err(error) => Err(error.raw_os_error().map_or(HeaderError::Damaged, HeaderError::Unreadable)),
        };
    }
    match found {
        [Ok(first), Ok(second)] if second.generation > first.generation => Ok((second, true)),
        [Ok(first), second] => Ok((first, second.is_err())),
        [Err(_), Ok(second)] => Ok((second, true)),
        [Err(HeaderError::Version(version)), _] | [_, Err(HeaderError::Version(version))] => {
            Err(HeaderError::Version(version))
        }
        [Err(HeaderError::Unreadable(errno)), _] | [_, Err(HeaderError::Unreadable(errno))] => {
            Err(HeaderError::Unreadable(errno))
        }
        [Err(HeaderError::Blank), Err(HeaderError::Blank)] => Err(HeaderError::Blank),
        _ => Err(HeaderError::Damaged),
    }
}

/// Renames a file so that it is not used any more, and removes the oldest of those.
fn set_aside(storage: &dyn Storage, state: &mut JournalState, name: &str, bytes: u64) {
    let to = state.log.aside_name(name);
    let renamed = storage.rename(name, &to);
    for oldest in state.set_aside(name.into(), to, bytes, renamed) {
        // a file that cannot be removed does no harm
        let _ = storage.remove(&oldest);
    }
}

struct Recovery<'a> {
    storage: &'a dyn Storage,
    state: JournalState,
    /// The newest retained message of each topic, with the boot to which its time belongs.
    retained: HashMap<Box<str>, (u32, Bytes)>,
    /// Whether the last cursor of each key was written at an orderly end.
    orderly: HashMap<u64, bool>,
    /// The files whose headers the system does not let be read, with their sizes and the errors of errno(3).
    unread: Vec<(String, u64, i32)>,
}

impl Recovery<'_> {
    fn snapshot(&mut self, files: &[(String, u64)]) -> Result<Option<SnapshotTable>, JournalError> {
        for (name, _) in files {
            if name == SNAPSHOT_NEW {
                // it was never completed
                let _ = self.storage.remove(name);
            } else if name.ends_with(ASIDE_SUFFIX) {
                self.state.log.note_aside(name.clone());
            }
        }
        let Some((_, len)) = files.iter().find(|(name, _)| name == SNAPSHOT) else { return Ok(None) };
        let header = match read_header(self.storage, SNAPSHOT) {
            Ok((header, is_damaged)) => {
                if is_damaged {
                    self.state.reports.add(Report::Header { file: SNAPSHOT.into() });
                }
                header
            }
            Err(HeaderError::Version(found)) => {
                return Err(JournalError::Version { file: SNAPSHOT.into(), found });
            }
            Err(HeaderError::Unreadable(errno)) => {
                self.unread.push((SNAPSHOT.into(), *len, errno));
                return Ok(None);
            }
            Err(_) => {
                set_aside(self.storage, &mut self.state, SNAPSHOT, *len);
                return Ok(None);
            }
        };
        self.state.log.note_snapshot(*len);
        let mut scanner = Scanner::new(self.storage, SNAPSHOT, &header, header.size);
        let (mut table, mut last, mut missing) = (None, 0, 0);
        while let Some((_, record)) = scanner.next_record() {
            missing += record.position() - last - 1;
            last = record.position();
            match record.kind() {
                Some(RecordKind::Table) if table.is_none() => table = SnapshotTable::decode(record.body()),
                Some(RecordKind::Message) => keep_retained(&mut self.retained, &record),
                Some(RecordKind::State) => keep_session(&mut self.state, &record),
                _ => {}
            }
        }
        let rest = header.size.saturating_sub(scanner.offset());
        let damage = scanner.damage;
        self.report_damage(SNAPSHOT, damage, rest, missing);
        Ok(table)
    }

    fn report_damage(&mut self, name: &str, damage: Damage, rest: u64, records: u64) {
        if damage.places > 0 || rest > 0 || records > 0 {
            let (places, bytes) = (damage.places + u32::from(rest > 0), damage.bytes + rest);
            self.state.reports.add(Report::Damaged { file: name.into(), places, bytes, records });
        }
    }

    /// Reads the headers of all segments.
    fn segments(&mut self, files: &[(String, u64)], settings: &JournalSettings) -> Result<(), JournalError> {
        let mut found = Vec::new();
        for (name, len) in files.iter().filter(|(name, _)| name.ends_with(SEGMENT_SUFFIX)) {
            match read_header(self.storage, name) {
                Ok((header, is_damaged)) => {
                    if is_damaged {
                        self.state.reports.add(Report::Header { file: name.clone() });
                    }
                    found.push(Segment::new(name.clone(), header));
                }
                Err(HeaderError::Version(found)) => {
                    return Err(JournalError::Version { file: name.clone(), found });
                }
                Err(HeaderError::Unreadable(errno)) => self.unread.push((name.clone(), *len, errno)),
                // its first use was interrupted before anything was on disk
                Err(error) if self.is_blank(name, error == HeaderError::Blank) => self.set_free(name, *len, settings),
                Err(_) => set_aside(self.storage, &mut self.state, name, *len),
            }
        }
        self.judge_unread(!found.is_empty());
        for (at, segment) in found.iter().enumerate() {
            let is_free = segment.header.kind == FileKind::Merging
                || found
                    .iter()
                    .enumerate()
                    .any(|(other, merged)| other != at && stands_for(merged, segment, other > at));
            if is_free {
                self.set_free(&segment.name, segment.header.size, settings);
            } else {
                self.state.log.insert(segment.clone());
            }
        }
        self.state.log.pass_over_merged();
        Ok(())
    }

    /// Decides about files whose headers could not be read. Where the disk returns other data, and the bad blocks are only
    /// there, such a file is set aside as a damaged one is. Any other error says nothing about what is in the file: it may
    /// belong to another user. So it stays as it is, and nothing is written beside it.
    fn judge_unread(&mut self, is_other_data_read: bool) {
        for (file, len, errno) in std::mem::take(&mut self.unread) {
            let is_damage = Errno::from_raw_os_error(errno) == Errno::IO
                && (is_other_data_read || self.storage.read_at(&file, DATA, &mut [0; 4096]).is_ok());
            let unread = NotRead::File { file: file.clone(), errno };
            let error = std::io::Error::from_raw_os_error(errno).to_string();
            self.state.reports.add(Report::Unreadable { file: file.clone(), error });
            if is_damage {
                set_aside(self.storage, &mut self.state, &file, len);
            } else {
                self.state.trouble.meet(unread.into());
            }
        }
    }

    /// Makes a file without records available for a segment.
    fn set_free(&mut self, name: &str, len: u64, settings: &JournalSettings) {
        if len == settings.segment_size() {
            self.state.log.add_spare(name.into());
        } else {
            // a file that cannot be removed is found again at the next start
            let _ = self.storage.remove(name);
        }
    }

    /// Whether no record was ever written to a file. With `or_short`, also a file that ends before the records.
    fn is_blank(&self, name: &str, or_short: bool) -> bool {
        let mut page = [0; 4096];
        let read = self.storage.read_at(name, DATA, &mut page);
        read.is_ok_and(|count| count > 0 || or_short) && page.iter().all(|byte| *byte == 0)
    }

    /// Reads the records that the snapshot does not cover.
    fn read(&mut self, table: Option<SnapshotTable>) {
        let table = table.unwrap_or_default();
        self.state.log.cover(table.covered);
        self.state.boots = Boots::of(table.boots);
        for known in &table.consumers {
            let id = self.state.insert(&known.name, known.key, known.cursor.base, UNBOUNDED);
            if let Some(queue) = self.state.queues.get_mut(id) {
                queue.restore(known.cursor, known.committed, &known.received, &known.released);
            }
        }
        let open = table.segments.keys().next_back().copied();
        let generations: Vec<u64> = self.state.log.segments().keys().copied().collect();
        for (at, generation) in generations.iter().enumerate() {
            let next = generations.get(at + 1).and_then(|next| self.state.log.get(*next)).map(|next| next.header);
            let Some(mut segment) = self.state.log.remove(*generation) else { continue };
            // a merged file differs from what the table of an earlier snapshot says about its generation
            let Header { kind, salt, base, .. } = segment.header;
            let is_as_known = |known: &&TableSegment| {
                segment.from == base && (known.salt == salt || (known.salt == 0 && kind == FileKind::Segment))
            };
            match table.segments.get(generation).filter(|_| Some(*generation) != open).filter(is_as_known) {
                Some(known) => {
                    segment.restore((known.last, known.end, known.records), known.contents.clone());
                    self.state.log.check([*generation]);
                }
                None => self.scan(&mut segment, next),
            }
            self.state.log.insert(segment);
        }
    }

    /// Reads a segment; `next` is the header of the one after it.
    fn scan(&mut self, segment: &mut Segment, next: Option<Header>) {
        let is_merged = segment.header.kind != FileKind::Segment;
        let limit = segment.limit(next.as_ref());
        let name = segment.name.clone();
        let mut scanner = Scanner::new(self.storage, &name, &segment.header, segment.header.size);
        let (mut missing, mut last, mut is_moved) = (0, segment.from.saturating_sub(1), false);
        while let Some((offset, record)) = scanner.next_record() {
            if record.position() >= limit {
                break;
            }
            segment.end = offset + record.padded_len() as u64;
            segment.records += 1;
            if record.position() < segment.from {
                continue;
            }
            missing += record.position() - last - 1;
            last = record.position();
            if record.position() > self.state.log.covered() {
                is_moved |= apply(&mut self.state, &mut self.retained, &mut self.orderly, &record);
            }
            if record.kind() == Some(RecordKind::Message) {
                segment.add_message(&record, |key| self.state.queues.part_of_key(key));
            }
        }
        if !is_merged {
            segment.last = last;
        }
        if is_moved {
            // it is unknown which of its messages were counted for another part
            Part::ALL.into_iter().for_each(|part| segment.count_all_for(part));
        }
        let (damage, unreadable) = (scanner.damage, scanner.unreadable);
        let is_torn = next.is_none() && scanner.is_torn();
        // the next segment shows where this one ended
        let follows = next.filter(|next| {
            next.first_generation() == segment.header.generation + 1 && next.base > segment.last && !is_merged
        });
        let rest = follows.map_or(0, |next| next.base - segment.last - 1);
        // nobody needs what a merged segment lacks
        missing *= u64::from(!is_merged);
        segment.is_bad = unreadable > 0 || damage.places > 0;
        if !is_reused(self.storage, segment) {
            self.report_damage(&name, damage, 0, missing + rest);
        }
        if is_torn {
            self.state.reports.add(Report::TornTail { file: name, at: segment.end });
        }
        self.state.log.commit(segment.last);
    }

    fn finish(&mut self, boot: u64, clock: &dyn Clock) {
        let state = &mut self.state;
        state.log.commit(state.log.covered());
        state.pending.begin_after(state.log.committed());
        state.kept.forget_lost_parts();
        state.boots.enter(boot);
        for (boot, bytes) in self.retained.values() {
            if let Some(message) = state.boots.translate(bytes, *boot, clock) {
                state.kept.retain(message);
            }
        }
        let JournalState { log, queues, .. } = state;
        for queue in queues.iter_mut() {
            let is_orderly = self.orderly.get(&queue.key()) == Some(&true);
            let waiting: Vec<(u32, u64)> =
                log.segments().values().filter_map(|segment| segment.waiting_for(queue)).collect();
            queue.begin(&waiting, is_orderly);
        }
    }
}

/// Whether a merged segment stands for another file. Of two that stand for the same, the one that reaches further counts.
fn stands_for(merged: &Segment, other: &Segment, is_later: bool) -> bool {
    let FileKind::Merged { first, upto } = merged.header.kind else { return false };
    let range = (first, merged.header.generation);
    let others = (other.first_generation(), other.header.generation);
    let has = first <= others.0 && others.1 <= range.1;
    match other.header.kind {
        FileKind::Merged { upto: others_upto, .. } if range == others => {
            upto > others_upto || (upto == others_upto && is_later)
        }
        _ => has,
    }
}

/// Whether a gateway has reused a segment during the read, so that differences are no damage.
pub(crate) fn is_reused(storage: &dyn Storage, segment: &Segment) -> bool {
    read_header(storage, &segment.name)
        .is_ok_and(|(header, _)| (header.generation, header.salt) != (segment.header.generation, segment.header.salt))
}

fn keep_retained(retained: &mut HashMap<Box<str>, (u32, Bytes)>, record: &RecordRef<'_>) {
    let Some(message) = MessageRef::parse(record.body()).filter(|_| record.is_retained()) else { return };
    if message.payload().is_empty() {
        retained.remove(message.topic());
    } else {
        let kept = (record.boot(), Bytes::copy_from_slice(message.as_bytes()));
        retained.insert(message.topic().into(), kept);
    }
}

fn keep_session(state: &mut JournalState, record: &RecordRef<'_>) {
    let body = record.body();
    let end = 2 + usize::from(u16_at(body, 0));
    let (Some(name), Some(value)) = (body.get(2..end), body.get(end..)) else { return };
    let Ok(name) = std::str::from_utf8(name) else { return };
    if value.is_empty() {
        state.kept.forget(name);
    } else {
        state.kept.keep(name, value);
    }
}

/// The consumer with this key. If its name was lost, a consumer is made, so that its messages are kept.
fn queue_of(state: &mut JournalState, key: u64, base: u64) -> Option<&mut Queue> {
    let id = state.queues.id_of_key(key).unwrap_or_else(|| state.insert("", key, base, UNBOUNDED));
    state.queues.get_mut(id)
}

fn apply_message(state: &mut JournalState, retained: &mut HashMap<Box<str>, (u32, Bytes)>, record: &RecordRef<'_>) {
    for (key, ordinal) in record.consumers() {
        if let Some(queue) = queue_of(state, key, ordinal.saturating_sub(1)) {
            queue.found(ordinal);
        }
    }
    if let Some((key, packet_id)) = record.received()
        && let Some(queue) = queue_of(state, key, 0)
    {
        queue.receive(packet_id as u16);
    }
    if let Some((key, ordinal)) = record.handed_over()
        && let Some(queue) = state.queues.of_key_mut(key)
    {
        queue.note(1, ordinal);
    }
    keep_retained(retained, record);
}

/// Applies a consumer record, and returns whether the consumer's part of the journal has changed.
fn apply_consumer(state: &mut JournalState, record: &RecordRef<'_>) -> bool {
    let (Some((key, base)), Ok(name)) = (record.consumers().next(), std::str::from_utf8(record.body())) else {
        return false;
    };
    let known = state.queues.id_of_key(key);
    match known.and_then(|id| Some((id, state.queues.get(id)?.base()))) {
        Some((id, known)) if known >= base => state.rename(id, name),
        _ => {
            state.insert(name, key, base, UNBOUNDED);
            false
        }
    }
}

/// Applies a record, and returns whether a consumer's part of the journal has changed.
fn apply(
    state: &mut JournalState,
    retained: &mut HashMap<Box<str>, (u32, Bytes)>,
    orderly: &mut HashMap<u64, bool>,
    record: &RecordRef<'_>,
) -> bool {
    let body = record.body();
    match record.kind() {
        Some(RecordKind::Message) => apply_message(state, retained, record),
        Some(RecordKind::State) => keep_session(state, record),
        Some(RecordKind::Consumer) => return apply_consumer(state, record),
        Some(RecordKind::ConsumerRemoved) => {
            if let Some((key, _)) = record.consumers().next()
                && let Some(id) = state.queues.id_of_key(key)
            {
                state.forget(id);
            }
        }
        Some(RecordKind::Cursors) => {
            let (cursors, is_orderly) = decode_cursors(body);
            for (key, cursor) in cursors {
                if queue_of(state, key, cursor.base).is_some_and(|queue| queue.follow(cursor)) {
                    orderly.insert(key, is_orderly);
                }
            }
        }
        Some(RecordKind::Note) => state.follow_note(record),
        Some(RecordKind::Clock) => {
            // every run of the gateway begins to write with this record
            orderly.clear();
            if let Some((number, boot)) = decode_boot(body) {
                state.boots.learn(number, boot);
            }
        }
        Some(RecordKind::Table) | None => {}
    }
    false
}
