//! What the session asks the task of the upstream to do.

use crate::journal::Position;
use crate::message::{Qos, TopicFilter};
use crate::status::ledger::LedgerOutcome;
use crate::upstream::lanes::Lane;
use crate::upstream::wire::{OutMessage, RetainedWanted};

/// An action for the task of the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionAction {
    /// Hand this message to the connection.
    Publish(OutMessage),
    /// Record that the upstream has this message of a lane, by ordinal and packet id. PUBREL may leave when that is on disk.
    Record(Lane, u64, u16),
    /// Send PUBREL for this packet id.
    Release(u16),
    /// Settle this message in the journal.
    Settle(Lane, Position, LedgerOutcome),
    /// Read the journal again from the oldest unsettled message on.
    Rewind,
    /// Subscribe to these filters, in one packet.
    Subscribe(Vec<(TopicFilter, Qos)>, RetainedWanted),
    Unsubscribe(Vec<TopicFilter>),
    /// Ask the upstream for a sign of life.
    Ping,
    /// The upstream has deleted its retained message on this remote topic.
    Deleted(String),
    /// End the connection, because the upstream does not answer.
    Break,
    /// Connect anew, because packet ids of this connection stay in use.
    Renew,
    /// Append the message at this position once more, as the last of its lane, and settle the old one. See
    /// [`super::UpstreamSession::moving`].
    Move(Lane, Position),
    /// Put the message at this position onto the shelf, because no rule is for it. See
    /// [`super::UpstreamSession::unmeant`].
    Shelve(Lane, Position),
    /// The same because the upstream does not take its topic: see [`super::denied`].
    Deny(Lane, Position),
    /// Look for messages that were put aside because of their topic and that may go up now.
    TakeBack,
    /// Put the message at this position onto the shelf, because another connection may take packets of its size: see
    /// [`super::packet_limits`].
    KeepLarge(Lane, Position),
    /// Look for such messages that may go up now, or that no address takes any more.
    TakeBackLarge,
}
