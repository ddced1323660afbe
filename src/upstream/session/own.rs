//! Messages that are not from the journal: the status, and those of a pass (see [`crate::upstream::retained`]).

use super::{OutMessage, SentMessage, SessionAction, UpstreamSession};

impl UpstreamSession {
    fn own_messages(&self) -> impl Iterator<Item = &SentMessage> {
        self.in_flight.iter().filter(|message| message.source.is_none() && message.gone_to.is_none())
    }

    /// The number of messages in flight that are not from the journal.
    pub(crate) fn own_in_flight(&self) -> usize {
        self.own_messages().count()
    }

    /// The number, on this connection, of the oldest message of a pass in flight.
    pub(crate) fn oldest_own(&self) -> Option<u64> {
        self.own_messages().filter(|message| !message.is_status).map(|message| message.number).min()
    }

    /// Whether one of them was not accepted, since the last call.
    pub(crate) fn take_own_put_off(&mut self) -> bool {
        std::mem::take(&mut self.own_put_off)
    }

    /// Sends a message that is not from the journal. Must be called only while there is room. Also returns its number on
    /// this connection.
    pub(crate) fn own(&mut self, out: OutMessage, now: u64) -> (u64, Vec<SessionAction>) {
        let mut message = SentMessage::new(None, now).with(&out, now);
        self.count_handed(&mut message);
        let number = message.number;
        self.opening.sends(out.qos);
        self.in_flight.push_back(message);
        self.throttle.count(now);
        (number, vec![SessionAction::Publish(out)])
    }
}
