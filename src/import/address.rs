//! Converts the addresses of brokers, as other programs write them.

use std::net::Ipv6Addr;

/// Converts an address whose port follows the last colon. mosquitto requires a port after an IPv6 address, but people forget
/// it.
pub(super) fn address(word: &str, scheme: &str) -> Option<String> {
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let is_ipv6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let is_port = |port: &&str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) if is_port(&port) && (!host.contains(':') || is_ipv6(&bare(host))) => (bare(host), port),
        _ if is_ipv6(&bare(word)) => (bare(word), "1883"),
        None => (word.to_owned(), "1883"),
        _ => return None,
    };
    let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if is_ipv6(&host) {
        return Some(format!("{scheme}://[{host}]:{port}"));
    }
    (!host.is_empty() && host.chars().all(is_host)).then(|| format!("{scheme}://{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_mosquitto_reads_them() {
        for (word, expected) in [
            ("192.0.2.7", Some("mqtt://192.0.2.7:1883")),
            ("mqtt.example.org:8884", Some("mqtt://mqtt.example.org:8884")),
            ("2001:db8::1:1884", Some("mqtt://[2001:db8::1]:1884")),
            ("::1", Some("mqtt://[::1]:1883")),
            ("[2001:db8::1]:1884", Some("mqtt://[2001:db8::1]:1884")),
            ("2001:db8:0:0:0:0:0:1:1884", Some("mqtt://[2001:db8:0:0:0:0:0:1]:1884")),
            ("host:0", None),
            ("host:port", None),
            (":1883", None),
        ] {
            assert_eq!(address(word, "mqtt").as_deref(), expected, "{word}");
        }
    }
}
