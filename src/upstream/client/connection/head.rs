//! The first bytes of a packet.

use crate::upstream::wire::{Broken, Version};

/// Whether an upstream may send a packet that begins with this byte. Before it has accepted the connection, that is a CONNACK or
/// DISCONNECT without flags [MQTT-2.1.3, MQTT-3.2.0-1]; text and alerts of TLS look like other packets.
pub(super) fn check_kind(first: u8, version: Version, is_open: bool) -> Result<(), Broken> {
    let name = match first >> 4 {
        1..=14 if !is_open && !matches!(first, 0x20 | 0xe0) => return Err(Broken::Garbled),
        2..=7 | 9 | 11 | 13 | 14 => return Ok(()),
        1 => "CONNECT",
        8 => "SUBSCRIBE",
        10 => "UNSUBSCRIBE",
        12 => "PINGREQ",
        15 if version == Version::V5 => {
            return Err(Broken::Failed("it sent AUTH, and no way to authenticate was agreed on".into()));
        }
        _ => return Err(Broken::Garbled),
    };
    Err(Broken::Failed(format!("it sent {name}, which only clients send")))
}

/// The length of the packet at the start of `bytes`, once it is known [MQTT-2.1.4].
pub(super) fn packet_length(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let mut remaining = 0;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Ok(Some(1 + at + remaining));
        }
    }
    if bytes.len() >= 5 { Err(Broken::Garbled) } else { Ok(None) }
}
