//! Parts of the journal that some consumers are guaranteed: upstreams, sessions of users, and sessions of clients without a
//! user name.
//!
//! What a part does not use, others may: it is taken back when it is needed. When the journal is full, the part that is
//! furthest above what it is guaranteed gives way, in it whoever has most (an upstream, a user with the shared subscriptions
//! that the user has begun, all guests together), and of that the oldest. Where messages are refused rather than given up,
//! nothing can be taken back: there the parts that have consumers keep what they are guaranteed free of others.

use super::format::DATA;
use super::settings::JournalSettings;
use crate::access::identity::SessionName;
use crate::access::owner::ConsumerOwner;

/// Parts that have a guarantee of their own.
pub(crate) const PARTS: usize = 3;

/// Whom a part of the journal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// What waits for upstreams.
    Upstreams = 0,
    /// Persistent sessions of users, and what is not known to be somebody else's.
    Users = 1,
    /// Persistent sessions of clients without a user name.
    Guests = 2,
}

impl Part {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Part; PARTS] = [Part::Upstreams, Part::Users, Part::Guests];

    /// By a consumer's lasting name.
    pub(crate) fn of(name: &str) -> Part {
        match PartHolder::of(name) {
            PartHolder::Upstream(_) => Part::Upstreams,
            PartHolder::User(_) | PartHolder::Unknown(_) => Part::Users,
            PartHolder::Guests => Part::Guests,
        }
    }

    /// Percent of the journal that are guaranteed.
    pub(crate) fn percent(self) -> u64 {
        match self {
            Part::Upstreams => 50,
            Part::Users => 30,
            Part::Guests => 20,
        }
    }

    /// What the log says of it.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Part::Upstreams => "upstreams",
            Part::Users => "sessions of users",
            Part::Guests => "sessions of clients without a user name",
        }
    }
}

/// Who gives way together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PartHolder<'a> {
    /// An upstream, in whatever order it gets its messages.
    Upstream(&'a str),
    /// All sessions of a user, and all shared subscriptions that the user has begun.
    User(&'a str),
    /// All that is for clients without a user name.
    Guests,
    /// A consumer of which nobody knows whose it is, by its lasting name.
    Unknown(&'a str),
}

impl PartHolder<'_> {
    /// By a consumer's lasting name.
    pub(crate) fn of(name: &str) -> PartHolder<'_> {
        match ConsumerOwner::of(name) {
            ConsumerOwner::Upstream(upstream) => PartHolder::Upstream(upstream),
            ConsumerOwner::Session(SessionName { user: Some(user), .. })
            | ConsumerOwner::Shared { user: Some(user), .. } => PartHolder::User(user),
            ConsumerOwner::Session(SessionName { is_unowned: false, .. })
            | ConsumerOwner::Shared { of_guests: true, .. } => PartHolder::Guests,
            ConsumerOwner::Shared { .. } | ConsumerOwner::Session(_) | ConsumerOwner::Unknown => {
                PartHolder::Unknown(name)
            }
        }
    }
}

/// Bytes that a segment has for records.
pub(crate) fn usable(settings: &JournalSettings) -> u64 {
    settings.segment_size() - DATA
}

/// Bytes of the journal that are guaranteed to a part: of what is left besides the file that is written to, and one that
/// others are merged into.
pub(crate) fn guaranteed(part: Part, settings: &JournalSettings) -> u64 {
    settings.segments().saturating_sub(2) as u64 * usable(settings) * part.percent() / 100
}
