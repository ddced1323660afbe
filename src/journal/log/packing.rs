//! Computes which segments fit together into fewer files.

use super::Log;
use crate::journal::consumers::ConsumerQueues;
use crate::journal::parts::usable;
use crate::journal::settings::JournalSettings;

/// The needed bytes of consecutive segments.
#[derive(Default)]
pub(crate) struct Packing {
    bytes: u64,
    /// The largest record of each segment, in descending order.
    largest: Vec<u64>,
}

impl Packing {
    /// Adds the needed bytes of one more segment, with its largest record.
    pub(crate) fn add(&mut self, bytes: u64, largest: u64) {
        self.bytes += bytes;
        let at = self.largest.partition_point(|known| *known > largest);
        self.largest.insert(at, largest);
    }

    /// Whether everything fits into this many files. If a record does not fit, the end of a file stays empty. That can
    /// happen at the end of every file but the last, and only once for the records of one segment, which fit into one file.
    pub(crate) fn fits(&self, files: usize, room: u64) -> bool {
        let empty: u64 = self.largest.iter().take(files.saturating_sub(1)).sum();
        self.bytes + empty <= files as u64 * room
    }
}

impl Log {
    /// The shortest run of at most `most` segments that fits into one file less; empty if there is none.
    pub(crate) fn merge_plan(
        &self,
        tail: Option<u64>,
        queues: &ConsumerQueues,
        settings: &JournalSettings,
        most: usize,
    ) -> Vec<u64> {
        let room = usable(settings);
        let live: Vec<(u64, Option<(u64, u64)>)> = self
            .segments
            .iter()
            .map(|(generation, segment)| {
                let is_fit = Some(*generation) != tail && segment.can_merge(settings);
                let bytes = || segment.live(queues).1;
                (*generation, is_fit.then(bytes).map(|bytes| (bytes, segment.largest().min(bytes))))
            })
            .collect();
        let mut best: &[(u64, Option<(u64, u64)>)] = &[];
        for begin in 0..live.len() {
            let mut packing = Packing::default();
            for (count, (_, needed)) in live[begin..].iter().enumerate().take(most) {
                let Some((bytes, largest)) = needed else { break };
                packing.add(*bytes, *largest);
                if count > 0 && packing.fits(count, room) {
                    if best.is_empty() || count + 1 < best.len() {
                        best = &live[begin..=begin + count];
                    }
                    break;
                }
            }
        }
        best.iter().map(|(generation, _)| *generation).collect()
    }
}
