//! Users that administrators add, change and remove while the gateway runs: the requests and their results.
//!
//! HTTP hands in a request; the room `app` writes the file, puts the change into force and answers. Requests are served one
//! after the other, and a limited number may wait.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::settings::{AccessRule, UserSettings};
use crate::secret::Secret;

const MOST_WAITING: usize = 16;
/// Most users that can be added at run time. Those of the configuration do not count.
pub(crate) const MOST_MADE: usize = 1000;

/// The wanted values of a user. A field that is `None` leaves the value as it is, or at the default of `[[broker.user]]` for
/// a new user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UserDraft {
    /// Plain password, from which a hash is made.
    pub(crate) password: Option<Secret>,
    pub(crate) publish: Option<Vec<AccessRule>>,
    pub(crate) subscribe: Option<Vec<AccessRule>>,
    /// Patterns for the client ids that the user's clients may have.
    pub(crate) client_ids: Option<Vec<String>>,
}

/// A change of a user that an administrator has requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UserChange {
    Add(String, UserDraft),
    Change(String, UserDraft),
    Remove(String),
}

impl UserChange {
    /// The name of the user that the change is about.
    pub(crate) fn name(&self) -> &str {
        match self {
            UserChange::Add(name, _) | UserChange::Change(name, _) | UserChange::Remove(name) => name,
        }
    }
}

/// Why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeRefused {
    /// A user that was added at run time has this name already.
    #[error("there is a user of this name already")]
    Exists,
    /// The user is part of the configuration, which only a person with access to the file can change.
    #[error("this user stands in the configuration file, which wins: change it there")]
    Configured,
    /// No user with this name was added at run time.
    #[error("there is no such user")]
    Unknown,
    /// A new user needs a password.
    #[error("a new user needs a password")]
    NoPassword,
    /// There are as many users as are allowed.
    #[error("there are {MOST_MADE} users already")]
    TooMany,
    /// The file format cannot represent the values.
    #[error("with this change, the file of the users would be larger than 4 MiB, or not say the same")]
    TooLarge,
    /// The file was damaged by somebody; the gateway does not overwrite it.
    #[error("{0}. Nothing is changed until that is mended")]
    Broken(String),
    #[error("the users cannot be written: {0}")]
    Unwritten(String),
    /// Too many requests are waiting, or the gateway is stopping. Nothing has changed.
    #[error("the gateway cannot change users now")]
    Busy,
    /// The gateway stopped while the change was being made, so its result is unknown.
    #[error("the gateway goes down: whether this has been done is seen once it is back")]
    Uncertain,
}

/// All users, separated by their source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserLists {
    pub(crate) configured: Vec<UserSettings>,
    /// Users added at run time. If the configuration has a user of the same name, that one counts.
    pub(crate) made: Vec<UserSettings>,
}

impl UserLists {
    /// The users that can sign in: those of the configuration, and those added at run time whose names it does not have.
    pub(crate) fn in_force(&self) -> Vec<UserSettings> {
        let counts = |user: &&UserSettings| !self.is_configured(&user.name);
        self.configured.iter().chain(self.made.iter().filter(counts)).cloned().collect()
    }

    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|user| user.name == name)
    }
}

/// A change whose result somebody is waiting for.
#[derive(Debug)]
pub struct UserRequest {
    pub(crate) change: UserChange,
    /// The name of the administrator who asks.
    pub(crate) by: String,
    /// Gets the resulting user once the change is on disk and in force.
    pub(crate) reply: oneshot::Sender<Result<Option<UserSettings>, ChangeRefused>>,
}

/// The side at which HTTP hands in changes for the one task that makes them.
#[derive(Clone, Debug)]
pub struct UserDesk {
    requests: mpsc::Sender<UserRequest>,
    lists: watch::Receiver<Arc<UserLists>>,
}

impl UserDesk {
    /// Also returns the queue in which the requests arrive.
    pub fn new(lists: watch::Receiver<Arc<UserLists>>) -> (UserDesk, mpsc::Receiver<UserRequest>) {
        let (requests, arriving) = mpsc::channel(MOST_WAITING);
        (UserDesk { requests, lists }, arriving)
    }

    pub(crate) fn lists(&self) -> Arc<UserLists> {
        self.lists.borrow().clone()
    }

    /// Requests a change and returns when it is on disk and in force. The change is completed even if the caller stops
    /// waiting.
    pub(crate) async fn change(&self, change: UserChange, by: &str) -> Result<Option<UserSettings>, ChangeRefused> {
        let (reply, answer) = oneshot::channel();
        let request = UserRequest { change, by: by.into(), reply };
        self.requests.try_send(request).map_err(|_| ChangeRefused::Busy)?;
        answer.await.unwrap_or(Err(ChangeRefused::Uncertain))
    }
}
