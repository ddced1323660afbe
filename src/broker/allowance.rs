//! Limits how much users may write to the card by changing their sessions.
//!
//! Publications do not count here. Subscribing, unsubscribing, connecting and disconnecting with a persistent session is
//! free up to [`FREE`] bytes for each user. After that a user gets [`PER_MINUTE`]; a faster change waits, and with it
//! everything that its client has sent after it. All client ids of a user share one allowance. All clients without a user
//! name share one too, of which one network may use the part [`OF_A_NETWORK`].

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::access::places::PlaceHolder;

/// Bytes that a user may write at once.
const FREE: u64 = 10_000_000;
/// Bytes that a user gets back in a minute.
const PER_MINUTE: u64 = 1_000_000;
/// Percentage of both for one network of clients without a user name, so that others keep a part.
const OF_A_NETWORK: u64 = 80;
/// The cost of a change in addition to its bytes: a sector, because a client waits for the write.
const EACH: u64 = 512;
/// Users and networks that are counted separately. All others are counted together.
const MOST: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Spent {
    bytes: u64,
    at: Instant,
}

impl Spent {
    fn now(self, now: Instant, per_minute: u64) -> u64 {
        let back = now.duration_since(self.at).as_millis() as u64 * per_minute / 60_000;
        self.bytes.saturating_sub(back)
    }
}

/// The bytes that a holder may write at once, and those that it gets back in a minute.
fn terms(holder: &PlaceHolder) -> (u64, u64) {
    match holder {
        PlaceHolder::Guest(Some(_)) => (FREE * OF_A_NETWORK / 100, PER_MINUTE * OF_A_NETWORK / 100),
        _ => (FREE, PER_MINUTE),
    }
}

/// The holder for all beyond [`MOST`]. No user can have this name.
fn others(holder: &PlaceHolder) -> PlaceHolder {
    if holder.is_guest() { PlaceHolder::Guest(None) } else { PlaceHolder::User("".into()) }
}

/// The bytes that each holder has written.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    spent: Mutex<HashMap<PlaceHolder, Spent>>,
}

impl Allowance {
    /// Records that a client of this holder has written `bytes` by changing its session.
    pub(crate) fn charge(&self, holder: &PlaceHolder, bytes: usize) {
        let now = Instant::now();
        let mut spent = self.spent.lock();
        let is_crowded = spent.len() >= MOST && !spent.contains_key(holder);
        if is_crowded {
            spent.retain(|holder, known| known.now(now, terms(holder).1) > 0);
        }
        let key = if spent.len() >= MOST && is_crowded { others(holder) } else { holder.clone() };
        let all = (holder.is_guest() && key != PlaceHolder::Guest(None)).then_some(PlaceHolder::Guest(None));
        for key in all.into_iter().chain([key]) {
            let per_minute = terms(&key).1;
            let known = spent.entry(key).or_insert(Spent { bytes: 0, at: now });
            *known = Spent { bytes: known.now(now, per_minute) + bytes as u64 + EACH, at: now };
        }
    }

    /// The time until which the clients of a holder must wait with their next change; `None` if they need not wait.
    pub(crate) fn until(&self, holder: &PlaceHolder) -> Option<Instant> {
        let now = Instant::now();
        let spent = self.spent.lock();
        let own = if spent.contains_key(holder) { holder.clone() } else { others(holder) };
        let all = holder.is_guest().then_some(PlaceHolder::Guest(None));
        let until = |key: PlaceHolder| {
            let (free, per_minute) = terms(&key);
            let excess = spent.get(&key)?.now(now, per_minute).checked_sub(free).filter(|excess| *excess > 0)?;
            Some(now + Duration::from_millis(excess * 60_000 / per_minute + 1))
        };
        all.into_iter().chain([own]).filter_map(until).max()
    }

    /// The holders that have written something.
    #[cfg(test)]
    pub(crate) fn holders(&self) -> std::collections::HashSet<PlaceHolder> {
        self.spent.lock().keys().cloned().collect()
    }

    /// Waits until the clients of a holder may change their sessions again.
    pub(crate) async fn wait(&self, holder: &PlaceHolder) {
        while let Some(until) = self.until(holder) {
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn user(name: &str) -> PlaceHolder {
        PlaceHolder::User(name.into())
    }

    fn guest(last: u8) -> PlaceHolder {
        PlaceHolder::of(None, IpAddr::from([192, 0, 2, last]))
    }

    /// Writes until the holder has to wait, and returns the number of bytes.
    fn exhaust(allowance: &Allowance, holder: &PlaceHolder) -> usize {
        let mut written = 0;
        while allowance.until(holder).is_none() {
            allowance.charge(holder, 100_000);
            written += 100_000;
        }
        written
    }

    /// The time that it takes to write 2 MB more.
    async fn two_more(allowance: &Allowance, holder: &PlaceHolder) -> Duration {
        let begin = Instant::now();
        for _ in 0..20 {
            allowance.wait(holder).await;
            allowance.charge(holder, 100_000);
        }
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_what_is_free_a_user_has_a_rate_of_its_own() {
        let allowance = Allowance::default();
        assert_eq!(exhaust(&allowance, &user("greedy")), 10_000_000);
        assert!(allowance.until(&user("other")).is_none());
        assert!(allowance.until(&guest(1)).is_none());
        let rate = two_more(&allowance, &user("greedy")).await;
        assert!((Duration::from_secs(110)..Duration::from_secs(140)).contains(&rate), "2 MB in {rate:?}");
        tokio::time::advance(Duration::from_secs(900)).await;
        assert_eq!(allowance.until(&user("greedy")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn guests_are_one_user_and_one_network_leaves_something_to_others() {
        let allowance = Allowance::default();
        let written: Vec<usize> = (1..5).map(|network| exhaust(&allowance, &guest(network))).collect();
        assert_eq!(written[0], 8_000_000);
        let all: usize = written.iter().sum();
        assert!((9_900_000..10_400_000).contains(&all), "{written:?}");
        assert!(allowance.until(&guest(200)).is_some(), "together they have no more than one user");
        assert!(allowance.until(&user("ada")).is_none());
        tokio::time::advance(Duration::from_secs(3600)).await;
        exhaust(&allowance, &guest(1));
        let rate = two_more(&allowance, &guest(1)).await;
        assert!((Duration::from_secs(135)..Duration::from_secs(170)).contains(&rate), "2 MB in {rate:?}");
        assert!(allowance.until(&guest(2)).is_none(), "the others have what is left");
    }

    #[tokio::test(start_paused = true)]
    async fn it_remembers_no_more_than_it_has_room_for() {
        let allowance = Allowance::default();
        for number in 0..2 * MOST {
            allowance.charge(&user(&number.to_string()), 5_000);
        }
        assert!(allowance.spent.lock().len() <= MOST + 1);
        assert!(allowance.until(&user("somebody new")).is_some(), "those beyond are counted together");
    }
}
