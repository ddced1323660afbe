//! Functions that the tests of HTTP share.

use crate::message::{Draft, Message, Origin, Qos};

pub(crate) fn message(topic: &str, payload: &str, retain: bool) -> Message {
    message_at(topic, payload, retain, 0)
}

pub(crate) fn message_at(topic: &str, payload: &str, retain: bool, boot_ms: u64) -> Message {
    Message::new(&Draft {
        qos: Qos::AtLeastOnce,
        retain,
        boot_ms,
        origin: Origin::http(),
        ..Draft::new(topic, payload.as_bytes())
    })
}
