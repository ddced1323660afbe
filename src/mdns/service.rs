//! Decides which ports are announced, with which service type and on which interfaces.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::interface;
use crate::health::beginning;

/// The longest name of a service in bytes (RFC 6763, section 4.1.1).
const LONGEST: usize = 63;
/// The longest part of it that the gateway uses. The rest is for Avahi's number and a port, which distinguish services of
/// the same name.
const LONGEST_OWN: usize = 48;

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ServiceKind {
    Mqtt,
    SecureMqtt,
    /// The web page and REST.
    Http,
    /// The web page and REST with TLS.
    Https,
}

impl ServiceKind {
    /// The service type as registered with IANA.
    pub(crate) fn service_type(self) -> &'static str {
        match self {
            ServiceKind::Mqtt => "_mqtt._tcp",
            ServiceKind::SecureMqtt => "_secure-mqtt._tcp",
            ServiceKind::Http => "_http._tcp",
            ServiceKind::Https => "_https._tcp",
        }
    }

    /// The TXT records for clients.
    pub(super) fn txt(self, id: &str) -> Vec<Vec<u8>> {
        let mut records = vec![b"txtvers=1".to_vec(), format!("id={id}").into_bytes()];
        if matches!(self, ServiceKind::Http | ServiceKind::Https) {
            records.push(b"path=/".to_vec());
        }
        // the format does not allow longer records
        records.retain(|record| record.len() <= 255);
        records
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

/// The index of an interface, or `None` for all, with the kind of addresses.
type AnnouncedPlace = (Option<u32>, Family);

/// A port that may be announced while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its name in [`crate::health::Health`], which lists it while it is closed.
    pub(crate) part: String,
    /// Its protocol, which determines the type and the records of its service.
    pub(crate) kind: ServiceKind,
    /// The address to which it is bound, or will be bound.
    pub(crate) address: SocketAddr,
}

/// A port as it is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) kind: ServiceKind,
    pub(super) port: u16,
    /// Whether the name includes the port, because another port of this kind has the plain name.
    pub(super) names_port: bool,
    /// The index of the only interface on which it is announced; `None` means all.
    pub(super) interface: Option<u32>,
    /// The only kind of addresses under which it answers; `None` means IPv4 and IPv6.
    pub(super) family: Option<Family>,
}

impl Service {
    /// The service's name, made from the gateway's name.
    pub(super) fn name(&self, ours: &str) -> String {
        let suffix = if self.names_port { format!(" ({})", self.port) } else { String::new() };
        format!("{}{suffix}", beginning(ours, LONGEST - suffix.len()))
    }
}

/// The name of this gateway's services.
pub(super) fn name_of(gateway_id: &str) -> String {
    let name = if gateway_id == "pigateway" { gateway_id.to_owned() } else { format!("pigateway {gateway_id}") };
    beginning(&name, LONGEST_OWN).to_owned()
}

/// The services for those ports that are open. Ports that only this host can reach are left out.
pub(super) fn services(candidates: &[Candidate], are_open: &[bool]) -> Vec<Service> {
    let mut at: BTreeMap<(ServiceKind, u16), Vec<AnnouncedPlace>> = BTreeMap::new();
    let reachable = |(candidate, is_open): &(&Candidate, &bool)| is_reachable(candidate.address) && **is_open;
    for (Candidate { kind, address, .. }, _) in candidates.iter().zip(are_open).filter(reachable) {
        let is_everywhere = address.ip().to_canonical().is_unspecified();
        let interface = match (is_everywhere, interface::of(*address)) {
            (true, _) => None,
            (false, Some(index)) => Some(index),
            // for example the address of a VPN: other networks are not told what they cannot reach
            (false, None) => continue,
        };
        let places = at.entry((*kind, address.port())).or_default();
        if address.ip().to_canonical().is_ipv4() {
            places.push((interface, Family::V4));
        } else {
            places.push((interface, Family::V6));
            // `[::]` includes IPv4
            places.extend(is_everywhere.then_some((interface, Family::V4)));
        }
    }
    let first = |kind| candidates.iter().filter(|other| is_reachable(other.address)).find(|other| other.kind == kind);
    let mut services = Vec::new();
    for ((kind, port), places) in at {
        let names_port = first(kind).is_some_and(|first: &Candidate| first.address.port() != port);
        for (interface, family) in merged(places) {
            services.push(Service { kind, port, names_port, interface, family });
        }
    }
    services
}

fn is_reachable(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback() && address.port() != 0
}

/// Merges the places into one entry for each interface, because Avahi refuses two services of one name on the same
/// interface.
fn merged(mut places: Vec<AnnouncedPlace>) -> Vec<(Option<u32>, Option<Family>)> {
    if places.iter().any(|(interface, _)| interface.is_none()) {
        // if one is announced on all interfaces, the others are too
        places.iter_mut().for_each(|(interface, _)| *interface = None);
    }
    let mut merged: BTreeMap<Option<u32>, Option<Family>> = BTreeMap::new();
    for (interface, family) in places {
        let known = merged.entry(interface).or_insert(Some(family));
        if *known != Some(family) {
            *known = None;
        }
    }
    merged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(kind: ServiceKind, address: &str) -> Candidate {
        Candidate { part: format!("listener {address}"), kind, address: address.parse().unwrap() }
    }

    fn shown(candidates: &[Candidate], closed: &str) -> Vec<String> {
        let are_open: Vec<bool> = candidates.iter().map(|candidate| candidate.part != closed).collect();
        let services = services(candidates, &are_open);
        let show = |service: &Service| {
            let Service { port, interface, family, kind, .. } = service;
            format!("{} {port} {:?} {family:?} {interface:?}", kind.service_type(), service.name("pigateway loft"))
        };
        services.iter().map(show).collect()
    }

    #[test]
    fn open_ports_that_others_reach_are_announced_and_no_others() {
        let ports = [
            candidate(ServiceKind::Mqtt, "127.0.0.1:1885"),
            candidate(ServiceKind::Mqtt, "[::1]:1886"),
            candidate(ServiceKind::Mqtt, "[::ffff:127.0.0.1]:1887"),
            candidate(ServiceKind::Mqtt, "[::]:1883"),
            candidate(ServiceKind::SecureMqtt, "0.0.0.0:8883"),
            candidate(ServiceKind::Http, "[::]:8080"),
            candidate(ServiceKind::Https, "[fe80::1%7]:8443"),
            candidate(ServiceKind::Https, "[fe80::1%7]:0"),
        ];
        assert_eq!(
            shown(&ports, "listener 0.0.0.0:8883"),
            [
                "_mqtt._tcp 1883 \"pigateway loft\" None None",
                "_http._tcp 8080 \"pigateway loft\" None None",
                "_https._tcp 8443 \"pigateway loft\" Some(V6) Some(7)",
            ]
        );
        let one = [candidate(ServiceKind::SecureMqtt, "0.0.0.0:8883")];
        assert_eq!(shown(&one, ""), ["_secure-mqtt._tcp 8883 \"pigateway loft\" Some(V4) None"]);
        assert_eq!(shown(&one, "listener 0.0.0.0:8883"), [""; 0]);
    }

    #[test]
    fn ports_of_one_kind_have_names_of_their_own_that_do_not_depend_on_what_is_open() {
        let ports = [
            candidate(ServiceKind::Mqtt, "[::]:1884"),
            candidate(ServiceKind::Mqtt, "[::]:1883"),
            candidate(ServiceKind::Mqtt, "[fe80::1%2]:1885"),
            candidate(ServiceKind::Mqtt, "[fe80::1%3]:1885"),
        ];
        let other = "_mqtt._tcp 1883 \"pigateway loft (1883)\" None None";
        let all = shown(&ports, "");
        assert_eq!(all[..2], [other, "_mqtt._tcp 1884 \"pigateway loft\" None None"]);
        assert_eq!(all[2], "_mqtt._tcp 1885 \"pigateway loft (1885)\" Some(V6) Some(2)");
        assert_eq!(all[3], "_mqtt._tcp 1885 \"pigateway loft (1885)\" Some(V6) Some(3)");
        assert_eq!(shown(&ports, "listener [::]:1884")[0], other);
    }

    #[test]
    fn a_port_at_several_addresses_is_announced_once_per_network() {
        let twice =
            [candidate(ServiceKind::Mqtt, "[fe80::1%2]:1883"), candidate(ServiceKind::Mqtt, "[fe80::2%2]:1883")];
        assert_eq!(shown(&twice, ""), ["_mqtt._tcp 1883 \"pigateway loft\" Some(V6) Some(2)"]);
        // for example the address of a VPN that no interface of this host has, so no network is told of it
        assert_eq!(shown(&[candidate(ServiceKind::Mqtt, "203.0.113.1:1883")], ""), [""; 0]);
        let everywhere =
            [candidate(ServiceKind::Mqtt, "0.0.0.0:1883"), candidate(ServiceKind::Mqtt, "[fe80::2%2]:1883")];
        assert_eq!(shown(&everywhere, ""), ["_mqtt._tcp 1883 \"pigateway loft\" None None"]);
    }

    #[test]
    fn names_fit() {
        assert_eq!(name_of("loft"), "pigateway loft");
        assert_eq!(name_of("pigateway"), "pigateway");
        let long = name_of(&"ü".repeat(64));
        assert!(long.len() <= LONGEST_OWN && long.len() > LONGEST_OWN - 2, "{long}");
        let service = Service { kind: ServiceKind::Mqtt, port: 65535, names_port: true, interface: None, family: None };
        let name = service.name(&format!("{long} #2"));
        assert!(name.len() <= LONGEST && name.ends_with("ü #2 (65535)"), "{name}");
    }

    #[test]
    fn clients_are_told_where_the_page_is_and_whose_it_is_but_no_topics() {
        assert_eq!(ServiceKind::Http.txt("loft"), [b"txtvers=1".as_slice(), b"id=loft", b"path=/"]);
        assert_eq!(ServiceKind::Mqtt.txt("loft"), [b"txtvers=1".as_slice(), b"id=loft"]);
    }
}
