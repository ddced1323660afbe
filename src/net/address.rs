//! Where a port listens, and what comes in there.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Where a port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port; `[::]` takes IPv4 too.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Reads an IP address with a port, or an absolute path.
    pub fn parse(text: &str) -> Option<Address> {
        // the kernel's limit for the name of a socket
        if text.starts_with('/') && text.len() < 108 && !text.ends_with('/') && !text.contains('\0') {
            return Some(Address::Unix(text.into()));
        }
        text.parse().ok().map(Address::Tcp)
    }

    /// The IP address and port, where it has one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Address {
    fn from(address: (I, u16)) -> Address {
        Address::Tcp(address.into())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A socket that listens.
pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// The next connection and where it comes from. Whoever comes through the file system is on this host.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Listening::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((Stream::Tcp(stream), from))
            }
            Listening::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), SocketAddr::from(([127, 0, 0, 1], 0))))
            }
        }
    }
}

/// Listens in the file system. A socket that nobody listens on any more is taken away first; whoever is in the group of the
/// gateway may connect.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket()) {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // where the other's queue is full nobody waits for it
        probe.set_nonblocking(true)?;
        match probe.connect(&SockAddr::unix(path)?) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => return Err(error),
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// A connection, whatever it came through.
#[derive(Debug)]
pub enum Stream {
    /// By IPv4 or IPv6.
    Tcp(TcpStream),
    /// Through the file system.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_path_is_a_socket_in_the_file_system() {
        assert_eq!(Address::parse("/run/a/mqtt.sock"), Some(Address::Unix("/run/a/mqtt.sock".into())));
        assert_eq!(Address::parse("[::1]:1883").and_then(|address| address.tcp()), "[::1]:1883".parse().ok());
        for wrong in ["", "run/a", "/run/", "localhost:1883", &format!("/{}", "x".repeat(107))] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_left_over_is_taken_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind_unix(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(bind_unix(&path).unwrap());
        // what is no such socket may be in use all the same
        let datagrams = dir.path().join("d");
        let _used = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert!(bind_unix(&datagrams).is_err() && datagrams.exists());
        let file = dir.path().join("f");
        std::fs::write(&file, "kept").unwrap();
        assert!(bind_unix(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
