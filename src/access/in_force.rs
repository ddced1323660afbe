//! The rights of a client that is not connected.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Access;
use super::authorise::Permissions;
use super::identity::Identity;

/// What a client that is not connected may receive. A connection ends when its client's rights change; this follows the
/// rules in force instead.
#[derive(Debug)]
pub(crate) struct RightsInForce {
    access: Arc<Access>,
    identity: Identity,
    known: Mutex<KnownRights>,
}

/// The rights by the rules of one version.
#[derive(Debug)]
struct KnownRights {
    version: u64,
    permissions: Vec<Permissions>,
}

impl RightsInForce {
    /// The rights of this client. If it is not known through which listener it comes, it has those of each one.
    pub(crate) fn of(access: &Arc<Access>, identity: Identity) -> RightsInForce {
        let (version, permissions) = access.authoriser.in_force(&identity);
        RightsInForce { access: access.clone(), identity, known: Mutex::new(KnownRights { version, permissions }) }
    }

    /// Whether the client might receive messages on this topic now.
    pub(crate) fn may_receive(&self, topic: &str) -> bool {
        let authoriser = &self.access.authoriser;
        let mut known = self.known.lock();
        if known.version != authoriser.version() {
            let (version, permissions) = authoriser.in_force(&self.identity);
            *known = KnownRights { version, permissions };
        }
        known.permissions.iter().any(|permissions| permissions.may_receive(topic))
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{AccessRule, AccessSettings, AnonymousSettings, ListenerAccess};
    use super::*;

    fn guests(filter: &str) -> AnonymousSettings {
        let mut guests = AnonymousSettings::default();
        guests.rights.subscribe = vec![AccessRule { deny: false, filter: filter.into() }];
        guests
    }

    fn may_receive(usual: &str, at_a_listener: &str) -> AccessSettings {
        let listener = ListenerAccess { listener: "own".into(), anonymous: guests(at_a_listener), users: None };
        AccessSettings { anonymous: guests(usual), listeners: vec![listener], ..AccessSettings::default() }
    }

    #[test]
    fn they_change_with_the_rules_and_are_those_of_every_listener_if_it_is_unknown() {
        let access = Arc::new(Access::new(&may_receive("a/#", "b/#")));
        let rights = |listener: Option<&str>| {
            let identity = Identity { user: None, client_id: "c".into(), listener: listener.map(Into::into) };
            RightsInForce::of(&access, identity)
        };
        let all = [rights(Some("usual")), rights(Some("own")), rights(None)];
        let may = |topic: &str| all.each_ref().map(|rights| rights.may_receive(topic));
        assert_eq!((may("a/x"), may("b/x"), may("c/x")), ([true, false, true], [false, true, true], [false; 3]));
        access.reload(&may_receive("b/#", "c/#"));
        assert_eq!((may("a/x"), may("b/x"), may("c/x")), ([false; 3], [true, false, true], [false, true, true]));
    }
}
