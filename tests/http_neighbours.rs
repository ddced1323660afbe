//! HTTP together with other programs: reverse proxies, pages of other sites, Prometheus, and generated clients.

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

/// The first block of code in this language on the page about HTTP.
fn documented(language: &str) -> String {
    let page = fs::read_to_string(root().join("docs/http.md")).unwrap();
    let (_, rest) = page.split_once(&format!("```{language}\n")).expect("a block");
    rest.split_once("```").unwrap().0.to_owned()
}

/// nginx or Caddy in front of a gateway, with the configuration of the documentation.
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
        // each event comes at once, while a proxy that buffers would keep the second one
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
            // the parser of Prometheus reads each expression as a rule
            let expression = target["expr"].as_str().unwrap().replace("$instance", "loft");
            let rule = format!("groups: [{{ name: a, rules: [{{ record: a, expr: '{expression}' }}] }}]");
            let (passed, said) = promtool(&["check", "rules", "/dev/stdin"], rule.as_bytes());
            assert!(passed, "{expression}: {said}");
        }
    }
}

/// The path of a program that a check needs, where tests/run has installed it.
fn tool(path: &str) -> Command {
    let mut command = Command::new(root().join(".cache").join(path));
    command.env("REDOCLY_TELEMETRY", "off").env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true").env("NO_COLOR", "1");
    command
}

#[track_caller]
fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// The calls whose answers are JSON, with paths for which this gateway has data.
const ANSWERS: [(&str, &str, &str); 11] = [
    ("list_messages", "/api/v1/topics", "/api/v1/topics"),
    ("list_sensors", "/api/v1/sensors", "/api/v1/sensors"),
    ("get_sensor", "/api/v1/sensors/{name}", "/api/v1/sensors/loft-motion"),
    ("list_sensor_events", "/api/v1/sensors/{name}/events", "/api/v1/sensors/loft-motion/events"),
    ("get_sensor_edges", "/api/v1/sensors/{name}/edges", "/api/v1/sensors/loft-motion/edges"),
    ("list_upstreams", "/api/v1/upstreams", "/api/v1/upstreams"),
    ("list_clients", "/api/v1/clients", "/api/v1/clients"),
    ("list_problems", "/api/v1/problems", "/api/v1/problems"),
    ("get_gateway", "/api/v1/gateway", "/api/v1/gateway"),
    ("get_session", "/api/v1/session", "/api/v1/session"),
    ("read_message", "/api/v1/topics/{topic}", "/api/v1/topics/a"),
];

#[test]
fn clients_are_generated_from_the_description_and_read_every_answer() {
    let parts = PARTS
        .replace("1 h off", "1 s on\", \"1 s off")
        .replace("pin = 17", "pin = 17\nwarm_up = \"0 s\"\nhold = \"0 s\"");
    let hash = support::quick_hash("secret");
    let boss = format!("[[broker.user]]\nname = \"boss\"\nadmin = true\npassword_hash = \"{hash}\"\n");
    let (setup, http) = Setup::default().config(&parts).config(&boss).http();
    let gateway = setup.start();
    let _client = support::Connect::new("reader").open(gateway.port);
    assert_eq!(request(http, "PUT", "/api/v1/topics/a?retain=true", &[], b"{\"t\":21.5}").status, 204);
    for (what, target) in [("events", ANSWERS[3].2), ("clients", ANSWERS[6].2), ("problems", ANSWERS[7].2)] {
        wait_until(what, || {
            let answer = get(http, target).json();
            answer.as_array().or(answer["events"].as_array()).is_some_and(|list| !list.is_empty())
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let description = dir.path().join("openapi.json");
    fs::write(&description, get(http, "/api/v1/openapi.json").body).unwrap();
    let said =
        passes(tool("openapi-js/node_modules/.bin/redocly").args(["lint", "--extends=recommended"]).arg(&description));
    assert!(said.contains("Your API description is valid") && !said.contains("warning"), "{said}");
    passes(tool("openapi-py/bin/openapi-spec-validator").arg("--errors=all").arg(&description));
    typescript(http, dir.path());
    python(http, dir.path());
}

/// The compiler checks the answers against the types that were generated from the description.
fn typescript(http: u16, dir: &Path) {
    let types = dir.join("api.d.ts");
    passes(tool("openapi-js/node_modules/.bin/openapi-typescript").arg(dir.join("openapi.json")).arg("-o").arg(&types));
    let mut program = String::from("import type { paths } from './api';\n");
    for (number, (_, path, target)) in ANSWERS.iter().enumerate() {
        let answer = request(http, "GET", target, &[("Accept", "application/json")], b"");
        assert_eq!(answer.status, 200, "{target}");
        let kind = format!("paths['{path}']['get']['responses'][200]['content']['application/json']");
        program += &format!("export const answer{number}: {kind} = {};\n", answer.text());
    }
    let missing = get(http, "/api/v1/topics/missing").text();
    let kind = "paths['/api/v1/topics/{topic}']['get']['responses'][404]['content']['application/problem+json']";
    program += &format!("export const problem: {kind} = {missing};\n");
    program += "export const asked: paths['/api/v1/stream']['get']['parameters']['query'] = { filter: ['a', 'b'] };\n";
    let file = dir.join("answers.ts");
    fs::write(&file, program).unwrap();
    passes(
        tool("openapi-js/node_modules/.bin/tsc").args(["--noEmit", "--strict", "--skipLibCheck", "false"]).arg(file),
    );
}

/// Makes every call of the Python client that returns JSON, and checks that the client has read what was sent.
fn python(http: u16, dir: &Path) {
    let mut generate = tool("openapi-py/bin/openapi-python-client");
    generate.args(["generate", "--meta", "none", "--path"]).arg(dir.join("openapi.json"));
    generate.arg("--output-path").arg(dir.join("gateway_client"));
    // so that the generator finds the formatter that was installed with it
    let path = format!("{}:{}", root().join(".cache/openapi-py/bin").display(), std::env::var("PATH").unwrap());
    let said = passes(generate.env("PATH", path).current_dir(dir));
    assert!(!said.to_lowercase().contains("warning") && !said.to_lowercase().contains("error"), "{said}");
    let script = r#"
import compileall, importlib, json, sys, urllib.request
sys.path.insert(0, '.')
assert compileall.compile_dir('gateway_client', quiet=1)
from gateway_client import Client
from gateway_client.types import File
client = Client(base_url='http://localhost:' + sys.argv[1])
def call(function, /, **parameters):
    return importlib.import_module('gateway_client.api.default.' + function).sync_detailed(client=client, **parameters)
arguments = {'get_sensor': {'name': 'loft-motion'}, 'list_sensor_events': {'name': 'loft-motion'}, 'get_sensor_edges': {'name': 'loft-motion'}, 'read_message': {'topic': 'a'}}
for name in sys.argv[2:]:
    answer = call(name, **arguments.get(name, {}))
    assert answer.status_code == 200, (name, answer)
    if name == 'read_message':
        assert answer.parsed.payload.read() == b'{"t":21.5}', answer
        continue
    parsed = answer.parsed
    read = [item.to_dict() for item in parsed] if isinstance(parsed, list) else parsed.to_dict()
    assert read == json.loads(answer.content), (name, read)
    assert read, name
for name in ['metrics', 'is_alive', 'is_ready', 'is_healthy', 'page']:
    answer = call(name)
    assert answer.status_code == 200 and answer.parsed, (name, answer)
import base64, io
from gateway_client import models
boss = {'Authorization': 'Basic ' + base64.b64encode(b'boss:secret').decode()}
client, guest = Client(base_url='http://localhost:' + sys.argv[1], headers=boss), client
made = call('create_user', body=models.NewUser(name='esp', password='x', subscribe=['a/#']))
assert made.status_code == 201 and made.parsed.subscribe == ['a/#'] and not made.parsed.admin, made
changed = call('change_user', name='esp', body=models.UserChange(publish=['b/#']))
assert changed.status_code == 200 and changed.parsed.publish == ['b/#'], changed
assert {user.name: user.admin for user in call('list_users').parsed} == {'boss': True, 'esp': False}
assert call('remove_user', name='esp').status_code == 204
assert call('remove_user', name='esp').parsed.detail == 'there is no such user'
assert call('count_retained', filter_='a').parsed.messages == 1
assert call('disconnect_client', client_id='nobody').status_code == 404
assert call('sign_in', body=models.SignInBody(user='boss', password='secret')).parsed.admin
client = guest
assert call('create_user', body=models.NewUser(name='esp', password='x')).status_code == 403
assert call('delete_retained', filter_='a').status_code == 403
assert call('publish', topic='from-python', retain=True, qos=1, body=File(payload=io.BytesIO(b'it works'))).status_code == 204
assert call('read_message', topic='from-python').parsed.payload.read() == b'it works'
assert call('clear', topic='from-python').status_code == 204
missing = call('read_message', topic='from-python')
assert missing.status_code == 404 and missing.parsed.detail, missing
"#;
    let file = dir.join("calls.py");
    fs::write(&file, script).unwrap();
    let mut run = tool("openapi-py/bin/python");
    run.arg(file).arg(http.to_string()).args(ANSWERS.iter().map(|(name, ..)| name)).current_dir(dir);
    passes(&mut run);
}

#[test]
fn what_is_wrong_is_a_problem_until_it_is_over() {
    let config = "[broker]\nmax_packet_size = \"1 KiB\"\n[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n\
                  [[upstream.out]]\ntopic_filter = \"#\"\n";
    let (setup, http) = Setup::default().config(config).http();
    let gateway = setup.start();
    let parts = || {
        let problems = get(http, "/api/v1/problems?now=true").json();
        let problems = problems.as_array().unwrap();
        assert!(problems.iter().all(|problem| problem["now"] == true && problem["remedy"].is_string()));
        problems.iter().map(|problem| problem["part"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_until("the upstream", || parts() == ["upstream home"]);
    assert_eq!(get(http, "/api/v1/problems").json()[0]["part"], "upstream home", "what is so now comes first");
    let browser = Browser::start(1000, 900, &[]);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for("document.getElementById('link').textContent === 'online, 1 part faulty'");
    // CONNECT of MQTT 3.1.1 as "z2m", and a PUBLISH on "big" with 2000 bytes
    let mut large = std::net::TcpStream::connect(gateway.address()).unwrap();
    large.write_all(b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03z2m\x30\xd5\x0f\0\x03big").unwrap();
    large.write_all(&[b'x'; 2000]).unwrap();
    wait_until("the client", || parts() == ["client z2m", "upstream home"]);
    let text = get(http, "/api/v1/problems?now=true").json()[0]["text"].as_str().unwrap().to_owned();
    assert!(text.contains("on big") && text.contains("max_packet_size"), "{text}");
    browser.wait_for("document.getElementById('link').textContent === 'online, 2 parts faulty'");
    browser.wait_for("document.getElementById('faulty-list').textContent.includes('client z2m')");
    // with a larger limit the problem is over
    let path = gateway.dir().join("pigateway.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"1 KiB\"", "\"1 MiB\"")).unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    wait_until("the end of it", || parts() == ["upstream home"]);
    browser.wait_for("document.getElementById('link').textContent === 'online, 1 part faulty'");
}
