//! HTTP and MQTT serve the same topics, with the same guarantees.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use serde_json::json;
use support::broker::{Gateway, Setup};
use support::client::Connect;
use support::http::{Events, escape, get, request};
use support::{quick_hash, wait_until};

const SENSOR: &str = "[[sensor]]\nname = \"loft-motion\"\npin = 17\ntopic = \"loft/motion1\"\nwarm_up = \"0 s\"\nhold = \"100 ms\"\n\
                      simulate = [\"100 ms off\", \"400 ms on\"]\n";

fn start(config: &str) -> (Gateway, u16) {
    let (setup, http) = Setup::default().config(config).http();
    (setup.start(), http)
}

fn publish(gateway: &Gateway, topic: &str, payload: &str, retain: bool) {
    let mut command = Command::new("mosquitto_pub");
    command.args(["-p", &gateway.port.to_string(), "-q", "1", "-t", topic, "-m", payload]);
    if retain {
        command.arg("-r");
    }
    assert!(command.status().unwrap().success());
}

#[test]
fn what_is_not_retained_is_said() {
    let (_gateway, http) = start("[broker]\nmax_retained = 1\n");
    let path = "/api/v1/topics/";
    assert_eq!(request(http, "PUT", &format!("{path}a?retain=true"), &[], b"1").status, 204);
    let mut stream = Events::open(http, "filter=b", &[]);
    let full = request(http, "PUT", &format!("{path}b?retain=true"), &[], b"1");
    assert_eq!(full.status, 507);
    assert!(full.json()["detail"].as_str().unwrap().contains("max_retained"), "{}", full.text());
    assert_eq!(stream.wait_for("message").data["topic"], "b", "it is delivered all the same");
    assert_eq!(request(http, "PUT", &format!("{path}a?retain=true"), &[], b"2").status, 204);
    // a message that is too large for the store leaves the retained one in place, and REST says which of the two it shows
    let (gateway, http) = start("[broker]\nmax_retained_size = \"1 KiB\"\n");
    assert_eq!(request(http, "PUT", &format!("{path}a?retain=true"), &[], b"1").status, 204);
    assert_eq!(request(http, "PUT", &format!("{path}a?retain=true"), &[], &[b'x'; 2000]).status, 507);
    assert_eq!(get(http, &format!("{path}a")).header("pigateway-retained"), Some("false"));
    assert_eq!(request(http, "PUT", &format!("{path}{}a", "a/".repeat(200)), &[], b"1").status, 400);
    drop(gateway);
}

#[test]
fn every_topic_round_trips() {
    let (gateway, http) = start("");
    let mut stream = Events::open(http, "filter=%23", &[]);
    for topic in [
        "plain/topic",
        "//",
        "/a//b/",
        "..",
        "a/../b/./c",
        "with space/and more",
        "Dachboden/Lüfter/温度/🙂",
        "a%2Fb",
        "100%",
        "?query&a=b;c,d",
        "\"quoted\"\\back",
    ] {
        let by_parameter = format!("/api/v1/topics?topic={}", escape(topic));
        let path = if topic == ".." { by_parameter.clone() } else { format!("/api/v1/topics/{}", escape(topic)) };
        let put = request(
            http,
            "PUT",
            &format!("{path}{}qos=1", if path.contains('?') { '&' } else { '?' }),
            &[],
            topic.as_bytes(),
        );
        assert_eq!(put.status, 204, "{topic}: {}", put.text());
        for target in [&path, &by_parameter] {
            let answer = get(http, target);
            assert_eq!((answer.status, answer.text()), (200, topic.into()));
            assert_eq!(answer.header("pigateway-retained"), Some("false"));
        }
        let event = stream.wait_for("message");
        assert_eq!((&event.data["topic"], &event.data["payload"]), (&json!(topic), &json!(topic)));
        // the other direction
        publish(&gateway, topic, "by MQTT", true);
        stream.wait_for("message");
        let as_json = request(http, "GET", &path, &[("Accept", "application/json")], &[]).json();
        assert_eq!((&as_json["topic"], &as_json["payload"]), (&json!(topic), &json!("by MQTT")));
        assert_eq!(as_json["retained"], true);
    }
    // in the usual form of a path
    for (path, topic) in
        [("a/b", "a/b"), ("a//b", "a//b"), ("a/../b", "a/../b"), ("a%2Fb", "a/b"), ("a%252Fb", "a%2Fb")]
    {
        assert_eq!(request(http, "PUT", &format!("/api/v1/topics/{path}"), &[], topic.as_bytes()).status, 204);
        assert_eq!(get(http, &format!("/api/v1/topics?topic={}", escape(topic))).text(), topic);
    }
    for bad in ["a%", "a%ff", "%00", "a/%23", "+", ""] {
        let answer = request(http, "PUT", &format!("/api/v1/topics/{bad}"), &[], b"x");
        assert!(matches!(answer.status, 400 | 404), "{bad}: {}", answer.status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!(answer.json()["status"], answer.status);
    }
}

#[test]
fn retained_and_live_messages_are_told_apart_and_cleared() {
    let (gateway, http) = start("");
    publish(&gateway, "t", "kept", true);
    wait_until("the retained message", || get(http, "/api/v1/topics/t").text() == "kept");
    assert_eq!(get(http, "/api/v1/topics/t").header("pigateway-retained"), Some("true"));
    assert_eq!(request(http, "POST", "/api/v1/topics/t?qos=0", &[("Content-Type", "text/csv")], b"1,2").status, 204);
    let live = get(http, "/api/v1/topics/t");
    assert_eq!((live.header("pigateway-retained"), live.header("content-type")), (Some("false"), Some("text/csv")));
    assert!(live.header("content-security-policy").unwrap().contains("sandbox"));
    assert_eq!(request(http, "DELETE", "/api/v1/topics/t", &[], &[]).status, 204);
    assert_eq!(get(http, "/api/v1/topics/t").status, 404);
    let received = Command::new("mosquitto_sub")
        .args(["-p", &gateway.port.to_string(), "-t", "t", "-W", "1", "--retained-only"])
        .output()
        .unwrap();
    assert!(received.stdout.is_empty(), "nothing retained is left");
    // lists
    for number in 0..25 {
        let put = request(http, "PUT", &format!("/api/v1/topics/list/{number:02}?retain=true"), &[], b"x");
        assert_eq!(put.status, 204);
    }
    let (mut after, mut topics) = (String::new(), Vec::new());
    loop {
        let page = get(http, &format!("/api/v1/topics?filter=list/%2B&limit=10&after={after}")).json();
        topics.extend(page["messages"].as_array().unwrap().iter().map(|m| m["topic"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = escape(next),
            None => break,
        }
    }
    assert_eq!(topics, (0..25).map(|number| format!("list/{number:02}")).collect::<Vec<_>>());
    assert_eq!(get(http, "/api/v1/topics?filter=%23").json()["messages"].as_array().unwrap().len(), 25);
    assert!(get(http, "/api/v1/topics?filter=$SYS/%23").status == 403, "only when a rule names it");
}

#[test]
fn requests_are_bounded() {
    let (_gateway, http) = start("[broker]\nmax_packet_size = \"4 KiB\"\n");
    assert_eq!(request(http, "PUT", "/api/v1/topics/t", &[], &[b'x'; 4000]).status, 204);
    assert_eq!(request(http, "PUT", "/api/v1/topics/t", &[], &[b'x'; 4096]).status, 413);
    let head = [("Transfer-Encoding", "chunked")];
    let chunked = [b"1400\r\n".to_vec(), vec![b'x'; 0x1400], b"\r\n0\r\n\r\n".to_vec()].concat();
    // hyper refuses a message with both lengths, so this one is sent by hand
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", http)).unwrap();
    use std::io::{Read, Write};
    let head = format!("PUT /api/v1/topics/t HTTP/1.1\r\nHost: localhost\r\n{}: {}\r\n\r\n", head[0].0, head[0].1);
    stream.write_all(&[head.into_bytes(), chunked].concat()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    for (method, target, status) in [
        ("GET", "/nothing", 404),
        ("PATCH", "/api/v1/topics/t", 405),
        ("PUT", "/api/v1/topics/t?qos=3", 400),
        ("PUT", "/api/v1/topics/t?Retain=true", 400),
        ("GET", "/api/v1/topics?filter=a/%23/b", 400),
        ("GET", "/api/v1/stream", 400),
        ("GET", "/mqtt", 400),
    ] {
        let answer = request(http, method, target, &[], &[]);
        assert_eq!(answer.status, status, "{method} {target}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{method} {target}");
    }
}

#[test]
fn the_content_type_is_a_part_of_the_size_of_a_message() {
    let (gateway, http) = start("[broker]\nmax_packet_size = \"64 KiB\"\n");
    let mut reader = Connect::v5("reader").persistent().open(gateway.port);
    reader.subscribe("t", 1);
    let kind = format!("text/{}", "x".repeat(28_000));
    let put = |length: usize| {
        request(http, "PUT", "/api/v1/topics/t", &[("Content-Type", &kind)], &vec![b'x'; length]).status
    };
    let most = (64 << 10) - "t".len() - (3 + kind.len()) - 18;
    assert_eq!((put(65_000), put(most + 1), put(most)), (413, 413, 204));
    assert_eq!(reader.receive().payload.len(), most);
}

#[test]
fn sensors_have_a_past_that_survives_a_restart() {
    let (gateway, http) = start(SENSOR);
    let events = |query: &str| get(http, &format!("/api/v1/sensors/loft-motion/events?{query}")).json();
    wait_until("motion and its end", || events("")["events"].as_array().unwrap().len() >= 3);
    let sensor = get(http, "/api/v1/sensors/loft-motion").json();
    assert_eq!((&sensor["name"], &sensor["pin"]), (&json!("loft-motion"), &json!(17)));
    assert_eq!(get(http, "/api/v1/sensors").json().as_array().unwrap().len(), 1);
    assert_eq!(get(http, "/api/v1/sensors/attic").status, 404);
    let before = events("limit=3")["events"].clone();
    assert_eq!(before[0]["state"], "off");
    assert_eq!(before[1]["state"], "on");
    let gateway = gateway.kill().restart();
    wait_until("the sensor", || get(http, "/api/v1/sensors/loft-motion").status == 200);
    let page = events("limit=2");
    assert_eq!((&page["events"][0], &page["events"][1], &page["more"]), (&before[0], &before[1], &json!(true)));
    let next = events(&format!("limit=1&cursor={}", page["cursor"]));
    assert_eq!(next["events"][0], before[2]);
    assert!(events("since=2999-01-01T00:00:00Z")["events"].as_array().unwrap().is_empty());
    assert_eq!(get(http, "/api/v1/sensors/loft-motion/events?since=yesterday").status, 400);
    gateway.stop();
}

#[test]
fn an_upstream_that_is_down_is_shown_and_does_not_make_the_gateway_ill() {
    let upstream =
        "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"#\"\n";
    let (_gateway, http) = start(upstream);
    assert_eq!(request(http, "PUT", "/api/v1/topics/a?qos=1", &[], b"x").status, 204);
    wait_until("the backlog", || get(http, "/api/v1/upstreams").json()[0]["ledger"]["pending"] == 1);
    let home = get(http, "/api/v1/upstreams").json()[0].clone();
    assert_eq!((&home["name"], &home["state"]), (&json!("home"), &json!("waiting")));
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(get(http, path).status, 200);
    }
    let metrics = get(http, "/metrics").text();
    for line in [
        "pigateway_upstream_connected{upstream=\"home\"} 0",
        "pigateway_upstream_pending{upstream=\"home\"} 1",
        "# TYPE pigateway_mqtt_packets_received_total counter",
    ] {
        assert!(metrics.lines().any(|known| known == line), "{line} in\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("pigateway_") && value.parse::<f64>().is_ok(), "{line}");
    }
    let document = get(http, "/api/v1/openapi.json").json();
    assert!(document["paths"]["/api/v1/topics/{topic}"]["put"].is_object());
    assert_eq!(get(http, "/api/v1/gateway").json()["id"], "test");
}

/// Runs every example of the documentation unchanged.
#[test]
fn the_examples_work() {
    let text = ["README.md", "docs/http.md"].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    let text = text.replace("\\\n", " ");
    let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let examples: Vec<&str> = blocks.flat_map(str::lines).filter(|line| line.starts_with("curl ")).collect();
    assert!(examples.len() >= 15, "{}", examples.len());
    let upstream = "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n";
    let hash = quick_hash("PASSWORD");
    let boss =
        format!("[[broker.user]]\nname = \"boss\"\nadmin = true\npublish = [\"#\"]\npassword_hash = \"{hash}\"\n");
    let (gateway, http) = start(&format!("{boss}{SENSOR}{upstream}"));
    wait_until("the sensor", || get(http, "/api/v1/topics/loft/motion1").status == 200);
    for example in examples {
        // the client that is to be disconnected, once its user has been made
        let client = example.contains("client_id=esp-1").then(|| Connect::new("esp-1").login("esp", "secret"));
        let _client = client.map(|client| client.open(gateway.port));
        let command = example.replace("localhost:8080", &format!("localhost:{http}")).replace("curl ", "curl -fsS ");
        let output = Command::new("timeout").args(["3", "sh", "-c", &command]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // a stream lasts until it is stopped
        let expected = if example.contains("/stream") { Some(124) } else { Some(0) };
        assert_eq!(output.status.code(), expected, "{command}: {error}");
        assert!(!output.stdout.is_empty() || example.contains("-X "), "{command} says nothing");
    }
}
