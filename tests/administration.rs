//! What an administrator may do by HTTP, and nobody else: disconnect clients, delete below a branch, make users. And signing
//! in on the page, as programs see it.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use base64ct::{Base64, Encoding};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::broker::{Gateway, Setup};
use support::client::Connect;
use support::http::{Answer, Events, escape, request};
use support::{quick_hash as hash, wait_until};

fn config() -> String {
    let user = |name: &str, more: &str| {
        format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{}\"\n{more}\n", hash(&format!("secret {name}")))
    };
    user("boss", "admin = true\npublish = [\"#\", \"!kept/#\"]\nsubscribe = [\"#\", \"$SYS/#\"]")
        + &user("hand", "subscribe = [\"hand/#\"]")
}

/// Somebody who calls.
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
    // nobody whom an administrator makes is one, whatever is sent
    for body in [
        json!({ "name": "x", "password": "x", "admin": true }),
        json!({ "name": "x", "password": "x", "is_admin": true }),
    ] {
        let answer = boss.call("POST", "/api/v1/users", Some(&body));
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    assert_eq!(boss.status("PUT", "/api/v1/users/made", Some(&json!({ "admin": true }))), 400);
    // the right goes with the line in the file, at once
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
    // the same client id of a user and of a guest is two clients
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
    // its own rules hold for an administrator, and the gateway's own figures are nobody's
    assert_eq!(
        boss.call("DELETE", "/api/v1/retained?filter=kept/%23", None).json(),
        json!({ "messages": 0, "kept": 2 })
    );
    let figures = boss.call("DELETE", "/api/v1/retained?filter=%24SYS/%23", None).json();
    assert!(figures["messages"] == 0 && figures["kept"].as_u64() > Some(5), "{figures}");
    // and it holds over a crash
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    assert_eq!(boss.get("/api/v1/retained?filter=home/%23"), json!({ "messages": 4, "kept": 0 }));
    drop(gateway);
}

fn made_path(gateway: &Gateway) -> std::path::PathBuf {
    gateway.dir().join("data/users.toml")
}

#[test]
fn users_made_by_http_act_at_once_and_survive() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"none\"").http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    let name = "esp \"ü\"\\ /?#% 🙂";
    let target = format!("/api/v1/users/{}", escape(name));
    assert_eq!(Connect::new("a").login(name, "pw 1").refused(gateway.port), 4);
    let body = json!({ "name": name, "password": "pw 1", "publish": ["esp/#"], "subscribe": ["esp/#", "!esp/x"] });
    let made = boss.call("POST", "/api/v1/users", Some(&body));
    assert_eq!((made.status, &made.json()["from"]), (201, &json!("made")), "{}", made.text());
    let path = made_path(&gateway);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::read_to_string(&path).unwrap().contains("pw 1"));
    let mut client = Connect::v5("a").login(name, "pw 1").open(gateway.port);
    assert!(client.publish("esp/a", "x", 1, false) < 0x80 && client.publish("other", "x", 1, false) == 0x87);
    // what is not valid changes nothing, and is said with the key
    for (method, target, body, status, said) in [
        ("POST", "/api/v1/users", json!({ "name": name, "password": "x" }), 409, "already"),
        ("POST", "/api/v1/users", json!({ "name": "hand", "password": "x" }), 409, "configuration"),
        ("PUT", "/api/v1/users/hand", json!({ "password": "x" }), 409, "configuration"),
        ("PUT", "/api/v1/users/nobody", json!({ "password": "x" }), 404, "no such user"),
        ("POST", "/api/v1/users", json!({ "name": "" , "password": "x" }), 400, "name"),
        ("POST", "/api/v1/users", json!({ "name": ".." , "password": "x" }), 400, "name"),
        ("POST", "/api/v1/users", json!({ "name": "a\nb" , "password": "x" }), 400, "name"),
        ("POST", "/api/v1/users", json!({ "name": "a\u{0}" , "password": "x" }), 400, "name"),
        ("POST", "/api/v1/users", json!({ "name": "x".repeat(300), "password": "x" }), 400, "name"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "" }), 400, "password"),
        ("POST", "/api/v1/users", json!({ "name": "a" }), 400, "password"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "x", "publish": ["a/#/b"] }), 400, "publish"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "x", "subscribe": ["!"] }), 400, "subscribe"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "x", "subscribe": ["a+"] }), 400, "subscribe"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "x", "client_ids": [""] }), 400, "client_ids"),
        ("POST", "/api/v1/users", json!({ "name": "a", "password": "x", "rights": [] }), 400, "rights"),
        ("POST", "/api/v1/users", json!([]), 400, "body"),
    ] {
        let answer = boss.call(method, target, Some(&body));
        assert_eq!(answer.status, status, "{method} {target} {body}: {}", answer.text());
        assert!(answer.json()["detail"].as_str().unwrap().contains(said), "{body}: {}", answer.text());
    }
    let text = boss.with("Content-Type", "text/plain").status("POST", "/api/v1/users", Some(&body));
    assert_eq!(text, 415, "a form of another site could send that");
    assert_eq!(boss.get("/api/v1/users").as_array().unwrap().len(), 3);
    // other rules and another password end what goes on
    assert_eq!(boss.status("PUT", &target, Some(&json!({ "publish": [] }))), 200);
    client.closed_with(0x98);
    let mut client = Connect::v5("a").login(name, "pw 1").open(gateway.port);
    assert_eq!(client.publish("esp/a", "x", 1, false), 0x87);
    assert_eq!(boss.status("PUT", &target, Some(&json!({ "password": "pw 2" }))), 200);
    client.closed_with(0x98);
    assert_eq!(Connect::new("a").login(name, "pw 1").refused(gateway.port), 4);
    drop(Connect::new("a").login(name, "pw 2").open(gateway.port));
    // over a crash, and a reload
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    let mut client = Connect::v5("a").login(name, "pw 2").open(gateway.port);
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    client.ping();
    // removed while it is connected
    assert_eq!(boss.status("DELETE", &target, None), 204);
    client.closed_with(0x98);
    assert_eq!(Connect::new("a").login(name, "pw 2").refused(gateway.port), 4);
    assert_eq!((boss.status("DELETE", &target, None), boss.status("DELETE", "/api/v1/users/hand", None)), (404, 409));
}

#[test]
fn what_may_not_be_meant_in_the_file_of_users_is_shown_everywhere() {
    let (setup, port) = Setup::default().config(&config()).http();
    let path = setup.dir().join("data/users.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "\n[[user]]\nname = \"card\"\n").unwrap();
    let gateway = setup.start();
    let said = "users.toml:2:1: user.password_hash: there is none: this user can only come with a client certificate";
    gateway.wait_for_line(said);
    let boss = Caller::named(port, "boss", "secret boss");
    let problems = boss.get("/api/v1/problems");
    let is_said = |problem: &Value| problem["text"].as_str().is_some_and(|text| text.ends_with(said));
    assert!(problems.as_array().unwrap().iter().any(is_said), "{problems}");
    let (code, text) = check(&gateway);
    assert!(code == Some(0) && text.contains(said), "{text}");
}

/// Whether a client with a session that stays finds one.
fn finds_session(gateway: &Gateway, id: &str, user: &str, password: &str) -> bool {
    Connect::v5(id).login(user, password).persistent().open_with(gateway.port).1.present
}

#[test]
fn who_is_given_the_name_of_a_former_user_finds_nothing_of_it() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"none\"").http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    let body = json!({ "name": "eve", "password": "pw 1" });
    for is_killed in [false, true] {
        assert_eq!(boss.status("POST", "/api/v1/users", Some(&body)), 201);
        let (mut away, connack) = Connect::v5("away").login("eve", "pw 1").persistent().open_with(gateway.port);
        assert!(!connack.present);
        away.subscribe("secret", 1);
        away.disconnect();
        let mut connected = Connect::v5("connected").login("eve", "pw 1").persistent().open(gateway.port);
        connected.subscribe("secret", 1);
        let mut sender = Connect::v5("s").login("boss", "secret boss").open(gateway.port);
        assert!(sender.publish("secret", "x", 1, false) < 0x80);
        assert_eq!(boss.status("DELETE", "/api/v1/users/eve", None), 204);
        connected.closed_with(0x98);
        assert_eq!(boss.status("POST", "/api/v1/users", Some(&body)), 201);
        // in the other round the gateway is killed as soon as the answer is there
        if !is_killed {
            assert!(
                !finds_session(&gateway, "away", "eve", "pw 1") && !finds_session(&gateway, "connected", "eve", "pw 1")
            );
            // a new password leaves all as it is
            assert_eq!(boss.status("PUT", "/api/v1/users/eve", Some(&json!({ "password": "pw 2" }))), 200);
            assert!(finds_session(&gateway, "away", "eve", "pw 2"));
            assert_eq!(boss.status("DELETE", "/api/v1/users/eve", None), 204);
        }
    }
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    assert!(!finds_session(&gateway, "away", "eve", "pw 1"));
    assert_eq!(boss.status("DELETE", "/api/v1/users/eve", None), 204);
    assert_eq!(boss.status("POST", "/api/v1/users", Some(&body)), 201);
    assert!(!finds_session(&gateway, "away", "eve", "pw 1"));

    // a line of the configuration may be missing for a while; another password hash is somebody else
    let path = gateway.dir().join("pigateway.toml");
    let before = fs::read_to_string(&path).unwrap();
    assert!(!finds_session(&gateway, "a", "hand", "secret hand"));
    let line = format!("name = \"hand\"\npassword_hash = \"{}\"", hash("secret hand"));
    assert!(before.contains(&line));
    let reload = |gateway: &Gateway, text: &str| {
        fs::write(&path, text).unwrap();
        let said =
            |gateway: &Gateway| gateway.log().iter().filter(|line| line.contains("configuration reloaded")).count();
        let count = said(gateway);
        gateway.signal(Signal::HUP);
        wait_until("the reload", || said(gateway) > count);
    };
    let without = before.replace(&line, &line.replace("hand", "hamd"));
    reload(&gateway, &without);
    assert_eq!(Connect::new("a").login("hand", "secret hand").refused(gateway.port), 4);
    reload(&gateway, &before);
    assert!(finds_session(&gateway, "a", "hand", "secret hand"));
    reload(&gateway, &without);
    let another = hash("another");
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    reload(&gateway, &before.replace(&hash("secret hand"), &another));
    assert!(!finds_session(&gateway, "a", "hand", "another"));
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
            // these go on for as long as they like, once they are let in
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

fn check(gateway: &Gateway) -> (Option<i32>, String) {
    let mut checking = Command::new(env!("CARGO_BIN_EXE_pigateway"));
    let output = checking.args(["check", "pigateway.toml"]).current_dir(gateway.dir()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_configuration_wins_and_a_broken_file_is_said_and_left_alone() {
    let (setup, port) = Setup::default().config(&config()).http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    for name in ["esp", "other"] {
        assert_eq!(boss.status("POST", "/api/v1/users", Some(&json!({ "name": name, "password": "made" }))), 201);
    }
    let mut other = Connect::v5("o").login("other", "made").open(gateway.port);
    let mut esp = Connect::v5("e").login("esp", "made").open(gateway.port);
    let config = gateway.dir().join("pigateway.toml");
    let with_esp = format!("\n[[broker.user]]\nname = \"esp\"\npassword_hash = \"{}\"\n", hash("by hand"));
    fs::write(&config, fs::read_to_string(&config).unwrap() + &with_esp).unwrap();
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("wins over this one");
    esp.closed_with(0x98);
    other.ping();
    assert_eq!(Connect::new("e").login("esp", "made").refused(gateway.port), 4);
    drop(Connect::new("e").login("esp", "by hand").open(gateway.port));
    let users = boss.get("/api/v1/users");
    let esps: Vec<&Value> = users.as_array().unwrap().iter().filter(|user| user["name"] == "esp").collect();
    assert_eq!(
        esps.iter().map(|user| (&user["from"], &user["in_force"])).collect::<Vec<_>>(),
        [(&json!("configuration"), &json!(true)), (&json!("made"), &json!(false))]
    );
    let (code, said) = check(&gateway);
    assert!(code == Some(0) && said.contains("data/users.toml:4:1: user.name") && said.contains("\"esp\""), "{said}");
    assert_eq!(boss.status("PUT", "/api/v1/users/esp", Some(&json!({ "password": "x" }))), 409);
    assert_eq!(boss.status("DELETE", "/api/v1/users/esp", None), 204, "the one that does not count");
    drop(Connect::new("e").login("esp", "by hand").open(gateway.port));

    // broken by hand
    let path = made_path(&gateway);
    let good = fs::read_to_string(&path).unwrap();
    let broken = good.replace("subscribe = [\"#\"]", "subscribe = [\"#\"");
    assert_ne!(good, broken);
    fs::write(&path, &broken).unwrap();
    for (method, target, body) in [
        ("POST", "/api/v1/users", Some(json!({ "name": "new", "password": "x" }))),
        ("DELETE", "/api/v1/users/other", None),
    ] {
        let answer = boss.call(method, target, body.as_ref());
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.text().contains("users.toml:") && answer.text().contains("not TOML"), "{}", answer.text());
    }
    let (code, said) = check(&gateway);
    assert!(code == Some(66) && said.contains("users.toml:") && said.contains("not TOML"), "{said}");
    gateway.signal(Signal::HUP);
    gateway.wait_for_lines("configuration reloaded", 2);
    other.ping();
    let problems = boss.get("/api/v1/problems?now=true").to_string();
    assert!(problems.contains("users made by HTTP") && problems.contains("users.toml:"), "{problems}");
    // it starts all the same, and nobody of that file comes in
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    assert_eq!(Connect::new("o").login("other", "made").refused(gateway.port), 4);
    drop(Connect::new("e").login("esp", "by hand").open(gateway.port));
    assert_eq!(fs::read_to_string(&path).unwrap(), broken, "nothing of it is lost");
    // mended
    fs::write(&path, &good).unwrap();
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    drop(Connect::new("o").login("other", "made").open(gateway.port));
    assert!(!boss.get("/api/v1/problems?now=true").to_string().contains("users made by HTTP"));
}

/// Signs in, and returns who it is then, with the cookie.
#[track_caller]
fn sign_in(port: u16, user: &str, password: &str) -> (Caller, String) {
    let answer =
        Caller::guest(port).call("POST", "/api/v1/session", Some(&json!({ "user": user, "password": password })));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    (Caller::guest(port).with("Cookie", cookie.split(';').next().unwrap()), cookie)
}

#[test]
fn the_cookie_of_the_page_is_for_the_page_alone() {
    let lines = "allowed_hosts = [\"dash.example.org\"]\ntrusted_proxies = [\"127.0.0.1\"]";
    let (setup, port) =
        Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"none\"").http_with(lines);
    let gateway = setup.start();
    let (signed_in, cookie) = sign_in(port, "boss", "secret boss");
    for part in ["HttpOnly", "SameSite=Strict", "Path=/;"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains("Max-Age") && !cookie.contains("Domain"), "{cookie}");
    let own = format!("http://localhost:{port}");
    let page = signed_in.with("Origin", &own);
    let session = page.get("/api/v1/session");
    assert_eq!(
        (&session["user"], &session["by"], &session["admin"]),
        (&json!("boss"), &json!("sign_in"), &json!(true))
    );
    assert_eq!(page.status("PUT", "/api/v1/topics/a", None), 204);
    assert_eq!(signed_in.status("GET", "/api/v1/users", None), 200, "browsers send no Origin with what only reads");
    // what changes something must come from the page itself
    let dash = "http://dash.example.org:8123";
    for (header, value) in [
        ("X-Nothing", "x"),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Origin", &format!("http://localhost:{}", port ^ 1)),
        ("Origin", &format!("http://127.0.0.1:{port}")),
        ("Origin", dash),
        ("Sec-Fetch-Site", "same-site"),
        ("Sec-Fetch-Site", "cross-site"),
    ] {
        let caller = signed_in.with(header, value);
        for (method, target, body) in [
            ("PUT", "/api/v1/topics/a", None),
            ("POST", "/api/v1/users", Some(json!({ "name": "evil", "password": "x" }))),
            ("DELETE", "/api/v1/retained?filter=%23", None),
            ("DELETE", "/api/v1/session", None),
        ] {
            let answer = caller.call(method, target, body.as_ref());
            assert_eq!(answer.status, 403, "{header} {value} {method} {target}: {}", answer.text());
        }
        if header != "X-Nothing" {
            let read = caller.status("GET", "/api/v1/users", None);
            assert!(read == 401 || read == 403, "{header} {value}: {read}");
        }
    }
    let elsewhere = Caller::guest(port).with("Origin", dash);
    let credentials = json!({ "user": "boss", "password": "secret boss" });
    assert_eq!(elsewhere.status("POST", "/api/v1/session", Some(&credentials)), 403);
    // a program by name and password, from a page that is welcome: as before
    let program = Caller::named(port, "boss", "secret boss").with("Origin", dash);
    assert_eq!(program.status("PUT", "/api/v1/topics/a", None), 204);
    // behind a proxy that speaks TLS
    let proxied = Caller::guest(port).with("X-Forwarded-For", "192.0.2.1").with("X-Forwarded-Proto", "https");
    let proxied = proxied.with("X-Forwarded-Prefix", "/pi").call("POST", "/api/v1/session", Some(&credentials));
    let cookie = proxied.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Secure") && cookie.contains("; Path=/pi;"), "{cookie}");
    // scripts are not told of Basic: the browser would ask in a window of its own
    let browser = Caller::guest(port)
        .with("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0");
    let (script, opened) = (browser.with("Accept", "*/*"), browser.with("Accept", "text/html,*/*;q=0.8"));
    for (caller, target, status, is_asked) in [
        (&script, "/api/v1/sensors", 401, false),
        (&script, "/api/v1/stream?filter=a", 401, false),
        (&opened, "/api/v1/sensors", 401, true),
        (&opened, "/?basic", 401, true),
        (&opened, "/", 200, false),
        (&Caller::guest(port), "/", 401, true),
    ] {
        let answer = caller.call("GET", target, None);
        assert_eq!((answer.status, answer.header("www-authenticate").is_some()), (status, is_asked), "{target}");
    }
    assert_eq!(
        script.get("/api/v1/session"),
        json!({ "user": null, "by": "nothing", "let_in": false, "may_observe": false, "can_sign_in": true, "admin": false })
    );
    assert_eq!(Caller::named(port, "boss", "wrong").status("GET", "/api/v1/session", None), 401);
    drop(gateway);
}

#[test]
fn a_sign_in_ends_with_what_it_stands_for() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"none\"").http();
    let gateway = setup.start();
    let own = format!("http://localhost:{port}");
    let (boss, _) = sign_in(port, "boss", "secret boss");
    let boss = boss.with("Origin", &own);
    let user = json!({ "name": "made", "password": "made" });
    assert_eq!(boss.status("POST", "/api/v1/users", Some(&user)), 201);
    let stream_of = |caller: &Caller| {
        let headers: Vec<(&str, &str)> = caller.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        Events::open(port, "filter=a", &headers)
    };
    let ends = |mut events: Events| while events.next().is_some() {};
    // other rights, another password, and its end
    for (method, change) in
        [("PUT", Some(json!({ "subscribe": ["a"] }))), ("PUT", Some(json!({ "password": "made" }))), ("DELETE", None)]
    {
        let (made, _) = sign_in(port, "made", "made");
        let events = stream_of(&made);
        assert_eq!(made.status("GET", "/api/v1/sensors", None), 200);
        let status = boss.status(method, "/api/v1/users/made", change.as_ref());
        assert!(status == 200 || status == 204, "{status}");
        assert_eq!(made.status("GET", "/api/v1/sensors", None), 401, "{method} {change:?}");
        boss.call("PUT", "/api/v1/topics/a", None);
        ends(events);
    }
    // signing out
    let (other, _) = sign_in(port, "boss", "secret boss");
    let events = stream_of(&other);
    let out = other.with("Origin", &own).call("DELETE", "/api/v1/session", None);
    assert_eq!(out.status, 204);
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"), "{}", out.head);
    assert_eq!((other.status("GET", "/api/v1/users", None), boss.status("GET", "/api/v1/users", None)), (401, 200));
    boss.call("PUT", "/api/v1/topics/a", None);
    ends(events);
    // of one user there are only so many: the one that was not used for longest goes
    let (first, _) = sign_in(port, "hand", "secret hand");
    let later: Vec<Caller> = (0..16).map(|_| sign_in(port, "hand", "secret hand").0).collect();
    assert_eq!(first.status("GET", "/api/v1/sensors", None), 401);
    assert!(later.iter().all(|caller| caller.status("GET", "/api/v1/sensors", None) == 200));
    assert_eq!(boss.status("GET", "/api/v1/users", None), 200, "nobody else's does");
    // wrong passwords cost as much as anywhere else, and bad bodies are said
    let guest = Caller::guest(port);
    for (body, status) in [
        (json!({ "user": "boss", "password": "wrong" }), 401),
        (json!({ "user": "nobody", "password": "x" }), 401),
        (json!({ "user": "boss" }), 400),
        (json!("boss"), 400),
    ] {
        let answer = guest.call("POST", "/api/v1/session", Some(&body));
        assert_eq!((answer.status, answer.header("set-cookie")), (status, None), "{body}: {}", answer.text());
    }
    assert_eq!(guest.with("Content-Type", "text/plain").status("POST", "/api/v1/session", Some(&json!({}))), 415);
    // with the gateway
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || guest.status("GET", "/livez", None) == 200);
    assert_eq!(boss.status("GET", "/api/v1/users", None), 401);
    drop(gateway);
}
