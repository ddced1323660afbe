//! A data directory that a power cut deletes, because the root is an overlay in memory, `/var` is a tmpfs, or log2ram is
//! used. The gateway works as elsewhere, and the log, the page, the status line, `/api/v1/gateway` and `pigateway doctor`
//! say what a power cut costs.
//!
//! The file systems are made by the test, in a user and mount namespace. If the system does not allow users to make these,
//! the tests must run as root.

#![allow(clippy::unwrap_used)]

mod support;

use support::systemd::Systemd;
use support::{Connect, Setup, contents, http, wait_until};

/// The overlay of the root, as the system makes it when its overlay file system is switched on.
const OVERLAY: &str = "mkdir below rw data; echo old >below/file; mount -t tmpfs -o size=64m tmpfs rw; mkdir rw/upper rw/work; \
                       mount -t overlay overlayroot -o lowerdir=$PWD/below,upperdir=$PWD/rw/upper,workdir=$PWD/rw/work data";
const TMPFS: &str = "mkdir data; mount -t tmpfs -o size=64m tmpfs data";
const LOG2RAM: &str = "mkdir data; mount -t tmpfs -o size=64m log2ram data";

/// Starts a gateway in such a directory, and checks that its report contains all these words.
fn it_says(script: &str, words: &[&str]) {
    let (setup, port) = Setup::default().http();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let mut systemd = Systemd::new(&socket);
    let setup = setup.environment("NOTIFY_SOCKET", &socket.display().to_string());
    let gateway = setup.start_after(script);
    let line = gateway.wait_for_line("in memory");
    let shown = http::get(port, "/api/v1/gateway").json()["lost_at_power_cut"].as_str().unwrap().to_owned();
    for word in words.iter().chain(&["a power cut", "retained messages", "gateway.data_dir"]) {
        assert!(line.contains(" WARN ") && line.contains(word), "{word}: {line}");
        assert!(shown.contains(word), "{word}: {shown}");
    }
    wait_until("the status line", || systemd.status().ends_with("; a power cut costs data"));
    // this does not count as a faulty part
    assert_eq!(http::get(port, "/readyz").text(), "ok\n");
    let program = env!("CARGO_BIN_EXE_pigateway");
    let dir = gateway.dir().display().to_string();
    let config = format!("{dir}/pigateway.toml");
    let said = |command: &str, word: &str| {
        gateway.run_inside(&["sh", "-c", &format!("{command} --config {config} | grep -q '{word}'")]);
    };
    said(&format!("{program} doctor"), "^warning .*is in memory");
    said(&format!("{program} status"), "^  .*is in memory");

    // the gateway works: messages that must be kept are acknowledged, and the retained message is stored
    let mut client = Connect::v5("client").open(gateway.port);
    assert_eq!(client.publish("kept", "x", 1, true), 0);
    let mut reader = Connect::new("reader").open(gateway.port);
    reader.subscribe("kept", 1);
    assert_eq!(contents(&[reader.receive()]), [("kept", "x".into())]);
    gateway.run_inside(&["test", "-s", &format!("{dir}/data/journal/00000000.segment")]);
}

#[test]
fn the_root_is_an_overlay_in_memory() {
    it_says(OVERLAY, &["in memory (tmpfs at ", "/rw)", "costs everything"]);
}

#[test]
fn var_is_a_tmpfs() {
    it_says(TMPFS, &["in memory (tmpfs at ", "/data)", "costs everything"]);
}

#[test]
fn log2ram_keeps_it() {
    it_says(LOG2RAM, &["in memory (tmpfs at ", "since log2ram wrote it to a disk"]);
}
