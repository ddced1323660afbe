//! Realistic upstreams: clouds with policies and quotas, brokers that are being deployed, bad lines, expired passwords. The
//! test plays the upstream, and checks which messages arrive, which are dropped, and what is reported.

#![allow(clippy::unwrap_used)]

mod certificates;
mod clouds;
mod evidence;
mod evidence_of_silence;
mod exactly_once;
mod faults;
mod large;
mod lasting;
mod line;
mod names;
mod orphans;
mod outage;
mod played;
mod policies;
mod quotas;
mod same_broker;
mod sessions;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod traces;

use support::{Connect, Gateway, Setup, http, wait_until};

/// The configuration of an upstream at this port with these keys and a rule.
pub fn upstream(port: u16, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
         retry = {{ min = \"100 ms\", max = \"400 ms\" }}\n{keys}\n[[upstream.out]]\ntopic_filter = \"loft/#\"\n"
    )
}

/// Starts a gateway with this configuration. Returns it with its port for HTTP.
pub fn start(config: &str) -> (Gateway, u16) {
    let (setup, port) = Setup::default().config(config).http();
    (setup.start(), port)
}

/// Publishes these texts to `loft/TOPIC`, and waits for each acknowledgement.
pub fn publish(gateway: &Gateway, topic: &str, texts: &[&str], retain: bool) {
    let mut client = Connect::v5("publisher").open(gateway.port);
    for text in texts {
        client.publish_with(&format!("loft/{topic}"), text, 1, retain, &support::Properties::new());
    }
    client.disconnect();
}

/// The ledger of the first upstream.
pub fn ledger(http_port: u16) -> serde_json::Value {
    http::get(http_port, "/api/v1/upstreams").json()[0]["ledger"].clone()
}

/// Waits until no message waits. Returns the number of dropped messages, for all reasons together.
#[track_caller]
pub fn drained(http_port: u16) -> u64 {
    wait_until("nothing waits", || ledger(http_port)["pending"] == 0);
    let ledger = ledger(http_port);
    ledger["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}
