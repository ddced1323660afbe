//! Limits the memory of packets and bodies that are being received: one budget for all doors.
//!
//! Up to [`FREE`] bytes of a packet are read without a reservation. A larger packet gets its whole size from the budget
//! before more of it is read, in the order of requests; a packet that gets nothing now is read later. No user has more than
//! [`SHARE`] of the budget, so a busy user keeps out nobody else. A client that has a reservation and does not continue its
//! packet loses it to those that wait: see [`Reservation::is_overdue`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

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

/// The user whose packets are counted together; `None` stands for clients without a user name.
type PacketsUser = Option<Box<str>>;

#[derive(Debug)]
struct Books {
    budget: usize,
    taken: usize,
    shares: HashMap<PacketsUser, usize>,
    /// The waiting requests, in order.
    waiting: BTreeMap<u64, (PacketsUser, usize)>,
    next: u64,
}

impl Books {
    fn of(budget: usize) -> Books {
        Books { budget, taken: 0, shares: HashMap::new(), waiting: BTreeMap::new(), next: 0 }
    }

    fn share(&self) -> usize {
        self.budget / 2
    }

    fn has_share(&self, user: &PacketsUser, bytes: usize) -> bool {
        self.shares.get(user).is_none_or(|share| share + bytes <= self.share())
    }

    /// Whether this request may have its bytes now: after those that have waited longer and could use what is left.
    fn is_next(&self, number: u64, user: &PacketsUser, bytes: usize) -> bool {
        let mut ahead: HashMap<&PacketsUser, usize> = HashMap::new();
        for (user, bytes) in self.waiting.range(..number).map(|(_, waiting)| waiting) {
            // requests of one user count only up to its share
            let left = self.share() - self.shares.get(user).copied().unwrap_or(0);
            let before = ahead.entry(user).or_default();
            *before = (*before + bytes).min(left);
        }
        self.has_share(user, bytes) && self.taken + ahead.values().sum::<usize>() + bytes <= self.budget
    }

    /// Whether somebody waits for what this user holds: the same user for its share, or another one for the whole budget.
    fn is_wanted(&self, from: &PacketsUser) -> bool {
        self.waiting
            .values()
            .any(|(user, bytes)| user == from || (self.has_share(user, *bytes) && self.taken + bytes > self.budget))
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
    pub(crate) fn ask(&self, user: Option<&str>, bytes: usize) -> Reservation {
        let mut books = self.books.lock();
        let (user, bytes) = (user.map(Into::into), bytes.min(books.share()));
        let number = books.next;
        books.next += 1;
        books.waiting.insert(number, (user.clone(), bytes));
        drop(books);
        Reservation { receiving: self.clone(), user, bytes, number, overdue_at: None, moved_at: Instant::now() }
    }

    /// Waits until there is memory for a packet of this many bytes.
    pub(crate) async fn reserve(&self, user: Option<&str>, bytes: usize) -> Reservation {
        let mut reservation = self.ask(user, bytes);
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
    user: PacketsUser,
    bytes: usize,
    number: u64,
    /// When others may ask for it; `None` while it waits.
    overdue_at: Option<Instant>,
    moved_at: Instant,
}

impl Reservation {
    /// Whether the bytes may be received. Takes them if they have become available.
    pub(crate) fn is_granted(&mut self) -> bool {
        if self.overdue_at.is_some() {
            return true;
        }
        let mut books = self.receiving.books.lock();
        if !books.is_next(self.number, &self.user, self.bytes) {
            return false;
        }
        books.waiting.remove(&self.number);
        books.taken += self.bytes;
        *books.shares.entry(self.user.clone()).or_default() += self.bytes;
        drop(books);
        // the next request in the queue may be granted now
        self.receiving.freed.notify_waiters();
        self.moved_at = Instant::now();
        self.overdue_at = Some(self.moved_at + PATIENCE + Duration::from_secs(self.bytes as u64 / SLOWEST));
        true
    }

    /// The time from which it must be given up if others wait; `None` if it was not granted.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        Some(self.overdue_at?.min(self.moved_at + PAUSE))
    }

    /// Records that more of the packet has arrived.
    pub(crate) fn has_moved(&mut self) {
        self.moved_at = Instant::now();
    }

    /// Whether it has been held for longer than its packet needs, while others wait for it.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue_at().is_some_and(|at| at <= Instant::now()) && self.receiving.books.lock().is_wanted(&self.user)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut books = self.receiving.books.lock();
        if self.overdue_at.is_none() {
            books.waiting.remove(&self.number);
        } else {
            books.taken -= self.bytes;
            let left = books.shares.get(&self.user).map_or(0, |share| share - self.bytes);
            if left == 0 {
                books.shares.remove(&self.user);
            } else {
                books.shares.insert(self.user.clone(), left);
            }
        }
        drop(books);
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
        assert!(receiving.books.lock().shares.is_empty() && receiving.books.lock().waiting.is_empty());
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
}
