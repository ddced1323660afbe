//! The last edges of a pin, with statistics for those who show them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;

/// No PIR makes a pulse shorter than this, in milliseconds.
pub(crate) const SHORT: u64 = 250;
/// A pause longer than this ends a group of pulses, in milliseconds.
const GROUP_PAUSE: u64 = 1_500;

/// A pulse: the time at which it began and its length, both in milliseconds.
pub(crate) type EdgePulse = (u64, u64);

/// The last edges of a pin. The sensor writes them, and nothing is computed while nobody looks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LastEdges {
    last: Arc<Mutex<VecDeque<(u64, bool)>>>,
}

/// Two values are equal if they belong to the same sensor.
impl PartialEq for LastEdges {
    fn eq(&self, other: &LastEdges) -> bool {
        Arc::ptr_eq(&self.last, &other.last)
    }
}

impl Eq for LastEdges {}

impl LastEdges {
    /// Adds an edge by which the sensor became active or inactive, with its time in milliseconds of the boot clock. Keeps
    /// the last `most` edges, and of these only those at most `window` before this one.
    pub(crate) fn push(&self, active: bool, boot_ms: u64, most: usize, window: u64) {
        let mut last = self.last.lock();
        if last.len() >= most {
            last.pop_front();
        }
        last.push_back((boot_ms, active));
        while last.front().is_some_and(|(first, _)| boot_ms.saturating_sub(*first) > window) {
            last.pop_front();
        }
    }

    /// The edges, oldest first.
    pub fn copy(&self) -> Vec<(u64, bool)> {
        self.last.lock().iter().copied().collect()
    }
}

/// The pulses: each lasts from active to inactive.
fn pulses(last: &[(u64, bool)]) -> Vec<EdgePulse> {
    let pairs = last.iter().zip(last.iter().skip(1));
    pairs
        .filter(|((_, active), (_, after))| *active && !after)
        .map(|((begin, _), (end, _))| (*begin, end - begin))
        .collect()
}

/// The pulses that are too short for a PIR.
pub(crate) fn short_pulses(last: &[(u64, bool)]) -> Vec<EdgePulse> {
    pulses(last).into_iter().filter(|(_, long)| *long < SHORT).collect()
}

/// The times from the beginning of each pulse to that of the next.
pub(crate) fn periods(short: &[EdgePulse]) -> Vec<u64> {
    short.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
}

/// The groups of at least three pulses, separated by pauses.
pub(crate) fn bursts(short: &[EdgePulse]) -> Vec<&[EdgePulse]> {
    let groups = short.chunk_by(|one, next| next.0 - one.0 <= GROUP_PAUSE);
    groups.filter(|group| group.len() >= 3).collect()
}

impl EdgeFigures {
    /// The statistics of these edges at the time `now`, in milliseconds of the boot clock.
    pub fn of(last: &[(u64, bool)], now: u64) -> EdgeFigures {
        let (Some((first, _)), Some((newest, active))) = (last.first(), last.last()) else {
            return EdgeFigures { too_short_ms: SHORT, ..EdgeFigures::default() };
        };
        let mut lengths: Vec<u64> = pulses(last).into_iter().map(|(_, long)| long).collect();
        lengths.sort_unstable();
        let short = short_pulses(last);
        let mut periods = periods(&short);
        periods.sort_unstable();
        let bursts = bursts(&short);
        EdgeFigures {
            edges: last.len(),
            span_ms: newest - first,
            pulses: lengths.len(),
            shortest_ms: lengths.first().copied(),
            median_ms: lengths.get(lengths.len() / 2).copied(),
            longest_ms: lengths.last().copied(),
            short_pulses: short.len(),
            too_short_ms: SHORT,
            period_ms: periods.get(periods.len() / 2).copied(),
            bursts: bursts.len(),
            in_bursts: bursts.iter().map(|burst| burst.len()).sum(),
            active_for_ms: active.then(|| now.saturating_sub(*newest)),
        }
    }
}

/// Statistics of the last edges of a pin. A pulse is the time from active to inactive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EdgeFigures {
    /// The number of edges that are examined.
    pub(crate) edges: usize,
    /// The time from the first edge to the last.
    pub(crate) span_ms: u64,
    /// The number of pulses of which both edges are examined.
    pub(crate) pulses: usize,
    /// The length of the shortest pulse; `null` if none is complete.
    pub(crate) shortest_ms: Option<u64>,
    /// The median length of the pulses; `null` if none is complete.
    pub(crate) median_ms: Option<u64>,
    /// The length of the longest pulse; `null` if none is complete.
    pub(crate) longest_ms: Option<u64>,
    /// The number of pulses that are too short for a PIR: shorter than `too_short_ms`.
    pub(crate) short_pulses: usize,
    /// A pulse that is shorter than this is counted in `short_pulses`.
    pub(crate) too_short_ms: u64,
    /// The median time from the beginning of one short pulse to that of the next.
    pub(crate) period_ms: Option<u64>,
    /// The number of groups of at least three short pulses, separated by pauses.
    pub(crate) bursts: usize,
    /// The number of short pulses in such groups.
    pub(crate) in_bursts: usize,
    /// For how long the pin has been active without an edge; `null` if it is inactive.
    pub(crate) active_for_ms: Option<u64>,
}
