//! Limits the memory of packets and bodies that are being received: one budget for all doors.
//!
//! Up to [`FREE`] bytes of a packet are read without a reservation. A larger packet gets its whole size from the budget
//! before more of it is read, in the order of requests; a packet that gets nothing now is read later. No user has more than
//! [`SHARE`] of the budget, so a busy user keeps out nobody else. All guests together are one user. Of those that wait, the
//! guests of a network that holds little are first.
//!
//! A client that has a reservation and does not continue its packet loses it to those that wait: see
//! [`Reservation::is_overdue`]. So does one whose packet comes so slowly that it hardly makes progress, and one with a slow
//! packet whose network holds more than that of somebody who waits. The network that holds most gives way first, and in it
//! the slowest packet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::access::places::PlaceHolder;

/// The bytes that everything being received may use in addition to what is free.
pub(crate) const BUDGET: usize = 32 << 20;
/// The most bytes of it for one user.
pub(crate) const SHARE: usize = BUDGET / 2;
/// The bytes of each packet or body that are read without a reservation.
pub(crate) const FREE: usize = 64 << 10;
/// While others wait, a packet may take this long, plus the time that its bytes need at [`SLOWEST`].
const PATIENCE: Duration = Duration::from_secs(10);
/// While others wait, a packet may have no longer pause than this.
const PAUSE: Duration = Duration::from_secs(3);
/// In bytes per second.
const SLOWEST: u64 = 64 << 10;
/// A packet that comes more slowly than this, in bytes per second, hardly makes progress.
const DRIP: u64 = 4 << 10;
/// A packet has this time before it is judged by its rate.
const GRACE: Duration = Duration::from_secs(2);

/// The user whose packets are counted together.
fn user_of(holder: &PlaceHolder) -> PlaceHolder {
    if holder.is_guest() { PlaceHolder::Guest(None) } else { holder.clone() }
}

#[derive(Debug)]
struct WaitingPacket {
    holder: PlaceHolder,
    user: PlaceHolder,
    bytes: usize,
}

#[derive(Debug)]
struct HeldPacket {
    waited: WaitingPacket,
    /// Since when it is judged by its rate, and what has come since then.
    since: Instant,
    received: Arc<AtomicU64>,
    /// Whether its client is to be ended, unless it is quicker when it looks.
    gives_way: bool,
}

impl HeldPacket {
    /// In bytes per second; `None` if it is not slow, or cannot be judged yet.
    fn slow_rate(&self, now: Instant) -> Option<u64> {
        let time = now.saturating_duration_since(self.since);
        let rate = self.received.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
        (time >= GRACE && rate < SLOWEST as f64).then_some(rate as u64)
    }
}

#[derive(Debug)]
struct Books {
    budget: usize,
    taken: usize,
    /// What users hold; all guests are one.
    shares: HashMap<PlaceHolder, usize>,
    /// What users and networks of guests hold.
    by_holder: HashMap<PlaceHolder, usize>,
    /// The waiting requests by number, in order.
    waiting: BTreeMap<u64, WaitingPacket>,
    held: HashMap<u64, HeldPacket>,
    next: u64,
}

fn subtract(from: &mut HashMap<PlaceHolder, usize>, whose: &PlaceHolder, bytes: usize) {
    if let Some(held) = from.get_mut(whose) {
        *held -= bytes;
        if *held == 0 {
            from.remove(whose);
        }
    }
}

impl Books {
    fn of(budget: usize) -> Books {
        let (shares, by_holder) = (HashMap::new(), HashMap::new());
        let (waiting, held) = (BTreeMap::new(), HashMap::new());
        Books { budget, taken: 0, shares, by_holder, waiting, held, next: 0 }
    }

    fn share(&self) -> usize {
        self.budget / 2
    }

    /// What this user may still have.
    fn left_of(&self, user: &PlaceHolder) -> usize {
        self.share() - self.shares.get(user).copied().unwrap_or(0)
    }

    /// What it could have at once, if nobody else waited.
    fn free_for(&self, user: &PlaceHolder) -> usize {
        self.left_of(user).min(self.budget - self.taken)
    }

    /// What this user or network of guests holds.
    fn held_by(&self, holder: &PlaceHolder) -> usize {
        self.by_holder.get(holder).copied().unwrap_or(0)
    }

    /// Whether this request may have its bytes now: after those that go first and could use what is left. Of one user these
    /// are the requests before which their network has held and asked for less.
    fn is_next(&self, number: u64) -> bool {
        let Some(this) = self.waiting.get(&number) else { return false };
        if this.bytes > self.free_for(&this.user) {
            return false;
        }
        let earlier = self.waiting.range(..number).filter(|(_, other)| other.holder == this.holder);
        let mine = self.held_by(&this.holder) + earlier.map(|(_, other)| other.bytes).sum::<usize>();
        let (mut asked, mut ahead): (HashMap<&PlaceHolder, usize>, HashMap<&PlaceHolder, usize>) = Default::default();
        for (other, waiting) in &self.waiting {
            let before = asked.entry(&waiting.holder).or_insert_with(|| self.held_by(&waiting.holder));
            let is_ahead = match waiting.user == this.user {
                true => (*before, *other) < (mine, number),
                false => *other < number,
            };
            *before += waiting.bytes;
            if is_ahead {
                // requests of one user count only up to its share
                let of_user = ahead.entry(&waiting.user).or_default();
                *of_user = (*of_user + waiting.bytes).min(self.left_of(&waiting.user));
            }
        }
        let before_it = ahead.get(&this.user).copied().unwrap_or(0);
        before_it + this.bytes <= self.left_of(&this.user)
            && self.taken + ahead.values().sum::<usize>() + this.bytes <= self.budget
    }

    /// Those who wait for what this user holds: the same user for its share, or another one for the whole budget.
    fn waiting_for(&self, user: &PlaceHolder) -> impl Iterator<Item = &WaitingPacket> {
        self.waiting.values().filter(move |waiting| {
            waiting.user == *user
                || (waiting.bytes <= self.left_of(&waiting.user) && self.taken + waiting.bytes > self.budget)
        })
    }

    /// The slow packet of this user that gives way first, if those who wait need more than what is free or about to be.
    fn slowest(&self, user: &PlaceHolder, now: Instant) -> Option<u64> {
        let held = || self.held.iter().filter(|(_, held)| held.waited.user == *user);
        let released: usize = held().filter(|(_, held)| held.gives_way).map(|(_, held)| held.waited.bytes).sum();
        let wanted: usize = self.waiting_for(user).map(|waiting| waiting.bytes).sum();
        if wanted <= released + self.free_for(user) {
            return None;
        }
        let least = self.waiting_for(user).map(|waiting| self.held_by(&waiting.holder) + waiting.bytes).min()?;
        let slow = held().filter(|(_, held)| !held.gives_way).filter_map(|(number, held)| {
            let (rate, all) = (held.slow_rate(now)?, self.held_by(&held.waited.holder));
            (rate < DRIP || all > least).then_some((std::cmp::Reverse(all), rate, *number))
        });
        slow.min().map(|(_, _, number)| number)
    }
}

/// The budget. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Receiving {
    books: Arc<Mutex<Books>>,
    freed: Arc<Notify>,
}

impl Default for Receiving {
    fn default() -> Receiving {
        Receiving::of(BUDGET)
    }
}

impl Receiving {
    /// A budget of this many bytes, of which one user may have half.
    pub(crate) fn of(budget: usize) -> Receiving {
        Receiving { books: Arc::new(Mutex::new(Books::of(budget))), freed: Arc::default() }
    }

    /// Requests memory for a packet of this many bytes. A packet that is larger than a user's share counts only as much, and
    /// is read while the user has nothing else.
    pub(crate) fn ask(&self, holder: impl Into<PlaceHolder>, bytes: usize) -> Reservation {
        let holder = holder.into();
        let user = user_of(&holder);
        let mut books = self.books.lock();
        let bytes = bytes.min(books.share());
        let number = books.next;
        books.next += 1;
        books.waiting.insert(number, WaitingPacket { holder, user: user.clone(), bytes });
        drop(books);
        let (receiving, received) = (self.clone(), Arc::default());
        Reservation { receiving, user, bytes, number, overdue_at: None, moved_at: Instant::now(), received }
    }

    /// Whether so many more bytes for a network of guests leave other guests at least as much as it has, or no guest has any
    /// yet, so that what is larger can be had at all. For others it is true.
    pub(crate) fn leaves_as_much(&self, holder: &PlaceHolder, bytes: usize) -> bool {
        let PlaceHolder::Guest(Some(_)) = holder else { return true };
        let books = self.books.lock();
        let left = books.left_of(&user_of(holder));
        left == books.share() || left.checked_sub(bytes).is_some_and(|left| books.held_by(holder) + bytes <= left)
    }

    /// Waits until there is memory for a packet of this many bytes.
    pub(crate) async fn reserve(&self, holder: impl Into<PlaceHolder>, bytes: usize) -> Reservation {
        let mut reservation = self.ask(holder, bytes);
        loop {
            let freed = self.freed.notified();
            if reservation.is_granted() {
                return reservation;
            }
            freed.await;
        }
    }

    /// Notified when memory was released, so that another request is worthwhile. It must be called before the request.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    /// The number of bytes in use.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.books.lock().taken
    }
}

/// A reservation, or a place in the queue for it. It is released when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    receiving: Receiving,
    user: PlaceHolder,
    bytes: usize,
    number: u64,
    /// When others may ask for it, however fast it comes; `None` while it waits.
    overdue_at: Option<Instant>,
    moved_at: Instant,
    /// What has come since it is judged by its rate.
    received: Arc<AtomicU64>,
}

impl Reservation {
    /// Whether the bytes may be received. Takes them if they have become available.
    pub(crate) fn is_granted(&mut self) -> bool {
        if self.overdue_at.is_some() {
            return true;
        }
        let mut guard = self.receiving.books.lock();
        let books = &mut *guard;
        if !books.is_next(self.number) {
            return false;
        }
        let Some(waited) = books.waiting.remove(&self.number) else { return false };
        self.moved_at = Instant::now();
        books.taken += self.bytes;
        *books.shares.entry(waited.user.clone()).or_default() += self.bytes;
        *books.by_holder.entry(waited.holder.clone()).or_default() += self.bytes;
        let (since, received) = (self.moved_at, self.received.clone());
        books.held.insert(self.number, HeldPacket { waited, since, received, gives_way: false });
        drop(guard);
        // the next request in the queue may be granted now
        self.receiving.freed.notify_waiters();
        self.overdue_at = Some(self.moved_at + PATIENCE + Duration::from_secs(self.bytes as u64 / SLOWEST));
        true
    }

    /// When others may ask for it if nothing more comes; `None` if it was not granted.
    fn late_at(&self) -> Option<Instant> {
        Some(self.overdue_at?.min(self.moved_at + PAUSE))
    }

    /// The time from which it may have to be given up if others wait; `None` if it was not granted.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        Some(self.late_at()?.min(self.moved_at + GRACE))
    }

    /// Records that this much more of the packet has arrived.
    pub(crate) fn has_moved(&mut self, bytes: usize) {
        self.moved_at = Instant::now();
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Records that the gateway itself does not read at present, so that the packet is not slow.
    pub(crate) fn is_not_read(&mut self) {
        self.moved_at = Instant::now();
        if let Some(held) = self.receiving.books.lock().held.get_mut(&self.number) {
            held.since = self.moved_at;
            self.received.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it must be given up, because others wait for it, and it has been held for longer than its packet needs or is
    /// one of the slowest.
    pub(crate) fn is_overdue(&self) -> bool {
        let Some(late_at) = self.late_at() else { return false };
        let now = Instant::now();
        let mut books = self.receiving.books.lock();
        // whoever looks has mostly just received something, so it judges all of them and not only itself
        while let Some(slowest) = books.slowest(&self.user, now)
            && let Some(held) = books.held.get_mut(&slowest)
        {
            held.gives_way = true;
        }
        let is_wanted = books.waiting_for(&self.user).next().is_some();
        let Some(held) = books.held.get_mut(&self.number) else { return false };
        held.gives_way &= is_wanted && held.slow_rate(now).is_some();
        held.gives_way |= is_wanted && late_at <= now;
        held.gives_way
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut guard = self.receiving.books.lock();
        let books = &mut *guard;
        books.waiting.remove(&self.number);
        if let Some(HeldPacket { waited, .. }) = books.held.remove(&self.number) {
            books.taken -= waited.bytes;
            subtract(&mut books.shares, &waited.user, waited.bytes);
            subtract(&mut books.by_holder, &waited.holder, waited.bytes);
        }
        drop(guard);
        self.receiving.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn nobody_gets_more_than_there_is_and_a_user_no_more_than_its_share() {
        let receiving = Receiving::default();
        let ask = |user, mib| {
            let mut reservation = receiving.ask(Some(user), mib * MIB);
            let is_granted = reservation.is_granted();
            (reservation, is_granted)
        };
        let of_a: Vec<_> = (0..9).map(|_| ask("a", 2)).collect();
        assert_eq!(of_a.iter().filter(|(_, granted)| *granted).count(), 8, "half of 32 MiB");
        // requests of a user that gets nothing more do not block others
        let of_b: Vec<_> = (0..9).map(|_| ask("b", 2)).collect();
        assert_eq!(of_b.iter().filter(|(_, granted)| *granted).count(), 8);
        assert_eq!(receiving.taken(), BUDGET);
        drop(of_a);
        drop(of_b);
        assert_eq!(receiving.taken(), 0);
        let books = receiving.books.lock();
        assert!(books.shares.is_empty() && books.by_holder.is_empty());
        assert!(books.waiting.is_empty() && books.held.is_empty());
        drop(books);
        let (_huge, granted) = ask("a", 200);
        assert!(granted, "what is larger than all there is, is read alone");
        assert!(ask("b", 16).1 && !ask("a", 1).1);
    }

    #[test]
    fn a_large_one_is_not_passed_by_small_ones_for_ever() {
        let receiving = Receiving::default();
        let mut held: Vec<_> = (0..32).map(|at| receiving.ask(Some(["a", "b", "c"][at % 3]), MIB)).collect();
        assert!(held.iter_mut().all(Reservation::is_granted));
        let mut large = receiving.ask(Some("d"), 4 * MIB);
        for freed in 1..=4 {
            assert!(!large.is_granted(), "{freed}");
            let mut small = receiving.ask(Some("e"), MIB);
            drop(held.pop());
            assert!(!small.is_granted(), "{freed}");
        }
        assert!(large.is_granted());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_no_further_makes_room_for_those_who_wait() {
        let receiving = Receiving::default();
        let mut held: Vec<_> = ["a", "b"].map(|user| receiving.ask(Some(user), SHARE)).into();
        assert!(held.iter_mut().all(Reservation::is_granted));
        tokio::time::advance(Duration::from_secs(10_000)).await;
        assert!(!held[0].is_overdue(), "nobody waits");
        let waiting = tokio::spawn({
            let receiving = receiving.clone();
            async move { receiving.reserve(Some("c"), MIB).await.is_granted() }
        });
        tokio::task::yield_now().await;
        assert!(held[0].is_overdue());
        held.remove(0);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_share_of_its_own_hurries_nobody_else() {
        let receiving = Receiving::default();
        let mut of_a = receiving.ask(Some("a"), SHARE);
        let mut of_b = receiving.ask(Some("b"), MIB);
        assert!(of_a.is_granted() && of_b.is_granted());
        let _waits: Vec<_> = (0..20).map(|_| receiving.ask(Some("a"), 2 * MIB)).collect();
        tokio::time::advance(Duration::from_secs(1000)).await;
        assert!(of_a.is_overdue() && !of_b.is_overdue());
        assert!(receiving.ask(Some("c"), SHARE - MIB).is_granted(), "nor does it stand before others");
    }

    fn guest(host: u8) -> PlaceHolder {
        PlaceHolder::of(None, std::net::IpAddr::from([192, 0, 2, host]))
    }

    #[tokio::test(start_paused = true)]
    async fn guests_that_drip_give_way_to_a_guest_elsewhere_within_seconds() {
        let receiving = Receiving::default();
        let mut crowd: Vec<_> = (0..230).map(|_| receiving.ask(guest(1), 250_000)).collect();
        let granted = crowd.iter_mut().filter_map(|one| one.is_granted().then_some(one.number)).count();
        assert_eq!(granted, SHARE / 250_000);
        let mut honest = receiving.ask(guest(2), 100_000);
        let begin = Instant::now();
        while !honest.is_granted() {
            tokio::time::advance(Duration::from_millis(500)).await;
            // the connections look one after the other, and those that give way come again
            for one in &mut crowd {
                if one.is_granted() {
                    one.has_moved(1);
                    if one.is_overdue() {
                        *one = receiving.ask(guest(1), 250_000);
                    }
                }
            }
        }
        assert!(begin.elapsed() <= Duration::from_millis(2500), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_slowest_of_the_network_with_most_is_first_and_what_makes_progress_stays() {
        let receiving = Receiving::default();
        let ask = |host, mib: usize| {
            let mut reservation = receiving.ask(guest(host), mib * MIB);
            assert!(reservation.is_granted());
            reservation
        };
        let (mut slow, mut slower, mut fast) = (ask(1, 4), ask(1, 4), ask(1, 4));
        let mut alone = ask(2, 4);
        let mut dripping = |seconds: u64| {
            for (reservation, rate) in
                [(&mut slow, 20 << 10), (&mut slower, 10 << 10), (&mut fast, 100 << 10), (&mut alone, 6 << 10)]
            {
                reservation.has_moved(rate * seconds as usize);
            }
            [&slow, &slower, &fast, &alone].map(Reservation::is_overdue)
        };
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(dripping(2), [false; 4], "nobody waits");
        let _waits = receiving.ask(guest(3), MIB);
        assert_eq!(dripping(0), [false, true, false, false], "one of the network with most is enough");
        let _another = receiving.ask(guest(4), 4 * MIB);
        assert_eq!(dripping(0), [true, true, false, false]);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(dripping(2)[2..], [false; 2], "the others make progress, and hold no more than is asked for");
    }
}
