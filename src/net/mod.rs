//! Ports, for the broker's listeners and for HTTP.

pub mod address;
pub(crate) mod descriptors;
pub mod forwarded;
pub(crate) mod percent;
pub(crate) mod port;
pub(crate) mod queue;

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;

use self::address::{Address, ForeignSocket, Listening, NoSocket, PortStream, bind_unix};

const BACKLOG: i32 = 1024;
/// When the system first asks a silent peer whether it is still there; after that it asks at intervals. A host that has
/// vanished is noticed after three minutes, whatever keep alive its client uses.
const KEEPALIVE: Duration = Duration::from_secs(120);
const KEEPALIVE_STEP: Duration = Duration::from_secs(15);
const KEEPALIVE_STEPS: u32 = 4;

/// Why a port cannot be opened: its address is in use, or does not belong to this host.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", in_brackets(hint(source)))]
pub struct ListenError {
    pub(crate) address: Address,
    /// The error of the operating system.
    pub(crate) source: std::io::Error,
}

impl ListenError {
    /// Whether a person is needed to change that. An address that does not exist yet may appear by itself.
    pub(crate) fn is_hopeless(&self) -> bool {
        use std::io::ErrorKind::{AddrInUse, PermissionDenied};
        matches!(self.source.kind(), AddrInUse | PermissionDenied)
    }
}

fn in_brackets(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!(" ({hint})") }
}

fn hint(error: &std::io::Error) -> &'static str {
    if error.get_ref().is_some_and(|error| error.is::<ForeignSocket>()) {
        return "stop the program that listens there, or remove the file where none does";
    }
    if error.get_ref().is_some_and(|error| error.is::<NoSocket>()) {
        return "move away what is there, or choose another path under [[broker.listener]]";
    }
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program listens there, perhaps mosquitto: stop it, or choose another port under \
             [[broker.listener]] or [http]"
        }
        std::io::ErrorKind::PermissionDenied => {
            "a port below 1024 needs privileges; a socket needs a directory that the gateway may write to"
        }
        std::io::ErrorKind::NotFound => {
            "its directory is not there: RuntimeDirectory=pigateway in the unit makes /run/pigateway"
        }
        std::io::ErrorKind::AddrNotAvailable => "this host does not have that address",
        _ => "",
    }
}

/// Opens a listening socket; `[::]` includes IPv4. Returns the address to which it is bound.
fn bind(address: &Address) -> Result<(Listening, Address), ListenError> {
    let bound = match address {
        Address::Tcp(address) => {
            try_bind(*address).map(|(listener, bound)| (Listening::Tcp(listener), Address::Tcp(bound)))
        }
        Address::Unix(path) => bind_unix(path).map(|listener| (Listening::Unix(listener), address.clone())),
    };
    bound.map_err(|source| ListenError { address: address.clone(), source })
}

fn try_bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let socket = match Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)) {
        // a kernel without IPv6
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            return try_bind(SocketAddr::from(([0, 0, 0, 0], address.port())));
        }
        other => other?,
    };
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // a restart must not wait until old connections have timed out
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Sets the options of an accepted connection.
fn prepare(stream: &PortStream) {
    let PortStream::Tcp(stream) = stream else { return };
    // a packet must not wait for the acknowledgement of the previous one
    let _ = stream.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_STEP).with_retries(KEEPALIVE_STEPS);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Whether an error of `accept` concerns only one connection.
fn is_about_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
