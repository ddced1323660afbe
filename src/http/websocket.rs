//! MQTT over WebSocket [MQTT-6.0]: a stream of binary frames that reads and writes as a socket does.
//!
//! Packets and frames need not end together [MQTT-6.0.0-2]: what arrives is one stream of bytes, and what a write
//! gives is one frame.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Http;
use super::auth::{Origin, address};
use super::place::Place;
use super::problem::Problem;

/// Subprotocols, by the names of MQTT 3.1.1 and 5, and of 3.1.
const PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// A frame may be this much larger than the largest packet: some clients put several packets into one.
const FRAME_ROOM: usize = 64 << 10;
const READ_BUFFER: usize = 4 << 10;
/// Largest frame sent.
const WRITE: usize = 64 << 10;

/// Serves an MQTT client on these bytes, at that address, until it has gone. HTTP does not know the broker: whoever puts the
/// house together hands this over.
pub type MqttDoor = Arc<dyn Fn(Frames, IpAddr) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// `GET /mqtt`
pub async fn upgrade(
    State(http): State<Arc<Http>>,
    Extension(Origin(peer)): Extension<Origin>,
    Extension(place): Extension<Place>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(error) => return Problem::new(error.status(), "this is for MQTT over WebSocket").into_response(),
    };
    let most = http.ingress.max_packet_size() + FRAME_ROOM;
    let upgrade = upgrade
        .protocols(PROTOCOLS)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(most)
        .max_frame_size(most);
    if upgrade.selected_protocol().is_none() {
        return Problem::bad_request("the subprotocol must be mqtt or mqttv3.1").into_response();
    }
    let from: IpAddr = address(peer, &headers);
    upgrade.on_upgrade(move |socket| async move {
        let frames = Frames { socket, rest: Bytes::new(), unflushed: false };
        let connections = http.connections.clone();
        connections.track_future((http.mqtt)(frames, from)).await;
        drop(place);
    })
}

/// A WebSocket as a stream of bytes.
pub struct Frames {
    socket: WebSocket,
    /// Of the last frame, what was not read yet.
    rest: Bytes,
    unflushed: bool,
}

fn broken(error: axum::Error) -> io::Error {
    io::Error::other(error)
}

impl Frames {
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(context)).map_err(broken)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Frames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // nobody else may come back to what a write has left
        if let Poll::Ready(Err(error)) = self.flush(context) {
            return Poll::Ready(Err(error));
        }
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // answered below us
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Ok(())),
                // [MQTT-6.0.0-1]
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Frames {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // one frame at a time: a client that does not read is waited for, not buffered for
        ready!(self.flush(context))?;
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(broken)?;
        let count = bytes.len().min(WRITE);
        let frame = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
        Pin::new(&mut self.socket).start_send(frame).map_err(broken)?;
        self.unflushed = true;
        match self.flush(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.flush(context))?;
        Pin::new(&mut self.socket).poll_close(context).map_err(broken)
    }
}
