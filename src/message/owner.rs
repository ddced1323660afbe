//! Who pays for what is kept and done.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Origin;

/// The owner to whom retained messages, waiting messages and processor time are charged. The number of a user comes from a hash
/// of its name, so that it is nearly always the same in every run. Two users have the same number only if the gateway has seen
/// more than 248 since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u8);

static NUMBERS: Mutex<Option<Numbers>> = Mutex::new(None);

impl Owner {
    /// The gateway and its sensors.
    pub(crate) const HOUSE: Owner = Owner(1);
    /// All clients without a user name together.
    pub(crate) const GUESTS: Owner = Owner(2);
    /// All upstreams together.
    pub(crate) const UPSTREAMS: Owner = Owner(3);
    const USERS: u8 = 8;
    /// The number of owners.
    pub(crate) const COUNT: usize = u8::MAX as usize + 1;

    /// The owner for this user; `None` stands for clients without a user name.
    pub(crate) fn of(user: Option<&str>) -> Owner {
        let Some(user) = user else { return Owner::GUESTS };
        Owner(NUMBERS.lock().get_or_insert_default().of(user))
    }

    /// Gives these users numbers, before others that come later. The same users get the same numbers in every run.
    pub(crate) fn know<'a>(users: impl Iterator<Item = &'a str>) {
        NUMBERS.lock().get_or_insert_default().know(users.collect());
    }

    /// The owner that a message names.
    pub(super) fn recorded(number: u8) -> Owner {
        Owner(number)
    }

    /// The number as an index below 256.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The numbers that users have. A byte has room for one in each message, but the hashes of two of twenty names are as likely the
/// same in a byte as not, and then one user would pay for the other.
#[derive(Debug, Default)]
struct Numbers {
    of: HashMap<Box<str>, u8>,
    users: HashMap<u8, Box<str>>,
}

impl Numbers {
    const COUNT: usize = u8::MAX as usize - Owner::USERS as usize + 1;

    fn preferred(user: &str) -> u8 {
        let number = Origin::of("user", user, Owner::GUESTS).number;
        Owner::USERS + (number % Numbers::COUNT as u64) as u8
    }

    fn give(&mut self, user: &str, number: u8) {
        self.of.insert(user.into(), number);
        self.users.insert(number, user.into());
    }

    fn of(&mut self, user: &str) -> u8 {
        if let Some(number) = self.of.get(user) {
            return *number;
        }
        let preferred = Numbers::preferred(user);
        let from = usize::from(preferred - Owner::USERS);
        let mut all = (0..Numbers::COUNT).map(|more| Owner::USERS + ((from + more) % Numbers::COUNT) as u8);
        match all.find(|number| !self.users.contains_key(number)) {
            Some(number) => {
                self.give(user, number);
                number
            }
            None => preferred,
        }
    }

    /// Numbers that only one of these users would have go to that user, so that another user who is added changes few.
    fn know(&mut self, mut users: Vec<&str>) {
        users.sort_unstable();
        for user in &users {
            let preferred = Numbers::preferred(user);
            if !self.of.contains_key(*user) && !self.users.contains_key(&preferred) {
                self.give(user, preferred);
            }
        }
        for user in users {
            self.of(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn users_with_the_same_hash_have_numbers_of_their_own() {
        assert_eq!(Numbers::preferred("dave"), Numbers::preferred("pump"));
        let mut numbers = Numbers::default();
        numbers.know(vec!["pump", "alice", "dave"]);
        let mut again = Numbers::default();
        again.know(vec!["dave", "pump", "alice"]);
        let of = |numbers: &mut Numbers| ["pump", "alice", "dave"].map(|user| numbers.of(user));
        let given = of(&mut numbers);
        assert_eq!(given, of(&mut again), "the same in every run");
        assert_eq!(HashSet::from(given).len(), 3);
        assert_eq!(given[2], Numbers::preferred("dave"));
        numbers.know(vec!["alice"]);
        assert_eq!(of(&mut numbers), given, "and after a reload");
    }

    #[test]
    fn there_are_248_numbers_and_then_users_share_them() {
        let mut numbers = Numbers::default();
        let given: HashSet<u8> = (0..248).map(|user| numbers.of(&format!("user-{user}"))).collect();
        assert_eq!(given.len(), 248);
        assert!(given.iter().all(|number| *number >= Owner::USERS));
        assert_eq!(numbers.of("another"), Numbers::preferred("another"));
        assert_eq!(numbers.of.len(), 248, "nothing more is kept");
    }
}
