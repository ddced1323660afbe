//! Two upstreams that are one broker, which only their connections show. Their rules would send each message round for ever.

use serde_json::Value;

use crate::start;
use crate::support::{Mosquitto, free_port, http, wait_until};

/// Two upstreams at one broker by two addresses that the configuration cannot know to be one.
fn two(port: u16, protocol: &str, inbound: &str) -> String {
    let head = |name: &str, address: &str| {
        format!(
            "[[upstream]]\nname = \"{name}\"\nclient_id = \"{name}\"\naddresses = [\"mqtt://{address}:{port}\"]\n\
             protocol = {protocol}\nretry = {{ min = \"100 ms\", max = \"400 ms\" }}\n"
        )
    };
    format!(
        "{}[[upstream.out]]\ntopic_filter = \"loft/#\"\n{}[[upstream.in]]\ntopic_filter = \"{inbound}\"\n",
        head("up", "127.0.0.1"),
        head("down", "127.0.0.2")
    )
}

fn shown(http_port: u16) -> Vec<Value> {
    http::get(http_port, "/api/v1/upstreams").json().as_array().unwrap().clone()
}

#[test]
fn one_broker_by_two_names_does_not_make_messages_loop() {
    let port = free_port();
    let _broker = Mosquitto::with(&format!("listener {port} 0.0.0.0\n"));
    let (gateway, http) = start(&two(port, "4", "loft/#"));
    let is_refused = |upstream: &Value| {
        let error = upstream["last_error"].as_str().unwrap_or_default();
        error.contains("it is the same broker as upstream") && error.contains("would loop on MQTT 3.1.1")
    };
    wait_until("one of them is refused", || {
        let all = shown(http);
        all.iter().filter(|upstream| is_refused(upstream)).count() == 1
            && all.iter().filter(|upstream| upstream["state"] == "connected").count() == 1
    });
    let is_error = |line: &String| line.contains(" ERROR ") && line.contains("the same broker");
    wait_until("it is told, and once", || gateway.log().into_iter().filter(is_error).count() == 1);
}

#[test]
fn one_broker_by_two_names_serves_rules_that_do_not_loop() {
    let port = free_port();
    let _broker = Mosquitto::with(&format!("listener {port} 0.0.0.0\n"));
    for (protocol, inbound) in [("4", "cellar/#"), ("5", "loft/#")] {
        let (_gateway, http) = start(&two(port, protocol, inbound));
        wait_until("both are connected", || shown(http).iter().all(|upstream| upstream["state"] == "connected"));
    }
}
