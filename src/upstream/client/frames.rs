//! MQTT over WebSocket [MQTT-6.0] on the client's side: a stream of bytes in binary frames.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::{Response, generate_request};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::handshake::machine::TryParse;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::pieces::{PIECE, Pieces};
use super::stream::UpstreamStream;
use crate::upstream::settings::UpstreamAddress;
use crate::upstream::tls;
use crate::upstream::wire::{BeginStep, Broken, said};

/// The largest frame that is sent, in bytes.
const WRITE: usize = 64 << 10;

/// The longest answer to the handshake, in bytes.
const LONGEST_ANSWER: usize = 16 << 10;

/// Makes the WebSocket handshake [RFC 6455 section 4.1].
pub(super) async fn upgrade(
    mut stream: Box<dyn UpstreamStream>,
    address: &UpstreamAddress,
) -> Result<ClientFrames, Broken> {
    let url = format!("{}://{}{}", address.scheme.name(), address.authority(), address.path);
    let failed = |error: Error| Broken::Failed(format!("WebSocket: {error}"));
    let mut request = url.into_client_request().map_err(failed)?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt"));
    let (request, key) = generate_request(request).map_err(failed)?;
    let lost = |error: io::Error| match tls::broken_io(&error) {
        Broken::Closed => {
            Broken::NotBegun(BeginStep::WebSocket, "it closed the connection when asked for WebSocket".into())
        }
        broken => broken,
    };
    stream.write_all(&request).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    let mut answer = Vec::new();
    let (length, response) = loop {
        if stream.read_buf(&mut answer).await.map_err(lost)? == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        match Response::try_parse(&answer).map_err(failed)? {
            Some(found) => break found,
            None if answer.len() >= LONGEST_ANSWER => {
                return Err(Broken::Failed("WebSocket: the answer to the handshake has no end".into()));
            }
            None => {}
        }
    };
    judge(&response, &derive_accept_key(key.as_bytes()), address.shown_path())?;
    // the first frames may have come with the answer
    let rest = answer.split_off(length);
    let config =
        WebSocketConfig::default().write_buffer_size(0).max_message_size(Some(PIECE)).max_frame_size(Some(PIECE));
    let socket = WebSocketStream::from_raw_socket(Pieces::new(stream, &rest), Role::Client, Some(config)).await;
    Ok(ClientFrames { socket, rest: Bytes::new(), unflushed: false })
}

/// Judges the answer to the handshake. A server may leave the subprotocol out: brokers behind some proxies do, and the
/// answer to CONNECT tells whether it is MQTT.
fn judge(response: &Response, accept_key: &str, path: &str) -> Result<(), Broken> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let has = |name, token: &str| header(name).split(',').any(|part| part.trim().eq_ignore_ascii_case(token));
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let problem = format!("no WebSocket at {path}: HTTP status {status}");
        // request timeout, too early, too many requests, and what is wrong with the server
        let is_passing = matches!(status.as_u16(), 408 | 425 | 429 | 500..);
        return Err(if is_passing { Broken::Failed(problem) } else { other_than(problem) });
    }
    let problem = match () {
        () if !(has(UPGRADE, "websocket") && has(CONNECTION, "upgrade")) => {
            format!("no WebSocket at {path}: it changes to another protocol")
        }
        () if header(SEC_WEBSOCKET_ACCEPT) != accept_key => {
            "WebSocket: Sec-WebSocket-Accept is wrong: does a cache or a proxy answer in its place?".into()
        }
        () if !matches!(header(SEC_WEBSOCKET_PROTOCOL), "" | "mqtt") => {
            format!("WebSocket: it chose the subprotocol {}, and not mqtt", said(header(SEC_WEBSOCKET_PROTOCOL)))
        }
        () => return Ok(()),
    };
    Err(other_than(problem))
}

fn other_than(problem: String) -> Broken {
    Broken::OtherThan(BeginStep::WebSocket, problem)
}

pub(super) struct ClientFrames {
    socket: WebSocketStream<Pieces<Box<dyn UpstreamStream>>>,
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
    fn flush_frames(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
                Some(Ok(Message::Text(_))) => {
                    let why = "it sends text over WebSocket, and MQTT is sent in binary frames";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
                }
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
        ready!(self.flush_frames(context))?;
        ready!(Pin::new(&mut self.socket).poll_ready(context)).map_err(broken)?;
        let count = bytes.len().min(WRITE);
        let frame = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
        Pin::new(&mut self.socket).start_send(frame).map_err(broken)?;
        self.unflushed = true;
        match self.flush_frames(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flush_frames(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.flush_frames(context))?;
        Pin::new(&mut self.socket).poll_close(context).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What comes of a handshake that a server answers with this, `KEY` being the right value of Sec-WebSocket-Accept, and
    /// the first bytes that are read after it.
    async fn answered(answer: &str, frames: &'static [u8]) -> Result<Vec<u8>, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = answer.to_owned();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut asked).await.unwrap();
            }
            let asked = String::from_utf8(asked).unwrap();
            let key = asked.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
            assert!(asked.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{asked}");
            let answer = answer.replace("KEY", &derive_accept_key(key.as_bytes()));
            // a client that has seen enough may be gone already
            let _ = stream.write_all(&[answer.as_bytes(), frames].concat()).await;
            let _ = stream.shutdown().await;
            // until the client has closed the connection, so that it is not reset before everything is read
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let address = UpstreamAddress::parse(&format!("ws://127.0.0.1:{port}/mqtt?token=secret")).unwrap();
        let read = match upgrade(Box::new(stream), &address).await {
            Err(broken) => Err(broken.to_string()),
            Ok(mut frames) => {
                let mut bytes = Vec::new();
                frames.read_buf(&mut bytes).await.map(|_| bytes).map_err(|error| error.to_string())
            }
        };
        server.await.unwrap();
        read
    }

    const CHANGES: &str =
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n";

    #[tokio::test]
    async fn servers_may_leave_out_the_subprotocol_and_choose_no_other() {
        let accept = format!("{CHANGES}Sec-WebSocket-Accept: KEY\r\n");
        for protocol in ["", "Sec-WebSocket-Protocol: mqtt\r\n"] {
            let read = answered(&format!("{accept}{protocol}\r\n"), b"\x82\x02\xd0\x00").await;
            assert_eq!(read.as_deref(), Ok(&[0xd0, 0][..]), "{protocol}");
        }
        let html = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let endless = format!("{CHANGES}X: {}\r\n", "y".repeat(LONGEST_ANSWER));
        for (answer, expected) in [
            (format!("{accept}Sec-WebSocket-Protocol: soap\r\n\r\n"), "it chose the subprotocol soap"),
            (format!("{CHANGES}Sec-WebSocket-Accept: xKEY\r\n\r\n"), "Sec-WebSocket-Accept is wrong"),
            (format!("{CHANGES}\r\n"), "Sec-WebSocket-Accept is wrong"),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n".into(), "changes to another protocol"),
            ("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n".into(), "HTTP status 302"),
            (html.into(), "at /mqtt: HTTP status 200"),
            ("SSH-2.0-x\r\n\r\n".into(), "WebSocket: "),
            (endless, "has no end"),
            (CHANGES.into(), "closed the connection when asked for WebSocket"),
        ] {
            let error = answered(&answer, b"").await.unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = answered(&format!("{accept}\r\n"), b"\x81\x02hi").await.unwrap_err();
        assert!(error.contains("it sends text over WebSocket"), "{error}");
    }
}
