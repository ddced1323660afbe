//! Merging: what somebody still needs of a run of segments is put together in fewer files.
//!
//! A run is merged from its oldest segment on. One file after the other is filled with records that are needed, with
//! their places, and stands from then on for the segments that are all in it, and for the beginning of the one after these.
//! `format` says what a power cut can do in between: nothing. Consumers go on reading meanwhile.

use std::collections::HashMap;
use std::io;

use super::{Writer, random};
use crate::journal::format::{DATA, FLAG_RETAINED, FileKind, HEADER_COPY, Header, RecordKind, WHOLE_HEADER_LEN};
use crate::journal::log::Segment;
use crate::journal::parts::{Part, usable};
use crate::journal::record::{self, RecordDraft, RecordRef, Scanner};
use crate::journal::state::JournalState;

/// Segments that may be merged for one file, where somebody may give way instead.
pub(crate) const CHEAP: usize = 4;
/// Bytes written at a time.
const BLOCK: usize = 256 * 1024;

/// Records that are on their way to another file.
#[derive(Default)]
struct Copied {
    bytes: Vec<u8>,
    /// What the file will hold, without its name and header.
    shares: Option<Segment>,
    /// Segments that are all in it.
    whole: Vec<u64>,
    /// The segment that is in it in part, as it is without that part.
    rest: Option<Segment>,
    upto: u64,
    /// One of the segments cannot be read.
    is_damaged: bool,
}

impl Writer {
    /// Merges a run of at most so many segments; says whether that has set a file free. `None`: there is nothing to merge.
    pub(super) fn merge(&mut self, most: usize) -> io::Result<Option<bool>> {
        let mut run = self.plan(&self.shared.state.lock(), most);
        if run.is_empty() {
            return Ok(None);
        }
        // what a power cut leaves must not ask for what is not copied any more
        let bases = self.snapshot()?;
        let before = self.shared.state.lock().log.segments().len();
        while !run.is_empty() {
            let spare = self.shared.state.lock().log.take_spare();
            let name = match spare {
                Some(name) => name,
                None => self.make()?,
            };
            let copied = self.copy(&run, &bases);
            if copied.whole.is_empty() {
                let mut state = self.shared.state.lock();
                state.log.add_spare(name);
                if !copied.is_damaged {
                    break;
                }
                // without that segment another run may do
                run = self.plan(&state, most);
                continue;
            }
            run.retain(|generation| !copied.whole.contains(generation));
            if let Err(error) = self.put(&name, copied) {
                // what cannot be removed is found again at the next start
                let _ = self.shared.storage.remove(&name);
                return Err(error);
            }
            if self.shared.state.lock().log.segments().len() < before {
                break;
            }
        }
        self.drop_surplus();
        let state = self.shared.state.lock();
        let is_less = state.log.segments().len() < before;
        if !is_less && most == usize::MAX {
            self.in_vain = Some(state.log.usage(&state.queues).all);
        }
        Ok(Some(is_less))
    }

    /// What to merge. What is needed of a segment is known only about: a merge that has set nothing free is not tried again
    /// before as much as a file takes is not needed any more.
    pub(super) fn plan(&self, state: &JournalState, most: usize) -> Vec<u64> {
        let settings = &self.shared.settings;
        let usage = || state.log.usage(&state.queues).all;
        if self.in_vain.is_some_and(|waiting| usage() + usable(settings) > waiting) {
            return Vec::new();
        }
        state.log.merge_plan(self.tail, &state.queues, settings, most)
    }

    /// Files beyond those that the journal may have.
    fn drop_surplus(&self) {
        let surplus = self.shared.state.lock().log.take_surplus(&self.shared.settings);
        self.remove(&surplus);
    }

    /// Removes files, which takes its time: nobody shall wait for that.
    pub(super) fn remove(&self, names: &[String]) {
        for name in names {
            // what cannot be removed is found again at the next start
            let _ = self.shared.storage.remove(name);
        }
    }

    /// Reads what is needed of a run of segments, as much as one file takes.
    fn copy(&self, run: &[u64], bases: &HashMap<u64, u64>) -> Copied {
        let (room, mut copied) = (usable(&self.shared.settings) as usize, Copied::default());
        let (segments, parts): (Vec<Segment>, HashMap<u64, Part>) = {
            let state = self.shared.state.lock();
            let parts = state.queues.iter().map(|(_, queue)| (queue.key(), queue.part()));
            (run.iter().filter_map(|at| state.log.get(*at)).cloned().collect(), parts.collect())
        };
        let Some(first) = segments.first() else { return copied };
        let mut shares = Segment::new(String::new(), first.header);
        shares.from = first.from;
        for segment in segments {
            let mut scanner = Scanner::new(&*self.shared.storage, &segment.name, &segment.header, segment.end);
            let mut rest: Option<Segment> = None;
            let begin = copied.bytes.len();
            while let Some((_, record)) = scanner.next_record() {
                let position = record.position();
                if position > segment.last || position < segment.from || record.kind() != Some(RecordKind::Message) {
                    continue;
                }
                let live: Vec<(u64, u64)> = record
                    .consumers()
                    .filter(|(key, ordinal)| bases.get(key).is_some_and(|base| base < ordinal))
                    .collect();
                if rest.is_none() && !live.is_empty() {
                    let at = copied.bytes.len();
                    encode(&mut copied.bytes, &record, &live);
                    if copied.bytes.len() > room {
                        copied.bytes.truncate(at);
                        rest = Some(segment.without_contents());
                        copied.upto = position - 1;
                    }
                }
                let to = rest.as_mut().unwrap_or(&mut shares);
                if !live.is_empty() {
                    to.add_message(&record, |key| parts.get(&key).copied());
                }
            }
            if scanner.damage.places > 0 || scanner.unreadable > 0 || scanner.offset() < segment.end {
                copied.bytes.truncate(begin);
                self.leave(segment.header.generation);
                copied.whole.clear();
                copied.is_damaged = true;
                return copied;
            }
            if let Some(mut rest) = rest {
                rest.from = copied.upto + 1;
                copied.rest = Some(rest);
                break;
            }
            copied.upto = segment.last;
            copied.whole.push(segment.header.generation);
        }
        copied.shares = Some(shares);
        copied
    }

    /// A segment cannot be merged: it stays as it is for its consumers, and the check of files says what is wrong with it.
    fn leave(&self, generation: u64) {
        if self.shared.state.lock().log.leave(generation) {
            self.shared.fill.notify_one();
        }
    }

    /// Writes what was copied to a file, which stands for its segments from then on.
    fn put(&self, name: &str, mut copied: Copied) -> io::Result<()> {
        let (Some(shares), Some(generation)) = (copied.shares, copied.whole.last().copied()) else { return Ok(()) };
        let storage = &self.shared.storage;
        let size = self.shared.settings.segment_size();
        let boot = self.shared.state.lock().boots.number();
        let (salt, base) = (random(), shares.from);
        let header = Header { kind: FileKind::Merging, boot, generation, salt, size, base };
        let write_header = |header: &Header| {
            let bytes = header.encode();
            [0, HEADER_COPY].into_iter().try_for_each(|at| storage.write_at(name, at, &bytes))?;
            storage.sync(name)
        };
        write_header(&header)?;
        record::seal(&mut copied.bytes, header.seed());
        for (at, part) in copied.bytes.chunks(BLOCK).enumerate() {
            storage.write_at(name, DATA + (at * BLOCK) as u64, part)?;
        }
        storage.sync(name)?;
        let guard = self.shared.state.lock();
        let first = copied.whole.first().and_then(|first| guard.log.get(*first)).map(Segment::first_generation);
        drop(guard);
        let kind = FileKind::Merged { first: first.unwrap_or(generation), upto: copied.upto };
        let header = Header { kind, ..header };
        write_header(&header)?;
        let (written, end) = (copied.bytes.len() + 4 * WHOLE_HEADER_LEN, DATA + copied.bytes.len() as u64);
        let merged = shares.written_as(name.into(), header, end, record::iter(&copied.bytes).count() as u64);
        let mut state = self.shared.state.lock();
        state.counts.wrote(written as u64, 3);
        let unfit = state.log.replace(merged, &copied.whole, copied.rest, size);
        state.pending.progressed();
        drop(state);
        self.remove(&unfit);
        Ok(())
    }
}

/// A record as it is copied: for those alone that still need it.
fn encode(out: &mut Vec<u8>, record: &RecordRef<'_>, live: &[(u64, u64)]) {
    let flags = if record.is_retained() { FLAG_RETAINED } else { 0 };
    let draft = RecordDraft { kind: RecordKind::Message, flags, boot: record.boot(), body: &[record.body()] };
    record::encode(out, record.position(), &draft, live.iter().copied());
}
