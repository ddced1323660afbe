//! `[broker]`, `[broker.anonymous]`, `[[broker.listener]]` and `[[broker.user]]`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::document::{Table, Unique, Value, assign};
use super::paths::Paths;
use crate::access::settings::{
    AccessRule, AnonymousFrom, AnonymousSettings, MAX_HASH_MEMORY, Rights, UserSettings, is_usable_hash,
};
use crate::broker::settings::{BrokerSettings, ListenerSettings, ListenerTls};

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
        settings.access.anonymous = read_anonymous(&anonymous);
        anonymous.finish();
    }
    let listeners = listeners(&table, paths);
    if !listeners.is_empty() {
        settings.listeners = listeners;
    }
    settings.access.users = users(&table, &settings.listeners);
    if settings.access.users.is_empty() && settings.access.anonymous.accept == AnonymousFrom::None {
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

fn read_anonymous(table: &Table) -> AnonymousSettings {
    let mut settings = AnonymousSettings { rights: rights(table), ..AnonymousSettings::default() };
    let from = [("none", AnonymousFrom::None), ("loopback", AnonymousFrom::Loopback), ("all", AnonymousFrom::All)];
    assign(&mut settings.accept, table.get("accept").and_then(|value| value.choice(&from)));
    settings
}

fn rights(table: &Table) -> Rights {
    let mut rights = Rights::default();
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

fn listeners(broker: &Table, paths: &Paths) -> Vec<ListenerSettings> {
    let valid = "an IP address and a port, such as \"[::]:1883\" or \"127.0.0.1:1883\"";
    let mut listeners: Vec<ListenerSettings> = Vec::new();
    for table in broker.tables("listener") {
        let value = table.required("address", valid);
        let address = value.as_ref().and_then(|value| value.parsed(valid, |text| text.parse::<SocketAddr>().ok()));
        let tls = table.table("tls").and_then(|tls| {
            let value = tls.get("client_ca");
            let client_ca = value.as_ref().and_then(|value| paths.certificates(value));
            let files = paths.server_tls(&tls, value.as_ref().zip(client_ca.as_deref()));
            let files = files.map(|(cert, key)| ListenerTls { cert, key, client_ca });
            tls.finish();
            files
        });
        if let (Some(address), Some(value)) = (address, value) {
            match listeners.iter().find(|other| collide(other.address, address)) {
                Some(other) => {
                    value.problem(format!("{} takes this address already; valid: another port", other.address))
                }
                None => listeners.push(ListenerSettings { address, tls }),
            }
        }
        table.finish();
    }
    listeners
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

fn users(broker: &Table, listeners: &[ListenerSettings]) -> Vec<UserSettings> {
    let asks_for_certificates =
        listeners.iter().any(|listener| listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
    let name_form = "a text that is not empty and has no control characters";
    let mut names = Unique::new("user");
    let mut users = Vec::new();
    for table in broker.tables("user") {
        let fits = |text: &str| !text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control);
        let name = table.required("name", name_form).and_then(|value| {
            let name = value.parsed(name_form, |text| fits(text).then(|| text.to_owned()))?;
            names.check(&value, name)
        });
        let hash = table.get("password_hash");
        if hash.is_none() && !asks_for_certificates {
            let message = "there is none and no listener asks for client certificates: this user cannot connect";
            table.warning("password_hash", message);
        }
        let password_hash = hash.and_then(|value| password_hash(&value));
        let rights = rights(&table);
        users.extend(name.map(|name| UserSettings { name, password_hash, rights }));
        table.finish();
    }
    users
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
