//! What changes when the configuration is read again: what can be applied while the gateway runs, and what cannot.

use super::settings::Settings;
use crate::broker::settings::UserSettings;
use crate::sensors::settings::SensorSettings;
use crate::upstream::overlap::loops;
use crate::upstream::settings::{Protocol, UpstreamSettings};

/// What to do about a changed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// What is in force from now on: the new settings, and the old ones where they need a restart.
    pub settings: Settings,
    /// The log level differs.
    pub log: bool,
    /// What anonymous clients may do differs.
    pub anonymous: bool,
    /// A limit of the broker differs.
    pub limits: bool,
    /// Users that are new.
    pub users_added: Vec<String>,
    /// Users that are gone or have another password: their connections end.
    pub users_revoked: Vec<String>,
    /// Users that may do other things than before.
    pub users_access: Vec<String>,
    /// Sensors that are new or differ: to be started.
    pub sensors_started: Vec<String>,
    /// Sensors that are gone or differ: to be stopped.
    pub sensors_stopped: Vec<String>,
    /// Upstreams whose rules differ.
    pub rules: Vec<String>,
    /// Keys whose change needs a restart, by name.
    pub restart: Vec<String>,
}

impl Reload {
    /// Compares what is in force with what was read.
    pub fn plan(old: &Settings, new: &Settings) -> Reload {
        let mut restart = restart_keys(old, new);
        let mut settings = new.clone();
        settings.gateway = old.gateway.clone();
        settings.broker.listeners = old.broker.listeners.clone();
        settings.gpio = old.gpio.clone();
        settings.journal = old.journal.clone();
        settings.http = old.http.clone();
        settings.upstreams = upstreams(&old.upstreams, &new.upstreams, &mut restart);
        let same_name = |a: &UserSettings, b: &UserSettings| a.name == b.name;
        let (old_users, new_users) = (&old.broker.users, &new.broker.users);
        let same_password = |a: &UserSettings, b: &UserSettings| a.name == b.name && a.password_hash == b.password_hash;
        let users =
            |users: &[UserSettings], others: &[UserSettings], same: &dyn Fn(&UserSettings, &UserSettings) -> bool| {
                users
                    .iter()
                    .filter(|user| !others.iter().any(|other| same(user, other)))
                    .map(|user| user.name.clone())
                    .collect()
            };
        let access =
            |user: &&UserSettings| old_users.iter().any(|was| same_password(was, user) && was.access != user.access);
        let sensors = |sensors: &[SensorSettings], others: &[SensorSettings]| {
            sensors.iter().filter(|sensor| !others.contains(sensor)).map(|sensor| sensor.name.clone()).collect()
        };
        Reload {
            log: old.log != new.log,
            anonymous: old.broker.anonymous != new.broker.anonymous,
            limits: limits_differ(old, new),
            users_added: users(new_users, old_users, &same_name),
            users_revoked: users(old_users, new_users, &same_password),
            users_access: new_users.iter().filter(access).map(|user| user.name.clone()).collect(),
            sensors_started: sensors(&new.sensors, &old.sensors),
            sensors_stopped: sensors(&old.sensors, &new.sensors),
            rules: changed_rules(&old.upstreams, &settings.upstreams),
            settings,
            restart,
        }
    }
}

/// Names of what differs.
fn differing(keys: &[(&str, bool)]) -> Vec<String> {
    keys.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).into()).collect()
}

fn restart_keys(old: &Settings, new: &Settings) -> Vec<String> {
    differing(&[
        ("gateway.id", old.gateway.id != new.gateway.id),
        ("gateway.data_dir", old.gateway.data_dir != new.gateway.data_dir),
        ("broker.listener", old.broker.listeners != new.broker.listeners),
        ("gpio.backend", old.gpio.backend != new.gpio.backend),
        ("journal.max_size", old.journal.max_size != new.journal.max_size),
        ("journal.when_full", old.journal.when_full != new.journal.when_full),
        ("journal.order", old.journal.order != new.journal.order),
        ("http.address", old.http.address != new.http.address),
        ("http.allowed_hosts", old.http.allowed_hosts != new.http.allowed_hosts),
        ("http.tls", old.http.tls != new.http.tls),
    ])
}

fn limits_differ(old: &Settings, new: &Settings) -> bool {
    // what is left when everything else in the section is made the same
    let mut limits = new.broker.clone();
    limits.anonymous = old.broker.anonymous.clone();
    limits.listeners = old.broker.listeners.clone();
    limits.users = old.broker.users.clone();
    limits != old.broker
}

/// The old upstreams with the new rules. Rules stay old where the protocol differs: the new ones may only be right
/// with the new one.
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
            kept.v5_only = kept.protocol == Protocol::Auto && !loops(&kept).is_empty();
        }
        in_force.push(kept);
    }
    in_force
}

fn connection_keys(old: &UpstreamSettings, new: &UpstreamSettings) -> Vec<String> {
    differing(&[
        ("addresses", old.addresses != new.addresses),
        ("protocol", old.protocol != new.protocol),
        ("client_id", old.client_id != new.client_id),
        ("username", old.username != new.username),
        ("password_file", old.password != new.password),
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
