//! Former users, so that a new user who was given an old name is told from a user who has come back.
//!
//! A user may be missing from the configuration for a while: the line is commented out, an old file is in use, or a name is
//! mistyped. A user who comes back with the same password hash is the same user and gets its sessions back if they still
//! exist. A user who comes back with another hash, after an absence, is somebody else. A hash that changes while the user is
//! present is a new password. A user without a password is known by its certificate.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::UserSettings;
use crate::secret::sha256_hex;

/// Names of users with digests of their password hashes. The text form has one line for each user, separated by tabs: the
/// name, whether it is a user now or was one, and the digests.
#[derive(Debug, Default)]
pub(crate) struct Former {
    users: BTreeMap<String, FormerUser>,
}

#[derive(Debug)]
struct FormerUser {
    is_there: bool,
    /// More than one where a listener has a user of the same name with another password.
    digests: BTreeSet<String>,
}

impl Former {
    /// Records the present users. Returns the names that belonged to a former user and now belong to somebody else. A former
    /// user is remembered only while something of that user is left, such as a session.
    pub(crate) fn update<'a>(
        &mut self,
        users: impl Iterator<Item = &'a UserSettings>,
        has_left: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut now: BTreeMap<String, FormerUser> = BTreeMap::new();
        for user in users {
            let digest = sha256_hex(user.password_hash.as_deref().unwrap_or_default().as_bytes());
            let known = FormerUser { is_there: true, digests: BTreeSet::new() };
            now.entry(user.name.clone()).or_insert(known).digests.insert(digest);
        }
        let mut others = Vec::new();
        for (name, was) in std::mem::take(&mut self.users) {
            match now.get(&name) {
                Some(is) if !was.is_there && is.digests.is_disjoint(&was.digests) => others.push(name),
                Some(_) => {}
                None if has_left(&name) => {
                    now.insert(name, FormerUser { is_there: false, ..was });
                }
                None => {}
            }
        }
        self.users = now;
        others
    }

    /// Adds what could be read only now: users that were known before the present ones.
    pub(crate) fn learn(&mut self, earlier: Former) {
        for (name, was) in earlier.users {
            let is_another = |is: &FormerUser| !was.is_there && is.digests.is_disjoint(&was.digests);
            if self.users.get(&name).is_none_or(is_another) {
                self.users.insert(name, was);
            }
        }
    }

    /// The text form, kept over restarts.
    pub(crate) fn to_text(&self) -> String {
        let line = |(name, known): (&String, &FormerUser)| {
            let digests: Vec<&str> = known.digests.iter().map(String::as_str).collect();
            format!("{name}\t{}\t{}\n", if known.is_there { "is" } else { "was" }, digests.join("\t"))
        };
        self.users.iter().map(line).collect()
    }

    /// Reads the text form and skips lines that cannot be read, because nobody should lose a session to a damaged file.
    pub(crate) fn read(text: &str) -> Former {
        let known = |line: &str| {
            let mut fields = line.split('\t').map(str::to_owned);
            let (name, state) = (fields.next()?, fields.next()?);
            let is_there = match state.as_str() {
                "is" => true,
                "was" => false,
                _ => return None,
            };
            Some((name, FormerUser { is_there, digests: fields.collect() }))
        };
        Former { users: text.lines().filter_map(known).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::settings::Rights;

    fn user(name: &str, hash: &str) -> UserSettings {
        let password_hash = Some(hash.to_owned()).filter(|hash| !hash.is_empty());
        UserSettings {
            name: name.into(),
            password_hash,
            rights: Rights::default(),
            client_ids: Vec::new(),
            is_admin: false,
        }
    }

    /// Goes through these lists of users, with a restart before each, and returns who was somebody else at the last.
    fn others(steps: &[&[&UserSettings]]) -> Vec<String> {
        let mut former = Former::default();
        let mut last = Vec::new();
        for users in steps {
            former = Former::read(&former.to_text());
            last = former.update(users.iter().copied(), |name| name != "tidy");
        }
        last
    }

    #[test]
    fn a_name_that_comes_back_is_the_same_user_if_its_hash_is() {
        let (ada, other, bob) = (user("ada", "1"), user("ada", "2"), user("bob", "1"));
        let nobody: &[String] = &[];
        assert_eq!(others(&[&[&ada], &[&bob], &[&ada]]), nobody, "commented out for a while");
        assert_eq!(others(&[&[&ada], &[&bob], &[&other]]), ["ada"]);
        assert_eq!(others(&[&[&ada], &[], &[], &[&other]]), ["ada"]);
        assert_eq!(others(&[&[&ada], &[&other]]), nobody, "a new password");
        assert_eq!(others(&[&[&ada], &[&other], &[], &[&ada]]), ["ada"], "the password before");
        assert_eq!(others(&[&[], &[&ada]]), nobody);
        // the user of the same name at a listener of its own has another password
        assert_eq!(others(&[&[&ada, &other], &[], &[&other]]), nobody);
        let certificate = user("cert", "");
        assert_eq!(others(&[&[&certificate], &[], &[&certificate]]), nobody);
        assert_eq!(others(&[&[&user("tidy", "1")], &[], &[&user("tidy", "2")]]), nobody, "it has left nothing");
    }

    #[test]
    fn what_is_read_late_is_older() {
        let mut former = Former::default();
        let (ada, bob, eve) = (user("ada", "2"), user("bob", "2"), user("eve", "2"));
        assert!(former.update([&ada, &bob, &eve].into_iter(), |_| true).is_empty());
        let digest = |hash: &str| sha256_hex(hash.as_bytes());
        let text =
            format!("ada\twas\t{}\nbob\tis\t{}\ncat\tis\t0\neve\twas\t{}\n", digest("1"), digest("1"), digest("2"));
        former.learn(Former::read(&text));
        assert_eq!(former.update([&ada, &bob, &eve].into_iter(), |_| true), ["ada"]);
        assert!(former.to_text().contains("cat\twas\t0\n"), "{}", former.to_text());
    }

    #[test]
    fn what_is_damaged_makes_nobody_somebody_else() {
        let mut former = Former::read("ada\nada\tnonsense\tx\n\n\t\tx\nbob\twas\t00\n");
        assert_eq!(former.update([user("ada", "1"), user("bob", "1")].iter(), |_| true), ["bob"]);
        assert!(!former.to_text().contains("$") && former.to_text().starts_with("ada\tis\t"));
    }
}
