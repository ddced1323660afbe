//! Settings of the journal.

use super::WhenFull;

/// Order in which a consumer gets what waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Order {
    /// As accepted.
    #[default]
    Strict,
    /// After an outage, new messages need not wait behind the backlog.
    LiveFirst,
}

/// `[journal]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSettings {
    /// Most bytes that the journal occupies.
    pub max_size: u64,
    /// What gives way when it is full.
    pub when_full: WhenFull,
    /// Order of delivery.
    pub order: Order,
}

impl Default for JournalSettings {
    fn default() -> Self {
        JournalSettings { max_size: 256 << 20, when_full: WhenFull::default(), order: Order::default() }
    }
}
