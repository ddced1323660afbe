//! Where a port listens, and what comes in there.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
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
            // where it takes no connections of our kind, somebody has it as well
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => make_way(path)?,
            Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// A socket in the file system that may not be connected to, so that nobody can tell whether it is in use.
#[derive(Debug, thiserror::Error)]
#[error("a socket of somebody else is there, which the gateway may not connect to")]
pub(super) struct ForeignSocket;

/// Takes away a socket that another user has left in a directory of ours, as a gateway that was started by hand does. Where the
/// kernel knows somebody who listens there, or the directory is not ours, it stays.
fn make_way(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let is_ours = std::fs::metadata(dir)?.uid() == rustix::process::geteuid().as_raw();
    let sockets = std::fs::read("/proc/net/unix")?;
    if is_ours && !is_bound(path, &sockets) {
        return std::fs::remove_file(path);
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, ForeignSocket))
}

/// Whether a socket of this path is in the kernel's table, whose lines end with the path where there is one.
fn is_bound(path: &Path, table: &[u8]) -> bool {
    let path = path.as_os_str().as_bytes();
    table.split(|byte| *byte == b'\n').any(|line| line.strip_suffix(path).is_some_and(|rest| rest.ends_with(b" ")))
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
        assert_eq!(bind_unix(&datagrams).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = dir.path().join("f");
        std::fs::write(&file, "kept").unwrap();
        assert!(bind_unix(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn a_socket_that_may_not_be_connected_to_goes_if_nobody_has_it_and_the_directory_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let used = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refused = make_way(&path).unwrap_err();
        assert!(refused.get_ref().is_some_and(|error| error.is::<ForeignSocket>()) && path.exists(), "{refused}");
        // one whose path only ends the same
        assert!(!is_bound(Path::new("/s"), &std::fs::read("/proc/net/unix").unwrap()));
        drop(used);
        make_way(&path).unwrap();
        assert!(!path.exists());
    }
}
