//! What is found at start. Nothing that is found is a reason not to start, other versions excepted.
//!
//! Read are the headers, the snapshot, and the segments from the snapshot's place on; the rest is checked by the reading
//! thread afterwards. Without a snapshot everything is read.

use std::collections::HashMap;

use bytes::Bytes;

use super::boots::Boots;
use super::format::{
    ASIDE_SUFFIX, DATA, FileKind, HEADER_COPY, Header, HeaderError, RecordKind, SEGMENT_SUFFIX, SNAPSHOT, SNAPSHOT_NEW,
    WHOLE_HEADER_LEN, u16_at, u64_at,
};
use super::parts::PARTS;
use super::queue::{IN_HAND, Queue};
use super::record::{Damage, RecordRef, Scanner};
use super::report::Report;
use super::segment::Segment;
use super::settings::JournalSettings;
use super::snapshot::{SnapshotTable, TableSegment, decode_boot};
use super::state::{JournalState, decode_cursors};
use super::storage::Storage;
use super::{CURSOR_EVERY, JournalError, Limits, MOST_ASIDE};
use crate::message::MessageRef;
use crate::time::Clock;

/// Bounds of a consumer until somebody registers it: nothing new comes for it.
const UNBOUNDED: Limits = Limits { messages: usize::MAX, bytes: usize::MAX, when_full: super::WhenFull::DropOldest };

/// Reads what is there.
pub fn recover(
    storage: &dyn Storage,
    settings: &JournalSettings,
    boot: u64,
    clock: &dyn Clock,
) -> Result<JournalState, JournalError> {
    let mut recovery =
        Recovery { storage, state: JournalState::default(), retained: HashMap::new(), orderly: HashMap::new() };
    let files = match storage.list() {
        Ok(files) => files,
        Err(error) => {
            let report = Report::Unreadable { file: "the directory".into(), error: error.to_string() };
            recovery.state.report(report);
            Vec::new()
        }
    };
    let table = recovery.snapshot(&files)?;
    recovery.segments(&files, settings)?;
    recovery.read(table);
    recovery.finish(boot, clock);
    Ok(recovery.state)
}

/// Reads the header of a file, from whichever of its two places has the newer one; says whether the other is damaged.
pub fn read_header(storage: &dyn Storage, name: &str) -> Result<(Header, bool), HeaderError> {
    let mut found: [Result<Header, HeaderError>; 2] = [Err(HeaderError::Damaged); 2];
    for (at, slot) in [0, HEADER_COPY].into_iter().zip(&mut found) {
        let mut bytes = [0; WHOLE_HEADER_LEN];
        if let Ok(count) = storage.read_at(name, at, &mut bytes) {
            *slot = Header::decode(&bytes[..count]);
        }
    }
    match found {
        [Ok(first), Ok(second)] if second.generation > first.generation => Ok((second, true)),
        [Ok(first), second] => Ok((first, second.is_err())),
        [Err(_), Ok(second)] => Ok((second, true)),
        [Err(HeaderError::Version(version)), _] | [_, Err(HeaderError::Version(version))] => {
            Err(HeaderError::Version(version))
        }
        [Err(HeaderError::Blank), Err(HeaderError::Blank)] => Err(HeaderError::Blank),
        _ => Err(HeaderError::Damaged),
    }
}

/// Renames a file so that it is not used any more, and removes the oldest of those.
fn set_aside(storage: &dyn Storage, state: &mut JournalState, name: &str, bytes: u64) {
    let to = aside_name(state, name);
    let renamed = storage.rename(name, &to);
    for oldest in note_aside(state, name, to, bytes, renamed) {
        // what cannot be removed is in nobody's way
        let _ = storage.remove(&oldest);
    }
}

/// A name for a file that is not used any more.
pub(crate) fn aside_name(state: &JournalState, name: &str) -> String {
    (1..)
        .map(|number: u32| format!("{name}.{number}{ASIDE_SUFFIX}"))
        .find(|to| !state.aside.contains(to))
        .unwrap_or_default()
}

/// A file was renamed so that it is not used any more; returns those that have been there for too long.
pub(crate) fn note_aside(
    state: &mut JournalState,
    name: &str,
    to: String,
    bytes: u64,
    renamed: std::io::Result<()>,
) -> Vec<String> {
    match renamed {
        Ok(()) => {
            state.aside.push_back(to.clone());
            state.report(Report::SetAside { file: name.into(), to, bytes });
        }
        Err(error) => state.report(Report::Unreadable { file: name.into(), error: error.to_string() }),
    }
    let surplus = state.aside.len().saturating_sub(MOST_ASIDE);
    state.aside.drain(..surplus).collect()
}

struct Recovery<'a> {
    storage: &'a dyn Storage,
    state: JournalState,
    /// Newest retained message per topic and the boot its time belongs to.
    retained: HashMap<Box<str>, (u32, Bytes)>,
    /// Whether the last cursor of a key was written at an orderly end.
    orderly: HashMap<u64, bool>,
}

impl Recovery<'_> {
    fn snapshot(&mut self, files: &[(String, u64)]) -> Result<Option<SnapshotTable>, JournalError> {
        for (name, _) in files {
            if name == SNAPSHOT_NEW {
                // it was never finished
                let _ = self.storage.remove(name);
            } else if name.ends_with(ASIDE_SUFFIX) {
                self.state.aside.push_back(name.clone());
            }
        }
        let Some((_, len)) = files.iter().find(|(name, _)| name == SNAPSHOT) else { return Ok(None) };
        let header = match read_header(self.storage, SNAPSHOT) {
            Ok((header, is_damaged)) => {
                if is_damaged {
                    self.state.report(Report::Header { file: SNAPSHOT.into() });
                }
                header
            }
            Err(HeaderError::Version(found)) => {
                return Err(JournalError::Version { file: SNAPSHOT.into(), found });
            }
            Err(_) => {
                set_aside(self.storage, &mut self.state, SNAPSHOT, *len);
                return Ok(None);
            }
        };
        self.state.snapshot_bytes = *len;
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
            self.state.report(Report::Damaged { file: name.into(), places, bytes, records });
        }
    }

    /// Reads the headers of all segments.
    fn segments(&mut self, files: &[(String, u64)], settings: &JournalSettings) -> Result<(), JournalError> {
        let mut found = Vec::new();
        for (name, len) in files.iter().filter(|(name, _)| name.ends_with(SEGMENT_SUFFIX)) {
            match read_header(self.storage, name) {
                Ok((header, is_damaged)) => {
                    if is_damaged {
                        self.state.report(Report::Header { file: name.clone() });
                    }
                    found.push(Segment::new(name.clone(), header));
                }
                Err(HeaderError::Version(found)) => {
                    return Err(JournalError::Version { file: name.clone(), found });
                }
                // its first use was interrupted before anything was safe
                Err(error) if self.is_blank(name, error == HeaderError::Blank) => self.set_free(name, *len, settings),
                Err(_) => set_aside(self.storage, &mut self.state, name, *len),
            }
        }
        for (at, segment) in found.iter().enumerate() {
            let is_free = segment.header.kind == FileKind::Merging
                || found
                    .iter()
                    .enumerate()
                    .any(|(other, merged)| other != at && stands_for(merged, segment, other > at));
            if is_free {
                self.set_free(&segment.name, segment.header.size, settings);
            } else {
                self.state.segments.insert(segment.header.generation, segment.clone());
            }
        }
        let upto = self.state.segments.values().map(|segment| match segment.header.kind {
            FileKind::Merged { upto, .. } => upto,
            _ => 0,
        });
        let mut upto: Vec<u64> = upto.collect();
        upto.insert(0, 0);
        for (segment, upto) in self.state.segments.values_mut().zip(upto) {
            segment.from = segment.header.base.max(upto + 1);
        }
        Ok(())
    }

    /// A file that holds nothing can become a segment.
    fn set_free(&mut self, name: &str, len: u64, settings: &JournalSettings) {
        if len == settings.segment_size() {
            self.state.spare.push(name.into());
        } else {
            // what cannot be removed is found again at the next start
            let _ = self.storage.remove(name);
        }
    }

    /// Whether no record was ever written to a file; `or_short`: neither to one that ends before them.
    fn is_blank(&self, name: &str, or_short: bool) -> bool {
        let mut page = [0; 4096];
        let read = self.storage.read_at(name, DATA, &mut page);
        read.is_ok_and(|count| count > 0 || or_short) && page.iter().all(|byte| *byte == 0)
    }

    /// Reads what the snapshot does not know.
    fn read(&mut self, table: Option<SnapshotTable>) {
        let table = table.unwrap_or_default();
        self.state.covered = table.covered;
        self.state.boots = Boots { known: table.boots, ..Boots::default() };
        for known in &table.consumers {
            let id = self.state.insert(&known.name, known.key, known.cursor.base, UNBOUNDED);
            if let Some(queue) = self.state.queues.get_mut(&id) {
                queue.cursor = known.cursor;
                (queue.accepted, queue.committed) = (known.committed, known.committed);
                queue.received = known.received.iter().copied().collect();
                queue.released = known.released.iter().copied().collect();
            }
        }
        let open = table.segments.keys().next_back().copied();
        let mut generations: Vec<u64> = self.state.segments.keys().copied().collect();
        generations.sort_unstable();
        for (at, generation) in generations.iter().enumerate() {
            let next = generations.get(at + 1).and_then(|next| self.state.segments.get(next)).map(|next| next.header);
            let Some(segment) = self.state.segments.get_mut(generation) else { continue };
            // merged files are not what the table of an earlier snapshot says of their generation
            let Header { kind, salt, base, .. } = segment.header;
            let is_as_known = |known: &&TableSegment| {
                segment.from == base && (known.salt == salt || (known.salt == 0 && kind == FileKind::Segment))
            };
            match table.segments.get(generation).filter(|_| Some(*generation) != open).filter(is_as_known) {
                Some(known) => {
                    (segment.last, segment.end, segment.records) = (known.last, known.end, known.records);
                    segment.shares.clone_from(&known.shares);
                    (segment.in_part, segment.largest) = (known.in_part, known.largest);
                    self.state.unverified.push_back(*generation);
                }
                None => self.scan(*generation, next),
            }
        }
    }

    /// Reads a segment; `next` is the header of the one after it.
    fn scan(&mut self, generation: u64, next: Option<Header>) {
        let Some(mut segment) = self.state.segments.remove(&generation) else { return };
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
            if record.position() > self.state.covered {
                is_moved |= apply(&mut self.state, &mut self.retained, &mut self.orderly, &record);
            }
            if record.kind() == Some(RecordKind::Message) {
                let state = &self.state;
                segment.add_message(&record, |key| Some(state.queues.get(state.by_key.get(&key)?)?.part));
            }
        }
        if !is_merged {
            segment.last = last;
        }
        if is_moved {
            // which of its messages were counted for another part is not known
            segment.in_part = [segment.end - DATA; PARTS];
        }
        let (damage, unreadable) = (scanner.damage, scanner.unreadable);
        let is_torn = next.is_none() && scanner.is_torn();
        // the next segment tells what this one ended with
        let follows =
            next.filter(|next| next.first_generation() == generation + 1 && next.base > segment.last && !is_merged);
        let rest = follows.map_or(0, |next| next.base - segment.last - 1);
        // what a merged segment lacks, nobody needs
        missing *= u64::from(!is_merged);
        segment.is_bad = unreadable > 0 || damage.places > 0;
        if !is_reused(self.storage, &segment) {
            self.report_damage(&name, damage, 0, missing + rest);
        }
        if is_torn {
            self.state.report(Report::TornTail { file: name, at: segment.end });
        }
        self.state.committed = self.state.committed.max(segment.last);
        self.state.segments.insert(generation, segment);
    }

    fn finish(&mut self, boot: u64, clock: &dyn Clock) {
        let state = &mut self.state;
        state.committed = state.committed.max(state.covered);
        state.newest = state.committed;
        state.forget_lost_parts();
        state.boots.enter(boot);
        for (boot, bytes) in self.retained.values() {
            if let Some(message) = state.boots.translate(bytes, *boot, clock) {
                state.retain(message);
            }
        }
        for queue in state.queues.values_mut() {
            queue.accepted = queue.accepted.max(queue.cursor.base);
            queue.committed = queue.accepted;
            let is_orderly = self.orderly.get(&queue.key) == Some(&true);
            let in_doubt = if is_orderly { 0 } else { CURSOR_EVERY + IN_HAND };
            queue.maybe_sent = queue.cursor.read.max(queue.cursor.base + in_doubt);
            for segment in state.segments.values() {
                if let Some(share) = segment.shares.get(&queue.key).filter(|share| share.last > queue.cursor.base) {
                    let left = (share.last - queue.cursor.base).min(u64::from(share.count));
                    let bytes = share.bytes_of(left);
                    queue.sizes.push(left as u32, bytes, None);
                }
            }
            queue.behind = (queue.waiting() > 0).then_some(0);
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

/// Whether a gateway has used a segment again while somebody else read it: what is not as it should be is no damage.
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
        state.forget_session(name);
    } else {
        state.sessions.insert(name.into(), Bytes::copy_from_slice(value));
    }
}

/// The consumer with this key; one whose name was lost is made for a message that is there for it.
fn queue_of(state: &mut JournalState, key: u64, base: u64) -> Option<&mut Queue> {
    let id = match state.by_key.get(&key) {
        Some(id) => *id,
        None => state.insert("", key, base, UNBOUNDED),
    };
    state.queues.get_mut(&id)
}

fn apply_message(state: &mut JournalState, retained: &mut HashMap<Box<str>, (u32, Bytes)>, record: &RecordRef<'_>) {
    for (key, ordinal) in record.consumers() {
        if let Some(queue) = queue_of(state, key, ordinal.saturating_sub(1)) {
            queue.accepted = queue.accepted.max(ordinal);
        }
    }
    if let Some((key, packet_id)) = record.received()
        && let Some(queue) = queue_of(state, key, 0)
    {
        queue.received.insert(packet_id as u16);
    }
    if let Some((key, ordinal)) = record.handed_over()
        && let Some(queue) = state.by_key.get(&key).and_then(|id| state.queues.get_mut(id))
    {
        queue.note(1, ordinal);
    }
    keep_retained(retained, record);
}

/// Says whether a consumer counts for another part of the journal from now on.
fn apply_consumer(state: &mut JournalState, record: &RecordRef<'_>) -> bool {
    let (Some((key, base)), Ok(name)) = (record.consumers().next(), std::str::from_utf8(record.body())) else {
        return false;
    };
    let known = state.by_key.get(&key).copied();
    match known.and_then(|id| Some((id, state.queues.get(&id)?.cursor.base))) {
        Some((id, known)) if known >= base => state.rename(id, name),
        _ => {
            state.insert(name, key, base, UNBOUNDED);
            false
        }
    }
}

/// Says whether a consumer counts for another part of the journal from now on.
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
                && let Some(id) = state.by_key.get(&key)
            {
                state.forget(*id);
            }
        }
        Some(RecordKind::Cursors) => {
            let (cursors, is_orderly) = decode_cursors(body);
            for (key, cursor) in cursors {
                if let Some(queue) = queue_of(state, key, cursor.base).filter(|queue| queue.cursor.base <= cursor.base)
                {
                    queue.cursor = cursor;
                    queue.released.retain(|ordinal| *ordinal > cursor.base);
                    orderly.insert(key, is_orderly);
                }
            }
        }
        Some(RecordKind::Note) => {
            if let Some((key, _)) = record.consumers().next()
                && let Some(queue) = state.by_key.get(&key).and_then(|id| state.queues.get_mut(id))
            {
                queue.note(u64_at(body, 0), u64_at(body, 8));
            }
        }
        Some(RecordKind::Clock) => {
            // with it every run of the gateway begins to write
            orderly.clear();
            if let Some((number, boot)) = decode_boot(body) {
                state.boots.known.insert(number, boot);
            }
        }
        Some(RecordKind::Table) | None => {}
    }
    false
}
