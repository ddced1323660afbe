//! Decides which messages are dropped when there is no room, and which are accepted.
//!
//! Consumers that are no longer in the configuration are orphans. A line that is commented out, a typo or an old file is no
//! reason to lose their messages. They are therefore kept, but they are the first to be dropped.

use std::collections::HashMap;

use super::super::consumers::Queue;
use super::super::log::Packing;
use super::super::parts::{PARTS, Part, PartHolder, guaranteed, usable};
use super::super::pending::Purpose;
use super::super::settings::JournalSettings;
use super::super::space_left::Sharing;
use super::super::{ConsumerId, Full, WhenFull};
use super::JournalState;
use crate::message::Owner;

impl JournalState {
    /// The part whose messages are dropped next, with the number of bytes by which it exceeds its guarantee. The number is
    /// negative if the part uses less than that.
    pub(in crate::journal) fn most_above(&self, settings: &JournalSettings) -> Option<(Part, i64)> {
        let usage = self.log.usage(&self.queues);
        let above = |part: Part| usage.parts[part as usize] as i64 - guaranteed(part, settings) as i64;
        let used = Part::ALL.into_iter().filter(|part| usage.parts[*part as usize] > 0);
        used.map(|part| (part, above(part))).max_by_key(|(_, above)| *above)
    }

    /// Drops the oldest messages of the holder that has most bytes in this part. Returns whether there were any.
    pub(in crate::journal) fn give_way(&mut self, part: Part) -> bool {
        let mut held: HashMap<PartHolder<'_>, u64> = HashMap::new();
        for (queue, share) in self.log.shares(&self.queues).filter(|(queue, _)| queue.part() == part) {
            *held.entry(PartHolder::of(queue.name())).or_default() += share.live(queue.base());
        }
        let most = held.into_iter().filter(|(_, bytes)| *bytes > 0).max_by_key(|(_, bytes)| *bytes);
        let Some((most, _)) = most else { return false };
        let oldest =
            self.log.oldest_of(&self.queues, |queue| queue.part() == part && PartHolder::of(queue.name()) == most);
        let bounds = format!("journal.max_size, of which {} % are for {}", part.percent(), part.shown());
        self.give_up(&oldest, &bounds);
        true
    }

    /// Drops the oldest messages of orphans. Returns whether there were any.
    pub(in crate::journal) fn orphans_give_way(&mut self) -> bool {
        let oldest = self.log.oldest_of(&self.queues, |queue| queue.is_orphan());
        self.give_up(&oldest, "journal.max_size, and nothing in the configuration asks for them");
        !oldest.is_empty()
    }

    /// Drops the messages of each of these consumers, up to and including the ordinal beside it.
    fn give_up(&mut self, oldest: &[(ConsumerId, u64)], bounds: &str) {
        for (id, last) in oldest {
            let Some(lost) = self.queues.get_mut(*id).map(|queue| queue.drop_through(*last)) else { continue };
            self.queues.mark_moved(*id);
            self.space.changed();
            self.lost(*id, lost, bounds);
        }
    }

    /// Checks whether there is room for a message of `len` bytes, and counts it as refused if there is none.
    pub(super) fn admit(
        &mut self,
        (owner, purpose): (Owner, Purpose),
        len: usize,
        consumers: &[ConsumerId],
        settings: &JournalSettings,
    ) -> Result<(), Full> {
        let is_too_large = len as u64 > usable(settings);
        let refuses = settings.when_full == WhenFull::Refuse;
        let is_stuck = refuses && (self.trouble.now().is_some() || !self.has_space(len, consumers, settings));
        if is_stuck || is_too_large || !self.pending.has_room_for(owner, purpose, len) {
            self.counts.refuse();
            return Err(Full);
        }
        if refuses {
            self.space.take(len as u64);
        }
        Ok(())
    }

    /// Whether the journal and the parts of all consumers have room for `len` more bytes without dropping anything. The
    /// room is computed again only when it seems to be used up and something has changed since the last time.
    pub(super) fn has_space(&mut self, len: usize, consumers: &[ConsumerId], settings: &JournalSettings) -> bool {
        if self.has_room(len as u64, false, consumers) {
            return true;
        }
        if self.space.is_full_for(len as u64, self.space.kinds(self.queues_of(consumers))) {
            self.space.say(true, self.counts.refused(), &self.queues);
            return false;
        }
        let room = self.left(self.free_bytes(len, settings), settings);
        self.space.looked(room, self.sharing(&room.0));
        let has_space = self.has_room(len as u64, true, consumers);
        if !has_space && self.orphans_give_way() {
            return self.has_space(len, consumers, settings);
        }
        let kinds = self.space.kinds(self.queues_of(consumers));
        self.space.found(has_space, len as u64, kinds);
        self.space.say(!has_space, self.counts.refused(), &self.queues);
        has_space
    }

    /// The number of bytes that the journal can still accept, in messages of this length, in files that exist and in those
    /// that may be created, once the needed records are merged.
    fn free_bytes(&self, len: usize, settings: &JournalSettings) -> u64 {
        let room = usable(settings);
        let per_segment = room - room % (len as u64).max(1);
        let (mut space, mut files, mut kept, mut needed) = (0, 0, 0, Packing::default());
        let tail = self.log.open_tail().map(|tail| tail.header.generation);
        for (generation, segment) in self.log.segments() {
            if Some(*generation) == tail {
                space += segment.header.size.saturating_sub(segment.end);
            } else if segment.is_needed(&self.queues) {
                if segment.can_merge(settings) {
                    needed.add(segment.live(&self.queues).1, segment.largest());
                    files += 1;
                } else {
                    kept += 1;
                }
            }
        }
        // the needed records can be merged into fewer files
        let files = (0..files).find(|files| needed.fits(*files, room)).unwrap_or(files);
        let free = settings.segments().saturating_sub(files + kept + usize::from(tail.is_some())) as u64;
        (space + free * per_segment).saturating_sub(self.pending.unsafe_bytes() as u64)
    }

    fn queues_of<'a>(&'a self, consumers: &'a [ConsumerId]) -> impl Iterator<Item = &'a Queue> + 'a {
        consumers.iter().filter_map(|id| self.queues.get(*id))
    }

    fn has_room(&self, len: u64, is_fresh: bool, consumers: &[ConsumerId]) -> bool {
        self.space.has(len, is_fresh, self.queues_of(consumers))
    }

    /// Whoever has more than half of what is in a part leaves a quarter of the part to others, if there are any. So their
    /// messages are still accepted when its own are not. `room` is what each part can still accept.
    fn sharing(&self, room: &[u64; PARTS]) -> [Sharing; PARTS] {
        let (mut held, mut used): (HashMap<PartHolder<'_>, (u64, &Queue)>, _) = (HashMap::new(), [0; PARTS]);
        // orphans give way before anybody is refused
        let is_known = |queue: &Queue| !queue.is_orphan();
        for (_, queue) in self.queues.iter().filter(|(_, queue)| is_known(queue)) {
            held.entry(PartHolder::of(queue.name())).or_insert((0, queue));
        }
        for (queue, share) in self.log.shares(&self.queues).filter(|(queue, _)| is_known(queue)) {
            let live = share.live(queue.base());
            used[queue.part() as usize] += live;
            held.entry(PartHolder::of(queue.name())).and_modify(|(bytes, _)| *bytes += live);
        }
        Part::ALL.map(|part| {
            let (used, room) = (used[part as usize], room[part as usize]);
            let holders = held.values().filter(|(_, queue)| queue.part() == part);
            let most = holders.clone().find(|(bytes, _)| *bytes > used / 2);
            match most {
                _ if holders.count() < 2 => Sharing::Alone,
                Some((_, queue)) => Sharing::Unevenly { name: queue.name().into(), reserve: (used + room) / 4 },
                None => Sharing::Evenly(room / 2),
            }
        })
    }

    /// The number of bytes that each part can still accept without dropping anything if the files have room for `free`
    /// bytes, and the number that can be accepted for records without a consumer.
    fn left(&self, free: u64, settings: &JournalSettings) -> ([u64; PARTS], u64) {
        let usage = self.log.usage(&self.queues);
        let mut has_consumers = [false; PARTS];
        self.queues.iter().for_each(|(_, queue)| has_consumers[queue.part() as usize] = true);
        let room = Part::ALL.map(|part| {
            let others = Part::ALL.into_iter().filter(|other| *other != part && has_consumers[*other as usize]);
            let kept = others.map(|other| guaranteed(other, settings).saturating_sub(usage.parts[other as usize]));
            let kept: u64 = kept.sum();
            // one file more is subtracted, because the file that is being written is not shared evenly
            let rounding = if kept > 0 { usable(settings) } else { 0 };
            free.saturating_sub(kept + rounding)
        });
        (room, free)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::journal::storage::memory::MemoryStorage;
    use crate::journal::tests::{ANY, draft, settings, wait_synced};
    use crate::journal::{Journal, Limits, WhenFull};
    use crate::time::SystemClock;

    #[test]
    fn where_messages_are_refused_whoever_has_most_leaves_others_some_room() {
        let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
        for names in [["session/u/eve\0a", "session/u/ada\0b"], ["upstream/slow", "upstream/quick"]] {
            let journal = settings(1 << 20, WhenFull::Refuse);
            let journal = Journal::open(Arc::new(MemoryStorage::default()), journal, Arc::new(SystemClock)).unwrap();
            let [eve, ada] = names.map(|name| journal.register(name, refuse));
            let fill = |id| {
                let mut count = 0;
                while let Ok(position) = journal.append(&draft("t", &[b'x'; 1000], false), &[id]) {
                    wait_synced(&journal, position);
                    count += 1;
                }
                count
            };
            let (eves, adas) = (fill(eve), fill(ada));
            assert!(eves > 200 && adas * 5 > eves, "{names:?}: {eves} and {adas}");
            assert_eq!(fill(eve), 0);
            assert_eq!(journal.backlog(eve).dropped + journal.backlog(ada).dropped, 0);
        }
    }

    #[test]
    fn orphans_give_way_before_anybody_else_does() {
        for when_full in [WhenFull::DropOldest, WhenFull::Refuse] {
            let storage = Arc::new(MemoryStorage::default());
            let journal = Journal::open(storage, settings(1 << 20, when_full), Arc::new(SystemClock)).unwrap();
            let limits = Limits { when_full, ..ANY };
            let [orphan, other] = ["upstream/gone", "upstream/home"].map(|name| journal.register(name, limits));
            let payload = [b'x'; 1000];
            let append = |id| {
                let position = journal.append(&draft("t", &payload, false), &[id]).unwrap();
                wait_synced(&journal, position);
            };
            // the others' messages are older
            (0..100).for_each(|_| append(other));
            (0..400).for_each(|_| append(orphan));
            journal.orphan(orphan);
            (0..500).for_each(|_| append(other));
            assert_eq!(journal.backlog(other).messages, 600, "{when_full:?}");
            let left = journal.backlog(orphan);
            assert!(left.dropped > 0 && left.dropped + left.messages as u64 == 400, "{left:?}");
            assert_eq!(journal.register("upstream/gone", limits), orphan);
        }
    }
}
