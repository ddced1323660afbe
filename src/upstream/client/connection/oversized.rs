//! Passes over messages that are larger than the gateway accepts.
//!
//! MQTT 3.1.1 cannot tell an upstream a limit, and not every upstream keeps to that of MQTT 5. If such a message ended the
//! connection, it would come again on the next one, for ever. So only its head is kept, and it is acknowledged when all of it
//! has arrived.

use bytes::Buf;

use super::{Broken, UpstreamConnection};
use crate::message::Qos;
use crate::upstream::client::{Incoming, v4};
use crate::upstream::wire::{ClientEvent, OversizedMessage};

/// A message of which the rest is to be passed over.
pub(super) struct Oversized {
    head: OversizedMessage,
    left: usize,
}

impl UpstreamConnection {
    /// Begins to pass over the packet at the start of the input, which has this length, once its head is there.
    pub(super) fn pass_over(&mut self, length: usize) -> Result<Option<Incoming>, Broken> {
        if self.input[0] >> 4 != 3 {
            let max = self.max_incoming;
            return Err(Broken::Failed(format!("it sent a packet of {length} bytes, and at most {max} are taken")));
        }
        let Some(head) = head(&self.input, length)? else { return Ok(None) };
        v4::check(&head.topic, head.packet_id, head.qos == Qos::AtMostOnce)?;
        self.oversized = Some(Oversized { head, left: length });
        Ok(self.go_past())
    }

    /// Drops what has arrived of the message that is passed over. Returns its head when all of it has arrived.
    pub(super) fn go_past(&mut self) -> Option<Incoming> {
        let oversized = self.oversized.as_mut()?;
        let bytes = oversized.left.min(self.input.len());
        self.input.advance(bytes);
        oversized.left -= bytes;
        if oversized.left > 0 {
            return None;
        }
        let head = self.oversized.take()?.head;
        Some(Incoming::Event(ClientEvent::TooLarge(head)))
    }
}

/// The head of a PUBLISH of this length, once it is there [MQTT-3.3.1, MQTT-3.3.2].
fn head(bytes: &[u8], length: usize) -> Result<Option<OversizedMessage>, Broken> {
    let first = bytes[0];
    let qos = Qos::from_u8(first >> 1 & 3).ok_or(Broken::Garbled)?;
    let Some(start) = bytes.iter().skip(1).position(|byte| byte & 0x80 == 0).map(|last| last + 2) else {
        return Ok(None);
    };
    let number = |at: usize| bytes.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let Some(topic_length) = number(start).map(usize::from) else { return Ok(None) };
    let end = start + 2 + topic_length;
    let id_length = if qos == Qos::AtMostOnce { 0 } else { 2 };
    let size = length.checked_sub(end + id_length).ok_or(Broken::Garbled)?;
    let Some(topic) = bytes.get(start + 2..end) else { return Ok(None) };
    let packet_id = match qos {
        Qos::AtMostOnce => Some(0),
        _ => number(end),
    };
    let Some(packet_id) = packet_id else { return Ok(None) };
    let topic = std::str::from_utf8(topic).map_err(|_| Broken::Garbled)?.to_owned();
    Ok(Some(OversizedMessage { packet_id, topic, qos, size }))
}
