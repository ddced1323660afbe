//! Reads from the socket of a client.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::pin;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The size of the buffer for a client that sends little at a time.
pub(super) const SMALLEST_READ: usize = 4 * 1024;

thread_local! {
    /// The buffer with which the connections of this thread look whether something has arrived.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// Reads what has arrived, with room for at least `size` bytes, and returns its length. Most clients are silent most of the
/// time, so an empty `input` has no memory of its own while it waits, unless `size` shows that much arrives at a time. Safe
/// to cancel.
pub(super) async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
    size: usize,
) -> io::Result<usize> {
    poll_fn(|context| {
        if input.capacity() == 0 {
            *input = SPARE.take();
        }
        input.reserve(size);
        let read = pin!(reader.read_buf(input)).poll(context);
        if read.is_pending() && input.is_empty() && size <= SMALLEST_READ {
            let mut buffer = std::mem::take(input);
            // what arrives goes to its beginning again
            buffer.clear();
            if buffer.capacity() <= SMALLEST_READ {
                SPARE.set(buffer);
            }
        }
        read
    })
    .await
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn who_waits_holds_no_memory_and_what_arrives_is_read_in_order() {
        let (mut client, mut server) = duplex(64 * 1024);
        let mut input = BytesMut::new();
        for text in [&b"a packet"[..], b"another one"] {
            {
                let mut reading = pin!(read(&mut server, &mut input, SMALLEST_READ));
                assert!(poll!(&mut reading).is_pending());
                client.write_all(text).await.unwrap();
                assert_eq!(reading.await.unwrap(), text.len());
            }
            assert_eq!(input, text);
            input.clear();
            assert!(poll!(pin!(read(&mut server, &mut input, SMALLEST_READ))).is_pending());
            assert_eq!(input.capacity(), 0);
        }
        // an incomplete packet stays where it is
        client.write_all(b"half").await.unwrap();
        assert_eq!(read(&mut server, &mut input, SMALLEST_READ).await.unwrap(), 4);
        assert!(poll!(pin!(read(&mut server, &mut input, SMALLEST_READ))).is_pending());
        client.write_all(b" and half").await.unwrap();
        read(&mut server, &mut input, SMALLEST_READ).await.unwrap();
        assert_eq!(input, &b"half and half"[..]);
        drop(client);
        assert_eq!(read(&mut server, &mut input, SMALLEST_READ).await.unwrap(), 0, "the end");
    }

    #[tokio::test]
    async fn the_buffer_of_a_client_that_has_sent_much_is_given_back() {
        let (mut client, mut server) = duplex(64 * 1024);
        let mut input = BytesMut::new();
        client.write_all(&[7; 40_000]).await.unwrap();
        assert_eq!(read(&mut server, &mut input, 64 * 1024).await.unwrap(), 40_000);
        input.clear();
        assert!(poll!(pin!(read(&mut server, &mut input, 64 * 1024))).is_pending());
        assert!(input.capacity() >= 64 * 1024, "it sends much at a time");
        assert!(poll!(pin!(read(&mut server, &mut input, SMALLEST_READ))).is_pending());
        assert_eq!(input.capacity(), 0);
        client.write_all(b"x").await.unwrap();
        read(&mut server, &mut input, SMALLEST_READ).await.unwrap();
        assert!(input.capacity() <= SMALLEST_READ, "others do not get it either");
    }
}
