//! The writing thread.
//!
//! It takes all waiting records, writes them after the existing ones, syncs once, and only then tells consumers and
//! publishers. Records that cannot be written are tried again elsewhere, at growing intervals. A failed sync tells nothing
//! about what is on disk, so its segment is closed, and everything since the last successful sync is written to another one.

mod merge;
mod space;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use self::space::is_full;
use super::format::{DATA, FileKind, HEADER_COPY, Header, WHOLE_HEADER_LEN, padded, u32_at, u64_at};
use super::log::Segment;
use super::record;
use super::snapshot::SnapshotContents;
use super::state::{JournalState, Stop};
use super::trouble::{NotRead, advice, is_lasting, is_taken, unread};
use super::{PENDING_MAX, Position, Shared};

/// A snapshot is written after this number of segments, or when they are as large as the previous snapshot, because a start
/// must read them.
const SNAPSHOT_EVERY: u32 = 4;
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long an orderly end waits for a failing disk.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the thread must do next.
enum WriterAction {
    Write,
    End,
}

/// The state of the writing thread.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// The generation of the segment that is being written.
    tail: Option<u64>,
    generation: u64,
    /// The number of segments begun since the last snapshot.
    begun: u32,
    retry: Duration,
    failing_since: Option<Instant>,
    /// The waiting bytes when a merge of everything possible released nothing; reset when a segment begins.
    in_vain: Option<u64>,
    /// A file that was not read at the start: nothing may be written beside it.
    unread: Option<NotRead>,
}

fn random() -> u64 {
    let mut salt = [0; 8];
    // without randomness, only the generation distinguishes old bytes from new ones
    let _ = getrandom::fill(&mut salt);
    u64::from_le_bytes(salt)
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Writer {
        let mut state = shared.state.lock();
        let generation = state.log.segments().last_key_value().map_or(0, |(generation, _)| *generation);
        let tail = state.log.open_tail().filter(|tail| !tail.is_bad).map(|tail| tail.header.generation);
        for report in state.reports.iter() {
            if report.is_loss() { error!("journal: {report}") } else { info!("journal: {report}") }
        }
        let met = state.trouble.take_met();
        if let Some(error) = &met {
            state.trouble.begin(advice(error, &shared.storage.place()));
        }
        drop(state);
        let unread = met.as_ref().and_then(unread).cloned();
        let failing_since = met.map(|_| Instant::now());
        Writer { shared, tail, generation, begun: 0, retry: FIRST_RETRY, failing_since, in_vain: None, unread }
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut bytes = Vec::new();
        let mut is_ending = false;
        while let WriterAction::Write = self.wait(&mut bytes, &mut is_ending) {
            if !self.commit(&mut bytes) {
                return;
            }
            let mut state = self.shared.state.lock();
            state.pending.written();
            state.space.changed();
            drop(state);
            bytes.clear();
            if bytes.capacity() > PENDING_MAX / 4 {
                bytes = Vec::new(); // a burst is over
            }
        }
    }

    /// Waits for something to write, and takes it.
    fn wait(&self, bytes: &mut Vec<u8>, is_ending: &mut bool) -> WriterAction {
        let mut state = self.shared.state.lock();
        loop {
            let now = Instant::now();
            match state.stopping() {
                Some(Stop::Now) => return WriterAction::End,
                Some(Stop::Orderly) => {
                    if state.queues.are_worth_saving() && !*is_ending {
                        state.push_cursors(true);
                    }
                    *is_ending = true;
                    if state.pending.due().is_none() {
                        return WriterAction::End;
                    }
                    state.take_pending(bytes, (&*self.shared.clock.0, &self.shared.settings), now);
                    return WriterAction::Write;
                }
                None => {}
            }
            let idle = state.queues.idle_until();
            if idle.is_some_and(|idle| idle <= now) || state.queues.are_due() {
                state.push_cursors(false);
            }
            if state.pending.due().is_some_and(|due| due <= now) {
                state.take_pending(bytes, (&*self.shared.clock.0, &self.shared.settings), now);
                return WriterAction::Write;
            }
            match [state.pending.due(), idle].into_iter().flatten().min() {
                Some(until) => drop(self.shared.work.wait_until(&mut state, until)),
                None => self.shared.work.wait(&mut state),
            }
        }
    }

    /// Writes and syncs records, and returns whether to continue.
    fn commit(&mut self, bytes: &mut [u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let position = u64_at(bytes, at + 8);
            let first = padded(u32_at(bytes, at + 4) as usize);
            if first as u64 > self.shared.settings.segment_size() - DATA {
                self.leave_out(position, first);
                at += first;
                continue;
            }
            match self.write_some(&mut bytes[at..], position, first) {
                Ok(len) => {
                    self.healed();
                    at += len;
                    self.shared.state.lock().pending.progressed();
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

    /// Leaves out a record that fits into no file of this size, because it must not block all later ones.
    fn leave_out(&self, position: u64, len: usize) {
        let what =
            format!("a record of {len} bytes fits into no file of the journal and is left out: raise journal.max_size");
        error!("journal: {what}");
        let mut state = self.shared.state.lock();
        state.trouble.note(what);
        state.counts.refuse();
        state.log.commit(position);
        drop(state);
        self.shared.synced.send_replace(Position(position));
    }

    /// Writes as many records as one segment holds, and tells consumers and publishers. Returns their length in bytes.
    fn write_some(&mut self, bytes: &mut [u8], position: u64, first: usize) -> io::Result<usize> {
        if let Some(unread) = &self.unread {
            return Err(unread.clone().into());
        }
        let (generation, name, header, offset) = self.tail_for(position, first)?;
        let room = header.size - offset;
        let mut len = 0;
        while len < bytes.len() {
            let record = padded(u32_at(bytes, len + 4) as usize);
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
            // if there is no space or no permission, the file itself is not damaged
            if !is_lasting(&error) {
                self.shared.state.lock().log.set_bad(generation);
            }
            if error.kind() == io::ErrorKind::NotFound {
                self.forget_missing();
            }
            return Err(error);
        }
        self.publish(part, generation);
        Ok(len)
    }

    /// The segment to write to, with room for at least `len` bytes.
    fn tail_for(&mut self, position: u64, len: usize) -> io::Result<(u64, String, Header, u64)> {
        if let Some(generation) = self.tail {
            let room = self.shared.state.lock().log.room_in(generation, len);
            if let Some((name, header, offset)) = room {
                return Ok((generation, name, header, offset));
            }
        }
        self.roll(position)
    }

    /// Forgets the files that have gone, so that none of them is tried again.
    fn forget_missing(&self) {
        if let Ok(files) = self.shared.storage.list() {
            self.shared.state.lock().log.forget_missing(|name| files.iter().any(|(file, _)| file == name));
        }
    }

    fn roll(&mut self, base: u64) -> io::Result<(u64, String, Header, u64)> {
        if self.begun >= self.snapshot_every() {
            self.snapshot()?;
        }
        let name = self.pick()?;
        let size = self.shared.settings.segment_size();
        self.generation += 1;
        let boot = self.shared.state.lock().boots.number();
        let header = Header { kind: FileKind::Segment, boot, generation: self.generation, salt: random(), size, base };
        let written =
            [0, HEADER_COPY].into_iter().try_for_each(|at| self.shared.storage.write_at(&name, at, &header.encode()));
        let mut segment = Segment::new(name.clone(), header);
        segment.is_bad = written.is_err();
        let mut state = self.shared.state.lock();
        state.log.insert(segment);
        state.space.set_full(false);
        state.space.changed();
        state.counts.wrote(2 * WHOLE_HEADER_LEN as u64, 0);
        drop(state);
        written?;
        (self.tail, self.in_vain) = (Some(self.generation), None);
        self.begun = self.begun.saturating_add(1);
        Ok((self.generation, name, header, DATA))
    }

    /// The number of segments after which a snapshot is worth its bytes: as many as it has must have been written since the
    /// last one.
    fn snapshot_every(&self) -> u32 {
        let settings = &self.shared.settings;
        let size = self.shared.state.lock().log.snapshot_bytes() / settings.segment_size();
        let most = (settings.segments() / 2) as u32;
        u32::try_from(size).unwrap_or(u32::MAX).min(most).max(SNAPSHOT_EVERY)
    }

    /// A file that may be written. If the disk does not provide one, nothing is dropped, because it may do so later.
    fn pick(&mut self) -> io::Result<String> {
        for _ in 0..2 {
            if let Some(name) = self.reuse() {
                return Ok(name);
            }
            let (may_make, uncovered) = {
                let mut state = self.shared.state.lock();
                if let Some(name) = state.log.take_spare() {
                    return Ok(name);
                }
                (state.log.may_make(&self.shared.settings), state.log.has_uncovered(self.tail, &state.queues))
            };
            if may_make {
                return self.make();
            }
            if !uncovered {
                break;
            }
            self.snapshot()?;
        }
        self.make_room()
    }

    /// Creates the next segment at its full size, so that later writes need no metadata.
    fn make(&mut self) -> io::Result<String> {
        let size = self.shared.settings.segment_size();
        loop {
            let name = self.shared.state.lock().log.free_name();
            let made = self.shared.storage.create(&name, size);
            let mut state = self.shared.state.lock();
            match made {
                Err(error) if is_taken(&error) => state.log.note_taken(name),
                Err(error) => return Err(error),
                Ok(()) => {
                    state.counts.wrote(size, 0);
                    return Ok(name);
                }
            }
        }
    }

    /// Requests the next file in advance, because creating one takes a card a good part of a second.
    fn prepare(&self, state: &mut JournalState) {
        let JournalState { log, queues, .. } = state;
        if self.tail.is_some_and(|tail| log.prepare(tail, queues, &self.shared.settings)) {
            self.shared.fill.notify_one();
        }
    }

    /// Takes a segment that nobody needs.
    fn reuse(&self) -> Option<String> {
        loop {
            let mut guard = self.shared.state.lock();
            let JournalState { log, queues, .. } = &mut *guard;
            let segment = log.take_unneeded(self.tail, queues)?;
            if segment.is_bad && segment.records > 0 {
                let to = log.aside_name(&segment.name);
                drop(guard);
                let renamed = self.shared.storage.rename(&segment.name, &to);
                if renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    // nobody needs it, and it has gone
                    continue;
                }
                let mut state = self.shared.state.lock();
                let surplus = state.set_aside(segment.name, to, segment.header.size, renamed);
                if let Some(report) = state.reports.iter().next_back() {
                    warn!("journal: {report}");
                }
                drop(state);
                self.remove(&surplus);
            } else if !segment.is_bad && log.keeps_file(segment.header.size, &self.shared.settings) {
                return Some(segment.name);
            } else {
                drop(guard);
                self.remove(&[segment.name]);
            }
        }
    }

    /// Writes a snapshot, and returns the progress of each consumer at that moment by its key.
    fn snapshot(&mut self) -> io::Result<HashMap<u64, u64>> {
        let mut state = self.shared.state.lock();
        let contents = SnapshotContents::of(&state);
        state.later.are_in_log();
        drop(state);
        let bytes = contents.write(&*self.shared.storage, random())?;
        let mut state = self.shared.state.lock();
        state.log.cover(contents.covered());
        state.log.note_snapshot(bytes);
        state.counts.wrote(bytes, 1);
        state.pending.progressed();
        self.begun = 0;
        Ok(contents.bases())
    }

    /// Tells consumers and publishers that these records are on disk.
    fn publish(&self, bytes: &[u8], generation: u64) {
        let mut records = record::iter(bytes).peekable();
        let mut last = 0;
        while records.peek().is_some() {
            // in portions, so that publishers need not wait long for the lock
            let mut state = self.shared.state.lock();
            let mut behind = Vec::new();
            let room = state.queues.have_room_ahead();
            for record in records.by_ref().take(256) {
                last = record.position();
                state.commit(&record, generation, room, &mut behind);
            }
            state.log.commit(last);
            if state.queues.request_fills(&behind) {
                self.shared.fill.notify_one();
            }
            if records.peek().is_none() {
                self.prepare(&mut state);
                state.counts.wrote(bytes.len() as u64, 1);
            }
        }
        self.shared.synced.send_replace(Position(last));
    }

    /// Reports a failed write the first time, and waits before the next attempt. Returns `false` if the journal ends.
    fn failed(&mut self, error: &io::Error) -> bool {
        let mut state = self.shared.state.lock();
        // other errors of the disk are not solved by free space
        let is_full = state.space.is_full() && is_full(error);
        state.space.set_full(is_full);
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if self.retry > FIRST_RETRY || is_lasting(error) {
            state.trouble.begin(match is_full {
                true => "journal.max_size is reached, and what waits must not be given up (journal.when_full)".into(),
                false => advice(error, &self.shared.storage.place()),
            });
        }
        let is_first = self.retry == FIRST_RETRY && !is_lasting(error);
        let until = Instant::now() + if is_first { Duration::ZERO } else { self.retry };
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        loop {
            match state.stopping() {
                Some(Stop::Now) => return false,
                Some(Stop::Orderly) if since.elapsed() >= PATIENCE => {
                    error!(%error, "journal: stopped with messages unwritten; none of them was acknowledged");
                    return false;
                }
                _ => {}
            }
            let until = if state.stopping().is_some() { until.min(since + PATIENCE) } else { until };
            // a moved cursor may have released space, so every wake is worth a check
            if Instant::now() >= until || (state.space.is_full() && !self.is_still_full(&state)) {
                return true;
            }
            self.shared.work.wait_until(&mut state, until);
        }
    }

    fn is_still_full(&self, state: &JournalState) -> bool {
        !state.log.has_unneeded(self.tail, &state.queues) && self.plan(state, usize::MAX).is_empty()
    }

    fn healed(&mut self) {
        let Some(since) = self.failing_since.take() else { return };
        self.retry = FIRST_RETRY;
        let mut state = self.shared.state.lock();
        state.space.set_full(false);
        if state.trouble.end() {
            warn!(seconds = since.elapsed().as_secs(), "journal: writes again; nothing acknowledged was lost");
        } else {
            warn!("journal: a write or sync failed; what was not safe has been written elsewhere");
        }
        drop(state);
        // if the directory has vanished, the snapshot has too
        if self.snapshot().is_err() {
            self.begun = u32::MAX;
        }
    }
}
