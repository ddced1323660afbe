//! Security events: signs that somebody tries to get in or to take what belongs to others.
//!
//! They have their own log target, `pigateway::security`, and counters in the metrics. Those that are warnings have reserved
//! places among the problems on the web page. Each kind of event has its own limit of log lines, and within it one source
//! has only a few. So a flood of one kind or from one source hides neither another kind nor another source. Of many sources
//! at once the first sixteen are shown.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::warn;

use super::Access;
use super::guesses::network;
use super::limiter::Limiter;

pub(crate) use crate::health::SECURITY as TARGET;
/// Log lines in a minute for one kind, and for one source within it.
const LINES: usize = 64;
const LINES_OF_ONE: usize = 4;

/// The kinds of security events. Each has its own limit of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecurityKind {
    WrongPassword,
    /// A client used a client id that belongs to another user.
    ForeignClientId,
    /// A client has reached a limit that keeps room for others.
    Quota,
}

impl SecurityKind {
    /// All kinds. The order must be that of the discriminants.
    pub(crate) const ALL: [SecurityKind; 3] =
        [SecurityKind::WrongPassword, SecurityKind::ForeignClientId, SecurityKind::Quota];

    /// The name in log and metrics.
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

/// Counts the events and decides which are logged.
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
    /// Counts an event caused from this address. Returns how many equal ones were not logged if this one is to be logged,
    /// and `None` otherwise.
    pub(crate) fn happened(&self, kind: SecurityKind, from: IpAddr, what: impl Hash) -> Option<u64> {
        let channel = &self.channels[kind as usize];
        channel.count.fetch_add(1, Ordering::Relaxed);
        channel.limiter.due(network(from), what)
    }

    /// The number of events that no log line has shown or counted, if it is time to log it.
    fn left_out(&self, kind: SecurityKind) -> Option<u64> {
        self.channels[kind as usize].limiter.left_out()
    }

    pub(crate) fn count(&self, kind: SecurityKind) -> u64 {
        self.channels[kind as usize].count.load(Ordering::Relaxed)
    }
}

impl Access {
    /// Logs the number of events that have no log line of their own; to be called every few seconds.
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
        // one attacker that comes from everywhere at once
        for number in 0..10_000u32 {
            security.happened(SecurityKind::Quota, IpAddr::from(number.to_be_bytes()), 0);
        }
        assert_eq!(security.happened(SecurityKind::WrongPassword, flood, "ada"), Some(0));
        assert_eq!([security.count(SecurityKind::Quota), security.count(SecurityKind::WrongPassword)], [20_001, 1]);
    }
}
