//! The commands for people: `explain`, `doctor`, `status`, and `publish` and `subscribe` for quick looks.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use support::broker::gateway;
use support::{Connect, Gateway, Mosquitto, Process, Setup, free_port};

/// Runs the program to its end, and returns its exit code and the printed lines.
fn run(args: &[&str], input: &str, dir: &Path) -> (Option<i32>, Vec<String>) {
    let mut process = Process::start(gateway().args(args).current_dir(dir));
    process.input(input.as_bytes());
    process.wait()
}

fn user(name: &str) -> String {
    let (_, lines) = run(&["user", name], "secret\n", Path::new("."));
    lines.join("\n") + "\n"
}

#[test]
fn messages_are_published_and_shown() {
    let gateway = Gateway::with(&format!("[broker.anonymous]\nsubscribe = [\"a/#\"]\n{}", user("esp")));
    let port = gateway.port.to_string();
    let dir = gateway.dir();
    let (code, lines) = run(&["publish", "a/b", "kept", "--retain", "--port", &port], "", dir);
    assert_eq!(code, Some(0), "{lines:?}");
    let (code, lines) = run(&["subscribe", "a/#", "-n", "1", "--port", &port], "", dir);
    assert_eq!((code, lines), (Some(0), vec!["a/b kept".to_owned()]));
    let (code, lines) = run(&["subscribe", "other/#", "--port", &port], "", dir);
    assert!(code == Some(69) && lines[0].contains("rules do not allow"), "{lines:?}");
    for (password, expected) in [("secret\n", Some(0)), ("wrong\n", Some(69))] {
        let (code, lines) = run(&["publish", "x", "", "-q", "0", "--user", "esp", "--port", &port], password, dir);
        assert_eq!(code, expected, "{lines:?}");
    }
    let mut client = Connect::new("reader").login("esp", "secret").open(gateway.port);
    client.subscribe("#", 1);
    let mut subscriber = Process::start(gateway_at(&port).args(["--user", "esp", "#"]));
    subscriber.input(b"secret\n");
    subscriber.wait_for_line("a/b kept");
    let big = "x".repeat(100_000);
    client.publish("large", &big, 1, false);
    subscriber.wait_for_line(&format!("large {big}"));
    subscriber.kill();
    let nobody = free_port().to_string();
    let (code, _) = run(&["publish", "a", "b", "--host", "127.0.0.1", "--port", &nobody], "", dir);
    assert_eq!(code, Some(69));
}

#[test]
fn a_message_that_the_rules_forbid_is_an_error() {
    let gateway = Gateway::with("[broker.anonymous]\npublish = [\"a/#\"]\n");
    let port = gateway.port.to_string();
    let (code, lines) = run(&["publish", "b", "x", "--port", &port], "", gateway.dir());
    assert!(code == Some(69) && lines[0].contains("b: the rules do not allow it"), "{lines:?}");
    let (code, lines) = run(&["publish", "a/b", "x", "--port", &port], "", gateway.dir());
    assert_eq!((code, lines), (Some(0), vec![]));
}

/// The body of the next packet, which is short.
fn read_packet(client: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 2];
    client.read_exact(&mut head).unwrap();
    let mut body = vec![0; head[1].into()];
    client.read_exact(&mut body).unwrap();
    body
}

/// Answers clients of other versions with this, and takes one message in MQTT 3.1.1. Returns the versions that came, and the
/// message.
fn old_broker(listener: &TcpListener, answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut versions = Vec::new();
    loop {
        let (mut client, _) = listener.accept().unwrap();
        versions.push(read_packet(&mut client)[6]);
        if versions.ends_with(&[4]) {
            client.write_all(&[0x20, 2, 0, 0]).unwrap();
            let message = read_packet(&mut client);
            client.write_all(&[0x40, 2, 0, 1]).unwrap();
            return (versions, message);
        }
        client.write_all(answer).unwrap();
    }
}

#[test]
fn a_broker_that_knows_only_an_older_version_is_spoken_to_in_that() {
    for answer in [&[0x20, 2, 0, 1][..], &[]] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let broker = std::thread::spawn(move || old_broker(&listener, answer));
        let args = ["publish", "a", "b", "--host", "127.0.0.1", "--port", &port];
        assert_eq!(run(&args, "", Path::new(".")), (Some(0), vec![]));
        assert_eq!(broker.join().unwrap(), (vec![5, 4], b"\0\x01a\0\x01b".to_vec()));
    }
}

fn gateway_at(port: &str) -> std::process::Command {
    let mut command = gateway();
    command.args(["subscribe", "--port", port]);
    command
}

#[test]
fn a_running_gateway_says_how_it_is() {
    let (setup, http) = Setup::default()
        .config(&format!(
            "{}[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\n",
            user("esp"),
            free_port()
        ))
        .http();
    let gateway = setup.start();
    let config = gateway.dir().join("pigateway.toml");
    let config = config.to_str().unwrap();
    let (code, lines) = run(&["status", "--config", config], "", gateway.dir());
    assert_eq!(code, Some(0), "{lines:?}");
    for part in ["pigateway ", "\"test\"", "journal: ", "upstream home: not connected"] {
        assert!(lines.iter().any(|line| line.contains(part)), "{part}: {lines:?}");
    }
    let (code, lines) = run(&["status", "--config", config, "--json"], "", gateway.dir());
    let json: serde_json::Value = serde_json::from_str(&lines.join("\n")).unwrap();
    assert_eq!((code, json["gateway"]["id"].as_str()), (Some(0), Some("test")));
    let (code, lines) = run(&["status", "--config", config, "--user", "esp"], "wrong\n", gateway.dir());
    assert!(code == Some(69) && lines[0].contains("not authorised"), "{lines:?}");
    let (code, _) = run(&["status", "--config", config, "--user", "esp"], "secret\n", gateway.dir());
    assert_eq!(code, Some(0));
    gateway.stop();
    assert!(TcpListener::bind(("127.0.0.1", http)).is_ok());
}

#[test]
fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let upstream = Mosquitto::with("");
    let dir = tempfile::tempdir().unwrap();
    let free = free_port();
    let write = |listener: u16, address: &str| {
        let text = format!(
            "[gateway]\ndata_dir = \"data\"\n[http]\naddress = \"off\"\n[[broker.listener]]\naddress = \"127.0.0.1:{listener}\"\n\
             [[upstream]]\nname = \"home\"\naddresses = [\"{address}\"]\n[[upstream.out]]\ntopic_filter = \"a\"\n"
        );
        std::fs::write(dir.path().join("c.toml"), text).unwrap();
    };
    let doctor = || {
        let (code, lines) = run(&["doctor", "--config", "c.toml"], "", dir.path());
        // the lines of standard error may be anywhere between those of standard output
        (code, lines.into_iter().filter(|line| !line.starts_with("pigateway: ")).collect::<Vec<String>>())
    };
    write(free, &format!("mqtt://127.0.0.1:{}", upstream.port));
    let (code, lines) = doctor();
    assert_eq!(code, Some(0), "{lines:#?}");
    let shown = |lines: &[String], part: &str| {
        lines.iter().position(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {lines:#?}"))
    };
    for part in ["is free", "answers", "data directory", "clock", "configuration c.toml: valid", "pigateway 0."] {
        shown(&lines, part);
    }
    // a port that another program uses, an upstream that does not exist, one without TLS, and an invalid name
    write(upstream.port, &format!("mqtt://127.0.0.1:{free}"));
    let (code, lines) = doctor();
    assert_eq!(code, Some(1));
    let taken = shown(&lines, &format!("taken by mosquitto (process {})", upstream.pid()));
    assert!(lines[taken + 1].contains("-> stop it"), "{lines:#?}");
    let gone = shown(&lines, "PROBLEM upstream home");
    assert!(lines[gone + 1].contains("->"), "{lines:#?}");
    write(free, &format!("mqtts://127.0.0.1:{}", upstream.port));
    let (code, lines) = doctor();
    assert_eq!(code, Some(1));
    shown(&lines, "PROBLEM upstream home: mqtts://");
    write(free, "mqtt://no-such-host.invalid");
    let (_, lines) = doctor();
    shown(&lines, "cannot be resolved");
    std::fs::write(dir.path().join("c.toml"), "x = 1\n").unwrap();
    let (code, lines) = doctor();
    assert_eq!(code, Some(1));
    shown(&lines, "PROBLEM c.toml:1:1: x: unknown key");
    // a port that the running gateway itself uses is no problem
    let gateway = Gateway::start();
    let config = gateway.dir().join("pigateway.toml");
    let (_, lines) = run(&["doctor", "--config", config.to_str().unwrap()], "", gateway.dir());
    shown(&lines, &format!("a running pigateway (process {})", gateway.pid()));
}

#[test]
fn a_topic_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let table = user("esp");
    std::fs::write(dir.path().join("c.toml"), &table).unwrap();
    let (code, lines) = run(&["explain", "loft/x", "--config", "c.toml"], "", dir.path());
    assert_eq!(code, Some(0), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("esp") && line.contains("yes, by \"#\" (c.toml:4)")), "{lines:#?}");
    let (code, _) = run(&["explain", "loft/x", "--config", "c.toml", "--user", "nobody"], "", dir.path());
    assert_eq!(code, Some(67));
    let (code, _) = run(&["explain", "loft/#", "--config", "c.toml"], "", dir.path());
    assert_eq!(code, Some(2));
}

#[test]
fn the_configuration_is_taken_with_its_option_and_without_it() {
    let gateway = Setup::default().http().0.start();
    // so that there is a journal
    Connect::new("a").open(gateway.port).publish("a", "x", 1, true);
    let config = gateway.dir().join("pigateway.toml");
    let config = config.to_str().unwrap();
    for args in [
        &["status", config][..],
        &["--config", config, "status"],
        &["explain", "a/b", config],
        &["journal", config],
        &["journal", "--config", config],
        &["check", config],
    ] {
        let (code, lines) = run(args, "", gateway.dir());
        assert_eq!(code, Some(0), "{args:?}: {lines:?}");
    }
    let (_, lines) = run(&["doctor", config], "", gateway.dir());
    assert!(lines.iter().any(|line| line.contains(": valid")), "{lines:#?}");
    gateway.stop();
    // to start the gateway by mistake would be worse than an error
    for args in [&["stauts"][..], &["man", config], &["journal", config, "--config", config]] {
        let (code, lines) = run(args, "", Path::new("."));
        assert_eq!(code, Some(2), "{args:?}: {lines:?}");
    }
    // a file that is started with is read
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), "x = 1\n").unwrap();
    for args in [&["c.toml"][..], &["run", "c.toml"]] {
        let (code, lines) = run(args, "", dir.path());
        assert!(code == Some(78) && lines.iter().any(|line| line.contains("c.toml:1:")), "{args:?}: {lines:?}");
    }
}

#[test]
fn an_error_of_the_system_names_what_was_tried() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), "").unwrap();
    std::fs::write(dir.path().join("plain"), "").unwrap();
    let (code, lines) = run(&["journal", "plain"], "", dir.path());
    assert!(code == Some(66) && lines[0].contains("plain cannot be read: "), "{code:?} {lines:?}");
    let (code, lines) = run(&["journal", "plain", "--discard", "home"], "", dir.path());
    assert!(code == Some(66) && lines[0].contains("plain holds no journal"), "{code:?} {lines:?}");
    // a gateway that has kept nothing so far
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/lock"), "").unwrap();
    std::fs::write(dir.path().join("data.toml"), "[gateway]\ndata_dir = \"data\"\n").unwrap();
    for (args, code, said) in [
        (&["journal", "data.toml"][..], Some(0), "there is no journal yet in "),
        (&["journal", "data", "--export"], Some(0), "there is no journal yet in "),
        (&["journal", "data.toml", "--discard", "home"], Some(66), "home"),
    ] {
        let (ended, lines) = run(args, "", dir.path());
        assert!(ended == code && lines[0].contains(said) && !lines[0].contains("holds no"), "{ended:?} {lines:?}");
    }
    assert!(!dir.path().join("data/journal").exists());
    let directory = std::fs::File::open(dir.path()).unwrap();
    let ended = gateway().args(["user", "esp"]).stdin(directory).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("the password cannot be read from standard input: "), "{said}");
    for args in [&["man"][..], &["completions", "bash"], &["check", "c.toml", "--format", "json"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = gateway().args(args).current_dir(dir.path()).stdout(full).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(74) && said.contains("standard output cannot be written: "), "{said}");
    }
}

#[test]
fn a_name_that_basic_authentication_cannot_carry_is_told_and_is_one_for_mqtt() {
    let dir = tempfile::tempdir().unwrap();
    let (code, lines) = run(&["user", "hub:loft"], "secret\n", dir.path());
    let is_warning = |line: &&String| line.starts_with("warning: ") && line.contains("\"hub:loft\" has a colon");
    assert!(code == Some(0) && lines.iter().any(|line| is_warning(&line)), "{lines:?}");
    let table = lines.iter().filter(|line| !is_warning(line)).cloned().collect::<Vec<_>>().join("\n");
    std::fs::write(dir.path().join("c.toml"), &table).unwrap();
    let (code, lines) = run(&["check", "c.toml"], "", dir.path());
    let place = "c.toml:2:8: broker.user.name: ";
    assert!(code == Some(0) && lines.iter().any(|line| is_warning(&line) && line.contains(place)), "{lines:?}");
    let gateway = Gateway::with(&table);
    Connect::new("a").login("hub:loft", "secret").open(gateway.port).ping();
    let (code, lines) = run(&["status", "--user", "hub:loft"], "secret\n", dir.path());
    assert!(code == Some(69) && lines[0].contains("has a colon"), "{code:?} {lines:?}");
    let (code, lines) = run(&["user", "a\nb"], "secret\n", dir.path());
    assert!(code == Some(2) && lines.iter().any(|line| line.contains("no control characters")), "{lines:?}");
}

#[test]
fn every_command_has_help() {
    let (code, lines) = run(&["help"], "", Path::new("."));
    assert_eq!(code, Some(0));
    for command in ["run", "check", "user", "import", "explain", "doctor", "status", "publish", "subscribe", "journal"]
    {
        assert!(lines.iter().any(|line| line.contains(&format!("pigateway {command}"))), "{command}");
        let (code, help) = run(&["help", command], "", Path::new("."));
        assert!(code == Some(0) && help.len() > 2, "{command}: {help:?}");
    }
}

#[test]
fn a_sensor_that_is_to_be_deployed_is_told_from_an_upstream_of_the_same_name() {
    let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/deploy")).unwrap();
    let begin = script.find("has_sensor() {").unwrap();
    let function = &script[begin..begin + script[begin..].find("\n}\n").unwrap() + 3];
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("new/usr/bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pigateway"), dir.path().join("new/usr/bin/pigateway")).unwrap();
    let sensor = "\n[[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"loft/motion\"\n";
    std::fs::write(dir.path().join("sensor-0.toml"), sensor).unwrap();
    for (config, is_there) in [
        ("", false),
        ("[[upstream]]\nname = \"loft\"\naddresses = [\"mqtt://192.0.2.7\"]\n", false),
        ("# name = \"loft\"\n[[sensor]]\nname = \"other\"\npin = 4\ntopic = \"a\"\n", false),
        ("[[sensor]]\nname='loft' # the roof\npin = 4\ntopic = \"a\"", true),
        ("[[sensor]]\ntopic = \"a\"\npin = 4\nname   =   \"loft\"\n", true),
    ] {
        std::fs::write(dir.path().join("pigateway.toml"), config).unwrap();
        let script = format!("set -eu\n{function}has_sensor '\"loft\"' sensor-0.toml");
        let status = std::process::Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().unwrap();
        assert_eq!(status.success(), is_there, "{config}");
    }
}
