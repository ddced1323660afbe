//! The sizes of the messages that wait for a consumer.

use std::collections::VecDeque;

/// The number of messages whose sizes are known separately; those of others are known in groups.
const EXACT: usize = 256;
/// The messages of a group.
const GROUP: u32 = 64;

#[derive(Clone, Copy, Debug)]
struct SizeGroup {
    count: u32,
    bytes: u64,
    boot_ms: Option<u64>,
}

/// The number of groups for which an empty queue keeps room.
const ROOM: usize = 16;

/// The sizes of waiting messages, without an entry for each of millions.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    groups: VecDeque<SizeGroup>,
    bytes: u64,
}

impl Sizes {
    /// Adds messages at the end.
    pub(crate) fn push(&mut self, count: u32, bytes: u64, boot_ms: Option<u64>) {
        self.bytes += bytes;
        if count == 1
            && self.groups.len() >= EXACT
            && let Some(last) = self.groups.back_mut().filter(|last| last.count < GROUP)
        {
            last.count += 1;
            last.bytes += bytes;
            return;
        }
        self.groups.push_back(SizeGroup { count, bytes, boot_ms });
    }

    /// Removes the oldest message.
    pub(crate) fn pop(&mut self) {
        let Some(first) = self.groups.front_mut() else { return };
        let size = first.bytes / u64::from(first.count.max(1));
        first.bytes -= size;
        self.bytes -= size;
        first.count = first.count.saturating_sub(1);
        if first.count == 0 {
            self.bytes -= first.bytes;
            self.groups.pop_front();
        }
    }

    /// Removes all messages. Some room is kept, because in a quiet queue every message is the first and the last.
    pub(crate) fn clear(&mut self) {
        self.groups.clear();
        self.groups.shrink_to(ROOM);
        self.bytes = 0;
    }

    /// The bytes of all waiting messages.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// When the oldest message arrived, by the boot clock, if that is known.
    pub(crate) fn oldest_boot_ms(&self) -> Option<u64> {
        self.groups.front().and_then(|group| group.boot_ms)
    }
}
