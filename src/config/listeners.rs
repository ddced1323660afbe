//! Reads `[[broker.listener]]`: the addresses for clients, and who may sign in there.

use std::net::{IpAddr, SocketAddr};

use super::accounts::{Where, read_anonymous, users_of};
use super::document::{Table, Value, assign};
use super::paths::Paths;
use crate::access::settings::{AnonymousFrom, AnonymousSettings, ListenerAccess, UserSettings};
use crate::broker::settings::{Address, ListenerSettings, Network};

/// RFC 6066 allows 512 to 4,096 bytes, and TLS has no records beyond 16 KiB.
const FRAGMENTS: std::ops::RangeInclusive<u64> = 512..=16 << 10;

/// The listeners, one for each table; `None` if the table has problems.
pub(super) fn read(tables: &[Table], paths: &Paths) -> Vec<Option<ListenerSettings>> {
    let mut listeners: Vec<Option<ListenerSettings>> = Vec::new();
    for table in tables {
        let listener = listener(table, paths, &listeners);
        listeners.push(listener);
    }
    listeners
}

fn listener(table: &Table, paths: &Paths, others: &[Option<ListenerSettings>]) -> Option<ListenerSettings> {
    let valid = "an IP address and a port, such as \"[::]:1883\" or \"127.0.0.1:1883\", or the path of a socket";
    let value = table.required("address", valid);
    let address = value.as_ref().and_then(|value| value.parsed(valid, Address::parse));
    let mut settings = ListenerSettings::new(address.clone().unwrap_or(Address::Unix(Default::default())));
    if let Some(tls) = table.table("tls") {
        settings.tls = paths.server_tls(&tls, true);
        assign(&mut settings.use_identity, tls.get("use_identity").and_then(|value| value.switch()));
        tls.finish();
    }
    let fragments = table.get("max_fragment_size");
    let size = fragments.as_ref().and_then(|value| value.size(FRAGMENTS)).map(|size| size as usize);
    match (&mut settings.tls, fragments) {
        (Some(tls), _) => tls.max_fragment_size = size,
        (None, Some(value)) if !table.has("tls") => value.problem("without `tls` there are no records"),
        _ => {}
    }
    assign(&mut settings.websocket, table.get("websocket").and_then(|value| value.switch()));
    let most = table.get("max_connections").and_then(|value| value.whole(1..=10_000_000));
    settings.max_connections = most.map(|most| most as usize);
    if let Some(value) = table.get("proxy") {
        let valid = "a list of addresses and networks, such as [\"127.0.0.1\", \"10.0.0.0/8\"]";
        let networks = value.items(valid);
        settings.proxies = networks.iter().filter_map(|item| item.parsed(valid, Network::parse)).collect();
        if matches!(address, Some(Address::Unix(_))) {
            value.problem("who connects through the file system has no address that could be believed");
        }
    }
    let (address, value) = (address?, value?);
    let collides = |other: &&ListenerSettings| match (&other.address, &address) {
        (Address::Tcp(a), Address::Tcp(b)) => collide(*a, *b),
        (a, b) => a == b,
    };
    if let Some(other) = others.iter().flatten().find(collides) {
        value.problem(format!("{} takes this address already; valid: another address", other.address));
        return None;
    }
    Some(settings)
}

/// The access settings of listeners that differ from `[broker]`.
pub(super) fn access(
    tables: &[Table],
    listeners: &[Option<ListenerSettings>],
    usual: (&AnonymousSettings, &[UserSettings]),
) -> Vec<ListenerAccess> {
    let mut own = Vec::new();
    for (table, listener) in tables.iter().zip(listeners) {
        let is_unix = listener.as_ref().is_some_and(|listener| matches!(listener.address, Address::Unix(_)));
        let mut guests = usual.0.clone();
        if is_unix {
            // everybody on this host could connect to a Unix socket, so its listener must allow anonymous clients explicitly
            guests.accept = AnonymousFrom::None;
        }
        let anonymous = table.get("anonymous").map(|value| anonymous(&value, &guests));
        let has_users = table.has("user");
        let users = users_of(table, listener.as_slice(), &Where::Listener(usual.1));
        let Some(listener) = listener else { continue };
        if anonymous.is_none() && !has_users && !is_unix {
            continue;
        }
        let anonymous = anonymous.unwrap_or(guests);
        own.push(ListenerAccess { listener: listener.name(), anonymous, users: has_users.then_some(users) });
    }
    own
}

/// Reads a word, or a table like `[broker.anonymous]`. Missing keys keep the values of `usual`.
fn anonymous(value: &Value, usual: &AnonymousSettings) -> AnonymousSettings {
    let from = [("none", AnonymousFrom::None), ("loopback", AnonymousFrom::Loopback), ("all", AnonymousFrom::All)];
    let mut settings = usual.clone();
    if value.is_table() {
        if let Some(table) = value.table() {
            settings = read_anonymous(&table, usual);
            table.finish();
        }
    } else {
        assign(&mut settings.accept, value.choice(&from));
    }
    settings
}

/// Whether two listeners cannot be open at the same time. `[::]` includes IPv4, `[::ffff:127.0.0.1]` is 127.0.0.1, and
/// port 0 stands for any free port.
pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (from, to) = (a.ip().to_canonical(), b.ip().to_canonical());
    let takes = |a: IpAddr, b: IpAddr| match a {
        IpAddr::V6(all) if all.is_unspecified() => true,
        IpAddr::V4(all) if all.is_unspecified() => b.is_ipv4(),
        _ => a == b,
    };
    a.port() == b.port() && a.port() != 0 && (takes(from, to) || takes(to, from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_exclude_each_other_are_known_however_they_are_written() {
        let both = |a: &str, b: &str| {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(collide(a, b), collide(b, a));
            collide(a, b)
        };
        for (a, b) in [
            ("127.0.0.1:1883", "[::ffff:127.0.0.1]:1883"),
            ("192.0.2.1:1883", "[::ffff:0.0.0.0]:1883"),
            ("[::ffff:192.0.2.1]:1883", "[::]:1883"),
            ("0.0.0.0:1883", "[::]:1883"),
        ] {
            assert!(both(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("127.0.0.1:1883", "127.0.0.2:1883"),
            ("127.0.0.1:1883", "127.0.0.1:1884"),
            ("0.0.0.0:1883", "[::1]:1883"),
            ("[::]:0", "[::]:0"),
        ] {
            assert!(!both(a, b), "{a} {b}");
        }
    }
}
