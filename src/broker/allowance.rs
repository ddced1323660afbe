//! What a client's changes of its session may cost the card.
//!
//! Publications are never counted here. What a client writes by subscribing, unsubscribing, and coming and going with a persistent
//! session is free up to [`FREE`] bytes; beyond them it has [`PER_MINUTE`], and what comes faster waits, with all that its client
//! has sent behind it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Bytes that a client may write at once.
const FREE: u64 = 10_000_000;
/// Bytes that it gets back in a minute.
const PER_MINUTE: u64 = 1_000_000;
/// What a change costs besides its bytes: a sector, since somebody waits for it.
const EACH: u64 = 512;
/// Clients that are known one by one; those beyond them are counted together.
const MOST: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Spent {
    bytes: u64,
    at: Instant,
}

impl Spent {
    fn now(self, now: Instant) -> u64 {
        let back = now.duration_since(self.at).as_millis() as u64 * PER_MINUTE / 60_000;
        self.bytes.saturating_sub(back)
    }
}

/// Who has written how much.
#[derive(Debug, Default)]
pub struct Allowance {
    spent: Mutex<HashMap<Box<str>, Spent>>,
}

impl Allowance {
    /// A client has changed so many bytes of its session.
    pub fn charge(&self, client: &str, bytes: usize) {
        let now = Instant::now();
        let mut spent = self.spent.lock();
        if spent.len() >= MOST && !spent.contains_key(client) {
            spent.retain(|_, known| known.now(now) > 0);
        }
        let key = if spent.len() >= MOST && !spent.contains_key(client) { "" } else { client };
        let known = spent.entry(key.into()).or_insert(Spent { bytes: 0, at: now });
        *known = Spent { bytes: known.now(now) + bytes as u64 + EACH, at: now };
    }

    /// Until when a client must wait with its next change; `None`: it need not.
    pub fn until(&self, client: &str) -> Option<Instant> {
        let now = Instant::now();
        let spent = self.spent.lock();
        let known = spent.get(client).or_else(|| spent.get("").filter(|_| spent.len() >= MOST))?;
        let excess = known.now(now).checked_sub(FREE).filter(|excess| *excess > 0)?;
        Some(now + Duration::from_millis(excess * 60_000 / PER_MINUTE + 1))
    }

    /// Waits until a client may change its session again.
    pub async fn wait(&self, client: &str) {
        while let Some(until) = self.until(client) {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn beyond_what_is_free_a_client_has_a_rate_of_its_own() {
        let allowance = Allowance::default();
        while allowance.until("greedy").is_none() {
            allowance.charge("greedy", 100_000);
        }
        assert!(allowance.until("other").is_none());
        let begin = Instant::now();
        for _ in 0..20 {
            allowance.wait("greedy").await;
            allowance.charge("greedy", 100_000);
        }
        let rate = begin.elapsed();
        assert!((Duration::from_secs(110)..Duration::from_secs(140)).contains(&rate), "2 MB in {rate:?}");
        tokio::time::advance(Duration::from_secs(900)).await;
        assert_eq!(allowance.until("greedy"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_remembers_no_more_clients_than_it_has_room_for() {
        let allowance = Allowance::default();
        for client in 0..2 * MOST {
            allowance.charge(&client.to_string(), 5_000);
        }
        assert!(allowance.spent.lock().len() <= MOST + 1);
        assert!(allowance.until("somebody new").is_some(), "those beyond are counted together");
    }
}
