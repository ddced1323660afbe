//! The state of the gateway as one JSON object:
//!
//! ```json
//! {"problem":null,"started":"2026-03-01T12:00:00.250Z","clients":3,"journal_used_bytes":8388608,
//!  "upstreams":{"home":{"connected":true,"pending":0,"oldest":null}}}
//! ```
//!
//! | key | what |
//! |---|---|
//! | `problem` | the present problems in words; `null` if there are none |
//! | `started` | when the gateway was started; `null` while the clock is not synchronised |
//! | `clients` | MQTT clients that are connected |
//! | `journal_used_bytes` | bytes of the journal on disk |
//! | `connected` | whether the upstream is connected |
//! | `pending` | messages that wait for it |
//! | `oldest` | when the oldest of them arrived; `null` if none waits or the time is not known |

use serde_json::{Map, Value, json};

use crate::health::FaultyPart;
use crate::status::{UpstreamSnapshot, UpstreamState};

/// Longest text of a problem, in bytes.
const LONGEST: usize = 1000;

/// The data of the message.
#[derive(Debug)]
pub(crate) struct GatewayState<'a> {
    pub(crate) faulty: &'a [FaultyPart],
    /// When the gateway was started, as text; `None` if it is not known.
    pub(crate) started: Option<String>,
    pub(crate) clients: usize,
    pub(crate) journal_used_bytes: u64,
    /// The upstreams, each with the arrival time of its oldest waiting message.
    pub(crate) upstreams: &'a [(UpstreamSnapshot, Option<String>)],
}

/// The part of the state whose changes are published at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateNews {
    problem: Option<String>,
    started: Option<String>,
    connected: Vec<bool>,
}

impl GatewayState<'_> {
    /// The part of the state whose changes are published at once.
    pub(crate) fn news(&self) -> StateNews {
        let connected = self.upstreams.iter().map(|(upstream, _)| upstream.state == UpstreamState::Connected);
        StateNews { problem: problem(self.faulty), started: self.started.clone(), connected: connected.collect() }
    }

    pub(crate) fn to_json(&self) -> Value {
        let upstream = |(upstream, oldest): &(UpstreamSnapshot, Option<String>)| {
            let connected = upstream.state == UpstreamState::Connected;
            let about = json!({"connected": connected, "pending": upstream.ledger.pending, "oldest": oldest});
            (upstream.name.clone(), about)
        };
        json!({
            "problem": problem(self.faulty), "started": self.started, "clients": self.clients,
            "journal_used_bytes": self.journal_used_bytes,
            "upstreams": self.upstreams.iter().map(upstream).collect::<Map<_, _>>(),
        })
    }
}

fn problem(faulty: &[FaultyPart]) -> Option<String> {
    let words = faulty.iter().map(|faulty| format!("{}: {}", faulty.part, faulty.fault.problem));
    let mut text = words.collect::<Vec<_>>().join("; ");
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Fault, Health};

    #[test]
    fn it_says_what_is_wrong_and_how_the_upstreams_are() {
        let health = Health::default();
        let mut home = UpstreamSnapshot { name: "home".into(), ..UpstreamSnapshot::default() };
        home.ledger.pending = 7;
        let upstreams = [(home, Some("2026-03-01T12:00:00.250Z".to_owned()))];
        let of = |faulty: &[FaultyPart]| {
            let state =
                GatewayState { faulty, started: None, clients: 3, journal_used_bytes: 9, upstreams: &upstreams };
            (state.news(), state.to_json())
        };
        let (calm, message) = of(&health.faulty());
        let expected = json!({
            "problem": null, "started": null, "clients": 3, "journal_used_bytes": 9,
            "upstreams": {"home": {"connected": false, "pending": 7, "oldest": "2026-03-01T12:00:00.250Z"}},
        });
        assert_eq!(message, expected);
        health.set("sensor loft", Some(&Fault::new("pin 17 is gone", "find it")));
        let (news, message) = of(&health.faulty());
        assert_ne!(news, calm);
        assert_eq!(message["problem"], "sensor loft: pin 17 is gone");
        health.set("listener x", Some(&Fault::new("ä".repeat(2 * LONGEST), "")));
        let text = of(&health.faulty()).1["problem"].as_str().unwrap().len();
        assert!((LONGEST - 1..LONGEST + 4).contains(&text), "{text}");
    }
}
