//! Converts a message to JSON, or its payload to a body.

use base64ct::{Base64, Encoding};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::Http;
use crate::message::{Message, MessageRef};
use crate::mqtt::Fields;
use crate::mqtt::property::{self, Property, id};

/// A message with its payload.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Message")]
pub(crate) struct Envelope {
    topic: String,
    payload: String,
    /// The encoding of `payload`: `"utf-8"`, or `"base64"` if it is not text.
    encoding: &'static str,
    qos: u8,
    /// Whether it is the retained message of its topic.
    retained: bool,
    /// When the message arrived; `null` while the clock is not synchronised.
    time: Option<String>,
    /// When the message arrived, in milliseconds of the boot clock; negative if that was before this boot.
    boot_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
}

impl Envelope {
    pub(crate) fn new(http: &Http, message: &Message, retained: bool) -> Envelope {
        let view = message.view();
        let (payload, encoding) = match std::str::from_utf8(view.payload()) {
            Ok(text) => (text.to_owned(), "utf-8"),
            Err(_) => (Base64::encode_string(view.payload()), "base64"),
        };
        Envelope {
            topic: view.topic().to_owned(),
            payload,
            encoding,
            qos: view.qos() as u8,
            retained,
            time: http.time(view.boot_ms()),
            boot_ms: view.boot_ms() as i64,
            content_type: content_type(&view).map(Into::into),
        }
    }
}

/// The content type that the publisher has given.
fn content_type<'a>(message: &MessageRef<'a>) -> Option<&'a str> {
    let mut fields = Fields::new(message.properties());
    while let Ok(Some(property)) = property::next(&mut fields) {
        if let Property::ContentType(content_type) = property {
            return Some(content_type);
        }
    }
    None
}

/// Encodes a content type as a property of a message.
pub(crate) fn content_type_property(content_type: &str) -> Vec<u8> {
    let Ok(len) = u16::try_from(content_type.len()) else { return Vec::new() };
    let mut property = vec![id::CONTENT_TYPE];
    property.extend(len.to_be_bytes());
    property.extend(content_type.as_bytes());
    property
}

/// The content type of a message's payload: the one of its publisher, or a guess from the payload.
pub(crate) fn media_type(message: &MessageRef<'_>) -> String {
    let is_valid = |text: &&str| text.contains('/') && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if let Some(content_type) = content_type(message).filter(is_valid) {
        return content_type.to_owned();
    }
    match std::str::from_utf8(message.payload()) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => "application/json".into(),
        Ok(_) => "text/plain; charset=utf-8".into(),
        Err(_) => "application/octet-stream".into(),
    }
}

/// A Unix time in milliseconds as RFC 3339.
pub(crate) fn rfc3339(unix_ms: i64) -> Option<String> {
    Timestamp::from_millisecond(unix_ms).ok().map(|time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::message;
    use super::*;
    use crate::message::Draft;

    #[test]
    fn the_publisher_knows_the_content_type_best() {
        let kind = |payload: &str| media_type(&message("a", payload, false).view());
        assert_eq!(kind("{\"a\":1}"), "application/json");
        assert_eq!(kind("21.5"), "application/json");
        assert_eq!(kind("warm"), "text/plain; charset=utf-8");
        let typed = |content_type: &str| {
            let properties = content_type_property(content_type);
            let plain = message("a", "x", false);
            let message = Message::new(&Draft { properties: &properties, ..plain.view().to_draft() });
            media_type(&message.view())
        };
        assert_eq!(typed("image/png"), "image/png");
        assert_eq!(typed("a/b\r\nX: y"), "text/plain; charset=utf-8", "headers cannot be smuggled in");
    }
}
