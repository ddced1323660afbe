//! Settings of access: users, clients without a user name, and what they may do. They hold for MQTT and HTTP alike.

use std::fmt;

pub(crate) use super::hash::{MAX_MEMORY as MAX_HASH_MEMORY, is_usable as is_usable_hash};
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
    /// Listeners with an answer of their own.
    pub listeners: Vec<ListenerAccess>,
}

/// What is different at one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerAccess {
    /// What the listener is called.
    pub(crate) listener: String,
    /// Its clients without a user name.
    pub(crate) anonymous: AnonymousSettings,
    /// The users that may come in there; `None`: all of `[[broker.user]]`.
    pub(crate) users: Option<Vec<UserSettings>>,
}

impl AccessSettings {
    /// Hashes of the users' passwords.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = &str> {
        self.all_users().filter_map(|user| user.password_hash.as_deref())
    }

    /// The users of all listeners, and those of a listener of its own.
    pub(crate) fn all_users(&self) -> impl Iterator<Item = &UserSettings> {
        let own = self.listeners.iter().filter_map(|listener| listener.users.as_ref()).flatten();
        self.users.iter().chain(own)
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
    pub(crate) name: String,
    /// Argon2id hash as a PHC string, or one of mosquitto's; `None`: no password will do, only a certificate.
    pub password_hash: Option<String>,
    /// What the user may do.
    pub(crate) rights: Rights,
    /// Client ids that its clients may have, with `%u` for the user and `*` for anything; none: any.
    pub(crate) client_ids: Vec<String>,
    /// May change the gateway by HTTP: disconnect clients, delete what is retained, make users.
    pub is_admin: bool,
}

/// Whether a text can be the name of a user.
pub fn is_user_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control)
}

/// Whether a text can be one of [`UserSettings::client_ids`].
pub fn is_client_id_pattern(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

impl UserSettings {
    /// Whether a client of this user may have this id.
    pub(crate) fn may_have_id(&self, client_id: &str) -> bool {
        self.client_ids.is_empty() || self.client_ids.iter().any(|pattern| fits(pattern, &self.name, client_id))
    }
}

/// Whether a client id fits a pattern. What stands for the user is taken as it is, whatever characters it has.
fn fits(pattern: &str, user: &str, client_id: &str) -> bool {
    let mut parts = pattern.split('*').map(|part| part.replace("%u", user));
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = client_id.strip_prefix(first.as_str()) else { return false };
    let mut parts: Vec<String> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part.as_str()) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

impl fmt::Debug for UserSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserSettings")
            .field("name", &self.name)
            .field("password_hash", &self.password_hash.as_ref().map(|_| "(hidden)"))
            .field("rights", &self.rights)
            .field("client_ids", &self.client_ids)
            .field("is_admin", &self.is_admin)
            .finish()
    }
}

/// What a client may do. A topic must be selected by a rule that allows it and by none that denies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Topics that it may publish to.
    pub(crate) publish: Vec<AccessRule>,
    /// Topics that it may receive.
    pub(crate) subscribe: Vec<AccessRule>,
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
    pub(crate) deny: bool,
    /// Topic filter, in which `%u` stands for the user name and `%c` for the client id.
    pub(crate) filter: String,
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

/// As it is written.
impl fmt::Display for AccessRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.deny { "!" } else { "" })?;
        f.write_str(&self.filter)
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
        let user = UserSettings {
            name: "a".into(),
            password_hash: Some("$argon2id$x".into()),
            rights: Rights::default(),
            client_ids: Vec::new(),
            is_admin: false,
        };
        assert!(!format!("{user:?}").contains("argon2id"));
    }

    #[test]
    fn a_client_id_fits_a_pattern_of_its_user() {
        for (pattern, user, client_id, expected) in [
            ("%u-*", "esp", "esp-kitchen", true),
            ("%u-*", "esp", "esp-", true),
            ("%u-*", "esp", "esp", false),
            ("%u-*", "esp", "other-esp-1", false),
            ("%u", "esp", "esp", true),
            ("%u", "esp", "esp1", false),
            ("*", "esp", "anything", true),
            ("*-%u", "esp", "a-b-esp", true),
            ("a*b*c", "esp", "a1b2c", true),
            ("a*b*c", "esp", "acb", false),
            ("ab*ba", "esp", "aba", false),
            ("%u-*", "*", "x-1", false),
            ("%u-*", "*", "*-1", true),
            ("%u-*", "ü", "ü-1", true),
        ] {
            assert_eq!(fits(pattern, user, client_id), expected, "{pattern} {user} {client_id}");
        }
    }
}
