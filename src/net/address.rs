//! The addresses of ports, and the connections that arrive there.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The address at which a port listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port; `[::]` includes IPv4.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// Reads an IP address with a port, or an absolute path.
    pub fn parse(text: &str) -> Option<Address> {
        // the kernel's limit for the path of a socket
        if text.starts_with('/') && text.len() < 108 && !text.ends_with('/') && !text.contains('\0') {
            return Some(Address::Unix(text.into()));
        }
        text.parse().ok().map(Address::Tcp)
    }

    /// The IP address and port, unless it is a Unix socket.
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

pub(super) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    /// The next connection with its remote address. Clients of a Unix socket are on this host.
    pub(crate) async fn accept(&self) -> io::Result<(PortStream, SocketAddr)> {
        match self {
            Listening::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                Ok((PortStream::Tcp(stream), from))
            }
            Listening::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((PortStream::Unix(stream), SocketAddr::from(([127, 0, 0, 1], 0))))
            }
        }
    }
}

/// The kernel's error for a socket of another type.
const OTHER_KIND: i32 = rustix::io::Errno::PROTOTYPE.raw_os_error();

/// Listens on a Unix socket. First removes a socket on which nobody listens any more. Members of the gateway's group may
/// connect.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|about| about.file_type().is_socket()) {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // if the other program's queue is full, this must not wait for it
        probe.set_nonblocking(true)?;
        match probe.connect(&SockAddr::unix(path)?) {
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                io::ErrorKind::PermissionDenied => make_way(path)?,
                // it was removed meanwhile
                io::ErrorKind::NotFound => {}
                // the socket is in use, also if it does not accept connections of our type
                io::ErrorKind::WouldBlock => return Err(io::ErrorKind::AddrInUse.into()),
                _ if error.raw_os_error() == Some(OTHER_KIND) => return Err(io::ErrorKind::AddrInUse.into()),
                _ => return Err(error),
            },
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(|error| {
        let is_other = std::fs::symlink_metadata(path).is_ok_and(|about| !about.file_type().is_socket());
        if is_other && error.kind() == io::ErrorKind::AddrInUse {
            io::Error::new(error.kind(), NoSocket)
        } else {
            error
        }
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The error for a file or directory where a socket is to be made. It may be somebody's, so it stays.
#[derive(Debug, thiserror::Error)]
#[error("something that is no socket is there")]
pub(super) struct NoSocket;

/// The error for a socket to which the gateway may not connect, so that it cannot tell whether the socket is in use.
#[derive(Debug, thiserror::Error)]
#[error("a socket of somebody else is there, which the gateway may not connect to")]
pub(super) struct ForeignSocket;

/// Removes a socket that another user has left in a directory of ours, for example a gateway that was started by hand. The
/// socket stays if the kernel knows a listener for it, or if the directory is not ours. The kernel's table contains only our
/// network namespace, so a listener in a container with its own namespace is not seen.
fn make_way(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let is_ours = std::fs::metadata(dir)?.uid() == rustix::process::geteuid().as_raw();
    let sockets = std::fs::read("/proc/net/unix")?;
    if is_ours && !is_bound(path, &sockets) {
        return std::fs::remove_file(path);
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, ForeignSocket))
}

/// Whether a socket with this path is in the kernel's table. The table has each path as it was bound, perhaps through a link
/// or relative to an unknown directory. So only the file's name is compared.
fn is_bound(path: &Path, table: &[u8]) -> bool {
    let dir = |path: &Path| path.parent().map(std::fs::canonicalize);
    let own = dir(path);
    let is_same_dir = |bound: &Path| match (dir(bound), &own) {
        _ if bound.is_relative() => true,
        (Some(Ok(dir)), Some(Ok(own))) => dir == *own,
        (Some(Err(error)), _) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    };
    let bound = table.split(|byte| *byte == b'\n').filter_map(bound_path);
    bound.into_iter().any(|bound| bound == path || (bound.file_name() == path.file_name() && is_same_dir(bound)))
}

/// The path at the end of a line of the kernel's table, after seven columns.
fn bound_path(line: &[u8]) -> Option<&Path> {
    let mut rest = line;
    for _ in 0..7 {
        rest = rest.trim_ascii_start();
        rest = &rest[rest.iter().position(|byte| *byte == b' ')?..];
    }
    Some(Path::new(OsStr::from_bytes(rest.strip_prefix(b" ")?)))
}

/// A connection over TCP or through a Unix socket.
#[derive(Debug)]
pub(crate) enum PortStream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for PortStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            PortStream::Tcp(stream) => stream.as_fd(),
            PortStream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for PortStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PortStream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            PortStream::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PortStream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            PortStream::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    // without these two functions, several buffers would be copied into one before every write
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            PortStream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            PortStream::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            PortStream::Tcp(stream) => stream.is_write_vectored(),
            PortStream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PortStream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            PortStream::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            PortStream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            PortStream::Unix(stream) => Pin::new(stream).poll_shutdown(context),
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
        // a file that is no stream socket may be in use nevertheless
        let datagrams = dir.path().join("d");
        let _used = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert!(bind_unix(&datagrams).is_err() && datagrams.exists());
        assert_eq!(bind_unix(&datagrams).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let file = dir.path().join("f");
        std::fs::write(&file, "kept").unwrap();
        let error = bind_unix(&file).unwrap_err();
        assert!(error.get_ref().is_some_and(|error| error.is::<NoSocket>()), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn a_socket_that_may_not_be_connected_to_goes_if_nobody_has_it_and_the_directory_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let used = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let refused = make_way(&path).unwrap_err();
        assert!(refused.get_ref().is_some_and(|error| error.is::<ForeignSocket>()) && path.exists(), "{refused}");
        // a path that only ends in the same way
        assert!(!is_bound(Path::new("/s"), &std::fs::read("/proc/net/unix").unwrap()));
        drop(used);
        make_way(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_is_in_use_whatever_way_its_path_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let line = |path: &Path| {
            format!(
                "Num RefCount Protocol Flags Type St Inode Path\n\
                 0000000000000000: 00000002 00000000 00010000 0001 01    27 {}\n\
                 0000000000000000: 00000003 00000000 00000000 0001 03 12345\n",
                path.display()
            )
        };
        let path = real.join("m s");
        for bound in [&path, &link.join("m s"), &real.join("../real/m s"), Path::new("m s"), Path::new("run/m s")] {
            assert!(is_bound(&path, line(bound).as_bytes()), "{}", bound.display());
        }
        for bound in [&real.join("s"), &dir.path().join("m s"), Path::new("s"), Path::new("/nowhere/m s")] {
            assert!(!is_bound(&path, line(bound).as_bytes()), "{}", bound.display());
        }
        let used = std::os::unix::net::UnixListener::bind(link.join("m s")).unwrap();
        assert!(make_way(&path).is_err() && path.exists());
        drop(used);
    }

    #[test]
    fn what_is_wrong_on_the_way_to_a_socket_is_said_as_it_is() {
        // a directory that is a file is not taken for a listening program
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        assert_eq!(bind_unix(&dir.path().join("f/s")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
