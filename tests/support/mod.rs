//! Code that the tests share: the gateway and its counterparts as processes, and an MQTT client that can misbehave.
//!
//! Nothing here sleeps for a fixed time to get a result. A wait checks a condition until it holds, or fails after
//! [`PATIENCE`] with the last state. Processes are ended by their own pid.

// every test file is a crate of its own and uses a part of this
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

pub mod broker;
pub mod browser;
pub mod client;
pub mod debt;
pub mod fleet;
pub mod http;
pub mod kernel;
pub mod packet;
pub mod port;
pub mod process;
pub mod python;
pub mod systemd;
pub mod tls;
pub mod wire;

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

pub use broker::{Gateway, Mosquitto, Setup};
pub use client::{Client, Connect};
pub use packet::{Lookup, Properties, Publish, contents};
pub use port::free_port;
pub use process::Process;

/// The longest wait for a condition. It is long, because a debug build on a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads once, whatever other threads do meanwhile.
pub trait ReadSome: Read {
    /// Like [`Read::read`]. A read with a timeout fails when a program that another thread has started ends; this one goes on.
    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl<R: Read + ?Sized> ReadSome for R {}

/// An argon2id hash that is quick to check.
pub fn quick_hash(password: &str) -> String {
    use argon2::password_hash::{PasswordHasher, SaltString};
    let salt = SaltString::encode_b64(b"0123456789abcdef").unwrap();
    let params = argon2::Params::new(8, 1, 1, None).unwrap();
    let cheap = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    cheap.hash_password(password.as_bytes(), &salt).unwrap().to_string()
}
