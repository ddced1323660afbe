//! A message is traced from its PUBLISH to the acknowledgement of the upstream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::played::{Played, Say};
use crate::support::{Connect, Process, Properties, broker, http, wait_until};
use crate::{publish, start, upstream};

fn steps(trace: &serde_json::Value) -> Vec<String> {
    let steps = trace["steps"].as_array().unwrap().iter();
    steps.map(|step| step["step"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_message_is_followed_to_the_upstream_and_back() {
    let played = Played::new(|_| Say::Usual);
    let (gateway, port) = start(&upstream(played.port, ""));
    let id = http::request(port, "POST", "/api/v1/traces", &[], b"").json()["id"].as_str().unwrap().to_owned();
    let target = format!("/api/v1/traces/{id}");
    assert_eq!(steps(&http::get(port, &target).json()), [""; 0]);
    let mut client = Connect::v5("publisher").open(gateway.port);
    let followed = |id: &str| Properties::new().user("pigateway-trace", id);
    client.publish_with("loft/a", "1", 1, false, &followed("0123456789abcdef0123456789abcdef"));
    client.publish_with("loft/a", "2", 1, false, &followed(&id));
    client.publish_with("loft/b", "3", 1, false, &followed(&id));
    wait_until("it is acknowledged", || http::get(port, &target).json()["waits_for_upstreams"] == 0);
    let trace = http::get(port, &target).json();
    assert_eq!(steps(&trace), ["accepted", "synced", "sent", "acknowledged"], "{trace}");
    assert_eq!((&trace["topic"], &trace["steps"][3]["upstream"]), (&"loft/a".into(), &"home".into()));
    let times: Vec<u64> = trace["steps"].as_array().unwrap().iter().map(|s| s["boot_ms"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(http::get(port, "/api/v1/traces/0123456789abcdef0123456789abcdef").status, 404);
}

#[test]
fn a_message_on_a_denied_topic_is_followed_to_where_it_is_held_and_on() {
    let allowed = Arc::new(AtomicBool::new(false));
    let flag = allowed.clone();
    let played = Played::new(move |heard| match heard.publish() {
        Some(publish) if publish.topic == "loft/secret" && !flag.load(Ordering::Relaxed) => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    let mut number = 0;
    wait_until("the topic is known", || {
        publish(&gateway, "secret", &["x"], false);
        publish(&gateway, &format!("other{}", number % 3), &["y"], false);
        number += 1;
        gateway.log().iter().any(|line| line.contains("closes the connection at messages on this topic"))
    });
    let id = http::request(port, "POST", "/api/v1/traces", &[], b"").json()["id"].as_str().unwrap().to_owned();
    let trace = || http::get(port, &format!("/api/v1/traces/{id}")).json();
    let mut client = Connect::v5("publisher").open(gateway.port);
    client.publish_with("loft/secret", "followed", 1, false, &Properties::new().user("pigateway-trace", &id));
    let held = "held: the upstream closes the connection at messages of its topic or size";
    wait_until("it is held", || steps(&trace()).iter().any(|step| step == held));
    assert_eq!(
        (steps(&trace()), &trace()["waits_for_upstreams"]),
        (["accepted", "synced", held].map(str::to_owned).into(), &1.into())
    );
    // a reload tries the topic at once, also with the same file
    allowed.store(true, Ordering::Relaxed);
    gateway.signal(Signal::HUP);
    wait_until("it is acknowledged", || trace()["waits_for_upstreams"] == 0);
    let expected = ["accepted", "synced", held, "taken up again: its topic or size is tried", "sent", "acknowledged"];
    assert_eq!(steps(&trace()), expected);
    assert!(played.texts().contains(&"followed".to_owned()));
}

#[test]
fn a_message_that_gives_way_where_it_is_held_says_so() {
    let played = Played::new(move |heard| match heard.publish() {
        Some(publish) if publish.topic == "loft/secret" => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&format!("[journal]\nmax_size = \"2 MiB\"\n{}", upstream(played.port, "protocol = 4")));
    let mut number = 0;
    wait_until("the topic is known", || {
        publish(&gateway, "secret", &["x"], false);
        publish(&gateway, &format!("other{}", number % 3), &["y"], false);
        number += 1;
        gateway.log().iter().any(|line| line.contains("closes the connection at messages on this topic"))
    });
    let id = http::request(port, "POST", "/api/v1/traces", &[], b"").json()["id"].as_str().unwrap().to_owned();
    let trace = || http::get(port, &format!("/api/v1/traces/{id}")).json();
    let mut client = Connect::v5("publisher").open(gateway.port);
    client.publish_with("loft/secret", "followed", 1, false, &Properties::new().user("pigateway-trace", &id));
    wait_until("it is held", || steps(&trace()).iter().any(|step| step.starts_with("held: ")));
    let large = "x".repeat(20_000);
    wait_until("it gives way", || {
        publish(&gateway, "secret", &[&*large; 10], false);
        trace()["waits_for_upstreams"] == 0
    });
    let steps = steps(&trace());
    assert_eq!(
        steps.last().unwrap(),
        "dropped: it was held, and has given way because a limit was reached",
        "{steps:?}"
    );
}

#[test]
fn publish_with_trace_prints_the_steps_and_strangers_get_none() {
    let played = Played::new(|_| Say::Usual);
    let mut process = Process::start(broker::gateway().args(["user", "esp"]));
    process.input(b"secret\n");
    let user = process.wait().1;
    // the rules of the user are below
    let user: Vec<&str> = user
        .iter()
        .map(String::as_str)
        .filter(|line| !line.contains("publish") && !line.contains("subscribe"))
        .collect();
    let user = user.join("\n");
    let rules = "publish = [\"#\"]\nsubscribe = [\"loft/#\"]";
    let config = format!("{user}\n{rules}\n{}", upstream(played.port, ""));
    let (gateway, http_port) = start(&config);
    let run = |user: &[&str], input: &[u8]| {
        let (mqtt, web) = (gateway.port.to_string(), http_port.to_string());
        let mut command = broker::gateway();
        command.args([
            "publish",
            "loft/a",
            "x",
            "--trace",
            "--host",
            "127.0.0.1",
            "--port",
            &mqtt,
            "--http-port",
            &web,
        ]);
        let mut process = Process::start(command.args(user));
        process.input(input);
        process.wait()
    };
    let (code, lines) = run(&[], b"");
    let text = lines.join("\n");
    assert_eq!(code, Some(0), "{text}");
    for step in ["accepted", "synced", "upstream home: sent", "upstream home: acknowledged"] {
        assert!(text.contains(step), "{step} in\n{text}");
    }
    let (code, lines) = run(&["--user", "esp"], b"secret\n");
    assert!(code == Some(69) && lines.join("").contains("not authorised"), "{lines:?}");
}
