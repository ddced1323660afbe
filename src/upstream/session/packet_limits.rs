//! Messages that are larger than the present address of an upstream takes (Maximum Packet Size, [MQTT-3.2.2-15]).
//!
//! The limit belongs to the connection: another address may be a broker of its own, and one that is being upgraded may announce
//! less for a while. So what an address takes is the most that it has announced, until all of its connections in
//! [`SMALLER_MS`] have announced less. A message that one of the addresses may take, or one of which nothing is known yet, is
//! put onto a shelf in the journal ([`crate::upstream::shelf`]), where it uses no memory and holds up nothing, and comes back on a
//! connection that takes it. It is dropped only when the present connection does not take it, and no address is known to take
//! more, or unknown.

use tracing::warn;

use super::{SessionAction, UpstreamSession};
use crate::message::Message;
use crate::status::ledger::{DropReason, LedgerOutcome};
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};

/// After this time with a smaller limit the address is believed, in milliseconds.
pub(crate) const SMALLER_MS: u64 = 3_600_000;

/// What an address takes.
#[derive(Clone, Copy, Debug)]
struct AddressLimit {
    /// The size of the largest packet, in bytes.
    takes: usize,
    /// The most that it has announced since it has announced less than that, and when it began to, in milliseconds of the boot
    /// clock.
    smaller: Option<(usize, u64)>,
}

/// What is known of the limits of all addresses.
#[derive(Debug, Default)]
pub(super) struct PacketLimits {
    addresses: Vec<UpstreamAddress>,
    known: Vec<Option<AddressLimit>>,
    /// The index of the present address.
    present: usize,
    /// What the present connection takes; 0 without one.
    here: usize,
    /// All that lies on the shelf is larger than this.
    shelf_above: usize,
    /// Whether it was said on this connection that messages are put aside.
    is_said: bool,
}

impl PacketLimits {
    /// Forgets what is known of other addresses than these.
    pub(super) fn set_settings(&mut self, settings: &UpstreamSettings) {
        if self.addresses != settings.addresses {
            self.addresses.clone_from(&settings.addresses);
            self.known = vec![None; self.addresses.len()];
        }
    }

    /// Chooses the address of the next connection.
    pub(super) fn at_address(&mut self, address: usize) {
        self.present = address;
    }

    /// Handles a connection that takes packets up to `limit` bytes.
    pub(super) fn connected(&mut self, limit: Option<u32>, now: u64) {
        let limit = limit.map_or(usize::MAX, |limit| limit as usize);
        (self.here, self.is_said) = (limit, false);
        let Some(slot) = self.known.get_mut(self.present) else { return };
        match slot {
            Some(known) if limit < known.takes => {
                let (most, since) = known.smaller.unwrap_or((0, now));
                known.smaller = Some((most.max(limit), since));
            }
            _ => *slot = Some(AddressLimit { takes: limit, smaller: None }),
        }
        self.time(now);
    }

    pub(super) fn disconnected(&mut self) {
        self.here = 0;
    }

    /// When the present address is believed that it takes less than before.
    pub(super) fn deadline(&self) -> Option<u64> {
        let (_, since) = self.known.get(self.present).copied().flatten()?.smaller.filter(|_| self.here > 0)?;
        Some(since + SMALLER_MS)
    }

    /// Tells that the time is `now`. Returns whether the present address is believed from now on that it takes less.
    pub(super) fn time(&mut self, now: u64) -> bool {
        let is_due = self.deadline().is_some_and(|due| due <= now);
        if is_due
            && let Some(Some(known)) = self.known.get_mut(self.present)
            && let Some((takes, _)) = known.smaller.take()
        {
            known.takes = takes;
        }
        is_due
    }

    /// Whether another connection may take packets that the present one does not, of at least these bytes.
    fn may_take(&self, least: usize) -> bool {
        let takes = |known: &Option<AddressLimit>| known.is_none_or(|it| it.takes >= least && it.takes > self.here);
        self.known.iter().any(takes)
    }

    /// Whether the shelf must be looked through: because some of it may go up, or because nobody takes it.
    pub(super) fn wants_look(&self) -> bool {
        self.here > self.shelf_above || !self.may_take(self.shelf_above.saturating_add(1))
    }

    /// Records that all of the shelf was looked at, or that nothing is there.
    pub(super) fn has_looked(&mut self) {
        self.shelf_above = self.here;
    }
}

impl UpstreamSession {
    /// The least number of bytes of the packet of a message; `None` if no rule is for it.
    fn least_size(&self, message: &Message) -> Option<usize> {
        let view = message.view();
        self.rules.outgoing(view.topic()).map(|target| target.topic.len() + view.payload().len())
    }

    /// Puts a message onto the shelf that this connection does not take because of its size, if another one may. Returns it
    /// otherwise.
    pub(super) fn keep_for_others(
        &mut self,
        place: (super::Lane, super::Position),
        message: Message,
        actions: &mut Vec<SessionAction>,
    ) -> Option<Message> {
        if !self.least_size(&message).is_some_and(|least| self.packet_limits.may_take(least)) {
            return Some(message);
        }
        self.packet_limits.shelf_above = self.packet_limits.shelf_above.min(self.packet_limits.here);
        if !std::mem::replace(&mut self.packet_limits.is_said, true) {
            let (upstream, most, topic) = (&self.name, self.packet_limits.here, message.view().topic());
            warn!(
                upstream,
                topic,
                most,
                "this address takes packets of at most so many bytes: larger messages are kept until a connection takes them, or \
                 no address of the upstream does, and they are the first to give way when the journal is full"
            );
        }
        self.unmeant.push((place.0, place.1, message));
        actions.push(SessionAction::KeepLarge(place.0, place.1));
        None
    }

    /// Counts a message as dropped that is too large for this connection, because there is no room to keep it for others.
    pub(crate) fn drop_large(&mut self, message: &Message) -> LedgerOutcome {
        let why = "it is larger than this address takes, and there is no room to keep it for the others";
        self.counts.add_loss(&self.name, DropReason::TooLarge, message.view().topic(), why);
        LedgerOutcome::Dropped(DropReason::TooLarge)
    }

    /// Whether a message on the shelf goes back to its lane: because this connection may take it, or because none does, so
    /// that it is dropped.
    pub(crate) fn takes_back_large(&self, message: &Message) -> bool {
        self.least_size(message)
            .is_none_or(|least| least <= self.packet_limits.here || !self.packet_limits.may_take(least))
    }

    /// Whether the shelf of large messages must be looked through on this connection.
    pub(crate) fn wants_large(&self) -> bool {
        self.packet_limits.wants_look()
    }

    /// Records that all large messages on the shelf were looked at, or that there are none.
    pub(crate) fn took_back_large(&mut self) {
        self.packet_limits.has_looked();
    }
}
