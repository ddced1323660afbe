//! Reads the first packet of a connection, the CONNECT.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncRead;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::super::core::Core;
use super::Peer;
use super::input::{SMALLEST_READ, read};
use crate::access::guesses::network;
use crate::mqtt::write::{self, ConnAckProperties};
use crate::mqtt::{Connect, Error, PacketType, Reason, Version, frame};

/// The time within which a client must send its CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that has closed its sending side may still wait for an answer. This is how long it can.
const HALF_CLOSED: Duration = Duration::from_secs(2);
/// The memory in bytes for a client that has not signed in yet.
const MAX_CONNECT: usize = 64 << 10;

/// Reads the CONNECT. The error is what must be sent before the connection is closed, which is mostly nothing
/// [MQTT-3.1.4-1].
pub(crate) async fn read_connect(
    core: &Arc<Core>,
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
    peer: &Peer,
) -> Result<Connect, Vec<u8>> {
    let max = core.settings.load().max_packet_size.min(MAX_CONNECT);
    let reading = async {
        loop {
            // whether the flags of the first byte are checked depends on the version, which is not known yet
            if let Some(found) = frame(input, max, Version::V31)? {
                if found.kind != PacketType::Connect {
                    return Err(Error::Protocol("the first packet is not CONNECT"));
                }
                let connect = Connect::decode(&input[found.body..found.len])?;
                if found.flags != 0 && connect.version != Version::V31 {
                    return Err(Error::Malformed("reserved flags of the fixed header")); // [MQTT-2.2.2-2] of 3.1.1
                }
                input.advance(found.len);
                core.stats.bytes_received.add(found.len as u64);
                core.stats.packets_received.add(1);
                return Ok(Some(connect));
            }
            if input.first().is_some_and(|first| *first >> 4 != PacketType::Connect as u8) {
                return Err(Error::Protocol("the first packet is not CONNECT"));
            }
            match read(reader, input, SMALLEST_READ).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    };
    match timeout(CONNECT_TIMEOUT, reading).await {
        Ok(Ok(Some(connect))) => Ok(connect),
        Ok(Ok(None)) => Err(Vec::new()),
        Err(_) => {
            let seconds = CONNECT_TIMEOUT.as_secs();
            log(core, peer, &format!("it sent no CONNECT within {seconds} s"));
            Err(Vec::new())
        }
        Ok(Err(error)) => {
            core.stats.refused.add(1);
            if let Error::TooLarge(size, most) = error {
                return Err(too_large(core, peer, input, (size, most)));
            }
            log(core, peer, &format!("{error}{}", hint(input)));
            // clients of every version understand this answer [MQTT-3.1.2-2] of 3.1.1
            Err(if matches!(error, Error::Level(_)) { vec![0x20, 2, 0, 1] } else { Vec::new() })
        }
    }
}

/// Completes when the client has gone while it waits to be let in. What it sends meanwhile is kept in `input`. A client that
/// has sent more than its CONNECT may be gone on purpose: that counts once it is let in, so this never completes then.
pub(super) async fn gone(core: &Core, reader: &mut (impl AsyncRead + Unpin), input: &mut BytesMut) {
    while input.len() < SMALLEST_READ {
        match read(reader, input, SMALLEST_READ).await {
            Ok(count) if count > 0 => core.stats.bytes_received.add(count as u64),
            ended if input.is_empty() => {
                if ended.is_ok() {
                    sleep(HALF_CLOSED).await;
                }
                return;
            }
            _ => break,
        }
    }
    std::future::pending().await
}

/// Logs that a CONNECT is too large, and returns the answer to it.
fn too_large(core: &Core, peer: &Peer, input: &[u8], (size, most): (usize, usize)) -> Vec<u8> {
    let key = if most < MAX_CONNECT { "broker.max_packet_size is" } else { "before login a packet may have" };
    if let Some(more_since_last) = core.access.limiter.due(network(peer.address), "CONNECT too large") {
        warn!(from = %peer.address, size, more_since_last, "connection closed: its CONNECT is too large; {key} {most} bytes");
    }
    // only a client of a version with a reason code for this gets an answer
    let level = input.windows(5).take(8).find(|window| window.starts_with(b"MQTT")).map(|window| window[4]);
    let mut answer = BytesMut::new();
    if level == Some(5) {
        write::connack(&mut answer, Version::V5, false, Reason::PACKET_TOO_LARGE, &ConnAckProperties::default());
    }
    answer.to_vec()
}

/// Logs why a connection was closed before its client had a name.
fn log(core: &Core, peer: &Peer, why: &str) {
    if let Some(more) = core.access.limiter.due(network(peer.address), ("CONNECT", why)) {
        info!(from = %peer.address, more_since_last = more, "connection closed before it was a client: {why}");
    }
}

/// A hint for the log, if the client obviously speaks another protocol.
fn hint(input: &[u8]) -> &'static str {
    const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"CONN"];
    match input {
        // a TLS record with a handshake begins with this byte
        [0x16, ..] => ". It speaks TLS: let it use a listener with `tls`, or plain MQTT",
        _ if METHODS.iter().any(|method| input.starts_with(method)) => {
            ". It speaks HTTP: the web page and MQTT over WebSocket have the port of [http]"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_mqtt_is_recognised() {
        assert!(hint(&[0x16, 3, 1]).contains("TLS"));
        assert!(hint(b"GET / HTTP/1.1").contains("HTTP"));
        assert_eq!(hint(&[0x10, 12]), "");
        assert_eq!(hint(&[]), "");
    }
}
