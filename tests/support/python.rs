//! Python scripts with paho, as users have them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Process;

/// The versions of paho that scripts are written for.
pub const PAHO: [&str; 2] = ["paho-1", "paho-2"];

/// Starts a script with a version of paho; standard output is not buffered.
#[track_caller]
pub fn start(paho: &str, script: &str, args: &[&str]) -> Process {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache").join(paho).join("bin/python");
    assert!(python.exists(), "{} is missing: tests/run installs it", python.display());
    Process::start(Command::new(python).arg("-u").arg(fixture(script)).args(args))
}

/// A file of tests/fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
