//! All doors use the same users and rules, and pages of other sites are refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use base64ct::{Base64, Encoding};
use support::broker::Setup;
use support::http::{escape, request, try_request};
use support::quick_hash as hash;
use support::tls::Authority;

/// Reproducible random choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % count
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 128);
    [&[kind, body.len() as u8], body].concat()
}

/// An MQTT 5 client that sends one request and reads the reason code of the answer.
fn mqtt(port: u16, user: Option<(&str, &str)>, action: Option<&[u8]>) -> u8 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let flags = if user.is_some() { 0xc2 } else { 0x02 };
    let mut connect = [&string("MQTT")[..], &[5, flags, 0, 0, 0], &string("")].concat();
    if let Some((name, password)) = user {
        connect.extend([string(name), string(password)].concat());
    }
    stream.write_all(&packet(0x10, &connect)).unwrap();
    let connack = answer(&mut stream);
    if connack[1] != 0 {
        return connack[1];
    }
    let Some(action) = action else { return 0 };
    stream.write_all(action).unwrap();
    let answer = answer(&mut stream);
    // packet id, properties if there are any, reason code; a PUBACK without one means success
    answer
        .get(2..)
        .map_or(0, |rest| if rest.len() > 1 && rest[0] == 0 { rest[1] } else { rest.first().copied().unwrap_or(0) })
}

fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; head[1].into()];
    stream.read_exact(&mut body).unwrap();
    body
}

fn basic(user: Option<(&str, &str)>) -> Vec<(&'static str, String)> {
    let encode = |(name, password): (&str, &str)| Base64::encode_string(format!("{name}:{password}").as_bytes());
    user.map(|user| ("Authorization", format!("Basic {}", encode(user)))).into_iter().collect()
}

fn http(port: u16, user: Option<(&str, &str)>, method: &str, target: &str) -> u16 {
    let headers = basic(user);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if target.starts_with("/api/v1/stream") {
        // the answer does not end, so only its first line is read
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        return String::from_utf8_lossy(&answer[9..]).parse().unwrap();
    }
    request(port, method, target, &headers, b"").status
}

/// A random topic filter. For a rule, it may begin with `!`.
fn rule(dice: &mut Dice, may_deny: bool) -> String {
    let mut rule = String::from(if may_deny && dice.below(3) == 0 { "!" } else { "" });
    for level in 0..3 {
        let part = dice.of(&["a", "b", "c", "", "+", "#"]);
        rule += if level > 0 { "/" } else { "" };
        rule += part;
        if part == "#" || dice.below(3) == 0 {
            break;
        }
    }
    if rule.trim_start_matches('!').is_empty() { "#".into() } else { rule }
}

#[test]
fn mqtt_and_http_give_the_same_answer() {
    let mut dice = Dice(20_261_122);
    let mut config = String::from("[broker.anonymous]\npublish = [\"a/#\"]\nsubscribe = [\"#\", \"!b/#\"]\n");
    for name in ["u0", "u1", "u2", "u3", "u4", "u5"] {
        let mut rules = || (0..3).map(|at| format!("{:?}", rule(&mut dice, at > 0))).collect::<Vec<_>>().join(", ");
        let (publish, subscribe) = (rules(), rules());
        let hash = hash(&format!("secret {name}"));
        config += &format!(
            "[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\npublish = [{publish}]\nsubscribe = [{subscribe}]\n"
        );
    }
    let (setup, port) = Setup::default().config(&config).http();
    let gateway = setup.start();
    let (mut allowed, mut denied) = (0, 0);
    for _ in 0..300 {
        let name = dice.of(&["u0", "u1", "u2", "u3", "u4", "u5", ""]);
        let password = format!("secret {name}");
        let user = (!name.is_empty()).then_some((name, password.as_str()));
        let filter = rule(&mut dice, false);
        let topic = filter.replace('+', "x").replace('#', "y");
        let publishes = dice.below(2) == 0;
        let (by_mqtt, by_http) = if publishes {
            let publish = [string(&topic), vec![0, 1, 0]].concat();
            let target = format!("/api/v1/topics?topic={}&qos=1", escape(&topic));
            (mqtt(gateway.port, user, Some(&packet(0x32, &publish))), http(port, user, "PUT", &target))
        } else {
            let filter = if dice.below(2) == 0 { &filter } else { &topic };
            let subscribe = [vec![0, 1, 0], string(filter), vec![0]].concat();
            let target = format!("/api/v1/stream?filter={}", escape(filter));
            (mqtt(gateway.port, user, Some(&packet(0x82, &subscribe))), http(port, user, "GET", &target))
        };
        let (mqtt_may, http_may) = (by_mqtt < 0x80, by_http < 300);
        assert_eq!(mqtt_may, http_may, "{name} {filter} {topic} {publishes}: {by_mqtt:#x} {by_http}\n{config}");
        assert!(http_may || by_http == 403, "{by_http}");
        if http_may { allowed += 1 } else { denied += 1 }
    }
    assert!(allowed > 30 && denied > 30, "{allowed} {denied}");
    // denied topics are not read either
    let put = [string("b/x"), vec![0, 1, 0]].concat();
    let _ = mqtt(gateway.port, Some(("u0", "secret u0")), Some(&packet(0x33, &put)));
    assert_eq!(http(port, None, "GET", "/api/v1/topics/b/x"), 403);
    for wrong in [("u0", "secret"), ("nobody", "x")] {
        assert_eq!(
            (mqtt(gateway.port, Some(wrong), None), http(port, Some(wrong), "GET", "/api/v1/sensors")),
            (0x86, 401)
        );
    }
}

#[test]
fn without_a_user_nobody_comes_in_where_anonymous_clients_do_not() {
    let config = format!(
        "[broker.anonymous]\naccept = \"none\"\n[[broker.user]]\nname = \"esp\"\npassword_hash = \"{}\"\nsubscribe = [\"loft/#\"]\n",
        hash("p")
    );
    let (setup, port) = Setup::default().config(&config).http();
    let _gateway = setup.start();
    for target in ["/", "/metrics", "/api/v1/topics?filter=loft/%23", "/api/v1/sensors", "/api/v1/gateway"] {
        let answer = request(port, "GET", target, &[], b"");
        assert_eq!(answer.status, 401, "{target}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Basic "), "a browser asks");
        assert!(!answer.text().contains("<script"));
    }
    let esp = Some(("esp", "p"));
    assert_eq!(http(port, esp, "GET", "/"), 200);
    assert_eq!(http(port, esp, "GET", "/api/v1/topics?filter=loft/%23"), 200);
    for target in ["/metrics", "/api/v1/clients", "/api/v1/problems", "/api/v1/upstreams", "/api/v1/gateway"] {
        assert_eq!(http(port, esp, "GET", target), 403, "{target} is not for a user that sees one room only");
    }
    for target in ["/livez", "/readyz", "/healthz", "/api/v1/openapi.json"] {
        assert_eq!(http(port, None, "GET", target), 200, "{target}");
    }
}

#[test]
fn what_a_proxy_passes_on_does_not_come_from_this_host() {
    let (setup, port) = Setup::default().http();
    let _gateway = setup.start();
    assert_eq!(request(port, "GET", "/api/v1/sensors", &[], b"").status, 200);
    let passed_on = [("X-Forwarded-For", "127.0.0.1")];
    assert_eq!(request(port, "GET", "/api/v1/sensors", &passed_on, b"").status, 401);
}

#[test]
fn pages_of_other_sites_are_refused_everywhere() {
    let (setup, port) = Setup::default().http();
    let _gateway = setup.start();
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Protocol", "mqtt"),
    ];
    let own = format!("http://localhost:{port}");
    for (method, target, extra) in [
        ("GET", "/", &[][..]),
        ("GET", "/livez", &[]),
        ("GET", "/api/v1/topics/a", &[]),
        ("PUT", "/api/v1/topics/a", &[]),
        ("POST", "/api/v1/topics/a", &[("Content-Type", "text/plain")]),
        ("DELETE", "/api/v1/topics/a", &[]),
        ("GET", "/api/v1/stream?filter=%23", &[]),
        ("GET", "/metrics", &[]),
        ("GET", "/mqtt", &upgrade[1..]),
        ("GET", "/nothing", &[]),
    ] {
        for foreign in [
            ("Origin", "http://evil.example"),
            ("Origin", "null"),
            ("Origin", "http://localhost:1"),
            ("Host", "evil.example"),
            ("Host", "rebound.evil.example:8080"),
            ("Sec-Fetch-Site", "cross-site"),
        ] {
            let headers = [extra, &[foreign]].concat();
            let answer = try_request(port, method, target, &headers, b"").unwrap();
            if target == "/mqtt" && foreign.0 == "Host" {
                // browsers send an Origin with every upgrade, so a request without one comes from a program, which may use
                // any name
                assert_ne!(answer.status, 403, "{foreign:?}: {}", answer.head);
                continue;
            }
            assert_eq!(answer.status, 403, "{method} {target} {foreign:?}: {}", answer.head);
        }
    }
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let lines: String = upgrade.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET /mqtt HTTP/1.1\r\nHost: localhost:{port}\r\nOrigin: {own}\r\n{lines}\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101", "our own page may");
}

#[test]
fn https_is_served_with_the_certificate_of_the_configuration() {
    let authority = Authority::new();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let (setup, port) = setup.http_tls("{ cert = \"server.crt\", key = \"server.key\" }");
    let gateway = setup.start();
    let url = format!("https://localhost:{port}/api/v1/sensors");
    let ca = gateway.dir().join("ca.crt");
    let output = Command::new("curl").args(["-fsS", "--cacert"]).arg(ca).arg(&url).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "[]", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(try_request(port, "GET", "/livez", &[], b"").is_err(), "nothing in the clear");
}
