//! What is known of the message at which connections end, and whether others go first.

use super::super::sent::SentFrom;
use crate::journal::Position;
use crate::upstream::lanes::Lane;

/// The number of connections in a row that end at a message before others go first.
const ENDS: u32 = 2;

/// The message at which the last connections ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndedAt {
    pub(super) place: (Lane, Position),
    pub(super) size: usize,
    /// The number of these connections.
    pub(super) ends: u32,
    /// The number of those on which others were acknowledged.
    pub(super) with_others: u32,
    /// The number of connections on which others went first and did not get through either.
    pub(super) tries: u32,
    /// Whether others go first on the next connection.
    pub(super) others_first: bool,
    /// Whether messages at QoS 2 are like it.
    pub(super) is_exact: bool,
}

impl EndedAt {
    /// What is known after a connection has ended at this message.
    pub(super) fn after(before: Option<EndedAt>, source: &SentFrom, got_through: bool, trial: Trial) -> EndedAt {
        let place = (source.lane, source.position);
        let before = before.filter(|before| before.place == place);
        let ends = before.map_or(0, |before| before.ends) + 1;
        EndedAt {
            place,
            size: source.message.size(),
            ends,
            with_others: before.map_or(0, |before| before.with_others) + u32::from(got_through),
            tries: before.map_or(0, |before| before.tries),
            others_first: ends >= ENDS && (!got_through || trial != Trial::None),
            is_exact: false,
        }
    }
}

/// Whether others go first on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::upstream::session) enum Trial {
    #[default]
    None,
    /// Others go first, as soon as the message is there.
    Runs,
    /// This one of the same topic goes first, and is sent again in its turn.
    Of(Lane, Position),
    /// It has ended, and messages are sent in order.
    Ended,
}

impl Trial {
    pub(super) fn is_on(self) -> bool {
        matches!(self, Trial::Runs | Trial::Of(..))
    }

    pub(super) fn end(&mut self) {
        if self.is_on() {
            *self = Trial::Ended;
        }
    }

    /// Records whether another message was acknowledged.
    pub(in crate::upstream::session) fn others_arrive(&mut self, is_acked: bool) {
        if is_acked {
            self.end();
        }
    }
}
