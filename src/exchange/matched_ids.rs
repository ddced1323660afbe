//! The ids of a client's subscriptions that match a message.
//!
//! A client may have thousands of overlapping filters with an id each, and a message of a few bytes then has several
//! kilobytes of ids. So messages in a row share them, and they count as memory of messages wherever a message waits: in the
//! queue, for its owner, and for all.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::message::AliveBytes;

/// The ids that match one message. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct MatchedIds(MatchedIdsStore);

#[derive(Clone, Debug, Default)]
enum MatchedIdsStore {
    #[default]
    None,
    One(u32),
    Shared(Arc<SharedIds>),
}

#[derive(Debug)]
struct SharedIds {
    ids: SmallVec<[u32; 8]>,
    _alive: AliveBytes,
}

impl MatchedIds {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match &self.0 {
            MatchedIdsStore::None => &[],
            MatchedIdsStore::One(id) => std::slice::from_ref(id),
            MatchedIdsStore::Shared(shared) => &shared.ids,
        }
    }

    /// The bytes that they add to a message.
    pub(crate) fn size(&self) -> usize {
        match &self.0 {
            MatchedIdsStore::Shared(shared) => size_of_val(&shared.ids[..]),
            _ => 0,
        }
    }

    /// These ids, in the memory of `last` if they are the same. Otherwise `last` becomes these.
    pub(super) fn like(last: &mut MatchedIds, ids: SmallVec<[u32; 8]>) -> MatchedIds {
        if ids.len() > 1 && last.as_slice() == &ids[..] {
            return last.clone();
        }
        let new = MatchedIds::from(ids);
        if new.size() > 0 {
            *last = new.clone();
        }
        new
    }
}

impl From<SmallVec<[u32; 8]>> for MatchedIds {
    fn from(ids: SmallVec<[u32; 8]>) -> MatchedIds {
        MatchedIds(match ids[..] {
            [] => MatchedIdsStore::None,
            [id] => MatchedIdsStore::One(id),
            _ => {
                let _alive = AliveBytes::new(size_of_val(&ids[..]));
                MatchedIdsStore::Shared(Arc::new(SharedIds { ids, _alive }))
            }
        })
    }
}

impl From<Option<u32>> for MatchedIds {
    fn from(id: Option<u32>) -> MatchedIds {
        MatchedIds(id.map_or(MatchedIdsStore::None, MatchedIdsStore::One))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_a_row_share_their_ids() {
        let mut last = MatchedIds::default();
        let mut like = |ids: &[u32]| MatchedIds::like(&mut last, ids.into());
        let many: Vec<u32> = (0..5000).collect();
        let (first, one, second, other) = (like(&many), like(&[7]), like(&many), like(&many[1..]));
        assert_eq!(first.as_slice().as_ptr(), second.as_slice().as_ptr());
        assert_eq!((one.as_slice(), other.as_slice()), (&[7][..], &many[1..]));
        assert_eq!([first.size(), one.size(), other.size()], [4 * 5000, 0, 4 * 4999]);
    }
}
