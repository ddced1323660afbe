//! Limits how much one client may cost all others that publish.
//!
//! All messages pass one lock and one dispatcher, so a client that makes them search for long makes all others wait. The
//! usual cost of a subscription or a publication is covered by its size. But filters can be made such that each searches the
//! whole store of retained messages without a result, and a topic of many levels can visit thousands of filters for a single
//! delivery. A [`Walk`] counts the visited entries. Beyond a free number, and beyond those that lead to messages, it
//! measures processor time.
//!
//! That time is charged to the client that has caused it: the subscriber for retained messages, the publisher for filters,
//! because a topic of few levels visits few of them, whatever filters others have. What a message costs beyond that, because
//! there are thousands of shared subscriptions for it, is charged to their owner ([`super::shared`]). All charged clients
//! share a quarter of the time, and each owner (a user, all guests together, all upstreams together) gets the same part of
//! it. The part of the guests is divided in the same way among their networks, so each of them is a [`PayingAccount`] of its
//! own. Whoever has used up its part waits for its turn before its next search or publication. Clients that are never
//! charged are never looked up here.
//!
//! The debt of an account has no bound. With one, its other clients would begin before the work of all of them is paid off,
//! so a user or network would get more, the more clients it has. But a client that has just connected waits for no more than
//! a few seconds if it is the only one, because it may be honest: one such client of an account begins in each second.
//!
//! The dispatcher charges a publication only when it gets to it, so what may wait for it is limited: a batch of a client has
//! at most [`MOST_DEEP`] changes of topics with more levels than usual, and while such a batch is on its way the next one
//! waits.
//!
//! [`MOST_DEEP`]: crate::message::MOST_DEEP

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::message::{Origin, Owner};
use crate::time::thread_time;

/// The steps of any search that are free.
pub(crate) const FREE_STEPS: usize = 256;
/// The steps that lead to one message or delivery and are covered by it.
pub(super) const STEPS_PER_DELIVERY: usize = 4;
/// Charged searches may use one part in this many of the time.
const PART: u32 = 4;
/// The time that an owner may be charged at once without waiting.
const BURST: Duration = Duration::from_millis(20);
/// Nobody else is served during one search or one batch, so the part of it beyond this time is charged [`DEAR`] times. All
/// that last so long then take less than a hundredth of the time of others.
const AT_ONCE: Duration = Duration::from_millis(10);
const DEAR: u32 = 40;
/// If its account is behind by this much, a client that has just connected waits as well, so that a new client id gives no
/// advantage.
const BEHIND: Duration = Duration::from_secs(1);
/// How long a client that has just connected waits at most, and the least time between two of one account that begin before
/// the account is paid off.
const NEWCOMER: Duration = Duration::from_secs(5);
const NEWCOMERS_APART: Duration = Duration::from_secs(1);
/// The most clients that are tracked separately. Others wait with their account.
const MOST_CLIENTS: usize = 4096;
/// The most accounts that are kept separately. Other networks of guests have one together. Users have at most 248.
const MOST_ACCOUNTS: usize = 512;
/// The networks of so many guests are still known after they have left, because their last publications may be charged only
/// then.
const MOST_DEPARTED: usize = 4096;

/// The progress of a search.
#[derive(Debug, Default)]
pub struct Walk {
    pub(super) steps: usize,
    /// The processor time of the thread when the free steps had been used.
    since: Option<Duration>,
}

/// Does some work. Also returns the processor time that it has used.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let since = thread_time();
    let done = work();
    (done, thread_time().saturating_sub(since))
}

/// Runs a future to its end. Also returns the processor time that it has used.
pub(crate) async fn measured<F: Future>(future: F) -> (F::Output, Duration) {
    let mut future = std::pin::pin!(future);
    let mut spent = Duration::ZERO;
    let output = std::future::poll_fn(|context| {
        // another poll may happen on another thread
        let since = thread_time();
        let polled = future.as_mut().poll(context);
        spent += thread_time().saturating_sub(since);
        polled
    });
    let output = output.await;
    (output, spent)
}

impl Walk {
    /// Continues something that has used up its free steps.
    pub(crate) fn beyond_what_is_free() -> Walk {
        Walk { steps: FREE_STEPS, since: Some(thread_time()) }
    }

    /// The number of steps so far.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Counts visited nodes, values or messages.
    pub(crate) fn visits(&mut self, count: usize) {
        self.steps += count;
        if self.steps > FREE_STEPS && self.since.is_none() {
            self.since = Some(thread_time());
        }
    }

    /// The processor time to charge for a search with this many deliveries.
    pub(crate) fn cost(&self, deliveries: usize) -> Duration {
        let Some(since) = self.since else { return Duration::ZERO };
        let beyond = self.steps - FREE_STEPS;
        let unpaid = beyond.saturating_sub(deliveries * STEPS_PER_DELIVERY);
        if unpaid == 0 {
            return Duration::ZERO;
        }
        thread_time().saturating_sub(since).mul_f64(unpaid as f64 / beyond as f64)
    }
}

/// The time charged to owners and clients.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    is_any: AtomicBool,
    charged: Mutex<Charged>,
}

/// Those who are charged together: all clients of an owner, or the guests of one network, which the origin stands for.
type PayingAccount = (Owner, Option<Origin>);

#[derive(Debug, Default)]
struct Charged {
    /// For each account, the time by which its charge is paid off at its rate.
    accounts: HashMap<PayingAccount, Instant>,
    /// When the last client begins that has just connected and does not wait until its account is paid off.
    newcomers: HashMap<PayingAccount, Instant>,
    /// For each client, the time of its next turn.
    turns: HashMap<(Origin, Owner), Instant>,
    /// For each guest of MQTT, the origin that stands for its network, and the number of its connection.
    networks: HashMap<Origin, (Origin, u64)>,
    /// Those of them that have left, the first one first.
    departed: VecDeque<(Origin, u64)>,
    connections: u64,
}

impl Charged {
    /// The account of a client. A guest whose network is not known has one of its own.
    fn account(&self, origin: Origin) -> PayingAccount {
        if origin.owner != Owner::GUESTS {
            return (origin.owner, None);
        }
        let network = self.networks.get(&origin).map_or(origin, |(network, _)| *network);
        let account = (origin.owner, Some(network));
        if self.accounts.len() >= MOST_ACCOUNTS && !self.accounts.contains_key(&account) {
            return (origin.owner, None);
        }
        account
    }

    /// By how much the time of this account is divided at present: among the owners in debt, and of one owner among its
    /// accounts.
    fn parts(&self, account: PayingAccount, now: Instant) -> u32 {
        let (mut owners, mut accounts, mut seen) = (1, 1, [false; 256]);
        for (other, _) in self.accounts.iter().filter(|(other, until)| **other != account && **until > now) {
            if other.0 == account.0 {
                accounts += 1;
            } else if !std::mem::replace(&mut seen[other.0.index()], true) {
                owners += 1;
            }
        }
        owners * accounts
    }
}

/// A connection of a guest, whose network pays for it. What is charged soon after its end counts for the network too.
#[derive(Debug)]
pub(crate) struct PaidByNetwork {
    meter: Arc<Meter>,
    guest: Origin,
    number: u64,
    may_owe: bool,
}

impl PaidByNetwork {
    /// Records that what the guest has published may cost something after it has left.
    pub(crate) fn may_owe(&mut self) {
        self.may_owe = true;
    }
}

impl Drop for PaidByNetwork {
    fn drop(&mut self) {
        let mut charged = self.meter.charged.lock();
        let mut gone = Some((self.guest, self.number));
        if self.may_owe {
            charged.departed.extend(gone);
            gone = if charged.departed.len() > MOST_DEPARTED { charged.departed.pop_front() } else { None };
        }
        if let Some((guest, number)) = gone
            && charged.networks.get(&guest).is_some_and(|(_, newest)| *newest == number)
        {
            charged.networks.remove(&guest);
        }
    }
}

impl Meter {
    /// Charges a client for the time of one search or one batch. The gateway's own searches and publications are not
    /// charged.
    pub(crate) fn charge(&self, origin: Origin, cost: Duration) {
        self.charge_beside(origin, cost + cost.saturating_sub(AT_ONCE) * DEAR);
    }

    /// Charges a client for work during which others are served.
    pub(crate) fn charge_beside(&self, origin: Origin, cost: Duration) {
        if cost.is_zero() || origin.owner == Owner::HOUSE {
            return;
        }
        let now = Instant::now();
        let mut charged = self.charged.lock();
        let Charged { accounts, newcomers, .. } = &mut *charged;
        accounts.retain(|_, until| *until + BURST * PART > now);
        newcomers.retain(|account, _| accounts.contains_key(account));
        let account = charged.account(origin);
        // an account that has not been charged for long has its whole free time again
        let from = charged.accounts.get(&account).copied().unwrap_or(now - BURST * PART);
        let until = from + cost * PART * charged.parts(account, now);
        charged.accounts.insert(account, until);
        if until <= now {
            return;
        }
        if charged.turns.len() >= MOST_CLIENTS {
            charged.turns.retain(|_, turn| *turn > now);
        }
        if charged.turns.len() < MOST_CLIENTS {
            charged.turns.insert((origin, origin.owner), until);
        }
        self.is_any.store(true, Ordering::Relaxed);
    }

    /// The time until which a client must wait before its next search or publication; `None` if it need not wait.
    pub(crate) fn turn(&self, origin: Origin) -> Option<Instant> {
        if !self.is_any.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        let mut charged = self.charged.lock();
        let turn = match charged.turns.get(&(origin, origin.owner)) {
            Some(turn) => Some(*turn),
            None if charged.turns.len() >= MOST_CLIENTS => charged.accounts.get(&charged.account(origin)).copied(),
            None => None,
        };
        if let Some(turn) = turn
            && turn > now
        {
            return Some(turn);
        }
        charged.turns.remove(&(origin, origin.owner));
        let is_any = !charged.turns.is_empty() || charged.accounts.values().any(|until| *until > now + BEHIND);
        self.is_any.store(is_any, Ordering::Relaxed);
        None
    }

    /// The time until which a client that has just connected must wait.
    pub(crate) fn first_turn(&self, origin: Origin) -> Option<Instant> {
        if !self.is_any.load(Ordering::Relaxed) {
            return None;
        }
        let (mut charged, now) = (self.charged.lock(), Instant::now());
        let account = charged.account(origin);
        let until = *charged.accounts.get(&account)? - BEHIND;
        let after = charged.newcomers.get(&account).map_or(now, |last| *last + NEWCOMERS_APART);
        let early = after.max(now + NEWCOMER);
        if early < until {
            charged.newcomers.insert(account, early);
        }
        (until > now).then_some(until.min(early))
    }

    /// Charges a guest together with its network, which `network` stands for. Users pay for themselves, wherever they are.
    pub(crate) fn paid_by_network(self: &Arc<Meter>, guest: Origin, network: Origin) -> Option<PaidByNetwork> {
        if guest.owner != Owner::GUESTS {
            return None;
        }
        let mut charged = self.charged.lock();
        charged.connections += 1;
        let number = charged.connections;
        charged.networks.insert(guest, (network, number));
        Some(PaidByNetwork { meter: self.clone(), guest, number, may_owe: false })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    fn client(name: &str, user: Option<&str>) -> Origin {
        Origin::client(name).owned_by(Owner::of(user))
    }

    fn network(last: u8) -> Origin {
        Origin::http_from([10, 0, 0, last].into())
    }

    /// A guest of this network publishes something that may cost much, and leaves.
    fn leave(meter: &Arc<Meter>, guest: Origin, network: Origin) {
        meter.paid_by_network(guest, network).unwrap().may_owe();
    }

    async fn pay(meter: &Meter, origin: Origin, cost: Duration, times: u32) {
        for _ in 0..times {
            while let Some(turn) = meter.turn(origin) {
                sleep_until(turn).await;
            }
            meter.charge(origin, cost);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_costs_much_has_a_quarter_of_the_time() {
        let (meter, ms) = (Meter::default(), Duration::from_millis);
        let (greedy, innocent) = (client("greedy", None), client("innocent", None));
        let begin = Instant::now();
        pay(&meter, greedy, ms(5), 4).await;
        assert_eq!(begin.elapsed(), Duration::ZERO, "what is free at once");
        pay(&meter, greedy, ms(5), 100).await;
        assert!((ms(1980)..=ms(2020)).contains(&begin.elapsed()), "500 ms in {:?}", begin.elapsed());
        assert_eq!(meter.turn(innocent), None, "of the same owner, but never charged");
        // the free time comes back, but does not accumulate
        advance(Duration::from_secs(100)).await;
        let begin = Instant::now();
        pay(&meter, greedy, ms(5), 104).await;
        assert!((ms(1980)..=ms(2020)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn many_clients_of_one_owner_are_no_more_than_one_and_owners_share() {
        let (meter, ms) = (Arc::new(Meter::default()), Duration::from_millis);
        let begin = Instant::now();
        let guests: Vec<Origin> = (0..100).map(|number| client(&number.to_string(), None)).collect();
        let _connections: Vec<_> = guests.iter().map(|guest| meter.paid_by_network(*guest, network(1))).collect();
        let all = futures_util::future::join_all(guests.iter().map(|guest| pay(&meter, *guest, ms(5), 3)));
        let user = async {
            advance(ms(1)).await;
            let begin = Instant::now();
            pay(&meter, client("a", Some("ada")), ms(5), 24).await;
            begin.elapsed()
        };
        let (_, user) = tokio::join!(all, user);
        // of three rounds the first two are paid off before the last one
        assert!(begin.elapsed() >= ms(3900), "1,500 ms in {:?}", begin.elapsed());
        // 20 ms are free; of the other 100 ms each takes eight times as long beside the guests
        assert!((ms(700)..=ms(850)).contains(&user), "{user:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn searches_that_make_others_wait_for_long_are_rare() {
        let (meter, ms) = (Meter::default(), Duration::from_millis);
        let greedy = client("greedy", None);
        let begin = Instant::now();
        pay(&meter, greedy, ms(60), 11).await;
        assert!(begin.elapsed() >= ms(10 * 60 * 100), "600 ms in {:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_client_id_is_no_way_out() {
        let meter = Arc::new(Meter::default());
        let begin = Instant::now();
        for number in 0..1000 {
            let origin = client(&number.to_string(), None);
            leave(&meter, origin, network(1));
            while let Some(turn) = meter.turn(origin).or_else(|| meter.first_turn(origin)) {
                sleep_until(turn).await;
            }
            meter.charge(origin, Duration::from_millis(5));
        }
        assert!(begin.elapsed() >= Duration::from_secs(18), "5 s in {:?}", begin.elapsed());
        assert_eq!(meter.first_turn(client("a", Some("ada"))), None);
        assert_eq!(meter.first_turn(Origin::sensor("loft")), None);
        meter.charge(Origin::sensor("loft"), Duration::from_secs(10));
        assert_eq!(meter.turn(Origin::sensor("loft")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn networks_of_guests_have_debts_of_their_own_and_share_one_part() {
        let (meter, ms) = (Arc::new(Meter::default()), Duration::from_millis);
        let meet = |id: &str, last| (client(id, None), meter.paid_by_network(client(id, None), network(last)));
        let greedy = client("greedy", None);
        leave(&meter, greedy, network(1));
        meter.charge(greedy, ms(50));
        let (same, _same) = meet("same", 1);
        let (other, _other) = meet("other", 2);
        assert!(meter.first_turn(same).is_some() && meter.first_turn(network(1)).is_some(), "by every door");
        assert!(meter.first_turn(other).is_none() && meter.first_turn(network(2)).is_none());
        // what another network costs is its own debt, of which it pays off half as much as alone
        let begin = Instant::now();
        pay(&meter, other, ms(5), 12).await;
        assert!((ms(340)..=ms(380)).contains(&begin.elapsed()), "60 ms in {:?}", begin.elapsed());
        assert!(meter.turn(greedy).is_some());
        // a client that has moved is charged where it is
        let (_, _moved) = meet("same", 2);
        assert_eq!(meter.first_turn(same), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_into_a_house_in_debt_waits_a_few_seconds_and_a_crowd_in_turn() {
        let (meter, guest) = (Arc::new(Meter::default()), client("greedy", None));
        let _greedy = meter.paid_by_network(guest, network(1));
        meter.charge(guest, Duration::from_millis(60));
        let begin = Instant::now();
        assert!(meter.turn(guest).unwrap() > begin + Duration::from_secs(5));
        let crowd: Vec<_> = (0..100).map(|id| client(&id.to_string(), None)).collect();
        let _connections: Vec<_> = crowd.iter().map(|guest| meter.paid_by_network(*guest, network(1))).collect();
        let turns: Vec<_> = crowd.iter().filter_map(|guest| meter.first_turn(*guest)).map(|at| at - begin).collect();
        assert_eq!((turns.len(), turns[0]), (100, NEWCOMER));
        let until = meter.turn(guest).unwrap() - BEHIND - begin;
        assert!(turns.windows(2).all(|pair| pair[1] == (pair[0] + NEWCOMERS_APART).min(until)), "{turns:?}");
        // a guest that has published nothing leaves nothing behind
        drop(meter.paid_by_network(client("0", None), network(2)));
        assert!(!meter.charged.lock().networks.contains_key(&client("0", None)));
    }

    #[tokio::test(start_paused = true)]
    async fn it_remembers_no_more_clients_than_it_has_room_for() {
        let meter = Arc::new(Meter::default());
        for number in 0..2 * MOST_CLIENTS {
            let origin = client(&number.to_string(), None);
            leave(&meter, origin, Origin::http_from(std::net::Ipv4Addr::from(number as u32).into()));
            meter.charge(origin, Duration::from_millis(5));
        }
        {
            let charged = meter.charged.lock();
            assert_eq!(charged.turns.len(), MOST_CLIENTS);
            assert_eq!((charged.accounts.len(), charged.networks.len()), (MOST_ACCOUNTS + 1, MOST_DEPARTED));
        }
        assert!(meter.turn(client("7000", None)).is_some(), "it waits with all guests");
        advance(Duration::from_secs(100_000)).await;
        assert_eq!(meter.turn(client("7000", None)), None);
    }

    #[test]
    fn what_leads_to_deliveries_costs_nothing_more() {
        let mut walk = Walk::default();
        walk.visits(FREE_STEPS);
        assert_eq!(walk.cost(0), Duration::ZERO);
        walk.visits(100 * STEPS_PER_DELIVERY);
        assert_eq!(walk.cost(100), Duration::ZERO);
        let begin = thread_time();
        while thread_time() < begin + Duration::from_millis(2) {}
        assert!(walk.cost(99) > Duration::ZERO && walk.cost(0) >= Duration::from_millis(2));
    }
}
