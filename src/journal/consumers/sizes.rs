//! How large the messages are that wait for a consumer.

use std::collections::VecDeque;

/// The sizes of so many messages are known one by one, of more in groups.
const EXACT: usize = 256;
/// Messages of a group.
const GROUP: u32 = 64;

#[derive(Clone, Copy, Debug)]
struct SizeGroup {
    count: u32,
    bytes: u64,
    boot_ms: Option<u64>,
}

/// Groups that a queue where nothing waits has room for.
const ROOM: usize = 16;

/// Sizes of the messages that wait, without an entry for each of millions.
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

    /// Takes the oldest message out.
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

    /// Nothing waits any more. A little room stays: where little goes on, every message is the first and the last.
    pub(crate) fn clear(&mut self) {
        self.groups.clear();
        self.groups.shrink_to(ROOM);
        self.bytes = 0;
    }

    /// Bytes of all that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// When the oldest came, by the boot clock, where that is known.
    pub(crate) fn oldest_boot_ms(&self) -> Option<u64> {
        self.groups.front().and_then(|group| group.boot_ms)
    }
}
