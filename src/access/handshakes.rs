//! TLS handshakes: one at a time, and no more than a part of the processor for all of them.
//!
//! The gateway's part of a handshake takes a millisecond, on a small machine thirty, and costs a stranger a few bytes. So a
//! connection that has sent its first message waits for its turn ([`super::turns`]). Addresses from which users have signed
//! in go first, and after a few of their handshakes a stranger has a turn; among either, networks have turns one after the
//! other. After each handshake other tasks have their turn, and after a stranger's the processor is free for as long as it
//! took. What a client sends later has a turn too if it can cost much ([`super::held`]). A household whose nodes all come back at once is not slowed down, and a crowd of strangers has half of the time.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::guesses::network;
use super::held::{HandshakeGate, HeldStream};
use super::turns::{Turn, Turns};
use crate::time::thread_time;

/// How much longer than a stranger's handshake the pause after it is.
const PAUSE_AFTER_A_STRANGER: u32 = 1;

/// Gives turns to TLS handshakes.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    key: RandomState,
    turns: Arc<Turns>,
    /// When the next handshake may begin.
    free_at: Mutex<Option<Instant>>,
}

/// The turn of one handshake.
struct HandshakeTurn<'a> {
    handshakes: &'a Handshakes,
    is_familiar: bool,
    turn: Turn,
}

impl HandshakeTurn<'_> {
    /// Ends the turn, after this much work.
    fn took(self, work: Duration) {
        let pause = if self.is_familiar { 0 } else { PAUSE_AFTER_A_STRANGER };
        *self.handshakes.free_at.lock() = Some(Instant::now() + work * pause);
        self.turn.takes_long();
    }
}

impl Handshakes {
    /// Waits for the turn of this address.
    async fn begin(&self, from: IpAddr, is_familiar: bool) -> Option<HandshakeTurn<'_>> {
        let turn = self.turns.take(self.key.hash_one(network(from)), is_familiar).await?;
        let free_at = *self.free_at.lock();
        if let Some(free_at) = free_at.filter(|at| *at > Instant::now()) {
            sleep_until(free_at).await;
        }
        Some(HandshakeTurn { handshakes: self, is_familiar, turn })
    }

    /// Accepts TLS on a stream from this address. An error comes with the stream, if it is still open.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        tls: &TlsAcceptor,
        (from, is_familiar): (IpAddr, bool),
    ) -> Result<TlsStream<HeldStream<S>>, (io::Error, Option<S>)> {
        let gate = HandshakeGate::default();
        let stream = HeldStream::new(stream, gate.clone());
        let mut hello = std::pin::pin!(LazyConfigAcceptor::new(Acceptor::default(), stream));
        // whoever sends nothing has no turn
        let start = match hello.as_mut().await {
            Ok(start) => start,
            Err(error) => return Err((error, hello.take_io().map(HeldStream::into_inner))),
        };
        let mut accept = std::pin::pin!(start.into_stream(tls.config().clone()).into_fallible());
        let accepted = loop {
            let Some(turn) = self.begin(from, is_familiar).await else {
                return Err((io::ErrorKind::Other.into(), None));
            };
            let begun = thread_time();
            gate.open();
            // the work is done here
            let done = std::future::poll_fn(|context| Poll::Ready(accept.as_mut().poll(context))).await;
            gate.close();
            turn.took(thread_time().saturating_sub(begun));
            if let Poll::Ready(accepted) = done {
                break accepted;
            }
            // what follows waits for the client, and for another turn if the client has sent more work
            let done = std::future::poll_fn(|context| match accept.as_mut().poll(context) {
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
                Poll::Pending if gate.holds() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            if let Some(accepted) = done.await {
                break accepted;
            }
        };
        gate.open();
        accepted.map_err(|(error, stream)| (error, Some(stream.into_inner())))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::sleep;

    use super::*;

    const WORK: Duration = Duration::from_millis(30);

    /// Makes handshakes as long as this says, and returns how many.
    async fn crowd(handshakes: &Handshakes, from: IpAddr, is_familiar: bool, goes_on: impl Fn() -> bool) -> u32 {
        let mut made = 0;
        while let Some(turn) = handshakes.begin(from, is_familiar).await
            && goes_on()
        {
            sleep(WORK).await;
            turn.took(WORK);
            made += 1;
        }
        made
    }

    fn address(network: u16, host: u16) -> IpAddr {
        IpAddr::from([0x2001, 0xdb8, 0, network, 0, 0, 0, host])
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_have_half_of_the_time_and_familiar_addresses_all() {
        for (is_familiar, part) in [(false, 2), (true, 1)] {
            let handshakes = Handshakes::default();
            let until = Instant::now() + WORK * 400;
            let all =
                (0..50).map(|host| crowd(&handshakes, address(host % 7, host), is_familiar, || Instant::now() < until));
            let made: u32 = futures_util::future::join_all(all).await.iter().sum();
            assert!((400 / part - 5..=400 / part + 1).contains(&made), "{made}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_waits_for_few_handshakes_of_others() {
        let (handshakes, is_done) = (Handshakes::default(), Cell::new(false));
        let goes_on = || !is_done.get();
        let crowds = (0..300).map(|host| crowd(&handshakes, address(1, host), false, goes_on));
        let others = async {
            for (number, is_familiar) in [(10, false), (11, true), (12, false)] {
                let begin = Instant::now();
                handshakes.begin(address(number, 1), is_familiar).await.unwrap().took(WORK);
                // what has begun, and one that was called before
                assert!(begin.elapsed() <= 2 * WORK * (1 + PAUSE_AFTER_A_STRANGER), "{:?}", begin.elapsed());
                sleep(WORK * 20).await;
            }
            is_done.set(true);
        };
        let (made, ()) = futures_util::future::join(futures_util::future::join_all(crowds), others).await;
        assert!(made.iter().sum::<u32>() >= 10, "the crowd has the rest of the time");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_takes_no_pause_with_it() {
        let handshakes = Handshakes::default();
        handshakes.begin(address(1, 1), false).await.unwrap().took(WORK);
        let begin = Instant::now();
        for host in 0..100 {
            let mut waiting = std::pin::pin!(handshakes.begin(address(1, host), false));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        }
        assert!(handshakes.begin(address(2, 1), false).await.is_some());
        assert!(begin.elapsed() >= WORK * PAUSE_AFTER_A_STRANGER);
    }
}
