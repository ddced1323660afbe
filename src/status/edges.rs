//! The last edges of a pin, for those who look at them.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;

/// No PIR makes a pulse shorter than this, in milliseconds.
pub(crate) const SHORT: u64 = 250;
/// A pause longer than this ends a group of pulses, in milliseconds.
const GROUP_PAUSE: u64 = 1_500;

/// A pulse: when it began, and how long it was.
pub(crate) type EdgePulse = (u64, u64);

/// Edges of a pin: the sensor writes them, and nobody is woken for them while nobody looks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LastEdges {
    last: Arc<Mutex<VecDeque<(u64, bool)>>>,
}

/// Whether they are those of the same sensor.
impl PartialEq for LastEdges {
    fn eq(&self, other: &LastEdges) -> bool {
        Arc::ptr_eq(&self.last, &other.last)
    }
}

impl Eq for LastEdges {}

impl LastEdges {
    /// The sensor has become active, or inactive again, at this time on the boot clock in milliseconds. Kept are the last `most`, of
    /// no longer than `window` before this one.
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

    /// Those that are there, oldest first.
    pub fn copy(&self) -> Vec<(u64, bool)> {
        self.last.lock().iter().copied().collect()
    }
}

/// Pulses: from active to inactive.
fn pulses(last: &[(u64, bool)]) -> Vec<EdgePulse> {
    let pairs = last.iter().zip(last.iter().skip(1));
    pairs
        .filter(|((_, active), (_, after))| *active && !after)
        .map(|((begin, _), (end, _))| (*begin, end - begin))
        .collect()
}

/// Those that no PIR makes.
pub(crate) fn short_pulses(last: &[(u64, bool)]) -> Vec<EdgePulse> {
    pulses(last).into_iter().filter(|(_, long)| *long < SHORT).collect()
}

/// Times from the beginning of each to that of the next.
pub(crate) fn periods(short: &[EdgePulse]) -> Vec<u64> {
    short.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
}

/// Groups of at least three with a pause between the groups.
pub(crate) fn bursts(short: &[EdgePulse]) -> Vec<&[EdgePulse]> {
    let groups = short.chunk_by(|one, next| next.0 - one.0 <= GROUP_PAUSE);
    groups.filter(|group| group.len() >= 3).collect()
}

impl EdgeFigures {
    /// Of these edges at this time on the boot clock in milliseconds.
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

/// What the last edges of a pin look like, in figures. A pulse is the time from active to inactive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EdgeFigures {
    /// Edges that are looked at.
    pub(crate) edges: usize,
    /// From the first of them to the last.
    pub(crate) span_ms: u64,
    /// Times from active to inactive of which both edges are among them.
    pub(crate) pulses: usize,
    /// The shortest of these.
    pub(crate) shortest_ms: Option<u64>,
    /// The one in the middle, by length.
    pub(crate) median_ms: Option<u64>,
    /// The length of the longest pulse; `null`: none of them is whole.
    pub(crate) longest_ms: Option<u64>,
    /// Pulses that no PIR makes: shorter than `too_short_ms`.
    pub(crate) short_pulses: usize,
    /// A pulse that is shorter than this counts in `short_pulses`.
    pub(crate) too_short_ms: u64,
    /// The usual time from the beginning of one short pulse to that of the next.
    pub(crate) period_ms: Option<u64>,
    /// Groups of at least three short pulses with a pause in between.
    pub(crate) bursts: usize,
    /// Short pulses in these.
    pub(crate) in_bursts: usize,
    /// For how long the pin has been active without an edge; `null`: it is not.
    pub(crate) active_for_ms: Option<u64>,
}
