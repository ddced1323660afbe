//! Finds the network interface of an address, because a port with a specific address is announced only there.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// The index of the interface; `None` if it is not known.
pub(super) fn of(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => Some(address.scope_id()),
        _ => match address.ip().to_canonical() {
            IpAddr::V6(ip) => v6(ip, &fs::read_to_string("/proc/net/if_inet6").ok()?),
            IpAddr::V4(ip) => {
                let routes = fs::read_to_string("/proc/net/route").ok()?;
                let names = v4(ip, &routes);
                let name = match names[..] {
                    [name] => name,
                    // for example with a cable and Wi-Fi in one network
                    _ => names.into_iter().find(|name| has(name, ip))?,
                };
                rustix::net::netdevice::name_to_index(Socket::new(Domain::IPV4, Type::DGRAM, None).ok()?, name).ok()
            }
        },
    }
}

/// Finds the index in lines such as `fe80000000000000ba27ebfffe000001 02 40 20 80 eth0`.
fn v6(ip: Ipv6Addr, table: &str) -> Option<u32> {
    let wanted = format!("{:032x}", u128::from(ip));
    let line = table.lines().find(|line| line.starts_with(&wanted))?;
    u32::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
}

/// Whether the first address of an interface is this one. No packet is sent: the kernel is only asked for the source address
/// of one.
fn has(name: &str, ip: Ipv4Addr) -> bool {
    // two other addresses of the network, of which one may be the broadcast address
    [1, 2].into_iter().any(|bit| {
        let other = Ipv4Addr::from_bits(ip.to_bits() ^ bit);
        let from = || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.bind_device(Some(name.as_bytes()))?;
            socket.connect(&SocketAddr::from((other, 9)).into())?;
            socket.local_addr()
        };
        from().is_ok_and(|from| from.as_socket_ipv4().is_some_and(|from| *from.ip() == ip))
    })
}

/// The names of the interfaces in the narrowest directly connected network with this address, from the routing table.
fn v4(ip: Ipv4Addr, routes: &str) -> Vec<&str> {
    let address = u32::from_ne_bytes(ip.octets());
    let networks: Vec<(u32, &str)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
            let (destination, gateway, mask) = (number(1)?, number(2)?, number(7)?);
            let is_local = gateway == 0 && mask != 0 && address & mask == destination;
            is_local.then(|| (mask.count_ones(), fields[0]))
        })
        .collect();
    let narrowest = networks.iter().map(|(bits, _)| *bits).max();
    let mut names: Vec<&str> =
        networks.iter().filter(|(bits, _)| Some(*bits) == narrowest).map(|(_, name)| *name).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    // in the kernel's format: numbers in the byte order of the machine, which is little endian on every Pi
    const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0101A8C0\t0003\t0\t0\t202\t00000000\t0\t0\t0
eth0\t0001A8C0\t00000000\t0001\t0\t0\t202\t00FFFFFF\t0\t0\t0
wlan0\t0002A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
eth1\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
br0\t000111AC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
wg0\t00000A0A\t0101A8C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn an_ipv4_address_belongs_to_the_narrowest_network_of_this_host() {
        let names = |ip: [u8; 4]| v4(ip.into(), ROUTES);
        assert_eq!(names([192, 168, 1, 7]), ["eth0"]);
        assert_eq!(names([192, 168, 2, 7]), ["wlan0", "eth1"]);
        assert_eq!(names([172, 17, 0, 1]), ["docker0"]);
        assert_eq!(names([172, 17, 1, 1]), ["br0"]);
        // addresses behind a gateway or on the default route are not this host's
        assert!(names([10, 10, 0, 1]).is_empty() && names([203, 0, 113, 1]).is_empty());
    }

    #[test]
    fn an_ipv6_address_stands_in_a_table_or_names_its_interface() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000007 0a 40 00 80     eth0\n";
        assert_eq!(v6("fd00::7".parse().unwrap(), table), Some(10));
        assert_eq!(v6("fd00::8".parse().unwrap(), table), None);
        assert_eq!(of("[fe80::1%3]:1883".parse().unwrap()), Some(3));
    }
}
