//! Diagnoses sensor and wire from the edges of a pin: verdicts with evidence and remedy.
//!
//! A PIR's output is slow. The shortest pulse of an AM312 is about 2 s, that of an HC-SR501 3 s, and the chip in most other
//! sensors (BISS0001) makes none below 0.3 s. So a pulse shorter than [`crate::status::edges::SHORT`] does not come from the
//! sensor, and the pattern of such pulses shows their source:
//!
//! | verdict | pattern of the edges |
//! |---|---|
//! | mains hum | they come with the period of the mains, or with half of it |
//! | radio bursts | they come in groups within a second or so, with long pauses between the groups |
//! | floating pin | many, at random |
//! | short pulses | a few, separately |
//! | stuck | none any more while the level is active |
//!
//! Only the last [`MOST_EDGES`] edges are examined, and of these only edges at most [`WINDOW`] before the last one.

use crate::status::edges::{EdgePulse, bursts, periods, short_pulses};
use crate::status::{Finding, LastEdges, Verdict};

/// Most edges that are kept; older ones are dropped.
pub(crate) const MOST_EDGES: usize = 512;
/// Edges that are older than the last one by more than this are ignored, in milliseconds.
const WINDOW: u64 = 600_000;
/// From this number on, short pulses are not accidental.
const FEW: usize = 3;
/// A pin that is not connected has at least this many short pulses.
const MANY: usize = 20;
/// The allowed times from one rising edge to the next in milliseconds: for 50 and 60 Hz, and half of it after a rectifier.
const HUM: [(u64, u64, &str); 4] =
    [(19, 21, "50 Hz"), (16, 18, "60 Hz"), (9, 11, "100 Hz (50 Hz rectified)"), (7, 9, "120 Hz (60 Hz rectified)")];

/// The last edges of a pin.
#[derive(Clone, Debug, Default)]
pub struct PinEdges {
    last: LastEdges,
}

impl PinEdges {
    /// Adds an edge, by which the sensor became active or inactive.
    pub fn push(&mut self, active: bool, boot_ms: u64) {
        self.last.push(active, boot_ms, MOST_EDGES, WINDOW);
    }

    /// The edges that are examined.
    pub fn last(&self) -> LastEdges {
        self.last.clone()
    }

    /// The finding at the time `now`, for a sensor that counts as stuck after `stuck_after` milliseconds.
    pub fn finding(&self, now: u64, stuck_after: u64) -> Option<Finding> {
        let last = self.last.copy();
        if let Some((since, true)) = last.last().filter(|(since, _)| now.saturating_sub(*since) >= stuck_after) {
            return Some(stuck(now - since));
        }
        let short = short_pulses(&last);
        if short.len() < FEW {
            return None;
        }
        hum(&short).or_else(|| radio(&short)).or_else(|| {
            let longest = short.iter().map(|(_, long)| *long).max().unwrap_or_default();
            let span = seconds(short[short.len() - 1].0 - short[0].0);
            let evidence = format!("{} pulses of at most {longest} ms within {span}", short.len());
            Some(if short.len() >= MANY { floating(evidence) } else { too_short(evidence) })
        })
    }
}

/// Recognises hum: pulses with the period of the mains, of which a few may be missing.
fn hum(short: &[EdgePulse]) -> Option<Finding> {
    let periods = periods(short);
    if periods.len() < MANY {
        return None;
    }
    let (_, _, name) = HUM.into_iter().find(|(least, most, _)| {
        let fitting = periods.iter().filter(|period| (least..=most).contains(period)).count();
        fitting * 5 >= periods.len() * 4
    })?;
    Some(Finding {
        verdict: Verdict::MainsHum,
        evidence: format!("{} pulses with the period of {name}", short.len()),
        remedy: "keep the wire away from mains cables, connect its ground, and take a supply without hum; \
                     bias = \"pull_down\" helps where the wire is open"
            .into(),
    })
}

/// Recognises a radio: each transmission disturbs the sensor for a moment, so pulses come in groups with long pauses.
fn radio(short: &[EdgePulse]) -> Option<Finding> {
    let bursts = bursts(short);
    let within: usize = bursts.iter().map(|group| group.len()).sum();
    let last = bursts.last()?;
    let sending: u64 = bursts.iter().map(|group| group[group.len() - 1].0 - group[0].0).sum();
    let span = last[last.len() - 1].0 - bursts[0][0].0;
    // random pulses form groups too, but the pauses between those are not much longer than the groups
    let is_radio = bursts.len() >= 3 && within * 5 >= short.len() * 4 && sending * 10 <= span;
    is_radio.then(|| Finding {
        verdict: Verdict::RadioBursts,
        evidence: format!("{within} short pulses in {} bursts within {}", bursts.len(), seconds(span)),
        remedy: "something beside the sensor sends in this rhythm (Wi-Fi, LoRa, a phone): move them apart, or put a capacitor of \
                 100 nF between output and ground of the sensor; a longer debounce hides it"
            .into(),
    })
}

fn floating(evidence: String) -> Finding {
    Finding {
        verdict: Verdict::FloatingPin,
        evidence: evidence + ", at random",
        remedy: "nothing seems to drive this pin: look at the wire and at the number of the pin; bias = \"pull_down\" keeps an open \
                 pin quiet"
            .into(),
    }
}

fn too_short(evidence: String) -> Finding {
    Finding {
        verdict: Verdict::ShortPulses,
        evidence: evidence + ", shorter than a PIR can make",
        remedy: "look for a loose contact and for a weak supply (an HC-SR501 needs 5 V); a longer debounce hides it"
            .into(),
    }
}

fn stuck(ms: u64) -> Finding {
    Finding {
        verdict: Verdict::Stuck,
        evidence: format!("active for {} without an edge", seconds(ms)),
        remedy: "the longest output of an HC-SR501 is 300 s: look at the sensor and its wire, which may touch 3.3 V"
            .into(),
    }
}

fn seconds(ms: u64) -> String {
    if ms < 120_000 { format!("{:.1} s", ms as f64 / 1000.0) } else { format!("{} min", ms / 60_000) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::status::EdgeFigures;
    use crate::status::edges::SHORT;

    /// Reads a recording: its verdict, its end and its edges.
    fn recording(text: &str) -> (String, u64, Vec<(u64, bool)>) {
        let after = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix)).unwrap();
        let edges = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (at, level) = line.split_once(' ').unwrap();
            (at.parse().unwrap(), level == "1")
        });
        (after("# expected: ").into(), after("# until ").parse().unwrap(), edges.collect())
    }

    #[test]
    fn every_recording_gets_the_verdict_that_it_is_labelled_with() {
        let mut seen = std::collections::BTreeSet::new();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pir")).unwrap() {
            let path = entry.unwrap().path();
            let (expected, until, recorded) = recording(&fs::read_to_string(&path).unwrap());
            let mut edges = PinEdges::default();
            recorded.iter().for_each(|(at, active)| edges.push(*active, *at));
            let found = edges.finding(until, 1_800_000);
            let figures = EdgeFigures::of(&edges.last().copy(), until);
            // the numbers in the evidence must agree with the verdict
            match expected.as_str() {
                "none" => assert!(figures.short_pulses < FEW, "{figures:?}"),
                "stuck" => assert!(figures.active_for_ms >= Some(1_800_000), "{figures:?}"),
                "radio_bursts" => {
                    assert!(figures.bursts >= 3 && figures.in_bursts <= figures.short_pulses, "{figures:?}")
                }
                "mains_hum" => assert!((8..=20).contains(&figures.period_ms.unwrap()), "{figures:?}"),
                _ => assert!(figures.short_pulses >= FEW && figures.shortest_ms < Some(SHORT), "{figures:?}"),
            }
            assert!(figures.median_ms <= figures.longest_ms && figures.edges <= recorded.len());
            let verdict = found.as_ref().map_or("none".into(), |finding| {
                assert!(!finding.evidence.is_empty() && !finding.remedy.is_empty());
                serde_json::to_value(finding.verdict).unwrap().as_str().unwrap().to_owned()
            });
            assert_eq!(verdict, expected, "{}: {found:?}", path.display());
            seen.insert(verdict);
        }
        assert_eq!(seen.len(), 6, "{seen:?}");
    }

    #[test]
    fn edges_are_bounded_and_old_ones_say_nothing() {
        let mut edges = PinEdges::default();
        for number in 0..2_000 {
            edges.push(number % 2 == 0, number * 10);
        }
        assert_eq!(edges.last.copy().len(), MOST_EDGES);
        assert!(edges.finding(20_000, 1_800_000).is_some());
        edges.push(true, 20_000 + WINDOW + 1);
        assert_eq!((edges.last.copy().len(), edges.finding(20_000 + WINDOW + 2, 1_800_000)), (1, None));
    }
}
