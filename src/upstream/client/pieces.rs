//! Cuts the frames of a WebSocket server into small ones before they are decoded.
//!
//! A frame may be as large as a message of MQTT, and its decoder keeps all of it before it hands out the first byte. MQTT does not
//! care where frames begin [MQTT-6.0.0-2], so each part of a large frame becomes a frame of its own. Everything else stays as it is, for
//! the decoder to judge.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::stream::UpstreamStream;

/// The largest frame that is handed on, in bytes.
pub(super) const PIECE: usize = 32 << 10;
/// The number of bytes that are read at once.
const READ: usize = 64 << 10;
/// The opcodes of a continuation and of binary data, and the flag of the last frame of a message [RFC 6455 section 5.2].
const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const LAST: u8 = 0x80;

/// A stream with smaller frames.
pub(super) struct Pieces<S> {
    inner: S,
    input: BytesMut,
    /// The bytes of the present frame that have not been handed on.
    left: u64,
    /// Those of them that belong to the present piece.
    of_piece: usize,
    /// Whether the frame is cut.
    is_cut: bool,
    /// A head that is about to be handed on.
    head: BytesMut,
    has_ended: bool,
}

impl<S> Pieces<S> {
    /// `input` was read from the stream before.
    pub(super) fn new(inner: S, input: &[u8]) -> Pieces<S> {
        let (input, head) = (BytesMut::from(input), BytesMut::new());
        Pieces { inner, input, left: 0, of_piece: 0, is_cut: false, head, has_ended: false }
    }

    /// Hands on what has arrived. Returns whether that is anything.
    fn hand_on(&mut self, to: &mut ReadBuf<'_>) -> bool {
        let before = to.filled().len();
        while to.remaining() > 0 && (self.move_bytes(to) > 0 || self.begin_piece()) {}
        to.filled().len() > before
    }

    /// Moves bytes of the head or of the present piece.
    fn move_bytes(&mut self, to: &mut ReadBuf<'_>) -> usize {
        let is_head = !self.head.is_empty();
        let (source, most) = if is_head { (&mut self.head, usize::MAX) } else { (&mut self.input, self.of_piece) };
        let count = source.len().min(to.remaining()).min(most);
        to.put_slice(&source[..count]);
        source.advance(count);
        if !is_head {
            self.of_piece -= count;
            self.left -= count as u64;
        }
        count
    }

    /// Begins the next piece of the frame, or the next frame. Returns whether its head is there.
    fn begin_piece(&mut self) -> bool {
        if self.of_piece > 0 || !self.head.is_empty() {
            return false;
        }
        if self.left == 0 {
            let Some((head, length)) = head(&self.input) else { return false };
            let first = self.input[0];
            // text and what is wrong is not cut, because the decoder refuses it
            self.is_cut = matches!(first & !LAST, CONTINUATION | BINARY) && self.input[1] & 0x80 == 0;
            self.left = length;
            if self.is_cut {
                self.input.advance(head);
            } else {
                self.head.extend_from_slice(&self.input[..head]);
                self.input.advance(head);
                self.of_piece = usize::try_from(length).unwrap_or(usize::MAX);
                return true;
            }
        }
        self.of_piece = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE);
        let [high, low] = (self.of_piece as u16).to_be_bytes();
        match self.of_piece {
            short @ ..126 => self.head.extend_from_slice(&[LAST | BINARY, short as u8]),
            _ => self.head.extend_from_slice(&[LAST | BINARY, 126, high, low]),
        }
        true
    }
}

/// The lengths of the head of a frame and of what follows, once the head is there.
fn head(bytes: &[u8]) -> Option<(usize, u64)> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let (end, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    (bytes.len() >= end + mask).then_some((end + mask, length))
}

impl<S: AsyncRead + Unpin> AsyncRead for Pieces<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.hand_on(to) && !this.has_ended && to.remaining() > 0 {
            this.input.reserve(READ);
            let count = ready!(poll_read_buf(Pin::new(&mut this.inner), context, &mut this.input))?;
            this.has_ended = count == 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Pieces<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S: UpstreamStream> UpstreamStream for Pieces<S> {
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.inner.socket()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// A frame of a server.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let length = match payload.len() {
            short @ ..126 => vec![short as u8],
            middle @ ..0x1_0000 => [&[126][..], &(middle as u16).to_be_bytes()].concat(),
            long => [&[127][..], &(long as u64).to_be_bytes()].concat(),
        };
        [&[first], &length[..], payload].concat()
    }

    #[tokio::test]
    async fn large_frames_are_cut_and_nothing_is_lost() {
        let (mut sent, mut payload) = (Vec::new(), Vec::new());
        for (at, size) in [0, 1, 125, 126, PIECE - 1, PIECE, PIECE + 1, 65_535, 65_536, 3 << 20].into_iter().enumerate()
        {
            let bytes: Vec<u8> = (0..size).map(|byte| (byte * 31 + at) as u8).collect();
            let (first, second) = bytes.split_at(size / 3);
            sent.extend(match at % 2 {
                0 => frame(0x82, &bytes),
                _ => [frame(0x02, first), frame(0x89, b"ping"), frame(0x80, second)].concat(),
            });
            payload.extend(bytes);
        }
        for most in [3, 1000, 100_000] {
            let (ours, mut theirs) = duplex(most);
            let (early, late) = (sent[..7].to_vec(), sent[7..].to_vec());
            let writing = tokio::spawn(async move { theirs.write_all(&late).await });
            let mut pieces = Pieces::new(ours, &early);
            let mut arrived = Vec::new();
            let mut buffer = vec![0; most];
            loop {
                let count = pieces.read(&mut buffer).await.unwrap();
                if count == 0 {
                    break;
                }
                arrived.extend_from_slice(&buffer[..count]);
            }
            writing.await.unwrap().unwrap();
            assert!(pieces.input.capacity() < 3 * READ);
            let (mut rest, mut joined, mut pings) = (&arrived[..], Vec::new(), 0);
            while let Some((head, length)) = head(rest) {
                let (first, end) = (rest[0], head + length as usize);
                match first {
                    0x82 => joined.extend_from_slice(&rest[head..end]),
                    0x89 => pings += usize::from(rest[head..end] == *b"ping"),
                    _ => panic!("{first:x}"),
                }
                assert!(end - head <= PIECE);
                rest = &rest[end..];
            }
            assert_eq!((rest.len(), pings), (0, 5));
            assert!(joined == payload);
        }
    }

    #[tokio::test]
    async fn what_is_no_data_is_handed_on_as_it_is() {
        let text = frame(0x81, &[b'x'; 2 * PIECE]);
        let masked = [&[0x82, 0x81, 1, 2, 3, 4, 5][..], &frame(0x88, &[3, 0xe8])].concat();
        for bytes in [text, masked, vec![0xf2, 1, 7]] {
            let mut arrived = Vec::new();
            Pieces::new(&b""[..], &bytes).read_to_end(&mut arrived).await.unwrap();
            assert!(arrived == bytes);
        }
    }
}
