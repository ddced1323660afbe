//! A stream that holds back what arrives while it is not the turn of its TLS handshake.
//!
//! What a client sends after its first message decides what the handshake costs: a first message without a key that the gateway
//! can use is answered with a request for another one ([RFC 8446 4.1.4]), and a client with a certificate has its chain checked.
//! An ordinary last message is short and cheap, so it passes.
//!
//! The first message has [`FIRST`] bytes at most, because it is in memory before anything is known of the client.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bytes after the first message that need no turn. In TLS 1.3 the client's last message takes 80 bytes at most, and in TLS
/// 1.2 with X25519 93. A second ClientHello takes 117 at least.
const FREE: usize = 96;
/// The most bytes that are held; the socket keeps the rest.
const MOST: usize = 16 << 10;

/// The most bytes of the first message. A ClientHello takes 200 to 2,000, and a TLS record 16 KiB [RFC 8446 5.1].
const FIRST: usize = 16 << 10;

const BEGINS: u8 = 0;
const CLOSED: u8 = 1;
const ARRIVED: u8 = 2;
const OPEN: u8 = 3;

/// Decides whether a [`HeldStream`] passes on what arrives. At first it passes on the first message.
#[derive(Clone, Debug, Default)]
pub(super) struct HandshakeGate(Arc<AtomicU8>);

impl HandshakeGate {
    fn is_first(&self) -> bool {
        self.0.load(Ordering::Relaxed) == BEGINS
    }

    /// Passes on everything from now on.
    pub(super) fn open(&self) {
        self.0.store(OPEN, Ordering::Relaxed);
    }

    /// Holds back what arrives from now on.
    pub(super) fn close(&self) {
        self.0.store(CLOSED, Ordering::Relaxed);
    }

    /// Whether something is held back.
    pub(super) fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ARRIVED
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) == OPEN
    }
}

/// A stream with a gate for what it reads. Once the handshake is over, it only passes on.
#[derive(Debug)]
pub(crate) struct HeldStream<S> {
    io: S,
    gate: Option<HandshakeGate>,
    held: Vec<u8>,
    /// The bytes of the first message.
    first: usize,
    /// The bytes that have passed the closed gate.
    passed: usize,
}

impl<S> HeldStream<S> {
    pub(super) fn new(io: S, gate: HandshakeGate) -> HeldStream<S> {
        HeldStream { io, gate: Some(gate), held: Vec::new(), first: 0, passed: 0 }
    }

    pub(super) fn into_inner(self) -> S {
        self.io
    }

    /// Gives what is held, if the gate is open.
    fn give(&mut self, to: &mut ReadBuf<'_>) -> bool {
        if self.held.is_empty() || !self.gate.as_ref().is_none_or(HandshakeGate::is_open) {
            return false;
        }
        let count = self.held.len().min(to.remaining());
        to.put_slice(&self.held[..count]);
        self.held.drain(..count);
        self.held.shrink_to_fit();
        true
    }
}

impl<S: AsyncRead + Unpin> HeldStream<S> {
    /// Reads a part of the first message.
    fn poll_first(&mut self, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        let most = (FIRST - self.first).min(to.remaining()).min(bytes.len());
        if most == 0 && to.remaining() > 0 {
            let why = format!("the first message of its TLS handshake is longer than {FIRST} bytes");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, why)));
        }
        let mut arrived = ReadBuf::new(&mut bytes[..most]);
        ready!(Pin::new(&mut self.io).poll_read(context, &mut arrived))?;
        self.first += arrived.filled().len();
        to.put_slice(arrived.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeldStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.give(to) {
            return Poll::Ready(Ok(()));
        }
        let Some(gate) = &this.gate else { return Pin::new(&mut this.io).poll_read(context, to) };
        if gate.is_open() {
            return Pin::new(&mut this.io).poll_read(context, to);
        }
        if gate.is_first() {
            return this.poll_first(context, to);
        }
        if !this.held.is_empty() {
            // whoever has the gate polls again in its turn
            gate.0.store(ARRIVED, Ordering::Relaxed);
            return Poll::Pending;
        }
        let mut bytes = [0; 1024];
        let mut arrived = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut this.io).poll_read(context, &mut arrived))?;
        this.passed += arrived.filled().len();
        let is_over = arrived.filled().is_empty();
        if is_over || this.passed <= FREE && arrived.filled().len() <= to.remaining() {
            to.put_slice(arrived.filled());
            return Poll::Ready(Ok(()));
        }
        this.held.extend_from_slice(arrived.filled());
        gate.0.store(ARRIVED, Ordering::Relaxed);
        // what else is there belongs to the same message
        while this.held.len() < MOST {
            let mut arrived = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.io).poll_read(context, &mut arrived) {
                Poll::Ready(Ok(())) if !arrived.filled().is_empty() => this.held.extend_from_slice(arrived.filled()),
                _ => break,
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeldStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_first_message_that_does_not_end_is_bounded() {
        let (mut client, server) = duplex(1 << 16);
        let mut stream = HeldStream::new(server, HandshakeGate::default());
        client.write_all(&[1; FIRST + 1]).await.unwrap();
        let mut first = vec![0; FIRST];
        stream.read_exact(&mut first).await.unwrap();
        let error = stream.read(&mut first).await.unwrap_err();
        assert!(error.to_string().contains("longer than 16384 bytes"), "{error}");
    }

    #[tokio::test]
    async fn little_passes_and_the_rest_waits_for_the_gate() {
        let gate = HandshakeGate::default();
        gate.close();
        let (mut client, server) = duplex(1 << 16);
        let mut stream = HeldStream::new(server, gate.clone());
        let mut read = vec![0; 4096];
        client.write_all(&[1; 80]).await.unwrap();
        assert_eq!(stream.read(&mut read).await.unwrap(), 80);
        client.write_all(&[2; 3000]).await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(stream.read(&mut read))).is_pending());
        assert!(gate.holds());
        client.write_all(&[3; 10]).await.unwrap();
        assert!(futures_util::poll!(std::pin::pin!(stream.read(&mut read))).is_pending());
        gate.open();
        let mut all = vec![0; 3010];
        stream.read_exact(&mut all).await.unwrap();
        assert_eq!(all, [vec![2; 3000], vec![3; 10]].concat());
        gate.close();
        assert!(!gate.holds());
        drop(client);
        assert_eq!(stream.read(&mut read).await.unwrap(), 0, "an end is no work");
    }
}
