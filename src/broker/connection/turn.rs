//! When a connection lets others work.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

/// After this time of work a connection lets others work, however much there is to do.
pub(super) const TURN: Duration = Duration::from_millis(1);

/// How long a connection has worked since it last let others work. A socket that is always ready would not make it pause.
pub(super) struct WorkTurn {
    begun: Instant,
    ended: Instant,
    worked: Duration,
}

impl WorkTurn {
    pub(super) fn new() -> WorkTurn {
        let now = Instant::now();
        WorkTurn { begun: now, ended: now, worked: Duration::ZERO }
    }

    pub(super) fn begins(&mut self) {
        self.begun = Instant::now();
        if self.begun - self.ended >= TURN {
            // it has waited, and others have worked meanwhile
            self.worked = Duration::ZERO;
        }
    }

    /// Ends a piece of work. Returns whether it is the turn of others.
    pub(super) fn is_over(&mut self) -> bool {
        self.ended = Instant::now();
        self.worked += self.ended - self.begun;
        let is_over = self.worked >= TURN;
        if is_over {
            self.worked = Duration::ZERO;
        }
        is_over
    }
}

/// Lets the tasks run that this one has woken.
pub(super) async fn woken_tasks() {
    let mut is_over = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        // unlike `yield_now`, this does not wait until the sockets have been looked at
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::IpAddr;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::Context;

    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

    use super::super::tests::broker;
    use super::super::{Peer, serve};
    use super::*;

    /// A writer that notes who writes.
    struct NotesWrites<W>(W, &'static str, Arc<Mutex<Vec<&'static str>>>);

    impl<W: AsyncWrite + Unpin> AsyncWrite for NotesWrites<W> {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.2.lock().push(self.1);
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn a_message_is_written_before_its_acknowledgement() {
        let broker = broker(crate::journal::Journal::default);
        let written = Arc::<Mutex<Vec<_>>>::default();
        let connect = |name: &'static str| -> DuplexStream {
            let (client, server) = tokio::io::duplex(4096);
            let (reader, writer) = tokio::io::split(server);
            let peer = Peer::at(IpAddr::from([127, 0, 0, 1]));
            let writer = NotesWrites(writer, name, written.clone());
            tokio::spawn(serve(broker.core.clone(), reader, writer, peer));
            client
        };
        let (mut subscriber, mut publisher) = (connect("subscriber"), connect("publisher"));
        subscriber.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01s\x82\x06\0\x01\0\x01t\x01").await.unwrap();
        subscriber.read_exact(&mut [0; 9]).await.unwrap();
        publisher.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01p").await.unwrap();
        publisher.read_exact(&mut [0; 4]).await.unwrap();
        for round in 0..5 {
            written.lock().clear();
            publisher.write_all(b"\x32\x07\0\x01t\0\x01hi").await.unwrap();
            publisher.read_exact(&mut [0; 4]).await.unwrap();
            subscriber.read_exact(&mut [0; 9]).await.unwrap();
            assert_eq!(*written.lock(), ["subscriber", "publisher"], "round {round}");
        }
    }
}
