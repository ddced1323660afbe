//! Free ports for tests.

use std::fs::read_to_string;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

/// The names that say which ports this process has, see [`free_port`].
static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A free loopback port, which no other test gets before this process ends, whoever listens on it meanwhile. It is below the
/// ports of outgoing connections, so that no other program takes it before it is used.
///
/// Several test programs run at once, and whoever is given a port opens it later, often in a program that is started for that.
/// So a port is taken by a name that only one process can have: an address in the abstract name space of the kernel. Nothing
/// listens on it to find out whether it is free, because a program that another thread is about to start has all sockets of this
/// process for a moment, and would keep the port.
pub fn free_port() -> u16 {
    const FIRST: u16 = 16_000;
    const COUNT: u16 = 16_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = (std::process::id() as u16).wrapping_mul(61);
    loop {
        let port = FIRST + base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let name = SocketAddr::from_abstract_name(format!("pigateway-test-port-{port}")).unwrap();
        let Ok(taken) = UnixListener::bind_addr(&name) else { continue };
        if is_free(port) {
            TAKEN.lock().unwrap().push(taken);
            return port;
        }
    }
}

/// Whether no socket has this port, except connections that have ended.
fn is_free(port: u16) -> bool {
    let has_port = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let is_same = fields.next().is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
        is_same && fields.nth(1) != Some("06")
    };
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().all(|sockets| !read_to_string(sockets).unwrap().lines().any(has_port))
}
