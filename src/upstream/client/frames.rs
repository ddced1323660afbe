//! MQTT over WebSocket [MQTT-6.0] on the client's side: a stream of bytes in binary frames.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::stream::UpstreamStream;
use crate::upstream::settings::UpstreamAddress;
use crate::upstream::tls;
use crate::upstream::wire::Broken;

/// The largest frame that is sent, in bytes.
const WRITE: usize = 64 << 10;

/// Makes the WebSocket handshake. Incoming frames may have at most `most` bytes.
pub(super) async fn upgrade(
    stream: Box<dyn UpstreamStream>,
    address: &UpstreamAddress,
    most: usize,
) -> Result<ClientFrames, Broken> {
    let url = format!("{}://{}{}", address.scheme.name(), address.authority(), address.path);
    let mut request = url.into_client_request().map_err(|error| Broken::Failed(format!("WebSocket: {error}")))?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    let config =
        WebSocketConfig::default().write_buffer_size(0).max_message_size(Some(most)).max_frame_size(Some(most));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(ClientFrames { socket, rest: Bytes::new(), unflushed: false }),
        Err(Error::Http(response)) => {
            let status = response.status();
            Err(Broken::Failed(format!("it does not speak WebSocket at {}: HTTP status {status}", address.path)))
        }
        Err(Error::Io(error)) => Err(match tls::broken_io(&error) {
            Broken::Closed => Broken::Failed("it closed the connection when asked for WebSocket".into()),
            broken => broken,
        }),
        Err(error) => Err(Broken::Failed(format!("WebSocket: {error}"))),
    }
}

pub(super) struct ClientFrames {
    socket: WebSocketStream<Box<dyn UpstreamStream>>,
    /// The unread part of the last frame.
    rest: Bytes,
    unflushed: bool,
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_) => {
            io::Error::new(io::ErrorKind::ConnectionReset, error)
        }
        error => io::Error::other(error),
    }
}

impl ClientFrames {
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.socket).poll_flush(context)).map_err(broken)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl UpstreamStream for ClientFrames {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.get_ref().socket()
    }
}

impl AsyncRead for ClientFrames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(context)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // the WebSocket library answers these
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
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

impl AsyncWrite for ClientFrames {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
