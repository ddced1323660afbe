//! Merging: copies the needed records of a run of segments to fewer files.
//!
//! A run is merged from its oldest segment on. One file after the other is filled with needed records at their old
//! positions. It then stands for the segments that are completely in it, and for the beginning of the next one. `format`
//! explains why a power cut in between loses nothing. Consumers continue to read meanwhile.

use std::collections::HashMap;
use std::io;

use super::{Writer, random};
use crate::journal::format::{
    DATA, FLAG_RETAINED, FLAG_SECOND_HAND, FileKind, HEADER_COPY, Header, RecordKind, WHOLE_HEADER_LEN,
};
use crate::journal::log::Segment;
use crate::journal::parts::{Part, usable};
use crate::journal::record::{self, RecordDraft, RecordRef, Scanner};
use crate::journal::state::JournalState;

/// The most segments that are merged for one file if other messages may give way instead.
pub(crate) const CHEAP: usize = 4;
/// The number of bytes that are written at a time.
const BLOCK: usize = 256 * 1024;

/// Records that are being copied to another file.
#[derive(Default)]
struct Copied {
    bytes: Vec<u8>,
    /// What the file will hold, without its name and header.
    shares: Option<Segment>,
    /// The segments that are completely in it.
    whole: Vec<u64>,
    /// The segment that is partly in it, without that part.
    rest: Option<Segment>,
    upto: u64,
    /// Whether one of the segments cannot be read.
    is_damaged: bool,
}

impl Writer {
    /// Merges a run of at most `most` segments, and returns whether that has released a file. `None` means that there is
    /// nothing to merge.
    pub(super) fn merge(&mut self, most: usize) -> io::Result<Option<bool>> {
        let mut run = self.plan(&self.shared.state.lock(), most);
        if run.is_empty() {
            return Ok(None);
        }
        // a power cut must not bring back cursors that ask for records which are not copied any more
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
                // without that segment another run may be possible
                run = self.plan(&state, most);
                continue;
            }
            run.retain(|generation| !copied.whole.contains(generation));
            if let Err(error) = self.put(&name, copied) {
                // a file that cannot be removed is found again at the next start
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

    /// Chooses what to merge. The needed bytes of a segment are known only approximately, so a merge that has released
    /// nothing is not repeated until the size of a file is not needed any more.
    pub(super) fn plan(&self, state: &JournalState, most: usize) -> Vec<u64> {
        let settings = &self.shared.settings;
        let usage = || state.log.usage(&state.queues).all;
        if self.in_vain.is_some_and(|waiting| usage() + usable(settings) > waiting) {
            return Vec::new();
        }
        state.log.merge_plan(self.tail, &state.queues, settings, most)
    }

    /// Removes files beyond those that the journal may have.
    fn drop_surplus(&self) {
        let surplus = self.shared.state.lock().log.take_surplus(&self.shared.settings);
        self.remove(&surplus);
    }

    /// Removes files without the lock, because that takes time.
    pub(super) fn remove(&self, names: &[String]) {
        for name in names {
            // a file that cannot be removed is found again at the next start
            let _ = self.shared.storage.remove(name);
        }
    }

    /// Reads the needed records of a run of segments, as many as fit into one file.
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
                self.leave(segment.header.generation, scanner.unreadable > 0);
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

    /// Leaves a segment that cannot be merged as it is. The check of files reports what is wrong with it.
    fn leave(&self, generation: u64, is_unread: bool) {
        if self.shared.state.lock().log.leave(generation, is_unread) {
            self.shared.fill.notify_one();
        }
    }

    /// Writes the copied records to a file, which stands for its segments from then on.
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

/// Encodes a copied record with only those consumers that still need it.
fn encode(out: &mut Vec<u8>, record: &RecordRef<'_>, live: &[(u64, u64)]) {
    let retained = if record.is_retained() { FLAG_RETAINED } else { 0 };
    let flags = retained | if record.is_second_hand() { FLAG_SECOND_HAND } else { 0 };
    let draft = RecordDraft { kind: RecordKind::Message, flags, boot: record.boot(), body: &[record.body()] };
    record::encode(out, record.position(), &draft, live.iter().copied());
}
