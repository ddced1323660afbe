//! The groups of shared subscriptions that had no room for a message at one of their members.
//!
//! A client may be a member of thousands of groups. When it has room again, it asks only these, one after another, and only
//! as long as the room lasts.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::delivery::SharesOut;

/// Groups that wait for room, in the order in which they are asked.
#[derive(Debug, Default)]
pub(crate) struct MissedGroups(Mutex<Missed>);

#[derive(Debug, Default)]
struct Missed {
    queue: VecDeque<Weak<dyn SharesOut>>,
    /// Those in the queue, so that none is in it twice.
    known: HashSet<usize>,
}

fn place(group: &Weak<dyn SharesOut>) -> usize {
    group.as_ptr().cast::<()>() as usize
}

impl MissedGroups {
    /// Lets this group wait. It must then look for room once more, because some may have been made meanwhile.
    pub(super) fn add(&self, group: &Weak<dyn SharesOut>) {
        let missed = &mut *self.0.lock();
        if missed.known.insert(place(group)) {
            missed.queue.push_back(group.clone());
        }
    }

    fn next(&self) -> Option<Arc<dyn SharesOut>> {
        let missed = &mut *self.0.lock();
        loop {
            let group = missed.queue.pop_front()?;
            missed.known.remove(&place(&group));
            if let Some(group) = group.upgrade() {
                return Some(group);
            }
        }
    }

    /// Lets the groups that wait now go on as long as there is room. Returns whether some still wait.
    pub(crate) fn go_on(&self, has_room: impl Fn() -> bool) -> bool {
        let waiting = self.0.lock().queue.len();
        for _ in 0..waiting {
            if !has_room() {
                break;
            }
            let Some(group) = self.next() else { break };
            group.look();
        }
        waiting > 0 && !self.0.lock().queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::delivery::{InboxId, KeptPlace, Share};
    use super::*;
    use crate::message::Message;

    #[derive(Debug, Default)]
    struct Group(AtomicUsize);

    impl SharesOut for Group {
        fn settled(self: Arc<Self>, _: InboxId, _: Option<KeptPlace>) {}
        fn give_up(&self, _: Option<KeptPlace>) {}
        fn take_back(self: Arc<Self>, _: Vec<(Share, Message)>) {}
        fn look(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_group_is_asked_once_and_no_more_of_them_than_there_is_room_for() {
        let missed = MissedGroups::default();
        let groups: Vec<Arc<Group>> = (0..5).map(|_| Arc::default()).collect();
        for _ in 0..2 {
            for group in &groups {
                let group: Weak<dyn SharesOut> = Arc::downgrade(group) as Weak<dyn SharesOut>;
                missed.add(&group);
            }
        }
        let asked = || groups.iter().map(|group| group.0.load(Ordering::Relaxed)).collect::<Vec<usize>>();
        let room = || asked().iter().sum::<usize>() < 2;
        assert!(missed.go_on(room));
        assert_eq!(asked(), [1, 1, 0, 0, 0]);
        assert!(!missed.go_on(|| true));
        assert_eq!(asked(), [1; 5]);
        assert!(!missed.go_on(|| true));
    }
}
