//! Settings of access: users, anonymous clients, and what each may do. They apply to MQTT and HTTP alike.

use std::fmt;

pub(crate) use super::hash::{MAX_MEMORY as MAX_HASH_MEMORY, MAX_WORK as MAX_HASH_WORK, is_usable as is_usable_hash};
use crate::message::{TopicError, check_filter};

/// Who may sign in, and what each client may do.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccessSettings {
    /// What clients without a user name may do, and where they may come from.
    pub anonymous: AnonymousSettings,
    /// The users of `[[broker.user]]`; their names are unique.
    pub users: Vec<UserSettings>,
    /// Topic filters on which only the gateway itself publishes.
    pub reserved: Vec<String>,
    /// Listeners that differ from the settings above.
    pub listeners: Vec<ListenerAccess>,
}

/// The settings that differ at one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerAccess {
    /// The listener's name.
    pub(crate) listener: String,
    pub(crate) anonymous: AnonymousSettings,
    /// The users that may sign in there; `None` means all of `[[broker.user]]`.
    pub(crate) users: Option<Vec<UserSettings>>,
}

impl AccessSettings {
    pub(crate) fn hashes(&self) -> impl Iterator<Item = &str> {
        self.all_users().filter_map(|user| user.password_hash.as_deref())
    }

    /// All users: those of `[[broker.user]]` and those of single listeners.
    pub(crate) fn all_users(&self) -> impl Iterator<Item = &UserSettings> {
        let own = self.listeners.iter().filter_map(|listener| listener.users.as_ref()).flatten();
        self.users.iter().chain(own)
    }
}

/// The addresses from which clients without a user name are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AnonymousFrom {
    /// From no address.
    None,
    /// Only from the machine on which the gateway runs.
    #[default]
    Loopback,
    /// From every address.
    All,
}

/// The table `[broker.anonymous]`: clients without a user name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AnonymousSettings {
    /// The addresses from which they are accepted.
    pub accept: AnonymousFrom,
    /// What they may publish and receive.
    pub rights: Rights,
}

/// One user, as in a table `[[broker.user]]`.
#[derive(Clone, PartialEq, Eq)]
pub struct UserSettings {
    /// The user name, or the common name of the client certificate.
    pub(crate) name: String,
    /// An argon2id hash as a PHC string, or one of mosquitto's; `None` means that the user can sign in only with a
    /// certificate.
    pub password_hash: Option<String>,
    pub(crate) rights: Rights,
    /// Client ids that the user's clients may have, with `%u` for the user name and `*` for any text. An empty list allows
    /// any.
    pub(crate) client_ids: Vec<String>,
    /// Whether the user may administer the gateway by HTTP: disconnect clients, delete retained messages, add and change
    /// users.
    pub is_admin: bool,
}

/// Whether a text is allowed as a user name.
pub fn is_user_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control)
}

/// Why programs cannot use HTTP with this user name, if that is so: Basic authentication takes everything
/// after a colon as the password [RFC 7617, 2].
pub(crate) fn beyond_basic(name: &str) -> Option<String> {
    let why = "has a colon, which Basic authentication cannot carry: by HTTP only the page's own form takes it";
    name.contains(':').then(|| format!("the user name {name:?} {why}"))
}

/// Whether a text is allowed in the list of a user's client ids.
pub fn is_client_id_pattern(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

impl UserSettings {
    /// Whether a client of this user may have this client id.
    pub(crate) fn may_have_id(&self, client_id: &str) -> bool {
        self.client_ids.is_empty() || self.client_ids.iter().any(|pattern| fits(pattern, &self.name, client_id))
    }
}

/// Whether a client id matches a pattern. The user name is inserted literally, whatever characters it has.
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

/// What a client may publish and receive. A topic needs a rule that allows it and no rule that denies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    pub(crate) publish: Vec<AccessRule>,
    pub(crate) subscribe: Vec<AccessRule>,
}

impl Default for Rights {
    fn default() -> Self {
        let all = AccessRule { deny: false, filter: "#".into() };
        Rights { publish: vec![all.clone()], subscribe: vec![all] }
    }
}

/// A rule that allows or denies the topics that a filter matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    pub(crate) deny: bool,
    /// The topic filter, in which `%u` stands for the user name and `%c` for the client id.
    pub(crate) filter: String,
}

impl AccessRule {
    /// Reads `FILTER`, which allows, or `!FILTER`, which denies.
    pub fn parse(text: &str) -> Result<AccessRule, TopicError> {
        let (deny, filter) = match text.strip_prefix('!') {
            Some(filter) => (true, filter),
            None => (false, text),
        };
        // neither %u nor %c contains a character with a meaning in filters, so the filter is checked before they are
        // replaced
        check_filter(filter)?;
        Ok(AccessRule { deny, filter: filter.into() })
    }
}

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
    fn a_name_is_short_and_has_no_control_characters() {
        for (name, is_one) in [
            ("esp:loft", true),
            ("hub.azure-devices.net/loft/?api-version=2021-04-12", true),
            ("ü", true),
            ("", false),
            ("a\nb", false),
            ("a\u{85}b", false),
            ("a\u{7f}b", false),
        ] {
            assert_eq!(is_user_name(name), is_one, "{name:?}");
        }
        assert!(is_user_name(&"x".repeat(1024)) && !is_user_name(&"x".repeat(1025)));
        assert!(beyond_basic("esp:loft").is_some_and(|why| why.contains("\"esp:loft\" has a colon")));
        assert_eq!(beyond_basic("esp/loft"), None);
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
