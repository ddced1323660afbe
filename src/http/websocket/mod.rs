//! MQTT over WebSocket [MQTT-6.0]: the upgrade of an HTTP connection [RFC 6455, 4.2].

mod frames;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use base64ct::{Base64, Encoding};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio_util::task::TaskTracker;

use super::auth::{Certificate, RequestOrigin};
use super::problem::HttpProblem;
use super::proxies::{self, Network};
use crate::access::places::Place;

/// The paths that programs use: MQTT.js and most others, then paho and mosquitto at the root, and the documentation of some
/// brokers.
pub(crate) const PATHS: [&str; 4] = ["/mqtt", "/mqtt/", "/ws", "/"];
/// The subprotocol names of MQTT 3.1.1 and 5, and of 3.1.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// The constant for the key of the answer [RFC 6455, 1.3].
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The stream of an MQTT client over WebSocket.
pub(crate) type MqttFrames = frames::ServerFrames<TokioIo<Upgraded>>;

/// The origin of an MQTT client over WebSocket.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The client's address, as far as trusted proxies report it.
    pub(crate) address: IpAddr,
    /// The user that the client certificate names.
    pub(crate) certificate_user: Option<Box<str>>,
}

/// Serves an MQTT client on these bytes and in this place until it leaves. HTTP does not know the broker, so the room `app`
/// provides this function.
pub type MqttDoor =
    Arc<dyn Fn(MqttFrames, Arrival, Arc<Place>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is done with an upgraded connection.
#[derive(Clone)]
pub struct WebSocketDoor {
    /// Serves the client.
    pub mqtt: MqttDoor,
    /// Tracks the client's task, so that the shutdown waits for it.
    pub connections: TaskTracker,
    /// Proxies that are believed when they report a client's address.
    pub trusted_proxies: Arc<[Network]>,
}

/// The router of a port with MQTT over WebSocket only.
pub(crate) fn router() -> Router {
    let only = || async {
        HttpProblem::new(StatusCode::UPGRADE_REQUIRED, "this port is for MQTT over WebSocket and nothing else")
    };
    Router::new().route(PATHS[0], get(upgrade)).fallback(only)
}

/// Whether a request asks for MQTT over WebSocket.
pub(crate) fn is_wanted<B>(request: &hyper::Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::GET
        && PATHS.contains(&request.uri().path())
        && headers.contains_key(header::SEC_WEBSOCKET_KEY)
        && has_token(headers, header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|known| known.eq_ignore_ascii_case(token))
}

fn tokens(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// The answer that accepts the upgrade, or the reason for a refusal.
fn agree(headers: &HeaderMap) -> Result<Response, HttpProblem> {
    let is_upgrade =
        has_token(headers, header::UPGRADE, "websocket") && has_token(headers, header::CONNECTION, "upgrade");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_upgrade);
    let Some(key) = key else { return Err(HttpProblem::bad_request("this is for MQTT over WebSocket")) };
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(HttpProblem::new(StatusCode::UPGRADE_REQUIRED, "the version of WebSocket must be 13"));
    }
    let offered = || tokens(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let chosen = PROTOCOLS.into_iter().find(|protocol| offered().any(|known| known == *protocol));
    if chosen.is_none() && offered().next().is_some() {
        return Err(HttpProblem::bad_request("the subprotocol must be mqtt or mqttv3.1, or none"));
    }
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(GUID).finalize();
    let accept = HeaderValue::from_str(&Base64::encode_string(&digest));
    let accept = accept.map_err(|_| HttpProblem::bad_request("no key"))?;
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(chosen) = chosen {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok(response)
}

/// Handles `GET /mqtt`: upgrades the connection.
pub(crate) async fn upgrade(
    Extension(door): Extension<WebSocketDoor>,
    Extension(RequestOrigin(peer)): Extension<RequestOrigin>,
    Extension(Certificate(certificate_user)): Extension<Certificate>,
    Extension(place): Extension<Arc<Place>>,
    mut request: Request<Body>,
) -> Response {
    let response = match agree(request.headers()) {
        Ok(response) => response,
        Err(problem) => return problem.into_response(),
    };
    let address = proxies::address(&door.trusted_proxies, peer, request.headers());
    let arrival = Arrival { address, certificate_user };
    let upgraded = hyper::upgrade::on(&mut request);
    let WebSocketDoor { mqtt, connections, .. } = door;
    connections.spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            mqtt(MqttFrames::new(TokioIo::new(upgraded)), arrival, place).await;
        }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(more: &[(&'static str, &'static str)]) -> HeaderMap {
        // the example of RFC 6455, 1.3
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        .iter()
        .chain(more)
        {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_handshake_is_that_of_the_standard() {
        let answer = agree(&headers(&[])).unwrap();
        assert_eq!(answer.status(), 101);
        assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!answer.headers().contains_key("sec-websocket-protocol"));
        for (offered, chosen) in [("mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("chat, mqttv3.1,mqtt", "mqtt")] {
            let answer = agree(&headers(&[("sec-websocket-protocol", offered)])).unwrap();
            assert_eq!(answer.headers()["sec-websocket-protocol"], chosen, "{offered}");
        }
        assert!(agree(&headers(&[("sec-websocket-protocol", "chat")])).is_err());
        for missing in ["connection", "upgrade", "sec-websocket-version", "sec-websocket-key"] {
            let mut headers = headers(&[]);
            headers.remove(missing);
            assert!(agree(&headers).is_err(), "{missing}");
        }
    }
}
