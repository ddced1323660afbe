//! The first packet.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tracing::{info, warn};

use super::super::core::Core;
use super::Peer;
use crate::access::guesses::network;
use crate::mqtt::write::{self, ConnAckProperties};
use crate::mqtt::{Connect, Error, PacketType, Reason, Version, frame};

/// A client that has connected must send its CONNECT within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever is not known yet gets no more memory than this.
const MAX_CONNECT: usize = 64 << 10;

/// Reads the CONNECT. Fails with what is to be sent before the connection is closed: mostly nothing [MQTT-3.1.4-1].
pub(crate) async fn read_connect(
    core: &Arc<Core>,
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
    peer: &Peer,
) -> Result<Connect, Vec<u8>> {
    let max = core.settings.load().max_packet_size.min(MAX_CONNECT);
    let reading = async {
        loop {
            // whether the flags of the first byte count is known when the version is
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
            input.reserve(1024);
            match reader.read_buf(input).await {
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
            // clients of every version understand this one [MQTT-3.1.2-2] of 3.1.1
            Err(if matches!(error, Error::Level(_)) { vec![0x20, 2, 0, 1] } else { Vec::new() })
        }
    }
}

/// Says that a CONNECT is too large, and what to answer it with.
fn too_large(core: &Core, peer: &Peer, input: &[u8], (size, most): (usize, usize)) -> Vec<u8> {
    let key = if most < MAX_CONNECT { "broker.max_packet_size is" } else { "before login a packet may have" };
    if let Some(more_since_last) = core.access.limiter.due(network(peer.address), "CONNECT too large") {
        warn!(from = %peer.address, size, more_since_last, "connection closed: its CONNECT is too large; {key} {most} bytes");
    }
    // only the client of a version that has a code for it is told
    let level = input.windows(5).take(8).find(|window| window.starts_with(b"MQTT")).map(|window| window[4]);
    let mut answer = BytesMut::new();
    if level == Some(5) {
        write::connack(&mut answer, Version::V5, false, Reason::PACKET_TOO_LARGE, &ConnAckProperties::default());
    }
    answer.to_vec()
}

/// Says why a connection was closed before its client had a name.
fn log(core: &Core, peer: &Peer, why: &str) {
    if let Some(more) = core.access.limiter.due(network(peer.address), ("CONNECT", why)) {
        info!(from = %peer.address, more_since_last = more, "connection closed before it was a client: {why}");
    }
}

/// What speaks, if it is not MQTT.
fn hint(input: &[u8]) -> &'static str {
    const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"CONN"];
    match input {
        // the type of a TLS record with a handshake
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
