//! What one address of an upstream has taught says nothing about the others, which may be other brokers.
//! A connection that has taught something is worth another one soon.

use super::limits::LearnedLimits;
use super::opening::SessionOpening;
use super::refusals::RememberedRefusal;
use super::{SessionAction, UpstreamSession};

/// After what time the status is said again to an upstream that had no room for it, in milliseconds.
const STATUS_AGAIN_MS: u64 = 10_000;

/// What is known of the addresses that are not in use.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// The index of the address in use.
    address: usize,
    others: Vec<(usize, LearnedThere)>,
    /// The address of the last connection that was accepted.
    last: Option<usize>,
    /// When the status is said again, because that address has changed or the upstream had no room for it.
    status_due: Option<u64>,
    /// Whether the last connection has taught something, which the next one does better.
    pub(super) is_news: bool,
}

/// What one address has taught.
#[derive(Debug, Default)]
struct LearnedThere {
    retain_refused: RememberedRefusal,
    exact_refused: RememberedRefusal,
    opening: SessionOpening,
    limits: LearnedLimits,
}

impl Learned {
    /// Forgets the other addresses, because rules or settings have changed.
    pub(super) fn forget(&mut self) {
        self.others.clear();
    }

    /// Handles a new connection. If the addresses lead to one cluster, the node from before may still publish the will when it
    /// misses us, which is after one and a half times the keep alive [MQTT-3.1.2-24]. So the status is said again after that.
    pub(super) fn connected(&mut self, keep_alive_ms: u64, now: u64) {
        if self.last.replace(self.address).is_some_and(|last| last != self.address) {
            self.status_due = Some(now + 2 * keep_alive_ms);
        }
    }
}

impl UpstreamSession {
    /// Chooses the address of the next connection.
    pub(crate) fn at_address(&mut self, address: usize) {
        self.packet_limits.at_address(address);
        if self.learned.address == address {
            return;
        }
        let known = self.learned.others.iter().position(|(other, _)| *other == address);
        let known = known.map(|at| self.learned.others.swap_remove(at));
        let (_, known) = known.unwrap_or_default();
        let before = std::mem::replace(&mut self.learned.address, address);
        let there = LearnedThere {
            retain_refused: std::mem::replace(&mut self.retain_refused, known.retain_refused),
            exact_refused: std::mem::replace(&mut self.exact_refused, known.exact_refused),
            opening: std::mem::replace(&mut self.opening, known.opening),
            limits: std::mem::replace(&mut self.limits, known.limits),
        };
        self.throttle.slow_down(self.limits.interval());
        self.learned.others.push((before, there));
        self.try_denied();
    }

    /// When the status is said again on this connection.
    pub(super) fn status_deadline(&self) -> Option<u64> {
        self.learned.status_due.filter(|_| self.link.is_some())
    }

    /// Says the status again later, because the upstream has no room for it at present.
    pub(super) fn say_status_later(&mut self, now: u64) {
        // what is due because of the address must not come before its time
        self.learned.status_due = self.learned.status_due.max(Some(now + STATUS_AGAIN_MS));
    }

    /// Says the status again when that is due.
    pub(super) fn status_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.link.is_some() && self.learned.status_due.take_if(|due| *due <= now).is_some() {
            self.say_status_again(now, actions);
        }
    }
}
