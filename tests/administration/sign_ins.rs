//! The page's cookie.

use serde_json::json;

use super::{Caller, config};
use crate::support::broker::Setup;
use crate::support::http::Events;
use crate::support::wait_until;

/// Signs in, and returns the user with the cookie.
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
    // requests that change something must come from the page itself
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
    // a program with name and password from an allowed page works as before
    let program = Caller::named(port, "boss", "secret boss").with("Origin", dash);
    assert_eq!(program.status("PUT", "/api/v1/topics/a", None), 204);
    // behind a proxy with TLS
    let proxied = Caller::guest(port).with("X-Forwarded-For", "192.0.2.1").with("X-Forwarded-Proto", "https");
    let proxied = proxied.with("X-Forwarded-Prefix", "/pi").call("POST", "/api/v1/session", Some(&credentials));
    let cookie = proxied.header("set-cookie").unwrap();
    assert!(cookie.ends_with("; Secure") && cookie.contains("; Path=/pi;"), "{cookie}");
    // scripts are not offered Basic authentication, because the browser would open a window of its own
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
    // changes of the rights and of the password, and the removal of the user, end a sign-in
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
    // the sign-ins of one user are limited, and the one that was unused for longest is ended
    let (first, _) = sign_in(port, "hand", "secret hand");
    let later: Vec<Caller> = (0..16).map(|_| sign_in(port, "hand", "secret hand").0).collect();
    assert_eq!(first.status("GET", "/api/v1/sensors", None), 401);
    assert!(later.iter().all(|caller| caller.status("GET", "/api/v1/sensors", None) == 200));
    assert_eq!(boss.status("GET", "/api/v1/users", None), 200, "nobody else's does");
    // wrong passwords are slowed down as everywhere else, and invalid bodies are reported
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
    // the end of the gateway ends all sign-ins
    let gateway = gateway.kill().restart();
    wait_until("HTTP", || guest.status("GET", "/livez", None) == 200);
    assert_eq!(boss.status("GET", "/api/v1/users", None), 401);
    drop(gateway);
}
