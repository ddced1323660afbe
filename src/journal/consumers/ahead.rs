//! Counts the messages that were read ahead and not handed out, for one consumer and for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes of all consumers. Every batch on disk asks for them, so they are counted as they change and not summed up,
/// which would take long with thousands of consumers.
#[derive(Debug, Default)]
pub(super) struct AheadOfAll(Arc<AtomicUsize>);

impl AheadOfAll {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// The count of a new consumer.
    pub(super) fn one(&self) -> Ahead {
        Ahead { bytes: 0, all: self.0.clone() }
    }
}

/// The bytes of one consumer, which are subtracted from those of all when it is dropped.
#[derive(Debug)]
pub(super) struct Ahead {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Ahead {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.all.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn clear(&mut self) {
        self.sub(self.bytes);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_consumers_have_is_in_the_sum_until_they_are_gone() {
        let all = AheadOfAll::default();
        let (mut one, mut other) = (all.one(), all.one());
        one.add(100);
        other.add(7);
        one.sub(30);
        assert_eq!((one.bytes(), other.bytes(), all.bytes()), (70, 7, 77));
        one.clear();
        assert_eq!((one.bytes(), all.bytes()), (0, 7));
        one.add(5);
        drop(other);
        assert_eq!(all.bytes(), 5);
    }
}
