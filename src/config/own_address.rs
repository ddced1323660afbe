//! Finds upstreams that are the gateway itself, as far as the addresses tell.
//!
//! A port that is open at all addresses is reached by each address of this machine. Which those are is known to the kernel, and
//! may be known only once a network is there. Names are not looked up, because the configuration must not wait for a network.
//! What is not found here is found when the connection is made.

use super::document::Table;
use super::settings::Settings;
use crate::broker::settings::ListenerSettings;
use crate::http::settings::HttpSettings;
use crate::upstream::settings::{
    OwnDoors, Protocol, UpstreamAddress, UpstreamSettings, loops_with_itself, overlap::looping_here,
};

/// The addresses at which a gateway with these settings speaks MQTT.
pub(super) fn own_doors(listeners: &[ListenerSettings], http: &HttpSettings) -> OwnDoors {
    let mut doors = OwnDoors { plain: Vec::new(), web_socket: http.address.into_iter().collect() };
    for listener in listeners {
        let kind = if listener.websocket { &mut doors.web_socket } else { &mut doors.plain };
        kind.extend(listener.address.tcp());
    }
    doors
}

impl Settings {
    /// The addresses at which the gateway speaks MQTT.
    pub(crate) fn own_doors(&self) -> OwnDoors {
        own_doors(&self.broker.listeners, &self.http)
    }
}

/// Checks the rules of an upstream that is this gateway. Rules that would loop are refused if 3.1.1 is
/// configured, and otherwise keep the gateway from falling back to it.
pub(super) fn check_loops_with_itself(table: &Table, upstream: &mut UpstreamSettings, own: &OwnDoors) {
    let is_own = |address: &&UpstreamAddress| own.are_at(address);
    let Some(address) = upstream.addresses.iter().find(is_own) else { return };
    upstream.is_own = true;
    let Some((first, second)) = loops_with_itself(upstream).first().copied() else { return };
    let message = format!("{address} is this gateway, and {}", looping_here(first, second));
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
    use std::net::{IpAddr, Ipv4Addr, UdpSocket};
    use std::path::Path;

    use super::super::{Environment, read as read_all};

    /// An address of this machine: one that others use, if there is one.
    fn own_address() -> IpAddr {
        let from = UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
            socket.connect(("192.0.2.1", 9))?;
            socket.local_addr()
        });
        from.map_or(Ipv4Addr::LOCALHOST.into(), |from| from.ip())
    }

    #[test]
    fn an_upstream_may_be_the_gateway_by_any_of_its_doors() {
        let lan = own_address();
        let system = rustix::system::uname();
        let name = system.nodename().to_string_lossy();
        for (text, upstream, is_own) in [
            ("[[broker.listener]]\naddress = \"0.0.0.0:1883\"\n", format!("mqtt://{lan}"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{lan}"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://[::ffff:{lan}]"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{lan}:1884"), false),
            ("", format!("ws://{lan}:8080/mqtt"), true),
            ("", "ws://localhost:8080/mqtt".into(), true),
            ("", "wss://127.0.0.1:8080".into(), true),
            ("", "mqtt://127.0.0.1:8080".into(), false),
            ("[[broker.listener]]\naddress = \"127.0.0.1:1883\"\n", "mqtt://LocalHost.".into(), true),
            ("[[broker.listener]]\naddress = \"127.0.0.1:1883\"\n", "mqtt://ip6-localhost".into(), true),
            ("[[broker.listener]]\naddress = \"127.0.0.1:1883\"\n", "mqtt://0.0.0.0".into(), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", "mqtt://[::]".into(), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{name}"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", format!("mqtt://{name}.local"), true),
            ("[[broker.listener]]\naddress = \"[::]:1883\"\n", "mqtt://another.local".into(), false),
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
