//! Nothing is more open than it was: HTTP and the listeners that have no settings of their own.

use super::*;
use crate::http::settings::HttpSettings;

const MUTUAL: &str = "listener 8883\ncafile /ca.crt\ncertfile /c.crt\nkeyfile /c.key\nrequire_certificate true\n";

/// The address of HTTP, whom it lets in without a user name, and its users.
fn http(result: &Result) -> (String, AnonymousFrom, Vec<&str>) {
    let HttpSettings { address, .. } = &result.settings.http;
    let address = address.map_or("off".to_owned(), |address| address.to_string());
    (address, result.anonymous().0, result.users().iter().map(|(name, _, _)| *name).collect())
}

/// Whom each listener lets in without a user name, if it says so itself, and its own users.
fn own(result: &Result) -> Vec<(&str, AnonymousFrom, Option<Vec<&str>>)> {
    let own = &result.settings.broker.access.listeners;
    own.iter().map(|own| (own.listener.as_str(), own.anonymous.accept, users_of(own))).collect()
}

fn users_of(own: &crate::access::settings::ListenerAccess) -> Option<Vec<&str>> {
    own.users.as_ref().map(|users| users.iter().map(|user| user.name.as_str()).collect())
}

#[test]
fn http_is_no_more_open_than_the_listeners() {
    let (all, loopback, none) = (AnonymousFrom::All, AnonymousFrom::Loopback, AnonymousFrom::None);
    let (everywhere, here) = ("[::]:8080", "127.0.0.1:8080");
    for (conf, address, accept, own_guests) in [
        ("listener 1883\nallow_anonymous true\n", everywhere, all, &[][..]),
        ("listener 1883\n", everywhere, none, &[]),
        ("listener 1883 0.0.0.0\nallow_anonymous true\n", "0.0.0.0:8080", all, &[]),
        ("listener 9001\nprotocol websockets\nallow_anonymous true\n", everywhere, all, &[]),
        // one network only, TLS, a proxy or a socket: guests come in there, and not by HTTP from elsewhere
        ("listener 1883 10.8.0.1\nallow_anonymous true\n", here, loopback, &["10.8.0.1:1883"]),
        ("listener 8883\ncertfile /c\nkeyfile /k\nallow_anonymous true\n", here, loopback, &["[::]:8883"]),
        ("listener 1883\nenable_proxy_protocol 2\nallow_anonymous true\n", here, none, &["[::]:1883"]),
        ("listener 0 /run/m.sock\nallow_anonymous true\n", here, none, &["/run/m.sock"]),
        (&format!("{MUTUAL}allow_anonymous true\n"), here, none, &["[::]:8883"]),
        (&format!("listener 1883 127.0.0.1\n{MUTUAL}allow_anonymous true\n"), here, loopback, &["[::]:8883"]),
        (&format!("listener 1883\n{MUTUAL}allow_anonymous true\n"), everywhere, all, &[]),
        ("", here, loopback, &[]),
        ("psk_hint x\n", here, none, &[]),
        // the port of the page is taken
        ("listener 8080\nallow_anonymous true\n", "off", all, &[]),
        ("listener 8080 10.8.0.1\nallow_anonymous true\n", here, loopback, &["10.8.0.1:8080"]),
        ("listener 8080 127.0.0.1\nallow_anonymous true\n", "off", loopback, &[]),
    ] {
        let result = of(conf);
        let (is_at, accepts, _) = http(&result);
        assert_eq!((is_at.as_str(), accepts), (address, accept), "{conf}\n{}", result.text);
        let guests: Vec<&str> =
            own(&result).into_iter().filter(|(_, accept, _)| *accept == all).map(|(name, _, _)| name).collect();
        assert_eq!(guests, own_guests, "{conf}\n{}", result.text);
    }
}

#[test]
fn a_password_is_not_enough_where_a_certificate_was_needed_too() {
    let files = [("p", format!("a:{HASH}\n")), ("q", format!("b:{HASH}\n"))];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let here = "127.0.0.1:8080".to_owned();
    let none = AnonymousFrom::None;
    let result = with_files(&format!("{MUTUAL}password_file p\n"), &files);
    assert_eq!(http(&result), (here.clone(), none, vec![]), "{}", result.text);
    assert_eq!(own(&result), [("[::]:8883", none, Some(vec!["a"]))]);
    // the same users come in on this host without a certificate
    let result = with_files(&format!("listener 1883 127.0.0.1\n{MUTUAL}password_file p\n"), &files);
    assert_eq!(http(&result), (here.clone(), none, vec!["a"]), "{}", result.text);
    assert_eq!(own(&result), []);
    let each =
        format!("per_listener_settings true\n{MUTUAL}password_file p\nlistener 1883 10.8.0.1\npassword_file q\n");
    assert_eq!(http(&with_files(&each, &files)), (here, none, vec!["b"]));
    let each = format!("{each}listener 1884\nallow_anonymous true\n");
    let result = with_files(&each, &files);
    assert_eq!(http(&result), ("[::]:8080".to_owned(), AnonymousFrom::Loopback, vec![]), "{}", result.text);
}

#[test]
fn what_a_plugin_decided_is_closed_until_a_person_decides_it() {
    let users = format!("a:{HASH}\n");
    let files = [("p", users.as_str()), ("acl", "topic read x\nuser a\ntopic #\n")];
    for plugin in [
        "plugin /usr/lib/mosquitto_dynamic_security.so\nplugin_opt_config_file /x.json\n",
        "auth_plugin /usr/lib/go-auth.so\nauth_opt_backends sqlite\n",
        "global_plugin /usr/lib/any.so\n",
        "clientid_prefixes se*ret-\n",
    ] {
        for listener in
            ["listener 1883\nallow_anonymous true\n", "listener 1883\nallow_anonymous true\nacl_file acl\n", ""]
        {
            for per_listener in ["", "per_listener_settings true\n"] {
                let result = with_files(&format!("{per_listener}{listener}password_file p\n{plugin}"), &files);
                assert_eq!(result.anonymous().0, AnonymousFrom::None, "{}", result.text);
                assert!(own(&result).is_empty());
                if per_listener.is_empty() || !listener.is_empty() {
                    assert_eq!(result.users(), [("a", list(&[]), list(&[]))], "{}", result.text);
                }
                let to_do = result.summary.to_do.iter().find(|item| item.contains("who may come in"));
                assert!(to_do.is_some(), "{:?}", result.summary);
                if !listener.is_empty() {
                    assert!(result.remark("allow_anonymous true").contains(NOT_TAKEN), "{}", result.text);
                }
            }
        }
    }
    // each listener has its own plugins
    let two = "per_listener_settings true\nlistener 1883\nallow_anonymous true\nplugin /x.so\nlistener 1884\nallow_anonymous true\n";
    let result = of(two);
    let accepts: Vec<AnonymousFrom> = own(&result).iter().map(|(_, accept, _)| *accept).collect();
    assert_eq!(accepts, [AnonymousFrom::None, AnonymousFrom::All], "{}", result.text);
    // a plugin that only keeps messages decides nothing
    let harmless = "listener 1883\nallow_anonymous true\nplugin /usr/lib/mosquitto_persist_sqlite.so\n";
    assert_eq!(of(harmless).anonymous(), (AnonymousFrom::All, list(&["#"]), list(&["#", "$SYS/#"])));
    // rules that a person gives count
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let given = all(&[
        file("m.conf", "listener 1883\nplugin /x.so\n"),
        file("passwd", &users),
        file("rules", "user a\ntopic read x\n"),
    ]);
    assert_eq!(given.users(), [("a", list(&[]), list(&["x"]))], "{}", given.text);
}

#[test]
fn prefixes_of_client_ids_hold_for_users_and_keep_guests_out() {
    let users = format!("a:{HASH}\n");
    let conf = "listener 1883\nallow_anonymous true\npassword_file p\nclientid_prefixes home-\n";
    let result = with_files(conf, &[("p", users.as_str())]);
    assert_eq!(result.anonymous().0, AnonymousFrom::None);
    let user = &result.settings.broker.access.users[0];
    assert!(user.may_have_id("home-1") && !user.may_have_id("other"), "{}", result.text);
    assert_eq!(result.users(), [("a", list(&["#"]), list(&["#", "$SYS/#"]))]);
    assert!(result.summary.to_do.iter().any(|item| item.contains("give its clients users")), "{:?}", result.summary);
    assert!(result.remark("allow_anonymous true").contains(NOT_TAKEN));
}
