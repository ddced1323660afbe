//! The first packet.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tracing::debug;

use super::super::codec::{Connect, Error, PacketType, frame};
use super::super::core::Core;

/// A client that has connected must send its CONNECT within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the CONNECT. Fails with what is to be sent before the connection is closed: mostly nothing [MQTT-3.1.4-1].
pub async fn read_connect(
    core: &Arc<Core>,
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<Connect, Vec<u8>> {
    let max = core.settings.load().max_packet_size;
    let reading = async {
        loop {
            if let Some(found) = frame(input, max)? {
                if found.kind != PacketType::Connect {
                    return Err(Error::Protocol("the first packet is not CONNECT"));
                }
                let connect = Connect::decode(&input[found.body..found.len])?;
                input.advance(found.len);
                core.stats.bytes_received.add(found.len as u64);
                core.stats.packets_received.add(1);
                return Ok(Some(connect));
            }
            if input.first().is_some_and(|first| *first != 0x10) {
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
        Ok(Ok(None)) | Err(_) => Err(Vec::new()),
        Ok(Err(error)) => {
            debug!(%error, "connection refused before CONNECT was understood");
            core.stats.refused.add(1);
            // clients of every version understand this one [MQTT-3.1.2-2] of 3.1.1
            Err(if matches!(error, Error::Level(_)) { vec![0x20, 2, 0, 1] } else { Vec::new() })
        }
    }
}
