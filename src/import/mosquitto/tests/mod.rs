//! Tests of what becomes of mosquitto's settings. Every result is read by our own configuration.

mod acl;
mod bridges;
mod doors;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::access::hash;
use crate::access::settings::{AnonymousFrom, Rights};
use crate::config::{Environment, Settings, read as read_config};
use crate::import::NOT_TAKEN;
use crate::message::Qos;
use crate::upstream::settings::{OutQos, Protocol};

const HASH: &str =
    "$7$101$X+vfWTSUfGwxZqZA$0X68176mCA7P0/iVT5aJ0nJWnUQr8KI+3NzuWUArBX1tuqxqnf95WYUKt/nLkSCK58xYfTcAq9yDf/Xx+jIffg==";

struct Result {
    settings: Settings,
    text: String,
    summary: Summary,
    secrets: Vec<(String, String)>,
}

impl Result {
    fn users(&self) -> Vec<(&str, Vec<String>, Vec<String>)> {
        let rules = |rights: &Rights| (shown(&rights.publish), shown(&rights.subscribe));
        let user = |user: &crate::access::settings::UserSettings| (rules(&user.rights).0, rules(&user.rights).1);
        let users = &self.settings.broker.access.users;
        users.iter().map(|of| (of.name.as_str(), user(of).0, user(of).1)).collect()
    }

    fn anonymous(&self) -> (AnonymousFrom, Vec<String>, Vec<String>) {
        let anonymous = &self.settings.broker.access.anonymous;
        (anonymous.accept, shown(&anonymous.rights.publish), shown(&anonymous.rights.subscribe))
    }

    fn listeners(&self) -> Vec<String> {
        self.settings.broker.listeners.iter().map(|listener| listener.address.to_string()).collect()
    }

    /// The comment about the line with this text.
    #[track_caller]
    fn remark(&self, about: &str) -> &str {
        let found = self.text.lines().find(|line| line.starts_with('#') && line.contains(&format!("\"{about}\"")));
        found.unwrap_or_else(|| panic!("no remark about {about:?} in\n{}", self.text))
    }
}

fn shown(rules: &[crate::access::settings::AccessRule]) -> Vec<String> {
    rules.iter().map(|rule| format!("{}{}", if rule.deny { "!" } else { "" }, rule.filter)).collect()
}

fn list(rules: &[&str]) -> Vec<String> {
    rules.iter().map(|rule| (*rule).to_owned()).collect()
}

/// Imports a configuration with these files beside it.
#[track_caller]
fn with_files(conf: &str, others: &[(&str, &str)]) -> Result {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mosquitto.conf");
    std::fs::write(&path, conf).unwrap();
    for (name, text) in others {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    all(&[path])
}

#[track_caller]
fn all(paths: &[PathBuf]) -> Result {
    let imported =
        import(paths, &Options { host_name: "attic", keeps_secrets: true, hash: |password| hash::make(password) })
            .unwrap();
    let environment = Environment { host_name: "attic".into(), ..Environment::default() };
    let loaded = read_config(&imported.text, Path::new("/x/pigateway.toml"), &environment);
    let settings = loaded.unwrap_or_else(|error| panic!("{error}\n{}", imported.text)).settings;
    let Summary { lines, taken, differ, not_needed, not_taken, not_understood, .. } = imported.summary;
    assert_eq!(lines, taken + differ + not_needed + not_taken + not_understood, "the counts add up");
    let remarks = imported.text.lines().filter(|line| {
        let marks = ["\" differs: ", "\" is not needed: ", "\" NOT TAKEN OVER: ", "\" is not understood: "];
        line.starts_with("# ") && marks.iter().any(|mark| line.contains(mark))
    });
    assert_eq!(remarks.count(), lines - taken, "every other line is a comment, once\n{}", imported.text);
    let secrets = imported.secrets.into_iter().map(|secret| (secret.name, secret.password)).collect();
    Result { settings, text: imported.text, summary: imported.summary, secrets }
}

#[track_caller]
fn of(conf: &str) -> Result {
    with_files(conf, &[])
}

#[test]
fn without_a_listener_it_is_this_host_only_and_everybody_on_it() {
    for conf in
        ["", "# nothing\n", "persistence true\n", "allow_anonymous false\n", "max_connections -1\nprotocol mqtt\n"]
    {
        let result = of(conf);
        assert_eq!(result.listeners(), ["127.0.0.1:1883", "[::1]:1883"], "{conf}");
        assert_eq!(result.anonymous(), (AnonymousFrom::Loopback, list(&["#"]), list(&["#", "$SYS/#"])), "{conf}");
    }
    // a line about the default listener opens it on all interfaces, and mosquitto accepts everybody there
    let result = of("max_connections 100\n");
    assert_eq!(result.listeners(), ["[::]:1883"]);
    assert_eq!((result.anonymous().0, result.settings.broker.max_connections), (AnonymousFrom::All, 100));
}

#[test]
fn with_a_listener_nobody_comes_in_without_a_name_unless_it_is_said() {
    for (conf, accept) in [
        ("listener 1883\n", AnonymousFrom::None),
        ("port 1883\n", AnonymousFrom::None),
        ("listener 1883\nallow_anonymous true\n", AnonymousFrom::All),
        ("allow_anonymous true\nlistener 1883\n", AnonymousFrom::All),
        ("allow_anonymous true\nlistener 1883\nallow_anonymous false\n", AnonymousFrom::None),
        ("allow_anonymous 1 # comment\nlistener 1883\n", AnonymousFrom::All),
        ("listener 1883 localhost\nallow_anonymous true\n", AnonymousFrom::Loopback),
        ("bind_address 127.0.0.1\nallow_anonymous true\n", AnonymousFrom::Loopback),
        (
            "per_listener_settings true\nlistener 1883 127.0.0.1\nallow_anonymous true\nlistener 1884\npassword_file p\n",
            AnonymousFrom::Loopback,
        ),
        (
            "per_listener_settings true\nlistener 1883\nallow_anonymous true\nlistener 1884\nallow_anonymous true\n",
            AnonymousFrom::All,
        ),
        // of two settings that differ the narrower one is taken
        (
            "per_listener_settings true\nlistener 1883\nallow_anonymous true\nlistener 1884\nallow_anonymous false\n",
            AnonymousFrom::Loopback,
        ),
    ] {
        assert_eq!(with_files(conf, &[("p", "")]).anonymous().0, accept, "{conf}");
    }
    assert!(of("listener 1883\n").text.contains("1.6 and older did"));
}

#[test]
fn listeners_have_the_addresses_that_mosquitto_opens() {
    for (conf, expected) in [
        ("listener 1883", &["[::]:1883"][..]),
        ("listener 1884 0.0.0.0", &["0.0.0.0:1884"]),
        ("listener 1884 localhost", &["127.0.0.1:1884", "[::1]:1884"]),
        ("listener 1884 127.0.0.1 # local", &["127.0.0.1:1884"]),
        ("listener 1884 ::1", &["[::1]:1884"]),
        // `[::]` would take IPv4 too
        ("listener 1884 ::", &["[::1]:1884"]),
        ("listener 1884\nsocket_domain ipv6", &["[::1]:1884"]),
        ("listener 1884 0.0.0.0\nlistener 1884 ::", &["[::]:1884"]),
        ("listener 1884 ::\nlistener 1883\nlistener 1884 0.0.0.0", &["[::]:1883", "[::]:1884"]),
        ("listener 1884\nsocket_domain ipv4\nlistener 1884\nsocket_domain ipv6", &["[::]:1884"]),
        ("listener 1884 0.0.0.0\nlistener 1884 ::\nprotocol websockets", &["0.0.0.0:1884", "[::1]:1884"]),
        (
            "per_listener_settings true\nlistener 1884 0.0.0.0\nallow_anonymous true\nlistener 1884 ::\nallow_anonymous true",
            &["[::]:1884"],
        ),
        (
            "per_listener_settings true\nlistener 1884 0.0.0.0\nallow_anonymous true\nlistener 1884 ::",
            &["0.0.0.0:1884", "[::1]:1884"],
        ),
        ("listener 1884 192.0.2.1\nlistener 1884 ::", &["192.0.2.1:1884", "[::1]:1884"]),
        ("listener 1884 127.0.0.1\nlistener 1884", &["127.0.0.1:1884"]),
        ("listener 1884\nsocket_domain ipv4", &["0.0.0.0:1884"]),
        ("listener 1884 localhost\nsocket_domain ipv6", &["[::1]:1884"]),
        ("port 1885", &["[::]:1885"]),
        ("port 1885\nport 1886", &["[::]:1886"]),
        ("bind_address 192.0.2.1", &["192.0.2.1:1883"]),
        ("port 1885\nlistener 1886\nbind_address 192.0.2.1", &["[::]:1886", "192.0.2.1:1885"]),
        (
            "listener 1883\nlistener 8883\nlistener 1884 localhost",
            &["[::]:1883", "[::]:8883", "127.0.0.1:1884", "[::1]:1884"],
        ),
        ("listener 1884\nbind_interface lo", &["127.0.0.1:1884", "[::1]:1884"]),
        // a listener with an address that is not known here is opened to this host only
        ("listener 1884 broker.example.org", &["127.0.0.1:1884"]),
        ("listener 1884\nbind_interface eth0", &["127.0.0.1:1884"]),
        // a listener that cannot be opened as it was is not opened
        ("listener 0 /run/mosquitto.sock", &["/run/mosquitto.sock"]),
        ("listener 1883\nlistener 0 /run/mosquitto.sock", &["[::]:1883", "/run/mosquitto.sock"]),
        ("listener 1883\nlistener 0 mosquitto.sock", &["[::]:1883"]),
        ("listener 1883\nlistener 8883\npsk_hint home", &["[::]:1883"]),
        ("listener 1883\nlistener 1884\nmount_point a/", &["[::]:1883"]),
        ("listener 1883\nlistener 1884\nenable_proxy_protocol 2", &["[::]:1883", "[::]:1884"]),
        ("listener 1883\nlistener 1884\nenable_proxy_protocol 2\nproxy_protocol_v2_require_tls true", &["[::]:1883"]),
        ("listener 1883\nlistener 1884\nprotocol quic", &["[::]:1883"]),
        ("listener 1883\nlistener 8883\ncertfile a\nkeyfile b\nrequire_certificate true\ncapath c", &["[::]:1883"]),
        ("listener 1883\nlistener 8883\ncertfile a", &["[::]:1883"]),
        ("listener 1883\nlistener 8883\ncertfile a\ntls_keyform engine\nkeyfile b", &["[::]:1883"]),
        // the default listener and a configured one want the same address
        ("max_connections 5\nlistener 1883", &["[::]:1883"]),
        ("listener no_port", &["127.0.0.1:1883"]),
    ] {
        let result = of(&format!("{conf}\n"));
        assert_eq!(result.listeners(), expected, "{conf}\n{}", result.text);
    }
}

#[test]
fn tls_is_as_it_was_or_the_listener_is_left_out() {
    let result = of("listener 8883\ncafile ca.crt\ncertfile /etc/c.crt\nkeyfile /etc/c.key\ntls_version tlsv1.2\n");
    assert!(result.text.contains("tls = { cert = \"/etc/c.crt\", key = \"/etc/c.key\" }"), "{}", result.text);
    assert!(result.remark("cafile ca.crt").contains("not asked for"));
    let mutual =
        "listener 8883\ncafile /etc/ca.crt\ncertfile /etc/c.crt\nkeyfile /etc/c.key\nrequire_certificate true\n";
    let result = with_files(
        &format!("{mutual}use_identity_as_username true\nacl_file acl\ncrlfile /etc/crl\n"),
        &[("acl", "user sensor\ntopic write a/#\n")],
    );
    assert!(result.text.contains("client_ca = \"/etc/ca.crt\""), "{}", result.text);
    assert_eq!(result.users(), [("sensor", list(&["a/#"]), list(&[]))]);
    assert_eq!(result.settings.broker.access.users[0].password_hash, None);
    assert!(result.text.contains(", crl = \"/etc/crl\" }"), "{}", result.text);
    let result = of(mutual);
    assert!(result.text.contains(", use_identity = false }") && !result.settings.broker.listeners[0].use_identity);
    let result = of(&format!("{mutual}use_subject_as_username true\n"));
    assert!(result.remark("use_subject_as_username true").contains("common name"));
    // a certificate beside the configuration is found, whatever its path on the other machine
    let result =
        with_files("listener 8883\ncertfile /certs/s.crt\nkeyfile /certs/s.key\n", &[("s.crt", ""), ("s.key", "")]);
    assert!(!result.text.contains("/certs/s.crt\",") && result.summary.to_do.is_empty(), "{}", result.text);
}

#[test]
fn websockets_are_listeners_of_their_own() {
    let result = of(
        "listener 1883\nlistener 9001\nprotocol websockets\nwebsockets_origin https://a\nlistener 9002\nprotocol websockets\n",
    );
    assert_eq!(result.listeners(), ["[::]:1883", "[::]:9001", "[::]:9002"]);
    let kinds: Vec<bool> = result.settings.broker.listeners.iter().map(|listener| listener.websocket).collect();
    assert_eq!(kinds, [false, true, true]);
    // no listener is opened that the original does not have
    assert_eq!(of("listener 9001\nprotocol websockets\n").listeners(), ["[::]:9001"]);
    // the page does not take the port of a listener
    assert_eq!(of("listener 8080\n").settings.http.address, None);
    assert_eq!(of("listener 8080\nprotocol websockets\n").settings.http.address, None);
}

#[test]
fn listeners_keep_settings_of_their_own() {
    let conf = "per_listener_settings true\nlistener 1883\nallow_anonymous true\nmax_connections 7\nlistener 1884\n\
                password_file p\nacl_file acl\nlistener 0 /run/m.sock\nallow_anonymous true\n\
                listener 1885 127.0.0.1\nenable_proxy_protocol 1\nmax_keepalive 600\n";
    let acl = "user esp\ntopic write a/#\n";
    let result = with_files(conf, &[("p", &format!("esp:{HASH}\n")), ("acl", acl)]);
    let broker = &result.settings.broker;
    assert_eq!(broker.max_keep_alive, Some(600));
    let own: Vec<_> = broker.access.listeners.iter().map(|own| (own.listener.as_str(), own.anonymous.accept)).collect();
    let (all, none) = (AnonymousFrom::All, AnonymousFrom::None);
    let expected = [("[::]:1883", all), ("[::]:1884", none), ("/run/m.sock", all), ("127.0.0.1:1885", none)];
    assert_eq!(own, expected, "{}", result.text);
    let users = |at: usize| broker.access.listeners[at].users.as_ref().map(Vec::len);
    assert_eq!([0, 1, 2, 3].map(users), [Some(0), Some(1), Some(0), Some(0)]);
    assert_eq!(shown(&broker.access.listeners[1].users.as_ref().unwrap()[0].rights.publish), ["a/#"]);
    assert_eq!(broker.listeners[0].max_connections, Some(7));
    assert_eq!(broker.listeners[3].proxies.len(), 2);
    assert!(result.summary.to_do.iter().any(|item| item.contains("addresses of the proxy")));
    // clients of a Unix socket have no address that could be believed
    let socket = of("listener 0 /run/m.sock\nenable_proxy_protocol 2\nlistener 1883\nenable_proxy_protocol 2\n");
    assert_eq!(socket.settings.broker.listeners.iter().map(|own| own.proxies.len()).collect::<Vec<_>>(), [0, 2]);
    assert!(
        socket.summary.to_do.iter().any(|item| item.contains(":2: have the proxy connect to")),
        "{:?}",
        socket.summary
    );
    assert!(socket.text.contains("a proxy is not understood at a socket"), "{}", socket.text);
    // a Unix socket accepts guests only if mosquitto did
    let sockets = |conf: &str| of(conf).settings.broker.access.listeners[0].anonymous.accept;
    assert_eq!(sockets("listener 0 /run/m.sock\n"), AnonymousFrom::None);
    assert_eq!(sockets("listener 0 /run/m.sock\nallow_anonymous true\n"), AnonymousFrom::All);
}

#[test]
fn limits_and_the_log_keep_their_meaning() {
    let settings =
        of("max_inflight_messages 0\nmax_queued_messages 0\nmax_queued_bytes 0\nmax_packet_size 0\n").settings.broker;
    assert_eq!((settings.max_inflight, settings.max_queued_messages), (65_535, 10_000_000));
    assert_eq!(
        (settings.max_queued_size, settings.max_packet_size),
        (crate::broker::settings::BrokerSettings::default().max_queued_size, 256 << 20)
    );
    let settings = of("max_inflight_messages 5\nmax_queued_messages 7\nmax_queued_bytes 2048\nmax_packet_size 65536\n")
        .settings
        .broker;
    assert_eq!((settings.max_inflight, settings.max_queued_messages), (5, 7));
    assert_eq!((settings.max_queued_size, settings.max_packet_size), (2048, 65_536));
    for (limit, bytes) in [
        ("message_size_limit 1024", 2048),
        ("message_size_limit 1024\nmax_packet_size 1500", 1500),
        ("max_packet_size 100", 1024),
    ] {
        assert_eq!(of(&format!("{limit}\n")).settings.broker.max_packet_size, bytes, "{limit}");
    }
    let usual = crate::broker::settings::BrokerSettings::default().max_packet_size;
    assert_eq!(of("message_size_limit 0\n").settings.broker.max_packet_size, usual);
    assert_eq!(of("retain_available false\n").settings.broker.max_retained, 0);
    for (text, days) in [("14d", 14), ("2w", 14), ("2m", 60), ("1y", 365), ("24h", 1), ("1000y", 49_710)] {
        let expiry = of(&format!("persistent_client_expiration {text}\n")).settings.broker.session_expiry;
        assert_eq!(expiry, Duration::from_secs(days * 86_400), "{text}");
    }
    // mosquitto keeps sessions for ever
    assert_eq!(of("listener 1883\n").settings.broker.session_expiry, Duration::from_secs(49_710 * 86_400));
    for (conf, connections) in [
        ("listener 1883\nmax_connections 10\nlistener 1884\nmax_connections 20\n", 30),
        ("listener 1883\nmax_connections 10\nlistener 1884\n", 256),
        ("listener 1883\nmax_connections -1\n", 256),
        ("listener 1883\nglobal_max_connections 50\n", 50),
    ] {
        assert_eq!(of(conf).settings.broker.max_connections, connections, "{conf}");
    }
    for (types, level) in [
        ("log_type error", "error"),
        ("log_type warning\nlog_type error", "warn"),
        ("log_type error\nlog_type all", "debug"),
        ("log_type all\nlog_type none", "off"),
        ("log_type none\nlog_type notice", "info"),
        ("log_type error warning # both", "warn"),
        ("log_dest none", "off"),
        ("log_dest file /var/log/mosquitto/mosquitto.log", "info"),
    ] {
        assert_eq!(of(&format!("{types}\n")).settings.log.level, level, "{types}");
    }
}

#[test]
fn files_are_read_as_people_write_them() {
    let result = of("\u{feff}# comment\r\n  listener\t1883   \r\n\r\n   # indented\r\nallow_anonymous   true\r\n");
    assert_eq!((result.listeners(), result.anonymous().0), (vec!["[::]:1883".to_owned()], AnonymousFrom::All));
    assert_eq!(result.summary.taken, 2);
    let result = of("listener 1883\nno_such_setting 1\nlistner 1884\nallow_anonymous maybe\ntopic a/# out\n");
    assert_eq!(result.summary.not_understood, 4, "{}", result.text);
    assert!(result.remark("topic a/# out").contains("connection"));
    // of two password files mosquitto accepts neither; of two other values it takes the last
    let result = with_files("password_file a\npassword_file b\nlistener 1883\n", &[("a", ""), ("b", "")]);
    assert!(result.remark("password_file b").contains("refuses a second"));
    // control characters and quotes do no harm
    let result = of("listener 1883\nlog_dest file /a\"b\\c\u{7}d\nconnection a\"b\naddress h\ntopic # out 1\n");
    assert_eq!(result.settings.upstreams[0].name, "a-b");
}

#[test]
fn included_files_begin_anew_and_come_in_order() {
    let result = with_files(
        "listener 1883\ninclude_dir conf.d\nmax_connections 9\n",
        &[
            ("conf.d/b.conf", "log_type none\n"),
            ("conf.d/A.conf", "log_type error\ninclude_dir ../other\nlistener 1884 localhost\nmax_connections 1\n"),
            ("conf.d/ignored.txt", "nonsense\n"),
            ("other/x.conf", "nonsense\n"),
        ],
    );
    assert_eq!(result.listeners(), ["[::]:1883", "127.0.0.1:1884", "[::1]:1884"]);
    assert_eq!((result.settings.log.level.as_str(), result.settings.broker.max_connections), ("off", 10));
    assert!(result.remark("include_dir ../other").contains("main file only"));
    assert!(of("include_dir /no/such/dir\n").remark("include_dir /no/such/dir").contains(NOT_TAKEN));
}

#[test]
fn users_and_their_rules_are_taken_over() {
    let acl = "# guests\ntopic read public/#\n\nuser alice\ntopic readwrite home/#\ntopic   deny  home/private/#\ntopic write only/write\n\
               topic single\nuser bob\n\nuser nobody\ntopic read x\npattern readwrite dev/%c/#\npattern read who/%u\n";
    let passwords =
        format!("alice:{HASH}\n# comment\nbob:{HASH}\r\nbob:{HASH}\n:{HASH}\nempty:\nplain:secret\nodd:$9$x\n");
    let conf = "listener 1883\nallow_anonymous true\npassword_file passwd\nacl_file acl\n";
    let result = with_files(conf, &[("passwd", &passwords), ("acl", acl)]);
    let everybody = ["dev/%c/#", "who/%u"];
    let alice = (
        "alice",
        list(&["home/#", "only/write", "single", "dev/%c/#", "!home/private/#"]),
        list(&["home/#", "single", "dev/%c/#", "who/%u", "!home/private/#"]),
    );
    let (bob, plain) =
        (("bob", list(&everybody[..1]), list(&everybody)), ("plain", list(&everybody[..1]), list(&everybody)));
    assert_eq!(result.users(), [alice, bob, plain]);
    assert_eq!(result.anonymous(), (AnonymousFrom::All, list(&["dev/%c/#"]), list(&["public/#", "dev/%c/#"])));
    let users = &result.settings.broker.access.users;
    assert_eq!(users[0].password_hash.as_deref(), Some(HASH));
    assert!(users[2].password_hash.as_deref().unwrap().starts_with("$argon2id$"));
    assert!(!result.text.contains("secret") && !result.text.contains("$9$x"));
    assert_eq!(result.summary.not_understood, 2, "{}", result.text);
}

#[test]
fn without_a_list_everybody_may_do_everything() {
    let result = with_files("listener 1883\npassword_file p\n", &[("p", &format!("a:{HASH}\n"))]);
    assert_eq!(result.users(), [("a", list(&["#"]), list(&["#", "$SYS/#"]))]);
    // a missing access control list allows nothing, and users of a missing password file cannot sign in
    let result = with_files("listener 1883\npassword_file p\nacl_file gone\n", &[("p", &format!("a:{HASH}\n"))]);
    assert_eq!(result.users(), [("a", list(&[]), list(&[]))]);
    let result = of("listener 1883\npassword_file /gone\n");
    assert_eq!((result.users().len(), result.anonymous().0), (0, AnonymousFrom::None));
    assert!(result.summary.to_do[0].contains("/gone"));
}

#[test]
fn rules_that_mean_something_else_here_are_narrower() {
    let acl = "user a\ntopic readwrite a/#\ntopic read own/%u\npattern deny a/secret\npattern deny x/y\npattern read x/#\n\
               pattern write $SYS/broker/connection/%c/state\ntopic bad/#/x\ntopic sometimes a\nsomething else\n";
    let result =
        with_files("listener 1883\npassword_file p\nacl_file acl\n", &[("p", &format!("a:{HASH}\n")), ("acl", acl)]);
    // in mosquitto `pattern deny a/secret` has no effect, because a `topic` allows it first
    assert_eq!(result.users(), [("a", list(&["a/#"]), list(&["a/#", "x/#", "!x/y"]))]);
    assert!(result.remark("topic read own/%u").contains("pattern"));
    assert!(result.remark("pattern write $SYS/broker/connection/%c/state").contains(NOT_TAKEN));
    let narrowed = "user a\ntopic readwrite a/#\npattern deny a/secret\npattern readwrite a/+\n";
    let result = with_files(
        "listener 1883\npassword_file p\nacl_file acl\n",
        &[("p", &format!("a:{HASH}\n")), ("acl", narrowed)],
    );
    assert!(result.remark("pattern deny a/secret").contains("denial always wins"), "{}", result.text);
    // without a password file a user name proves nothing
    let result = with_files(
        "listener 1883\nallow_anonymous true\nacl_file acl\n",
        &[("acl", "topic read a\nuser root\ntopic #\n")],
    );
    assert_eq!((result.users().len(), result.anonymous().2), (0, list(&["a"])));
    assert!(result.remark("user root").contains("claim"));
}

#[test]
fn files_on_the_command_line_are_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (acl, passwords) = (file("rules", "user a\ntopic read x\n"), file("names", &format!("a:{HASH}\n")));
    let conf = file("m.conf", "listener 1883\npassword_file /elsewhere/passwd\nacl_file /elsewhere/acl\n");
    let result = all(&[acl.clone(), conf, passwords.clone()]);
    assert_eq!(result.users(), [("a", list(&[]), list(&["x"]))]);
    let result = all(&[passwords, acl]);
    assert_eq!(result.users(), [("a", list(&[]), list(&["x"]))]);
    let yaml = file("c.yml", "mqtt:\n  host: h\ndigital_inputs: []\n");
    let error =
        import(&[yaml], &Options { host_name: "h", keeps_secrets: false, hash: |password| hash::make(password) })
            .unwrap_err();
    assert!(matches!(error, ImportError::NotThat { .. }));
    let error = import(
        &[dir.path().join("gone")],
        &Options { host_name: "h", keeps_secrets: false, hash: |password| hash::make(password) },
    )
    .unwrap_err();
    assert!(matches!(error, ImportError::Read { .. }));
}

#[test]
fn what_each_listener_says_about_access_is_read_where_it_stands() {
    let result = of(
        "per_listener_settings true\nallow_anonymous true\nlistener 1883\npassword_file /gone\nacl_file /gone-too\n",
    );
    assert_eq!(result.anonymous().0, AnonymousFrom::None);
    assert!(result.remark("allow_anonymous true").contains("default listener"));
    assert!(
        result.remark("password_file /gone").contains(NOT_TAKEN)
            && result.remark("acl_file /gone-too").contains(NOT_TAKEN)
    );
    let result = with_files(
        "per_listener_settings true\nlistener 1883\npassword_file a\nlistener 1884\npassword_file b\nacl_file c\nlistener 1885\n\
         psk_hint x\nallow_anonymous true\n",
        &[
            ("a", &format!("x:{HASH}\ny:{HASH}\n")),
            ("b", &format!("y:{HASH}\nz:{HASH}\n")),
            ("c", "user z\ntopic read z\n"),
        ],
    );
    let everything = (list(&["#"]), list(&["#", "$SYS/#"]));
    let (x, y) = (("x", everything.0.clone(), everything.1.clone()), ("y", everything.0, everything.1));
    assert_eq!(result.users(), [x, y, ("z", list(&[]), list(&["z"]))]);
    assert_eq!(result.anonymous().0, AnonymousFrom::None);
    let own = &result.settings.broker.access.listeners;
    let names = |at: usize| -> Vec<&str> { own[at].users.iter().flatten().map(|user| user.name.as_str()).collect() };
    assert_eq!((names(0), names(1)), (vec!["x", "y"], vec!["y", "z"]), "{}", result.text);
    let of_second = &own[1].users.as_ref().unwrap()[0].rights;
    assert!(of_second.publish.is_empty() && of_second.subscribe.is_empty(), "each listener has its own rules");
}
