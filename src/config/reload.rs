//! Compares two configurations, and decides what can be applied while the gateway runs.

use super::home_assistant;
use super::settings::Settings;
use crate::access::settings::{ListenerAccess, UserSettings};
use crate::broker::settings::ListenerSettings;
use crate::sensors::settings::SensorSettings;
use crate::upstream::settings::{Protocol, UpstreamSettings, need_v5, returns, set_v5_only};

/// The consequences of a changed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reload {
    /// The settings in force from now on: the new ones, but the old ones where a change needs a restart.
    pub(crate) settings: Settings,
    /// Whether the log level has changed.
    pub(crate) log: bool,
    /// Whether the rights of anonymous clients have changed.
    pub(crate) anonymous: bool,
    /// Whether a limit of the broker has changed.
    pub(crate) limits: bool,
    /// The names of new users.
    pub(crate) users_added: Vec<String>,
    /// The names of users that are gone or have another password. Their connections end.
    pub(crate) users_revoked: Vec<String>,
    /// The names of users whose rights have changed.
    pub(crate) users_access: Vec<String>,
    /// The names of sensors that are new or have another pin.
    pub(crate) sensors_started: Vec<String>,
    /// The names of sensors that are gone or have another pin.
    pub(crate) sensors_stopped: Vec<String>,
    /// The names of sensors that go on with other settings.
    pub(crate) sensors_changed: Vec<String>,
    /// The names of upstreams whose rules have changed.
    pub(crate) rules: Vec<String>,
    /// The keys whose change needs a restart.
    pub(crate) restart: Vec<String>,
}

impl Reload {
    /// Compares the settings in force with those that were read.
    pub(crate) fn plan(old: &Settings, new: &Settings) -> Reload {
        let mut restart = restart_keys(old, new);
        let mut settings = new.clone();
        settings.gateway = old.gateway.clone();
        settings.broker.listeners = old.broker.listeners.clone();
        settings.broker.access.listeners.extend(gone_listeners(old, new));
        settings.gpio = old.gpio.clone();
        settings.journal = old.journal.clone();
        settings.order = old.order;
        settings.http = old.http.clone();
        settings.home_assistant = old.home_assistant.clone();
        home_assistant::apply(&settings.home_assistant.clone(), &mut settings);
        settings.upstreams = upstreams(&old.upstreams, &new.upstreams, &mut restart);
        let same_name = |a: &UserSettings, b: &UserSettings| a.name == b.name;
        let (old_users, new_users) = (&old.broker.access.users, &new.broker.access.users);
        let same_password = |a: &UserSettings, b: &UserSettings| a.name == b.name && a.password_hash == b.password_hash;
        let users =
            |users: &[UserSettings], others: &[UserSettings], same: &dyn Fn(&UserSettings, &UserSettings) -> bool| {
                users
                    .iter()
                    .filter(|user| !others.iter().any(|other| same(user, other)))
                    .map(|user| user.name.clone())
                    .collect()
            };
        let access = |user: &&UserSettings| {
            old_users
                .iter()
                .any(|was| same_password(was, user) && (&was.rights, was.is_admin) != (&user.rights, user.is_admin))
        };
        let sensors = |sensors: &[SensorSettings], others: &[SensorSettings]| {
            let is_other = |sensor: &&SensorSettings| !others.iter().any(|other| other.has_same_pin(sensor));
            sensors.iter().filter(is_other).map(|sensor| sensor.name.clone()).collect()
        };
        let has_changed =
            |sensor: &&SensorSettings| old.sensors.iter().any(|was| was.has_same_pin(sensor) && was != *sensor);
        Reload {
            log: old.log != new.log,
            anonymous: old.broker.access.anonymous != new.broker.access.anonymous
                || old.broker.access.listeners != settings.broker.access.listeners,
            limits: limits_differ(old, new),
            users_added: users(new_users, old_users, &same_name),
            users_revoked: users(old_users, new_users, &same_password),
            users_access: new_users.iter().filter(access).map(|user| user.name.clone()).collect(),
            sensors_started: sensors(&settings.sensors, &old.sensors),
            sensors_stopped: sensors(&old.sensors, &settings.sensors),
            sensors_changed: settings.sensors.iter().filter(has_changed).map(|sensor| sensor.name.clone()).collect(),
            rules: changed_rules(&old.upstreams, &settings.upstreams),
            settings,
            restart,
        }
    }
}

/// The access settings of listeners that are gone from the file and stay open until the restart. Users that could sign in
/// there before and still exist keep the access, with their present rights. New users do not get it, because they may have
/// been added for the remaining listeners only. If only a listener's address has changed, its users are in the file at
/// another listener, and are recognised by name and password.
fn gone_listeners(old: &Settings, new: &Settings) -> Vec<ListenerAccess> {
    let access = &old.broker.access;
    let names = old.broker.listeners.iter().map(ListenerSettings::name);
    let gone = names.filter(|name| !new.broker.listeners.iter().any(|listener| listener.name() == *name));
    let as_before = |name: String| {
        let own = access.listeners.iter().find(|own| own.listener == name).cloned();
        let anonymous = access.anonymous.clone();
        let mut own = own.unwrap_or(ListenerAccess { listener: name, anonymous, users: None });
        let before = own.users.unwrap_or_else(|| access.users.clone());
        let now = |user: UserSettings| {
            let is_of_all = access.users.contains(&user);
            let of_all = new.broker.access.users.iter().find(|other| other.name == user.name);
            let same = |other: &&UserSettings| other.name == user.name && other.password_hash == user.password_hash;
            let own = new.broker.access.listeners.iter().filter_map(|own| own.users.as_ref()).flatten();
            // if several match, prefer one with the same rights
            let own = own.filter(same).min_by_key(|other| **other != user);
            if is_of_all { of_all.or(own) } else { own.or(of_all) }.cloned()
        };
        own.users = Some(before.into_iter().filter_map(now).collect());
        own
    };
    gone.map(as_before).collect()
}

/// The keys whose values differ.
fn differing(keys: &[(&str, bool)]) -> Vec<String> {
    keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).into()).collect()
}

fn restart_keys(old: &Settings, new: &Settings) -> Vec<String> {
    differing(&[
        ("gateway.id", old.gateway.id != new.gateway.id),
        ("gateway.data_dir", old.gateway.data_dir != new.gateway.data_dir),
        ("broker.listener", old.broker.listeners != new.broker.listeners),
        ("gpio.backend", old.gpio.backend != new.gpio.backend),
        ("gpio.chip", old.gpio.chip != new.gpio.chip),
        ("journal.max_size", old.journal.max_size != new.journal.max_size),
        ("journal.when_full", old.journal.when_full != new.journal.when_full),
        ("journal.order", old.order != new.order),
        ("http.address", old.http.address != new.http.address),
        ("http.allowed_hosts", old.http.allowed_hosts != new.http.allowed_hosts),
        ("http.trusted_proxies", old.http.trusted_proxies != new.http.trusted_proxies),
        ("http.frame_ancestors", old.http.frame_ancestors != new.http.frame_ancestors),
        ("http.tls", old.http.tls != new.http.tls),
        ("home_assistant", old.home_assistant != new.home_assistant),
    ])
}

fn limits_differ(old: &Settings, new: &Settings) -> bool {
    // compare what is left after everything else in the section has been made equal
    let mut limits = new.broker.clone();
    limits.access = old.broker.access.clone();
    limits.listeners = old.broker.listeners.clone();
    limits != old.broker
}

/// The old upstreams with the new rules. If the protocol differs, the rules stay old, because the new ones may be correct
/// only with the new protocol. The same holds for rules that would loop with those of another upstream in force.
fn upstreams(old: &[UpstreamSettings], new: &[UpstreamSettings], restart: &mut Vec<String>) -> Vec<UpstreamSettings> {
    let added = new.iter().filter(|upstream| !old.iter().any(|was| was.name == upstream.name));
    restart.extend(added.map(|upstream| format!("upstream {} (new)", upstream.name)));
    let mut in_force = Vec::new();
    for was in old {
        let Some(upstream) = new.iter().find(|upstream| upstream.name == was.name) else {
            restart.push(format!("upstream {} (gone)", was.name));
            in_force.push(was.clone());
            continue;
        };
        let keys = connection_keys(was, upstream);
        restart.extend(keys.iter().map(|key| format!("upstream {}: {key}", was.name)));
        let mut kept = was.clone();
        if was.protocol == upstream.protocol {
            kept.out = upstream.out.clone();
            kept.inbound = upstream.inbound.clone();
            kept.both = upstream.both.clone();
        }
        in_force.push(kept);
    }
    while let Some((one, two)) = looping(old, &in_force) {
        for at in [one, two] {
            if in_force[at] != old[at] {
                restart.push(format!("upstream {}: its rules, which would loop until then", old[at].name));
                in_force[at] = old[at].clone();
            }
        }
    }
    set_v5_only(&mut in_force);
    in_force
}

/// Two upstreams, by their places, that would loop because one of them still speaks MQTT 3.1.1 and one has new rules. Both are
/// the same if it is the gateway itself.
fn looping(old: &[UpstreamSettings], in_force: &[UpstreamSettings]) -> Option<(usize, usize)> {
    let pairs = (0..in_force.len()).flat_map(|one| (0..=one).map(move |two| (one, two)));
    let is_new = |at: usize| in_force[at] != old[at];
    let is_v4 = |at: usize| in_force[at].protocol == Protocol::V4;
    let mut looping = pairs.filter(|&(one, two)| is_new(one) || is_new(two));
    let is_looping = |one: usize, two| need_v5(&in_force[one], &in_force[two]) || one == two && returns(&in_force[one]);
    looping.find(|&(one, two)| (is_v4(one) || is_v4(two)) && is_looping(one, two))
}

fn connection_keys(old: &UpstreamSettings, new: &UpstreamSettings) -> Vec<String> {
    differing(&[
        ("addresses", old.addresses != new.addresses),
        ("protocol", old.protocol != new.protocol),
        ("client_id", old.client_id != new.client_id),
        ("username", old.username != new.username),
        ("password_file or password_command", old.password != new.password),
        ("proxy", old.proxy != new.proxy),
        ("connect_timeout", old.connect_timeout != new.connect_timeout),
        ("retry", old.retry != new.retry),
        ("failback", old.failback != new.failback),
        ("rate", old.rate != new.rate),
        ("clean_session", old.clean_session != new.clean_session),
        ("session_expiry", old.session_expiry != new.session_expiry),
        ("keep_alive", old.keep_alive != new.keep_alive),
        ("max_inflight", old.max_inflight != new.max_inflight),
        ("tls", old.tls != new.tls),
        ("status_topic", old.status_topic != new.status_topic),
    ])
}

fn changed_rules(old: &[UpstreamSettings], in_force: &[UpstreamSettings]) -> Vec<String> {
    let changed = old.iter().zip(in_force).filter(|(was, is)| was != is);
    changed.map(|(was, _)| was.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use std::net::IpAddr;

    use super::*;
    use crate::access::authorise::Authoriser;
    use crate::config::{Environment, read};
    use crate::upstream::settings::OutQos;

    const BASE: &str = r#"
[gateway]
id = "loft"
[[broker.user]]
name = "a"
[[broker.user]]
name = "b"
[[sensor]]
name = "s"
pin = 1
topic = "s"
[[upstream]]
name = "u"
addresses = ["mqtt://h"]
[[upstream.out]]
topic_filter = "a/#"
[[upstream.in]]
topic_filter = "b/#"
"#;

    fn settings(text: &str) -> Settings {
        let mut settings = read(text, Path::new("t.toml"), &Environment::default()).unwrap().settings;
        settings
            .broker
            .access
            .users
            .iter_mut()
            .for_each(|user| user.password_hash = Some(format!("hash of {}", user.name)));
        settings
    }

    fn plan(from: &str, to: &str) -> Reload {
        assert!(BASE.contains(from));
        Reload::plan(&settings(BASE), &settings(&BASE.replace(from, to)))
    }

    #[test]
    fn nothing_changes_when_nothing_differs() {
        // an additional line at the top moves every rule and changes none
        let reload = plan("[gateway]", "# moved\n[gateway]");
        let nothing = Reload {
            settings: settings(BASE),
            log: false,
            anonymous: false,
            limits: false,
            users_added: vec![],
            users_revoked: vec![],
            users_access: vec![],
            sensors_started: vec![],
            sensors_stopped: vec![],
            sensors_changed: vec![],
            rules: vec![],
            restart: vec![],
        };
        assert_eq!(reload, nothing);
    }

    #[test]
    fn users_are_told_apart_by_what_changed() {
        let reload = plan("name = \"b\"", "name = \"c\"");
        assert_eq!((reload.users_added, reload.users_revoked), (vec!["c".into()], vec!["b".into()]));
        let reload = plan("name = \"b\"", "name = \"b\"\npublish = []");
        assert_eq!((reload.users_access, reload.users_revoked), (vec!["b".into()], vec![]));
        let (old, mut new) = (settings(BASE), settings(BASE));
        new.broker.access.users[0].password_hash = Some("another".into());
        let reload = Reload::plan(&old, &new);
        assert_eq!((reload.users_revoked, reload.users_added), (vec!["a".into()], vec![]));
        assert_eq!(reload.settings.broker.access.users, new.broker.access.users);
    }

    #[test]
    fn sensors_limits_log_and_anonymous_clients_change_live() {
        let reload = plan("pin = 1", "pin = 2");
        assert_eq!((reload.sensors_started, reload.sensors_stopped), (vec!["s".into()], vec!["s".into()]));
        assert!(reload.sensors_changed.is_empty() && reload.settings.sensors[0].pin == 2);
        let reload = plan("pin = 1", "pin = 1\nhold = \"9 s\"");
        assert!(reload.sensors_started.is_empty() && reload.sensors_stopped.is_empty());
        assert_eq!(reload.sensors_changed, ["s"]);
        let reload = plan("[[broker.user]]\nname = \"a\"", "[broker]\nmax_sessions = 3\n[[broker.user]]\nname = \"a\"");
        assert!(reload.limits && !reload.anonymous && !reload.log);
        assert_eq!(reload.settings.broker.max_sessions, 3);
        let reload = plan("[gateway]", "[log]\nlevel = \"debug\"\n[broker.anonymous]\naccept = \"all\"\n[gateway]");
        assert!(reload.log && reload.anonymous && !reload.limits);
        assert!(reload.restart.is_empty());
    }

    #[test]
    fn rules_change_live_and_connections_do_not() {
        let reload = plan("topic_filter = \"a/#\"", "topic_filter = \"c/#\"\nqos = \"keep\"");
        assert_eq!((reload.rules, reload.restart), (vec!["u".into()], vec![]));
        assert_eq!(reload.settings.upstreams[0].out[0].qos, OutQos::Keep);
        let looping = plan("topic_filter = \"a/#\"", "topic_filter = \"b/#\"");
        assert!(looping.settings.upstreams[0].v5_only);
        let reload = plan("addresses = [\"mqtt://h\"]", "addresses = [\"mqtt://i\"]\nkeep_alive = \"9 s\"");
        assert_eq!(reload.restart, ["upstream u: addresses", "upstream u: keep_alive"]);
        assert_eq!(reload.settings, settings(BASE));
        let reload = plan("name = \"u\"", "name = \"v\"");
        assert_eq!(reload.restart, ["upstream v (new)", "upstream u (gone)"]);
        assert_eq!(reload.settings, settings(BASE));
    }

    #[test]
    fn rules_wait_for_the_protocol_they_need() {
        let reload = plan(
            "addresses = [\"mqtt://h\"]",
            "addresses = [\"mqtt://h\"]\nprotocol = 5\n[[upstream.both]]\ntopic_filter = \"x\"",
        );
        assert_eq!(reload.restart, ["upstream u: protocol"]);
        assert_eq!((reload.rules, reload.settings), (vec![], settings(BASE)));
    }

    #[test]
    fn rules_of_two_upstreams_at_one_broker_do_not_loop_after_a_reload() {
        let two = |one: &str, two: &str| {
            let head =
                |name| format!("[[upstream]]\nname = \"{name}\"\nclient_id = \"{name}\"\naddresses = [\"mqtt://h\"]\n");
            settings(&format!("{}{one}\n{}{two}\n", head("one"), head("two")))
        };
        let out = "[[upstream.out]]\ntopic_filter = \"loft/#\"";
        let inbound = "[[upstream.in]]\ntopic_filter = \"loft/+\"";
        let (apart, v4) = ("[[upstream.in]]\ntopic_filter = \"attic/+\"", "protocol = 4\n");
        let is_v5_only =
            |reload: &Reload| reload.settings.upstreams.iter().map(|each| each.v5_only).collect::<Vec<_>>();

        let same = two(out, inbound);
        let reload = Reload::plan(&same, &same);
        assert_eq!((is_v5_only(&reload), &reload.rules), (vec![true, true], &vec![]));
        let reload = Reload::plan(&two(out, apart), &same);
        assert_eq!((is_v5_only(&reload), &reload.rules), (vec![true, true], &vec!["one".into(), "two".into()]));
        assert_eq!(is_v5_only(&Reload::plan(&same, &two(out, apart))), [false, false]);

        // the first speaks 3.1.1 until the restart, so the second waits with its rules
        let old = two(&format!("{v4}{out}"), apart);
        let reload = Reload::plan(&old, &same);
        assert_eq!(reload.settings.upstreams, old.upstreams);
        assert_eq!(reload.restart, ["upstream one: protocol", "upstream two: its rules, which would loop until then"]);
    }

    #[test]
    fn what_needs_a_restart_is_said_by_name_and_stays_as_it_is() {
        let text = "[gateway]\ndata_dir = \"/x\"\n[[broker.listener]]\naddress = \"[::]:1884\"\n[journal]\nmax_size = \"1 GiB\"\n\
                    order = \"live_first\"\n[http]\naddress = \"off\"\n[gpio]\nbackend = \"simulated\"";
        let reload = plan("[gateway]\nid = \"loft\"", &text.replace("[gateway]", "[gateway]\nid = \"attic\""));
        assert_eq!(
            reload.restart,
            [
                "gateway.id",
                "gateway.data_dir",
                "broker.listener",
                "gpio.backend",
                "journal.max_size",
                "journal.order",
                "http.address",
                "upstream u: client_id"
            ]
        );
        let mut in_force = reload.settings;
        let usual = in_force.broker.access.listeners.pop().expect("the usual listener stays open");
        assert_eq!((&*usual.listener, usual.users.map(|users| users.len())), ("[::]:1883", Some(2)));
        assert_eq!(in_force, settings(BASE));
    }

    #[test]
    fn new_users_do_not_come_in_at_a_listener_that_is_gone() {
        let user = "[[broker.user]]\nname = \"new\"\n";
        let of_its_own = "[[broker.listener]]\naddress = \"127.0.0.1:1884\"\nanonymous = \"none\"\n";
        let old = settings(&format!("{BASE}\n[[broker.listener]]\naddress = \"[::]:1883\"\n{of_its_own}"));
        let new = settings(&format!("{BASE}\n[[broker.listener]]\naddress = \"[::]:1883\"\n{user}"));
        let listeners = Reload::plan(&old, &new).settings.broker.access.listeners;
        let gone = listeners.iter().find(|own| own.listener == "127.0.0.1:1884").unwrap();
        assert!(gone.users.as_ref().is_some_and(|users| users.iter().all(|user| user.name != "new")), "{gone:?}");
    }

    #[test]
    fn who_was_revoked_does_not_come_in_at_a_listener_that_is_gone() {
        let of_its_own =
            "[[broker.listener]]\naddress = \"127.0.0.1:1884\"\n[[broker.listener.user]]\nname = \"its-own\"\n";
        for more in ["[[broker.listener]]\naddress = \"127.0.0.1:1884\"\n", of_its_own] {
            let usual = "[[broker.listener]]\naddress = \"[::]:1883\"\n";
            let old = settings(&format!("{BASE}\n{usual}{more}"));
            let new = settings(&format!("{}\n{usual}", BASE.replace("name = \"b\"", "name = \"c\"\npublish = []")));
            let mut new = new;
            new.broker.access.users[0].password_hash = Some("another".into());
            let mut in_force = Reload::plan(&old, &new).settings;
            for _ in 0..2 {
                let access = Authoriser::new(&in_force.broker.access);
                let at = Some("127.0.0.1:1884");
                assert!(["b", "c", "its-own"].iter().all(|name| access.user(at, name).is_none()));
                let known = access.user(at, "a").and_then(|user| user.password_hash.clone());
                assert_eq!(known, (more != of_its_own).then(|| "another".into()), "the password as it is now");
                assert!(access.user(None, "c").is_some());
                // user b is back, and may have been added for the remaining listeners only
                in_force = Reload::plan(&in_force, &settings(&format!("{BASE}\n{usual}"))).settings;
                in_force.broker.access.users[0].password_hash = Some("another".into());
                in_force = Reload::plan(&in_force, &new).settings;
            }
        }
    }

    #[test]
    fn a_listener_whose_address_changes_keeps_its_users_until_the_restart() {
        let at = |address: &str, more: &str| {
            let own = format!("[[broker.listener.user]]\nname = \"its-own\"\npublish = [\"own/#\"]\n{more}");
            let usual = "[[broker.listener]]\naddress = \"[::]:1883\"\n";
            settings(&format!("{BASE}\n{usual}[[broker.listener]]\naddress = \"{address}\"\n{own}"))
        };
        let may = |settings: &Settings, name: &str| {
            let access = Authoriser::new(&settings.broker.access);
            access.user(Some("127.0.0.1:1884"), name).map(|user| user.rights.publish.clone())
        };
        let old = at("127.0.0.1:1884", "");
        let rights = may(&old, "its-own");
        assert!(rights.is_some() && may(&old, "a").is_none());
        let mut in_force = old.clone();
        for address in ["127.0.0.1:1885", "127.0.0.1:1886"] {
            in_force = Reload::plan(&in_force, &at(address, "")).settings;
            assert_eq!((may(&in_force, "its-own"), may(&in_force, "a")), (rights.clone(), None), "{address}");
        }
        // the rights of a user of that name elsewhere do not apply to this listener
        let everywhere = "[[broker.user]]\nname = \"its-own\"\n";
        let in_force = Reload::plan(&old, &at("127.0.0.1:1885", everywhere)).settings;
        assert_eq!(may(&in_force, "its-own"), rights);
        // a user with another password is somebody else, or must not sign in with the old password
        let mut new = at("127.0.0.1:1885", "");
        let own = new.broker.access.listeners.iter_mut().find_map(|own| own.users.as_mut()).unwrap();
        own[0].password_hash = Some("another".into());
        assert_eq!(may(&Reload::plan(&old, &new).settings, "its-own"), None);
    }

    #[test]
    fn users_of_all_listeners_that_are_moved_to_one_of_its_own_still_come_in() {
        let usual = "[[broker.listener]]\naddress = \"[::]:1883\"\n";
        let old = settings(&format!("{BASE}\n{usual}"));
        let moved = BASE.replace("[[broker.user]]\nname = \"a\"\n[[broker.user]]\nname = \"b\"\n", "");
        let own = "[[broker.listener]]\naddress = \"[::]:1884\"\n[[broker.listener.user]]\nname = \"a\"\n";
        let mut new = settings(&format!("{moved}\n{own}"));
        let users = new.broker.access.listeners.iter_mut().find_map(|own| own.users.as_mut()).unwrap();
        users[0].password_hash = old.broker.access.users[0].password_hash.clone();
        let access = Authoriser::new(&Reload::plan(&old, &new).settings.broker.access);
        let comes_in = |name: &str| access.user(Some("[::]:1883"), name).is_some();
        assert_eq!((comes_in("a"), comes_in("b")), (true, false));
    }

    #[test]
    fn a_listener_that_is_gone_lets_in_whom_it_did_until_the_restart() {
        let open = |listener: &str, accept: &str| {
            settings(&format!(
                "{BASE}\n[[broker.listener]]\naddress = \"{listener}\"\n[broker.anonymous]\naccept = \"{accept}\"\n"
            ))
        };
        let (old, new) = (open("[::]:1883", "none"), open("127.0.0.1:1883", "all"));
        let reload = Reload::plan(&old, &new);
        let authoriser = Authoriser::new(&reload.settings.broker.access);
        let stranger = IpAddr::from([192, 0, 2, 1]);
        assert!(!authoriser.accepts_anonymous(Some("[::]:1883"), stranger), "it is closed to guests, as it was");
        assert!(authoriser.accepts_anonymous(Some("127.0.0.1:1883"), stranger));
        // the same holds after the next change
        let again = Reload::plan(&reload.settings, &open("127.0.0.1:1884", "all"));
        assert!(!Authoriser::new(&again.settings.broker.access).accepts_anonymous(Some("[::]:1883"), stranger));
    }
}
