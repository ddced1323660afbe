//! Looks whether an upstream would answer to MQTT, while another connection is in use.
//!
//! That TCP is accepted says little: the kernel does that for a process that hangs, and so does a balancer without a server
//! behind it. So a CONNECT is sent that every upstream must answer with a CONNACK, and that makes no session, needs no
//! password and has no client id. So it takes no connection from anybody, not from us either if the addresses are those
//! of one cluster. It has a version of MQTT that does not exist [MQTT-3.1.2-2]. An upstream that only closes the connection
//! then is asked in 3.1.1 for a session without a client id, which must be refused as well [MQTT-3.1.3-8].

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::dial::PeerOrder;
use super::peers::BrokenPeers;
use super::stream::UpstreamStream;
use super::{OpenProgress, open, too_late};
use crate::upstream::settings::{Protocol, UpstreamAddress, UpstreamSettings};
use crate::upstream::tls;
use crate::upstream::wire::Broken;

/// CONNECT with a version that does not exist, and with version 3.1.1, without a client id: a keep alive of 10 s.
const UNKNOWN_VERSION: [u8; 14] = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 0x7f, 0x02, 0, 10, 0, 0];
const NO_CLIENT_ID: [u8; 14] = [0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 0x00, 0, 10, 0, 0];
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// CONNECT for a clean session with a client id of 23 letters and digits [MQTT-3.1.3-5] that nobody else has.
fn throw_away(protocol: Protocol) -> Vec<u8> {
    let random = getrandom::u64().unwrap_or_default() >> 8;
    let (level, properties): (u8, &[u8]) = if protocol == Protocol::V5 { (5, &[0]) } else { (4, &[]) };
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, 0x02, 0, 10];
    body.extend_from_slice(properties);
    body.extend_from_slice(&[0, 23]);
    body.extend_from_slice(format!("pigateway{random:014x}").as_bytes());
    [&[0x10, body.len() as u8], &body[..]].concat()
}

/// How long an end of a connection is waited for that does not get as far as MQTT.
const AFTERWARDS: Duration = Duration::from_secs(2);

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

/// Connects up to where MQTT begins, through the proxy, TLS and WebSocket. TLS 1.3 and some proxies refuse only after they have
/// seemed to accept, so an end within [`AFTERWARDS`] is an error as well.
pub(in crate::upstream) async fn reaches(settings: &UpstreamSettings, address: &UpstreamAddress) -> Result<(), Broken> {
    let (mut progress, end) = (OpenProgress::default(), Instant::now() + settings.connect_timeout);
    let opened = timeout_at(end, open(settings, address, false, PeerOrder::default(), &mut progress)).await;
    let mut stream = opened.unwrap_or_else(|_| Err(too_late(settings, progress.step)))?;
    match timeout(AFTERWARDS, stream.read_u8()).await {
        Ok(Err(error)) => Err(tls::broken_io(&error)),
        // whatever it says before it is asked is for MQTT to judge
        Ok(Ok(_)) | Err(_) => Ok(()),
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
    // what one does not answer is asked in another way while there is time
    let (soon, late) = (settings.connect_timeout / 4, settings.connect_timeout);
    let throw_away = throw_away(settings.protocol);
    for (connect, patience) in [(&UNKNOWN_VERSION[..], soon), (&NO_CLIENT_ID[..], soon), (&throw_away[..], late)] {
        let order = PeerOrder { except: &broken.known, last: &[] };
        let mut stream = open(settings, address, false, order, progress).await?;
        match timeout(patience, exchange(&mut *stream, connect)).await.unwrap_or(Err(Broken::Silent)) {
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

    use parking_lot::Mutex;
    use tokio::net::TcpListener;

    use super::*;

    /// Looks at an upstream that answers so to each CONNECT; `None` means that it never does, and nothing that it closes.
    /// Returns also the CONNECTs.
    async fn look_with(protocol: Protocol, answers_with: &[Option<&'static [u8]>]) -> (bool, Vec<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = UpstreamAddress::parse(&format!("mqtt://{}", listener.local_addr().unwrap())).unwrap();
        let connects = Arc::new(Mutex::new(Vec::new()));
        let (asked, answers_with) = (connects.clone(), answers_with.to_vec());
        let upstream = tokio::spawn(async move {
            let mut open = Vec::new();
            for answer in answers_with {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 2];
                stream.read_exact(&mut head).await.unwrap();
                let mut body = vec![0; usize::from(head[1])];
                stream.read_exact(&mut body).await.unwrap();
                assert!(head[0] == 0x10 && body.starts_with(b"\0\x04MQTT"), "{body:?}");
                asked.lock().push(body);
                if let Some(answer) = answer {
                    stream.write_all(answer).await.unwrap();
                }
                open.extend(answer.is_none().then_some(stream));
            }
            std::future::pending::<()>().await;
        });
        let mut settings = UpstreamSettings::new("u", vec![address.clone()], "c");
        (settings.connect_timeout, settings.protocol) = (Duration::from_secs(2), protocol);
        let answered = answers(&settings, &address).await;
        upstream.abort();
        let connects = std::mem::take(&mut *connects.lock());
        (answered, connects)
    }

    /// The same, with the number of connections.
    async fn look(answers_with: &[Option<&'static [u8]>]) -> (bool, usize) {
        let (answered, connects) = look_with(Protocol::Auto, answers_with).await;
        assert!(connects.iter().take(2).all(|connect| connect.ends_with(&[0, 0])), "no client id");
        (answered, connects.len())
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
            assert_eq!(look(&[Some(answer), None]).await, (expected, 1), "{answer:?}");
        }
        // one that only closes at a version that it does not know
        assert_eq!(look(&[Some(&[][..]), Some(&[0x20, 2, 0, 2])]).await, (true, 2));
        assert_eq!(look(&[Some(&[][..]); 3]).await, (false, 3), "a balancer without a server");
        let http: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\r\n";
        assert_eq!(look(&[Some(http); 3]).await, (false, 3));
        assert!(!look(&[None; 3]).await.0, "a process that hangs");
    }

    #[tokio::test]
    async fn an_upstream_that_answers_only_what_a_client_may_ask_is_there() {
        let refusal: &[u8] = &[0x20, 2, 0, 5];
        // one closes at what it does not like, and one says nothing
        for silence in [Some(&[][..]), None] {
            assert_eq!(look(&[silence, silence, Some(refusal)]).await, (true, 3), "{silence:?}");
            assert_eq!(look(&[silence, silence, Some(&[0x20, 2, 0, 3])]).await, (false, 3), "it takes no connections");
        }
        let mut ids = Vec::new();
        for (protocol, level) in [(Protocol::Auto, 4), (Protocol::V4, 4), (Protocol::V5, 5)] {
            let (answered, mut connects) =
                look_with(protocol, &[Some(&[][..]), Some(&[]), Some(&[0x20, 2, 0, 0])]).await;
            let last = connects.pop().unwrap();
            assert!(answered);
            assert_eq!((last[6], last[7]), (level, 0x02), "a clean session without user name and password");
            let (head, id) = last.split_at(last.len() - 23);
            assert!(head.ends_with(&[0, 23]) && id.iter().all(u8::is_ascii_alphanumeric), "{id:?}");
            ids.push(id.to_vec());
        }
        ids.dedup();
        assert_eq!(ids.len(), 3, "never the id of another client");
    }
}
