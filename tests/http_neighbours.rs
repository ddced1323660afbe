//! HTTP beside what stands around it: reverse proxies, pages of other sites, Prometheus.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64ct::{Base64, Encoding};
use serde_json::Value;
use support::broker::Setup;
use support::browser::Browser;
use support::http::{Answer, Events, get, request, try_request};
use support::{PATIENCE, Process, free_port, wait_until};
use tempfile::TempDir;

const PARTS: &str = "[[sensor]]\nname = \"loft-motion\"\npin = 17\ntopic = \"loft/motion1\"\nsimulate = [\"1 h off\"]\n\
                     [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"#\"\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The block of code in this language on the page about HTTP.
fn documented(language: &str) -> String {
    let page = fs::read_to_string(root().join("docs/http.md")).unwrap();
    let (_, rest) = page.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").unwrap().0.to_owned()
}

/// nginx or Caddy as the documentation configures it, in front of a gateway.
struct Proxy {
    port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Proxy {
    fn nginx(gateway: u16) -> Proxy {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let locations = documented("nginx").replace("8080", &gateway.to_string());
        let place = dir.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.iter().map(|name| format!("{name}_temp_path {place}/{name};\n")).collect();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {place}/pid;\nerror_log {place}/error.log;\nevents {{}}\n\
             http {{\naccess_log off;\n{temporary}server {{\nlisten 127.0.0.1:{port};\n{locations}}}\n}}\n"
        );
        let path = dir.path().join("nginx.conf");
        fs::write(&path, text).unwrap();
        Proxy::start(Command::new("/usr/sbin/nginx").arg("-c").arg(path).arg("-p").arg(dir.path()), port, dir)
    }

    fn caddy(gateway: u16) -> Proxy {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let site = documented("caddy").replace("8080", &gateway.to_string());
        let path = dir.path().join("Caddyfile");
        fs::write(
            &path,
            format!("{{\nadmin off\nauto_https off\n}}\nhttp://localhost:{port} {{\nbind 127.0.0.1\n{site}}}\n"),
        )
        .unwrap();
        let mut command = Command::new("caddy");
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path);
        command.env("HOME", dir.path()).env("XDG_DATA_HOME", dir.path()).env("XDG_CONFIG_HOME", dir.path());
        Proxy::start(&mut command, port, dir)
    }

    fn start(command: &mut Command, port: u16, dir: TempDir) -> Proxy {
        let mut process = Process::start(command);
        wait_until("the proxy", || {
            assert!(process.is_running(), "it has ended: {:?}", process.log());
            try_request(port, "GET", "/", &[], b"").is_ok()
        });
        Proxy { port, _process: process, _dir: dir }
    }
}

#[test]
fn behind_a_proxy_below_a_path_everything_works() {
    let anonymous = "[broker.anonymous]\naccept = \"all\"\n";
    let (setup, http) = Setup::default().config(PARTS).config(anonymous).http_with("trusted_proxies = [\"127.0.0.1\"]");
    let _gateway = setup.start();
    let browser = Browser::start(1000, 900, &[]);
    for proxy in [Proxy::nginx(http), Proxy::caddy(http)] {
        let port = proxy.port;
        let origin = format!("http://localhost:{port}");
        // each event comes at once: a proxy that gathers would keep the second one
        let mut events = Events::open_at(port, "/pi/api/v1/stream?filter=pi/%23", &[]);
        events.wait_for("heartbeat");
        let topic = format!("/pi/api/v1/topics/pi/{port}");
        let published = request(port, "PUT", &topic, &[("Origin", &origin)], b"through a proxy");
        assert_eq!(published.status, 204, "{}", published.text());
        assert_eq!(events.wait_for("message").data["payload"], "through a proxy");
        let document = get(port, "/pi/api/v1/openapi.json").json();
        assert_eq!(document["servers"][0]["url"], "/pi");
        browser.open(&format!("{origin}/pi/"));
        browser.wait_for("document.getElementById('link').className.startsWith('online')");
        browser.wait_for("document.getElementById('messages').textContent.includes('through a proxy')");
        browser.wait_for("document.getElementById('sensor-list').textContent.includes('loft-motion')");
        browser.run(
            "document.getElementById('publish-topic').value = 'from/the/page'; \
             document.getElementById('publish').requestSubmit()",
        );
        browser.wait_for("document.getElementById('publish-result').textContent.startsWith('published on')");
        // MQTT over WebSocket
        let upgrade = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Sec-WebSocket-Protocol", "mqtt"),
        ];
        assert_eq!(status_of_upgrade(port, "/pi/mqtt", &upgrade), 101);
    }
}

/// The status of an answer that does not end.
fn status_of_upgrade(port: u16, target: &str, headers: &[(&str, &str)]) -> u16 {
    use std::io::{BufRead, BufReader};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = format!("GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all((head + "\r\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn who_comes_through_a_proxy_is_never_local() {
    for trusted in ["", "trusted_proxies = [\"127.0.0.1\"]"] {
        let (setup, http) = Setup::default().http_with(trusted);
        let gateway = setup.start();
        assert_eq!(get(http, "/api/v1/gateway").status, 200, "this host itself");
        let wrong = format!("Basic {}", Base64::encode_string(b"nobody:secret"));
        for proxy in [Proxy::nginx(http), Proxy::caddy(http)] {
            for header in ["", "127.0.0.1", "::1", "203.0.113.9, 127.0.0.1"] {
                let headers: &[(&str, &str)] = if header.is_empty() { &[] } else { &[("X-Forwarded-For", header)] };
                let answer = request(proxy.port, "GET", "/pi/api/v1/gateway", headers, b"");
                assert_eq!(answer.status, 401, "{trusted}, {header}: {}", answer.text());
            }
            let _ = request(proxy.port, "GET", "/pi/", &[("Authorization", &wrong)], b"");
        }
        drop(gateway);
    }
}

#[test]
fn pages_of_allowed_hosts_may_read_and_frame_and_no_others() {
    let lines = "allowed_hosts = [\"dash.example.org\"]\nframe_ancestors = [\"https://dash.example.org\", \"self\"]";
    let (setup, http) = Setup::default().http_with(lines);
    let _gateway = setup.start();
    let welcome = ("Origin", "https://dash.example.org:8123");
    let shared = |answer: &Answer| answer.header("access-control-allow-origin").map(ToOwned::to_owned);
    let preflight = |origin: (&str, &str)| {
        let headers =
            [origin, ("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "authorization")];
        request(http, "OPTIONS", "/api/v1/topics/a", &headers, b"")
    };
    let allowed = preflight(welcome);
    assert_eq!((allowed.status, shared(&allowed).as_deref()), (204, Some(welcome.1)), "{}", allowed.head);
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("PUT"));
    assert!(allowed.header("access-control-allow-headers").unwrap().to_lowercase().contains("authorization"));
    for method in ["PUT", "GET", "DELETE"] {
        let answer = request(http, method, "/api/v1/topics/a?", &[welcome], b"");
        assert!(answer.status < 300 && shared(&answer).as_deref() == Some(welcome.1), "{method}: {}", answer.head);
        assert!(answer.header("vary").unwrap().contains("Origin"));
    }
    let missing = request(http, "GET", "/api/v1/topics/missing", &[welcome], b"");
    assert_eq!((missing.status, shared(&missing).as_deref()), (404, Some(welcome.1)), "errors can be read too");
    for origin in ["https://evil.example", "https://dash.example.org.evil.example", "null"] {
        let refused = preflight(("Origin", origin));
        assert_eq!((refused.status, shared(&refused)), (403, None), "{origin}");
        let refused = request(http, "GET", "/api/v1/topics/a", &[("Origin", origin)], b"");
        assert_eq!((refused.status, shared(&refused)), (403, None), "{origin}");
    }
    let own = format!("http://localhost:{http}");
    assert_eq!(shared(&request(http, "GET", "/api/v1/gateway", &[("Origin", &own)], b"")), None);
    let page = get(http, "/");
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.ends_with("; frame-ancestors https://dash.example.org 'self'"), "{policy}");
    assert_eq!(page.header("x-frame-options"), None, "it knows no list");
    assert_eq!(get(http, "/api/v1/gateway").header("x-frame-options"), Some("DENY"));
}

fn promtool(arguments: &[&str], input: &[u8]) -> (bool, String) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(root()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Every word of a text that begins like the name of one of our metrics.
fn metrics_named(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("pigateway_"))
}

#[test]
fn prometheus_finds_nothing_wrong_and_rules_and_dashboard_name_what_there_is() {
    let (setup, http) = Setup::default().config(PARTS).http();
    let _gateway = setup.start();
    wait_until("the sensor", || get(http, "/metrics").text().contains("pigateway_sensor_online{"));
    let metrics = get(http, "/metrics");
    let (passed, said) = promtool(&["check", "metrics"], &metrics.body);
    assert!(passed && said.trim().is_empty(), "{said}");
    let (passed, said) = promtool(&["test", "rules", "tests/fixtures/prometheus/alerts_test.yml"], b"");
    assert!(passed, "{said}");
    let text = metrics.text();
    let known = |name: &str| text.lines().any(|line| line.starts_with(&format!("# TYPE {name} ")));
    for file in ["deploy/prometheus-alerts.yml", "deploy/grafana-dashboard.json"] {
        let content = fs::read_to_string(root().join(file)).unwrap();
        let named: Vec<&str> = metrics_named(&content).collect();
        assert!(named.len() > 10, "{file}");
        let missing: Vec<_> = named.into_iter().filter(|name| !known(name)).collect();
        assert!(missing.is_empty(), "{file} names {missing:?}");
    }
    let dashboard: PathBuf = root().join("deploy/grafana-dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(dashboard).unwrap()).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            // the parser of Prometheus reads each expression, as a rule
            let expression = target["expr"].as_str().unwrap().replace("$instance", "loft");
            let rule = format!("groups: [{{ name: a, rules: [{{ record: a, expr: '{expression}' }}] }}]");
            let (passed, said) = promtool(&["check", "rules", "/dev/stdin"], rule.as_bytes());
            assert!(passed, "{expression}: {said}");
        }
    }
}
