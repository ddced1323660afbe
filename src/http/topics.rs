//! Messages: reads the last ones, and publishes.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::auth::Caller;
use super::envelope::{Envelope, content_type_property, media_type};
use super::problem::HttpProblem;
use super::query::{Query, decode};
use super::{Http, body};
use crate::exchange::filters::MAX_LEVELS;
use crate::message::{BatchBuilder, Draft, Qos, check_filter, check_topic};

/// The path of topics.
pub(crate) const TOPICS: &str = "/api/v1/topics";
/// The most bytes that a PUBLISH has in addition to topic, content type and payload: the fixed header, three lengths, the
/// packet id and the expiry.
const PUBLISH_OVERHEAD: usize = 18;
/// The most messages in a list.
const MAX_LIST: usize = 1000;
/// The most bytes of the messages in a list, unless the first one is larger.
const MAX_LIST_BYTES: usize = 1 << 20;

/// The topic of a request: the rest of its path, or a parameter for topics that a path cannot contain (`..`).
fn topic(uri: &Uri, query: &Query) -> Result<String, HttpProblem> {
    let in_path = uri.path().strip_prefix(TOPICS).and_then(|rest| rest.strip_prefix('/'));
    let topic = match (in_path, query.get("topic")?) {
        (Some(path), None) => decode(path, false)?,
        (None, Some(topic)) => topic.to_owned(),
        _ => return Err(HttpProblem::bad_request("the topic belongs into the path, or into the parameter \"topic\"")),
    };
    check_topic(&topic)?;
    check_levels("topic", &topic)?;
    Ok(topic)
}

/// Fails if a topic or topic filter has more levels than MQTT clients may use.
pub(super) fn check_levels(what: &str, text: &str) -> Result<(), HttpProblem> {
    if text.split('/').count() > MAX_LEVELS {
        return Err(HttpProblem::bad_request(format!("the {what} has more than {MAX_LEVELS} levels")));
    }
    Ok(())
}

/// Whether the caller asks for JSON.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|part| {
        let mut parameters = part.split(';').map(str::trim);
        let is_json = parameters.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
        is_json && !parameters.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// Handles `GET /api/v1/topics/{topic}`: the last message.
pub(crate) async fn read(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let query = Query::parse(&uri, &["topic"])?;
    read_topic(&http, &caller, &topic(&uri, &query)?, &headers)
}

fn read_topic(http: &Http, caller: &Caller, topic: &str, headers: &HeaderMap) -> Result<Response, HttpProblem> {
    if !caller.permissions.may_receive(topic) {
        return Err(HttpProblem::forbidden("this user may not read this topic"));
    }
    let Some((message, retained)) = http.hub.last(topic) else {
        return Err(HttpProblem::not_found("no recent message is known on this topic"));
    };
    if wants_json(headers) {
        return Ok(Json(Envelope::new(http, &message, retained)).into_response());
    }
    let view = message.view();
    let mut response = Bytes::copy_from_slice(view.payload()).into_response();
    let answer = response.headers_mut();
    let media_type = HeaderValue::try_from(media_type(&view));
    answer.insert(header::CONTENT_TYPE, media_type.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    answer.insert("pigateway-retained", HeaderValue::from_static(if retained { "true" } else { "false" }));
    answer.insert("pigateway-qos", HeaderValue::from(u16::from(view.qos() as u8)));
    if let Some(time) = http.time(view.boot_ms()).and_then(|time| HeaderValue::try_from(time).ok()) {
        answer.insert("pigateway-time", time);
    }
    // the browser shows whatever was published, but never runs it as a page of this gateway
    answer.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    Ok(response)
}

/// A page of a list of messages.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Messages")]
pub(crate) struct List {
    messages: Vec<Envelope>,
    /// The value of `after` for the next page; `null` on the last page.
    next: Option<String>,
}

/// Handles `GET /api/v1/topics?filter=`: a list of last messages.
pub(crate) async fn list(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, HttpProblem> {
    let query = Query::parse(&uri, &["topic", "filter", "after", "limit", "contains"])?;
    if let Some(topic) = query.get("topic")? {
        check_topic(topic)?;
        return read_topic(&http, &caller, topic, &headers);
    }
    let filter = query.get("filter")?.unwrap_or("#");
    check_filter(filter)?;
    check_levels("topic filter", filter)?;
    if !caller.permissions.may_subscribe(filter) {
        return Err(HttpProblem::forbidden("this user may not subscribe to this topic filter"));
    }
    let within = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_LIST).contains(limit));
    let limit = query.parsed("limit", "a number from 1 to 1000", within)?.unwrap_or(MAX_LIST);
    let after = query.get("after")?.unwrap_or_default();
    let part = query.get("contains")?.map(str::to_lowercase);
    let is_meant = |topic: &str| part.as_ref().is_none_or(|part| topic.to_lowercase().contains(part));
    let may = |topic: &str| is_meant(topic) && caller.permissions.may_receive(topic);
    let mut found = http.hub.select((filter, after), limit + 1, caller.origin(), may);
    let mut bytes = 0;
    let fitting = found.iter().take(limit).take_while(|(message, _)| {
        bytes += message.size();
        bytes - message.size() <= MAX_LIST_BYTES
    });
    let fitting = fitting.count();
    let is_last = fitting == found.len();
    found.truncate(fitting);
    let next = found.last().filter(|_| !is_last).map(|(message, _)| message.view().topic().to_owned());
    let messages = found.iter().map(|(message, retained)| Envelope::new(&http, message, *retained)).collect();
    Ok(Json(List { messages, next }).into_response())
}

/// Handles `PUT` and `POST /api/v1/topics/{topic}`: publishes a message.
pub(crate) async fn publish(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
    content: Body,
) -> Result<StatusCode, HttpProblem> {
    let query = Query::parse(&uri, &["topic", "qos", "retain", "expiry"])?;
    let topic = topic(&uri, &query)?;
    let qos = |text: &str| text.parse().ok().and_then(Qos::from_u8);
    let qos = query.parsed("qos", "0, 1 or 2", qos)?.unwrap_or(Qos::AtLeastOnce);
    let expiry = query.parsed("expiry", "a number of seconds", |text| text.parse().ok().filter(|s| *s < u32::MAX))?;
    let retain = query.flag("retain")?;
    may_publish(&caller, &topic)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // curl sends this type by default, so it has no meaning
    let content_type = content_type.filter(|kind| *kind != "application/x-www-form-urlencoded");
    let properties = content_type.map(content_type_property).unwrap_or_default();
    let most = http.ingress.max_packet_size().saturating_sub(topic.len() + properties.len() + PUBLISH_OVERHEAD);
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|length| length > most) {
        let detail = format!(
            "with this topic and content type, a message may have {most} bytes (max_packet_size under [broker])"
        );
        return Err(HttpProblem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).with(header::CONNECTION, "close"));
    }
    // before the body takes memory that others need
    http.ingress.turn(caller.origin()).await;
    let received = body::receive(content, (most, declared), http.ingress.receiving(), caller.holder()).await?;
    if !caller.still_holds(&http.access) {
        return Err(HttpProblem::forbidden("what this user may do has changed while the body came"));
    }
    let draft = Draft {
        topic: &topic,
        payload: &received.bytes,
        qos,
        retain,
        properties: &properties,
        expiry,
        boot_ms: http.ingress.clock().boot_ms(),
        origin: caller.origin(),
    };
    send(&http, &draft).await
}

/// Handles `DELETE /api/v1/topics/{topic}`: deletes the retained message.
pub(crate) async fn clear(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<StatusCode, HttpProblem> {
    let query = Query::parse(&uri, &["topic"])?;
    let topic = topic(&uri, &query)?;
    may_publish(&caller, &topic)?;
    send(&http, &cleared(&http, &caller, &topic)).await
}

/// A message that deletes the retained message of a topic [MQTT-3.3.1-6].
pub(super) fn cleared<'a>(http: &Http, caller: &Caller, topic: &'a str) -> Draft<'a> {
    Draft {
        qos: Qos::AtLeastOnce,
        retain: true,
        boot_ms: http.ingress.clock().boot_ms(),
        origin: caller.origin(),
        ..Draft::new(topic, &[])
    }
}

fn may_publish(caller: &Caller, topic: &str) -> Result<(), HttpProblem> {
    if caller.permissions.may_publish(topic) {
        return Ok(());
    }
    Err(HttpProblem::forbidden("this user may not publish on this topic"))
}

/// Publishes, and waits for the same receipt as a PUBACK.
async fn send(http: &Http, draft: &Draft<'_>) -> Result<StatusCode, HttpProblem> {
    let mut batch = BatchBuilder::default();
    batch.push(draft);
    let accepted = http.ingress.publish_batch(&mut batch).await?;
    let receipt = accepted.whole()?;
    if draft.qos > Qos::AtMostOnce {
        http.ingress.settled(receipt).await?;
    }
    if draft.retain && draft.payload.is_empty() {
        http.hub.cleared(draft.topic).await;
    } else {
        http.hub.arrived(draft.topic, draft.boot_ms).await;
    }
    if !accepted.unretained.is_empty() {
        return Err(HttpProblem::full_store());
    }
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_taken_as_they_are_written() {
        let topic = |uri: &str| {
            let uri: Uri = uri.parse().unwrap();
            topic(&uri, &Query::parse(&uri, &["topic"])?)
        };
        for (uri, expected) in [
            ("/api/v1/topics/a/b", "a/b"),
            ("/api/v1/topics//a//b/", "/a//b/"),
            ("/api/v1/topics/a%2Fb", "a/b"),
            ("/api/v1/topics/a%252Fb", "a%2Fb"),
            ("/api/v1/topics/a/../b", "a/../b"),
            ("/api/v1/topics/L%C3%BCfter%20+", "Lüfter +"),
            ("/api/v1/topics?topic=..", ".."),
        ] {
            if expected.contains('+') {
                assert!(topic(uri).is_err(), "a wildcard");
            } else {
                assert_eq!(topic(uri).unwrap(), expected);
            }
        }
        for uri in ["/api/v1/topics", "/api/v1/topics/a?topic=b", "/api/v1/topics/%00", "/api/v1/topics/%23"] {
            assert!(topic(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn json_is_for_those_who_ask_for_it() {
        let asks = |accept: &str| wants_json(&HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]));
        assert!(asks("application/json") && asks("text/html, application/JSON;q=0.9") && asks("application/json, */*"));
        assert!(!asks("*/*") && !asks("text/plain") && !asks("application/json;q=0"));
    }
}
