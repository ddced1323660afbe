//! Upstreams as they really are: clouds with policies and quotas, brokers that are being deployed, bad lines, expired
//! passwords. The upstream is played, and what is asserted is what arrives, what is dropped, and what is said.

#![allow(clippy::unwrap_used)]

mod certificates;
mod clouds;
mod evidence;
mod exactly_once;
mod faults;
mod line;
mod orphans;
mod outage;
mod played;
mod strangers;
#[path = "../support/mod.rs"]
mod support;
mod traces;

use support::{Connect, Gateway, Setup, http, wait_until};

/// An upstream at this port with these keys, and what goes up.
pub fn upstream(port: u16, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\n\
         retry = {{ min = \"100 ms\", max = \"400 ms\" }}\n{keys}\n[[upstream.out]]\ntopic_filter = \"loft/#\"\n"
    )
}

/// A gateway with this configuration and the port of its HTTP.
pub fn start(config: &str) -> (Gateway, u16) {
    let (setup, port) = Setup::default().config(config).http();
    (setup.start(), port)
}

/// Publishes these texts to `loft/TOPIC`, each acknowledged.
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

/// Waits until nothing waits; what was dropped by then, all reasons together.
#[track_caller]
pub fn drained(http_port: u16) -> u64 {
    wait_until("nothing waits", || ledger(http_port)["pending"] == 0);
    let ledger = ledger(http_port);
    ledger["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}
