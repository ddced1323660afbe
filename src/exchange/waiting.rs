//! Memory of what waits for clients: one bound for all of it.
//!
//! Each inbox is bounded, and so is what is under way to a client, but there are many of them. What all messages take that are on
//! their way is counted where they are made ([`crate::message::alive`]), each once, however many wait for it. Besides, each user
//! is known with what waits for its clients, what they have not acknowledged included; guests are one user. Who may have more
//! when there is not enough is decided as for everything else ([`crate::access::quota`]): whoever has most is refused first.
//!
//! [`FREE`] bytes of each client, and [`FREE_OF_A_USER`] of a user, are never refused, so whoever reads what it gets finds room whatever others have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::access::quota::has_room;
use crate::message::alive;

/// Bytes that one user may have, if it is alone; all together a quarter more.
pub(crate) const MOST: usize = 32 << 20;
/// Bytes that a client may always have.
pub(crate) const FREE: usize = 64 << 10;
/// Bytes that all clients of a user together may always have, so that users who have little find room whatever others have.
pub(crate) const FREE_OF_A_USER: usize = 512 << 10;
/// Bytes that a client may have and not have acknowledged, beyond its last message.
pub(crate) const IN_FLIGHT: usize = 1 << 20;

/// A user, and the bytes that wait for its clients.
#[derive(Debug)]
struct Payer {
    name: Arc<str>,
    held: AtomicUsize,
}

#[derive(Debug)]
struct Accounts {
    most: AtomicUsize,
    /// What all have, each message once.
    alive: fn() -> usize,
    payers: Mutex<HashMap<Arc<str>, Weak<Payer>>>,
}

/// What waits for all clients. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryMemory(Arc<Accounts>);

impl DeliveryMemory {
    /// A single user may have this much.
    pub(crate) fn new(most: usize) -> DeliveryMemory {
        DeliveryMemory::measured(most, alive)
    }

    /// The same, where this tells what all have.
    pub(crate) fn measured(most: usize, alive: fn() -> usize) -> DeliveryMemory {
        DeliveryMemory(Arc::new(Accounts { most: AtomicUsize::new(most), alive, payers: Mutex::default() }))
    }

    /// Changes what a single user may have.
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

    /// Whether so much is taken that a message should keep nothing alive but itself.
    pub(crate) fn is_tight(&self) -> bool {
        (self.0.alive)() > self.most() / 2
    }

    /// Whether a single user, if it had all there is, would be refused more.
    pub(crate) fn is_short(&self) -> bool {
        (self.0.alive)() > self.most()
    }

    /// Whether nobody gets more than what is free.
    pub(crate) fn is_full(&self) -> bool {
        (self.0.alive)() > self.most() / 4 * 5
    }
}

/// A user's account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    waiting: DeliveryMemory,
    payer: Arc<Payer>,
}

impl Account {
    /// Whose it is.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.payer.name
    }

    /// Bytes that wait for the user's clients.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.payer.held.load(Ordering::Relaxed)
    }

    /// What all have.
    pub(crate) fn waiting(&self) -> &DeliveryMemory {
        &self.waiting
    }

    /// So much more waits for the user's clients.
    pub(crate) fn hold(&self, bytes: usize) {
        self.payer.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much less.
    pub(crate) fn release(&self, bytes: usize) {
        self.payer.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn has_room(&self, more: usize) -> bool {
        let total = (self.waiting.0.alive)() + more;
        // what waits for many of its clients is counted for each of them, and is there once
        let held = (self.payer.held.load(Ordering::Relaxed) + more).min(total);
        held <= FREE_OF_A_USER || has_room(held, total, self.waiting.most())
    }

    /// Whether a client for which so many bytes wait, and that has so many in hand, may have so many more. What it has in hand
    /// takes at most half of what is free: what it has acknowledged meanwhile may not have been read.
    pub(crate) fn may_hold(&self, waiting: usize, in_hand: usize, more: usize) -> bool {
        waiting + in_hand.min(FREE / 2) + more <= FREE || self.has_room(more)
    }

    /// Whether a message of this size may be sent to a client that has not acknowledged so many bytes.
    pub(crate) fn may_begin(&self, unacknowledged: usize, size: usize) -> bool {
        match unacknowledged {
            0 => size <= FREE || !self.waiting.is_full() || self.has_room(size),
            _ => unacknowledged + size <= FREE / 2 || (unacknowledged + size <= IN_FLIGHT && self.has_room(0)),
        }
    }

    /// What a client has not acknowledged goes on to count while it is away.
    pub(crate) fn left(&self, bytes: usize) -> Left {
        self.hold(bytes);
        Left { account: self.clone(), bytes }
    }
}

/// What a client that is away has not acknowledged.
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
        // what goes to many is there once
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
