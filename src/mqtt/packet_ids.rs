//! Which packet ids are in use.

use std::fmt;

use smallvec::SmallVec;

/// The most ids that are kept as a list.
const FEW: usize = 32;
/// When there are no more ids than this, a bitmap becomes a list again. The distance to [`FEW`] keeps a client with about
/// that many ids from allocating a bitmap for each message.
const FEW_AGAIN: usize = FEW / 2;
/// The words of a bitmap of all packet ids.
const WORDS: usize = (1 << 16) / u64::BITS as usize;

/// A set of packet ids: a sorted list, or a bitmap of 8 KiB if there are more than a few. A client of MQTT 3 may use all
/// 65,535 ids at once, which would take half a megabyte in a tree.
#[derive(Clone, Default)]
pub(crate) struct PacketIds(PacketIdStore);

#[derive(Clone)]
enum PacketIdStore {
    List(SmallVec<[u16; FEW]>),
    Bitmap { words: Box<[u64]>, count: usize },
}

impl Default for PacketIdStore {
    fn default() -> PacketIdStore {
        PacketIdStore::List(SmallVec::new())
    }
}

/// The word of an id, and its bit there.
fn place(id: u16) -> (usize, u64) {
    let id = u32::from(id);
    ((id / u64::BITS) as usize, 1 << (id % u64::BITS))
}

/// The ids in a word of a bitmap, in ascending order.
fn ids_in(at: usize, word: u64) -> impl Iterator<Item = u16> {
    let first = at * u64::BITS as usize;
    let some = |word: u64| (word != 0).then_some(word);
    // each step clears the lowest bit
    let steps = std::iter::successors(some(word), move |word| some(word & (word - 1)));
    steps.map(move |word| (first + word.trailing_zeros() as usize) as u16)
}

impl PacketIds {
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            PacketIdStore::List(list) => list.len(),
            PacketIdStore::Bitmap { count, .. } => *count,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn contains(&self, id: u16) -> bool {
        match &self.0 {
            PacketIdStore::List(list) => list.binary_search(&id).is_ok(),
            PacketIdStore::Bitmap { words, .. } => {
                let (at, bit) = place(id);
                words[at] & bit != 0
            }
        }
    }

    /// Adds an id, and returns whether it is new.
    pub(crate) fn insert(&mut self, id: u16) -> bool {
        match &mut self.0 {
            PacketIdStore::List(list) => {
                let Err(at) = list.binary_search(&id) else { return false };
                if list.len() < FEW {
                    list.insert(at, id);
                    return true;
                }
                let mut words = vec![0; WORDS].into_boxed_slice();
                for known in list.iter().chain([&id]) {
                    let (at, bit) = place(*known);
                    words[at] |= bit;
                }
                self.0 = PacketIdStore::Bitmap { words, count: FEW + 1 };
                true
            }
            PacketIdStore::Bitmap { words, count } => {
                let (at, bit) = place(id);
                let is_new = words[at] & bit == 0;
                words[at] |= bit;
                *count += usize::from(is_new);
                is_new
            }
        }
    }

    /// Removes an id, and returns whether it was there.
    pub(crate) fn remove(&mut self, id: u16) -> bool {
        match &mut self.0 {
            PacketIdStore::List(list) => list.binary_search(&id).map(|at| list.remove(at)).is_ok(),
            PacketIdStore::Bitmap { words, count } => {
                let (at, bit) = place(id);
                let was_there = words[at] & bit != 0;
                words[at] &= !bit;
                *count -= usize::from(was_there);
                if *count <= FEW_AGAIN {
                    self.0 = PacketIdStore::List(self.iter().collect());
                }
                was_there
            }
        }
    }

    /// All ids, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> {
        let (list, words) = match &self.0 {
            PacketIdStore::List(list) => (&list[..], &[][..]),
            PacketIdStore::Bitmap { words, .. } => (&[][..], &words[..]),
        };
        list.iter().copied().chain(words.iter().enumerate().flat_map(|(at, word)| ids_in(at, *word)))
    }
}

impl Extend<u16> for PacketIds {
    fn extend<I: IntoIterator<Item = u16>>(&mut self, ids: I) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl FromIterator<u16> for PacketIds {
    fn from_iter<I: IntoIterator<Item = u16>>(ids: I) -> PacketIds {
        let mut all = PacketIds::default();
        all.extend(ids);
        all
    }
}

/// The same ids are equal, as a list or as a bitmap.
impl PartialEq for PacketIds {
    fn eq(&self, other: &PacketIds) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for PacketIds {}

impl fmt::Debug for PacketIds {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn is_list(ids: &PacketIds) -> bool {
        matches!(ids.0, PacketIdStore::List(_))
    }

    /// The bytes that a set takes beside its own.
    fn allocated(ids: &PacketIds) -> usize {
        match &ids.0 {
            PacketIdStore::List(list) if list.spilled() => list.capacity() * size_of::<u16>(),
            PacketIdStore::List(_) => 0,
            PacketIdStore::Bitmap { words, .. } => size_of_val(&words[..]),
        }
    }

    #[test]
    fn all_packet_ids_at_once_take_eight_kilobytes_and_a_few_none() {
        assert!(size_of::<PacketIds>() <= 96);
        let mut ids = PacketIds::default();
        for id in (0..=u16::MAX).rev() {
            assert_eq!(allocated(&ids), if ids.len() <= FEW { 0 } else { 8 << 10 });
            assert!(ids.insert(id) && !ids.insert(id));
        }
        assert_eq!((ids.len(), allocated(&ids)), (1 << 16, 8 << 10));
        assert!(ids.iter().eq(0..=u16::MAX));
        // no bitmap comes and goes with a single message
        for id in 0..=u16::MAX {
            assert_eq!(allocated(&ids), if ids.len() > FEW_AGAIN { 8 << 10 } else { 0 });
            assert!(ids.remove(id) && !ids.remove(id));
        }
        assert!(ids.is_empty());
    }

    #[test]
    fn the_same_ids_are_equal_in_both_forms() {
        let mut more: PacketIds = (0..50).collect();
        (20..50).for_each(|id| assert!(more.remove(id)));
        let few: PacketIds = (0..20).rev().collect();
        assert!(is_list(&few) && !is_list(&more));
        assert_eq!(few, more);
        assert!(more.remove(0));
        assert_ne!(few, more);
    }

    /// Ids of which many are the same, or neighbours at the ends of words and of the range.
    fn any_id() -> impl Strategy<Value = u16> {
        prop_oneof![0..100_u16, 65_400..=u16::MAX, any::<u16>()]
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0..8_u8, any_id()), 0..400)) {
            let (mut ids, mut model) = (PacketIds::default(), BTreeSet::new());
            let mut is_growing = true;
            for (step, id) in steps {
                // it grows and shrinks in turns, over both limits
                is_growing = if is_growing { model.len() < 2 * FEW } else { model.is_empty() };
                let known = model.iter().nth(usize::from(id) % model.len().max(1)).copied().unwrap_or(id);
                match step {
                    0 => prop_assert_eq!(ids.insert(known), model.insert(known)),
                    1 => prop_assert_eq!(ids.remove(id), model.remove(&id)),
                    _ if is_growing => prop_assert_eq!(ids.insert(id), model.insert(id)),
                    _ => prop_assert_eq!(ids.remove(known), model.remove(&known)),
                }
                prop_assert_eq!(ids.contains(id), model.contains(&id));
                prop_assert_eq!((ids.len(), ids.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(ids.iter().eq(model.iter().copied()));
                prop_assert_eq!(&ids, &model.iter().copied().collect::<PacketIds>());
            }
        }
    }
}
