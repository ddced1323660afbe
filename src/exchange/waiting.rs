//! Limits the memory of messages that wait for clients.
//!
//! Each inbox is bounded, and so are messages in flight to a client, but there are many clients. The memory of all messages
//! on their way is counted where they are made ([`crate::message::alive`]), each once, however many clients it waits for. In
//! addition the bytes that wait for each user's clients are counted, including unacknowledged ones; guests are one user. If
//! there is not enough memory, the decision is the same as elsewhere ([`crate::access::quota`]): the largest user is refused
//! first.
//!
//! [`FREE`] bytes of each client, and [`FREE_OF_A_USER`] of a user, are never refused, so a client that reads finds room
//! whatever others have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::access::limiter::Limiter;
use crate::access::quota::has_room;
use crate::message::alive;

/// The bytes for a single user; all together may have a quarter more.
pub(crate) const MOST: usize = 32 << 20;
/// The bytes that a client may always have.
pub(crate) const FREE: usize = 64 << 10;
/// The bytes that all clients of a user together may always have, so that users with few messages find room whatever others
/// have.
pub(crate) const FREE_OF_A_USER: usize = 512 << 10;
/// The most unacknowledged bytes of a client, in addition to its last message.
pub(crate) const IN_FLIGHT: usize = 1 << 20;

/// A user, with the bytes that wait for its clients.
#[derive(Debug)]
struct Payer {
    name: Arc<str>,
    held: AtomicUsize,
}

#[derive(Debug)]
struct Accounts {
    most: AtomicUsize,
    /// The memory of all messages, each counted once.
    alive: fn() -> usize,
    payers: Mutex<HashMap<Arc<str>, Weak<Payer>>>,
    /// The log lines about slow readers.
    said: Limiter,
}

/// The memory of messages that wait for clients. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryMemory(Arc<Accounts>);

impl DeliveryMemory {
    /// Memory of which a single user may have `most` bytes.
    pub(crate) fn new(most: usize) -> DeliveryMemory {
        DeliveryMemory::measured(most, alive)
    }

    /// The same, with a function that returns the memory of all messages.
    pub(crate) fn measured(most: usize, alive: fn() -> usize) -> DeliveryMemory {
        DeliveryMemory(Arc::new(Accounts {
            most: AtomicUsize::new(most),
            alive,
            payers: Mutex::default(),
            said: Limiter::default(),
        }))
    }

    /// Changes the limit for a single user.
    pub(crate) fn set_most(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    fn most(&self) -> usize {
        self.0.most.load(Ordering::Relaxed)
    }

    /// The account of this user.
    pub(crate) fn account(&self, user: &str) -> Account {
        let mut payers = self.0.payers.lock();
        if let Some(payer) = payers.get(user).and_then(Weak::upgrade) {
            return Account { waiting: self.clone(), payer };
        }
        payers.retain(|_, payer| payer.strong_count() > 0);
        let payer = Arc::new(Payer { name: user.into(), held: AtomicUsize::new(0) });
        payers.insert(payer.name.clone(), Arc::downgrade(&payer));
        Account { waiting: self.clone(), payer }
    }

    /// Whether memory is scarce enough that a message should keep only itself in memory.
    pub(crate) fn is_tight(&self) -> bool {
        (self.0.alive)() > self.most() / 2
    }

    /// Whether a single user that had everything in use would be refused more.
    pub(crate) fn is_short(&self) -> bool {
        (self.0.alive)() > self.most()
    }

    /// Whether nobody gets more than what is free.
    pub(crate) fn is_full(&self) -> bool {
        (self.0.alive)() > self.most() / 4 * 5
    }
}

/// The account of one user.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    waiting: DeliveryMemory,
    payer: Arc<Payer>,
}

impl Account {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.payer.name
    }

    /// The bytes that wait for the user's clients.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.payer.held.load(Ordering::Relaxed)
    }

    /// Whether this event of a client of the user is logged now, see [`Limiter::due`].
    pub(crate) fn says(&self, client_id: &str, event: &str) -> Option<u64> {
        self.waiting.0.said.due(&self.payer.name, (client_id, event))
    }

    pub(crate) fn waiting(&self) -> &DeliveryMemory {
        &self.waiting
    }

    /// Counts more bytes that wait for the user's clients.
    pub(crate) fn hold(&self, bytes: usize) {
        self.payer.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Subtracts bytes that do not wait any more.
    pub(crate) fn release(&self, bytes: usize) {
        self.payer.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn has_room(&self, more: usize) -> bool {
        let total = (self.waiting.0.alive)() + more;
        // a message for many clients of the user is counted for each of them, but is in memory once
        let held = (self.payer.held.load(Ordering::Relaxed) + more).min(total);
        held <= FREE_OF_A_USER || has_room(held, total, self.waiting.most())
    }

    /// Whether a client with `waiting` bytes in its queue and `in_hand` sent to it may have `more`. What it has in hand uses
    /// at most half of what is free, because its acknowledgements may not have been read yet.
    pub(crate) fn may_hold(&self, waiting: usize, in_hand: usize, more: usize) -> bool {
        waiting + in_hand.min(FREE / 2) + more <= FREE || self.has_room(more)
    }

    /// Whether a message of this size may be sent to a client with this many unacknowledged bytes.
    pub(crate) fn may_begin(&self, unacknowledged: usize, size: usize) -> bool {
        match unacknowledged {
            0 => size <= FREE || !self.waiting.is_full() || self.has_room(size),
            _ => unacknowledged + size <= FREE / 2 || (unacknowledged + size <= IN_FLIGHT && self.has_room(0)),
        }
    }

    /// Keeps counting what an absent client has not acknowledged.
    pub(crate) fn left(&self, bytes: usize) -> Left {
        self.hold(bytes);
        Left { account: self.clone(), bytes }
    }
}

/// The unacknowledged bytes of an absent client.
#[derive(Debug)]
pub(crate) struct Left {
    account: Account,
    bytes: usize,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.account.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MIB: usize = 1 << 20;

    thread_local! {
        static MEASURED: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn whoever_has_most_is_refused_first_and_a_little_is_always_free() {
        let waiting = DeliveryMemory::measured(64 * MIB, || MEASURED.get());
        let [guests, ada, bob] = ["", "ada", "bob"].map(|name| waiting.account(name));
        let mut taken = [0; 3];
        for (account, taken) in [&guests, &ada, &bob].into_iter().zip(&mut taken) {
            while account.may_hold(MIB, 0, MIB / 16) {
                account.hold(MIB / 16);
                MEASURED.set(MEASURED.get() + MIB / 16);
                *taken += MIB / 16;
            }
        }
        assert_eq!(taken.map(|bytes| (bytes + MIB / 2) / MIB), [64, 13, 3]);
        assert!(waiting.is_tight() && waiting.is_short());
        assert!(guests.may_hold(0, 0, FREE) && !guests.may_hold(1, 0, FREE));
        assert!(guests.may_hold(0, FREE, FREE / 2) && !guests.may_hold(1, FREE, FREE / 2));
        assert!(guests.may_begin(0, MIB), "the first is sent as long as there is any room");
        assert!(!guests.may_begin(MIB / 2, MIB / 4) && guests.may_begin(FREE / 4, FREE / 4));
        MEASURED.set(81 * MIB);
        assert!(waiting.is_full() && !bob.may_begin(0, MIB) && bob.may_begin(0, FREE));
        let eve = waiting.account("eve");
        assert!(eve.may_hold(FREE, 0, FREE) && !eve.may_hold(FREE, 0, MIB), "a user who has little");
        // a message for many clients is in memory once
        MEASURED.set(MIB);
        guests.hold(1000 * MIB);
        assert!(guests.may_hold(MIB, 0, MIB));
    }

    #[test]
    fn what_is_not_acknowledged_counts_until_the_session_ends() {
        let waiting = DeliveryMemory::measured(64 * MIB, || 64 * MIB);
        let left = waiting.account("ada").left(64 * MIB);
        let of_another_client = waiting.account("ada");
        assert!(!of_another_client.may_hold(MIB, 0, 1) && waiting.account("bob").may_hold(MIB, 0, 1));
        drop(left);
        assert!(of_another_client.may_hold(MIB, 0, 1));
    }

    #[test]
    fn a_window_of_large_messages_is_bounded_by_its_bytes() {
        let account = DeliveryMemory::measured(64 * MIB, || 0).account("ada");
        assert!(account.may_begin(0, 2 * MIB) && !account.may_begin(2 * MIB, 1));
        assert!(account.may_begin(MIB / 2, MIB / 2) && !account.may_begin(MIB / 2, MIB));
    }
}
