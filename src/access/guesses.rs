//! Limits how fast passwords can be guessed.
//!
//! Every attempt takes a token from a bucket before anything is compared. A right password gives it back, and so does a
//! client that goes away before anything was compared, so only failures count. Without a token the client waits, whether its
//! password is right or wrong, and learns nothing from that.
//!
//! - A user at an address where that user has signed in before has its own bucket, which failures of others do not touch. So
//!   the devices of a house get in while strangers guess. All users together at such an address have a bound, too: it
//!   decides how fast their failures are forgiven, and when many are not, each user has only one more. So guesses for some
//!   users do not keep out others who come from the same address.
//! - At any other address an attempt needs a token of the user and a token of the network. So guesses are slow for each
//!   user, whatever addresses they come from, and for each network, whatever users they try.
//!
//! The buckets are tables of a fixed size, indexed by a keyed hash. Memory does not grow with what strangers send, and a
//! user name that does not exist behaves like one that does.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// How many failures are allowed at once, and how long it takes until one of them is forgiven.
#[derive(Clone, Copy, Debug)]
struct GuessRate {
    burst: u32,
    refill: Duration,
}

/// For a user at unfamiliar addresses: 8,640 guesses a day.
const USER: GuessRate = GuessRate { burst: 10, refill: Duration::from_secs(10) };
/// For a network, whatever users it tries.
const NETWORK: GuessRate = GuessRate { burst: 20, refill: Duration::from_secs(2) };
/// For a user at an address where that user has signed in before.
const FAMILIAR: GuessRate = GuessRate { burst: 10, refill: Duration::from_secs(2) };
/// For all users together at an address where they have signed in before.
const HOME: GuessRate = GuessRate { burst: 30, refill: Duration::from_secs(1) };

const USERS: usize = 256;
const NETWORKS: usize = 1024;
const PAIRS: usize = 1024;

/// The network for which guesses are counted: an IPv4 address, or the first 64 bits of an IPv6 address, because a subscriber
/// can choose any address below them.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) if address.is_loopback() => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    taken: u32,
    /// When the first of the tokens taken comes back.
    forgiven: Option<Instant>,
}

impl Bucket {
    fn refresh(&mut self, rate: GuessRate, now: Instant) {
        while self.taken > 0
            && let Some(at) = self.forgiven.filter(|at| *at <= now)
        {
            self.taken -= 1;
            self.forgiven = (self.taken > 0).then(|| at + rate.refill);
        }
    }

    /// When a token will be available; `None` means that there is one now.
    fn wait(&mut self, rate: GuessRate, now: Instant) -> Option<Instant> {
        self.refresh(rate, now);
        if self.taken < rate.burst { None } else { self.forgiven }
    }

    fn take(&mut self, rate: GuessRate, now: Instant) {
        self.taken += 1;
        self.forgiven.get_or_insert(now + rate.refill);
    }

    /// Gives a token back. Returns whether there was none.
    fn give_back(&mut self, rate: GuessRate) -> bool {
        let was_empty = self.taken >= rate.burst;
        self.taken = self.taken.saturating_sub(1);
        if self.taken == 0 {
            self.forgiven = None;
        }
        was_empty
    }
}

/// The attempts of a user at a familiar address.
#[derive(Clone, Debug, Default)]
struct PairBucket {
    under_way: u32,
    /// When each failure is forgiven, in order; no more than [`FAMILIAR`] allows.
    forgiven: VecDeque<Instant>,
}

impl PairBucket {
    fn taken(&mut self, now: Instant) -> u32 {
        while self.forgiven.front().is_some_and(|at| *at <= now) {
            self.forgiven.pop_front();
        }
        self.under_way + self.forgiven.len() as u32
    }
}

/// The attempts of all users in a network at addresses that are familiar.
#[derive(Clone, Copy, Debug, Default)]
struct HomeBucket {
    under_way: u32,
    /// When the last failure is forgiven. They are forgiven one after the other.
    forgiven: Option<Instant>,
}

impl HomeBucket {
    fn taken(&self, now: Instant) -> u32 {
        let left = self.forgiven.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.under_way + left.as_millis().div_ceil(HOME.refill.as_millis()) as u32
    }
}

/// The tokens that an attempt has taken. They are given back if it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuessTaken {
    /// Indices of the buckets of a user at a familiar address and of all users there.
    Familiar(usize, usize),
    /// Indices of the buckets of a user and of a network.
    Strange(usize, usize),
}

/// The buckets of all users and networks.
#[derive(Debug)]
pub(crate) struct Guesses {
    key: RandomState,
    users: Vec<Bucket>,
    networks: Vec<Bucket>,
    pairs: Vec<PairBucket>,
    homes: Vec<HomeBucket>,
}

impl Default for Guesses {
    fn default() -> Self {
        Guesses {
            key: RandomState::new(),
            users: vec![Bucket::default(); USERS],
            networks: vec![Bucket::default(); NETWORKS],
            pairs: vec![PairBucket::default(); PAIRS],
            homes: vec![HomeBucket::default(); NETWORKS],
        }
    }
}

impl Guesses {
    /// Takes tokens for an attempt of this user from this address. The error is the time when it is worth asking again.
    pub(crate) fn take(
        &mut self,
        user: &str,
        from: IpAddr,
        is_familiar: bool,
        now: Instant,
    ) -> Result<GuessTaken, Instant> {
        let index = |hash: u64, len: usize| (hash % len as u64) as usize;
        let of_network = index(self.key.hash_one(network(from)), NETWORKS);
        if is_familiar {
            return self.take_familiar(index(self.key.hash_one((user, from)), PAIRS), of_network, now);
        }
        let of_user = index(self.key.hash_one(user), USERS);
        let waits = [self.users[of_user].wait(USER, now), self.networks[of_network].wait(NETWORK, now)];
        if let Some(wait) = waits.into_iter().flatten().max() {
            return Err(wait);
        }
        self.users[of_user].take(USER, now);
        self.networks[of_network].take(NETWORK, now);
        Ok(GuessTaken::Strange(of_user, of_network))
    }

    fn take_familiar(&mut self, pair: usize, home: usize, now: Instant) -> Result<GuessTaken, Instant> {
        let (of_pair, of_home) = (self.pairs[pair].taken(now), self.homes[home].taken(now));
        if of_pair > 0 && (of_pair >= FAMILIAR.burst || of_home >= HOME.burst) {
            let soon = now + HOME.refill;
            return Err(self.pairs[pair].forgiven.front().map_or(soon, |at| soon.min(*at)));
        }
        self.pairs[pair].under_way += 1;
        self.homes[home].under_way += 1;
        Ok(GuessTaken::Familiar(pair, home))
    }

    /// Gives the tokens back, because the password was right or nothing was compared. Returns whether somebody may have
    /// waited for them.
    pub(crate) fn give_back(&mut self, taken: GuessTaken, now: Instant) -> bool {
        match taken {
            GuessTaken::Familiar(pair, home) => {
                let (pair, home) = (&mut self.pairs[pair], &mut self.homes[home]);
                let was_empty = pair.taken(now) >= FAMILIAR.burst || home.taken(now) >= HOME.burst;
                pair.under_way -= 1;
                home.under_way -= 1;
                was_empty
            }
            GuessTaken::Strange(user, network) => {
                let of_user = self.users[user].give_back(USER);
                self.networks[network].give_back(NETWORK) || of_user
            }
        }
    }

    /// Keeps the tokens of an attempt that has failed until they are forgiven.
    pub(crate) fn failed(&mut self, taken: GuessTaken, now: Instant) {
        // the tokens of strangers come back from the time on when they were taken
        let GuessTaken::Familiar(pair, home) = taken else { return };
        let (pair, home) = (&mut self.pairs[pair], &mut self.homes[home]);
        let of_home = home.forgiven.map_or(now, |last| last.max(now)) + HOME.refill;
        let of_pair = pair.forgiven.back().map_or(now, |last| now.max(*last)) + FAMILIAR.refill;
        pair.under_way -= 1;
        pair.forgiven.push_back(of_pair.max(of_home));
        home.under_way -= 1;
        home.forgiven = Some(of_home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_are_slow_for_a_user_whatever_the_address() {
        let mut guesses = Guesses::default();
        let begin = Instant::now();
        let mut count = 0u32;
        for second in 0..1000u64 {
            let now = begin + Duration::from_secs(second);
            for address in 0..50u32 {
                let from = IpAddr::from([10, 0, (second % 250) as u8, address as u8]);
                count += u32::from(guesses.take("ada", from, false, now).is_ok());
            }
        }
        assert_eq!(count, USER.burst + 99, "one every ten seconds");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_are_slow_for_a_network_whatever_the_user() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        let tries = (0..500).filter(|n: &u16| {
            let from = IpAddr::from([0x2001, 0xdb8, 0, 1, *n, *n, *n, *n]);
            guesses.take(&format!("user {n}"), from, false, now).is_ok()
        });
        assert!(tries.count() <= NETWORK.burst as usize);
        assert_ne!(network(at("2001:db8:0:1::1")), network(at("2001:db8:0:2::1")));
        assert_eq!(network(at("::ffff:192.0.2.1")), at("192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_do_not_slow_down_a_user_at_home() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        while guesses.take("ada", at("192.0.2.1"), false, now).is_ok() {}
        assert!(guesses.take("ada", at("192.0.2.7"), false, now).is_err());
        let taken = guesses.take("ada", at("192.0.2.7"), true, now).unwrap();
        guesses.give_back(taken, now);
        // a client that guesses from the familiar address is slowed down too
        let mut seconds = (0..100).map(|second| guess(&mut guesses, &["ada"], now + Duration::from_secs(second)));
        assert_eq!(seconds.next(), Some(FAMILIAR.burst as usize));
        assert_eq!(seconds.sum::<usize>(), 49, "one in two seconds");
    }

    /// Guesses for these users at an address that is familiar to them, as often as possible, and returns how often that was.
    fn guess(guesses: &mut Guesses, users: &[&str], now: Instant) -> usize {
        let all = users.iter().map(|user| {
            let next = || guesses.take(user, at("192.0.2.7"), true, now).ok();
            let taken: Vec<GuessTaken> = std::iter::from_fn(next).collect();
            taken.iter().for_each(|taken| guesses.failed(*taken, now));
            taken.len()
        });
        all.sum()
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_at_a_familiar_address_are_slow_for_its_network_too() {
        let mut guesses = Guesses::default();
        let names: Vec<String> = (0..20).map(|number| format!("user {number}")).collect();
        let users: Vec<&str> = names.iter().map(String::as_str).collect();
        let now = Instant::now();
        let begun = guess(&mut guesses, &users, now);
        assert!(begun <= HOME.burst as usize + users.len(), "{begun}");
        let more: usize = (1..1000).map(|second| guess(&mut guesses, &users, now + Duration::from_secs(second))).sum();
        assert!((950..1010).contains(&more), "one in a second: {more}");
        // users for whom nobody guesses do not notice, unless they happen to share a bucket
        let now = now + Duration::from_secs(999);
        let taken = (0..20).filter(|number| guesses.take(&format!("ada {number}"), at("192.0.2.7"), true, now).is_ok());
        assert!(taken.count() > 10);
        // those who are right at the same time do not wait for what is forgiven
        let mut guesses = Guesses::default();
        let right = |user: &&str| guesses.take(user, at("192.0.2.7"), true, now).ok();
        let taken: Vec<GuessTaken> = users.iter().cycle().take(200).filter_map(right).collect();
        assert!(taken.len() >= HOME.burst as usize, "{}", taken.len());
        assert!(taken.into_iter().filter(|taken| guesses.give_back(*taken, now)).count() > 0, "others may have waited");
        assert_eq!(guesses.homes.iter().map(|home| home.taken(now)).sum::<u32>(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_password_costs_nothing() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        for _ in 0..1000 {
            let taken = guesses.take("ada", at("192.0.2.1"), false, now).unwrap();
            guesses.give_back(taken, now);
        }
    }
}
