//! The addresses from which users have signed in before.
//!
//! The devices of a house mostly come from the same addresses again. While somebody guesses passwords, this tells known
//! devices from strangers. The list is no secret and says nothing about passwords, so it may be stored on disk.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Addresses remembered for one user; the address that was used longest ago makes room for a new one.
const MOST_OF_USER: usize = 64;
/// Users for whom addresses are remembered.
const MOST_USERS: usize = 4096;

/// For each user the addresses of successful sign-ins. The text form has one line for each user: the name and the addresses,
/// separated by tabs.
#[derive(Debug, Default)]
pub struct Familiar {
    /// For each user the addresses, with the most recently used one last.
    addresses: Mutex<HashMap<Box<str>, VecDeque<IpAddr>>>,
    changed: watch::Sender<u64>,
}

impl Familiar {
    /// Whether the user has signed in from this address before.
    pub(crate) fn knows(&self, user: &str, from: IpAddr) -> bool {
        self.addresses.lock().get(user).is_some_and(|known| known.contains(&from.to_canonical()))
    }

    /// Whether any user has signed in from this address before.
    pub(crate) fn knows_somebody(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        self.addresses.lock().values().any(|known| known.contains(&from))
    }

    /// Records that the user has signed in from this address.
    pub(crate) fn add(&self, user: &str, from: IpAddr) {
        let from = from.to_canonical();
        let mut addresses = self.addresses.lock();
        if addresses.len() >= MOST_USERS && !addresses.contains_key(user) {
            return;
        }
        let known = addresses.entry(user.into()).or_default();
        match known.iter().position(|address| *address == from) {
            Some(at) => {
                known.remove(at);
                known.push_back(from);
            }
            None => {
                if known.len() >= MOST_OF_USER {
                    known.pop_front();
                }
                known.push_back(from);
                drop(addresses);
                self.changed.send_modify(|count| *count += 1);
            }
        }
    }

    /// Forgets users that no longer exist.
    pub(crate) fn retain(&self, is_user: impl Fn(&str) -> bool) {
        let mut addresses = self.addresses.lock();
        let before = addresses.len();
        addresses.retain(|user, _| is_user(user));
        let is_changed = addresses.len() != before;
        drop(addresses);
        if is_changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Forgets the addresses of a user whose name now belongs to somebody else.
    pub(crate) fn forget(&self, user: &str) {
        self.retain(|other| other != user);
    }

    /// A counter that changes when an address is added or a user is forgotten.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The text form, to be stored on disk.
    pub fn to_text(&self) -> String {
        let addresses = self.addresses.lock();
        let mut users: Vec<_> = addresses.iter().collect();
        users.sort();
        let mut text = String::new();
        for (user, known) in users {
            text.push_str(user);
            for address in known {
                text.push('\t');
                text.push_str(&address.to_string());
            }
            text.push('\n');
        }
        text
    }

    /// Adds the entries of a text form, as older ones than those that are known, and skips lines that cannot be read: a
    /// damaged file costs users only their precedence.
    pub fn read(&self, text: &str) {
        let mut addresses = self.addresses.lock();
        for line in text.split('\n').take(MOST_USERS) {
            let mut fields = line.split('\t');
            let Some(user) = fields.next().filter(|user| !user.is_empty()) else { continue };
            let read: Vec<IpAddr> = fields.filter_map(|field| field.parse().ok()).take(MOST_OF_USER).collect();
            let known = addresses.entry(user.into()).or_default();
            for address in read.into_iter().rev() {
                if known.len() < MOST_OF_USER && !known.contains(&address) {
                    known.push_front(address);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    #[test]
    fn what_was_written_is_read_again() {
        let familiar = Familiar::default();
        familiar.add("ada", address(1));
        familiar.add("ada", "2001:db8::1".parse().unwrap());
        familiar.add("bob b", "::ffff:192.0.2.9".parse().unwrap());
        let read = Familiar::default();
        read.read(&familiar.to_text());
        assert_eq!(read.to_text(), familiar.to_text());
        assert!(read.knows("bob b", address(9)) && !read.knows("ada", address(9)));
        read.read("\n\t\nx\tnonsense\t\0\n");
        assert!(read.knows("ada", address(1)));
    }

    #[test]
    fn the_address_that_was_not_used_for_longest_gives_way() {
        let familiar = Familiar::default();
        for number in 0..MOST_OF_USER as u8 {
            familiar.add("ada", address(number));
        }
        familiar.add("ada", address(0));
        let changes = *familiar.changed().borrow();
        familiar.add("ada", address(200));
        assert_eq!(*familiar.changed().borrow(), changes + 1);
        assert!(familiar.knows("ada", address(0)) && !familiar.knows("ada", address(1)));
        familiar.retain(|user| user == "ada");
        assert_eq!(*familiar.changed().borrow(), changes + 1);
        familiar.retain(|user| user == "bob");
        assert!(!familiar.knows("ada", address(0)));
        assert_eq!(*familiar.changed().borrow(), changes + 2, "it is forgotten on disk, too");
    }
}
