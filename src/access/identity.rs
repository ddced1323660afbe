//! The identity of a client and the owner of a session.
//!
//! A client id does not prove who uses it. The same client id used by different users, or by clients without a user name,
//! names different sessions, so nobody can take over another user's session by using its client id.

use std::sync::Arc;

/// The checked identity of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `None` means an anonymous client.
    pub(crate) user: Option<Box<str>>,
    pub(crate) client_id: Box<str>,
    /// The listener through which the client came, which may have users and rules of its own; `None` at doors other than
    /// MQTT listeners. It does not identify the client.
    pub(crate) listener: Option<Arc<str>>,
}

impl Identity {
    /// The name of this client's session. It is the same for the same user and client id, and different for everybody else.
    pub(crate) fn session(&self) -> Box<str> {
        SessionName { user: self.user.as_deref(), client_id: &self.client_id, is_unowned: false }.join()
    }
}

/// The parts of a session's name. Neither user names nor client ids contain NUL [MQTT-1.5.4-2], so nobody can choose a name
/// that belongs to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionName<'a> {
    /// `None` means a client without a user name.
    pub(crate) user: Option<&'a str>,
    pub(crate) client_id: &'a str,
    /// The session was made by a version that did not record the owner, so the owner is unknown.
    pub(crate) is_unowned: bool,
}

impl SessionName<'_> {
    /// Splits a session's name into its parts.
    pub(crate) fn of(name: &str) -> SessionName<'_> {
        match name.split_once('\0') {
            None => SessionName { user: None, client_id: name, is_unowned: true },
            Some((owner, client_id)) => SessionName { user: owner.strip_prefix("u/"), client_id, is_unowned: false },
        }
    }

    /// The client as it is known by its session alone.
    pub(crate) fn identity(&self) -> Identity {
        Identity { user: self.user.map(Into::into), client_id: self.client_id.into(), listener: None }
    }

    fn join(&self) -> Box<str> {
        match self.user {
            Some(user) => format!("u/{user}\0{}", self.client_id).into(),
            None => format!("g/\0{}", self.client_id).into(),
        }
    }

    /// The session name of a client with this client id and no user name.
    pub(crate) fn of_guest(client_id: &str) -> Box<str> {
        SessionName { user: None, client_id, is_unowned: false }.join()
    }
}

impl std::fmt::Display for SessionName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.client_id)?;
        match self.user {
            Some(user) => write!(f, " of user {user}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_client_id_of_different_users_is_different_sessions() {
        let name = |user: Option<&str>, client_id: &str| {
            Identity { user: user.map(Into::into), client_id: client_id.into(), listener: None }.session()
        };
        let names = [name(None, "x"), name(Some("a"), "x"), name(Some("b"), "x"), name(Some("g"), "x"), "x".into()];
        for (at, one) in names.iter().enumerate() {
            assert!(names[at + 1..].iter().all(|other| other != one));
        }
        assert_eq!(SessionName::of(&names[1]), SessionName { user: Some("a"), client_id: "x", is_unowned: false });
        assert_eq!(SessionName::of(&names[0]), SessionName { user: None, client_id: "x", is_unowned: false });
        assert_eq!(SessionName::of("x"), SessionName { user: None, client_id: "x", is_unowned: true });
        assert_eq!(SessionName::of(&names[1]).to_string(), "x of user a");
        assert_eq!(&*SessionName::of_guest("x"), &*names[0]);
    }
}
