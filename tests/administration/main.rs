//! The calls by HTTP that only an administrator may make: disconnect clients, delete retained messages below a branch, and
//! make users. Also signing in on the page, as programs see it.

#![allow(clippy::unwrap_used)]

mod sign_ins;
#[path = "../support/mod.rs"]
mod support;
mod users;

use std::fs;

use base64ct::{Base64, Encoding};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::broker::Setup;
use support::client::Connect;
use support::http::{Answer, escape, request};
use support::{quick_hash as hash, wait_until};

fn config() -> String {
    let user = |name: &str, more: &str| {
        format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{}\"\n{more}\n", hash(&format!("secret {name}")))
    };
    user("boss", "admin = true\npublish = [\"#\", \"!kept/#\"]\nsubscribe = [\"#\", \"$SYS/#\"]")
        + &user("hand", "subscribe = [\"hand/#\"]")
}

/// A caller of the interface.
struct Caller {
    port: u16,
    headers: Vec<(String, String)>,
}

impl Caller {
    fn guest(port: u16) -> Caller {
        Caller { port, headers: Vec::new() }
    }

    fn named(port: u16, name: &str, password: &str) -> Caller {
        let basic = format!("Basic {}", Base64::encode_string(format!("{name}:{password}").as_bytes()));
        Caller { port, headers: vec![("Authorization".into(), basic)] }
    }

    fn with(&self, name: &str, value: &str) -> Caller {
        let mut headers = self.headers.clone();
        headers.push((name.into(), value.into()));
        Caller { port: self.port, headers }
    }

    fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Answer {
        let mut headers: Vec<(&str, &str)> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let text = body.map(Value::to_string).unwrap_or_default();
        if body.is_some() && !headers.iter().any(|(name, _)| *name == "Content-Type") {
            headers.push(("Content-Type", "application/json"));
        }
        request(self.port, method, target, &headers, text.as_bytes())
    }

    #[track_caller]
    fn get(&self, target: &str) -> Value {
        let answer = self.call("GET", target, None);
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        answer.json()
    }

    fn status(&self, method: &str, target: &str, body: Option<&Value>) -> u16 {
        self.call(method, target, body).status
    }
}

/// Every call that only administrators may make.
fn administrative() -> Vec<(&'static str, &'static str, Option<Value>)> {
    vec![
        ("GET", "/api/v1/users", None),
        ("POST", "/api/v1/users", Some(json!({ "name": "evil", "password": "x" }))),
        ("PUT", "/api/v1/users/hand", Some(json!({ "password": "x" }))),
        ("DELETE", "/api/v1/users/hand", None),
        ("DELETE", "/api/v1/clients?client_id=victim", None),
        ("GET", "/api/v1/retained?filter=%23", None),
        ("DELETE", "/api/v1/retained?filter=%23", None),
    ]
}

#[test]
fn only_an_administrator_of_the_configuration_may() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"all\"").http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    assert_eq!(boss.status("POST", "/api/v1/users", Some(&json!({ "name": "made", "password": "made" }))), 201);
    let mut victim = Connect::new("victim").open(gateway.port);
    victim.publish("a/b", "x", 1, true);
    let guest = Caller::guest(port);
    for caller in [
        &guest,
        &guest.with("X-Forwarded-For", "192.0.2.1"),
        &guest.with("Cookie", &format!("pigateway-{port}=AAAA")),
        &Caller::named(port, "hand", "secret hand"),
        &Caller::named(port, "made", "made"),
    ] {
        for (method, target, body) in administrative() {
            let answer = caller.call(method, target, body.as_ref());
            assert_eq!(answer.status, 403, "{method} {target}: {}", answer.text());
            assert!(answer.text().contains("admin = true"));
        }
        assert_eq!(caller.get("/api/v1/session")["admin"], false);
    }
    for (method, target, body) in administrative() {
        let wrong = boss.with("Origin", "http://evil.example").status(method, target, body.as_ref());
        assert_eq!(wrong, 403, "{method} {target}");
    }
    victim.ping();
    assert_eq!(boss.get("/api/v1/retained?filter=a/%23"), json!({ "messages": 1, "kept": 0 }));
    assert_eq!(boss.get("/api/v1/users").as_array().unwrap().len(), 3);
    // a user that an administrator makes is never an administrator, whatever the request contains
    for body in [
        json!({ "name": "x", "password": "x", "admin": true }),
        json!({ "name": "x", "password": "x", "is_admin": true }),
    ] {
        let answer = boss.call("POST", "/api/v1/users", Some(&body));
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    assert_eq!(boss.status("PUT", "/api/v1/users/made", Some(&json!({ "admin": true }))), 400);
    // the right ends at once when the line in the file is removed
    let path = gateway.dir().join("pigateway.toml");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("admin = true\n", "")).unwrap();
    gateway.signal(Signal::HUP);
    wait_until("the reload", || boss.status("GET", "/api/v1/users", None) == 403);
}

#[test]
fn clients_are_disconnected_and_branches_deleted() {
    let (setup, port) = Setup::default().config(&config()).http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    // the same client id of a user and of a guest stands for two clients
    let mut of_user = Connect::v5("esp \"1\"/ü").login("hand", "secret hand").open(gateway.port);
    let mut of_guest = Connect::v5("esp \"1\"/ü").open(gateway.port);
    let target = |more: &str| format!("/api/v1/clients?client_id={}{more}", escape("esp \"1\"/ü"));
    assert_eq!(boss.status("DELETE", &target("&user=boss"), None), 404);
    assert_eq!(boss.status("DELETE", "/api/v1/clients", None), 400);
    assert_eq!(boss.status("DELETE", &target("&user=hand"), None), 204);
    of_user.closed_with(0x98);
    of_guest.ping();
    assert_eq!(boss.status("DELETE", &target(""), None), 204);
    of_guest.closed_with(0x98);
    wait_until("both have gone", || boss.status("DELETE", &target(""), None) == 404);

    let mut client = Connect::new("p").open(gateway.port);
    for number in 0..450 {
        client.publish(&format!("home/kitchen/{number}"), "x", 0, true);
    }
    for topic in ["home", "home/kitchen", "home/kitchenette", "home/a/b/c", "kept/a", "kept/b"] {
        client.publish(topic, "x", 1, true);
    }
    let mut watching = Connect::new("w").open(gateway.port);
    assert_eq!(boss.get("/api/v1/retained?filter=home/kitchen/%2B/%23"), json!({ "messages": 450, "kept": 0 }));
    for bad in ["/api/v1/retained", "/api/v1/retained?filter=", "/api/v1/retained?filter=a/%23/b"] {
        assert_eq!((boss.status("GET", bad, None), boss.status("DELETE", bad, None)), (400, 400), "{bad}");
    }
    let deleted = boss.call("DELETE", "/api/v1/retained?filter=home/kitchen/%2B/%23", None);
    assert_eq!(deleted.json(), json!({ "messages": 450, "kept": 0 }));
    watching.subscribe("home/#", 1);
    let mut left: Vec<String> = (0..4).map(|_| watching.receive().topic).collect();
    left.sort();
    assert_eq!(left, ["home", "home/a/b/c", "home/kitchen", "home/kitchenette"]);
    // an administrator's own rules apply, and nobody can delete the gateway's own figures
    assert_eq!(
        boss.call("DELETE", "/api/v1/retained?filter=kept/%23", None).json(),
        json!({ "messages": 0, "kept": 2 })
    );
    let figures = boss.call("DELETE", "/api/v1/retained?filter=%24SYS/%23", None).json();
    assert!(figures["messages"] == 0 && figures["kept"].as_u64() > Some(5), "{figures}");
    // the deletion survives a crash
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    assert_eq!(boss.get("/api/v1/retained?filter=home/%23"), json!({ "messages": 4, "kept": 0 }));
    drop(gateway);
}

#[test]
fn every_answer_is_one_that_the_description_names() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"none\"").http();
    let _gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    let others =
        [Caller::guest(port), boss.with("Origin", "http://evil.example"), Caller::named(port, "hand", "secret hand")];
    let described = boss.get("/api/v1/openapi.json");
    let bodies: [(&str, Vec<u8>); 6] = [
        ("", Vec::new()),
        ("text/plain", b"x".to_vec()),
        ("application/json", b"{}".to_vec()),
        ("application/json", b"{\"name\":\"hand\",\"password\":\"x\"}".to_vec()),
        ("application/json", b"{\"publish\":[\"a/#/b\"]}".to_vec()),
        ("application/json", vec![b' '; 100 << 10]),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            // an accepted stream does not end
            let is_endless = id == "stream";
            let called = |name: &str| match (path.split_once('{'), path.split_once('}')) {
                (Some((before, _)), Some((_, after))) => format!("{before}{name}{after}"),
                _ => path.clone(),
            };
            let names = ["x", "hand", "%ff", "no%2Fsuch", "a%2F%23"].map(called);
            let mut targets: Vec<String> = names.to_vec();
            targets.extend(
                ["?unknown=1", "?filter=%23%23&limit=x&qos=9&client_id=nobody", "?client_id=nobody", "?topic=a"]
                    .map(|query| format!("{}{query}", names[0])),
            );
            targets.dedup();
            for target in targets.iter().filter(|target| !is_endless || !target.contains("filter")) {
                let has_body = matches!(method.as_str(), "post" | "put");
                let is_first = target == &targets[0];
                for (kind, body) in bodies.iter().take(if has_body { bodies.len() } else { 1 }) {
                    let others = if is_first { &others[..] } else { &[] };
                    for caller in others.iter().chain([&boss]) {
                        let mut headers: Vec<(&str, &str)> =
                            caller.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                        headers.extend((!kind.is_empty()).then_some(("Content-Type", *kind)));
                        let answer = request(port, &method.to_uppercase(), target, &headers, body);
                        let status = answer.status.to_string();
                        assert!(
                            operation["responses"].get(&status).is_some(),
                            "{method} {target} {kind}: {status} is not described: {}",
                            answer.text()
                        );
                        seen.insert((id.to_owned(), answer.status));
                    }
                }
            }
        }
    }
    for (id, status) in [
        ("create_user", 409),
        ("create_user", 413),
        ("create_user", 415),
        ("change_user", 404),
        ("change_user", 409),
        ("remove_user", 404),
        ("remove_user", 409),
        ("disconnect_client", 404),
        ("delete_retained", 400),
        ("delete_retained", 403),
        ("count_retained", 401),
        ("publish", 204),
        ("sign_in", 415),
    ] {
        assert!(seen.contains(&(id.to_owned(), status)), "{id} {status}: {seen:?}");
    }
}
