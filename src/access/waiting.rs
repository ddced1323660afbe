//! Connections between accept and CONNECT.
//!
//! They cost a socket and are nobody yet, so there is a bound. When it is reached, the one that has waited longest is cut
//! for the newest: a client that means it sends its CONNECT at once, and whoever opens sockets and says nothing can keep
//! nobody out.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Connections that may wait.
pub const MOST: usize = 256;

/// All that wait, the longest first.
#[derive(Debug, Default)]
pub struct WaitingRoom {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    waiting: VecDeque<(u64, CancellationToken)>,
}

/// A place in the waiting room, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    room: Arc<WaitingRoom>,
    number: u64,
    cut: CancellationToken,
}

impl WaitingRoom {
    /// Comes in; says whether another had to go for it.
    pub fn enter(self: &Arc<Self>) -> (Ticket, bool) {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let cut = CancellationToken::new();
        state.waiting.push_back((number, cut.clone()));
        let longest = if state.waiting.len() > MOST { state.waiting.pop_front() } else { None };
        drop(state);
        let has_cut = longest.is_some();
        if let Some((_, longest)) = longest {
            longest.cancel();
        }
        (Ticket { room: self.clone(), number, cut }, has_cut)
    }
}

impl Ticket {
    /// The client has sent its CONNECT: from now on other bounds count.
    pub fn seated(&self) {
        self.room.state.lock().waiting.retain(|(number, _)| *number != self.number);
    }

    /// Completes when the connection has to go for another.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seated();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waiting_goes_for_the_newest() {
        let room = Arc::new(WaitingRoom::default());
        let (first, _) = room.enter();
        let (second, _) = room.enter();
        first.seated();
        let rest: Vec<(Ticket, bool)> = (0..MOST).map(|_| room.enter()).collect();
        assert!(!first.cut.is_cancelled(), "it does not wait any more");
        assert!(second.cut.is_cancelled() && rest.iter().filter(|(_, has_cut)| *has_cut).count() == 1);
        drop(rest);
        assert!(room.state.lock().waiting.is_empty());
    }
}
