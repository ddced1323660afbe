//! Finds upstreams that are the gateway itself, as far as the addresses tell.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::document::Table;
use crate::broker::settings::ListenerSettings;
use crate::upstream::settings::{Protocol, UpstreamAddress, UpstreamSettings, loops_with_itself};

/// Checks the rules of an upstream whose address is that of a listener. Rules that would loop are refused if 3.1.1 is configured, and
/// otherwise keep the gateway from falling back to it.
pub(super) fn check_loops_with_itself(table: &Table, upstream: &mut UpstreamSettings, listeners: &[ListenerSettings]) {
    let own: Vec<_> = listeners.iter().filter_map(|listener| listener.address.tcp()).collect();
    let is_own = |address: &&UpstreamAddress| {
        let host: Option<IpAddr> =
            if address.host == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { address.host.parse().ok() };
        let is_it = |host: IpAddr, own: &SocketAddr| {
            let is_here =
                host == own.ip() || host.is_loopback() && (own.ip().is_unspecified() || own.ip().is_loopback());
            is_here && own.port() == address.port
        };
        !address.scheme.is_web_socket() && host.is_some_and(|host| own.iter().any(|own| is_it(host, own)))
    };
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
