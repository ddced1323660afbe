//! The first packet.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tracing::info;

use super::super::core::Core;
use super::Peer;
use crate::mqtt::{Connect, Error, PacketType, Version, frame};

/// A client that has connected must send its CONNECT within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the CONNECT. Fails with what is to be sent before the connection is closed: mostly nothing [MQTT-3.1.4-1].
pub async fn read_connect(
    core: &Arc<Core>,
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
    peer: &Peer,
) -> Result<Connect, Vec<u8>> {
    let max = core.settings.load().max_packet_size;
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
            log(core, peer, &format!("{error}{}", hint(input)));
            core.stats.refused.add(1);
            // clients of every version understand this one [MQTT-3.1.2-2] of 3.1.1
            Err(if matches!(error, Error::Level(_)) { vec![0x20, 2, 0, 1] } else { Vec::new() })
        }
    }
}

/// Says why a connection was closed before its client had a name.
fn log(core: &Core, peer: &Peer, why: &str) {
    if let Some(more) = core.access.limiter.due(peer.address, ("CONNECT", why)) {
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
