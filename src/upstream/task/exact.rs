//! Steps of QoS 2 exchanges that wait for the disk.

use std::collections::VecDeque;

use tracing::warn;

use super::Upstream;
use crate::journal::{Full, Note, Position};
use crate::message::Qos;
use crate::upstream::lanes::Lane;
use crate::upstream::wire::{Ack, Link, UpstreamClient};

/// Steps of QoS 2 that wait for the disk before the next packet goes out.
#[derive(Debug, Default)]
pub(super) struct Exact {
    /// PUBREL leaves when this place is safe.
    releases: VecDeque<(Position, u16)>,
    /// Messages leave when this place is safe.
    forgotten: Option<Position>,
}

impl Exact {
    pub fn waits_for_disk(&self) -> bool {
        !self.releases.is_empty() || self.forgotten.is_some()
    }
}

impl<C: UpstreamClient> Upstream<C> {
    /// There is a connection. Where the upstream has forgotten our session, what it had received of messages in flight counts
    /// no more; whether the journal has taken that.
    pub(super) fn begin_exact(&mut self, link: &Link) -> bool {
        if self.session.is_exact() && link.max_qos < Qos::ExactlyOnce {
            let upstream = &self.name;
            warn!(upstream, "the upstream does not take QoS 2: messages of rules with qos = 2 may come there twice");
        }
        if link.session_present {
            return true;
        }
        let noted = self.forget_exchanges();
        if noted.is_err() || self.inbox.connected(false).is_err() {
            warn!(upstream = self.name, "the journal has no room to note that the upstream has forgotten our session");
            return false;
        }
        true
    }

    fn forget_exchanges(&mut self) -> Result<(), Full> {
        for lane in Lane::ALL {
            let consumer = self.consumers.id(lane);
            for ordinal in self.journal.released(consumer) {
                self.exact.forgotten = Some(self.journal.note(consumer, Note::Again(ordinal))?);
            }
        }
        Ok(())
    }

    /// The upstream has a message.
    pub(super) fn record(&mut self, lane: Lane, ordinal: u64, packet_id: u16) {
        let noted = self.journal.note(self.consumers.id(lane), Note::Released(ordinal));
        // where the journal takes nothing at all, going on empties it; a crash by then may double the message
        self.exact.releases.push_back((noted.unwrap_or_default(), packet_id));
    }

    /// Says PUBREL as far as PUBREC is safe; whether messages may leave.
    pub(super) fn release_safe(&mut self, synced: Position) -> bool {
        while let Some((position, packet_id)) = self.exact.releases.front().copied()
            && position <= synced
            && self.client.ack(Ack::Released(packet_id)).is_ok()
        {
            self.exact.releases.pop_front();
        }
        if self.exact.forgotten.is_some_and(|position| position <= synced) {
            self.exact.forgotten = None;
            self.readers.rewind();
        }
        self.exact.forgotten.is_none()
    }
}
