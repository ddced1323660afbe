//! The output buffer of a client.
//!
//! Packets are written one after the other into one buffer. Of a large message only the header is written there. Its payload
//! stays where it is and is shared with all receivers, so that a message for many slow clients is in memory once.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// A payload of at least this size in bytes is shared instead of copied.
pub(super) const LARGE: usize = 16 * 1024;

/// Packets that wait to be written to the socket.
#[derive(Debug, Default)]
pub(super) struct SocketOutput {
    /// The parts before `tail`.
    parts: VecDeque<Bytes>,
    parts_len: usize,
    tail: BytesMut,
}

impl SocketOutput {
    /// Starts with these packets.
    pub(crate) fn new(tail: BytesMut) -> SocketOutput {
        SocketOutput { tail, ..SocketOutput::default() }
    }

    /// The buffer to which packets are appended.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends bytes that are shared with other connections.
    pub(crate) fn share(&mut self, bytes: Bytes) {
        for part in [self.tail.split().freeze(), bytes] {
            if !part.is_empty() {
                self.parts_len += part.len();
                self.parts.push_back(part);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.parts_len + self.tail.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes before `tail`, which are mostly shared with other connections.
    pub(crate) fn shared(&self) -> usize {
        self.parts_len
    }

    /// Releases a large buffer after a burst.
    pub(crate) fn shrink(&mut self, most: usize) {
        if self.is_empty() && self.tail.capacity() > most {
            self.tail = BytesMut::new();
        }
    }

    /// Releases its memory if it is empty. Returns whether it is.
    pub(crate) fn give_back(&mut self) -> bool {
        let is_empty = self.is_empty();
        if is_empty {
            (self.tail, self.parts) = (BytesMut::new(), VecDeque::new());
        }
        is_empty
    }

    /// Drops everything after `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.tail.truncate(len.saturating_sub(self.parts_len));
        while self.parts_len > len
            && let Some(mut last) = self.parts.pop_back()
        {
            self.parts_len -= last.len();
            last.truncate(len.saturating_sub(self.parts_len));
            if !last.is_empty() {
                self.parts_len += last.len();
                self.parts.push_back(last);
            }
        }
    }
}

impl Buf for SocketOutput {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&self.tail, |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self.parts.iter().map(|part| &part[..]).chain([&self.tail[..]]).filter(|part| !part.is_empty());
        slices.iter_mut().zip(all).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0
            && let Some(part) = self.parts.front_mut()
        {
            let now = count.min(part.len());
            part.advance(now);
            self.parts_len -= now;
            count -= now;
            if part.is_empty() {
                self.parts.pop_front();
            }
        }
        self.tail.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> SocketOutput {
        let mut output = SocketOutput::new(BytesMut::from(&b"head"[..]));
        output.share(Bytes::from_static(b"payload"));
        output.tail().extend_from_slice(b"ack");
        output
    }

    #[test]
    fn it_is_written_in_order_in_steps_of_any_size() {
        for step in 1..20 {
            let mut output = output();
            assert_eq!((output.len(), output.shared()), (14, 11));
            let mut written = Vec::new();
            while output.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 2];
                let count = output.chunks_vectored(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert!(all.starts_with(output.chunk()));
                let step = step.min(all.len());
                written.extend_from_slice(&all[..step]);
                output.advance(step);
            }
            assert_eq!(written, b"headpayloadack");
            assert_eq!((output.len(), output.shared()), (0, 0));
        }
    }

    #[test]
    fn what_is_forgotten_is_at_its_end() {
        for len in 0..14 {
            let mut output = output();
            output.truncate(len);
            assert_eq!(output.copy_to_bytes(output.remaining()), b"headpayloadack"[..len], "{len}");
        }
    }
}
