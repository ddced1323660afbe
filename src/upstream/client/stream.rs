//! The byte streams below MQTT.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// TCP with the layers above it, such as TLS and WebSocket.
pub(super) trait UpstreamStream: AsyncRead + AsyncWrite + Send + Unpin {
    /// The socket at the bottom.
    fn socket(&self) -> Option<BorrowedFd<'_>>;
}

/// A stream that is not based on a socket, or whose socket must not be changed.
pub(super) struct Bare<S>(pub(crate) S);

impl<S: Unpin> Bare<S> {
    fn inner(self: Pin<&mut Self>) -> Pin<&mut S> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bare<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_read(context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bare<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> UpstreamStream for Bare<S> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl UpstreamStream for TcpStream {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl UpstreamStream for Box<dyn UpstreamStream> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        (**self).socket()
    }
}

impl UpstreamStream for TlsStream<TcpStream> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.get_ref().0.socket()
    }
}
