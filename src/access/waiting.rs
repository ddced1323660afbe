//! Connections between accept and CONNECT.
//!
//! They cost a socket and are nobody yet, so there is a bound. When it is reached, one of the network that has most of them
//! is cut for the newest, the one that has waited longest: a client that means it sends its CONNECT at once, and whoever
//! opens sockets and says nothing can keep nobody out. Those that only wait for the client to read why it was refused go
//! before all others. How many sockets a network may have in all is counted too, whatever becomes of them.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::guesses::network;

/// Connections that may wait.
pub(crate) const MOST: usize = 256;

/// All that wait, the longest first.
#[derive(Debug, Default)]
pub(crate) struct WaitingRoom {
    state: Mutex<WaitingState>,
}

#[derive(Debug, Default)]
struct WaitingState {
    next: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// `None`: it has been refused, and is about to go.
    network: Option<IpAddr>,
    cut: CancellationToken,
}

impl WaitingState {
    /// Takes out the one that has waited longest of those who have most.
    fn take_longest(&mut self) -> Option<Waiting> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for waiting in &self.waiting {
            *counts.entry(waiting.network).or_default() += 1;
        }
        let is_leaving = counts.contains_key(&None);
        let most = counts.values().copied().max().unwrap_or(0);
        let goes = |waiting: &Waiting| match is_leaving {
            true => waiting.network.is_none(),
            false => counts.get(&waiting.network) == Some(&most),
        };
        let at = self.waiting.iter().position(goes)?;
        self.waiting.remove(at)
    }
}

/// A place in the waiting room, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    room: Arc<WaitingRoom>,
    number: u64,
    cut: CancellationToken,
}

impl WaitingRoom {
    /// Comes in from there, or, if it is refused already, from nowhere; says whether another had to go for it.
    pub(crate) fn enter(self: &Arc<Self>, from: Option<IpAddr>) -> (Ticket, bool) {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let cut = CancellationToken::new();
        state.waiting.push_back(Waiting { number, network: from.map(network), cut: cut.clone() });
        let longest = if state.waiting.len() > MOST { state.take_longest() } else { None };
        drop(state);
        let has_cut = longest.is_some();
        if let Some(longest) = longest {
            longest.cut.cancel();
        }
        (Ticket { room: self.clone(), number, cut }, has_cut)
    }
}

impl Ticket {
    /// The client has sent its CONNECT: from now on other bounds count.
    pub(crate) fn seated(&self) {
        self.room.state.lock().waiting.retain(|waiting| waiting.number != self.number);
    }

    /// Completes when the connection has to go for another.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seated();
    }
}

/// Sockets that are open, whatever becomes of them.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    by_network: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// Sockets of this host beyond all others.
const OF_THIS_HOST: usize = 64;

/// A socket that is counted, until dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    sockets: Arc<Sockets>,
    network: Option<IpAddr>,
}

impl Sockets {
    /// Counts another one from there, as far as that is known; `None`: there are too many, `most` in all or `of_network` of
    /// its network. This host always has a few more.
    pub(crate) fn open(self: &Arc<Self>, from: Option<IpAddr>, most: usize, of_network: usize) -> Option<Socket> {
        let network = from.map(network);
        let mut counts = self.by_network.lock();
        let (total, by_network) = &mut *counts;
        let of_this = network.and_then(|network| by_network.get(&network).copied()).unwrap_or(0);
        let has_room = match network.is_some_and(|network| network.is_loopback()) {
            true => *total < most + OF_THIS_HOST,
            false => *total < most && of_this < of_network,
        };
        if !has_room {
            return None;
        }
        *total += 1;
        if let Some(network) = network {
            by_network.insert(network, of_this + 1);
        }
        Some(Socket { sockets: self.clone(), network })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut counts = self.sockets.by_network.lock();
        let (total, by_network) = &mut *counts;
        *total -= 1;
        let Some(network) = self.network else { return };
        if let Some(count) = by_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Option<IpAddr> {
        Some(address.parse().unwrap())
    }

    #[test]
    fn whoever_has_most_gives_way_and_those_refused_before_all_others() {
        let room = Arc::new(WaitingRoom::default());
        let (local, _) = room.enter(at("127.0.0.1"));
        let (refused, _) = room.enter(None);
        let flood: Vec<Ticket> = (0..2 * MOST).map(|last| room.enter(at(&format!("2001:db8::{last:x}"))).0).collect();
        assert!(refused.cut.is_cancelled() && !local.cut.is_cancelled());
        assert!(flood[0].cut.is_cancelled() && !flood[2 * MOST - 1].cut.is_cancelled());
        assert_eq!(flood.iter().filter(|ticket| !ticket.cut.is_cancelled()).count(), MOST - 1);
    }

    #[test]
    fn no_network_has_all_sockets_and_this_host_has_some_more() {
        let sockets = Arc::new(Sockets::default());
        let open = |from: &str| sockets.open(at(from), 10, 6);
        let mut held: Vec<Socket> = (0..20).filter_map(|_| open("192.0.2.1")).collect();
        assert_eq!(held.len(), 6);
        held.extend((0..20).filter_map(|_| open("2001:db8::1")));
        assert_eq!(held.len(), 10);
        held.extend((0..100).filter_map(|_| open("::1")));
        assert_eq!(held.len(), 10 + OF_THIS_HOST);
        drop(held);
        assert!(open("192.0.2.1").is_some());
        assert!(sockets.by_network.lock().1.is_empty());
    }

    #[test]
    fn the_longest_waiting_goes_for_the_newest() {
        let room = Arc::new(WaitingRoom::default());
        let (first, _) = room.enter(at("192.0.2.1"));
        let (second, _) = room.enter(at("192.0.2.1"));
        first.seated();
        let rest: Vec<(Ticket, bool)> = (0..MOST).map(|_| room.enter(at("192.0.2.1"))).collect();
        assert!(!first.cut.is_cancelled(), "it does not wait any more");
        assert!(second.cut.is_cancelled() && rest.iter().filter(|(_, has_cut)| *has_cut).count() == 1);
        drop(rest);
        assert!(room.state.lock().waiting.is_empty());
    }
}
