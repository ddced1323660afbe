//! Tests with common client libraries, in addition to those in `replaces_mosquitto.rs` and `http_websocket.rs`.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Gateway, Process, Setup, python};

/// The longest wait for these programs, which take long on a busy machine.
const LONGEST: Duration = Duration::from_secs(300);

/// The last line of every program whose checks have all passed.
fn expected() -> Vec<String> {
    [4, 5].map(|version| format!("version {version}: QoS 0 1 2, session, will, storm")).into()
}

#[track_caller]
fn is_content(what: &str, process: Process) {
    assert_eq!(ended(process), (Some(0), expected()), "{what}");
}

/// Waits for the end of a program and returns its results for each version.
#[track_caller]
fn ended(mut process: Process) -> (Option<i32>, Vec<String>) {
    let begin = Instant::now();
    while process.is_running() && begin.elapsed() < LONGEST {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (code, lines) = process.wait();
    (code, lines.into_iter().filter(|line| code != Some(0) || line.starts_with("version ")).collect())
}

/// Compiles a program of tests/fixtures.
fn compiled(gateway: &Gateway, name: &str, library: &str) -> Command {
    let program = gateway.dir().join(name);
    let mut gcc = Command::new("gcc");
    gcc.arg(python::fixture(&format!("{name}.c"))).arg("-o").arg(&program).arg(format!("-l{library}"));
    assert!(gcc.status().unwrap().success(), "gcc and the headers of {library} are needed: tests/run installs them");
    Command::new(program)
}

#[test]
fn paho_c_over_tcp_and_websocket() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let each = |version: u8| {
        let qos = (0..3).map(move |qos| format!("version {version}: QoS {qos}"));
        qos.chain([format!("version {version}: will, storm")])
    };
    let expected: Vec<String> = [4, 5].into_iter().flat_map(each).collect();
    let program = compiled(&gateway, "client_paho", "paho-mqtt3cs");
    for url in [format!("tcp://localhost:{}", gateway.port), format!("ws://localhost:{http}/mqtt")] {
        let process = Process::start(Command::new(program.get_program()).arg(&url));
        assert_eq!(ended(process), (Some(0), expected.clone()), "{url}");
    }
}

#[test]
fn libmosquitto() {
    let gateway = Gateway::start();
    let mut program = compiled(&gateway, "client_mosquitto", "mosquitto");
    is_content("libmosquitto", Process::start(program.arg(gateway.port.to_string())));
}

#[test]
fn paho_for_python_of_either_api() {
    let gateway = Gateway::start();
    let port = gateway.port.to_string();
    let processes = python::PAHO.map(|paho| (paho, python::start(paho, "client_paho.py", &[&port])));
    for (paho, process) in processes {
        is_content(paho, process);
    }
}

#[test]
fn gmqtt_and_aiomqtt() {
    let gateway = Gateway::start();
    for library in ["gmqtt", "aiomqtt"] {
        let script = format!("client_{library}.py");
        is_content(library, python::start(library, &script, &[&gateway.port.to_string()]));
    }
}

#[test]
fn mqtt_js_over_tcp_and_websocket() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/mqttjs/node_modules");
    assert!(modules.join("mqtt").exists(), "{} is missing: tests/run installs it", modules.display());
    for url in [format!("mqtt://localhost:{}", gateway.port), format!("ws://localhost:{http}/mqtt")] {
        let mut node = Command::new("node");
        node.env("NODE_PATH", &modules).arg(python::fixture("client_mqttjs.js")).arg(&url);
        is_content(&url, Process::start(&mut node));
    }
}
