//! Where addresses lead. A broker may have several names, and one on this machine has many.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::address::{UpstreamAddress, is_localhost, plain_name};

/// The names of the loopback address in the files of hosts that systems come with, besides those that end with `.localhost`.
const LOOPBACK: [&str; 6] =
    ["localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback"];
/// A port that has no meaning here.
const DISCARD: u16 = 9;

/// The host of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum UpstreamHost {
    ThisMachine,
    Ip(IpAddr),
    /// A name of another host, in lower case and without the dot at its end.
    Name(String),
}

/// Where an address leads, as far as that is known without a network. Addresses with one place lead to one broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamPlace {
    host: UpstreamHost,
    port: u16,
}

impl UpstreamPlace {
    /// The place of an address in the configuration.
    pub(crate) fn of(address: &UpstreamAddress) -> UpstreamPlace {
        let host = match address.host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            // the system connects to itself if the address is unspecified
            Ok(ip) if ip.is_unspecified() => UpstreamHost::ThisMachine,
            // another address of this kind may be that of another broker
            Ok(ip) if ip == IpAddr::from([127, 0, 0, 1]) || ip.is_ipv6() && ip.is_loopback() => {
                UpstreamHost::ThisMachine
            }
            Ok(ip) => UpstreamHost::Ip(ip),
            Err(_) => match plain_name(&address.host) {
                name if is_localhost(&name) || LOOPBACK.contains(&&*name) || is_own_name(&name) => {
                    UpstreamHost::ThisMachine
                }
                name => UpstreamHost::Name(name),
            },
        };
        UpstreamPlace { host, port: address.port }
    }

    /// The place of a peer that has been reached from this local address. The system sends from an address of its own only
    /// what it sends to itself.
    pub(super) fn of_peer(peer: SocketAddr, local: IpAddr) -> UpstreamPlace {
        let ip = peer.ip().to_canonical();
        let is_here = ip.is_loopback() || ip == local.to_canonical();
        UpstreamPlace {
            host: if is_here { UpstreamHost::ThisMachine } else { UpstreamHost::Ip(ip) },
            port: peer.port(),
        }
    }
}

/// Whether a plain name is that of this machine, perhaps as mDNS has it.
fn is_own_name(name: &str) -> bool {
    let system = rustix::system::uname();
    let own = plain_name(&system.nodename().to_string_lossy());
    let name = name.strip_suffix(".local").unwrap_or(name);
    !own.is_empty() && name == own.strip_suffix(".local").unwrap_or(&own)
}

/// The addresses at which this gateway speaks MQTT.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnDoors {
    pub(crate) plain: Vec<SocketAddr>,
    pub(crate) web_socket: Vec<SocketAddr>,
}

impl OwnDoors {
    fn of_kind(&self, address: &UpstreamAddress) -> &[SocketAddr] {
        if address.scheme.is_web_socket() { &self.web_socket } else { &self.plain }
    }

    /// Whether an address leads to one of the doors. Names of other hosts are not looked up, because the configuration must
    /// not wait for a network.
    pub(crate) fn are_at(&self, address: &UpstreamAddress) -> bool {
        let place = UpstreamPlace::of(address);
        let is_there = |own: &SocketAddr| {
            let door = own.ip().to_canonical();
            match &place.host {
                UpstreamHost::ThisMachine => door.is_unspecified() || door.is_loopback(),
                UpstreamHost::Ip(host) => {
                    *host == door
                        || host.is_loopback() && (door.is_unspecified() || door.is_loopback())
                        || takes(door, *host) && is_of_this_machine(*host)
                }
                UpstreamHost::Name(_) => false,
            }
        };
        self.of_kind(address).iter().any(|own| own.port() == place.port && is_there(own))
    }

    /// Whether a peer that was reached by this address, from this local address, is one of the doors.
    pub(super) fn have(&self, address: &UpstreamAddress, peer: SocketAddr, local: IpAddr) -> bool {
        let (ip, is_here) = (peer.ip().to_canonical(), UpstreamPlace::of_peer(peer, local).host);
        let is_there = |own: &SocketAddr| own.ip().to_canonical() == ip || takes(own.ip(), ip);
        is_here == UpstreamHost::ThisMachine
            && self.of_kind(address).iter().any(|own| own.port() == peer.port() && is_there(own))
    }
}

/// Whether a door at this address is open at all addresses of the kind of `host`.
fn takes(door: IpAddr, host: IpAddr) -> bool {
    door.is_unspecified() && (door.is_ipv6() || host.is_ipv4())
}

/// Whether an address belongs to this machine, as far as the kernel knows at present.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    // this sends nothing
    let from = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, DISCARD))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> UpstreamAddress {
        UpstreamAddress::parse(text).unwrap()
    }

    #[test]
    fn all_names_of_a_host_are_one_place() {
        let place = |text: &str| UpstreamPlace::of(&address(text));
        let system = rustix::system::uname();
        let own = system.nodename().to_string_lossy().to_uppercase();
        let here = [
            "127.0.0.1",
            "[::1]",
            "0.0.0.0",
            "[::]",
            "[::ffff:127.0.0.1]",
            "localhost",
            "LocalHost.",
            "a.localhost",
            "ip6-localhost",
            &own,
            &format!("{own}.local"),
            &format!("{own}."),
        ];
        for host in here {
            assert_eq!(place(&format!("mqtt://{host}:1884")), place("mqtts://localhost:1884"), "{host}");
            assert_ne!(place(&format!("mqtt://{host}:1884")), place("mqtt://localhost:1885"), "{host}");
        }
        for (one, other) in [
            ("mqtt://Broker.Example.org", "mqtts://broker.example.org.:1883"),
            ("mqtt://[2001:DB8::1]", "mqtt://[2001:db8:0::1]"),
            ("mqtt://[::ffff:192.0.2.1]", "mqtt://192.0.2.1"),
        ] {
            assert_eq!(place(one), place(other));
        }
        for other in ["127.0.0.2", "192.0.2.1", "example.org", "notlocalhost", "localhost.example", "local"] {
            assert_ne!(place(&format!("mqtt://{other}")), place("mqtt://localhost"), "{other}");
        }
    }

    #[test]
    fn the_addresses_of_this_machine_are_known() {
        for (address, is_own) in [("127.0.0.1", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(is_of_this_machine(address.parse().unwrap()), is_own, "{address}");
        }
    }

    #[test]
    fn a_peer_is_a_door_of_this_gateway_only_on_this_machine() {
        for (door, to, peer, local, is_own) in [
            ("[::]:1883", "mqtt://pi.lan", "192.0.2.7:1883", "192.0.2.7", true),
            ("[::]:1883", "mqtt://pi.lan", "[2001:db8::7]:1883", "2001:db8::7", true),
            ("[::]:1883", "mqtt://pi.lan", "127.0.1.1:1883", "127.0.0.1", true),
            ("192.0.2.7:1883", "mqtt://pi.lan", "[::ffff:192.0.2.7]:1883", "::ffff:192.0.2.7", true),
            ("0.0.0.0:1883", "mqtt://pi.lan", "[2001:db8::7]:1883", "2001:db8::7", false),
            ("[::]:1883", "mqtt://pi.lan", "192.0.2.8:1883", "192.0.2.7", false),
            ("[::]:1883", "mqtt://pi.lan", "192.0.2.7:1884", "192.0.2.7", false),
            ("127.0.0.1:1883", "mqtt://pi.lan", "192.0.2.7:1883", "192.0.2.7", false),
            ("[::]:1883", "ws://pi.lan:1883", "192.0.2.7:1883", "192.0.2.7", false),
        ] {
            let doors = OwnDoors { plain: vec![door.parse().unwrap()], web_socket: Vec::new() };
            let is_found = doors.have(&address(to), peer.parse().unwrap(), local.parse().unwrap());
            assert_eq!(is_found, is_own, "{door} {to} {peer} {local}");
        }
    }
}
