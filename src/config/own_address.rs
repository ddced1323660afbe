//! Finds upstreams that are the gateway itself, as far as the addresses tell.
//!
//! A port that is open at all addresses is reached by each address of this machine. Which those are is known
//! to the kernel, and may be known only once a network is there: then a reload or the next start finds what
//! this one did not. Names are not looked up, because the configuration must not wait for a network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use super::document::Table;
use crate::broker::settings::ListenerSettings;
use crate::http::settings::HttpSettings;
use crate::upstream::settings::{Protocol, UpstreamAddress, UpstreamSettings, loops_with_itself};

/// The addresses at which this gateway speaks MQTT.
#[derive(Debug, Default)]
pub(super) struct OwnDoors {
    plain: Vec<SocketAddr>,
    web_socket: Vec<SocketAddr>,
}

impl OwnDoors {
    pub(super) fn of(listeners: &[ListenerSettings], http: &HttpSettings) -> OwnDoors {
        let mut doors = OwnDoors { plain: Vec::new(), web_socket: http.address.into_iter().collect() };
        for listener in listeners {
            let kind = if listener.websocket { &mut doors.web_socket } else { &mut doors.plain };
            kind.extend(listener.address.tcp());
        }
        doors
    }

    fn lead_to(&self, address: &UpstreamAddress) -> bool {
        let host: Option<IpAddr> =
            if address.host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { address.host.parse().ok() };
        let doors = if address.scheme.is_web_socket() { &self.web_socket } else { &self.plain };
        let is_there = |host: IpAddr, own: &SocketAddr| {
            host == own.ip()
                || host.is_loopback() && (own.ip().is_unspecified() || own.ip().is_loopback())
                || own.ip().is_unspecified() && (own.is_ipv6() || host.is_ipv4()) && is_of_this_machine(host)
        };
        host.map(|host| host.to_canonical())
            .is_some_and(|host| doors.iter().any(|own| own.port() == address.port && is_there(host, own)))
    }
}

/// Whether an address belongs to this machine: the kernel sends from an address of its own only what it sends
/// to itself.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    // this sends nothing
    let from = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((address, DISCARD))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

/// A port that has no meaning here.
const DISCARD: u16 = 9;

/// Checks the rules of an upstream that is this gateway. Rules that would loop are refused if 3.1.1 is
/// configured, and otherwise keep the gateway from falling back to it.
pub(super) fn check_loops_with_itself(table: &Table, upstream: &mut UpstreamSettings, own: &OwnDoors) {
    let is_own = |address: &&UpstreamAddress| own.lead_to(address);
    let Some(address) = upstream.addresses.iter().find(is_own) else { return };
    upstream.is_own = true;
    let Some((first, second)) = loops_with_itself(upstream).first().copied() else { return };
    let rules = match first.to_string() == second.to_string() {
        true => format!("the rule at {first}"),
        false => format!("the rules at {first} and {second}"),
    };
    let message = format!("{address} is this gateway, and {rules} would loop on MQTT 3.1.1");
    match upstream.protocol {
        Protocol::V5 => {}
        Protocol::V4 => table.problem("protocol", message + "; valid: protocol = 5, or the address of another broker"),
        Protocol::Auto => {
            table.warning("protocol", message + "; this upstream is used with MQTT 5 only");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Environment, read as read_all};
    use super::*;

    /// An address of this machine: one that others use, if there is one.
    fn own_address() -> IpAddr {
        let from = UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
            socket.connect(("192.0.2.1", DISCARD))?;
            socket.local_addr()
        });
        from.map_or(Ipv4Addr::LOCALHOST.into(), |from| from.ip())
    }

    #[test]
    fn the_addresses_of_this_machine_are_known() {
        assert!(is_of_this_machine(own_address()));
        for (address, is_own) in [("127.0.0.1", true), ("192.0.2.1", false), ("2001:db8::1", false)] {
            assert_eq!(is_of_this_machine(address.parse().unwrap()), is_own, "{address}");
        }
    }

    #[test]
    fn an_upstream_may_be_the_gateway_by_any_of_its_doors() {
        let lan = own_address();
        for (text, upstream, is_own) in [
            ("[[broker.listener]]\naddress = \"0.0.0.0:1883\"\n", format!("mqtt://{lan}"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{lan}"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://[::ffff:{lan}]"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{lan}:1884"), false),
            ("", format!("ws://{lan}:8080/mqtt"), true),
            ("", "ws://localhost:8080/mqtt".into(), true),
            ("", "wss://127.0.0.1:8080".into(), true),
            ("", "mqtt://127.0.0.1:8080".into(), false),
            ("[http]\naddress = \"off\"\n", "ws://127.0.0.1:8080/mqtt".into(), false),
            ("[http]\naddress = \"127.0.0.1:8080\"\n", "ws://192.0.2.1:8080/mqtt".into(), false),
            ("[[broker.listener]]\naddress = \"[::]:9001\"\nwebsocket = true\n", format!("ws://{lan}:9001"), true),
            ("[[broker.listener]]\naddress = \"[::]:9001\"\nwebsocket = true\n", format!("mqtt://{lan}:9001"), false),
        ] {
            let text = format!("{text}[[upstream]]\nname = \"u\"\naddresses = [\"{upstream}\"]\n");
            let rules = "[[upstream.out]]\ntopic_filter = \"loft/#\"\n";
            let read = read_all(&(text.clone() + rules), Path::new("t.toml"), &Environment::default()).unwrap();
            let found = &read.settings.upstreams[0];
            assert_eq!((found.is_own, found.v5_only), (is_own, is_own), "{text}");
            let said = read.warnings.iter().any(|warning| warning.message.contains("is this gateway"));
            assert_eq!(said, is_own, "{text}{:?}", read.warnings);
        }
    }

    #[test]
    fn an_upstream_that_is_the_gateway_itself_may_not_loop() {
        let read = |listener: &str, upstream: &str, keys: &str| {
            let text = format!(
                "[[broker.listener]]\naddress = \"{listener}\"\n[[upstream]]\nname = \"u\"\naddresses = [\"{upstream}\"]\n{keys}"
            );
            let read = read_all(&text, Path::new("t.toml"), &Environment::default());
            read.map(|read| read.settings.upstreams[0].v5_only).map_err(|found| found.problems[0].to_string())
        };
        let out = "[[upstream.out]]\ntopic_filter = \"loft/#\"\n";
        let renamed = format!("{out}remote_prefix = \"copy/\"");
        let inbound = "[[upstream.in]]\ntopic_filter = \"loft/#\"\nlocal_prefix = \"loft/\"\n";
        for (listener, upstream, rules, does_loop) in [
            ("127.0.0.1:1883", "mqtt://127.0.0.1", out, true),
            ("0.0.0.0:1883", "mqtt://localhost", out, true),
            ("[::]:1884", "mqtt://[::1]:1884", out, true),
            ("192.0.2.1:1883", "mqtt://192.0.2.1", out, true),
            ("127.0.0.1:1883", "mqtt://127.0.0.1:1884", out, false),
            ("0.0.0.0:1883", "mqtt://192.0.2.1", out, false),
            ("127.0.0.1:1883", "mqtt://127.0.0.1", renamed.as_str(), false),
            ("127.0.0.1:1883", "mqtt://127.0.0.1", inbound, true),
        ] {
            let what = format!("{listener} {upstream} {rules}");
            assert_eq!(read(listener, upstream, rules), Ok(does_loop), "{what}");
            assert_eq!(read(listener, upstream, &format!("protocol = 5\n{rules}")), Ok(false), "{what}");
            match read(listener, upstream, &format!("protocol = 4\n{rules}")) {
                Ok(_) => assert!(!does_loop, "{what}"),
                Err(text) => assert!(does_loop && text.contains("is this gateway, and the rule at"), "{text}"),
            }
        }
    }
}
