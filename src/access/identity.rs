//! Who a client is, and whose a session is.
//!
//! A client id says nothing about who uses it: client ids of different users, and of clients without a user name, are
//! different sessions, so that nobody takes over what belongs to another user by using its client id.

use std::sync::Arc;

/// Who a client says it is, as far as it has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// User name; `None`: anonymous.
    pub(crate) user: Option<Box<str>>,
    pub(crate) client_id: Box<str>,
    /// The listener that it came through, which may have users and rules of its own; `None`: another door. It says nothing
    /// about who the client is.
    pub(crate) listener: Option<Arc<str>>,
}

impl Identity {
    /// The name of this client's session: the same for the same user and client id, and for nobody else.
    pub(crate) fn session(&self) -> Box<str> {
        SessionName { user: self.user.as_deref(), client_id: &self.client_id, is_unowned: false }.join()
    }
}

/// A session's name, taken apart. Neither user names nor client ids contain NUL [MQTT-1.5.4-2], so nobody can choose a
/// name that belongs to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionName<'a> {
    /// The user it belongs to; `None`: to a client without a user name.
    pub(crate) user: Option<&'a str>,
    pub(crate) client_id: &'a str,
    /// It was made by a version that did not note whose a session was: nobody knows.
    pub(crate) is_unowned: bool,
}

impl SessionName<'_> {
    /// Takes a name apart.
    pub(crate) fn of(name: &str) -> SessionName<'_> {
        match name.split_once('\0') {
            None => SessionName { user: None, client_id: name, is_unowned: true },
            Some((owner, client_id)) => SessionName { user: owner.strip_prefix("u/"), client_id, is_unowned: false },
        }
    }

    fn join(&self) -> Box<str> {
        match self.user {
            Some(user) => format!("u/{user}\0{}", self.client_id).into(),
            None => format!("g/\0{}", self.client_id).into(),
        }
    }

    /// The name that a client without a user name would have with the same client id.
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
