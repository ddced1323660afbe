//! Connections that have been accepted and have not sent a CONNECT yet.
//!
//! Such a connection costs a socket, and its user is unknown, so their number is limited. When the limit is reached, a new
//! connection replaces the one that has waited longest in the network that has most of them. An honest client sends its
//! CONNECT at once, so a client that opens sockets and sends nothing cannot keep others out. Whoever has many networks, as with
//! a /48 of IPv6, cannot be told from many clients. So a few connections from an address from which a user has signed in before
//! only go if there are no others. Connections that were refused and only wait for the client to read the reason go first. The number of all sockets of a network is limited too, in
//! whatever state they are.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::guesses::network;

/// Most connections that may wait.
pub(crate) const MOST: usize = 256;
/// Most connections of one network that go last because a user has signed in from there.
const MOST_FAMILIAR: usize = MOST / 8;

/// All waiting connections, with the one that has waited longest first.
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
    /// `None` if the connection was refused and is about to end.
    network: Option<IpAddr>,
    /// Whether a user has signed in from its address before.
    is_familiar: bool,
    cut: CancellationToken,
}

impl WaitingState {
    /// Removes the connection that has waited longest in the network that has most of them.
    fn take_longest(&mut self) -> Option<Waiting> {
        let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
        for waiting in &self.waiting {
            *counts.entry(waiting.network).or_default() += 1;
        }
        let is_leaving = counts.contains_key(&None);
        let count = |waiting: &Waiting| counts.get(&waiting.network).copied().unwrap_or(0);
        let goes_last = |waiting: &Waiting| waiting.is_familiar && count(waiting) <= MOST_FAMILIAR;
        let others = self.waiting.iter().filter(|waiting| !goes_last(waiting)).map(count).max();
        let most = others.or_else(|| counts.values().copied().max());
        let goes = |waiting: &Waiting| match is_leaving {
            true => waiting.network.is_none(),
            false => Some(count(waiting)) == most && (others.is_none() || !goes_last(waiting)),
        };
        let at = self.waiting.iter().position(goes)?;
        self.waiting.remove(at)
    }
}

/// A place among the waiting connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    room: Arc<WaitingRoom>,
    number: u64,
    cut: CancellationToken,
}

impl WaitingRoom {
    /// Adds a connection from this network, and whether a user has signed in from its address; `None` stands for a connection
    /// that was refused. Also returns whether another connection had to go for it.
    pub(crate) fn enter(self: &Arc<Self>, from: Option<(IpAddr, bool)>) -> (Ticket, bool) {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        let cut = CancellationToken::new();
        let (network, is_familiar) =
            from.map_or((None, false), |(from, is_familiar)| (Some(network(from)), is_familiar));
        state.waiting.push_back(Waiting { number, network, is_familiar, cut: cut.clone() });
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
    /// Counts the connection for this address, which a proxy has named, and from which a user may have signed in before.
    pub(crate) fn is_from(&self, from: IpAddr, is_familiar: bool) {
        let waiting = &mut self.room.state.lock().waiting;
        if let Some(waiting) = waiting.iter_mut().find(|waiting| waiting.number == self.number) {
            (waiting.network, waiting.is_familiar) = (Some(network(from)), is_familiar);
        }
    }

    /// Gives the place back, because the client has sent its CONNECT and other limits apply. Returns whether it still
    /// had the place: otherwise it has been cut and must not become a client, because whoever waits for [`Ticket::cut`]
    /// ends it without the steps that the end of a client takes. After `true` it is never cut.
    pub(crate) fn seated(&self) -> bool {
        let waiting = &mut self.room.state.lock().waiting;
        let place = waiting.iter().position(|waiting| waiting.number == self.number);
        place.and_then(|at| waiting.remove(at)).is_some()
    }

    /// Completes when this connection has to make room for another.
    pub(crate) async fn cut(&self) {
        self.cut.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.seated();
    }
}

/// Counts the open sockets, in whatever state they are.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    by_network: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// Sockets that this host may have in addition to the limit.
const OF_THIS_HOST: usize = 64;

/// A counted socket; dropping it ends the count.
#[derive(Debug)]
pub(crate) struct Socket {
    sockets: Arc<Sockets>,
    network: Option<IpAddr>,
}

impl Sockets {
    /// Counts a new socket from this address, if that is known. Returns `None` if there would be more than `most` in all or
    /// more than `of_network` in its network. This host may always have a few more.
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

impl Socket {
    /// Counts the socket for this address, which a proxy has named. Returns `false` if its network has `of_network` already.
    pub(crate) fn is_from(&mut self, from: IpAddr, of_network: usize) -> bool {
        if self.network.is_some() {
            return true;
        }
        let network = network(from);
        let mut counts = self.sockets.by_network.lock();
        let of_this = counts.1.get(&network).copied().unwrap_or(0);
        if of_this >= of_network && !network.is_loopback() {
            return false;
        }
        counts.1.insert(network, of_this + 1);
        self.network = Some(network);
        true
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

    fn enter(room: &Arc<WaitingRoom>, address: &str) -> (Ticket, bool) {
        room.enter(at(address).map(|from| (from, false)))
    }

    #[test]
    fn whoever_has_most_gives_way_and_those_refused_before_all_others() {
        let room = Arc::new(WaitingRoom::default());
        let (local, _) = enter(&room, "127.0.0.1");
        let (refused, _) = room.enter(None);
        let flood: Vec<Ticket> = (0..2 * MOST).map(|last| enter(&room, &format!("2001:db8::{last:x}")).0).collect();
        assert!(refused.cut.is_cancelled() && !local.cut.is_cancelled());
        assert!(flood[0].cut.is_cancelled() && !flood[2 * MOST - 1].cut.is_cancelled());
        assert_eq!(flood.iter().filter(|ticket| !ticket.cut.is_cancelled()).count(), MOST - 1);
    }

    #[test]
    fn a_few_from_where_a_user_has_signed_in_stay_however_many_networks_come() {
        let room = Arc::new(WaitingRoom::default());
        let familiar = |host: usize| room.enter(at(&format!("192.0.2.{host}")).map(|from| (from, true))).0;
        let known: Vec<Ticket> = (0..4).map(familiar).collect();
        let other_networks = |number: usize| enter(&room, &format!("2001:db8:0:{number:x}::1")).0;
        let flood: Vec<Ticket> = (0..3 * MOST).map(other_networks).collect();
        assert!(known.iter().all(|ticket| !ticket.cut.is_cancelled()));
        assert!(flood[0].cut.is_cancelled());
        drop(flood);
        let many: Vec<Ticket> = (0..MOST).map(|_| familiar(9)).collect();
        let more = other_networks(0);
        assert!(many[0].cut.is_cancelled() && !more.cut.is_cancelled(), "but only a few of a network");
        let all: Vec<Ticket> =
            (10..20 + MOST / MOST_FAMILIAR).flat_map(|host| vec![host; MOST_FAMILIAR]).map(familiar).collect();
        assert!(more.cut.is_cancelled());
        assert_eq!(room.state.lock().waiting.len(), MOST, "and whoever comes last has a place: {}", all.len());
        assert!(!all[all.len() - 1].cut.is_cancelled());
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
    fn clients_behind_a_proxy_are_told_apart() {
        let (room, sockets) = (Arc::new(WaitingRoom::default()), Arc::new(Sockets::default()));
        let through_proxy = |client: &str| {
            let (ticket, _) = enter(&room, "127.0.0.1");
            ticket.is_from(client.parse().unwrap(), false);
            ticket
        };
        let honest = through_proxy("198.51.100.7");
        let flood: Vec<Ticket> = (0..2 * MOST).map(|_| through_proxy("198.51.100.66")).collect();
        assert!(!honest.cut.is_cancelled() && flood[0].cut.is_cancelled());

        let open = |client: &str| {
            let mut socket = sockets.open(None, 10, 6)?;
            socket.is_from(client.parse().unwrap(), 6).then_some(socket)
        };
        let held: Vec<Socket> = (0..20).filter_map(|_| open("198.51.100.66")).collect();
        assert_eq!(held.len(), 6);
        assert!(open("198.51.100.7").is_some());
        drop(held);
        assert_eq!(*sockets.by_network.lock(), (0, HashMap::new()));
    }

    #[test]
    fn the_longest_waiting_goes_for_the_newest() {
        let room = Arc::new(WaitingRoom::default());
        let (first, _) = enter(&room, "192.0.2.1");
        let (second, _) = enter(&room, "192.0.2.1");
        assert!(first.seated());
        let rest: Vec<(Ticket, bool)> = (0..MOST).map(|_| enter(&room, "192.0.2.1")).collect();
        assert!(!first.cut.is_cancelled(), "it does not wait any more");
        assert!(!second.seated(), "it was cut, so it must not become a client");
        assert!(second.cut.is_cancelled() && rest.iter().filter(|(_, has_cut)| *has_cut).count() == 1);
        drop(rest);
        assert!(room.state.lock().waiting.is_empty());
    }
}
