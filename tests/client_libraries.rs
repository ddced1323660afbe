//! Client libraries as people have them, beside those in `replaces_mosquitto.rs` and `http_websocket.rs`.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::{Process, Setup, python};

#[test]
fn paho_c_over_tcp_and_websocket() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let program = gateway.dir().join("client_paho");
    let mut gcc = Command::new("gcc");
    gcc.arg(python::fixture("client_paho.c")).arg("-o").arg(&program).arg("-lpaho-mqtt3cs");
    assert!(gcc.status().unwrap().success(), "libpaho-mqtt-dev and gcc are needed: tests/run installs them");
    let versions =
        [4, 5].into_iter().flat_map(|version| (0..3).map(move |qos| format!("version {version}: QoS {qos}")));
    let expected: Vec<String> = versions.collect();
    for url in [format!("tcp://localhost:{}", gateway.port), format!("ws://localhost:{http}/mqtt")] {
        let (code, lines) = Process::start(Command::new(&program).arg(&url)).wait();
        assert_eq!((code, &lines), (Some(0), &expected), "{url}");
    }
}
