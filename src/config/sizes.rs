//! Checks sizes against each other: each may be valid, but together they could break a promise.

use super::document::Table;
use super::settings::Settings;
use crate::broker::settings::MAX_SHARE;

/// Bytes that a journal record needs in addition to the packet, for its header and its consumers.
const RECORD: u64 = 16 << 10;

/// Warns of sizes that are too small for `broker.max_packet_size`.
pub(super) fn check(root: &Table, settings: &Settings) {
    let broker = &settings.broker;
    let packet = broker.max_packet_size as u64;
    let shown = |bytes: u64| match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    };
    let warn = |key: &str, fits: u64, what: &str| {
        if fits < packet {
            let (fits, packet) = (shown(fits), shown(packet));
            root.warning(
                key,
                format!("{what} {fits}, and broker.max_packet_size lets in messages of up to {packet}; raise this or lower that"),
            );
        }
    };
    warn("broker.max_queued_size", broker.max_queued_size as u64, "the queue of a client holds");
    if broker.max_retained > 0 && broker.max_retained_size > 0 {
        warn("broker.max_retained_size", broker.max_retained_size as u64, "retained messages together may have");
    }
    let mut journal = settings.journal.clone();
    journal.largest_message = broker.max_packet_size;
    let segment = journal.segment_size().saturating_sub(RECORD);
    warn("journal.max_size", segment, "with it, a segment of the journal holds a message of");
    if packet > MAX_SHARE as u64 {
        let share = shown(MAX_SHARE as u64);
        root.warning(
            "broker.max_packet_size",
            format!(
                "packets of more than {share} are received one at a time, while their user sends nothing else that is large; lower \
                 this where that matters"
            ),
        );
    }
}
