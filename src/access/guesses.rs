//! Limits how fast passwords can be guessed.
//!
//! Every attempt takes a token from a bucket before anything is compared, and a right password gives it back, so only
//! failures count. Without a token the client waits, whether its password is right or wrong, and learns nothing from that.
//!
//! - A user at an address where that user has signed in before has its own bucket, which failures of others do not touch. So
//!   the devices of a house get in while strangers guess.
//! - At any other address an attempt needs a token of the user and a token of the network. So guesses are slow for each
//!   user, whatever addresses they come from, and for each network, whatever users they try.
//!
//! The buckets are tables of a fixed size, indexed by a keyed hash. Memory does not grow with what strangers send, and a
//! user name that does not exist behaves like one that does.

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

    fn give_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
        if self.taken == 0 {
            self.forgiven = None;
        }
    }
}

/// The tokens that an attempt has taken. They are given back if it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuessTaken {
    /// Index of the bucket of a user at a familiar address.
    Familiar(usize),
    /// Indices of the buckets of a user and of a network.
    Strange(usize, usize),
}

/// The buckets of all users and networks.
#[derive(Debug)]
pub(crate) struct Guesses {
    key: RandomState,
    users: Vec<Bucket>,
    networks: Vec<Bucket>,
    pairs: Vec<Bucket>,
}

impl Default for Guesses {
    fn default() -> Self {
        Guesses {
            key: RandomState::new(),
            users: vec![Bucket::default(); USERS],
            networks: vec![Bucket::default(); NETWORKS],
            pairs: vec![Bucket::default(); PAIRS],
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
        if is_familiar {
            let at = index(self.key.hash_one((user, from)), PAIRS);
            if let Some(wait) = self.pairs[at].wait(FAMILIAR, now) {
                return Err(wait);
            }
            self.pairs[at].take(FAMILIAR, now);
            return Ok(GuessTaken::Familiar(at));
        }
        let of_user = index(self.key.hash_one(user), USERS);
        let of_network = index(self.key.hash_one(network(from)), NETWORKS);
        let waits = [self.users[of_user].wait(USER, now), self.networks[of_network].wait(NETWORK, now)];
        if let Some(wait) = waits.into_iter().flatten().max() {
            return Err(wait);
        }
        self.users[of_user].take(USER, now);
        self.networks[of_network].take(NETWORK, now);
        Ok(GuessTaken::Strange(of_user, of_network))
    }

    /// Gives the tokens back, because the password was right.
    pub(crate) fn give_back(&mut self, taken: GuessTaken) {
        match taken {
            GuessTaken::Familiar(at) => self.pairs[at].give_back(),
            GuessTaken::Strange(user, network) => {
                self.users[user].give_back();
                self.networks[network].give_back();
            }
        }
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
        guesses.give_back(taken);
        // a client that guesses from the familiar address is slowed down too
        let count = std::iter::from_fn(|| guesses.take("ada", at("192.0.2.7"), true, now).ok()).count();
        assert_eq!(count, FAMILIAR.burst as usize);
        let wait = guesses.take("ada", at("192.0.2.7"), true, now).unwrap_err();
        assert_eq!(wait, now + FAMILIAR.refill);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_password_costs_nothing() {
        let mut guesses = Guesses::default();
        let now = Instant::now();
        for _ in 0..1000 {
            let taken = guesses.take("ada", at("192.0.2.1"), false, now).unwrap();
            guesses.give_back(taken);
        }
    }
}
