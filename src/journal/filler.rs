//! The reading thread: reads from disk what consumers get next, and otherwise checks what was not read at the start.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::error;

use super::boots::Boots;
use super::consumers::{AHEAD_BYTES, FoundMessage};
use super::format::{Header, RecordKind};
use super::record::Scanner;
use super::report::Report;
use super::state::JournalState;
use super::trouble::is_taken;
use super::{ConsumerId, Position, Shared};

/// The times after which unreadable data is tried again before it counts as damage.
const READ_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// The bytes that are read ahead for a consumer if there is not enough memory for all.
const SMALL_PORTION: usize = 16 * 1024;

/// Where reading for a consumer has stopped.
#[derive(Clone, Copy, Debug)]
struct ReadPosition {
    /// The salt of the file, because a reused file of the same generation is a different one.
    salt: u64,
    offset: u64,
    last: u64,
}

/// A request to read the next messages of a consumer.
struct Job {
    key: u64,
    generation: u64,
    name: String,
    header: Header,
    /// The end of what is on disk, and the highest position there.
    end: u64,
    last: u64,
    /// The first position that is needed.
    from: u64,
    most: usize,
    boots: Boots,
}

/// The state of the reading thread.
pub(super) struct Filler {
    shared: Arc<Shared>,
    places: HashMap<ConsumerId, ReadPosition>,
    /// Segments that could not be read, with the number of attempts and the time of the next one.
    unread: HashMap<u64, (usize, Option<Instant>)>,
    /// Since when a segment cannot be read for consumers.
    failed: HashMap<u64, Instant>,
    /// Consumers that wait for such a segment, with the time of the next attempt.
    later: Vec<(ConsumerId, Instant)>,
}

impl Filler {
    pub(super) fn new(shared: Arc<Shared>) -> Filler {
        Filler { shared, places: HashMap::new(), unread: HashMap::new(), failed: HashMap::new(), later: Vec::new() }
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        let shared = self.shared.clone();
        loop {
            let mut state = shared.state.lock();
            if state.stopping().is_some() {
                return;
            }
            if let Some(id) = state.queues.next_fill() {
                drop(state);
                self.fill(id);
            } else if let Some(name) = state.log.making().cloned() {
                drop(state);
                self.make(&name);
            } else if let Some(generation) = state.log.next_to_check() {
                drop(state);
                self.verify(generation);
            } else if let Some(due) = self.next_attempt() {
                if shared.fill.wait_until(&mut state, due).timed_out() {
                    let now = Instant::now();
                    state.log.check(self.unread_by(now));
                    self.later.extract_if(.., |(_, due)| *due <= now).for_each(|(id, _)| state.queues.fill_again(id));
                }
            } else {
                shared.fill.wait(&mut state);
            }
        }
    }

    /// When something that could not be read is tried again.
    fn next_attempt(&self) -> Option<Instant> {
        let checks = self.unread.values().filter_map(|(_, due)| *due);
        checks.chain(self.later.iter().map(|(_, due)| *due)).min()
    }

    /// The segments to try again now.
    fn unread_by(&mut self, now: Instant) -> Vec<u64> {
        let due = self.unread.iter_mut().filter(|(_, (_, due))| due.is_some_and(|due| due <= now));
        due.map(|(generation, (_, due))| (*generation, *due = None).0).collect()
    }

    /// Creates the next file. If that fails, the writing thread notices when it needs one.
    fn make(&self, name: &str) {
        let size = self.shared.settings.segment_size();
        let made = self.shared.storage.create(name, size);
        let mut state = self.shared.state.lock();
        if let Err(error) = made {
            state.log.forget_made();
            if is_taken(&error) {
                state.log.note_taken(name.into());
            }
        } else if state.log.made(&self.shared.settings) {
            state.counts.wrote(size, 0);
        } else {
            // the file keeps its name until it is removed, so that no other file of that name is removed instead
            drop(state);
            let _ = self.shared.storage.remove(name);
            self.shared.state.lock().log.forget_made();
        }
    }

    /// Reads ahead for a consumer until it has enough or there is no more.
    fn fill(&mut self, id: ConsumerId) {
        while let Some(job) = self.job(id) {
            let (found, place, is_unread) = self.read(&job, self.places.get(&id).copied());
            let mut state = self.shared.state.lock();
            if is_unread && let Some(pause) = pause_before(&mut self.failed, job.generation) {
                self.failed.retain(|generation, _| state.log.get(*generation).is_some());
                self.later.push((id, Instant::now() + pause));
                return;
            }
            if !is_unread {
                self.failed.remove(&job.generation);
            }
            let is_there = state.log.get(job.generation).is_some_and(|segment| segment.header.salt == job.header.salt);
            let Some(queue) = state.queues.get_mut(id) else { return };
            // a segment that was given up meanwhile may have been overwritten during the read
            if is_there && queue.filled(job.from, place.last, found) {
                self.places.insert(id, place);
            }
        }
    }

    /// What to read next for a consumer; `None` if nothing.
    fn job(&mut self, id: ConsumerId) -> Option<Job> {
        let mut guard = self.shared.state.lock();
        let state: &mut JournalState = &mut guard;
        let most = if state.queues.have_room_ahead() { AHEAD_BYTES } else { SMALL_PORTION };
        let Some(queue) = state.queues.get_mut(id) else {
            self.places.remove(&id);
            return None;
        };
        let from = queue.next_to_read()?;
        let Some(segment) = state.log.next_for(queue.key(), queue.base(), from) else {
            queue.caught_up();
            state.space.changed();
            self.places.remove(&id);
            return None;
        };
        queue.asks_for_fill();
        Some(Job {
            key: queue.key(),
            generation: segment.header.generation,
            name: segment.name.clone(),
            header: segment.header,
            end: segment.end,
            last: segment.last,
            from,
            most,
            boots: state.boots.clone(),
        })
    }

    /// Reads what a job asks for. Returns it with the place where to continue, and whether the disk has not read all of it.
    fn read(&self, job: &Job, place: Option<ReadPosition>) -> (Vec<FoundMessage>, ReadPosition, bool) {
        let mut scanner = Scanner::new(&*self.shared.storage, &job.name, &job.header, job.end);
        if let Some(place) = place.filter(|place| place.salt == job.header.salt && place.last < job.from) {
            scanner.seek(place.offset, place.last);
        }
        let mut at = ReadPosition { salt: job.header.salt, offset: scanner.offset(), last: job.last };
        let (mut found, mut bytes, mut reached) = (Vec::new(), 0, 0);
        while let Some((offset, record)) = scanner.next_record() {
            let position = record.position();
            reached = position;
            if position > job.last {
                break;
            }
            at.offset = offset + record.padded_len() as u64;
            if position < job.from || record.kind() != Some(RecordKind::Message) {
                continue;
            }
            let Some((_, ordinal)) = record.consumers().find(|(key, _)| *key == job.key) else { continue };
            if let Some(message) = job.boots.translate(record.body(), record.boot(), &*self.shared.clock.0) {
                bytes += message.size();
                let handed_over = record.is_second_hand();
                found.push(FoundMessage { position: Position(position), ordinal, message, handed_over });
            }
            if bytes >= job.most {
                at.last = position;
                break;
            }
        }
        let is_unread = scanner.unreadable > 0 && (scanner.damage.places > 0 || reached < at.last);
        (found, at, is_unread)
    }

    /// Reads a segment to its end and reports damage.
    fn verify(&mut self, generation: u64) {
        let found = self.shared.state.lock().log.get(generation).cloned();
        let times = self.unread.remove(&generation).map_or(0, |(times, _)| times);
        let Some(segment) = found else { return };
        let mut scanner = Scanner::new(&*self.shared.storage, &segment.name, &segment.header, segment.end);
        let mut records = 0;
        while scanner.next_record().is_some() {
            records += 1;
        }
        let (damage, rest) = (scanner.damage, segment.end.saturating_sub(scanner.offset()));
        let is_whole = damage.places == 0 && rest == 0 && records == segment.records;
        if !is_whole
            && scanner.unreadable > 0
            && let Some(pause) = READ_AGAIN.get(times)
        {
            // cards and cables have temporary faults
            self.unread.insert(generation, (times + 1, Some(Instant::now() + *pause)));
            return;
        }
        let mut state = self.shared.state.lock();
        if !state.log.checked(&segment, is_whole) || is_whole {
            return;
        }
        let report = Report::Damaged {
            file: segment.name,
            places: damage.places + u32::from(rest > 0),
            bytes: damage.bytes + rest,
            records: segment.records.saturating_sub(records),
        };
        error!("journal: {report}");
        state.reports.add(report);
    }
}

/// How long to wait before a segment that was not read is read again for a consumer; `None` if it counts as damaged.
fn pause_before(failed: &mut HashMap<u64, Instant>, generation: u64) -> Option<Duration> {
    let failing = failed.entry(generation).or_insert_with(Instant::now).elapsed();
    let mut until = Duration::ZERO;
    READ_AGAIN.into_iter().find(|pause| {
        until += *pause;
        failing < until
    })
}
