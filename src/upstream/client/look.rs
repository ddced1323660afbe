//! Looks whether an upstream would answer to MQTT, while another connection is in use.
//!
//! That TCP is accepted says little: the kernel does that for a process that hangs, and so does a balancer without a server
//! behind it. So a CONNECT is sent that every upstream must answer with a CONNACK, and that makes no session, needs no
//! password and has no client id. So it takes no connection from anybody, not from us either if the addresses are those
//! of one cluster. It has a version of MQTT that does not exist [MQTT-3.1.2-2]. An upstream that only closes the connection
//! then is asked in 3.1.1 for a session without a client id, which must be refused as well [MQTT-3.1.3-8].

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::dial::PeerOrder;
use super::peers::BrokenPeers;
use super::stream::UpstreamStream;
use super::{OpenProgress, open};
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};
use crate::upstream::wire::Broken;

/// CONNECT with a version that does not exist, and with version 3.1.1, without a client id: a keep alive of 10 s.
const UNKNOWN_VERSION: [u8; 14] = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 0x7f, 0x02, 0, 10, 0, 0];
const NO_CLIENT_ID: [u8; 14] = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 0x00, 0, 10, 0, 0];
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// Whether an upstream that answers with this code takes connections at present. A refusal tells that it works. Codes of 3.1.1:
/// server unavailable. Those of 5: unavailable, busy, quota exceeded, gone elsewhere, connection rate exceeded.
fn is_ready(code: u8) -> bool {
    !matches!(code, 3 | 0x88 | 0x89 | 0x97 | 0x9c | 0x9d | 0x9f)
}

/// Whether the upstream at this address answers to MQTT, and not that it takes no connections at present.
pub(in crate::upstream) async fn answers(settings: &UpstreamSettings, address: &UpstreamAddress) -> bool {
    let mut broken_peers = BrokenPeers::default();
    loop {
        let (mut progress, end) = (OpenProgress::default(), Instant::now() + settings.connect_timeout);
        let asked = timeout_at(end, ask(settings, address, &broken_peers, &mut progress)).await;
        let broken = match asked.unwrap_or(Err(Broken::Silent)) {
            Ok(code) => return is_ready(code),
            Err(broken) => broken,
        };
        let peer = progress.reached.map(|reached| reached.peer.ip());
        if broken_peers.add(address, broken, peer).await.is_err() {
            return false;
        }
    }
}

/// The code of the CONNACK.
async fn ask(
    settings: &UpstreamSettings,
    address: &UpstreamAddress,
    broken: &BrokenPeers,
    progress: &mut OpenProgress,
) -> Result<u8, Broken> {
    let mut last = Broken::Closed;
    for connect in [UNKNOWN_VERSION, NO_CLIENT_ID] {
        let order = PeerOrder { except: &broken.known, last: &[] };
        let mut stream = open(settings, address, false, order, progress).await?;
        match exchange(&mut *stream, &connect).await {
            Ok(code) => return Ok(code),
            Err(broken) => last = broken,
        }
    }
    Err(last)
}

async fn exchange(stream: &mut dyn UpstreamStream, connect: &[u8]) -> Result<u8, Broken> {
    let io = |_| Broken::Closed;
    stream.write_all(connect).await.map_err(io)?;
    stream.flush().await.map_err(io)?;
    if stream.read_u8().await.map_err(io)? != 0x20 {
        return Err(Broken::Garbled);
    }
    // the remaining length has up to four bytes, and then come the flags and the code
    let mut length = 1;
    while stream.read_u8().await.map_err(io)? & 0x80 != 0 {
        length += 1;
        if length > 4 {
            return Err(Broken::Garbled);
        }
    }
    stream.read_u8().await.map_err(io)?;
    let code = stream.read_u8().await.map_err(io)?;
    if code == 0 {
        // it has made a session with an id of its own; an error does not matter any more
        let _ = stream.write_all(&DISCONNECT).await;
        let _ = stream.flush().await;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// Looks at an upstream that answers so to each CONNECT; `None` means that it never does, and nothing that it closes.
    /// Returns also how many connections there were.
    async fn look(answers_with: [Option<&'static [u8]>; 2]) -> (bool, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = UpstreamAddress::parse(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let counted = connections.clone();
        let upstream = tokio::spawn(async move {
            let mut open = Vec::new();
            for answer in answers_with {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let mut connect = [0; 14];
                stream.read_exact(&mut connect).await.unwrap();
                assert!(connect.starts_with(b"\x10\x0c\x00\x04MQTT") && connect.ends_with(&[0, 0]), "no client id");
                if let Some(answer) = answer {
                    stream.write_all(answer).await.unwrap();
                }
                open.extend(answer.is_none().then_some(stream));
            }
            std::future::pending::<()>().await;
        });
        let mut settings = UpstreamSettings::new("u", vec![address.clone()], "c");
        settings.connect_timeout = Duration::from_secs(2);
        let answered = answers(&settings, &address).await;
        upstream.abort();
        (answered, connections.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn only_an_upstream_that_answers_to_mqtt_and_takes_connections_is_there() {
        for (answer, expected) in [
            (&[0x20, 2, 0, 1][..], true),
            (&[0x20, 2, 0, 0], true),
            (&[0x20, 3, 0, 0x84, 0], true),
            (&[0x20, 2, 0, 3], false),
            (&[0x20, 3, 0, 0x89, 0], false),
        ] {
            assert_eq!(look([Some(answer), None]).await, (expected, 1), "{answer:?}");
        }
        // one that only closes at a version that it does not know
        assert_eq!(look([Some(&[]), Some(&[0x20, 2, 0, 2])]).await, (true, 2));
        assert_eq!(look([Some(&[]), Some(&[])]).await, (false, 2), "a balancer without a server");
        assert_eq!(look([Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Some(&[])]).await, (false, 2));
        assert!(!look([None, None]).await.0, "a process that hangs");
    }
}
