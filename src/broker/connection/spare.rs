//! Gives back the memory that a burst has left.
//!
//! The buffers for input, batch and output grow with what is sent at a time, to about 300 KiB. While a client sends or
//! receives much they stay, so that no message allocates; once it has been quiet for a while they are given back.

use std::time::Duration;

use tokio::time::Instant;

use super::BrokerConnection;
use crate::time::beat;

/// After a burst the memory stays for at least this long.
const QUIET: Duration = Duration::from_secs(5);

/// When a client has last sent or received much at once.
#[derive(Debug, Default)]
pub(super) struct LastBurst {
    /// `None` if nothing is left of it.
    at: Option<Instant>,
}

impl LastBurst {
    pub(super) fn is_at(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// When to give back what it has left; `None` if nothing is left.
    pub(super) fn over_at(&self) -> Option<Instant> {
        self.at.map(|at| beat::at_or_after(at + QUIET))
    }
}

impl BrokerConnection {
    /// Gives back the memory of batch and output, if the last burst has been over for long enough. Returns whether it has.
    pub(super) fn give_back(&mut self, burst: &mut LastBurst) -> bool {
        let now = Instant::now();
        if burst.over_at().is_none_or(|at| at > now) {
            return false;
        }
        let is_all = self.out.give_back() & self.batch.give_back();
        burst.at = (!is_all).then_some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::IpAddr;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

    use super::super::input::SMALLEST_READ;
    use super::super::tests::broker;
    use super::super::{Peer, serve};
    use super::*;

    /// A reader that notes how much room it is given.
    struct Measured<R>(R, Arc<AtomicUsize>);

    impl<R: AsyncRead + Unpin> AsyncRead for Measured<R> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1.store(buffer.remaining(), Ordering::Relaxed);
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_a_burst_is_given_back_when_it_has_been_over_for_a_while() {
        let broker = broker(crate::journal::Journal::default);
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        let (room, peer) = (Arc::<AtomicUsize>::default(), Peer::at(IpAddr::from([127, 0, 0, 1])));
        tokio::spawn(serve(broker.core.clone(), Measured(reader, room.clone()), writer, peer));
        client.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01a").await.unwrap();
        client.read_exact(&mut [0; 4]).await.unwrap();
        for burst in 0..3 {
            // acknowledgements of nothing, which nobody else has to process
            let packets = b"\x40\x02\0\x01".repeat(50_000);
            client.write_all(&packets).await.unwrap();
            client.write_all(&[0xc0, 0]).await.unwrap();
            client.read_exact(&mut [0; 2]).await.unwrap();
            // so large reads do not end with a small one
            client.write_all(&packets[..6000]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(room.load(Ordering::Relaxed) > SMALLEST_READ, "burst {burst}");
            tokio::time::sleep(QUIET + 2 * beat::BEAT).await;
            let left = room.load(Ordering::Relaxed);
            assert!(left <= 2 * SMALLEST_READ, "{left} bytes after burst {burst}");
        }
    }

    #[test]
    fn what_is_empty_has_no_memory_afterwards() {
        use crate::message::{BatchBuilder, Draft};

        let mut out = super::super::output::SocketOutput::default();
        out.tail().extend_from_slice(&[0; 60_000]);
        assert!(!out.give_back(), "it is not sent yet");
        bytes::Buf::advance(&mut out, 60_000);
        assert!(out.give_back() && out.tail().capacity() == 0);
        let mut batch = BatchBuilder::default();
        batch.push(&Draft::new("t", &[0; 60_000]));
        assert!(!batch.give_back() && batch.len() == 1);
        drop(batch.finish(0));
        assert!(batch.give_back());
    }
}
