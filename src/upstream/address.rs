//! The addresses of upstreams and of proxies.

use std::fmt;
use std::net::IpAddr;

use crate::net::percent;
use crate::secret::Secret;

/// The protocol of an upstream's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// MQTT over plain TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    /// MQTT over WebSocket over TLS.
    Wss,
}

impl Scheme {
    const ALL: [(&'static str, Scheme, u16); 4] = [
        ("mqtt", Scheme::Mqtt, 1883),
        ("mqtts", Scheme::Mqtts, 8883),
        ("ws", Scheme::Ws, 80),
        ("wss", Scheme::Wss, 443),
    ];

    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Scheme::Mqtts | Scheme::Wss)
    }

    /// Whether MQTT is carried in WebSocket frames.
    pub(crate) fn is_web_socket(self) -> bool {
        matches!(self, Scheme::Ws | Scheme::Wss)
    }

    /// The scheme as it is written in addresses.
    pub(crate) fn name(self) -> &'static str {
        Scheme::ALL[self as usize].0
    }
}

/// One address of an upstream: `mqtt://HOST[:PORT]`, `mqtts://HOST[:PORT]`, `ws://HOST[:PORT][/PATH]`, or
/// `wss://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAddress {
    pub(crate) scheme: Scheme,
    /// The host name or IP address; an IPv6 address without brackets.
    pub(crate) host: String,
    /// The port, which is not 0.
    pub(crate) port: u16,
    /// The path for WebSocket, including the query; empty for other schemes.
    pub(crate) path: String,
}

impl UpstreamAddress {
    /// Whether a password would be sent to another machine without encryption.
    pub(crate) fn shows_passwords(&self) -> bool {
        let is_here = match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => is_localhost(&plain_name(&self.host)),
        };
        !self.scheme.is_tls() && !is_here
    }

    /// Reads an address in the form of the configuration.
    pub fn parse(text: &str) -> Option<UpstreamAddress> {
        let (scheme, rest) = text.split_once("://")?;
        let (_, scheme, default) = Scheme::ALL.into_iter().find(|(name, ..)| *name == scheme)?;
        let (place, path) = match rest.find(['/', '?']) {
            Some(at) if scheme.is_web_socket() => rest.split_at(at),
            _ => (rest, ""),
        };
        let (host, port) = host_and_port(place)?;
        let path = match path {
            "" if scheme.is_web_socket() => "/mqtt".to_owned(),
            path if path.starts_with('?') => format!("/{path}"),
            path => path.to_owned(),
        };
        let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '#' | '"' | '<' | '>' | '\\');
        path.chars().all(fits).then(|| UpstreamAddress {
            scheme,
            host: host.into(),
            port: port.unwrap_or(default),
            path,
        })
    }

    /// Host and port in the form of URLs and HTTP.
    pub(crate) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

impl UpstreamAddress {
    /// The path without the query, which may contain a secret.
    pub(super) fn shown_path(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.name(), self.authority(), self.shown_path())
    }
}

/// A host name in the form in which all its spellings are the same.
pub(super) fn plain_name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a plain name means this machine everywhere [RFC 6761 section 6.3].
pub(super) fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn host_and_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !(place.starts_with('[') || host.chars().all(is_host)) {
        return None;
    }
    match port {
        Some(port) => Some((host, Some(port.parse().ok().filter(|port| *port != 0)?))),
        None => Some((host, None)),
    }
}

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyScheme {
    /// HTTP with the method CONNECT.
    Http,
    /// SOCKS5; the proxy resolves the name.
    Socks5,
}

/// A proxy: `http://[USER:PASSWORD@]HOST:PORT`, or `socks5://[USER:PASSWORD@]HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub(crate) scheme: ProxyScheme,
    /// The host name or IP address.
    pub(crate) host: String,
    /// The port, which is not 0.
    pub(crate) port: u16,
    /// The user name and the password, if the proxy needs them.
    pub login: Option<(String, Secret)>,
}

impl Proxy {
    /// Reads a proxy in the form of the configuration.
    pub fn parse(text: &str) -> Option<Proxy> {
        let (scheme, rest) = text.split_once("://")?;
        let (scheme, default) = match scheme {
            "http" => (ProxyScheme::Http, 3128),
            "socks5" | "socks5h" => (ProxyScheme::Socks5, 1080),
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) = login.split_once(':')?;
                // the lengths that SOCKS5 allows [RFC 1929]
                let fits = |text: &str| (1..=255).contains(&text.len());
                let decoded = |part| percent::decode(part, false).ok();
                let (user, password) = (decoded(user)?, decoded(password)?);
                (fits(&user) && fits(&password)).then_some(())?;
                (Some((user, Secret::new(&*password))), place)
            }
            None => (None, rest),
        };
        let (host, port) = host_and_port(place)?;
        Some(Proxy { scheme, host: host.into(), port: port.unwrap_or(default), login })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            ProxyScheme::Http => "http",
            ProxyScheme::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", authority(&self.host, self.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_shown_to_those_on_the_way_to_another_machine() {
        let shows = |text| UpstreamAddress::parse(text).unwrap().shows_passwords();
        for here in [
            "mqtt://127.0.0.1:1",
            "mqtt://[::1]:1",
            "ws://localhost:1/",
            "mqtt://[::ffff:127.0.0.2]:1",
            "mqtt://LOCALHOST",
            "mqtt://localhost.",
            "mqtt://a.LocalHost.:1",
        ] {
            assert!(!shows(here), "{here}");
        }
        assert!(!shows("mqtts://example.net:1") && !shows("wss://example.net:1/"));
        assert!(shows("mqtt://example.net:1") && shows("ws://192.168.1.2:1/") && shows("mqtt://localhost.example:1"));
        assert!(shows("mqtt://notlocalhost") && shows("mqtt://localhost.."));
    }

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, printed) in [
            ("mqtt://192.0.2.7", "mqtt://192.0.2.7:1883"),
            ("mqtts://mqtt.example.org", "mqtts://mqtt.example.org:8883"),
            ("mqtt://[2001:db8::1]:1884", "mqtt://[2001:db8::1]:1884"),
            ("mqtts://[::1]", "mqtts://[::1]:8883"),
            ("ws://h", "ws://h:80/mqtt"),
            ("wss://h/", "wss://h:443/"),
            ("wss://h:8443/a/b?token=secret", "wss://h:8443/a/b"),
            ("wss://[::1]:8443", "wss://[::1]:8443/mqtt"),
        ] {
            assert_eq!(UpstreamAddress::parse(text).unwrap().to_string(), printed);
        }
        assert_eq!(UpstreamAddress::parse("wss://h?x=1").unwrap().path, "/?x=1");
        for bad in [
            "mqtt.example.org:1883",
            "tcp://h",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://h:0",
            "mqtt://h:65536",
            "mqtt://h:1883/x",
            "mqtt://user@h",
            "mqtt://2001:db8::1",
            "mqtt://[::1",
            "mqtt://[h]:1883",
            "mqtt://[::1]1883",
            "wss:///mqtt",
            "wss://h/a b",
            "wss://h/#x",
        ] {
            assert_eq!(UpstreamAddress::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn proxies_are_read_and_their_passwords_not_printed() {
        for (text, printed) in [
            ("http://proxy.example.org:8080", "http://proxy.example.org:8080"),
            ("http://proxy/", "http://proxy:3128"),
            ("socks5://10.0.0.1", "socks5://10.0.0.1:1080"),
            ("socks5h://me:p@ss:word@[::1]:9", "socks5://[::1]:9"),
        ] {
            assert_eq!(Proxy::parse(text).unwrap().to_string(), printed);
        }
        let proxy = Proxy::parse("socks5://me:p@ss:word@h").unwrap();
        assert!(proxy.login.as_ref().is_some_and(|(user, password)| user == "me" && password.expose() == "p@ss:word"));
        assert!(!format!("{proxy:?}").contains("p@ss"));
        let proxy = Proxy::parse("http://me%40corp:p%40ss%3Aw%2F@h").unwrap();
        assert!(
            proxy.login.as_ref().is_some_and(|(user, password)| user == "me@corp" && password.expose() == "p@ss:w/")
        );
        for bad in [
            "http://me:100%@h",
            "http://me:%zz@h",
            "http://me:%ff@h",
            "proxy:8080",
            "https://proxy",
            "http://",
            "http://me@proxy",
            "http://proxy/x",
            "socks4://h",
        ] {
            assert_eq!(Proxy::parse(bad), None, "{bad}");
        }
    }
}
