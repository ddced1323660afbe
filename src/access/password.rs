//! Checks passwords against hashes: one check at a time, in turn, and no faster than [guesses](super::guesses) allows.
//!
//! One check takes about 19 MiB and, on a small Pi, about a second. So only one runs at a time, outside the runtime's
//! workers, and it keeps its turn until it is done, also if its client goes away meanwhile. A user whose password was right
//! once is remembered by a keyed hash, in memory only and until the configuration is reloaded, so that a storm of
//! reconnecting clients costs one slow check for each user. This fast comparison needs a token for guessing too, otherwise
//! it would make guessing fast.
//!
//! Users at addresses where they have signed in before are served first. These addresses are kept over restarts; they say
//! nothing about passwords.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{Output, Salt};
use argon2::{Algorithm, Argon2, Params, PasswordHash, Version};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::familiar::Familiar;
use super::guesses::{GuessTaken, Guesses, network};
use super::hash::{self, NOBODY, is_from_mosquitto, memory, verify_mosquitto};
use super::queue::PasswordQueue;
use super::replaced::Replaced;
use super::turns::{Turn, Turns};

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
    known: Arc<Mutex<HashMap<Box<str>, u64>>>,
    guesses: Mutex<Guesses>,
    /// Notified when tokens are given back.
    given_back: Notify,
    queue: PasswordQueue,
    turns: Arc<Turns>,
    /// The addresses from which users have signed in before.
    pub(crate) familiar: Familiar,
    /// Argon2id hashes that have replaced mosquitto's hashes.
    pub(crate) replaced: Replaced,
}

impl Default for Passwords {
    fn default() -> Self {
        Passwords {
            key: RandomState::new(),
            known: Arc::default(),
            guesses: Mutex::default(),
            given_back: Notify::new(),
            queue: PasswordQueue::default(),
            turns: Arc::default(),
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
        // whoever is remembered here waits for nothing, and so needs no place
        let mut guess = if is_familiar { self.guess(attempt, true).ok() } else { None };
        if let Some(guess) = &mut guess
            && self.is_remembered(attempt, guess)
        {
            return self.right(attempt, guess);
        }
        let Some(place) = self.queue.enter(attempt.user, attempt.from, is_familiar) else {
            return PasswordVerdict::Busy;
        };
        let waited = tokio::select! {
            biased;
            () = place.cut() => None,
            waited = self.wait(attempt, is_familiar, guess) => waited,
        };
        let Some((mut guess, turn)) = waited else { return PasswordVerdict::Busy };
        // from here on it does not wait for others
        drop(place);
        let is_right = match turn {
            Some(turn) => self.compare(attempt, turn, &mut guess).await,
            None => true,
        };
        if is_right { self.right(attempt, &mut guess) } else { PasswordVerdict::Wrong }
    }

    /// Waits for a token, and for the turn unless the password is remembered.
    async fn wait<'a>(
        &'a self,
        attempt: &Attempt<'_>,
        is_familiar: bool,
        guess: Option<Guess<'a>>,
    ) -> Option<(Guess<'a>, Option<Turn>)> {
        let mut guess = match guess {
            Some(guess) => guess,
            None => self.token(attempt, is_familiar).await?,
        };
        if is_familiar && self.is_remembered(attempt, &mut guess) {
            return Some((guess, None));
        }
        let whose = match is_familiar {
            true => self.key.hash_one(attempt.user),
            false => self.key.hash_one(network(attempt.from)),
        };
        let turn = self.turns.take(whose, is_familiar).await?;
        // the same user may have signed in while this check waited
        let is_remembered = self.is_remembered(attempt, &mut guess);
        Some((guess, (!is_remembered).then_some(turn)))
    }

    /// Takes a token for guessing. The error is the time when it is worth asking again.
    fn guess(&self, attempt: &Attempt<'_>, is_familiar: bool) -> Result<Guess<'_>, Instant> {
        let taken = self.guesses.lock().take(attempt.user, attempt.from, is_familiar, Instant::now())?;
        Ok(Guess { passwords: self, taken, is_made: false })
    }

    /// Waits for a token for guessing.
    async fn token(&self, attempt: &Attempt<'_>, is_familiar: bool) -> Option<Guess<'_>> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let given_back = self.given_back.notified();
            match self.guess(attempt, is_familiar) {
                Ok(guess) => return Some(guess),
                Err(again) if again >= give_up => return None,
                Err(again) => tokio::select! {
                    () = sleep_until(again) => {}
                    woken = timeout_at(give_up, given_back) => woken.ok()?,
                },
            }
        }
    }

    /// Whether the password is the one that is remembered of this user. Where one is, this is a guess.
    fn is_remembered(&self, attempt: &Attempt<'_>, guess: &mut Guess<'_>) -> bool {
        let Some(hash) = attempt.hash else { return false };
        let known = self.known.lock().get(attempt.user).copied();
        guess.is_made |= known.is_some();
        known == Some(self.fingerprint(hash, attempt.password))
    }

    fn fingerprint(&self, hash: &str, password: &[u8]) -> u64 {
        self.key.hash_one((hash, password))
    }

    async fn compare(&self, attempt: &Attempt<'_>, turn: Turn, guess: &mut Guess<'_>) -> bool {
        guess.is_made = true;
        turn.takes_long();
        let configured = attempt.hash.unwrap_or(attempt.decoy);
        // also for names that do not exist, otherwise the time taken would reveal them
        let against = self.replaced.get(configured).unwrap_or_else(|| configured.to_owned());
        let (is_user, password) = (attempt.hash.is_some(), attempt.password.to_vec());
        let (known, user) = (self.known.clone(), Box::from(attempt.user));
        let fingerprint = self.fingerprint(configured, attempt.password);
        let check = move || {
            let is_right = verify(&against, &password).unwrap_or(false) && is_user;
            let is_weak = is_right && is_from_mosquitto(&against);
            let made = is_weak.then(|| hash::make(&password).ok()).flatten();
            if is_right {
                // also for a client that has gone away meanwhile: it will be back
                known.lock().insert(user, fingerprint);
            }
            // those of the same user who have the turn next find that
            drop(turn);
            (is_right, made)
        };
        let (is_right, made) = tokio::task::spawn_blocking(check).await.unwrap_or_default();
        if let Some(made) = made {
            self.replaced.set(configured, &made);
        }
        is_right
    }

    fn right(&self, attempt: &Attempt<'_>, guess: &mut Guess<'_>) -> PasswordVerdict {
        guess.is_made = false;
        self.familiar.add(attempt.user, attempt.from);
        PasswordVerdict::Right
    }
}

/// An attempt that has a token. When it is dropped, it counts as a failure if a guess was made that was not right.
struct Guess<'a> {
    passwords: &'a Passwords,
    taken: GuessTaken,
    is_made: bool,
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        let (mut guesses, now) = (self.passwords.guesses.lock(), Instant::now());
        if self.is_made {
            guesses.failed(self.taken, now);
        } else if guesses.give_back(self.taken, now) {
            drop(guesses);
            self.passwords.given_back.notify_waiters();
        }
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

    use super::super::queue::MOST;
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
        let guessing: Vec<_> = (0..2 * MOST)
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
        assert!(busy >= MOST, "{busy}");
        assert!(passwords.queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_has_lost_a_guess_only_if_one_was_made() {
        let passwords = Passwords::default();
        let hash = hash("secret");
        let turn = passwords.turns.take(0, false).await.unwrap();
        let guess = attempt("u", &hash, "guess", STRANGER);
        for _ in 0..100 {
            let mut waiting = Box::pin(passwords.check(&guess));
            assert!(futures_util::poll!(&mut waiting).is_pending());
        }
        drop(turn);
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", STRANGER)).await, PasswordVerdict::Right);
        // the password is remembered now, so it has been compared with that before the turn
        let turn = passwords.turns.take(0, false).await.unwrap();
        for _ in 0..10 {
            let mut waiting = Box::pin(passwords.check(&guess));
            assert!(futures_util::poll!(&mut waiting).is_pending());
        }
        let begin = Instant::now();
        assert_eq!(passwords.check(&attempt("u", &hash, "secret", STRANGER)).await, PasswordVerdict::Right);
        assert!(begin.elapsed() > Duration::ZERO, "guesses are made and given up as fast as anybody likes");
        drop(turn);
        assert!(passwords.queue.is_empty());
    }

    #[tokio::test]
    async fn a_check_that_nobody_waits_for_any_more_keeps_its_turn_until_it_is_done() {
        let passwords = Passwords::default();
        let slow = "$argon2id$v=19$m=65536,t=4,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let guess = attempt("u", slow, "guess", STRANGER);
        let mut check = Box::pin(passwords.check(&guess));
        assert!(futures_util::poll!(&mut check).is_pending());
        drop(check);
        assert!(passwords.turns.is_taken(), "it still has its memory");
        assert!(passwords.turns.take(0, true).await.is_some());
    }
}
