//! The messages that systemd gets.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// The socket to which a service sends its messages.
pub struct Systemd {
    socket: UnixDatagram,
    status: String,
}

impl Systemd {
    /// Opens a socket at this path, which must be the value of `NOTIFY_SOCKET`.
    pub fn new(path: &Path) -> Systemd {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket that does not block");
        Systemd { socket, status: String::new() }
    }

    /// The last status line.
    pub fn status(&mut self) -> &str {
        let mut buffer = [0; 4096];
        while let Ok(len) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if let Some(status) = text.lines().find_map(|line| line.strip_prefix("STATUS=")) {
                self.status = status.into();
            }
        }
        &self.status
    }
}
