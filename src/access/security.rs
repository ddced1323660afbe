//! Security events: what a person looks for who asks whether somebody tries to get in or to take what belongs to others.
//!
//! They have a log target of their own, `pigateway::security`, counters in the metrics, and, where they are
//! warnings, places among the problems of the page that others cannot take. Each kind has its own bound of log lines, and of
//! these a source has only a few: a flood of one kind, or of one source, hides neither another kind nor another source. Of
//! many sources at once the first sixteen are seen.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use super::Access;
use super::guesses::network;
use super::limiter::Limiter;

pub(crate) use crate::health::SECURITY as TARGET;
/// Log lines of a kind in a minute, and of these those of one source.
const LINES: usize = 64;
const LINES_OF_ONE: usize = 4;

/// What makes a person look at the log: each kind has bounds of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecurityKind {
    /// A wrong user name or password.
    WrongPassword,
    /// A client id that belongs to another user.
    ForeignClientId,
    /// Somebody has reached a bound that keeps room for others.
    Quota,
}

impl SecurityKind {
    /// Every kind, in the order of its channel.
    pub(crate) const ALL: [SecurityKind; 3] =
        [SecurityKind::WrongPassword, SecurityKind::ForeignClientId, SecurityKind::Quota];

    /// What log and metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            SecurityKind::WrongPassword => "wrong_password",
            SecurityKind::ForeignClientId => "foreign_client_id",
            SecurityKind::Quota => "quota",
        }
    }
}

#[derive(Debug)]
struct Channel {
    count: AtomicU64,
    limiter: Limiter,
}

/// Counts them, and says which are logged.
#[derive(Debug)]
pub(crate) struct Security {
    channels: [Channel; 3],
}

impl Default for Security {
    fn default() -> Self {
        let channel = || Channel { count: AtomicU64::new(0), limiter: Limiter::new(LINES, LINES_OF_ONE) };
        Security { channels: [channel(), channel(), channel()] }
    }
}

impl Security {
    /// One has happened, caused from this address. Whether it is to be logged, and how many like it were not.
    pub(crate) fn happened(&self, kind: SecurityKind, from: IpAddr, what: impl Hash) -> Option<u64> {
        let channel = &self.channels[kind as usize];
        channel.count.fetch_add(1, Ordering::Relaxed);
        channel.limiter.due(network(from), what)
    }

    /// How many have no line of their own and are in no count of one, if it is time to say so.
    fn left_out(&self, kind: SecurityKind) -> Option<u64> {
        self.channels[kind as usize].limiter.left_out()
    }

    /// How many there have been.
    pub(crate) fn count(&self, kind: SecurityKind) -> u64 {
        self.channels[kind as usize].count.load(Ordering::Relaxed)
    }
}

impl Access {
    /// Sums up in the log what has no line of its own there; to be called every few seconds.
    pub(crate) fn sum_up(&self) {
        if let Some(left_out) = self.limiter.left_out() {
            warn!(left_out, "more of what clients did wrong than has lines here");
        }
        for kind in SecurityKind::ALL {
            if let Some(left_out) = self.security.left_out(kind) {
                warn!(target: TARGET, kind = kind.name(), left_out, "more security events than have lines here");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_hides_neither_another_source_nor_another_kind() {
        let security = Security::default();
        let flood = IpAddr::from([192, 0, 2, 1]);
        let lines = (0..10_000).filter(|what| security.happened(SecurityKind::Quota, flood, what).is_some()).count();
        assert_eq!(lines, LINES_OF_ONE);
        assert_eq!(security.happened(SecurityKind::Quota, IpAddr::from([192, 0, 2, 2]), 0), Some(0));
        // one that is everywhere at once
        for number in 0..10_000u32 {
            security.happened(SecurityKind::Quota, IpAddr::from(number.to_be_bytes()), 0);
        }
        assert_eq!(security.happened(SecurityKind::WrongPassword, flood, "ada"), Some(0));
        assert_eq!([security.count(SecurityKind::Quota), security.count(SecurityKind::WrongPassword)], [20_001, 1]);
    }
}
