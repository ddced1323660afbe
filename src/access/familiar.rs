//! Where users have succeeded before.
//!
//! The devices of a house mostly come from the same addresses again. That is worth knowing while somebody guesses
//! passwords, and it is no secret: it may be written down, and tells nothing about passwords.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Addresses remembered of a user; the one that was used longest ago gives way.
const MOST_OF_USER: usize = 64;
/// Users remembered. They are those that there are.
const MOST_USERS: usize = 4096;

/// Who has succeeded from where. As text, it has a line per user: the name, and its addresses, with tabs in between.
#[derive(Debug, Default)]
pub struct Familiar {
    /// The address used last comes last.
    addresses: Mutex<HashMap<Box<str>, VecDeque<IpAddr>>>,
    changed: watch::Sender<u64>,
}

impl Familiar {
    /// Whether the user has succeeded from there.
    pub(crate) fn knows(&self, user: &str, from: IpAddr) -> bool {
        self.addresses.lock().get(user).is_some_and(|known| known.contains(&from.to_canonical()))
    }

    /// The user has succeeded from there.
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

    /// Forgets users that there are no more.
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

    /// Forgets where a user has succeeded from: somebody else has the name by now.
    pub(crate) fn forget(&self, user: &str) {
        self.retain(|other| other != user);
    }

    /// Changes when somebody has succeeded from a new address, or is forgotten.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// As text.
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

    /// Adds what a text has, as far as it can be read: a damaged file costs no more than going first.
    pub fn read(&self, text: &str) {
        let mut addresses = self.addresses.lock();
        for line in text.split('\n').take(MOST_USERS) {
            let mut fields = line.split('\t');
            let Some(user) = fields.next().filter(|user| !user.is_empty()) else { continue };
            let known = fields.filter_map(|field| field.parse().ok()).take(MOST_OF_USER).collect();
            addresses.insert(user.into(), known);
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
