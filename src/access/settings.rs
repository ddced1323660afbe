//! Settings of access: users, clients without a user name, and what they may do. They hold for MQTT and HTTP alike.

use std::fmt;

pub use super::hash::{MAX_MEMORY as MAX_HASH_MEMORY, is_usable as is_usable_hash};
use crate::message::{TopicError, check_filter};

/// Who may come in, and what each may do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccessSettings {
    /// Clients without a user name.
    pub anonymous: AnonymousSettings,
    /// Users, their names unique.
    pub users: Vec<UserSettings>,
    /// Topics that only the gateway itself publishes.
    pub reserved: Vec<String>,
}

impl AccessSettings {
    /// Hashes of the users' passwords.
    pub fn hashes(&self) -> impl Iterator<Item = &str> {
        self.users.iter().filter_map(|user| user.password_hash.as_deref())
    }
}

/// Where clients without a user name are accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AnonymousFrom {
    /// Nowhere.
    None,
    /// The host itself.
    #[default]
    Loopback,
    /// Everywhere.
    All,
}

/// `[broker.anonymous]`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AnonymousSettings {
    /// Where they are accepted from.
    pub accept: AnonymousFrom,
    /// What they may do.
    pub rights: Rights,
}

/// One `[[broker.user]]`.
#[derive(Clone, PartialEq, Eq)]
pub struct UserSettings {
    /// User name, or common name of the client certificate.
    pub name: String,
    /// Argon2id hash as a PHC string, or one of mosquitto's; `None`: no password will do, only a certificate.
    pub password_hash: Option<String>,
    /// What the user may do.
    pub rights: Rights,
}

impl fmt::Debug for UserSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSettings")
            .field("name", &self.name)
            .field("password_hash", &self.password_hash.as_ref().map(|_| "(hidden)"))
            .field("rights", &self.rights)
            .finish()
    }
}

/// What a client may do. A topic must be selected by a rule that allows it and by none that denies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Topics that it may publish to.
    pub publish: Vec<AccessRule>,
    /// Topics that it may receive.
    pub subscribe: Vec<AccessRule>,
}

impl Default for Rights {
    fn default() -> Self {
        let all = AccessRule { deny: false, filter: "#".into() };
        Rights { publish: vec![all.clone()], subscribe: vec![all] }
    }
}

/// Allows or denies the topics of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Whether it denies them.
    pub deny: bool,
    /// Topic filter, in which `%u` stands for the user name and `%c` for the client id.
    pub filter: String,
}

impl AccessRule {
    /// Reads `FILTER`, which allows, or `!FILTER`, which denies.
    pub fn parse(text: &str) -> Result<AccessRule, TopicError> {
        let (deny, filter) = match text.strip_prefix('!') {
            Some(filter) => (true, filter),
            None => (false, text),
        };
        // neither %u nor %c holds a character that means something in a filter, so the filter is checked as it stands
        check_filter(filter)?;
        Ok(AccessRule { deny, filter: filter.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exclamation_mark_denies() {
        let rule = |deny, filter: &str| Ok(AccessRule { deny, filter: filter.into() });
        assert_eq!(AccessRule::parse("loft/%u/in-%c/#"), rule(false, "loft/%u/in-%c/#"));
        assert_eq!(AccessRule::parse("!loft/private/#"), rule(true, "loft/private/#"));
        assert_eq!(AccessRule::parse("!"), Err(TopicError::Empty));
        assert_eq!(AccessRule::parse("loft/#/x"), Err(TopicError::MisplacedHash));
    }

    #[test]
    fn hashes_are_not_printed() {
        let user =
            UserSettings { name: "a".into(), password_hash: Some("$argon2id$x".into()), rights: Rights::default() };
        assert!(!format!("{user:?}").contains("argon2id"));
    }
}
