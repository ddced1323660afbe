//! The values of one topic filter.
//!
//! Thousands of clients or groups may have the same filter, and each of them leaves it one day. So if there are more than a
//! few values, their places are known by what identifies them, and to remove one costs the same however many there are.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;

use smallvec::SmallVec;

/// Up to this number of values all of them are looked at.
const FEW: usize = 32;

/// A value of a topic filter.
pub trait FilterValue {
    /// What identifies it among the values of one filter. Values with the same key may replace one another.
    type Key: Debug + Eq + Hash;

    /// Its key.
    fn key(&self) -> Self::Key;
}

impl FilterValue for usize {
    type Key = usize;

    fn key(&self) -> usize {
        *self
    }
}

/// The values of one filter, in any order.
#[derive(Debug)]
pub(super) struct FilterValues<V: FilterValue> {
    all: Vec<V>,
    /// The places of the values; `None` if they are few.
    places: Option<Box<ValuePlaces<V::Key>>>,
}

/// Where the values are in the list of all.
#[derive(Debug)]
struct ValuePlaces<K> {
    /// The places of the values with each key.
    of: HashMap<K, SmallVec<[u32; 2]>>,
    /// For each place, its index in the list above.
    within: Vec<u32>,
}

impl<V: FilterValue> FilterValues<V> {
    pub(super) const fn none() -> FilterValues<V> {
        FilterValues { all: Vec::new(), places: None }
    }

    pub(super) fn as_slice(&self) -> &[V] {
        &self.all
    }

    pub(super) fn push(&mut self, value: V) {
        if self.all.is_empty() {
            self.all.reserve_exact(1);
        }
        if let Some(places) = &mut self.places {
            places.add(value.key());
        }
        self.all.push(value);
        if self.all.len() > FEW && self.places.is_none() {
            let mut places = Box::new(ValuePlaces { of: HashMap::new(), within: Vec::new() });
            self.all.iter().for_each(|value| places.add(value.key()));
            self.places = Some(places);
        }
    }

    /// Removes a value with this key.
    pub(super) fn remove(&mut self, key: &V::Key) -> Option<V> {
        let Some(places) = &mut self.places else {
            let at = self.all.iter().position(|value| value.key() == *key)?;
            return Some(self.take(at));
        };
        let at = places.remove(key)?;
        let removed = self.all.swap_remove(at);
        if let Some(moved) = self.all.get(at) {
            places.moved(&moved.key(), at);
        }
        // well below the number at which the places are noted, so that not every change crosses it
        if self.all.len() < FEW / 2 {
            self.places = None;
        }
        Some(removed)
    }

    fn take(&mut self, at: usize) -> V {
        let removed = self.all.swap_remove(at);
        if self.all.is_empty() {
            self.all = Vec::new();
        }
        removed
    }
}

impl<K: Eq + Hash> ValuePlaces<K> {
    /// Adds a value at the end.
    fn add(&mut self, key: K) {
        let of_key = self.of.entry(key).or_default();
        of_key.push(self.within.len() as u32);
        self.within.push(of_key.len() as u32 - 1);
    }

    /// Removes a value with this key, and returns its place, which the last value takes.
    fn remove(&mut self, key: &K) -> Option<usize> {
        let of_key = self.of.get_mut(key)?;
        let at = of_key.pop()? as usize;
        if of_key.is_empty() {
            self.of.remove(key);
        }
        self.within.swap_remove(at);
        Some(at)
    }

    /// Records that the value with this key, which was the last of all, is at another place now.
    fn moved(&mut self, key: &K, to: usize) {
        if let Some(place) = self.of.get_mut(key).and_then(|of_key| of_key.get_mut(self.within[to] as usize)) {
            *place = to as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A value that has its key in common with others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Keyed(u8, usize);

    impl FilterValue for Keyed {
        type Key = u8;

        fn key(&self) -> u8 {
            self.0
        }
    }

    proptest! {
        #[test]
        fn what_is_removed_is_one_of_those_with_the_key(changes in prop::collection::vec((any::<bool>(), 0..60_u8), 1..400)) {
            let (mut values, mut expected) = (FilterValues::none(), Vec::new());
            for (number, (is_new, key)) in changes.into_iter().enumerate() {
                if is_new {
                    values.push(Keyed(key, number));
                    expected.push(Keyed(key, number));
                } else {
                    let removed = values.remove(&key);
                    prop_assert_eq!(removed.map(|value| value.0), expected.iter().find(|value| value.0 == key).map(|_| key));
                    expected.retain(|value| Some(*value) != removed);
                }
                let mut left = values.as_slice().to_vec();
                left.sort_by_key(|value| value.1);
                prop_assert_eq!(&left, &expected);
            }
        }
    }

    #[test]
    fn a_removal_looks_at_one_key() {
        use std::cell::Cell;

        thread_local!(static ASKED: Cell<usize> = const { Cell::new(0) });
        #[derive(Debug)]
        struct Asked(usize);
        impl FilterValue for Asked {
            type Key = usize;

            fn key(&self) -> usize {
                ASKED.set(ASKED.get() + 1);
                self.0
            }
        }
        let mut values = FilterValues::none();
        (0..10_000).for_each(|number| values.push(Asked(number)));
        ASKED.set(0);
        (FEW..10_000).for_each(|number| assert!(values.remove(&number).is_some()));
        assert!(ASKED.get() <= 10_000, "{} keys for 10,000 removals", ASKED.get());
    }
}
