//! Who a client is: one decision for every door.

use std::net::IpAddr;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};
use tracing::warn;

use super::core::Core;
use super::password::Verdict;

/// What a client shows.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// User named by its TLS client certificate; goes before the others.
    pub certificate_user: Option<&'a str>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Client id, or what stands for it in the log.
    pub client_id: &'a str,
    /// Where it comes from.
    pub from: IpAddr,
}

/// A client that is who it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// User name; `None`: anonymous.
    pub user: Option<Box<str>>,
    /// Hash in force, by which a later change is noticed.
    pub password_hash: Option<String>,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody is let in that way.
    #[error("not authorized")]
    NotAuthorized,
    /// Wrong user name or password.
    #[error("wrong user name or password")]
    BadCredentials,
    /// Too many password checks wait.
    #[error("too many password checks wait")]
    Busy,
}

/// Checks who it is.
pub async fn authenticate(core: &Core, credentials: &Credentials<'_>) -> Result<Authenticated, Refusal> {
    if let Some(name) = credentials.certificate_user {
        return match core.authoriser.user(name) {
            Some(user) => Ok(Authenticated { user: Some(name.into()), password_hash: user.password_hash.clone() }),
            None => {
                refused(credentials, "there is no [[broker.user]] with the common name of its certificate");
                Err(Refusal::NotAuthorized)
            }
        };
    }
    let has_users = !core.settings.load().users.is_empty();
    let accepts_anonymous = core.authoriser.accepts_anonymous(credentials.from);
    let Some(name) = credentials.username.filter(|_| has_users || !accepts_anonymous) else {
        // where there are no users, a user name means nothing, as it does to mosquitto
        return if accepts_anonymous {
            Ok(Authenticated { user: None, password_hash: None })
        } else {
            refused(
                credentials,
                "it gave no user name. Add a user (pigateway user NAME) and give the client its name and password, or \
                 let clients without one in: accept = \"all\" under [broker.anonymous]",
            );
            Err(Refusal::NotAuthorized)
        };
    };
    let hash = core.authoriser.user(name).and_then(|user| user.password_hash.clone());
    let password = credentials.password.unwrap_or_default();
    // an unknown user costs as much time as a wrong password
    let against = hash.as_deref().unwrap_or(NOBODY);
    match core.passwords.check(name, against, password, credentials.from).await {
        Verdict::Right if hash.is_some() => Ok(Authenticated { user: Some(name.into()), password_hash: hash }),
        Verdict::Busy => Err(Refusal::Busy),
        _ => {
            refused(
                credentials,
                "wrong user name or password. `pigateway user NAME` makes a new [[broker.user]] table",
            );
            Err(Refusal::BadCredentials)
        }
    }
}

/// A hash that no password has.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Says why a client was refused and how to let it in; at most once in ten seconds, so that a client that tries for ever
/// does not fill the log.
pub(super) fn refused(credentials: &Credentials<'_>, why: &str) {
    static LAST: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let now = Instant::now();
    let mut last = LAST.lock();
    match &mut *last {
        Some((at, more)) if now.duration_since(*at) < Duration::from_secs(10) => *more += 1,
        slot => {
            let more = slot.map_or(0, |(_, more)| more);
            *slot = Some((now, 0));
            drop(last);
            warn!(
                client_id = credentials.client_id,
                user = credentials.username,
                from = %credentials.from,
                more_since_last = more,
                "client refused: {why}"
            );
        }
    }
}
