//! The thread that writes.
//!
//! It takes all that waits, writes it behind the records that are there, syncs once, and only then lets consumers and
//! publishers know. What cannot be written stays and is tried again elsewhere, less and less often; a sync that has
//! failed says nothing about what is on disk, so its segment is closed and everything since the last good sync is written
//! to another one.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::format::{DATA, FileKind, HEADER_COPY, Header, u32_at};
use super::record;
use super::recovery::{aside_name, note_aside};
use super::segment::{self, Segment};
use super::snapshot::SnapshotContents;
use super::space::is_full;
use super::state::{JournalState, Stop};
use super::trouble::{advice, is_lasting};
use super::{CURSOR_IDLE, Position, Shared};

/// A snapshot is written after so many segments, or when they are as large as the one before: they are what a start has to read.
const SNAPSHOT_EVERY: u32 = 4;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// An orderly end waits so long for a disk that fails.
const PATIENCE: Duration = Duration::from_secs(1);

/// What to do next.
enum WriterAction {
    Write,
    End,
}

/// The writing thread's own.
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    /// Generation of the segment that is written to.
    pub(super) tail: Option<u64>,
    generation: u64,
    /// Segments begun since the last snapshot.
    begun: u32,
    retry: Duration,
    pub(super) failing_since: Option<Instant>,
    /// A merge of all that can be merged has set nothing free when so many bytes were waiting, and nothing was begun since.
    pub(super) in_vain: Option<u64>,
}

pub(super) fn random() -> u64 {
    let mut salt = [0; 8];
    // without randomness the generation alone tells old bytes from new
    let _ = getrandom::fill(&mut salt);
    u64::from_le_bytes(salt)
}

impl Writer {
    /// For a journal as it was recovered.
    pub(crate) fn new(shared: Arc<Shared>) -> Writer {
        let state = shared.state.lock();
        let last = state.segments.last_key_value();
        let generation = last.map_or(0, |(generation, _)| *generation);
        let tail = last
            .filter(|(_, segment)| !segment.is_bad && segment.header.kind == FileKind::Segment)
            .map(|(generation, _)| *generation);
        for report in &state.reports {
            if report.is_loss() { error!("journal: {report}") } else { info!("journal: {report}") }
        }
        drop(state);
        Writer { shared, tail, generation, begun: 0, retry: FIRST_RETRY, failing_since: None, in_vain: None }
    }

    /// Until told to stop.
    pub(crate) fn run(mut self) {
        let mut bytes = Vec::new();
        let mut is_ending = false;
        while let WriterAction::Write = self.wait(&mut bytes, &mut is_ending) {
            if !self.commit(&mut bytes) {
                return;
            }
            let mut state = self.shared.state.lock();
            (state.writing, state.writing_since, state.full_for) = (0, None, Default::default());
            drop(state);
            bytes.clear();
            if bytes.capacity() > super::PENDING_MAX / 4 {
                bytes = Vec::new(); // a burst is over
            }
        }
    }

    /// Waits for something to write, and takes it.
    fn wait(&self, bytes: &mut Vec<u8>, is_ending: &mut bool) -> WriterAction {
        let mut state = self.shared.state.lock();
        loop {
            let now = Instant::now();
            match state.stop {
                Some(Stop::Now) => return WriterAction::End,
                Some(Stop::Orderly) => {
                    let is_of_use = !state.moved.is_empty() || state.queues.values().any(|queue| queue.waiting() > 0);
                    if is_of_use && !*is_ending {
                        state.push_cursors(true);
                    }
                    *is_ending = true;
                    if state.pending.due.is_none() {
                        return WriterAction::End;
                    }
                    state.pending.due = Some(now);
                }
                None => {}
            }
            let idle = state.moved_since.map(|since| since + CURSOR_IDLE);
            if idle.is_some_and(|idle| idle <= now) || state.wants_cursors() {
                state.push_cursors(false);
            }
            if state.pending.due.is_some_and(|due| due <= now) {
                state.push_cursors(false);
                state.push_clock(&*self.shared.clock.0);
                std::mem::swap(&mut state.pending.bytes, bytes);
                (state.writing, state.writing_since) = (bytes.len(), Some(now));
                state.pending.due = None;
                return WriterAction::Write;
            }
            match [state.pending.due, idle].into_iter().flatten().min() {
                Some(until) => drop(self.shared.work.wait_until(&mut state, until)),
                None => self.shared.work.wait(&mut state),
            }
        }
    }

    /// Writes and syncs records; says whether to go on.
    fn commit(&mut self, bytes: &mut [u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let position = super::format::u64_at(bytes, at + 8);
            let first = super::format::padded(u32_at(bytes, at + 4) as usize);
            if first as u64 > self.shared.settings.segment_size() - DATA {
                self.leave_out(position, first);
                at += first;
                continue;
            }
            match self.write_some(&mut bytes[at..], position, first) {
                Ok(len) => {
                    self.healed();
                    at += len;
                    self.shared.state.lock().writing_since = Some(Instant::now());
                }
                Err(error) => {
                    if !self.failed(&error) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A record that fits into no file of this size must not keep everything behind it from the disk.
    fn leave_out(&self, position: u64, len: usize) {
        let what =
            format!("a record of {len} bytes fits into no file of the journal and is left out: raise journal.max_size");
        error!("journal: {what}");
        let mut state = self.shared.state.lock();
        state.counts.last_error = Some(what);
        state.counts.refused += 1;
        state.committed = state.committed.max(position);
        drop(state);
        self.shared.synced.send_replace(Position(position));
    }

    /// Writes as many records as one segment takes, and tells everybody. Returns their length.
    fn write_some(&mut self, bytes: &mut [u8], position: u64, first: usize) -> io::Result<usize> {
        let (generation, name, header, offset) = self.tail_for(position, first)?;
        let room = header.size - offset;
        let mut len = 0;
        while len < bytes.len() {
            let record = super::format::padded(u32_at(bytes, len + 4) as usize);
            if (len + record) as u64 > room || record as u64 > self.shared.settings.segment_size() - DATA {
                break;
            }
            len += record;
        }
        let part = &mut bytes[..len];
        record::seal(part, header.seed());
        let storage = &self.shared.storage;
        if let Err(error) = storage.write_at(&name, offset, part).and_then(|()| storage.sync(&name)) {
            self.tail = None;
            if let Some(segment) = self.shared.state.lock().segments.get_mut(&generation) {
                // where there is no room, or no right, the file itself is well
                segment.is_bad |= !is_lasting(&error);
            }
            return Err(error);
        }
        self.publish(part, generation);
        Ok(len)
    }

    /// The segment to write to, with room for at least `len` bytes.
    fn tail_for(&mut self, position: u64, len: usize) -> io::Result<(u64, String, Header, u64)> {
        if let Some(generation) = self.tail {
            let state = self.shared.state.lock();
            if let Some(tail) = state.segments.get(&generation)
                && tail.end + len as u64 <= tail.header.size
            {
                return Ok((generation, tail.name.clone(), tail.header, tail.end));
            }
        }
        self.roll(position)
    }

    /// Begins another segment.
    fn roll(&mut self, base: u64) -> io::Result<(u64, String, Header, u64)> {
        if self.begun >= self.snapshot_every() {
            self.snapshot()?;
        }
        let name = self.pick()?;
        let size = self.shared.settings.segment_size();
        self.generation += 1;
        let boot = self.shared.state.lock().boots.current;
        let header = Header { kind: FileKind::Segment, boot, generation: self.generation, salt: random(), size, base };
        let written =
            [0, HEADER_COPY].into_iter().try_for_each(|at| self.shared.storage.write_at(&name, at, &header.encode()));
        let mut segment = Segment::new(name.clone(), header);
        segment.is_bad = written.is_err();
        let mut state = self.shared.state.lock();
        state.segments.insert(self.generation, segment);
        (state.is_full, state.full_for) = (false, Default::default());
        state.counts.written_bytes += 2 * super::format::WHOLE_HEADER_LEN as u64;
        drop(state);
        written?;
        (self.tail, self.in_vain) = (Some(self.generation), None);
        self.begun = self.begun.saturating_add(1);
        Ok((self.generation, name, header, DATA))
    }

    /// A snapshot is worth its bytes when as many have been written since the one before.
    fn snapshot_every(&self) -> u32 {
        let settings = &self.shared.settings;
        let size = self.shared.state.lock().snapshot_bytes / settings.segment_size();
        let most = (settings.segments() / 2) as u32;
        u32::try_from(size).unwrap_or(u32::MAX).min(most).max(SNAPSHOT_EVERY)
    }

    /// A file that may be written to. Where the disk does not give one, nothing is given up: it may do so later.
    fn pick(&mut self) -> io::Result<String> {
        for _ in 0..2 {
            if let Some(name) = self.reuse() {
                return Ok(name);
            }
            let (count, uncovered) = {
                let mut state = self.shared.state.lock();
                if let Some(name) = state.spare.pop() {
                    return Ok(name);
                }
                (state.segments.len(), self.has_uncovered(&state))
            };
            if count < self.shared.settings.segments() {
                return self.make();
            }
            if !uncovered {
                break;
            }
            self.snapshot()?;
        }
        self.make_room()
    }

    /// Makes the next segment, full size at once, so that later writes need no metadata.
    pub(super) fn make(&mut self) -> io::Result<String> {
        let (name, size) = (segment::name(free_number(&self.shared.state.lock())), self.shared.settings.segment_size());
        self.shared.storage.create(&name, size)?;
        self.shared.state.lock().counts.written_bytes += size;
        Ok(name)
    }

    /// Whether a snapshot would set segments free.
    pub(super) fn has_uncovered(&self, state: &JournalState) -> bool {
        state.segments.iter().any(|(generation, segment)| {
            Some(*generation) != self.tail
                && segment.last > state.covered
                && !segment.is_needed(&state.queues, &state.by_key)
        })
    }

    /// Has the next file made while there is time: making one takes a card a good part of a second.
    fn prepare(&self, state: &mut JournalState) {
        let settings = &self.shared.settings;
        let Some(tail) = self.tail.and_then(|tail| state.segments.get(&tail)) else { return };
        let is_wanted = tail.end > tail.header.size / 2
            && state.spare.is_empty()
            && state.making.is_none()
            && state.segments.len() < settings.segments()
            && state.segments.iter().all(|(generation, segment)| {
                Some(*generation) == self.tail
                    || segment.last > state.covered
                    || segment.is_needed(&state.queues, &state.by_key)
            });
        if is_wanted {
            state.making = Some(segment::name(free_number(state)));
            self.shared.fill.notify_one();
        }
    }

    /// Takes a segment that nobody needs.
    pub(super) fn reuse(&self) -> Option<String> {
        loop {
            let mut guard = self.shared.state.lock();
            let state = &mut *guard;
            let (generation, _) = state.segments.iter().find(|(generation, segment)| {
                Some(**generation) != self.tail
                    && segment.last <= state.covered
                    && !segment.is_needed(&state.queues, &state.by_key)
            })?;
            let generation = *generation;
            let segment = state.segments.remove(&generation)?;
            if segment.is_bad && segment.records > 0 {
                let to = aside_name(state, &segment.name);
                drop(guard);
                let renamed = self.shared.storage.rename(&segment.name, &to);
                let mut state = self.shared.state.lock();
                let surplus = note_aside(&mut state, &segment.name, to, segment.header.size, renamed);
                if let Some(report) = state.reports.back() {
                    warn!("journal: {report}");
                }
                drop(state);
                self.remove(&surplus);
            } else if !segment.is_bad && state.keeps_file(segment.header.size, &self.shared.settings) {
                return Some(segment.name);
            } else {
                drop(guard);
                self.remove(&[segment.name]);
            }
        }
    }

    /// Writes a snapshot; returns how far each consumer was at that moment, by its key.
    pub(super) fn snapshot(&mut self) -> io::Result<HashMap<u64, u64>> {
        let contents = SnapshotContents::of(&self.shared.state.lock());
        let bytes = contents.write(&*self.shared.storage, random())?;
        let mut state = self.shared.state.lock();
        state.covered = contents.covered();
        state.snapshot_bytes = bytes;
        state.counts.written_bytes += bytes;
        state.counts.syncs += 1;
        state.writing_since = state.writing_since.map(|_| Instant::now());
        self.begun = 0;
        Ok(contents.bases())
    }

    /// What was written is safe: consumers and publishers get to know.
    fn publish(&self, bytes: &[u8], generation: u64) {
        let mut records = record::iter(bytes).peekable();
        let mut last = 0;
        while records.peek().is_some() {
            // in portions, so that publishers need not wait long for the lock
            let mut state = self.shared.state.lock();
            let mut behind = Vec::new();
            let room = state.has_room_ahead();
            for record in records.by_ref().take(256) {
                last = record.position();
                state.commit(&record, generation, room, &mut behind);
            }
            state.committed = last;
            if state.request_fills(&behind) {
                self.shared.fill.notify_one();
            }
            if records.peek().is_none() {
                self.prepare(&mut state);
                state.counts.written_bytes += bytes.len() as u64;
                state.counts.syncs += 1;
            }
        }
        self.shared.synced.send_replace(Position(last));
    }

    /// Reports a failed write the first time, and waits before the next attempt. Returns false when the journal ends instead.
    fn failed(&mut self, error: &io::Error) -> bool {
        let mut state = self.shared.state.lock();
        // what the disk says is another matter, and no look at what is free mends it
        state.is_full &= is_full(error);
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.retry > FIRST_RETRY || is_lasting(error) {
            let advice = match state.is_full {
                true => "journal.max_size is reached, and what waits must not be given up (journal.when_full)".into(),
                false => advice(error, &self.shared.storage.place()),
            };
            if state.failing.as_ref() != Some(&advice) {
                error!("journal: messages that must be kept are not acknowledged any more: {advice}");
                state.counts.last_error = Some(advice.clone());
                state.failing = Some(advice);
                state.show_failing();
            }
        }
        let is_first = self.retry == FIRST_RETRY && !is_lasting(error);
        let until = Instant::now() + if is_first { Duration::ZERO } else { self.retry };
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        loop {
            match state.stop {
                Some(Stop::Now) => return false,
                Some(Stop::Orderly) if since.elapsed() >= PATIENCE => {
                    error!(%error, "journal: stopped with messages unwritten; none of them was acknowledged");
                    return false;
                }
                _ => {}
            }
            let until = if state.stop.is_some() { until.min(since + PATIENCE) } else { until };
            // a consumer's cursor may have set space free, so every wake is worth a look
            if Instant::now() >= until || (state.is_full && !self.is_still_full(&state)) {
                return true;
            }
            self.shared.work.wait_until(&mut state, until);
        }
    }

    fn is_still_full(&self, state: &JournalState) -> bool {
        let is_free = state.segments.iter().any(|(generation, segment)| {
            Some(*generation) != self.tail && !segment.is_needed(&state.queues, &state.by_key)
        });
        !is_free && self.plan(state, usize::MAX).is_empty()
    }

    fn healed(&mut self) {
        let Some(since) = self.failing_since.take() else { return };
        self.retry = FIRST_RETRY;
        let mut state = self.shared.state.lock();
        state.is_full = false;
        if state.failing.take().is_some() {
            state.show_failing();
            warn!(seconds = since.elapsed().as_secs(), "journal: writes again; nothing acknowledged was lost");
        } else {
            warn!("journal: a write or sync failed; what was not safe has been written elsewhere");
        }
        drop(state);
        // where a directory has vanished, the snapshot has too
        if self.snapshot().is_err() {
            self.begun = u32::MAX;
        }
    }
}

/// A number that no segment's file has.
fn free_number(state: &JournalState) -> u32 {
    let names = state.segments.values().map(|segment| &segment.name);
    segment::free_number(names.chain(&state.making).chain(&state.spare).map(String::as_str))
}
