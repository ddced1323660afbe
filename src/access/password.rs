//! Checks passwords against hashes: one check at a time, in turn, and no faster than [guesses](super::guesses) allows.
//!
//! One check takes about 19 MiB and, on a small Pi, about a second. So only one runs at a time, outside the runtime's
//! workers. A user whose password was right once is remembered by a keyed hash, in memory only and until the configuration
//! is reloaded, so that a storm of reconnecting clients costs one slow check for each user. This fast comparison needs a
//! token for guessing too, otherwise it would make guessing fast.
//!
//! Users at addresses where they have signed in before are served first. These addresses are kept over restarts; they say
//! nothing about passwords.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use argon2::password_hash::{Output, Salt};
use argon2::{Algorithm, Argon2, Params, PasswordHash, Version};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::familiar::Familiar;
use super::guesses::{GuessTaken, Guesses, network};
use super::hash::{self, NOBODY, is_from_mosquitto, memory, verify_mosquitto};
use super::replaced::Replaced;

/// Most checks that may wait. Clients that come later are told that the broker is busy.
const MAX_WAITING: usize = 1024;
/// Most checks of one network that may wait.
const MAX_OF_NETWORK: usize = 256;
/// Most checks of users at familiar addresses that may wait in addition.
const MAX_FAMILIAR: usize = 1024;
/// The longest time for which a client waits for a token.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PasswordVerdict {
    Right,
    Wrong,
    /// Too many checks are waiting, or too many passwords were wrong. Nothing was compared.
    Busy,
}

/// A password to check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) user: &'a str,
    /// The hash of the user's password; `None` if there is no such user or the user has no password.
    pub(crate) hash: Option<&'a str>,
    /// The hash to check instead if `hash` is `None`, so that the check takes as long.
    pub(crate) decoy: &'a str,
    pub(crate) password: &'a [u8],
    pub(crate) from: IpAddr,
}

#[derive(Debug)]
pub(crate) struct Passwords {
    key: RandomState,
    /// For each hash, a keyed hash of it and of the password that was right.
    known: Mutex<HashMap<Box<str>, u64>>,
    guesses: Mutex<Guesses>,
    /// Notified when tokens are given back.
    given_back: Notify,
    waiting: Mutex<PasswordQueue>,
    turns: Turns,
    /// The addresses from which users have signed in before.
    pub(crate) familiar: Familiar,
    /// Argon2id hashes that have replaced mosquitto's hashes.
    pub(crate) replaced: Replaced,
}

impl Default for Passwords {
    fn default() -> Self {
        Passwords {
            key: RandomState::new(),
            known: Mutex::default(),
            guesses: Mutex::default(),
            given_back: Notify::new(),
            waiting: Mutex::default(),
            turns: Turns::default(),
            familiar: Familiar::default(),
            replaced: Replaced::default(),
        }
    }
}

impl Passwords {
    /// Forgets which passwords were right.
    pub(crate) fn reload(&self) {
        self.known.lock().clear();
    }

    pub(crate) async fn check(&self, attempt: &Attempt<'_>) -> PasswordVerdict {
        let is_familiar = attempt.hash.is_some() && self.familiar.knows(attempt.user, attempt.from);
        let Some(_place) = self.enter(attempt.from, is_familiar) else { return PasswordVerdict::Busy };
        let Some(taken) = self.token(attempt, is_familiar).await else { return PasswordVerdict::Busy };
        let is_right = self.compare(attempt, is_familiar).await;
        if !is_right {
            return PasswordVerdict::Wrong;
        }
        self.guesses.lock().give_back(taken);
        self.given_back.notify_waiters();
        self.familiar.add(attempt.user, attempt.from);
        PasswordVerdict::Right
    }

    /// Joins the waiting checks; `None` if there are too many.
    fn enter(&self, from: IpAddr, is_familiar: bool) -> Option<QueuePlace<'_>> {
        let network = (!is_familiar).then(|| network(from));
        let has_room = self.waiting.lock().enter(network);
        // created only if there is room, because dropping it gives the place back
        has_room.then(|| QueuePlace { waiting: &self.waiting, network })
    }

    /// Waits for a token for guessing.
    async fn token(&self, attempt: &Attempt<'_>, is_familiar: bool) -> Option<GuessTaken> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let given_back = self.given_back.notified();
            let now = Instant::now();
            let taken = self.guesses.lock().take(attempt.user, attempt.from, is_familiar, now);
            match taken {
                Ok(taken) => return Some(taken),
                Err(again) if again >= give_up => return None,
                Err(again) => tokio::select! {
                    () = sleep_until(again) => {}
                    woken = timeout_at(give_up, given_back) => woken.ok()?,
                },
            }
        }
    }

    async fn compare(&self, attempt: &Attempt<'_>, is_familiar: bool) -> bool {
        let configured = attempt.hash.unwrap_or(attempt.decoy);
        let fingerprint = self.key.hash_one((configured, attempt.password));
        let is_known = || attempt.hash.is_some() && self.known.lock().get(attempt.user) == Some(&fingerprint);
        if is_known() {
            return true;
        }
        let Some(_turn) = self.turns.take(is_familiar).await else { return false };
        // the same user may have signed in while this check waited
        if is_known() {
            return true;
        }
        // also for names that do not exist, otherwise the time taken would reveal them
        let against = self.replaced.get(configured).unwrap_or_else(|| configured.to_owned());
        let (is_user, password) = (attempt.hash.is_some(), attempt.password.to_vec());
        let check = move || {
            let is_right = verify(&against, &password).unwrap_or(false) && is_user;
            let is_weak = is_right && is_from_mosquitto(&against);
            (is_right, is_weak.then(|| hash::make(&password).ok()).flatten())
        };
        let (is_right, made) = tokio::task::spawn_blocking(check).await.unwrap_or_default();
        if let Some(made) = made {
            self.replaced.set(configured, &made);
        }
        if is_right {
            self.known.lock().insert(attempt.user.into(), fingerprint);
        }
        is_right
    }
}

/// The numbers of waiting checks.
#[derive(Debug, Default)]
struct PasswordQueue {
    familiar: usize,
    strange: usize,
    of_network: HashMap<IpAddr, usize>,
}

impl PasswordQueue {
    /// `None` stands for a user at a familiar address.
    fn enter(&mut self, network: Option<IpAddr>) -> bool {
        let Some(network) = network else {
            let has_room = self.familiar < MAX_FAMILIAR;
            self.familiar += usize::from(has_room);
            return has_room;
        };
        let of_network = self.of_network.get(&network).copied().unwrap_or(0);
        let has_room = self.strange < MAX_WAITING && of_network < MAX_OF_NETWORK;
        if has_room {
            self.strange += 1;
            *self.of_network.entry(network).or_default() += 1;
        }
        has_room
    }

    fn leave(&mut self, network: Option<IpAddr>) {
        let Some(network) = network else {
            self.familiar -= 1;
            return;
        };
        self.strange -= 1;
        if let Some(count) = self.of_network.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                self.of_network.remove(&network);
            }
        }
    }
}

/// A place among the waiting checks, given back when dropped.
struct QueuePlace<'a> {
    waiting: &'a Mutex<PasswordQueue>,
    network: Option<IpAddr>,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.waiting.lock().leave(self.network);
    }
}

/// Serves one check at a time, with users at familiar addresses first.
#[derive(Debug, Default)]
struct Turns {
    state: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    is_taken: bool,
    familiar: VecDeque<oneshot::Sender<()>>,
    strange: VecDeque<oneshot::Sender<()>>,
}

/// The turn of one check. Dropping it passes the turn on.
struct Turn<'a>(&'a Turns);

impl Turns {
    async fn take(&self, is_familiar: bool) -> Option<Turn<'_>> {
        let called = {
            let mut state = self.state.lock();
            if !state.is_taken {
                state.is_taken = true;
                return Some(Turn(self));
            }
            let (call, called) = oneshot::channel();
            if is_familiar {
                state.familiar.push_back(call)
            } else {
                state.strange.push_back(call)
            }
            called
        };
        let mut called = Called { turns: self, called };
        (&mut called.called).await.ok()?;
        Some(Turn(self))
    }

    /// Passes the turn to the next check.
    fn pass_on(&self) {
        let mut state = self.state.lock();
        while let Some(next) = state.familiar.pop_front().or_else(|| state.strange.pop_front()) {
            if next.send(()).is_ok() {
                return;
            }
            // the check was given up while it waited
        }
        state.is_taken = false;
    }
}

/// A check that waits for its turn. If it is called and dropped before it notices, the turn goes to the next one.
struct Called<'a> {
    turns: &'a Turns,
    called: oneshot::Receiver<()>,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.called.close();
        if self.called.try_recv().is_ok() {
            self.turns.pass_on();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.pass_on();
    }
}

/// Whether the password matches this hash; `None` if the text is no valid hash.
fn verify(hash: &str, password: &[u8]) -> Option<bool> {
    if let Some(is_right) = verify_mosquitto(hash, password) {
        // a refusal takes as long as with argon2id, so that it does not reveal who has a hash of mosquitto's
        if !is_right {
            verify(NOBODY, password)?;
        }
        return Some(is_right);
    }
    let hash = PasswordHash::new(hash).ok()?;
    let algorithm = Algorithm::try_from(hash.algorithm).ok()?;
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    let params = Params::try_from(&hash).ok()?;
    let (expected, salt) = hash.hash.zip(hash.salt)?;
    let mut salt_bytes = [0; Salt::MAX_LENGTH];
    let salt = salt.decode_b64(&mut salt_bytes).ok()?;
    let memory = memory(&params);
    let mut computed = [0; Output::MAX_LENGTH];
    let computed = &mut computed[..expected.len()];
    Argon2::new(algorithm, version, params).hash_password_into_with_memory(password, salt, computed, memory).ok()?;
    // `Output` compares in constant time
    Some(Output::new(computed).ok()? == expected)
}

#[cfg(test)]
mod tests {
    use argon2::PasswordHasher;
    use argon2::password_hash::SaltString;

    use super::*;

    fn hash(password: &str) -> String {
        let salt = SaltString::encode_b64(b"0123456789abcdef").unwrap();
        let cheap = Argon2::new(
            argon2::Algorithm::Argon2id,
            argon2::Version::V0x13,
            argon2::Params::new(8, 1, 1, None).unwrap(),
        );
        cheap.hash_password(password.as_bytes(), &salt).unwrap().to_string()
    }

    fn attempt<'a>(user: &'a str, hash: &'a str, password: &'a str, from: &str) -> Attempt<'a> {
        let from = from.parse().unwrap();
        Attempt { user, hash: Some(hash), decoy: hash, password: password.as_bytes(), from }
    }

    const HOME: &str = "192.0.2.1";
    const STRANGER: &str = "198.51.100.1";

    #[tokio::test(start_paused = true)]
    async fn guesses_wait_right_or_wrong_and_users_at_home_do_not() {
        let passwords = Passwords::default();
        let hash = hash("secret");
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", HOME)).await, PasswordVerdict::Right);
        let begin = Instant::now();
        let mut wrong = 0;
        while begin.elapsed() < Duration::from_secs(1) {
            assert_eq!(passwords.check(&attempt("u", &hash, "guess", STRANGER)).await, PasswordVerdict::Wrong);
            wrong += 1;
        }
        assert_eq!(wrong, 11, "ten at once, and then one by one");
        // the time taken does not tell the right password from a wrong one
        let begin = Instant::now();
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", "198.51.100.2")).await, PasswordVerdict::Right);
        assert!(begin.elapsed() >= Duration::from_secs(9), "{:?}", begin.elapsed());
        let begin = Instant::now();
        passwords.reload();
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", HOME)).await, PasswordVerdict::Right);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_network_waits_for_leaves_room_for_others() {
        let passwords = std::sync::Arc::new(Passwords::default());
        let hash = hash("secret");
        let guessing: Vec<_> = (0..2 * MAX_OF_NETWORK)
            .map(|number| {
                let (passwords, hash) = (passwords.clone(), hash.clone());
                let user = format!("user {number}");
                tokio::spawn(async move { passwords.check(&attempt(&user, &hash, "guess", STRANGER)).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", HOME)).await, PasswordVerdict::Right);
        let mut busy = 0;
        for guess in guessing {
            busy += usize::from(guess.await.unwrap() == PasswordVerdict::Busy);
        }
        assert!(busy >= MAX_OF_NETWORK, "{busy}");
        assert_eq!(passwords.waiting.lock().strange, 0);
    }

    #[tokio::test]
    async fn a_turn_is_never_lost() {
        let turns = Turns::default();
        let first = turns.take(false).await.unwrap();
        let mut second = Box::pin(turns.take(false));
        let mut third = Box::pin(turns.take(true));
        assert!(futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending());
        drop(first);
        // the check of the familiar user is called first and is dropped before it has noticed
        drop(third);
        assert!(second.await.is_some());
    }
}
