//! The owners of what waits in the journal: every queue there has a lasting name, and the name tells whom the messages are
//! for.

use super::identity::SessionName;
use crate::health::shortened;

/// The most bytes that are shown of a client id or a filter, which have up to 64 kB.
const LONGEST_SHOWN: usize = 300;

/// The owner of the messages that wait under a lasting name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsumerOwner<'a> {
    /// An upstream, by its name.
    Upstream(&'a str),
    Session(SessionName<'a>),
    /// A shared subscription, whose queue belongs to none of its members.
    Shared {
        /// The group's name and filter.
        group: &'a str,
        /// A client without a user name made the group.
        of_guests: bool,
        /// The user that made the group; earlier versions did not record it.
        user: Option<&'a str>,
    },
    /// An owner whose name was lost.
    Unknown,
}

/// Prefix of the names under which messages wait for upstreams.
const UPSTREAM: &str = "upstream/";
/// Suffix of the name of an upstream's second lane.
const SECOND: &str = "/2";
/// Suffix of the name under which messages wait that no rule of their upstream matches any more.
pub(crate) const SHELF: &str = "/no-rule";
/// Suffix of the name under which messages wait whose topic their upstream does not take.
pub(crate) const DENIED: &str = "/denied";
/// Suffix of the name under which messages wait that are larger than the present address of their upstream takes.
pub(crate) const LARGE: &str = "/too-large";

/// The name under which messages wait for an upstream.
pub(crate) fn upstream_consumer(upstream: &str) -> String {
    format!("{UPSTREAM}{upstream}")
}

/// The name of the second lane of an upstream that has two.
pub(crate) fn second_consumer(upstream: &str) -> String {
    format!("{UPSTREAM}{upstream}{SECOND}")
}

/// The name under which messages wait that no rule of their upstream matches any more.
pub(crate) fn shelf_consumer(upstream: &str) -> String {
    format!("{UPSTREAM}{upstream}{SHELF}")
}

/// The name under which messages wait whose topic their upstream does not take.
pub(crate) fn denied_consumer(upstream: &str) -> String {
    format!("{UPSTREAM}{upstream}{DENIED}")
}

/// The name under which messages wait that are larger than the present address of their upstream takes.
pub(crate) fn large_consumer(upstream: &str) -> String {
    format!("{UPSTREAM}{upstream}{LARGE}")
}

impl ConsumerOwner<'_> {
    /// Takes the owner from a consumer's lasting name.
    pub(crate) fn of(name: &str) -> ConsumerOwner<'_> {
        if let Some((owner, rest)) = name.strip_prefix("share/").and_then(|rest| rest.split_once('/')) {
            let (user, group) = rest.split_once('\0').map_or((None, rest), |(user, group)| (Some(user), group));
            return ConsumerOwner::Shared { group, of_guests: owner == "g", user: user.filter(|_| owner == "u") };
        }
        match (name.strip_prefix(UPSTREAM), name.strip_prefix("session/")) {
            (Some(upstream), _) => {
                let mut suffixes = [SECOND, SHELF, DENIED, LARGE].into_iter();
                let shorter = suffixes.find_map(|suffix| upstream.strip_suffix(suffix));
                ConsumerOwner::Upstream(shorter.unwrap_or(upstream))
            }
            (_, Some(session)) => ConsumerOwner::Session(SessionName::of(session)),
            _ => ConsumerOwner::Unknown,
        }
    }
}

/// The name of a consumer in a form for people.
pub(crate) fn shown(name: &str) -> String {
    match ConsumerOwner::of(name) {
        ConsumerOwner::Session(session) => format!("session/{session}"),
        ConsumerOwner::Shared { group, user: Some(user), .. } => format!("share/{group} of user {user}"),
        _ if name.is_empty() => "(its name was lost)".into(),
        _ => name.into(),
    }
}

impl std::fmt::Display for ConsumerOwner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConsumerOwner::Upstream(name) => write!(f, "upstream {name}"),
            ConsumerOwner::Session(session) => {
                write!(f, "the session of client {}", shortened(&session.to_string(), LONGEST_SHOWN))
            }
            ConsumerOwner::Shared { group, .. } => {
                write!(f, "the shared subscription {}", shortened(group, LONGEST_SHOWN))
            }
            ConsumerOwner::Unknown => f.write_str("a consumer whose name was lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_named() {
        for (name, shown) in [
            ("upstream/home", "upstream home"),
            ("upstream/home/2", "upstream home"),
            ("upstream/home/no-rule", "upstream home"),
            ("upstream/home/denied", "upstream home"),
            ("upstream/home/too-large", "upstream home"),
            ("session/upstream/2", "the session of client upstream/2"),
            ("share/u/g/a/#", "the shared subscription g/a/#"),
            ("", "a consumer whose name was lost"),
        ] {
            assert_eq!(ConsumerOwner::of(name).to_string(), shown);
        }
    }
}
