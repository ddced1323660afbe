//! The parts of the journal that are guaranteed to groups of consumers: upstreams, sessions of users, and sessions of
//! clients without a user name.
//!
//! Space that a part does not use is lent to others, and taken back when it is needed. When the journal is full, the part
//! that is furthest above its guarantee gives way, in it the holder with most (an upstream, a user with the shared
//! subscriptions made by that user, or all guests together), and of that the oldest messages. If messages are refused
//! instead of dropped, nothing can be taken back, so the guarantees of all parts with consumers are kept free.

use super::format::DATA;
use super::settings::JournalSettings;
use crate::access::identity::SessionName;
use crate::access::owner::ConsumerOwner;

/// The number of parts.
pub(crate) const PARTS: usize = 3;

/// The consumers of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Messages for upstreams.
    Upstreams = 0,
    /// Persistent sessions of users, and those of unknown owners.
    Users = 1,
    /// Persistent sessions of clients without a user name.
    Guests = 2,
}

impl Part {
    pub(crate) const ALL: [Part; PARTS] = [Part::Upstreams, Part::Users, Part::Guests];

    /// The part of a consumer, by its lasting name.
    pub(crate) fn of(name: &str) -> Part {
        match PartHolder::of(name) {
            PartHolder::Upstream(_) => Part::Upstreams,
            PartHolder::User(_) | PartHolder::Unknown(_) => Part::Users,
            PartHolder::Guests => Part::Guests,
        }
    }

    /// The percentage of the journal that is guaranteed.
    pub(crate) fn percent(self) -> u64 {
        match self {
            Part::Upstreams => 50,
            Part::Users => 30,
            Part::Guests => 20,
        }
    }

    /// The name in log messages.
    pub(crate) fn shown(self) -> &'static str {
        match self {
            Part::Upstreams => "upstreams",
            Part::Users => "sessions of users",
            Part::Guests => "sessions of clients without a user name",
        }
    }
}

/// Consumers that give way together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PartHolder<'a> {
    /// An upstream with all its lanes.
    Upstream(&'a str),
    /// All sessions of a user, and all shared subscriptions made by that user.
    User(&'a str),
    /// Everything for clients without a user name.
    Guests,
    /// A consumer of an unknown owner, by its lasting name.
    Unknown(&'a str),
}

impl PartHolder<'_> {
    /// The holder of a consumer, by its lasting name.
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

/// The bytes of a segment that records can use.
pub(crate) fn usable(settings: &JournalSettings) -> u64 {
    settings.segment_size() - DATA
}

/// The bytes of the journal that are guaranteed to a part. They are a percentage of the space without the file being written
/// and one into which others are merged.
pub(crate) fn guaranteed(part: Part, settings: &JournalSettings) -> u64 {
    settings.segments().saturating_sub(2) as u64 * usable(settings) * part.percent() / 100
}
