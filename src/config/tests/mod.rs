mod files;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::error::FileProblem;
use super::file::{Loaded, load_in};
use super::*;
use crate::access::settings::{AccessRule, AnonymousFrom};
use crate::sensors::settings::Simulation;
use crate::upstream::settings::{OutQos, Password, Protocol};

const EXAMPLE: &str = include_str!("../../../deploy/pigateway.example.toml");

fn environment() -> Environment {
    Environment { host_name: "pi".into(), ..Environment::default() }
}

fn parse(text: &str) -> Result<Loaded, ConfigProblems> {
    read(text, Path::new("t.toml"), &environment())
}

/// The problems of a file, without its name in front.
fn problems(text: &str) -> Vec<String> {
    let Err(problems) = parse(text) else { return Vec::new() };
    problems.problems.iter().map(|problem| problem.to_string().replace("t.toml:", "")).collect()
}

/// The texts for `{sensor}`, `{upstream}` and `{other}` below.
const SENSOR: &str = "[[sensor]]\nname = \"a\"\npin = 1\ntopic = \"a\"\n";
const UPSTREAM: &str = "[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\n";
const OTHER: &str = "[[upstream]]\nname = \"v\"\naddresses = [\"mqtt://h\"]\n";

/// Files with one mistake each, and the message about it.
const MISTAKES: &[(&str, &str)] = &[
    // keys
    (
        "colour = 1",
        "1:1: colour: unknown key; valid: gateway, log, broker, gpio, sensor, http, upstream, journal, mdns, home_assistant",
    ),
    ("[[sensors]]", "1:3: sensors: unknown key; did you mean sensor?"),
    ("[broker]\nmax_inflght = 3", "2:1: broker.max_inflght: unknown key; did you mean max_inflight?"),
    ("[broker.anonymous]\nAccept = 3", "2:1: broker.anonymous.Accept: unknown key; did you mean accept?"),
    ("[journal]\nx.y = 1", "2:1: journal.x: unknown key; valid: max_size, when_full, order"),
    // types
    ("[gateway]\nid = 7", "2:6: gateway.id: found 7; valid: 1 to 64 letters, digits, '-', '_' or '.'"),
    ("gateway = \"loft\"", "1:11: gateway: found \"loft\"; valid: [gateway], a table"),
    ("[broker.listener]", "1:1: broker.listener: found a table; valid: [[broker.listener]], a list of tables"),
    ("broker.listener = [1]", "1:20: broker.listener: found 1; valid: [broker.listener], a table"),
    ("{sensor}retain = \"yes\"", "5:10: sensor.retain: found \"yes\"; valid: true or false"),
    (
        "[http]\nallowed_hosts = \"pi\"",
        "2:17: http.allowed_hosts: found \"pi\"; valid: a list of host names without port, such as [\"pi.example.org\"]",
    ),
    (
        "[http]\nallowed_hosts = [\"pi\", 2]",
        "2:24: http.allowed_hosts: found 2; valid: a list of host names without port, such as [\"pi.example.org\"]",
    ),
    // values
    ("[gateway]\nid = \"lo ft\"", "2:6: gateway.id: found \"lo ft\"; valid: 1 to 64 letters, digits, '-', '_' or '.'"),
    ("[gateway]\ndata_dir = \"\"", "2:12: gateway.data_dir: found \"\"; valid: a path"),
    (
        "[log]\nlevel = \"inof\"",
        "2:9: log.level: found \"inof\"; valid: off, error, warn, info, debug, trace, or a list such as \"info,pigateway::upstream=debug\"; did you mean \"info\"?",
    ),
    (
        "[log]\nlevel = \"info,x=loud\"",
        "2:9: log.level: found \"info,x=loud\"; valid: off, error, warn, info, debug, trace, or a list such as \"info,pigateway::upstream=debug\"",
    ),
    ("[broker]\nmax_inflight = 0", "2:16: broker.max_inflight: found 0; valid: a whole number from 1 to 65535"),
    ("[broker]\nmax_inflight = -1", "2:16: broker.max_inflight: found -1; valid: a whole number from 1 to 65535"),
    (
        "[broker]\nmax_connections = 2.5",
        "2:19: broker.max_connections: found 2.5; valid: a whole number from 1 to 10000000",
    ),
    (
        "[broker]\nmax_packet_size = \"1 MB/s\"",
        "2:19: broker.max_packet_size: found \"1 MB/s\"; valid: a size from 1 KiB to 256 MiB: a whole number and B, kB, KiB, MB, MiB, GB or GiB",
    ),
    (
        "[broker]\nsession_expiry = \"7\"",
        "2:18: broker.session_expiry: found \"7\"; valid: a duration from 0 s to 49710 days: a whole number and ms, s, min, h or days",
    ),
    (
        "[broker.anonymous]\naccept = \"al\"",
        "2:10: broker.anonymous.accept: found \"al\"; valid: \"none\", \"loopback\", \"all\"; did you mean \"all\"?",
    ),
    (
        "[broker.anonymous]\npublish = [\"a/#\", \"!b/#/c\"]",
        "2:19: broker.anonymous.publish: found \"!b/#/c\"; valid: a topic filter; this has a '#' that is not the whole last level",
    ),
    (
        "[[broker.listener]]",
        "1:1: broker.listener.address: missing; valid: an IP address and a port, such as \"[::]:1883\" or \"127.0.0.1:1883\", or the path of a socket",
    ),
    (
        "[[broker.listener]]\naddress = \"localhost\"",
        "2:11: broker.listener.address: found \"localhost\"; valid: an IP address and a port, such as \"[::]:1883\" or \"127.0.0.1:1883\", or the path of a socket",
    ),
    (
        "[[broker.listener]]\naddress = \"[::]:1\"\n[[broker.listener]]\naddress = \"1.2.3.4:1\"",
        "4:11: broker.listener.address: [::]:1 takes this address already; valid: another address",
    ),
    (
        "[[broker.listener]]\naddress = \"[::]:1\"\ntls = { cert = \"none.crt\" }",
        "3:7: broker.listener.tls.key: missing; valid: a file with the private key in PEM form",
    ),
    (
        "[[broker.listener]]\naddress = \"0.0.0.0:8080\"",
        "1:1: http.address: the broker listens on 0.0.0.0:8080 already; valid: another port, or \"off\"",
    ),
    (
        "[http]\naddress = \"of\"",
        "2:11: http.address: found \"of\"; valid: \"off\", or an IP address and a port, such as \"[::]:8080\" or \"127.0.0.1:8080\"",
    ),
    (
        "[[broker.user]]\npassword_hash = \"hunter2\"\nname = \"a\"",
        "2:17: broker.user.password_hash: not an argon2id hash with m up to 65536 and m times t up to 262144; valid: one that `pigateway user NAME` prints, or one of mosquitto's ($7$..., $6$...)",
    ),
    (
        "[[broker.user]]\nname = \"\"",
        "2:8: broker.user.name: found \"\"; valid: a text of 1 to 1024 bytes without control characters",
    ),
    (
        "[[broker.user]]\nname = \"a\"\n[[broker.user]]\nname = \"a\"",
        "4:8: broker.user.name: found \"a\"; valid: one that no other user has, and line 2 has it",
    ),
    (
        "[journal]\nwhen_full = \"drop-oldest\"",
        "2:13: journal.when_full: found \"drop-oldest\"; valid: \"drop_oldest\", \"refuse\"; did you mean \"drop_oldest\"?",
    ),
    (
        "[gpio]\nbackend = \"sysfs\"",
        "2:11: gpio.backend: found \"sysfs\"; valid: \"auto\", \"rppal\", \"gpiocdev\", \"simulated\"",
    ),
    // sensors
    ("[[sensor]]\nname = \"a\"\npin = 1", "1:1: sensor.topic: missing; valid: a topic, such as \"loft/motion1\""),
    (
        "[[sensor]]\nname = \"a\"\npin = 54\ntopic = \"a\"",
        "3:7: sensor.pin: found 54; valid: a whole number from 0 to 53",
    ),
    (
        "[[sensor]]\nname = \"a\"\npin = 1\ntopic = \"a/+\"",
        "4:9: sensor.topic: found \"a/+\"; valid: a topic, such as \"loft/motion1\"; this contains a wildcard ('+' or '#')",
    ),
    (
        "[[sensor]]\nname = \"a\"\npin = 1\ntopic = \"$SYS/a\"",
        "4:9: sensor.topic: found \"$SYS/a\"; valid: a topic, such as \"loft/motion1\"; those that begin with '$' belong to the broker",
    ),
    ("{sensor}qos = 3", "5:7: sensor.qos: found 3; valid: 0, 1, 2"),
    ("{sensor}qos = \"1\"", "5:7: sensor.qos: found \"1\"; valid: 0, 1, 2; did you mean 1?"),
    (
        "{sensor}simulate = \"rnd\"",
        "5:12: sensor.simulate: found \"rnd\"; valid: \"random\" or a list such as [\"3 s on\", \"10 s off\"]",
    ),
    (
        "{sensor}simulate = [\"3 s on\", \"0 s off\"]",
        "5:23: sensor.simulate: found \"0 s off\"; valid: such as \"3 s on\" or \"10 s off\"",
    ),
    (
        "{sensor}simulate = []",
        "5:12: sensor.simulate: found a list; valid: \"random\" or a list such as [\"3 s on\", \"10 s off\"]",
    ),
    (
        "{sensor}[[sensor]]\nname = \"b\"\npin = 2\ntopic = \"a/status\"",
        "8:9: sensor.topic: found \"a/status\"; valid: one that no other sensor or its status has, and line 4 has it",
    ),
    // upstreams
    (
        "[[upstream]]\nname = \"u\"",
        "1:1: upstream.addresses: missing; valid: a list of addresses, such as [\"mqtts://mqtt.example.org:8883\", \"mqtt://192.0.2.7:1883\"]",
    ),
    (
        "[[upstream]]\nname = \"u\"\naddresses = []",
        "3:13: upstream.addresses: the list is empty; valid: a list of addresses, such as [\"mqtts://mqtt.example.org:8883\", \"mqtt://192.0.2.7:1883\"]",
    ),
    (
        "[[upstream]]\nname = \"u\"\naddresses = [\"tcp://h\"]",
        "3:14: upstream.addresses: found \"tcp://h\"; valid: mqtt://HOST:PORT, mqtts://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH",
    ),
    ("{upstream}protocol = 3", "4:12: upstream.protocol: found 3; valid: \"auto\", 5, 4"),
    (
        "{upstream}keep_alive = \"4 s\"",
        "4:14: upstream.keep_alive: found \"4 s\"; valid: a duration from 5 s to 65535 s: a whole number and ms, s, min, h or days",
    ),
    (
        "{upstream}tls = { }",
        "1:1: upstream.tls: no address uses TLS; valid: an address that begins with mqtts:// or wss://, or no tls",
    ),
    (
        "{upstream}{other}",
        "4:1: upstream.client_id: upstream u uses \"pigateway-pi\" at the same address; valid: an id of its own",
    ),
    (
        "{upstream}[[upstream.out]]\ntopic_filter = \"\"\nlocal_prefix = \"a\"",
        "5:16: upstream.out.topic_filter: an empty filter maps one topic; valid: with local_prefix and remote_prefix, or a topic filter",
    ),
    (
        "{upstream}[[upstream.out]]\ntopic_filter = \"#\"\nremote_prefix = \"a\"",
        "5:16: upstream.out.topic_filter: the remote filter \"a#\" has a '#' that is not the whole last level; valid: prefix and filter joined are a topic filter",
    ),
    (
        "{upstream}[[upstream.in]]\ntopic_filter = \"#\"\nlocal_prefix = \"+/\"",
        "6:16: upstream.in.local_prefix: found \"+/\"; valid: a text without wildcards, such as \"sites/\"; this contains a wildcard ('+' or '#')",
    ),
    (
        "{upstream}[[upstream.in]]\ntopic_filter = \"a\"\nqos = \"keep\"",
        "6:7: upstream.in.qos: found \"keep\"; valid: 0, 1, 2",
    ),
    (
        "{upstream}protocol = 4\n[[upstream.out]]\ntopic_filter = \"a/#\"\n[[upstream.in]]\ntopic_filter = \"a/b\"",
        "1:1: upstream.protocol: the rule at t.toml:5, which goes out, and the rule at t.toml:7, which comes in, would loop on MQTT 3.1.1; valid: protocol = 5, or rules that do not overlap",
    ),
    (
        "{upstream}protocol = 4\n[[upstream.both]]\ntopic_filter = \"a/#\"",
        "1:1: upstream.protocol: the rule at t.toml:5, which goes both ways, would loop on MQTT 3.1.1; valid: protocol = 5, or rules that do not overlap",
    ),
    // TOML itself, columns counted in characters
    ("[gateway]\nid = \"ä\" x", "2:10: not TOML: unexpected key or value, expected newline, `#`"),
    ("[gateway]\nid = \"a\"\nid = \"b\"", "3:1: not TOML: duplicate key"),
];

#[test]
fn each_mistake_has_its_message() {
    for (text, expected) in MISTAKES {
        let text = text.replace("{sensor}", SENSOR).replace("{upstream}", UPSTREAM).replace("{other}", OTHER);
        let found = parse(&text).unwrap_err().problems;
        assert_eq!(found[0].to_string(), format!("t.toml:{expected}"), "{text}");
        assert!(found.len() == 1, "{text}: {found:?}");
    }
}

#[test]
fn all_problems_are_reported_in_the_order_of_lines() {
    let text =
        "[http]\naddress = 1\n[gateway]\nid = 2\nname = 3\n[[sensor]]\npin = 99\n[broker]\nmax_sessions = true\n";
    let places: Vec<String> = problems(text).iter().map(|problem| problem.splitn(4, ':').take(3).collect()).collect();
    assert_eq!(
        places,
        [
            "211 http.address",
            "46 gateway.id",
            "51 gateway.name",
            "61 sensor.name",
            "61 sensor.topic",
            "77 sensor.pin",
            "916 broker.max_sessions"
        ]
    );
    assert!(parse(text).unwrap_err().to_string().ends_with("\nt.toml: 7 problems"));
}

#[test]
fn broken_toml_does_not_hide_what_is_wrong_elsewhere() {
    let text =
        "[gateway]\nid =\ncolour = 1\n[[sensor]]\npin 3\nhold = \"5\"\n[gateway]\nlevel = 3\n[gpio]\nbackend = 1\n";
    let found = problems(text);
    let expected = [
        "2:5: not TOML",
        "3:1: gateway.colour",
        "5:5: not TOML",
        "6:8: sensor.hold",
        "7:2: not TOML",
        "10:11: gpio.backend",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found} {expected}");
    }
}

proptest! {
    #[test]
    fn whatever_is_in_a_file_is_reported_with_its_place(at in 0..EXAMPLE.len(), len in 0..40usize, put in "[\\[\\]\"'={},.# \na-z0-9ä]{0,8}") {
        let mut text = EXAMPLE.to_owned();
        text.replace_range(at..(at + len).min(EXAMPLE.len()), &put);
        let lines = text.split('\n').count();
        for problem in parse(&text).err().into_iter().flat_map(|problems| problems.problems) {
            let (line, column) = problem.place.unwrap_or_default();
            prop_assert!((1..=lines).contains(&line) && column >= 1, "{problem}");
        }
    }
}

#[test]
fn files_that_are_not_text_or_not_there_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    let name = path.display().to_string();
    let error = load_in(&path, &environment()).unwrap_err().to_string();
    assert_eq!(error, format!("{name}: cannot be read: No such file or directory (os error 2)\n{name}: 1 problem"));
    std::fs::write(&path, b"# caf\xe9\n").unwrap();
    let error = load_in(&path, &environment()).unwrap_err().problems[0].to_string();
    assert_eq!(error, format!("{name}:1:6: found bytes that are not UTF-8; valid: text"));
    std::fs::write(&path, "\u{feff}[log]\nlevel = \"debug\"\n").unwrap();
    assert_eq!(load_in(&path, &environment()).unwrap().settings.log.level, "debug");
}

#[test]
fn an_empty_file_means_the_defaults() {
    let mut environment = environment();
    let settings = read("", Path::new("t.toml"), &environment).unwrap().settings;
    assert_eq!(settings, Settings::defaults(&environment));
    assert_eq!(settings.gateway.id, "pi");
    assert_eq!(settings.gateway.data_dir, Path::new("pigateway-data"));
    assert_eq!(settings.broker.access.anonymous.accept, AnonymousFrom::Loopback);
    environment.state_dir = Some("/var/lib/pigateway".into());
    assert_eq!(Settings::defaults(&environment).gateway.data_dir, Path::new("/var/lib/pigateway"));
}

/// A directory with the example and the files it names.
fn example_dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(vec!["pi".into()]).unwrap();
    for (name, content) in [
        ("pigateway.toml", EXAMPLE.to_owned()),
        ("home.password", "hunter2\n".into()),
        ("ca.crt", certified.cert.pem()),
        ("server.crt", certified.cert.pem()),
        ("server.key", certified.signing_key.serialize_pem()),
    ] {
        let file = dir.path().join(name);
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let path = dir.path().join("pigateway.toml");
    (dir, path)
}

#[test]
fn the_example_is_valid() {
    let (_dir, path) = example_dir();
    let Loaded { settings, warnings, files } = load_in(&path, &environment()).unwrap();
    assert_eq!((warnings, files), (vec![], vec![]));
    let (sensor, upstream) = (&settings.sensors[0], &settings.upstreams[0]);
    assert_eq!((sensor.name.as_str(), sensor.pin, sensor.topic.as_str()), ("loft-motion", 17, "loft/motion1"));
    assert_eq!(upstream.password, Some(Password::File(path.with_file_name("home.password"))));
    assert_eq!(upstream.addresses[1].to_string(), "mqtts://192.0.2.7:8883");
    assert_eq!((upstream.out[0].qos, upstream.v5_only), (OutQos::AtLeastOnce, false));
    assert_eq!(upstream.out[0].remote_filter(), "sites/loft/#");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().position(|line| line.starts_with("[[upstream.out]]")).unwrap() + 1;
    assert!(upstream.out[0].place.to_string().ends_with(&format!(":{line}")), "{}", upstream.out[0].place);
    let denied = AccessRule { deny: true, filter: "loft/private/#".into() };
    assert_eq!(settings.broker.access.users[0].rights.subscribe[1], denied);
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn what_the_example_has_in_comments_is_valid() {
    let (_dir, path) = example_dir();
    let text = EXAMPLE.replace("# tls = {", "tls = {").replace("# simulate", "simulate");
    std::fs::write(&path, text).unwrap();
    let settings = load_in(&path, &environment()).unwrap().settings;
    let tls = settings.broker.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.client_ca.as_deref(), Some(path.with_file_name("ca.crt").as_path()));
    assert_eq!(settings.http.tls.unwrap().key, path.with_file_name("server.key"));
    assert_eq!(settings.sensors[0].simulate, Some(Simulation::Random));
}

#[test]
fn the_example_shows_the_defaults() {
    // keys whose values in the example are not defaults, as their comments say; 'required' keys are kept too
    let chosen = [
        "id",
        "data_dir",
        "publish",
        "subscribe",
        "password_hash",
        "client_id",
        "username",
        "password_file",
        "tls",
        "status_topic",
        "remote_prefix",
    ];
    let keep = |line: &&str| {
        if line.starts_with("[[broker.listener]]") {
            return false;
        }
        let key = line.split('=').next().unwrap_or_default().trim();
        line.starts_with('[') || line.contains("# required") || chosen.contains(&key)
    };
    let short: String = EXAMPLE.lines().filter(keep).map(|line| format!("{line}\n")).collect();
    assert!(short.lines().count() < EXAMPLE.lines().filter(|line| line.contains(" = ")).count());
    let (_dir, path) = example_dir();
    let example = load_in(&path, &environment()).unwrap();
    assert_eq!(read(&short, &path, &environment()).unwrap().settings, example.settings);
}

#[test]
fn rules_that_loop_keep_an_upstream_on_version_5() {
    let text = "[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\n[[upstream.both]]\ntopic_filter = \"a/#\"\n";
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.settings.upstreams[0].protocol, Protocol::Auto);
    assert!(loaded.settings.upstreams[0].v5_only);
    let warning = "t.toml:1:1: upstream.protocol: the rule at t.toml:4, which goes both ways, would loop on MQTT 3.1.1; \
                   this upstream is used with MQTT 5 only";
    assert_eq!(loaded.warnings[0].to_string(), warning);
    let five = parse(&text.replace("[[upstream.both]]", "protocol = 5\n[[upstream.both]]")).unwrap();
    assert_eq!(five.warnings, []);
}

#[test]
fn a_pin_named_twice_is_warned_about() {
    let sensor = |name: &str| format!("[[sensor]]\nname = \"{name}\"\npin = 17\ntopic = \"{name}\"\n");
    let loaded = parse(&(sensor("a") + &sensor("b"))).unwrap();
    assert_eq!(loaded.settings.sensors.len(), 2, "the others and the gateway go on");
    let warning = loaded.warnings[0].to_string();
    assert!(warning.contains(":5:1: sensor.pin: another sensor has pin 17"), "{warning}");
}

#[test]
fn what_can_do_nothing_is_warned_about() {
    let warnings = |text| -> Vec<String> { parse(text).unwrap().warnings.iter().map(ToString::to_string).collect() };
    let nobody =
        "t.toml:1:2: broker.anonymous.accept: there are no users and no anonymous clients: no client can connect";
    assert_eq!(warnings("[broker.anonymous]\naccept = \"none\""), [nobody]);
    let no_rules = "t.toml:1:1: upstream.out: this upstream has no rules, so nothing goes up or comes down; \
                    valid: [[upstream.out]], [[upstream.in]] or [[upstream.both]] below it";
    assert_eq!(warnings(UPSTREAM), [no_rules]);
    let no_password = "t.toml:1:1: broker.user.password_hash: there is none and no listener asks for client certificates: \
                       this user cannot connect";
    assert_eq!(warnings("[[broker.user]]\nname = \"a\""), [no_password]);
}

#[test]
fn a_script_is_read() {
    let text = "[[sensor]]\nname = \"a\"\npin = 1\ntopic = \"a\"\nsimulate = [\"3 s on\", \"500 ms off\"]";
    let script = vec![(Duration::from_secs(3), true), (Duration::from_millis(500), false)];
    assert_eq!(parse(text).unwrap().settings.sensors[0].simulate, Some(Simulation::Script(script)));
}

#[test]
fn sizes_that_do_not_fit_each_other_are_warned_of() {
    let warned = |text: &str| -> Vec<String> {
        let loaded = read(text, Path::new("t.toml"), &Environment::default()).unwrap();
        loaded.warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.message)).collect()
    };
    assert!(warned("").is_empty(), "the defaults fit");
    for (text, key, part) in [
        ("[broker]\nmax_queued_size = \"1 MiB\"", "broker.max_queued_size: ", "holds 1 MiB"),
        ("[broker]\nmax_retained_size = \"1 MiB\"", "broker.max_retained_size: ", "up to 2 MiB"),
        ("[journal]\nmax_size = \"4 MiB\"", "journal.max_size: ", "a segment of the journal"),
    ] {
        let warnings = warned(text);
        assert!(matches!(&warnings[..], [one] if one.starts_with(key) && one.contains(part)), "{text}: {warnings:?}");
    }
    let all = warned("[broker]\nmax_packet_size = \"128 MiB\"");
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(all.iter().any(|line| line.starts_with("broker.max_packet_size: ") && line.contains("16 MiB")));
    assert!(warned("[broker]\nmax_packet_size = \"64 KiB\"\n[journal]\nmax_size = \"1 MiB\"").is_empty());
    assert!(warned("[broker]\nmax_retained = 0\nmax_retained_size = \"0 B\"").is_empty());
}

#[test]
fn guests_of_a_socket_are_let_in_by_its_own_word_alone() {
    let accept = |anonymous: &str| {
        let text = format!("[[broker.listener]]\naddress = \"/run/p/mqtt.sock\"\n{anonymous}");
        parse(&text).unwrap().settings.broker.access.listeners[0].anonymous.accept
    };
    assert_eq!(accept(""), AnonymousFrom::None);
    assert_eq!(accept("anonymous = { publish = [\"a/#\"] }"), AnonymousFrom::None);
    assert_eq!(accept("anonymous = { accept = \"all\", publish = [\"a/#\"] }"), AnonymousFrom::All);
    assert_eq!(accept("anonymous = \"all\""), AnonymousFrom::All);
}
