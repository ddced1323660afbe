//! Parts of the journal that some consumers are guaranteed: upstreams, sessions of users, and sessions of clients without a
//! user name.
//!
//! What a part does not use, others may: it is taken back when it is needed. When the journal is full, the part that is
//! furthest above what it is guaranteed gives way, in it whoever has most (an upstream, a user with the
//! shared subscriptions that the user has begun, all guests together), and of that the oldest. Where messages are refused rather than given up, nothing can be taken back: there the parts that have
//! consumers keep what they are guaranteed free of others.

use std::collections::HashMap;

use super::format::{DATA, FileKind};
use super::merge::Packing;
use super::settings::JournalSettings;
use super::state::JournalState;
use super::{ConsumerId, Full, PENDING_MAX, WhenFull};
use crate::access::identity::SessionName;
use crate::access::owner::ConsumerOwner;

/// Parts that have a guarantee of their own.
pub(crate) const PARTS: usize = 3;

/// Whom a part of the journal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// What waits for upstreams.
    Upstreams = 0,
    /// Persistent sessions of users, and what is not known to be somebody else's.
    Users = 1,
    /// Persistent sessions of clients without a user name.
    Guests = 2,
}

impl Part {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Part; PARTS] = [Part::Upstreams, Part::Users, Part::Guests];

    /// By a consumer's lasting name.
    pub(crate) fn of(name: &str) -> Part {
        match PartHolder::of(name) {
            PartHolder::Upstream(_) => Part::Upstreams,
            PartHolder::User(_) | PartHolder::Unknown(_) => Part::Users,
            PartHolder::Guests => Part::Guests,
        }
    }

    /// Percent of the journal that are guaranteed.
    pub(crate) fn percent(self) -> u64 {
        match self {
            Part::Upstreams => 50,
            Part::Users => 30,
            Part::Guests => 20,
        }
    }

    /// What the log says of it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Part::Upstreams => "upstreams",
            Part::Users => "sessions of users",
            Part::Guests => "sessions of clients without a user name",
        }
    }
}

/// Who gives way together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PartHolder<'a> {
    /// An upstream, in whatever order it gets its messages.
    Upstream(&'a str),
    /// All sessions of a user, and all shared subscriptions that the user has begun.
    User(&'a str),
    /// All that is for clients without a user name.
    Guests,
    /// A consumer of which nobody knows whose it is, by its lasting name.
    Unknown(&'a str),
}

impl PartHolder<'_> {
    /// By a consumer's lasting name.
    pub(crate) fn of(name: &str) -> PartHolder<'_> {
        match ConsumerOwner::of(name) {
            ConsumerOwner::Upstream(upstream) => PartHolder::Upstream(upstream),
            ConsumerOwner::Session(SessionName { user: Some(user), .. })
            | ConsumerOwner::Shared { user: Some(user), .. } => PartHolder::User(user),
            ConsumerOwner::Session(SessionName { is_unowned: false, .. })
            | ConsumerOwner::Shared { of_guests: true, .. } => PartHolder::Guests,
            ConsumerOwner::Shared { .. } | ConsumerOwner::Session(_) | ConsumerOwner::Unknown => {
                PartHolder::Unknown(name)
            }
        }
    }
}

/// Bytes of the journal that wait for somebody.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Bytes of each part.
    pub(crate) parts: [u64; PARTS],
    /// Bytes of all parts, each record once.
    pub(crate) all: u64,
}

impl JournalState {
    /// How much of the journal each part takes now.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for segment in self.segments.values() {
            let (parts, all) = segment.live(&self.queues, &self.by_key);
            usage.parts.iter_mut().zip(parts).for_each(|(sum, bytes)| *sum += bytes);
            usage.all += all;
        }
        usage
    }

    /// The part that gives way next, and by how much it is above what it is guaranteed.
    pub(crate) fn most_above(&self, settings: &JournalSettings) -> Option<(Part, i64)> {
        let usage = self.usage();
        let above = |part: Part| usage.parts[part as usize] as i64 - guaranteed(part, settings) as i64;
        let used = Part::ALL.into_iter().filter(|part| usage.parts[*part as usize] > 0);
        used.map(|part| (part, above(part))).max_by_key(|(_, above)| *above)
    }

    /// The oldest messages of whoever has most in this part give way; says whether there were any.
    pub(crate) fn give_way(&mut self, part: Part) -> bool {
        let mut held: HashMap<PartHolder<'_>, u64> = HashMap::new();
        for segment in self.segments.values() {
            for (key, share) in &segment.shares {
                if let Some(queue) = self.by_key.get(key).and_then(|id| self.queues.get(id)).filter(|q| q.part == part)
                {
                    *held.entry(PartHolder::of(&queue.name)).or_default() += share.live(queue.cursor.base);
                }
            }
        }
        let most = held.into_iter().filter(|(_, bytes)| *bytes > 0).max_by_key(|(_, bytes)| *bytes);
        let Some((most, _)) = most else { return false };
        let oldest = self.segments.values().find_map(|segment| {
            let shares = segment.shares.iter().filter_map(|(key, share)| {
                let id = *self.by_key.get(key)?;
                let queue = self.queues.get(&id)?;
                let is_held =
                    queue.part == part && PartHolder::of(&queue.name) == most && queue.cursor.base < share.last;
                is_held.then_some((id, share.last))
            });
            Some(shares.collect::<Vec<(ConsumerId, u64)>>()).filter(|shares| !shares.is_empty())
        });
        let bounds = format!("journal.max_size, of which {} % are for {}", part.percent(), part.shown());
        for (id, last) in oldest.unwrap_or_default() {
            let Some(queue) = self.queues.get_mut(&id) else { continue };
            let dropped = queue.cursor.dropped;
            queue.drop_through(last);
            let lost = queue.cursor.dropped - dropped;
            self.mark_moved(id);
            self.lost(id, lost, &bounds);
        }
        true
    }

    /// Refuses what there is no room for.
    pub(super) fn admit(
        &mut self,
        len: usize,
        consumers: &[ConsumerId],
        settings: &JournalSettings,
    ) -> Result<(), Full> {
        let is_too_large = len as u64 > usable(settings);
        let refuses = settings.when_full == WhenFull::Refuse;
        let is_stuck = refuses && (self.failing.is_some() || !self.has_space(len, consumers, settings));
        if is_stuck || is_too_large || self.pending.bytes.len() + len > PENDING_MAX.max(len) {
            self.counts.refused += 1;
            return Err(Full);
        }
        if refuses {
            self.take_room(len as u64);
        }
        Ok(())
    }

    /// Whether the disk space that is ours takes this much more without giving anything up, and the parts of all consumers do.
    /// What is known of it is only looked at anew when it seems to be used up, and then only if something has changed.
    fn has_space(&mut self, len: usize, consumers: &[ConsumerId], settings: &JournalSettings) -> bool {
        if self.has_room(len as u64, consumers) {
            return true;
        }
        let parts = self.parts_of(consumers).fold(0, |parts, part| parts | 1 << part as usize);
        if self.full_for[parts].is_some_and(|least| least <= len as u64) {
            self.say_full(true);
            return false;
        }
        #[cfg(test)]
        {
            self.looks += 1;
        }
        let room = usable(settings);
        let per_segment = room - room % (len as u64).max(1);
        let (mut space, mut files, mut kept, mut needed) = (0, 0, 0, Packing::default());
        let last = self.segments.last_key_value();
        let tail = last.filter(|(_, tail)| tail.header.kind == FileKind::Segment).map(|(generation, _)| *generation);
        for (generation, segment) in &self.segments {
            if Some(*generation) == tail {
                space += segment.header.size.saturating_sub(segment.end);
            } else if segment.is_needed(&self.queues, &self.by_key) {
                if segment.can_merge(settings) {
                    needed.add(segment.live(&self.queues, &self.by_key).1, segment.largest);
                    files += 1;
                } else {
                    kept += 1;
                }
            }
        }
        // what is needed can be merged into fewer files
        let files = (0..files).find(|files| needed.fits(*files, room)).unwrap_or(files);
        let free = settings.segments().saturating_sub(files + kept + usize::from(tail.is_some())) as u64;
        let waiting = (self.pending.bytes.len() + self.writing) as u64;
        self.room = self.room((space + free * per_segment).saturating_sub(waiting), settings);
        let has_space = self.has_room(len as u64, consumers);
        if !has_space && self.orphans_give_way() {
            return self.has_space(len, consumers, settings);
        }
        self.was_full = !has_space;
        if !has_space {
            self.full_for[parts] = Some(len as u64);
        }
        self.say_full(!has_space);
        has_space
    }

    fn parts_of<'a>(&'a self, consumers: &'a [ConsumerId]) -> impl Iterator<Item = Part> + 'a {
        consumers.iter().filter_map(|id| self.queues.get(id)).map(|queue| queue.part)
    }

    fn has_room(&self, len: u64, consumers: &[ConsumerId]) -> bool {
        self.room.1 >= len && self.parts_of(consumers).all(|part| self.room.0[part as usize] >= len)
    }

    fn take_room(&mut self, len: u64) {
        let (parts, all) = &mut self.room;
        parts.iter_mut().chain([all]).for_each(|room| *room = room.saturating_sub(len));
    }

    /// Bytes that each part may still take where nothing is given up, and what may be taken for nobody in particular, when the
    /// files that are there or may be made take `free`.
    fn room(&self, free: u64, settings: &JournalSettings) -> ([u64; PARTS], u64) {
        let usage = self.usage();
        let mut has_consumers = [false; PARTS];
        self.queues.values().for_each(|queue| has_consumers[queue.part as usize] = true);
        let room = Part::ALL.map(|part| {
            let others = Part::ALL.into_iter().filter(|other| *other != part && has_consumers[*other as usize]);
            let kept = others.map(|other| guaranteed(other, settings).saturating_sub(usage.parts[other as usize]));
            let kept: u64 = kept.sum();
            // besides, the file that is being written is not shared evenly
            let rounding = if kept > 0 { usable(settings) } else { 0 };
            free.saturating_sub(kept + rounding)
        });
        (room, free)
    }
}

/// Bytes that a segment has for records.
pub(crate) fn usable(settings: &JournalSettings) -> u64 {
    settings.segment_size() - DATA
}

/// Bytes of the journal that are guaranteed to a part: of what is left besides the file that is written to, and one that
/// others are merged into.
pub(crate) fn guaranteed(part: Part, settings: &JournalSettings) -> u64 {
    settings.segments().saturating_sub(2) as u64 * usable(settings) * part.percent() / 100
}
