//! How messages come in.

use parking_lot::MutexGuard;

use super::state::State;
use super::{ConsumerId, Extra, Full, Journal, Position, Shared};
use crate::message::Message;

impl Journal {
    /// Appends several messages one after the other.
    pub fn appender(&self) -> Appender<'_> {
        Appender { shared: &self.shared, state: None, wakes: false }
    }
}

/// Appends messages under one lock, which is taken with the first and held until this is dropped: nothing else of the
/// journal may be asked meanwhile. The writing thread is woken once for all of them.
#[derive(Debug)]
pub struct Appender<'a> {
    shared: &'a Shared,
    state: Option<MutexGuard<'a, State>>,
    wakes: bool,
}

impl<'a> Appender<'a> {
    fn state(&mut self) -> &mut State {
        let shared: &'a Shared = self.shared;
        self.state.get_or_insert_with(|| shared.state.lock())
    }

    /// See [`Journal::append_with`].
    pub fn append(&mut self, message: &Message, consumers: &[ConsumerId], extra: Extra) -> Result<Position, Full> {
        let shared: &'a Shared = self.shared;
        let state = self.state();
        let was_due = state.pending.due.is_some();
        let position = state.append(message, consumers, extra, &shared.settings)?;
        self.wakes |= !was_due || !extra.lazy;
        Ok(position)
    }

    /// Notes that this session's QoS 2 PUBLISH was received, where nobody needs the message itself.
    pub fn received(&mut self, id: ConsumerId, packet_id: u16) -> Result<Position, Full> {
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
