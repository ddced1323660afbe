//! Passwords against hashes.
//!
//! One check takes about 19 MiB and, on a small Pi, a second. So there is one at a time, off the runtime's workers, with
//! a bounded queue in front; who has succeeded once is known by a keyed hash until the configuration is reloaded, and an
//! address that fails waits longer each time. A storm of reconnecting clients so costs one check per user.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::{Output, Salt};
use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, Version};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::authenticate::NOBODY;
use super::hash::verify_mosquitto;

/// Checks that may wait. A client that comes later is told that the broker is busy.
const MAX_WAITING: usize = 256;
/// Addresses whose failures are remembered.
const MAX_ADDRESSES: usize = 1024;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// glibc keeps freed memory for every thread unless the piece was larger than 32 MiB, the most that its threshold for pieces
/// with a mapping of their own rises to. So more is asked for than is used: what is not touched costs nothing, and all of
/// it goes back to the system after each check, whichever thread did it.
const OWN_MAPPING: usize = 33 << 20;

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The password is right.
    Right,
    /// It is not.
    Wrong,
    /// Too many checks wait.
    Busy,
}

/// Checks passwords.
#[derive(Debug)]
pub struct Passwords {
    one_at_a_time: Semaphore,
    waiting: AtomicUsize,
    key: RandomState,
    /// Keyed hash of hash and password, of those that were right.
    known: Mutex<HashMap<Box<str>, u64>>,
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl Default for Passwords {
    fn default() -> Self {
        Passwords {
            one_at_a_time: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            key: RandomState::new(),
            known: Mutex::default(),
            failures: Mutex::default(),
        }
    }
}

impl Passwords {
    /// Forgets who has succeeded.
    pub fn reload(&self) {
        self.known.lock().clear();
    }

    /// Checks `password` against the PHC string `hash` of `user`.
    pub async fn check(&self, user: &str, hash: &str, password: &[u8], from: IpAddr) -> Verdict {
        let fingerprint = self.key.hash_one((hash, password));
        if self.is_known(user, fingerprint) {
            return Verdict::Right;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Verdict::Busy;
        }
        let verdict = self.check_in_turn(user, hash, password, from, fingerprint).await;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        verdict
    }

    async fn check_in_turn(&self, user: &str, hash: &str, password: &[u8], from: IpAddr, fingerprint: u64) -> Verdict {
        let not_before = self.failures.lock().get(&from).map(|(_, until)| *until);
        if let Some(until) = not_before {
            sleep_until(until).await;
        }
        let Ok(_turn) = self.one_at_a_time.acquire().await else { return Verdict::Busy };
        // the same user may have succeeded while we waited
        if self.is_known(user, fingerprint) {
            return Verdict::Right;
        }
        let (hash, password) = (hash.to_owned(), password.to_vec());
        let checked = tokio::task::spawn_blocking(move || verify(&hash, &password).unwrap_or(false));
        if checked.await.unwrap_or(false) {
            self.known.lock().insert(user.into(), fingerprint);
            self.failures.lock().remove(&from);
            Verdict::Right
        } else {
            self.note_failure(from);
            Verdict::Wrong
        }
    }

    fn is_known(&self, user: &str, fingerprint: u64) -> bool {
        self.known.lock().get(user) == Some(&fingerprint)
    }

    fn note_failure(&self, from: IpAddr) {
        let mut failures = self.failures.lock();
        let now = Instant::now();
        failures.retain(|_, (_, until)| *until + 4 * LONGEST_DELAY > now);
        if failures.len() >= MAX_ADDRESSES && !failures.contains_key(&from) {
            return;
        }
        let (count, until) = failures.entry(from).or_insert((0, now));
        *until = now + (FIRST_DELAY * 2u32.saturating_pow(*count)).min(LONGEST_DELAY);
        *count = (*count + 1).min(16);
    }
}

/// Whether the password has this hash; `None` if the hash is not one.
fn verify(hash: &str, password: &[u8]) -> Option<bool> {
    if let Some(is_right) = verify_mosquitto(hash, password) {
        // refusals take as long as elsewhere, so that they do not tell who has such a hash
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
    let mut memory = Vec::with_capacity(params.block_count().max(OWN_MAPPING / Block::SIZE));
    memory.resize(params.block_count(), Block::default());
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

    #[tokio::test(start_paused = true)]
    async fn right_passwords_are_remembered_and_wrong_ones_slow_their_address_down() {
        let passwords = Passwords::default();
        let from: IpAddr = "192.0.2.1".parse().unwrap();
        let hash = hash("secret");
        assert_eq!(passwords.check("u", &hash, b"secret", from).await, Verdict::Right);
        assert!(passwords.known.lock().contains_key("u"));
        let begin = Instant::now();
        for _ in 0..3 {
            assert_eq!(passwords.check("u", &hash, b"guess", from).await, Verdict::Wrong);
        }
        assert!(begin.elapsed() >= FIRST_DELAY + FIRST_DELAY * 2);
        let begin = Instant::now();
        assert_eq!(passwords.check("u", &hash, b"secret", from).await, Verdict::Right);
        assert_eq!(begin.elapsed(), Duration::ZERO, "known: no wait");
        passwords.reload();
        assert_eq!(passwords.check("u", &hash, b"secret", from).await, Verdict::Right);
        assert!(begin.elapsed() >= FIRST_DELAY * 4, "asked again");
    }
}
