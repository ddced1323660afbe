//! Users of mosquitto or mqtt-io can import their configuration: the same clients get the same answers from a mosquitto with
//! the original and from a gateway with the result of `pigateway import`.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use base64ct::{Base64, Encoding};
use rustix::process::Signal;
use support::broker::{gateway, wait_until_served};
use support::packet::{V5, V311};
use support::tls::{self, Authority, client_config, is_turned_away};
use support::{Connect, Gateway, Mosquitto, Process, free_port, http, wait_until};

/// A mosquitto with its files, and a gateway with the configuration that was imported from them.
struct Pair {
    mosquitto: Process,
    gateway: Process,
    theirs: u16,
    ours: u16,
    dir: tempfile::TempDir,
}

/// Runs the gateway's program to its end, and returns its exit code and the printed lines.
fn run(args: &[&str], dir: &Path) -> (Option<i32>, Vec<String>) {
    Process::start(gateway().args(args).current_dir(dir)).wait()
}

/// Runs mosquitto_passwd.
fn passwd(args: &[&str], dir: &Path) {
    let status = Command::new("mosquitto_passwd").args(args).current_dir(dir).output().unwrap().status;
    assert!(status.success(), "{args:?}");
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Starts both. `PORT` in the configuration stands for the port of each.
fn pair(dir: tempfile::TempDir, conf: &str) -> Pair {
    let (theirs, ours) = (free_port(), free_port());
    let path = write(dir.path(), "mosquitto.conf", &conf.replace("PORT", &theirs.to_string()));
    let mut mosquitto =
        Process::start(Command::new("/usr/sbin/mosquitto").arg("-c").arg(&path).current_dir(dir.path()));
    wait_until_served(&mut mosquitto, theirs);
    let (code, lines) = run(&["import", "mosquitto", "mosquitto.conf", "--output", "imported.toml"], dir.path());
    assert_eq!(code, Some(0), "{lines:?}");
    let mut gateway = start_imported(dir.path(), (theirs, ours), "off");
    wait_until_served(&mut gateway, ours);
    Pair { mosquitto, gateway, theirs, ours, dir }
}

/// Starts a gateway with the configuration that was imported from a mosquitto on this host, at another port.
fn start_imported(dir: &Path, (theirs, ours): (u16, u16), http: &str) -> Process {
    let imported = std::fs::read_to_string(dir.join("imported.toml")).unwrap();
    let text = imported.replace(&format!(":{theirs}\""), &format!(":{ours}\""));
    // mosquitto was reachable from this host only, and so is HTTP
    assert!(text.contains("[http]\naddress = \"127.0.0.1:8080\""), "{text}");
    let text = text.replace("\"127.0.0.1:8080\"", &format!("\"{http}\""));
    let rest = "\n[gateway]\nid = \"imported\"\ndata_dir = \"data\"\n[gpio]\nbackend = \"simulated\"\n";
    let path = write(dir, "pigateway.toml", &(text + rest));
    Process::start(gateway().args(["run", "--config"]).arg(path).current_dir(dir))
}

const USERS: [(&str, &str); 5] = [
    ("admin", "pw admin"),
    ("alice", "pässword"),
    ("old", "of mosquitto 1"),
    ("unlisted", "nothing allowed"),
    ("site/eve", "of several levels"),
];

/// Password files with the older and the newer kind of hashes.
fn password_files(dir: &Path) {
    for (number, (user, password)) in USERS.iter().enumerate() {
        let hash = if *user == "old" { "sha512" } else { "sha512-pbkdf2" };
        let mut args = vec!["-H", hash, "-b"];
        if number == 0 {
            args.push("-c");
        }
        args.extend(["passwd", user, password]);
        passwd(&args, dir);
    }
    // mosquitto drops its privileges when it is started by root
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(dir.join("passwd"), std::fs::Permissions::from_mode(0o644)).unwrap();
}

const ACL: &str = "\
topic read public/#
topic write guestbook

user admin
topic readwrite #
topic $SYS/broker/uptime

user   alice
topic readwrite home/#
topic deny home/private/#
topic write inbox/+/new
topic read a topic with spaces

user old
topic read home/+/state

pattern readwrite dev/%c/#
pattern read who/%u/+
pattern deny dev/+/secret
pattern write mail/%u/#
pattern deny mail/%u/sent
pattern read end
";

/// Topics, with ", " in between.
const TOPICS: &str = "\
    public/x, guestbook, home/lamp, home/lamp/state, home/private/x, home, inbox/bob/new, inbox/bob, \
    a topic with spaces, dev/alice-1/x, dev/guest-1/x, dev/other/x, dev/alice-1/secret, who/alice/x, \
    who/old/x, who/site/eve/x, who/site/x, mail/site/eve/x, mail/site/eve/sent, mail/site/bob/x, \
    elsewhere";

/// Which clients are accepted. mosquitto calls a wrong password "not authorised", so the codes of refusals are not compared.
fn logins(port: u16) -> Vec<(String, bool)> {
    let mut answers = Vec::new();
    let right = USERS.iter().flat_map(|user| [(V311, *user), (V5, *user)]);
    // each failure makes the next one wait longer
    let wrong = [("alice", "wrong"), ("alice", ""), ("nobody", "x"), ("old", "of mosquitto 2")];
    for (version, (user, password)) in right.chain(wrong.map(|user| (V5, user))) {
        let (_, answer) = Connect::version(version, "login").login(user, password).try_open(port);
        answers.push((format!("{version} {user} {password}"), answer.reason == 0));
    }
    let (_, answer) = Connect::new("login").try_open(port);
    answers.push(("without a name".to_owned(), answer.reason == 0));
    answers
}

fn identities() -> Vec<(&'static str, Connect)> {
    let as_user = |id: &str, user: &str| {
        let password = USERS.iter().find(|(name, _)| *name == user).unwrap().1;
        Connect::v5(id).login(user, password)
    };
    vec![
        ("guest", Connect::v5("guest-1")),
        ("alice", as_user("alice-1", "alice")),
        ("old", as_user("old-1", "old")),
        ("unlisted", as_user("unlisted-1", "unlisted")),
        ("eve", as_user("eve-1", "site/eve")),
    ]
}

/// Which topics each may publish and receive.
fn rights(port: u16) -> BTreeSet<(String, String)> {
    let mut allowed = BTreeSet::new();
    let mut admin = Connect::v5("admin-1").login("admin", USERS[0].1).open(port);
    admin.subscribe("#", 1);
    for (name, connect) in identities() {
        let mut client = connect.open(port);
        for topic in TOPICS.split(", ") {
            if client.publish(topic, "", 1, false) == 0 {
                allowed.insert((format!("{name} publishes"), topic.to_owned()));
                assert_eq!(admin.receive().topic, topic, "{name}");
            }
        }
        client.subscribe_all(&[("#", 1)], &support::Properties::new());
        for topic in TOPICS.split(", ") {
            admin.publish(topic, "", 1, false);
        }
        admin.publish("end", "", 1, false);
        loop {
            let topic = client.receive().topic;
            if topic == "end" {
                break;
            }
            allowed.insert((format!("{name} receives"), topic));
        }
        while admin.receive().topic != "end" {}
        client.disconnect();
    }
    allowed
}

#[test]
fn users_passwords_and_rules_answer_as_they_did() {
    let dir = tempfile::tempdir().unwrap();
    password_files(dir.path());
    write(dir.path(), "aclfile", ACL);
    let conf = "listener PORT 127.0.0.1\nallow_anonymous true\npassword_file passwd\nacl_file aclfile\n";
    let pair = pair(dir, conf);
    let (theirs, ours) = (logins(pair.theirs), logins(pair.ours));
    assert_eq!(ours, theirs);
    assert!(ours.iter().any(|(_, is_in)| *is_in) && ours.iter().any(|(_, is_in)| !is_in));
    let (theirs, ours) = (rights(pair.theirs), rights(pair.ours));
    let differ: Vec<_> = ours.symmetric_difference(&theirs).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert!(theirs.len() >= 15, "{theirs:#?}");
    pair.mosquitto.stop();
    pair.gateway.stop();
}

#[test]
fn without_lists_everybody_who_comes_in_may_do_everything() {
    for (conf, guests) in [
        ("listener PORT 127.0.0.1\nallow_anonymous true\n", true),
        ("listener PORT 127.0.0.1\npassword_file passwd\n", false),
        ("port PORT\nbind_address 127.0.0.1\npassword_file passwd\nallow_anonymous true\n", true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        password_files(dir.path());
        let pair = pair(dir, conf);
        for port in [pair.theirs, pair.ours] {
            let (_, answer) = Connect::v5("a").try_open(port);
            assert_eq!(answer.reason == 0, guests, "{conf} on {port}");
            if conf.contains("passwd") {
                let mut client = Connect::v5("b").login("alice", USERS[1].1).open(port);
                assert_eq!(client.subscribe("$SYS/broker/uptime", 0), 0);
                assert_eq!(client.receive().topic, "$SYS/broker/uptime");
            }
        }
        pair.mosquitto.stop();
        pair.gateway.stop();
    }
}

#[test]
fn what_a_certificate_was_needed_for_is_not_open_by_http() {
    let authority = Authority::new();
    let users = format!("alice:{SEVEN}\n");
    for (conf, login) in [
        ("allow_anonymous true\n", None),
        ("password_file passwd\n", Some(("alice", "pässword"))),
        ("use_identity_as_username true\npassword_file passwd\n", None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        authority.write_server_files(dir.path());
        write(dir.path(), "passwd", &users);
        let (theirs, ours, page) = (free_port(), free_port(), free_port());
        let listener = format!(
            "listener {theirs} 127.0.0.1\ncafile ca.crt\ncertfile server.crt\nkeyfile server.key\nrequire_certificate true\n"
        );
        write(dir.path(), "mosquitto.conf", &(listener + conf));
        let (code, lines) = run(&["import", "mosquitto", "mosquitto.conf", "-o", "imported.toml"], dir.path());
        assert_eq!(code, Some(0), "{lines:?}");
        let gateway = start_imported(dir.path(), (theirs, ours), &format!("127.0.0.1:{page}"));
        wait_until("both listen", || [ours, page].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()));
        let basic = format!("Basic {}", Base64::encode_string("alice:pässword".as_bytes()));
        for headers in [&[][..], &[("Authorization", &*basic)]] {
            let answer = http::request(page, "PUT", "/api/v1/topics/door/lock", headers, b"open");
            assert_eq!(answer.status, 401, "{conf} {headers:?}");
        }
        assert!(is_turned_away(ours, client_config(&authority, None)), "{conf}");
        let connect = login.map_or(Connect::v5("c"), |(user, password)| Connect::v5("c").login(user, password));
        let (_, answer) = tls::open(&connect, ours, client_config(&authority, Some(&authority.sign("alice"))));
        assert_eq!(answer.reason, 0, "{conf}");
        gateway.stop();
    }
}

#[test]
fn bridges_map_topics_as_they_did() {
    let remote = Mosquitto::with("");
    let conf = format!(
        "listener PORT 127.0.0.1\nallow_anonymous true\nconnection cloud\naddress 127.0.0.1:{}\nremote_clientid ID\nnotifications false\n\
         restart_timeout 1\nremote_username someone\nremote_password of no use\n\
         topic sensors/# out 1 loft/ sites/loft/\ntopic cmd/# in 1 \"\" remote/\ntopic \"\" out 1 here there\n",
        remote.port
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let pair = pair(dir, &conf);
    // only one of them at a time can use the client id at the remote broker, so the gateway takes mosquitto's place
    let of = |port: u16, marker: &str| {
        let mut far = Connect::new(&format!("far-{marker}")).open(remote.port);
        let mut near = Connect::new(&format!("near-{marker}")).open(port);
        far.subscribe("#", 1);
        near.subscribe("cmd/#", 1);
        let mut seen = Vec::new();
        for topic in ["loft/sensors/a", "loft/other", "here", "elsewhere", "loft/sensors/last"] {
            near.publish(topic, marker, 1, false);
        }
        while seen.last().is_none_or(|topic: &String| !topic.ends_with("last")) {
            let message = far.receive();
            if message.text() == marker {
                seen.push(message.topic);
            }
        }
        far.publish("remote/cmd/x", marker, 1, false);
        seen.push(near.receive().topic);
        seen
    };
    let theirs = {
        let pair = &pair;
        pair.gateway.signal(rustix::process::Signal::STOP);
        let seen = of(pair.theirs, "theirs");
        pair.gateway.signal(rustix::process::Signal::CONT);
        seen
    };
    let secret = pair.dir.path().join("cloud.password");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "of no use");
    assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    pair.mosquitto.stop();
    let ours = of(pair.ours, "ours");
    assert_eq!(ours, theirs);
    assert_eq!(ours, ["sites/loft/sensors/a", "there", "sites/loft/sensors/last", "cmd/x"]);
    pair.gateway.stop();
}

#[test]
fn the_command_overwrites_nothing_and_says_what_became_of_the_lines() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let conf = "listener 1883\npid_file /run/m.pid\nmount_point x\nconnection a\naddress 192.0.2.1\ntopic # out\n\
                remote_username u\nremote_password hunter2\n";
    write(dir, "mosquitto.conf", conf);
    let (code, lines) = run(&["import", "mosquitto", "mosquitto.conf"], dir);
    assert_eq!(code, Some(0));
    assert!(lines.iter().any(|line| line.starts_with("8 lines: ")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("hunter2")) && !dir.join("a.password").exists());
    write(dir, "a.password", "mine");
    let to_file = ["import", "mosquitto", "mosquitto.conf", "-o", "pigateway.toml"];
    let (code, lines) = run(&to_file, dir);
    assert_eq!(code, Some(73), "{lines:?}");
    assert!(!dir.join("pigateway.toml").exists() && std::fs::read_to_string(dir.join("a.password")).unwrap() == "mine");
    let (code, _) = run(&[&to_file[..], &["--force"]].concat(), dir);
    assert_eq!(code, Some(0));
    assert_eq!(std::fs::read_to_string(dir.join("a.password")).unwrap(), "hunter2");
    let (code, lines) = run(&["check", "pigateway.toml"], dir);
    assert_eq!(code, Some(0), "{lines:?}");
    for (file, text, command) in [
        ("mosquitto.conf", conf, "import mosquitto"),
        ("c.yml", "mqtt:\n  host: h\ndigital_inputs: []\n", "import mqtt-io"),
    ] {
        write(dir, file, text);
        for args in [&["check", file][..], &["run", "--config", file]] {
            let (code, lines) = run(args, dir);
            assert!(code == Some(78) && lines.iter().any(|line| line.contains(command)), "{args:?}: {lines:?}");
        }
    }
    let (code, lines) = run(&["import", "mqtt-io", "mosquitto.conf"], dir);
    assert_eq!(code, Some(65), "{lines:?}");
    let (code, lines) = run(&["check", "--format", "json", "mosquitto.conf", "pigateway.toml"], dir);
    // the lines of standard error may be anywhere between those of standard output
    let output: Vec<String> = lines.into_iter().filter(|line| !line.starts_with("pigateway: ")).collect();
    let json: serde_json::Value = serde_json::from_str(&output.join("\n")).unwrap();
    assert_eq!(
        (code, json["files"][0]["valid"].as_bool(), json["files"][1]["valid"].as_bool()),
        (Some(78), Some(false), Some(true))
    );
}

#[test]
fn nobody_else_reads_what_an_import_writes() {
    let dir = tempfile::tempdir().unwrap();
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(dir.path(), 0o755);
    let conf = "listener 1883\npassword_file passwd\nconnection home\naddress 192.0.2.1:1883\ntopic # out\nremote_username u\n\
                remote_password hunter2\n";
    write(dir.path(), "mosquitto.conf", conf);
    write(dir.path(), "passwd", &format!("alice:{SEVEN}\n"));
    let import = |to: &str| {
        let (code, lines) = run(&["import", "mosquitto", "mosquitto.conf", "--force", "-o", to], dir.path());
        assert_eq!(code, Some(0), "{lines:?}");
        lines
    };
    let rights = |name: &str| {
        let about = dir.path().join(name).metadata().unwrap();
        (about.permissions().mode() & 0o777, about.gid())
    };
    let modes = || (rights("pigateway.toml").0, rights("home.password").0);
    let is_root = rustix::process::geteuid().is_root();
    let hint = |lines: &[String]| lines.iter().filter(|line| line.contains("chgrp pigateway")).count();
    let lines = import("pigateway.toml");
    assert_eq!((modes(), hint(&lines)), ((0o640, 0o600), usize::from(is_root)), "{lines:?}");
    let warned = || run(&["check", "pigateway.toml"], dir.path()).1.join("\n");
    assert!(!warned().contains("on this machine"), "{}", warned());
    for name in ["pigateway.toml", "home.password"] {
        set_mode(&dir.path().join(name), 0o644);
    }
    assert_eq!(warned().matches("everybody on this machine can read").count(), 2, "{}", warned());
    import("pigateway.toml");
    assert_eq!(modes(), (0o640, 0o600), "what was there is closed before a password is in it");
    set_mode(&dir.path().join("home.password"), 0o640);
    import("pigateway.toml");
    assert_eq!(modes(), (0o640, 0o640), "a group that a person has chosen can still read it");
    if is_root {
        // as the package makes /etc/pigateway
        let closed = dir.path().join("etc");
        std::fs::create_dir(&closed).unwrap();
        std::os::unix::fs::chown(&closed, None, Some(12_345)).unwrap();
        set_mode(&closed, 0o750);
        let lines = import("etc/pigateway.toml");
        assert_eq!((rights("etc/pigateway.toml"), rights("etc/home.password")), ((0o640, 12_345), (0o640, 12_345)));
        assert_eq!(hint(&lines), 0, "{lines:?}");
    }
}

#[test]
fn mqtt_io_s_inputs_are_read_by_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = "mqtt:\n  host: localhost\n  topic_prefix: porch\ngpio_modules:\n- name: pi\n  module: raspberrypi\n\
                digital_inputs:\n- name: pir\n  module: pi\n  pin: 17\n  retain: true\n";
    write(dir.path(), "config.yml", yaml);
    let (code, lines) = run(&["import", "mqtt-io", "config.yml", "--output", "imported.toml"], dir.path());
    assert_eq!(code, Some(0), "{lines:?}");
    let port = free_port();
    let imported = std::fs::read_to_string(dir.path().join("imported.toml")).unwrap();
    let text = imported.replace("[[sensor]]\n", "[[sensor]]\nsimulate = [\"100 ms off\", \"100 ms on\"]\n")
        + &format!(
            "\n[gateway]\ndata_dir = \"data\"\n[gpio]\nbackend = \"simulated\"\n[http]\naddress = \"off\"\n[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n"
        );
    let path = write(dir.path(), "pigateway.toml", &text);
    let mut gateway = Process::start(gateway().args(["run", "--config"]).arg(path).current_dir(dir.path()));
    wait_until_served(&mut gateway, port);
    let mut client = Connect::new("a").open(port);
    client.subscribe("porch/input/pir", 1);
    let words: BTreeSet<String> = (0..3).map(|_| client.receive().text()).collect();
    assert_eq!(words, BTreeSet::from(["ON".to_owned(), "OFF".to_owned()]));
    gateway.stop();
}

/// Hashes of the password `pässword`, made by mosquitto_passwd.
const SEVEN: &str =
    "$7$101$X+vfWTSUfGwxZqZA$0X68176mCA7P0/iVT5aJ0nJWnUQr8KI+3NzuWUArBX1tuqxqnf95WYUKt/nLkSCK58xYfTcAq9yDf/Xx+jIffg==";
const SIX: &str =
    "$6$NnORNO+Hq9AG2LI5$2UB54qxnjCLgjn/JLSIUgxwJqz0NgHwVBurKcrYHRMWCoD9LrqUBg8JkFSHFV5rAvIjPGIfVr29fTMRCFEUvIw==";

fn logs_in(port: u16, user: &str, password: &str) -> bool {
    Connect::new("c").login(user, password).try_open(port).1.reason == 0
}

/// The argon2id hash of a password, as `pigateway user` makes it.
fn argon2id(password: &str) -> String {
    let mut user = Process::start(gateway().args(["user", "x"]));
    user.input(format!("{password}\n").as_bytes());
    let (_, lines) = user.wait();
    let text = lines.join("\n");
    let at = text.find("$argon2id").unwrap_or_else(|| panic!("{text}"));
    text[at..].split(['"', '\n']).next().unwrap().to_owned()
}

#[test]
fn mosquittos_hashes_are_replaced_by_argon2id_at_the_first_login() {
    let users = |seven: &str| {
        let user = |name: &str, hash: &str| format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\n");
        format!("{}{}", user("seven", seven), user("six", SIX))
    };
    let gateway = Gateway::with(&users(SEVEN));
    let file = gateway.dir().join("data/password-hashes");
    let kept = || std::fs::read_to_string(&file).unwrap_or_default();
    assert!(!logs_in(gateway.port, "seven", "wrong"));
    assert!(logs_in(gateway.port, "seven", "pässword"));
    wait_until("one is replaced", || kept().lines().count() == 1);
    assert!(logs_in(gateway.port, "six", "pässword"));
    wait_until("both are replaced", || kept().lines().count() == 2);
    assert_eq!(kept().matches("\t$argon2id$v=19$m=19456,t=2,p=1$").count(), 2, "{}", kept());
    assert!(!kept().contains("pässword") && !kept().contains("$7$") && !kept().contains("seven"), "{}", kept());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(logs_in(gateway.port, "seven", "pässword") && !logs_in(gateway.port, "seven", "wrong"));

    // after a restart passwords are checked with the kept argon2id hash, and not with mosquitto's hash
    let killed = gateway.kill();
    let line = kept().lines().find(|line| line.starts_with(&sha256(SEVEN))).unwrap().to_owned();
    let other = format!("{}\t{}", line.split('\t').next().unwrap(), argon2id("another"));
    std::fs::write(&file, kept().replace(&line, &other)).unwrap();
    let gateway = killed.restart();
    assert!(logs_in(gateway.port, "seven", "another") && !logs_in(gateway.port, "seven", "pässword"));
    assert!(logs_in(gateway.port, "six", "pässword"));

    // another hash in the configuration takes precedence
    let path = gateway.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(SEVEN, &argon2id("new"))).unwrap();
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    assert!(logs_in(gateway.port, "seven", "new") && !logs_in(gateway.port, "seven", "another"));
    wait_until("its replacement is forgotten", || kept().lines().count() == 1);
    // with the old hash again, the argon2id hash that replaced it is no longer used
    std::fs::write(&path, text).unwrap();
    let gateway = gateway.end().restart();
    assert!(logs_in(gateway.port, "seven", "pässword") && !logs_in(gateway.port, "seven", "another"));
}

fn sha256(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
