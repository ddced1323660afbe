//! Appends messages to the journal.

use parking_lot::MutexGuard;

use super::parts::usable;
use super::record::longest;
use super::state::JournalState;
use super::{ConsumerId, Extra, Full, Journal, Position, Shared};
use crate::message::Message;

impl Journal {
    /// Appends several messages under one lock.
    pub(crate) fn appender(&self) -> Appender<'_> {
        Appender { shared: &self.shared, state: None, count: 0, wakes: false }
    }
}

/// The number of messages after which other threads get a chance to take the lock.
const AT_ONCE: u32 = 32;

/// Appends messages under one lock. The lock is taken with the first message and held until this is dropped, so the same
/// thread must not use the journal otherwise in between. Threads that wait for the lock get it after every [`AT_ONCE`]
/// messages. The writing thread is woken once for all of them.
#[derive(Debug)]
pub(crate) struct Appender<'a> {
    shared: &'a Shared,
    state: Option<MutexGuard<'a, JournalState>>,
    /// The number of messages since other threads had a chance.
    count: u32,
    wakes: bool,
}

impl<'a> Appender<'a> {
    fn state(&mut self) -> &mut JournalState {
        let shared: &'a Shared = self.shared;
        let state = self.state.get_or_insert_with(|| shared.state.lock());
        if self.count == AT_ONCE {
            MutexGuard::bump(state);
            self.count = 0;
        }
        self.count += 1;
        state
    }

    /// See [`Journal::append_with`].
    pub(crate) fn append(
        &mut self,
        message: &Message,
        consumers: &[ConsumerId],
        extra: Extra,
    ) -> Result<Position, Full> {
        let shared: &'a Shared = self.shared;
        let position = self.state().append(message, consumers, extra, &shared.settings)?;
        self.wakes = true;
        Ok(position)
    }

    /// Keeps a retained message for which nobody waits, or deletes the one of its topic. It is written a little later,
    /// together with other records, and only if it still is the last of its topic by then. Fails only if it fits into no
    /// file.
    pub(crate) fn retain_later(&mut self, message: &Message) -> Result<(), Full> {
        let shared: &'a Shared = self.shared;
        let state = self.state();
        let was_due = state.pending.due().is_some();
        state.retain_later(message, &shared.settings)?;
        self.wakes |= !was_due;
        Ok(())
    }

    /// Whether a message for this number of consumers does not fit, however empty the journal is.
    pub(crate) fn is_too_large(&self, message: &Message, consumers: usize) -> bool {
        longest(message.size(), consumers) as u64 > usable(&self.shared.settings)
    }

    /// Records that this session's QoS 2 PUBLISH was received, if nobody needs the message itself.
    pub(crate) fn received(&mut self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
        self.wakes = true;
        self.state().append_received(id, packet_id)
    }
}

impl Drop for Appender<'_> {
    fn drop(&mut self) {
        let has_held = self.state.take().is_some();
        if has_held {
            #[cfg(test)]
            self.shared.appends.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        if self.wakes {
            self.shared.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use super::super::tests::{limits, message};
    use super::super::{Extra, Journal, WhenFull};

    #[test]
    fn others_get_the_lock_in_the_middle_of_a_long_batch() {
        let journal = Journal::default();
        let id = journal.register("upstream/a", limits(10, WhenFull::DropOldest));
        let (has_had, begun, asked) = (AtomicBool::new(false), AtomicBool::new(false), journal.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !begun.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                asked.backlog(id);
                has_had.store(true, Ordering::Release);
            });
            let mut appender = journal.appender();
            let since = Instant::now();
            while !has_had.load(Ordering::Acquire) && since.elapsed() < Duration::from_secs(60) {
                // whether there is room for it or not
                let _ = appender.append(&message(b"x"), &[id], Extra::default());
                begun.store(true, Ordering::Release);
            }
            assert!(has_had.load(Ordering::Acquire), "nobody else gets the lock before the batch ends");
        });
    }
}
