//! Users that an administrator makes, changes and removes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Caller, config};
use crate::support::broker::{Gateway, Setup};
use crate::support::client::Connect;
use crate::support::http::escape;
use crate::support::packet::Properties;
use crate::support::{debt, quick_hash as hash, wait_until};

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
    // an invalid request changes nothing, and the answer names the key
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
    // other rules and another password end present connections
    assert_eq!(boss.status("PUT", &target, Some(&json!({ "publish": [] }))), 200);
    client.closed_with(0x98);
    let mut client = Connect::v5("a").login(name, "pw 1").open(gateway.port);
    assert_eq!(client.publish("esp/a", "x", 1, false), 0x87);
    assert_eq!(boss.status("PUT", &target, Some(&json!({ "password": "pw 2" }))), 200);
    client.closed_with(0x98);
    assert_eq!(Connect::new("a").login(name, "pw 1").refused(gateway.port), 4);
    drop(Connect::new("a").login(name, "pw 2").open(gateway.port));
    // changes survive a crash and a reload
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    let mut client = Connect::v5("a").login(name, "pw 2").open(gateway.port);
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    client.ping();
    // the user is removed while a client of it is connected
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

/// Whether a client with a persistent session finds its session.
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
        // in the other round the gateway is killed as soon as the answer arrives
        if !is_killed {
            assert!(
                !finds_session(&gateway, "away", "eve", "pw 1") && !finds_session(&gateway, "connected", "eve", "pw 1")
            );
            // a new password changes nothing else
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

    // a user may be missing in the configuration for a while, but one with another password hash is a different user
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
fn removing_a_user_in_debt_answers_at_once() {
    let (setup, port) = Setup::default().config(&config()).config("[broker.anonymous]\naccept = \"all\"").http();
    let gateway = setup.start();
    let boss = Caller::named(port, "boss", "secret boss");
    let body = json!({ "name": "eve", "password": "pw", "publish": ["#"], "subscribe": ["#"] });
    assert_eq!(boss.status("POST", "/api/v1/users", Some(&body)), 201);
    let delay = Properties::new().four(0x18, 900);
    let connect = |id: &str| {
        let connect = Connect::v5(id).login("eve", "pw").persistent();
        connect.will_with("eve/left", "x", 0, false, delay.clone())
    };
    let (debtors, _subscribers) = debt::in_debt(gateway.port, connect);
    debtors.into_iter().for_each(|debtor| debtor.vanish());
    wait_until("they are away", || !boss.get("/api/v1/clients").to_string().contains("debtor-"));
    // the sessions end with wills whose turns come in minutes
    assert_eq!(boss.status("DELETE", "/api/v1/users/eve", None), 204);
    let (code, _) = gateway.stop();
    assert_eq!(code, Some(0));
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

    // the file is damaged by hand
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
    // the gateway starts nevertheless, and no user of that file can sign in
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || boss.status("GET", "/livez", None) == 200);
    assert_eq!(Connect::new("o").login("other", "made").refused(gateway.port), 4);
    drop(Connect::new("e").login("esp", "by hand").open(gateway.port));
    assert_eq!(fs::read_to_string(&path).unwrap(), broken, "nothing of it is lost");
    // the file is corrected
    fs::write(&path, &good).unwrap();
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    drop(Connect::new("o").login("other", "made").open(gateway.port));
    assert!(!boss.get("/api/v1/problems?now=true").to_string().contains("users made by HTTP"));
}
