//! Which users there were, so that whoever is given the name of one that was removed is told from one that is back.
//!
//! A line of the configuration may be missing for a while: it is commented out, a file is an old one, somebody has mistyped a
//! name. Whoever comes back with the password hash that it had is the same user, and finds its sessions, as long as they last.
//! Whoever comes with another hash, after not having been there, is somebody else. A hash that changes while its user is there
//! is a new password. Who has only a certificate is known by that.

use std::collections::{BTreeMap, BTreeSet};

use super::settings::UserSettings;
use crate::secret::sha256_hex;

/// Names of users by the digests of their password hashes. As text, it has a line for each, with tabs in between: the name,
/// whether it is a user or was one, and the digests.
#[derive(Debug, Default)]
pub(crate) struct Former {
    users: BTreeMap<String, FormerUser>,
}

#[derive(Debug)]
struct FormerUser {
    is_there: bool,
    /// A listener may have a user of the same name with another password.
    digests: BTreeSet<String>,
}

impl Former {
    /// Notes who is a user now. Returned are those who have the name of a former user and are somebody else. Of former users
    /// only those are remembered who have left something.
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

    /// Everything, to be kept over restarts.
    pub(crate) fn to_text(&self) -> String {
        let line = |(name, known): (&String, &FormerUser)| {
            let digests: Vec<&str> = known.digests.iter().map(String::as_str).collect();
            format!("{name}\t{}\t{}\n", if known.is_there { "is" } else { "was" }, digests.join("\t"))
        };
        self.users.iter().map(line).collect()
    }

    /// What was kept. Lines that cannot be read are left out: nobody loses a session for them.
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

    /// The users one after the other, each time over a restart; who was somebody else then.
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
        // at a listener of its own it has another password
        assert_eq!(others(&[&[&ada, &other], &[], &[&other]]), nobody);
        let certificate = user("cert", "");
        assert_eq!(others(&[&[&certificate], &[], &[&certificate]]), nobody);
        assert_eq!(others(&[&[&user("tidy", "1")], &[], &[&user("tidy", "2")]]), nobody, "it has left nothing");
    }

    #[test]
    fn what_is_damaged_makes_nobody_somebody_else() {
        let mut former = Former::read("ada\nada\tnonsense\tx\n\n\t\tx\nbob\twas\t00\n");
        assert_eq!(former.update([user("ada", "1"), user("bob", "1")].iter(), |_| true), ["bob"]);
        assert!(!former.to_text().contains("$") && former.to_text().starts_with("ada\tis\t"));
    }
}
