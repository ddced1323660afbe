//! Authorisation: one decision about what a client may do, for every door.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::identity::Identity;
use super::settings::{
    AccessRule, AccessSettings, AnonymousFrom, AnonymousSettings, ListenerAccess, Rights, UserSettings,
};
use crate::message::{covers, matches, overlap};

/// First levels of topics that brokers reserve for themselves.
const RESERVED: [&str; 3] = ["$SYS", "$share", "$CONTROL"];

/// Whether only the broker itself may publish on this topic.
pub(crate) fn is_reserved(topic: &str) -> bool {
    topic.split('/').next().is_some_and(|first| RESERVED.contains(&first))
}

/// The users and rules in force. A reload changes them; a connection keeps the permissions that it was given at sign-in.
#[derive(Debug)]
pub(crate) struct Authoriser {
    policy: ArcSwap<Policy>,
    key: RandomState,
}

#[derive(Debug)]
struct Policy {
    /// Higher than that of the policy before it.
    version: u64,
    /// For listeners without an entry in `listeners`.
    usual: Entrance,
    /// Listeners that have their own users or their own setting for anonymous clients.
    listeners: HashMap<String, Entrance>,
    reserved: Arc<[String]>,
}

/// Who may sign in at a listener.
#[derive(Debug)]
struct Entrance {
    anonymous: AnonymousSettings,
    users: HashMap<String, Arc<UserSettings>>,
    /// Hashes of existing users, checked for user names that do not exist.
    decoys: Vec<String>,
}

impl Entrance {
    fn new(anonymous: &AnonymousSettings, users: &[UserSettings]) -> Entrance {
        let decoys = users.iter().filter_map(|user| user.password_hash.clone()).collect();
        let users = users.iter().map(|user| (user.name.clone(), Arc::new(user.clone()))).collect();
        Entrance { anonymous: anonymous.clone(), users, decoys }
    }
}

impl Policy {
    fn new(settings: &AccessSettings, version: u64) -> Policy {
        let own = |access: &ListenerAccess| {
            let users = access.users.as_ref().unwrap_or(&settings.users);
            (access.listener.clone(), Entrance::new(&access.anonymous, users))
        };
        Policy {
            version,
            usual: Entrance::new(&settings.anonymous, &settings.users),
            listeners: settings.listeners.iter().map(own).collect(),
            reserved: settings.reserved.clone().into(),
        }
    }

    fn at(&self, listener: Option<&str>) -> &Entrance {
        listener.and_then(|name| self.listeners.get(name)).unwrap_or(&self.usual)
    }

    /// The permissions of a client that comes in here.
    fn permissions(&self, place: &Entrance, identity: &Identity) -> Permissions {
        let rights = match &identity.user {
            None => Some(place.anonymous.rights.clone()),
            Some(name) => place.users.get(&**name).map(|user| user.rights.clone()),
        };
        let rights = rights.unwrap_or(Rights { publish: Vec::new(), subscribe: Vec::new() });
        Permissions {
            publish: AccessRules::new(&rights.publish, identity),
            subscribe: AccessRules::new(&rights.subscribe, identity),
            rights,
            reserved: self.reserved.clone(),
        }
    }
}

impl Authoriser {
    /// Starts with the users and rules of these settings.
    pub(crate) fn new(settings: &AccessSettings) -> Authoriser {
        Authoriser { policy: ArcSwap::from_pointee(Policy::new(settings, 0)), key: RandomState::new() }
    }

    /// Replaces users and rules. Sessions for which [`Authoriser::still_holds`] is false afterwards must end.
    pub(crate) fn reload(&self, settings: &AccessSettings) {
        let version = self.version() + 1;
        self.policy.store(Arc::new(Policy::new(settings, version)));
    }

    /// Changes with the rules.
    pub(super) fn version(&self) -> u64 {
        self.policy.load().version
    }

    /// Whether at least one user may sign in at this listener.
    pub(crate) fn has_users(&self, listener: Option<&str>) -> bool {
        !self.policy.load().at(listener).users.is_empty()
    }

    /// Whether there is at least one user at any listener.
    pub(crate) fn has_any_users(&self) -> bool {
        let policy = self.policy.load();
        policy.listeners.values().chain([&policy.usual]).any(|place| !place.users.is_empty())
    }

    pub(crate) fn user(&self, listener: Option<&str>, name: &str) -> Option<Arc<UserSettings>> {
        self.policy.load().at(listener).users.get(name).cloned()
    }

    /// A hash to check when nobody has this name, so that the check costs as much time as for an existing user. It is the
    /// hash of some user, always the same one for the same name. `None` means that no user has a hash.
    pub(crate) fn decoy(&self, listener: Option<&str>, name: &str) -> Option<String> {
        let policy = self.policy.load();
        let decoys = &policy.at(listener).decoys;
        let count = decoys.len().max(1) as u64;
        decoys.get((self.key.hash_one(name) % count) as usize).cloned()
    }

    /// Whether a client without a user name may connect from this address to this listener.
    pub(crate) fn accepts_anonymous(&self, listener: Option<&str>, from: IpAddr) -> bool {
        match self.policy.load().at(listener).anonymous.accept {
            AnonymousFrom::None => false,
            AnonymousFrom::Loopback => from.to_canonical().is_loopback(),
            AnonymousFrom::All => true,
        }
    }

    /// The permissions of this client.
    pub(crate) fn permissions(&self, identity: &Identity) -> Permissions {
        let policy = self.policy.load();
        policy.permissions(policy.at(identity.listener.as_deref()), identity)
    }

    /// The permissions that this client would be given by the rules of a version; if its listener is unknown, those at each
    /// listener.
    pub(super) fn in_force(&self, identity: &Identity) -> (u64, Vec<Permissions>) {
        let policy = self.policy.load();
        let mut all = vec![policy.permissions(policy.at(identity.listener.as_deref()), identity)];
        let own = policy.listeners.values().filter(|_| identity.listener.is_none());
        for permissions in own.map(|place| policy.permissions(place, identity)) {
            if !all.contains(&permissions) {
                all.push(permissions);
            }
        }
        (policy.version, all)
    }

    /// Whether this client may publish on this topic now; if its listener is unknown, whether it may at any listener.
    pub(crate) fn may_publish(&self, identity: &Identity, topic: &str) -> bool {
        self.in_force(identity).1.iter().any(|permissions| permissions.may_publish(topic))
    }

    /// Whether a client that was given these permissions would be given the same ones now.
    pub(crate) fn still_holds(
        &self,
        identity: &Identity,
        hash: Option<&str>,
        from: IpAddr,
        given: &Permissions,
    ) -> bool {
        let listener = identity.listener.as_deref();
        match &identity.user {
            None => {
                let policy = self.policy.load();
                self.accepts_anonymous(listener, from) && policy.at(listener).anonymous.rights == given.rights
            }
            Some(name) => self.user(listener, name).is_some_and(|user| {
                let may_have_id = user.may_have_id(&identity.client_id) || is_assigned(&identity.client_id);
                user.rights == given.rights && user.password_hash.as_deref() == hash && may_have_id
            }),
        }
    }
}

/// Whether a client id has the form of those that the gateway assigns to clients that send none.
fn is_assigned(client_id: &str) -> bool {
    client_id.is_empty() || client_id.starts_with("auto-")
}

/// What one client may publish and receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permissions {
    publish: AccessRules,
    subscribe: AccessRules,
    rights: Rights,
    /// Topic filters on which only the gateway itself publishes.
    reserved: Arc<[String]>,
}

impl Permissions {
    /// The permissions of a client that may receive what these filters match.
    #[cfg(test)]
    pub(crate) fn to_receive(filters: &[&str]) -> Arc<Permissions> {
        let rule = |filter: &&str| AccessRule { deny: false, filter: (*filter).into() };
        let rights = Rights { publish: Vec::new(), subscribe: filters.iter().map(rule).collect() };
        let nobody = Identity { user: None, client_id: "".into(), listener: None };
        let [publish, subscribe] = [&rights.publish, &rights.subscribe].map(|rules| AccessRules::new(rules, &nobody));
        Arc::new(Permissions { publish, subscribe, rights, reserved: Arc::new([]) })
    }

    /// Whether the client may publish on this topic. A rule must name topics that begin with `$` explicitly, because
    /// wildcards do not match them [MQTT-4.7.2-1]. Nobody may publish on the topics that brokers reserve.
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        !is_reserved(topic) && !self.reserved.iter().any(|ours| ours == topic) && self.publish.allow(topic)
    }

    /// Whether the client may receive messages on this topic.
    pub(crate) fn may_receive(&self, topic: &str) -> bool {
        self.subscribe.allow(topic)
    }

    /// Whether the client may see the state of the gateway itself: it needs the right to receive everything, or what is
    /// below `$SYS`.
    pub(crate) fn may_observe(&self) -> bool {
        self.subscribe.allowed.iter().any(|rule| matches!(&**rule, "#" | "$SYS/#"))
            && !self.subscribe.denied.iter().any(|rule| matches!(&**rule, "#" | "$SYS/#"))
    }

    /// Whether the client may subscribe to this filter: the rules allow a part of it and do not deny all of it. Denied
    /// messages are left out at delivery.
    pub(crate) fn may_subscribe(&self, filter: &str) -> bool {
        let reaches = |rule: &str| overlap(rule, filter) && !(filter.starts_with('$') && rule.starts_with(['+', '#']));
        self.subscribe.allowed.iter().any(|rule| reaches(rule))
            && !self.subscribe.denied.iter().any(|rule| covers(rule, filter))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AccessRules {
    allowed: Vec<Box<str>>,
    denied: Vec<Box<str>>,
    /// A rule allows every topic that does not begin with `$`, so the other rules need not be searched.
    all: bool,
}

impl AccessRules {
    fn new(rules: &[AccessRule], identity: &Identity) -> AccessRules {
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        for rule in rules {
            let within_one_level = |name: &str| !name.contains(['+', '#', '/']);
            match expand(&rule.filter, identity, within_one_level) {
                Some(filter) if rule.deny => denied.push(filter),
                // only a rule itself may name topics that begin with `$`, and not whoever chooses a name
                Some(filter) if filter.starts_with('$') && !rule.filter.starts_with('$') => {}
                Some(filter) => allowed.push(filter),
                // the name would change the shape of the filter, so allow nothing, and deny everything that it may stand for
                None if rule.deny => {
                    denied.extend(expand(&rule.filter, identity, |name| !name.contains(['+', '#'])));
                    denied.push(rule.filter.replace("%u", "+").replace("%c", "+").into());
                }
                None => {}
            }
        }
        let all = denied.is_empty() && allowed.iter().any(|filter| &**filter == "#");
        AccessRules { allowed, denied, all }
    }

    fn allow(&self, topic: &str) -> bool {
        (self.all && !topic.starts_with('$'))
            || (self.allowed.iter().any(|filter| matches(filter, topic))
                && !self.denied.iter().any(|filter| matches(filter, topic)))
    }
}

/// Replaces `%u` and `%c` in the filter. Returns `None` if there is no value to put there, or if one does not
/// fit.
fn expand(filter: &str, identity: &Identity, fits: impl Fn(&str) -> bool) -> Option<Box<str>> {
    let is_plain = |name: &&str| !name.is_empty() && !name.contains('\0') && fits(name);
    let mut expanded = String::with_capacity(filter.len());
    let mut rest = filter;
    while let Some(at) = rest.find('%') {
        expanded.push_str(&rest[..at]);
        match rest[at..].get(..2) {
            Some("%u") => expanded.push_str(identity.user.as_deref().filter(is_plain)?),
            Some("%c") => expanded.push_str(Some(&*identity.client_id).filter(is_plain)?),
            _ => {
                expanded.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        }
        rest = &rest[at + 2..];
    }
    expanded.push_str(rest);
    Some(expanded.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions(publish: &[&str], subscribe: &[&str], client_id: &str) -> Permissions {
        let rules = |rules: &[&str]| {
            rules
                .iter()
                .map(|rule| AccessRule { deny: rule.starts_with('!'), filter: rule.trim_start_matches('!').into() })
                .collect()
        };
        let user = UserSettings {
            name: "u".into(),
            password_hash: None,
            rights: Rights { publish: rules(publish), subscribe: rules(subscribe) },
            client_ids: Vec::new(),
            is_admin: false,
        };
        let settings = AccessSettings { users: vec![user], ..AccessSettings::default() };
        let identity = Identity { user: Some("u".into()), client_id: client_id.into(), listener: None };
        Authoriser::new(&settings).permissions(&identity)
    }

    #[test]
    fn a_denial_wins_and_dollar_topics_must_be_named() {
        let p = permissions(&["loft/#"], &["loft/#", "!loft/private/#"], "c");
        assert!(p.may_publish("loft/a") && !p.may_publish("attic/a"));
        assert!(p.may_receive("loft/a") && !p.may_receive("loft/private/a") && !p.may_receive("attic"));
        assert!(p.may_subscribe("loft/#") && p.may_subscribe("#") && p.may_subscribe("+/+"));
        assert!(!p.may_subscribe("attic/#") && !p.may_subscribe("loft/private/+"));
        let p = permissions(&["#"], &["#"], "c");
        assert!(!p.may_publish("$SYS/x") && !p.may_receive("$SYS/x") && !p.may_subscribe("$SYS/#"));
        let p = permissions(&["#", "$SYS/#"], &["$SYS/broker/#"], "c");
        assert!(!p.may_publish("$SYS/broker/x"), "not even when named");
        assert!(p.may_receive("$SYS/broker/x") && p.may_subscribe("$SYS/#"));
        assert!(!p.may_publish("$aws/x"), "no wildcard reaches it");
        let p = permissions(&["$aws/#", "!$aws/rules/#", "$share/#", "$CONTROL/#", "+/x"], &["#"], "c");
        assert!(p.may_publish("$aws/things/a/shadow/update") && !p.may_publish("$aws/rules/a"));
        assert!(["$share/g/t", "$CONTROL/x", "$SYS", "$iothub/x"].iter().all(|topic| !p.may_publish(topic)));
    }

    #[test]
    fn what_the_gateway_says_of_itself_is_published_by_nobody_else() {
        let settings = AccessSettings { reserved: vec!["pigateway/loft/status".into()], ..AccessSettings::default() };
        let anyone = Identity { user: None, client_id: "c".into(), listener: None };
        let p = Authoriser::new(&settings).permissions(&anyone);
        assert!(!p.may_publish("pigateway/loft/status") && p.may_receive("pigateway/loft/status"));
        assert!(p.may_publish("pigateway/attic/status") && p.may_publish("pigateway/loft/status/x"));
    }

    #[test]
    fn names_cannot_widen_a_rule() {
        let p = permissions(&["dev/%c/#", "user/%u"], &["#", "!secret/%c"], "esp");
        assert!(p.may_publish("dev/esp/a") && p.may_publish("user/u") && !p.may_publish("dev/other/a"));
        assert!(!p.may_receive("secret/esp") && p.may_receive("secret/other"));
        for evil in ["+", "#", "a/b", "", "es+p"] {
            let p = permissions(&["dev/%c/#"], &["#", "!secret/%c"], evil);
            assert!(!p.may_publish("dev/a/b") && !p.may_publish("dev/esp/a") && !p.may_publish("dev//a"), "{evil}");
            assert!(!p.may_receive("secret/a"), "{evil}");
        }
        let p = permissions(&["#", "!all/%c/%u"], &["#", "!secret/%c"], "a/b");
        assert!(!p.may_receive("secret/a/b") && p.may_receive("secret/a/c"), "a denial of several levels holds too");
        assert!(!p.may_publish("all/a/b/u") && p.may_publish("all/a/b/v") && !p.may_publish("all/a/u"));
    }

    #[test]
    fn a_name_does_not_open_topics_that_begin_with_a_dollar_sign() {
        for name in ["$SYS", "$", "$aws"] {
            let p = permissions(&["%c/#"], &["%c/#", "%c%u/#", "dev/%c"], name);
            let below = format!("{name}/broker/uptime");
            assert!(
                !p.may_receive(&below) && !p.may_subscribe(&format!("{name}/#")) && !p.may_publish(&below),
                "{name}"
            );
            assert!(p.may_receive(&format!("dev/{name}")), "{name}");
        }
        let p = permissions(&[], &["$%c/#", "!%c/a"], "SYS");
        assert!(p.may_receive("$SYS/a"), "the rule has the sign");
        let p = permissions(&[], &["$SYS/#", "!%c/a"], "$SYS");
        assert!(!p.may_receive("$SYS/a") && p.may_receive("$SYS/b"), "a denial denies what it says");
    }

    #[test]
    fn anonymous_clients_come_from_where_the_settings_say() {
        let mut settings = AccessSettings::default();
        let loopback = ["127.0.0.1", "::1", "::ffff:127.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap());
        let far: IpAddr = "192.0.2.1".parse().unwrap();
        let authoriser = Authoriser::new(&settings);
        assert!(
            loopback.iter().all(|from| authoriser.accepts_anonymous(None, *from))
                && !authoriser.accepts_anonymous(None, far)
        );
        settings.anonymous.accept = AnonymousFrom::All;
        authoriser.reload(&settings);
        assert!(authoriser.accepts_anonymous(None, far));
        settings.anonymous.accept = AnonymousFrom::None;
        authoriser.reload(&settings);
        assert!(!authoriser.accepts_anonymous(None, loopback[0]));
    }

    #[test]
    fn a_listener_has_users_and_guests_of_its_own_where_it_says_so() {
        let user = |name: &str, rule: &str| UserSettings {
            name: name.into(),
            password_hash: Some(format!("hash of {name}")),
            rights: Rights { publish: vec![AccessRule { deny: false, filter: rule.into() }], subscribe: Vec::new() },
            client_ids: Vec::new(),
            is_admin: false,
        };
        let own = |listener: &str, accept, users| ListenerAccess {
            listener: listener.into(),
            anonymous: AnonymousSettings { accept, ..AnonymousSettings::default() },
            users,
        };
        let settings = AccessSettings {
            users: vec![user("a", "usual/#"), user("b", "usual/#")],
            listeners: vec![
                own("open", AnonymousFrom::All, None),
                own("own", AnonymousFrom::None, Some(vec![user("a", "own/#")])),
            ],
            ..AccessSettings::default()
        };
        let authoriser = Authoriser::new(&settings);
        let (here, far) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let guests = |listener| [here, far].map(|from| authoriser.accepts_anonymous(listener, from));
        assert_eq!(guests(None), [true, false]);
        assert_eq!(guests(Some("another")), [true, false]);
        assert_eq!(guests(Some("open")), [true, true]);
        assert_eq!(guests(Some("own")), [false, false]);
        assert!(authoriser.user(Some("open"), "b").is_some() && authoriser.user(Some("own"), "b").is_none());
        let may = |listener: Option<&str>, topic| {
            let listener = listener.map(Into::into);
            let identity = Identity { user: Some("a".into()), client_id: "c".into(), listener };
            authoriser.permissions(&identity).may_publish(topic)
        };
        assert!(may(None, "usual/x") && may(Some("open"), "usual/x") && !may(None, "own/x"));
        assert!(may(Some("own"), "own/x") && !may(Some("own"), "usual/x"));
    }
}
