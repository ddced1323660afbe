//! Finds a file when all files that the journal may have are in use.

use std::io;

use super::Writer;
use super::merge::CHEAP;
use crate::journal::WhenFull;
use crate::journal::format::HEADER_COPY;

/// The error that the journal is full, and not the disk.
#[derive(Debug, thiserror::Error)]
#[error("the journal has reached journal.max_size")]
struct AtMaxSize;

/// Whether the journal is full, and not the disk.
pub(super) fn is_full(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|reason| reason.is::<AtMaxSize>())
}

impl Writer {
    /// Merges segments or drops messages until a file is free, or returns that there is no room.
    pub(super) fn make_room(&mut self) -> io::Result<String> {
        let settings = self.shared.settings.clone();
        let (mut is_cheap, mut merges, mut gave_way) = (true, true, false);
        loop {
            if let Some(name) = self.set_free()? {
                if gave_way {
                    self.shared.state.lock().counts.evict();
                }
                return Ok(name);
            }
            // files of another size were removed instead of reused
            if self.shared.state.lock().log.may_make(&settings) {
                return self.make();
            }
            if is_cheap && let Some(freed) = self.merge(CHEAP)? {
                is_cheap = freed;
                continue;
            }
            let mut state = self.shared.state.lock();
            if state.log.has_unread() {
                // a disk that does not read for a moment is no reason to drop what could be merged once it does
                return Err(io::Error::other("a file of the journal cannot be read at present"));
            }
            if state.orphans_give_way() {
                continue;
            }
            let refuses = settings.when_full == WhenFull::Refuse;
            let above = state.most_above(&settings);
            drop(state);
            if merges && (refuses || above.is_none_or(|(_, above)| above <= 0)) {
                // guaranteed messages, and those that must not be dropped, are worth more writing
                merges = self.merge(usize::MAX)? == Some(true);
                if merges || self.shared.state.lock().log.has_unread() {
                    continue;
                }
            }
            if refuses {
                self.shared.state.lock().space.set_full(true);
                return Err(io::Error::new(io::ErrorKind::StorageFull, AtMaxSize));
            }
            if !gave_way {
                self.probe()?;
            }
            if !above.is_some_and(|(part, _)| self.shared.state.lock().give_way(part)) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            gave_way = true;
        }
    }

    /// Checks whether the disk accepts what will follow, because a failing disk is no reason to drop messages.
    fn probe(&mut self) -> io::Result<()> {
        let state = self.shared.state.lock();
        let oldest = state.segments().next().map_or(0, |segment| segment.last);
        let tail = self.tail.and_then(|tail| state.log.get(tail)).map(|tail| (tail.name.clone(), tail.header));
        let is_covered = oldest <= state.log.covered();
        drop(state);
        match tail.filter(|_| is_covered && self.failing_since.is_none()) {
            Some((name, header)) => {
                self.shared.storage.write_at(&name, HEADER_COPY, &header.encode())?;
                self.shared.storage.sync(&name)
            }
            None => self.snapshot().map(drop),
        }
    }

    /// A file that nobody needs, if there is one. If only a missing snapshot prevents that, one is written first.
    fn set_free(&mut self) -> io::Result<Option<String>> {
        if let Some(name) = self.reuse().or_else(|| self.shared.state.lock().log.take_spare()) {
            return Ok(Some(name));
        }
        let uncovered = {
            let state = self.shared.state.lock();
            state.log.has_uncovered(self.tail, &state.queues)
        };
        if uncovered {
            self.snapshot()?;
        }
        Ok(self.reuse())
    }
}
