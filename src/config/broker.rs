//! `[broker]`, `[broker.anonymous]`, `[[broker.listener]]` and `[[broker.user]]`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::document::{Table, Unique, Value, assign};
use super::listeners;
use super::paths::Paths;
use crate::access::settings::{
    AccessRule, AccessSettings, AnonymousFrom, AnonymousSettings, MAX_HASH_MEMORY, Rights, UserSettings,
    is_client_id_pattern, is_usable_hash, is_user_name,
};
use crate::broker::settings::{BrokerSettings, ListenerSettings};

/// Longest session expiry in whole days that is not "never" [MQTT-3.1.2.11.2].
pub(super) const MAX_EXPIRY: Duration = Duration::from_secs(49_710 * 24 * 60 * 60);
/// Largest packet that MQTT has, less a few bytes [MQTT-2.1.4].
const MAX_PACKET: u64 = 256 << 20;

/// Reads the broker's settings.
pub(super) fn read(root: &Table, paths: &Paths) -> BrokerSettings {
    let mut settings = BrokerSettings::default();
    let Some(table) = root.table("broker") else { return settings };
    limits(&table, &mut settings);
    if let Some(anonymous) = table.table("anonymous") {
        settings.access.anonymous = read_anonymous(&anonymous, &AnonymousSettings::default());
        anonymous.finish();
    }
    let tables = table.tables("listener");
    let listeners = listeners::read(&tables, paths);
    if listeners.iter().any(Option::is_some) {
        settings.listeners = listeners.iter().flatten().cloned().collect();
    }
    settings.access.users = users_of(&table, &settings.listeners, &Where::File);
    let usual = (&settings.access.anonymous, &settings.access.users[..]);
    let own = listeners::access(&tables, &listeners, usual);
    tables.into_iter().for_each(Table::finish);
    settings.access.listeners = own;
    let AccessSettings { anonymous, users, listeners: own, .. } = &settings.access;
    let has_own = own.iter().any(|own| own.users.is_some() || own.anonymous.accept != AnonymousFrom::None);
    if users.is_empty() && anonymous.accept == AnonymousFrom::None && !has_own {
        table.warning("anonymous.accept", "there are no users and no anonymous clients: no client can connect");
    }
    table.finish();
    settings
}

fn limits(table: &Table, settings: &mut BrokerSettings) {
    let count =
        |key, least| table.get(key).and_then(|value| value.whole(least..=10_000_000)).map(|count| count as usize);
    let size = |key, least, most| table.get(key).and_then(|value| value.size(least..=most)).map(|size| size as usize);
    assign(&mut settings.max_connections, count("max_connections", 1));
    assign(&mut settings.max_sessions, count("max_sessions", 0));
    assign(&mut settings.max_packet_size, size("max_packet_size", 1 << 10, MAX_PACKET));
    let longest = Duration::from_secs(u64::from(u16::MAX));
    let keep_alive = table.get("max_keep_alive").and_then(|value| value.duration(Duration::from_secs(1)..=longest));
    settings.max_keep_alive = keep_alive.map(|time| time.as_secs() as u16);
    let inflight = table.get("max_inflight").and_then(|value| value.whole(1..=u64::from(u16::MAX)));
    assign(&mut settings.max_inflight, inflight.map(|count| count as u16));
    assign(&mut settings.max_queued_messages, count("max_queued_messages", 1));
    assign(&mut settings.max_queued_size, size("max_queued_size", 1 << 10, 1 << 30));
    assign(&mut settings.max_retained, count("max_retained", 0));
    assign(&mut settings.max_retained_size, size("max_retained_size", 0, 1 << 30));
    let expiry = table.get("session_expiry").and_then(|value| value.duration(Duration::ZERO..=MAX_EXPIRY));
    assign(&mut settings.session_expiry, expiry);
}

/// What a table says of clients without a user name; what it leaves out is as usual.
pub(super) fn read_anonymous(table: &Table, usual: &AnonymousSettings) -> AnonymousSettings {
    let mut settings = AnonymousSettings { rights: rights(table, usual.rights.clone()), ..usual.clone() };
    let from = [("none", AnonymousFrom::None), ("loopback", AnonymousFrom::Loopback), ("all", AnonymousFrom::All)];
    assign(&mut settings.accept, table.get("accept").and_then(|value| value.choice(&from)));
    settings
}

fn rights(table: &Table, mut rights: Rights) -> Rights {
    assign(&mut rights.publish, table.get("publish").map(|value| rules(&value)));
    assign(&mut rights.subscribe, table.get("subscribe").map(|value| rules(&value)));
    rights
}

fn rules(value: &Value) -> Vec<AccessRule> {
    let valid = "a list of topic filters, such as [\"loft/#\", \"!loft/private/#\"]";
    let rule = |item: &Value| {
        let text = item.text(valid)?;
        AccessRule::parse(text).map_err(|error| item.wrong(format!("a topic filter; this {error}"))).ok()
    };
    value.items(valid).iter().filter_map(rule).collect()
}

/// Whether only one of two listeners can have its address: `[::]` takes IPv4 too. Port 0 is any free port.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let takes = |a: IpAddr, b: IpAddr| match a {
        IpAddr::V6(all) if all.is_unspecified() => true,
        IpAddr::V4(all) if all.is_unspecified() => b.is_ipv4(),
        _ => a == b,
    };
    a.port() == b.port() && a.port() != 0 && (takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

/// Where users stand, which decides about what they may be.
pub(super) enum Where<'a> {
    /// `[[broker.user]]`.
    File,
    /// Below a listener: what one leaves out is as in the user of the same name of these.
    Listener(&'a [UserSettings]),
    /// In the gateway's own file of users that were made by HTTP.
    Made,
}

/// The users below a table.
pub(super) fn users_of(owner: &Table, listeners: &[ListenerSettings], place: &Where<'_>) -> Vec<UserSettings> {
    let asks_for_certificates = listeners.iter().any(ListenerSettings::asks_for_certificates);
    let name_form = "a text that is not empty and has no control characters";
    let usual = if let Where::Listener(usual) = place { usual } else { &[][..] };
    let mut names = Unique::new("user");
    let mut users = Vec::new();
    for table in owner.tables("user") {
        let name = table.required("name", name_form).and_then(|value| {
            let name = value.parsed(name_form, |text| is_user_name(text).then(|| text.to_owned()))?;
            names.check(&value, name)
        });
        let known = usual.iter().find(|user| name.as_ref().is_some_and(|name| *name == user.name));
        let hash = table.get("password_hash");
        if hash.is_none() && known.is_none_or(|user| user.password_hash.is_none()) && !asks_for_certificates {
            let message = match place {
                // what listeners there are is said elsewhere
                Where::Made => "there is none: this user can only come with a client certificate",
                _ => "there is none and no listener asks for client certificates: this user cannot connect",
            };
            table.warning("password_hash", message);
        }
        let password_hash = match hash {
            Some(value) => password_hash(&value),
            None => known.and_then(|user| user.password_hash.clone()),
        };
        let rights = rights(&table, known.map(|user| user.rights.clone()).unwrap_or_default());
        let mut client_ids = known.map(|user| user.client_ids.clone()).unwrap_or_default();
        assign(&mut client_ids, table.get("client_ids").map(|value| patterns(&value)));
        let is_admin = is_admin(&table, place);
        users.extend(name.map(|name| UserSettings { name, password_hash, rights, client_ids, is_admin }));
        table.finish();
    }
    users
}

/// Who may administer the gateway is written by hand, where the configuration is.
fn is_admin(table: &Table, place: &Where<'_>) -> bool {
    if let Where::Listener(_) = place {
        return false;
    }
    let Some(value) = table.get("admin") else { return false };
    let is_admin = value.switch().unwrap_or(false);
    if is_admin && matches!(place, Where::Made) {
        value.problem("found true; valid: only a [[broker.user]] of the configuration can administer the gateway");
    }
    is_admin
}

fn patterns(value: &Value) -> Vec<String> {
    let valid = "a list of client ids, in which %u stands for the user and * for anything, such as [\"%u-*\"]";
    let pattern = |text: &str| is_client_id_pattern(text).then(|| text.to_owned());
    value.items(valid).iter().filter_map(|item| item.parsed(valid, pattern)).collect()
}

/// A hash. What was found is not repeated: it may be a password.
fn password_hash(value: &Value) -> Option<String> {
    let text = value.as_text().unwrap_or_default();
    if !is_usable_hash(text) {
        value.problem(format!(
            "not an argon2id hash with m up to {MAX_HASH_MEMORY}; valid: one that `pigateway user NAME` prints, or one of \
             mosquitto's ($7$..., $6$...)"
        ));
        return None;
    }
    Some(text.to_owned())
}
