//! Users that are made, changed and removed while the gateway runs: what is asked for, and what may come of it.
//!
//! Doors ask; whoever composes the gateway writes the file, has the change act, and answers. One request waits for another,
//! and only so many may wait.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::settings::{AccessRule, UserSettings};
use crate::secret::Secret;

/// Requests that may wait.
const MOST_WAITING: usize = 16;
/// Users that may be made. Those of the configuration do not count.
pub(crate) const MOST_MADE: usize = 1000;

/// What is to become of a user. What is left out stays as it is, and is as in `[[broker.user]]` where the user is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UserDraft {
    /// Password, from which a hash is made.
    pub(crate) password: Option<Secret>,
    /// Topics that it may publish to.
    pub(crate) publish: Option<Vec<AccessRule>>,
    /// Topics that it may receive.
    pub(crate) subscribe: Option<Vec<AccessRule>>,
    /// Client ids that its clients may have.
    pub(crate) client_ids: Option<Vec<String>>,
}

/// What is to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UserChange {
    /// There is to be one more.
    Add(String, UserDraft),
    /// One is to be different.
    Change(String, UserDraft),
    /// One is to be gone.
    Remove(String),
}

impl UserChange {
    /// Whom it is about.
    pub(crate) fn name(&self) -> &str {
        match self {
            UserChange::Add(name, _) | UserChange::Change(name, _) | UserChange::Remove(name) => name,
        }
    }
}

/// Why nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeRefused {
    /// The name is taken.
    #[error("there is a user of this name already")]
    Exists,
    /// It stands in the configuration.
    #[error("this user stands in the configuration file, which wins: change it there")]
    Configured,
    /// There is no such user among those that were made.
    #[error("there is no such user")]
    Unknown,
    /// A user who is new needs one.
    #[error("a new user needs a password")]
    NoPassword,
    /// There are as many as there may be.
    #[error("there are {MOST_MADE} users already")]
    TooMany,
    /// The file cannot hold it.
    #[error("with this change, the file of the users would be larger than 4 MiB, or not say the same")]
    TooLarge,
    /// Somebody has broken the file; it stays as it is.
    #[error("{0}. Nothing is changed until that is mended")]
    Broken(String),
    /// The file cannot be written.
    #[error("the users cannot be written: {0}")]
    Unwritten(String),
    /// Too many wait, or the gateway is going down: nothing has happened.
    #[error("the gateway cannot change users now")]
    Busy,
    /// The gateway went down while it was at it.
    #[error("the gateway goes down: whether this has been done is seen once it is back")]
    Uncertain,
}

/// All users, by where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserLists {
    /// Those of the configuration.
    pub(crate) configured: Vec<UserSettings>,
    /// Those that were made. One whose name the configuration has too does not count.
    pub(crate) made: Vec<UserSettings>,
}

impl UserLists {
    /// The users that may sign in: those of the configuration, and those made here whose names it does not have.
    pub(crate) fn in_force(&self) -> Vec<UserSettings> {
        let counts = |user: &&UserSettings| !self.is_configured(&user.name);
        self.configured.iter().chain(self.made.iter().filter(counts)).cloned().collect()
    }

    /// Whether the configuration has this name.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.configured.iter().any(|user| user.name == name)
    }
}

/// A change that somebody waits for.
#[derive(Debug)]
pub struct UserRequest {
    /// What is to change.
    pub(crate) change: UserChange,
    /// The user who asks.
    pub(crate) by: String,
    /// Told once it is on disk and acts: the user as it is now.
    pub(crate) reply: oneshot::Sender<Result<Option<UserSettings>, ChangeRefused>>,
}

/// The end at which doors hand in changes, for the one task that makes them.
#[derive(Clone, Debug)]
pub struct UserDesk {
    requests: mpsc::Sender<UserRequest>,
    lists: watch::Receiver<Arc<UserLists>>,
}

impl UserDesk {
    /// With the place where requests arrive.
    pub fn new(lists: watch::Receiver<Arc<UserLists>>) -> (UserDesk, mpsc::Receiver<UserRequest>) {
        let (requests, arriving) = mpsc::channel(MOST_WAITING);
        (UserDesk { requests, lists }, arriving)
    }

    /// All users as they are now.
    pub(crate) fn lists(&self) -> Arc<UserLists> {
        self.lists.borrow().clone()
    }

    /// Has something changed; returns once that is on disk and acts. It goes on when whoever asks has gone.
    pub(crate) async fn change(&self, change: UserChange, by: &str) -> Result<Option<UserSettings>, ChangeRefused> {
        let (reply, answer) = oneshot::channel();
        let request = UserRequest { change, by: by.into(), reply };
        self.requests.try_send(request).map_err(|_| ChangeRefused::Busy)?;
        answer.await.unwrap_or(Err(ChangeRefused::Uncertain))
    }
}
