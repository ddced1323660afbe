//! Memory for packets that are being received.

use bytes::{Buf, BytesMut};
use tokio::time::{Duration, Instant};
use tracing::warn;

use super::{BrokerConnection, ConnectionEnd, Reason};
use crate::access::guesses::network;
use crate::exchange::receiving::{FREE, Reservation};
use crate::mqtt::whole_size;

/// The interval at which a late packet is checked for others that wait for its memory.
const LOOK: Duration = Duration::from_secs(1);

impl BrokerConnection {
    /// Whether there is memory for the packet that begins in `input`. A large packet gets all its memory at once, so that
    /// the buffer does not grow in steps.
    pub(super) fn has_memory(&mut self, input: &mut BytesMut) -> bool {
        let Some(size) = whole_size(input).filter(|size| *size > FREE) else { return true };
        let most = self.core.settings.load().max_packet_size;
        // a packet that is too large is not read at all
        let size = size.min(most.max(FREE));
        let (books, holder) = (self.core.ingress.receiving(), &self.holder);
        let reservation = self.receiving.get_or_insert_with(|| books.ask(holder.clone(), size));
        let is_granted = reservation.is_granted();
        if is_granted {
            input.reserve(size.saturating_sub(input.len()));
        }
        is_granted
    }

    /// Removes `count` bytes from `input`. The buffer of a large packet is released with the packet, because the rest does
    /// not show how large it was.
    pub(super) fn consume(&self, input: &mut BytesMut, count: usize) {
        let was_large = input.capacity() > 2 * FREE;
        input.advance(count);
        if self.receiving.is_none() && was_large {
            *input = BytesMut::from(&input[..]);
        }
    }

    /// The memory of a packet of this size that is processed in more than one turn.
    pub(super) fn memory_of(&mut self, size: usize) -> Option<Reservation> {
        self.unplaced.pop_if(|_| size > FREE)
    }

    /// Records that more of the packet has arrived.
    pub(super) fn has_moved(&mut self, bytes: usize) {
        if let Some(reservation) = &mut self.receiving {
            reservation.has_moved(bytes);
        }
    }

    /// Records that the gateway itself does not read at present. The packet is not late then, and does not block others that
    /// wait for memory.
    pub(super) fn is_not_read(&mut self) {
        self.receiving.take_if(|reservation| reservation.overdue_at().is_none());
        if let Some(reservation) = &mut self.receiving {
            reservation.is_not_read();
        }
    }

    /// Whether the packet waits for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.receiving.as_ref().is_some_and(|reservation| reservation.overdue_at().is_none())
    }

    /// When to check whether others wait for the memory of a packet that does not make progress.
    pub(super) fn is_late_at(&self) -> Option<Instant> {
        let overdue = self.receiving.as_ref()?.overdue_at()?;
        Some(overdue.max(Instant::now() + LOOK))
    }

    /// Ends a client that does not continue a large packet while others wait for its memory.
    pub(super) fn give_way(&self) -> Result<(), ConnectionEnd> {
        if !self.receiving.as_ref().is_some_and(|reservation| reservation.is_overdue()) {
            return Ok(());
        }
        let client_id = &*self.identity.client_id;
        if let Some(more_since_last) = self.core.access.limiter.due(network(self.address), (client_id, "late")) {
            warn!(
                client_id,
                more_since_last,
                "disconnected: it has held memory for a large packet that comes too slowly while others wait to send theirs"
            );
        }
        Err(ConnectionEnd::Ended(Reason::QUOTA_EXCEEDED))
    }
}
