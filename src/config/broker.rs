//! Reads `[broker]`, `[broker.anonymous]`, `[[broker.listener]]` and `[[broker.user]]`.

use std::time::Duration;

use super::accounts::{Where, read_anonymous, users_of};
use super::document::{Table, assign};
use super::listeners;
use super::paths::Paths;
use crate::access::settings::{AccessSettings, AnonymousFrom, AnonymousSettings};
use crate::broker::settings::BrokerSettings;

/// The longest session expiry in whole days that does not mean "never" [MQTT-3.1.2.11.2].
pub(super) const MAX_EXPIRY: Duration = Duration::from_secs(49_710 * 24 * 60 * 60);
/// The largest packet of MQTT, less a few bytes [MQTT-2.1.4].
const MAX_PACKET: u64 = 256 << 20;

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
