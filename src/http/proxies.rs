//! Reverse proxies: which of them are believed about a client's address, and the path prefix of the page behind them.
//!
//! Only `X-Forwarded-For` is read, because nginx and Caddy write it; a header that they pass on unchanged could come from
//! the client. Each proxy appends the address from which it was called, so the rightmost address that is not a trusted proxy
//! is the last one that a trusted proxy has seen. A forwarded request never counts as coming from this host, whatever the
//! header says, so a proxy cannot give away the rights of the loopback address.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::HeaderMap;

pub(crate) use crate::net::forwarded::Network;

/// Headers that show that a request was forwarded.
const SIGNS: [&str; 8] = [
    "x-forwarded-for",
    "forwarded",
    "x-real-ip",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "via",
];
/// The address of a forwarded request if no trusted proxy reports one.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Reads an address in the form of a proxy's header, perhaps with a port.
fn read_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    bare.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

/// The address from which a request counts as coming.
pub(crate) fn address(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    if !SIGNS.iter().any(|name| headers.contains_key(*name)) {
        return peer;
    }
    let not_local = |address: IpAddr| if address.is_loopback() { NOWHERE } else { address };
    if !is_trusted(peer) {
        return not_local(peer);
    }
    let values: Vec<_> = headers.get_all("x-forwarded-for").iter().collect();
    let mut last = peer;
    for value in values.into_iter().rev() {
        for text in value.to_str().unwrap_or("?").rsplit(',') {
            match read_address(text) {
                Some(address) if is_trusted(address) => last = address,
                Some(address) => return not_local(address),
                // addresses further left were written by unknown senders
                None => return not_local(last),
            }
        }
    }
    not_local(last)
}

/// Whether the browser uses TLS with a trusted proxy in front.
pub(crate) fn is_https(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> bool {
    let last = headers.get_all("x-forwarded-proto").iter().next_back().and_then(|value| value.to_str().ok());
    let scheme = last.and_then(|value| value.rsplit(',').next()).unwrap_or_default().trim();
    trusted.iter().any(|network| network.contains(peer)) && scheme.eq_ignore_ascii_case("https")
}

/// The path below which a proxy shows the gateway, such as `/pi`; empty if it is at the root. It is returned only to the
/// sender of the header.
pub(crate) fn prefix(headers: &HeaderMap) -> &str {
    let value = headers.get("x-forwarded-prefix").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = value.trim_end_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '~');
    let is_path = path.starts_with('/') && !path.starts_with("//") && path.chars().all(is_plain);
    if is_path { path } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(trusted: &[&str], peer: &str, headers: &[(&'static str, &str)]) -> String {
        let trusted: Vec<_> = trusted.iter().map(|text| Network::parse(text).unwrap()).collect();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        address(&trusted, peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn the_rightmost_address_that_is_not_trusted_counts() {
        let trusted = ["127.0.0.1", "::1", "10.1.0.0/16", "2001:db8:5::/48"];
        let named = |header: &str| from(&trusted, "127.0.0.1", &[("x-forwarded-for", header)]);
        for (header, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7", "192.0.2.7"),
            ("203.0.113.9, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
            ("127.0.0.1, 192.0.2.7,10.1.255.255 , 10.1.0.1", "192.0.2.7"),
            ("192.0.2.7:5512", "192.0.2.7"),
            ("[2001:db8::7]:5512", "2001:db8::7"),
            ("2001:db8::7, 2001:db8:5::1", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("10.1.2.3", "10.1.2.3"),
            // a word in between hides the addresses further left
            ("192.0.2.7, unknown, 10.1.2.3", "10.1.2.3"),
            ("10.2.0.1", "10.2.0.1"),
        ] {
            assert_eq!(named(header), expected, "{header}");
        }
        let twice = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(from(&trusted, "127.0.0.1", &twice), "192.0.2.7");
        let other = [("forwarded", "for=203.0.113.9"), ("x-real-ip", "203.0.113.9"), ("x-forwarded-for", "192.0.2.7")];
        assert_eq!(from(&trusted, "::1", &other), "192.0.2.7", "headers that a proxy passes on as they came");
    }

    #[test]
    fn a_forwarded_request_is_never_local() {
        let trusted = ["127.0.0.1", "::1"];
        for header in
            ["127.0.0.1", "::1", "127.0.0.2", "localhost", "", "::ffff:127.0.0.1", "192.0.2.7, 127.0.0.9", "[::1]:80"]
        {
            for trusted in [&trusted[..], &[]] {
                for peer in ["127.0.0.1", "::1"] {
                    let address = from(trusted, peer, &[("x-forwarded-for", header)]);
                    assert!(!address.parse::<IpAddr>().unwrap().is_loopback(), "{header}: {address}");
                }
            }
        }
        for sign in SIGNS {
            assert_eq!(from(&[], "127.0.0.1", &[(sign, "127.0.0.1")]), "0.0.0.0", "{sign}");
            assert_eq!(from(&trusted, "127.0.0.1", &[(sign, "127.0.0.1")]), "0.0.0.0", "{sign}");
        }
        assert_eq!(from(&trusted, "127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn only_proxies_that_are_trusted_are_believed() {
        let header = [("x-forwarded-for", "127.0.0.1")];
        assert_eq!(from(&["10.1.0.0/16"], "192.0.2.1", &header), "192.0.2.1");
        assert_eq!(from(&["10.1.0.0/16"], "192.0.2.1", &[("x-forwarded-for", "203.0.113.9")]), "192.0.2.1");
        for text in ["10.0.0.0/33", "10.0.0.0/0", "::/0", "::1/129", "10.0.0", "", "/8", "10.0.0.0/", "proxy"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_says_that_it_speaks_tls() {
        let trusted = [Network::parse("127.0.0.1").unwrap()];
        let says = |peer: &str, values: &[&str]| {
            let mut map = HeaderMap::new();
            values.iter().for_each(|value| _ = map.append("x-forwarded-proto", value.parse().unwrap()));
            is_https(&trusted, peer.parse().unwrap(), &map)
        };
        assert!(says("127.0.0.1", &["https"]) && says("127.0.0.1", &["http", "http, HTTPS "]));
        assert!(!says("192.0.2.1", &["https"]) && !says("127.0.0.1", &[]));
        assert!(!says("127.0.0.1", &["http"]) && !says("127.0.0.1", &["https, http"]));
    }

    #[test]
    fn a_prefix_is_a_plain_path() {
        let prefix = |value: &str| {
            let map = HeaderMap::from_iter([("x-forwarded-prefix".parse().unwrap(), value.parse().unwrap())]);
            prefix(&map).to_owned()
        };
        assert_eq!((prefix("/pi").as_str(), prefix("/home/pi/").as_str()), ("/pi", "/home/pi"));
        for bad in ["pi", "//evil.example", "/a b", "/<script>", "http://evil.example", "/"] {
            assert_eq!(prefix(bad), "", "{bad}");
        }
    }
}
