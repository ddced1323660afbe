//! Settings of the journal.

pub(crate) use super::WhenFull;

/// The table `[journal]`, without `order`, which concerns upstreams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// The most bytes that the journal may occupy.
    pub max_size: u64,
    /// What happens to messages when the journal is full.
    pub when_full: WhenFull,
    /// The largest message that must fit, in bytes. It is not a key of its own, but follows from the broker's
    /// `max_packet_size`.
    pub largest_message: usize,
}

impl Default for JournalSettings {
    fn default() -> Self {
        JournalSettings { max_size: 256 << 20, when_full: WhenFull::default(), largest_message: 2 << 20 }
    }
}

impl JournalSettings {
    /// The size of a segment: a sixteenth of the whole, so that giving one up costs little, but at most what a card writes
    /// in a moment. If the whole allows it, the largest message fits in.
    pub fn segment_size(&self) -> u64 {
        let usual = (self.max_size / 16).clamp(64 << 10, 4 << 20);
        let needed = (self.largest_message as u64 + (16 << 10)).min(self.max_size / 4);
        usual.max(needed).next_multiple_of(4096)
    }

    /// The greatest number of segments.
    pub(crate) fn segments(&self) -> usize {
        (self.max_size / self.segment_size()).max(3) as usize
    }
}
