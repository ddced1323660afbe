//! What one address of an upstream has taught says nothing about the others, which may be other brokers.
//! A connection that has taught something is worth another one soon.

use super::UpstreamSession;
use super::opening::SessionOpening;

/// What is known of the addresses that are not in use.
#[derive(Debug, Default)]
pub(super) struct Learned {
    /// The index of the address in use.
    address: usize,
    others: Vec<(usize, LearnedThere)>,
    /// Whether the last connection has taught something, which the next one does better.
    pub(super) is_news: bool,
}

/// What one address has taught.
#[derive(Debug, Default)]
struct LearnedThere {
    retain_refused: bool,
    exact_refused: bool,
    opening: SessionOpening,
}

impl Learned {
    /// Forgets the other addresses, because rules or settings have changed.
    pub(super) fn forget(&mut self) {
        self.others.clear();
    }
}

impl UpstreamSession {
    /// Chooses the address of the next connection.
    pub(crate) fn at_address(&mut self, address: usize) {
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
        };
        self.learned.others.push((before, there));
        self.try_denied();
    }
}
