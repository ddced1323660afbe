//! A WebSocket as a stream of bytes [RFC 6455, MQTT-6.0].
//!
//! Input is one stream: packets and frames need not end together [MQTT-6.0.0-2], and a frame is passed on while it arrives,
//! so that no complete frame is ever held in memory. Output has one frame for each packet: MQTT allows any division, but
//! some clients ignore a second packet in a frame.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of bytes that are read at a time.
const READ: usize = 4 << 10;
/// The most bytes that wait for the socket.
const WRITE: usize = 16 << 10;
/// The largest payload of a control frame.
const MAX_CONTROL: usize = 125;
/// The number of waiting bytes above which pings are not answered.
const MAX_PONGS: usize = 1 << 10;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;

/// Status codes of a close frame [RFC 6455, 7.4.1].
const NORMAL: u16 = 1000;
const PROTOCOL: u16 = 1002;
const UNACCEPTABLE: u16 = 1003;

/// The server's side of a WebSocket.
#[derive(Debug)]
pub struct ServerFrames<S> {
    io: S,
    /// Bytes that were read and not processed yet.
    input: BytesMut,
    frame: Option<Payload>,
    /// Whether a message of several frames has begun.
    is_within_message: bool,
    /// Frames that wait for the socket.
    output: BytesMut,
    /// The bytes of the packet whose frame has begun that are not in `output` yet.
    packet_left: usize,
    is_closing: bool,
    has_ended: bool,
}

/// The payload of a data frame that is being read.
#[derive(Clone, Copy, Debug)]
struct Payload {
    left: u64,
    mask: [u8; 4],
    /// The position in the mask of the next byte.
    at: usize,
}

/// The header of a frame.
struct Head {
    first: u8,
    len: u64,
    mask: [u8; 4],
    size: usize,
}

/// The header at the start of `bytes`; `None` while it is incomplete. The error is the status code for the close frame.
fn head(bytes: &[u8]) -> Result<Option<Head>, u16> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if second & 0x80 == 0 || first & 0x70 != 0 {
        return Err(PROTOCOL); // clients must mask, and no extension was agreed on
    }
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some((number, rest)) = rest.split_at_checked(extended) else { return Ok(None) };
    let Some(mask) = rest.first_chunk::<4>() else { return Ok(None) };
    let number = number.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let len = if extended == 0 { u64::from(second & 0x7f) } else { number };
    let is_control = first & 8 != 0;
    if len > i64::MAX as u64 || (is_control && (len > MAX_CONTROL as u64 || first & FINAL == 0)) {
        return Err(PROTOCOL);
    }
    Ok(Some(Head { first, len, mask: *mask, size: 2 + extended + 4 }))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) {
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte ^= mask[(at + place) % 4];
    }
}

impl<S> ServerFrames<S> {
    /// A WebSocket after the handshake.
    pub(crate) fn new(io: S) -> ServerFrames<S> {
        ServerFrames {
            io,
            input: BytesMut::new(),
            frame: None,
            is_within_message: false,
            output: BytesMut::new(),
            packet_left: 0,
            is_closing: false,
            has_ended: false,
        }
    }

    fn put_head(&mut self, kind: u8, len: usize) {
        self.output.put_u8(FINAL | kind);
        match len {
            0..126 => self.output.put_u8(len as u8),
            126..0x1_0000 => {
                self.output.put_u8(126);
                self.output.put_u16(len as u16);
            }
            _ => {
                self.output.put_u8(127);
                self.output.put_u64(len as u64);
            }
        }
    }

    /// Appends a close frame, unless there was one or a packet is incomplete.
    fn put_close(&mut self, code: u16) {
        if !self.is_closing && self.packet_left == 0 {
            self.put_head(CLOSE, 2);
            self.output.put_u16(code);
        }
        self.is_closing = true;
    }

    /// Processes headers and control frames up to the next payload. Returns whether there is one; if not, more must be read.
    fn next_payload(&mut self) -> Result<bool, u16> {
        loop {
            if self.has_ended || self.frame.is_some_and(|payload| payload.left > 0) {
                return Ok(true);
            }
            let Some(Head { first, len, mask, size }) = head(&self.input)? else { return Ok(false) };
            let is_final = first & FINAL != 0;
            match first & 15 {
                BINARY if !self.is_within_message => self.is_within_message = !is_final,
                CONTINUATION if self.is_within_message => self.is_within_message = !is_final,
                kind @ (CLOSE | PING | PONG) => {
                    let whole = size + len as usize;
                    if self.input.len() < whole {
                        return Ok(false);
                    }
                    let mut frame = self.input.split_to(whole);
                    unmask(&mut frame[size..], mask, 0);
                    self.control(kind, &frame[size..]);
                    continue;
                }
                TEXT => return Err(UNACCEPTABLE), // [MQTT-6.0.0-1]
                _ => return Err(PROTOCOL),
            }
            self.input.advance(size);
            self.frame = Some(Payload { left: len, mask, at: 0 });
        }
    }

    fn control(&mut self, kind: u8, payload: &[u8]) {
        match kind {
            CLOSE => {
                self.put_close(NORMAL);
                self.has_ended = true;
            }
            // only between packets, because the frame of a packet has a fixed length
            PING if self.output.len() < MAX_PONGS && self.packet_left == 0 && !self.is_closing => {
                self.put_head(PONG, payload.len());
                self.output.extend_from_slice(payload);
            }
            _ => {}
        }
    }

    /// Passes on the available bytes of the payload.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) {
        let Some(payload) = &mut self.frame else { return };
        let left = usize::try_from(payload.left).unwrap_or(usize::MAX);
        let count = left.min(self.input.len()).min(buffer.remaining());
        unmask(&mut self.input[..count], payload.mask, payload.at);
        buffer.put_slice(&self.input[..count]);
        self.input.advance(count);
        payload.left -= count as u64;
        payload.at = (payload.at + count) % 4;
    }
}

impl<S: AsyncWrite + Unpin> ServerFrames<S> {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(context, &self.output))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(count);
        }
        self.output = BytesMut::new();
        Pin::new(&mut self.io).poll_flush(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ServerFrames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut has_read = false;
        loop {
            let found = this.next_payload();
            // nobody else retries what a write has left; and a client that does not read may still have sent something
            let _ = this.drain(context);
            match found {
                Ok(true) if this.has_ended => return Poll::Ready(Ok(())),
                Ok(true) if !this.input.is_empty() => {
                    this.hand_on(buffer);
                    return Poll::Ready(Ok(()));
                }
                Ok(_) => {}
                Err(code) => {
                    this.put_close(code);
                    let _ = this.drain(context);
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
            if mem::replace(&mut has_read, true) {
                // a client that sends only pings and empty frames does not keep others waiting
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            this.input.reserve(READ);
            let read = tokio_util::io::poll_read_buf(Pin::new(&mut this.io), context, &mut this.input);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ServerFrames<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // if the client does not read, the writer waits, and nothing more is buffered
        if this.output.len() >= WRITE {
            ready!(this.drain(context))?;
        }
        let mut rest = bytes;
        while !rest.is_empty() && this.output.len() < WRITE {
            if this.packet_left == 0 {
                this.packet_left = packet_len(rest);
                this.put_head(BINARY, this.packet_left);
            }
            let count = this.packet_left.min(rest.len()).min(WRITE.saturating_sub(this.output.len()).max(1));
            this.output.extend_from_slice(&rest[..count]);
            this.packet_left -= count;
            rest = &rest[count..];
        }
        match this.drain(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len() - rest.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.drain(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.put_close(NORMAL);
        ready!(self.drain(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The length of the MQTT packet at the start of `bytes`; all bytes if its header is incomplete.
fn packet_len(bytes: &[u8]) -> usize {
    let mut remaining = 0;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        remaining |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return at + 1 + remaining;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0x22, 0x33, 0x44];
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(0x80 | len as u8),
            len @ 126..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(0x80 | 127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        let start = frame.len();
        frame.extend(payload);
        unmask(&mut frame[start..], mask, 0);
        frame
    }

    fn pair() -> (DuplexStream, ServerFrames<DuplexStream>) {
        let (client, server) = duplex(1 << 20);
        (client, ServerFrames::new(server))
    }

    #[tokio::test]
    async fn frames_of_any_size_and_pieces_of_any_size_are_one_stream() {
        let long: Vec<u8> = (0..70_000u32).map(|byte| byte as u8).collect();
        let stream = [
            masked(BINARY, b"ab"),
            masked(FINAL | PING, b"there?"),
            masked(CONTINUATION, b""),
            masked(FINAL | CONTINUATION, b"c"),
            masked(FINAL | BINARY, &long[..300]),
            masked(FINAL | BINARY, &long),
            masked(FINAL | PONG, b"not asked for"),
            masked(FINAL | CLOSE, &[3, 0xe8]),
        ]
        .concat();
        let expected = [&b"abc"[..], &long[..300], &long].concat();
        for piece in [1, 7, 1000, stream.len()] {
            let (mut client, mut frames) = pair();
            let bytes = stream.clone();
            let sender = tokio::spawn(async move {
                for part in bytes.chunks(piece) {
                    client.write_all(part).await.unwrap();
                }
                let mut answers = vec![0; 12];
                client.read_exact(&mut answers).await.unwrap();
                assert_eq!(answers, b"\x8a\x06there?\x88\x02\x03\xe8");
            });
            let mut got = Vec::new();
            frames.read_to_end(&mut got).await.unwrap();
            assert!(got == expected, "pieces of {piece}");
            sender.await.unwrap();
        }
    }

    #[tokio::test]
    async fn each_packet_has_a_frame() {
        let (mut client, mut frames) = pair();
        let long = [&[0x30, 0xf4, 0x03][..], &[b'x'; 500]].concat();
        let packets = [&[0xd0, 0][..], &[0x40, 2, 0, 1], &long].concat();
        // a packet may be written in pieces
        frames.write_all(&packets[..20]).await.unwrap();
        frames.write_all(&packets[20..]).await.unwrap();
        frames.shutdown().await.unwrap();
        drop(frames);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let expected = [&b"\x82\x02\xd0\0\x82\x04\x40\x02\0\x01\x82\x7e\x01\xf7"[..], &long, b"\x88\x02\x03\xe8"];
        assert_eq!(got, expected.concat());
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_and_ends_it() {
        for (bytes, code) in [
            (masked(FINAL | TEXT, b"text"), UNACCEPTABLE),
            (masked(FINAL | CONTINUATION, b"x"), PROTOCOL),
            ([masked(BINARY, b""), masked(BINARY, b"x")].concat(), PROTOCOL),
            (masked(FINAL | 3, b"x"), PROTOCOL),
            (masked(FINAL | 0x40 | BINARY, b"x"), PROTOCOL),
            (masked(PING, b"x"), PROTOCOL),
            (masked(FINAL | PING, &[0; 126]), PROTOCOL),
            (vec![FINAL | BINARY, 1, b'x'], PROTOCOL),
            (vec![FINAL | BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], PROTOCOL),
        ] {
            let (mut client, mut frames) = pair();
            client.write_all(&bytes).await.unwrap();
            assert!(frames.read_to_end(&mut Vec::new()).await.is_err(), "{bytes:x?}");
            drop(frames);
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, [&[FINAL | CLOSE, 2][..], &code.to_be_bytes()].concat(), "{bytes:x?}");
        }
    }
}
