//! Settings of the web page and the REST interface.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

pub(crate) use super::proxies::Network;

/// The certificate and key of the HTTPS port, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpTls {
    /// The certificate chain, with the server's own certificate first.
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// The table `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// The address to listen on; `None` switches HTTP off.
    pub address: Option<SocketAddr>,
    /// Host names that browsers may use, in addition to the host's own name and IP addresses.
    pub(crate) allowed_hosts: Vec<String>,
    /// Proxies that are believed when they report a client's address.
    pub(crate) trusted_proxies: Vec<Network>,
    /// Sites that may show the page in a frame, as sources of a content security policy; an empty list allows none.
    pub(crate) frame_ancestors: Vec<String>,
    /// The files for TLS; `None` means plain HTTP.
    pub(crate) tls: Option<HttpTls>,
}

/// Reads a site that may show the page in a frame: `self`, or an origin whose host may begin with `*.`.
pub(crate) fn frame_ancestor(text: &str) -> Option<String> {
    if text == "self" {
        return Some("'self'".into());
    }
    let (scheme, host) = text.split_once("://")?;
    let (name, port) = host.split_once(':').unwrap_or((host, "80"));
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let is_valid = matches!(scheme, "http" | "https")
        && !name.is_empty()
        && name.chars().all(is_host)
        && (port == "*" || port.parse::<u16>().is_ok());
    is_valid.then(|| text.to_ascii_lowercase())
}

impl Default for HttpSettings {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
        HttpSettings {
            address: Some(address),
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            frame_ancestors: Vec::new(),
            tls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_ancestor_is_an_origin_and_nothing_more() {
        let read = |text: &str| frame_ancestor(text);
        for origin in [
            "https://home.example.org",
            "http://homeassistant.local:8123",
            "https://*.example.org",
            "http://192.0.2.7:*",
        ] {
            assert_eq!(read(origin).as_deref(), Some(origin));
        }
        assert_eq!(read("self").as_deref(), Some("'self'"));
        for bad in [
            "*",
            "https://",
            "https://a b",
            "https://a; script-src *",
            "https://a/b",
            "javascript://a",
            "a",
            "",
            "http://a:x",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
