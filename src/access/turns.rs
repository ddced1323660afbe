//! Whose password is checked next: one at a time.
//!
//! Users at familiar addresses go first, but after a few of their checks one stranger has a turn, so that nobody who
//! guesses from a familiar address keeps all strangers waiting. Among the familiar, users have turns one after the other,
//! and among strangers networks have. Whoever has not had a turn while others of the same name waited goes before those who
//! have. So a crowd of one user or of one network delays others by little more than one check.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The checks of users at familiar addresses after which one stranger has a turn.
const IN_A_ROW: u32 = 3;

/// Gives turns to those who wait.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<TurnQueues>,
}

#[derive(Debug, Default)]
struct TurnQueues {
    is_taken: bool,
    next: u64,
    familiar: TurnLane,
    strange: TurnLane,
    /// The checks of users at familiar addresses since the last one of a stranger.
    in_a_row: u32,
}

/// Those among whom turns go round.
#[derive(Debug, Default)]
struct TurnLane {
    /// Those who have had no turn since they came.
    fresh: VecDeque<TurnLine>,
    served: VecDeque<TurnLine>,
}

/// The checks of one user or network, in the order of arrival.
#[derive(Debug)]
struct TurnLine {
    whose: u64,
    waiting: VecDeque<(u64, oneshot::Sender<()>)>,
}

impl TurnLane {
    fn push(&mut self, whose: u64, number: u64, call: oneshot::Sender<()>) {
        match self.fresh.iter_mut().chain(&mut self.served).find(|line| line.whose == whose) {
            Some(line) => line.waiting.push_back((number, call)),
            None => self.fresh.push_back(TurnLine { whose, waiting: VecDeque::from([(number, call)]) }),
        }
    }

    fn pop(&mut self) -> Option<oneshot::Sender<()>> {
        let mut line = self.fresh.pop_front().or_else(|| self.served.pop_front())?;
        let next = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.served.push_back(line);
        }
        next.map(|(_, call)| call)
    }

    fn remove(&mut self, whose: u64, number: u64) {
        for lines in [&mut self.fresh, &mut self.served] {
            if let Some(at) = lines.iter().position(|line| line.whose == whose) {
                lines[at].waiting.retain(|(waits, _)| *waits != number);
                if lines[at].waiting.is_empty() {
                    lines.remove(at);
                }
            }
        }
    }
}

impl TurnQueues {
    fn lane(&mut self, is_familiar: bool) -> &mut TurnLane {
        if is_familiar { &mut self.familiar } else { &mut self.strange }
    }

    fn pop(&mut self) -> Option<oneshot::Sender<()>> {
        let first = self.in_a_row < IN_A_ROW;
        self.lane(first).pop().or_else(|| self.lane(!first).pop())
    }
}

/// The turn of one check. Dropping it passes the turn on.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    is_familiar: bool,
}

impl Turns {
    /// Waits for a turn of this user at a familiar address, or of this network; `whose` is a hash of either.
    pub(super) async fn take(self: &Arc<Self>, whose: u64, is_familiar: bool) -> Option<Turn> {
        let mut called = {
            let mut state = self.state.lock();
            if !state.is_taken {
                state.is_taken = true;
                return Some(Turn { turns: self.clone(), is_familiar });
            }
            let (call, called) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.lane(is_familiar).push(whose, number, call);
            Called { turns: self, whose, number, is_familiar, called }
        };
        (&mut called.called).await.ok()?;
        Some(Turn { turns: self.clone(), is_familiar })
    }

    /// Passes the turn to the next check.
    fn pass_on(&self) {
        let mut state = self.state.lock();
        while let Some(next) = state.pop() {
            if next.send(()).is_ok() {
                return;
            }
            // the check was given up while it waited
        }
        state.is_taken = false;
    }

    #[cfg(test)]
    pub(super) fn is_taken(&self) -> bool {
        self.state.lock().is_taken
    }
}

impl Turn {
    /// Notes that this turn takes long, because a password is compared with a hash.
    pub(super) fn takes_long(&self) {
        let in_a_row = &mut self.turns.state.lock().in_a_row;
        *in_a_row = if self.is_familiar { *in_a_row + 1 } else { 0 };
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.pass_on();
    }
}

/// A check that waits for its turn. If it is called and dropped before it notices, the turn goes to the next one.
struct Called<'a> {
    turns: &'a Turns,
    whose: u64,
    number: u64,
    is_familiar: bool,
    called: oneshot::Receiver<()>,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.called.close();
        if self.called.try_recv().is_ok() {
            self.turns.pass_on();
        } else {
            self.turns.state.lock().lane(self.is_familiar).remove(self.whose, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::poll;

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Option<Turn>> + 'a>>;

    fn wait(turns: &Arc<Turns>, whose: u64, is_familiar: bool) -> Waiting<'_> {
        Box::pin(turns.take(whose, is_familiar))
    }

    /// Lets all have their turns, and returns whose they were in order.
    async fn served(mut turn: Turn, mut waiting: Vec<(&'static str, Waiting<'_>)>) -> Vec<&'static str> {
        for (_, wait) in &mut waiting {
            assert!(poll!(wait).is_pending());
        }
        let mut order = Vec::new();
        while !waiting.is_empty() {
            turn.takes_long();
            drop(turn);
            let mut next = None;
            for (at, (_, wait)) in waiting.iter_mut().enumerate() {
                if let std::task::Poll::Ready(taken) = poll!(wait) {
                    next = Some((at, taken.unwrap()));
                    break;
                }
            }
            let (at, taken) = next.expect("somebody has the turn");
            order.push(waiting.remove(at).0);
            turn = taken;
        }
        order
    }

    #[tokio::test]
    async fn a_turn_is_never_lost() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(1, false).await.unwrap();
        let (mut second, mut third) = (wait(&turns, 1, false), wait(&turns, 2, true));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(first);
        // the check of the familiar user is called first and is dropped before it has noticed
        drop(third);
        let mut second = second.await;
        assert!(second.is_some());
        let mut waiting = wait(&turns, 3, false);
        assert!(poll!(&mut waiting).is_pending());
        drop(waiting);
        assert!(turns.state.lock().strange.fresh.is_empty(), "nothing is kept of those who do not wait any more");
        drop(second.take());
        assert!(!turns.is_taken());
    }

    #[tokio::test]
    async fn a_crowd_of_one_delays_others_by_one_check() {
        let turns = Arc::new(Turns::default());
        let turn = turns.take(1, false).await.unwrap();
        let mut waiting: Vec<_> = (0..3).map(|_| ("guesser", wait(&turns, 1, false))).collect();
        waiting.extend((0..2).map(|_| ("another", wait(&turns, 2, false))));
        waiting.push(("honest", wait(&turns, 3, false)));
        let order = served(turn, waiting).await;
        assert_eq!(order, ["guesser", "another", "honest", "guesser", "another", "guesser"]);
    }

    #[tokio::test]
    async fn familiar_users_go_first_and_do_not_keep_strangers_out() {
        let turns = Arc::new(Turns::default());
        let turn = turns.take(9, false).await.unwrap();
        let mut waiting = vec![("stranger", wait(&turns, 7, false)), ("stranger", wait(&turns, 8, false))];
        waiting.extend((0..5).map(|_| ("bob", wait(&turns, 1, true))));
        waiting.push(("ada", wait(&turns, 2, true)));
        let order = served(turn, waiting).await;
        assert_eq!(order, ["bob", "ada", "bob", "stranger", "bob", "bob", "bob", "stranger"]);
    }
}
