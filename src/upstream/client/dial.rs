//! Connects to a host name. Its addresses are raced [RFC 8305], so that a dead one costs only a moment.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::upstream::tls;
use crate::upstream::wire::Broken;

/// How long an attempt may take before the next one begins as well [RFC 8305 section 5].
const HEAD_START: Duration = Duration::from_millis(250);
/// The part of the time for a connection that looking up the name may take.
const RESOLVING: f32 = 0.75;
/// The number of addresses of a name that are tried.
const MOST: usize = 16;

/// The bytes of a small segment. With its headers it is a packet of 1280 bytes, which every path of IPv6 must carry
/// [RFC 8200 section 5].
const SMALL_SEGMENT: u32 = 1220;

/// In which order the addresses of a name are tried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerOrder<'a> {
    /// These are not tried.
    pub(super) except: &'a [IpAddr],
    /// These are tried after all others, in this order.
    pub(super) last: &'a [IpAddr],
}

/// Connects to one of the addresses of a name, in this order. Returns also all that there are to try.
pub(super) async fn dial(
    host: &str,
    port: u16,
    has_small_segments: bool,
    order: PeerOrder<'_>,
    patience: Duration,
) -> Result<(TcpStream, Vec<IpAddr>), Broken> {
    let found = resolved(host, lookup_host((host, port)), patience).await?;
    let found = ordered(found, order);
    if found.is_empty() {
        return Err(Broken::Unresolved(format!("{host} has no address")));
    }
    let all = found.iter().map(SocketAddr::ip).collect();
    race(found, has_small_segments).await.map(|tcp| (tcp, all)).map_err(|error| tls::broken_io(&error))
}

/// The result of looking up a name. A resolver that gets no answer takes longer than a connection may, so less than that is
/// waited for, because otherwise the upstream would be blamed.
async fn resolved<T>(host: &str, lookup: impl Future<Output = io::Result<T>>, patience: Duration) -> Result<T, Broken> {
    let why = match timeout(patience.mul_f32(RESOLVING), lookup).await {
        Ok(Ok(found)) => return Ok(found),
        Ok(Err(error)) => {
            let why = error.to_string();
            why.strip_prefix("failed to lookup address information: ").unwrap_or(&why).to_owned()
        }
        Err(_) => "no name server answers".into(),
    };
    Err(Broken::Unresolved(format!("the name {host} cannot be resolved: {why}")))
}

/// Whether a name has other addresses than these.
pub(super) async fn has_others(host: &str, port: u16, except: &[IpAddr]) -> bool {
    let found = lookup_host((host, port)).await;
    found.is_ok_and(|found| !ordered(found, PeerOrder { except, last: &[] }).is_empty())
}

/// The addresses to try, of those that were found.
pub(super) fn ordered(found: impl Iterator<Item = SocketAddr>, order: PeerOrder<'_>) -> VecDeque<SocketAddr> {
    let place = |address: &SocketAddr| order.last.iter().position(|last| *last == address.ip());
    let found = found.filter(|address| !order.except.contains(&address.ip()));
    let (mut failed, fresh): (Vec<_>, Vec<_>) = found.partition(|address| place(address).is_some());
    failed.sort_by_key(place);
    interleaved(fresh).into_iter().chain(failed).take(MOST).collect()
}

/// Alternates the address families, beginning with that of the first address, which the system prefers.
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first().copied() else { return VecDeque::new() };
    let (mut preferred, mut other): (VecDeque<SocketAddr>, VecDeque<SocketAddr>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first.is_ipv6());
    let mut all = VecDeque::new();
    while !(preferred.is_empty() && other.is_empty()) {
        all.extend(preferred.pop_front());
        all.extend(other.pop_front());
    }
    all
}

async fn connect(address: SocketAddr, has_small_segments: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if has_small_segments {
        SockRef::from(&socket).set_tcp_mss(SMALL_SEGMENT)?;
    }
    socket.connect(address).await
}

async fn race(mut waiting: VecDeque<SocketAddr>, has_small_segments: bool) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if let Some(address) = waiting.pop_front() {
            attempts.spawn(connect(address, has_small_segments));
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => failure = error,
                Some(Err(error)) => failure = io::Error::other(error),
                None => return Err(failure),
            },
            () = sleep(HEAD_START), if !waiting.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_resolved_is_named_and_not_called_a_timeout_of_the_upstream() {
        let patience = Duration::from_secs(30);
        let begin = tokio::time::Instant::now();
        let silent = std::future::pending::<io::Result<()>>();
        let why = "the name hub.example cannot be resolved: no name server answers";
        assert_eq!(resolved("hub.example", silent, patience).await, Err(Broken::Unresolved(why.into())));
        assert!(begin.elapsed() < patience, "before the time for the connection is over");
        let said = "failed to lookup address information: Temporary failure in name resolution";
        let failed = async { Err::<(), _>(io::Error::other(said)) };
        let why = "the name hub.example cannot be resolved: Temporary failure in name resolution";
        assert_eq!(resolved("hub.example", failed, patience).await, Err(Broken::Unresolved(why.into())));
        assert_eq!(resolved("hub.example", async { Ok(7) }, patience).await, Ok(7));
    }

    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"].map(address).to_vec();
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(address);
        assert_eq!(interleaved(all), expected);
    }

    /// A listener whose backlog is full, so that a connection to it gets no answer.
    fn dead() -> (socket2::Socket, Vec<std::net::TcpStream>, SocketAddr) {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.bind(&address("[::1]:0").into()).unwrap();
        socket.listen(0).unwrap();
        let at = socket.local_addr().unwrap().as_socket().unwrap();
        let mut fill = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&at, Duration::from_millis(200)) {
            fill.push(stream);
        }
        (socket, fill, at)
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hold_up_a_live_one() {
        let (_socket, _fill, dead) = dead();
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live_at = live.local_addr().unwrap();
        let begin = Instant::now();
        let stream = race([dead, live_at].into(), false).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live_at);
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let stream = race([closed, live_at].into(), false).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live_at, "what is refused is left at once");
        let error = race([closed].into(), false).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn segments_are_small_if_that_is_asked_for() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            for (has_small_segments, is_small) in [(false, false), (true, true)] {
                let stream = connect(listener.local_addr().unwrap(), has_small_segments).await.unwrap();
                let (other, _) = listener.accept().await.unwrap();
                // in both directions
                for mss in [SockRef::from(&stream).tcp_mss().unwrap(), SockRef::from(&other).tcp_mss().unwrap()] {
                    assert_eq!(mss <= SMALL_SEGMENT, is_small, "{mss}");
                }
            }
        }
    }
}
