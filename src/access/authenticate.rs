//! Authentication: one decision about who a client is, for every door (MQTT and HTTP).

use std::net::IpAddr;

use tracing::{info, warn};

use super::Access;
use super::guesses::network;
use super::hash::NOBODY;
use super::identity::Identity;
use super::password::{Attempt, PasswordVerdict};
use super::security::{SecurityKind, TARGET};

/// What a client presents when it wants to sign in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials<'a> {
    /// The user that the client's TLS certificate names. It takes precedence over user name and password.
    pub(crate) certificate_user: Option<&'a str>,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    /// The client id, or a text that stands for it in the log where the door has none.
    pub(crate) client_id: &'a str,
    pub(crate) from: IpAddr,
    /// The listener through which the client came; `None` at doors other than MQTT listeners.
    pub(crate) listener: Option<&'a str>,
}

/// A client whose identity has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authenticated {
    /// `None` means an anonymous client.
    pub(crate) user: Option<Box<str>>,
    /// The password hash that was valid at sign-in. A later change of the hash shows that the session must end.
    pub(crate) password_hash: Option<String>,
}

/// Why a client was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nobody may sign in this way, for example anonymously from this address.
    #[error("not authorized")]
    NotAuthorized,
    #[error("wrong user name or password")]
    BadCredentials,
    /// Too many password checks are waiting, or too many passwords were wrong.
    #[error("too many password checks wait, or too many passwords were wrong")]
    Busy,
}

/// An action that the rules do not allow.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) enum Denied<'a> {
    /// Publishing on this topic.
    Publish(&'a str),
    /// Subscribing with this topic filter.
    Subscribe(&'a str),
}

impl Access {
    /// Checks the credentials against the users and rules in force.
    pub(crate) async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Authenticated, Refusal> {
        if let Some(name) = credentials.certificate_user {
            return match self.authoriser.user(credentials.listener, name) {
                Some(user) => Ok(Authenticated { user: Some(name.into()), password_hash: user.password_hash.clone() }),
                None => {
                    self.refused(credentials, "there is no [[broker.user]] with the common name of its certificate");
                    Err(Refusal::NotAuthorized)
                }
            };
        }
        let has_users = self.authoriser.has_users(credentials.listener);
        let accepts_anonymous = self.authoriser.accepts_anonymous(credentials.listener, credentials.from);
        let Some(name) = credentials.username.filter(|_| has_users || !accepts_anonymous) else {
            // without any users a user name has no meaning; mosquitto ignores it too
            return if accepts_anonymous {
                Ok(Authenticated { user: None, password_hash: None })
            } else {
                self.refused(
                    credentials,
                    "it gave no user name. Add a user (pigateway user NAME) and give the client its name and password, or \
                     let clients without one in: accept = \"all\" under [broker.anonymous], or anonymous = \"all\" at its listener",
                );
                Err(Refusal::NotAuthorized)
            };
        };
        let hash = self.authoriser.user(credentials.listener, name).and_then(|user| user.password_hash.clone());
        let password = credentials.password.unwrap_or_default();
        // checking a decoy makes an unknown user cost as much time as a wrong password
        let decoy = self.authoriser.decoy(credentials.listener, name);
        let decoy = decoy.as_deref().unwrap_or(NOBODY);
        let attempt = Attempt { user: name, hash: hash.as_deref(), decoy, password, from: credentials.from };
        match self.passwords.check(&attempt).await {
            PasswordVerdict::Right => Ok(Authenticated { user: Some(name.into()), password_hash: hash }),
            PasswordVerdict::Busy => Err(Refusal::Busy),
            _ => {
                self.wrong_password(credentials);
                Err(Refusal::BadCredentials)
            }
        }
    }

    /// Logs why a client was refused and how to let it in. The same user at the same address is logged only now and then, so
    /// that a client that retries for ever does not fill the log.
    pub(crate) fn refused(&self, credentials: &Credentials<'_>, why: &str) {
        let user = credentials.certificate_user.or(credentials.username);
        if let Some(more) = self.limiter.due(network(credentials.from), (why, user)) {
            warn!(
                client_id = credentials.client_id,
                user,
                from = %credentials.from,
                more_since_last = more,
                "client refused: {why}"
            );
        }
    }

    fn wrong_password(&self, credentials: &Credentials<'_>) {
        let user = credentials.username;
        let Some(more) = self.security.happened(SecurityKind::WrongPassword, credentials.from, user) else { return };
        warn!(
            target: TARGET,
            event = SecurityKind::WrongPassword.name(),
            client_id = credentials.client_id,
            user,
            from = %credentials.from,
            more_since_last = more,
            "client refused: wrong user name or password. `pigateway user NAME` makes a new [[broker.user]] table"
        );
    }

    /// Logs that a client used a client id that belongs to another user's session, which stays as it is.
    pub(crate) fn foreign_client_id(&self, identity: &Identity, from: IpAddr) {
        let Some(more) = self.security.happened(SecurityKind::ForeignClientId, from, &identity.client_id) else {
            return;
        };
        info!(
            target: TARGET,
            event = SecurityKind::ForeignClientId.name(),
            client_id = &*identity.client_id,
            user = identity.user.as_deref(),
            %from,
            more_since_last = more,
            "this client id is another user's too: each has a session of its own"
        );
    }

    /// Logs that a client has reached a limit that keeps room for others. `what` names the limit.
    pub(crate) fn quota(&self, identity: &Identity, from: IpAddr, what: &str) {
        let Some(more) = self.security.happened(SecurityKind::Quota, from, (what, &identity.user)) else { return };
        warn!(
            target: TARGET,
            event = SecurityKind::Quota.name(),
            client_id = &*identity.client_id,
            user = identity.user.as_deref(),
            %from,
            more_since_last = more,
            "refused: too many {what}"
        );
    }

    /// Logs that the rules have denied something, for the same client and topic only now and then. MQTT 3 has no way to tell
    /// a client that its publication was refused, so the log may be the only place that shows it.
    pub(crate) fn denied(&self, identity: &Identity, from: IpAddr, denied: Denied<'_>) {
        let Some(more) = self.limiter.due(network(from), ("rules", &identity.client_id, denied)) else { return };
        let client_id = &*identity.client_id;
        let user = identity.user.as_deref();
        let whose = if user.is_some() { "its user" } else { "[broker.anonymous]" };
        match denied {
            Denied::Publish(topic) => info!(
                client_id,
                user,
                topic,
                more_since_last = more,
                "publication refused: the `publish` rules of {whose} do not allow it"
            ),
            Denied::Subscribe(filter) => info!(
                client_id,
                user,
                filter,
                more_since_last = more,
                "subscription refused: the `subscribe` rules of {whose} do not allow it"
            ),
        }
    }
}
