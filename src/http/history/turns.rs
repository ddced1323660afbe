//! One history is read at a time, however many are asked for: reading takes a thread and, on a small Pi, a good part of its
//! processor. Those who wait are served in turn, one request of each user or network of guests after the other, so that many
//! requests of one delay another by one request.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::access::places::PlaceHolder;

/// Who may read at present, and who waits. Each connection waits with one request at most.
#[derive(Debug, Default)]
pub(crate) struct HistoryTurns(Mutex<TurnsState>);

#[derive(Debug, Default)]
struct TurnsState {
    is_taken: bool,
    /// The requests that wait, by those who make them, whoever is next first.
    waiting: VecDeque<(PlaceHolder, VecDeque<oneshot::Sender<HistoryTurn>>)>,
}

/// The turn of one request. Dropping it passes the turn on, also if the request was given up before it noticed.
#[derive(Debug)]
pub(crate) struct HistoryTurn(Option<Arc<HistoryTurns>>);

impl HistoryTurns {
    /// Waits for a turn; `None` only if whoever had it before is gone without passing it on.
    pub(crate) async fn take(self: &Arc<Self>, who: PlaceHolder) -> Option<HistoryTurn> {
        let called = {
            let mut state = self.0.lock();
            if !state.is_taken {
                state.is_taken = true;
                return Some(HistoryTurn(Some(self.clone())));
            }
            state.wait(who)
        };
        called.await.ok()
    }

    fn pass_on(self: Arc<Self>) {
        let mut turn = HistoryTurn(Some(self.clone()));
        let mut state = self.0.lock();
        while let Some(next) = state.next() {
            match next.send(turn) {
                Ok(()) => return,
                // the request was given up while it waited
                Err(back) => turn = back,
            }
        }
        state.is_taken = false;
        turn.0 = None;
    }
}

impl TurnsState {
    fn wait(&mut self, who: PlaceHolder) -> oneshot::Receiver<HistoryTurn> {
        // those who gave up must not pile up
        self.waiting.retain_mut(|(_, requests)| {
            requests.retain(|request| !request.is_closed());
            !requests.is_empty()
        });
        let (call, called) = oneshot::channel();
        match self.waiting.iter_mut().find(|(holder, _)| *holder == who) {
            Some((_, requests)) => requests.push_back(call),
            None => self.waiting.push_back((who, VecDeque::from([call]))),
        }
        called
    }

    fn next(&mut self) -> Option<oneshot::Sender<HistoryTurn>> {
        let (who, mut requests) = self.waiting.pop_front()?;
        let next = requests.pop_front();
        if !requests.is_empty() {
            self.waiting.push_back((who, requests));
        }
        next
    }
}

impl Drop for HistoryTurn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    fn user(name: &str) -> PlaceHolder {
        PlaceHolder::User(name.into())
    }

    #[tokio::test]
    async fn whoever_asks_often_delays_others_by_one_request() {
        let turns = Arc::new(HistoryTurns::default());
        let first = turns.take(user("often")).await;
        let mut often: Vec<_> = (0..100).map(|_| Box::pin(turns.take(user("often")))).collect();
        for request in &mut often {
            assert!(poll!(request).is_pending());
        }
        let mut once = Box::pin(turns.take(user("once")));
        assert!(poll!(&mut once).is_pending());
        drop(first);
        let second = often.remove(0).await;
        assert!(poll!(&mut once).is_pending(), "one at a time");
        drop(second);
        drop(once.await);
        for request in often {
            assert!(request.await.is_some());
        }
        assert!(!turns.0.lock().is_taken);
    }

    #[tokio::test]
    async fn a_turn_is_never_lost_and_requests_that_were_given_up_do_not_pile_up() {
        let turns = Arc::new(HistoryTurns::default());
        let first = turns.take(user("a")).await;
        for name in ["b", "c", "c", "c"] {
            assert!(poll!(Box::pin(turns.take(user(name)))).is_pending());
        }
        let (mut second, mut third) = (Box::pin(turns.take(user("b"))), Box::pin(turns.take(user("c"))));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        assert_eq!(turns.0.lock().waiting.iter().map(|(_, requests)| requests.len()).collect::<Vec<_>>(), [1, 1]);
        drop(first);
        // it is called and dropped before it has noticed
        drop(second);
        assert!(third.await.is_some());
        assert!(!turns.0.lock().is_taken);
    }
}
