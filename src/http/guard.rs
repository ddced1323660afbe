//! Refuses requests that pages of other sites make a browser send.
//!
//! A browser on the same network has access by its address or by stored credentials, so any page that it shows could use the
//! gateway through it. Two headers reveal such requests. `Host` must be one of our names, because another name that leads
//! here is DNS rebinding. `Origin`, if present, must be that of the page itself: the same host and port. Both rules also
//! apply to reading and to WebSockets.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, Uri, header};

/// The names of this gateway.
#[derive(Clone, Debug)]
pub struct HttpGuard {
    /// All names, in lower case.
    names: Vec<String>,
    /// The names from the configuration. Pages from these sites may use the gateway.
    allowed: Vec<String>,
    port: u16,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    /// The request has no valid `Host`.
    #[error("the request has no valid Host")]
    NoHost,
    /// The `Host` is not one of our names.
    #[error(
        "this gateway does not go by that host name; use its IP address or its own name, or add the name to \
         allowed_hosts under [http]"
    )]
    Host,
    /// The request comes from a page of another site.
    #[error("a page of another site may not use this gateway (allowed_hosts under [http] names those that may)")]
    Origin,
}

/// Whether a page of exactly the same origin makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SameOrigin {
    /// The browser confirms that the page is ours.
    Yes,
    /// The browser names another origin, so the request may be forged.
    No,
    /// No header tells: a program, or a browser that follows a link or reads without TLS.
    Unsaid,
}

/// A host and an optional port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Authority<'a> {
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    fn parse(text: &'a str) -> Option<Authority<'a>> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if rest.is_empty() => None,
            None => return None,
        };
        (!host.is_empty() && !host.contains(['@', '/'])).then_some(Authority { host, port })
    }
}

/// The host that a request names.
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Authority<'a>, Foreign> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, None) => authority.as_str(),
        (None, Some(host), None) => host.to_str().map_err(|_| Foreign::NoHost)?,
        _ => return Err(Foreign::NoHost),
    };
    Authority::parse(named).ok_or(Foreign::NoHost)
}

impl HttpGuard {
    /// A guard for a host of this name that listens on this port.
    pub fn new(host_name: &str, allowed_hosts: &[String], port: u16) -> HttpGuard {
        let host_name = host_name.to_ascii_lowercase();
        let label = host_name.split('.').next().unwrap_or_default().to_owned();
        let mut names = vec!["localhost".to_owned()];
        if !label.is_empty() {
            // the name in multicast DNS
            names.push(format!("{label}.local"));
            names.push(label);
            names.push(host_name);
        }
        let allowed: Vec<String> = allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        names.extend(allowed.iter().cloned());
        HttpGuard { names, allowed, port }
    }

    fn is_ours(&self, host: &str) -> bool {
        // an address cannot be rebound; a final dot only marks a complete name
        let host = host.strip_suffix('.').unwrap_or(host);
        host.parse::<IpAddr>().is_ok() || self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// The same check for a WebSocket. Browsers always send an origin with it, so a request without one comes from a
    /// program, which may use any name for this host.
    pub(crate) fn check_upgrade(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        if headers.contains_key(header::ORIGIN) || self.is_from_another_site(headers) {
            return self.check(uri, headers);
        }
        Ok(())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether a page of exactly the same origin makes this request. A cookie counts for nobody else, not even for sites
    /// that the configuration allows. Scheme, host and port are those of the browser's address bar; a proxy in front passes
    /// the host on.
    pub(crate) fn same_origin(&self, uri: &Uri, headers: &HeaderMap) -> SameOrigin {
        let usual = |scheme: &str| match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let is_own = |origin: &str| {
            let (scheme, authority) = origin.split_once("://")?;
            let (page, host) = (Authority::parse(authority)?, host(uri, headers).ok()?);
            let port = |authority: Authority<'_>| authority.port.or(usual(scheme));
            Some(usual(scheme).is_some() && page.host.eq_ignore_ascii_case(host.host) && port(page) == port(host))
        };
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
            // the browser knows the scheme used at a proxy in front, and this gateway does not
            return SameOrigin::No;
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (Some(origin), None) if origin.to_str().ok().and_then(is_own) == Some(true) => SameOrigin::Yes,
            (Some(_), _) => SameOrigin::No,
            (None, _) if site.is_some() => SameOrigin::Yes,
            (None, _) => SameOrigin::Unsaid,
        }
    }

    /// Checks that a request with these headers may be answered.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        let host = host(uri, headers)?;
        if !self.is_ours(host.host) {
            return Err(Foreign::Host);
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) if self.is_from_another_site(headers) => Err(Foreign::Origin),
            (None, _) => Ok(()),
            (Some(origin), None) => {
                let is_ours = origin.to_str().is_ok_and(|origin| self.is_own_page(origin, host));
                if is_ours { Ok(()) } else { Err(Foreign::Origin) }
            }
            _ => Err(Foreign::Origin),
        }
    }

    /// The origin of a page of another site that the configuration allows, which may read the answer.
    pub(crate) fn welcome<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
        let (_, authority) = origin.to_str().ok()?.split_once("://")?;
        let page = Authority::parse(authority)?;
        self.allowed.iter().any(|name| name.eq_ignore_ascii_case(page.host)).then_some(origin)
    }

    /// Whether the origin is that of the page itself, or one that the configuration allows.
    fn is_own_page(&self, origin: &str, host: Authority<'_>) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let Some(page) = Authority::parse(authority) else { return false };
        if self.allowed.iter().any(|name| name.eq_ignore_ascii_case(page.host)) {
            return true;
        }
        let usual = match scheme {
            "http" | "ws" => 80,
            "https" | "wss" => 443,
            _ => return false,
        };
        let from = page.port.unwrap_or(usual);
        let same_port = match host.port {
            Some(port) => port == from,
            // a browser leaves out only the default port; some clients leave out any port
            None => from == usual || from == self.port,
        };
        same_port && page.host.eq_ignore_ascii_case(host.host)
    }

    /// Whether another site's page loads something, such as an image or a script. Browsers tell that even without an origin.
    /// Following a link to the gateway is allowed.
    fn is_from_another_site(&self, headers: &HeaderMap) -> bool {
        let is = |name: &str, values: &[&str]| headers.get(name).is_some_and(|value| values.iter().any(|v| value == v));
        is("sec-fetch-site", &["cross-site", "same-site"]) && !is("sec-fetch-mode", &["navigate"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)]) -> Result<(), Foreign> {
        let guard = HttpGuard::new("Loft", &["Pi.example.org".into()], 8080);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        guard.check(&Uri::from_static("/"), &map)
    }

    #[test]
    fn only_our_own_names_lead_here() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "loft",
            "loft.local:8080",
            "loft.local.",
            "192.0.2.7:8080",
            "[::1]:8080",
            "[2001:db8::7]",
            "pi.example.org",
        ] {
            assert_eq!(check(&[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.example", "loft.evil.example", "localhost.evil.example", "192.0.2.7.evil.example"] {
            assert_eq!(check(&[("host", host)]), Err(Foreign::Host), "{host}");
        }
        for host in ["", ":8080", "a@localhost", "localhost:http", "[::1"] {
            assert_eq!(check(&[("host", host)]), Err(Foreign::NoHost), "{host}");
        }
        assert_eq!(check(&[]), Err(Foreign::NoHost));
        assert_eq!(check(&[("host", "loft"), ("host", "loft")]), Err(Foreign::NoHost));
    }

    #[test]
    fn pages_that_the_configuration_names_may_read() {
        let guard = HttpGuard::new("Loft", &["Pi.example.org".into()], 8080);
        let welcome = |origins: &[&str]| {
            let mut map = HeaderMap::new();
            for origin in origins {
                map.append(header::ORIGIN, origin.parse().unwrap());
            }
            guard.welcome(&map).is_some()
        };
        assert!(welcome(&["https://pi.example.org"]) && welcome(&["http://PI.example.org:8123"]));
        for origin in ["https://evil.example", "https://pi.example.org.evil.example", "null", "", "http://loft:8080"] {
            assert!(!welcome(&[origin]), "{origin}");
        }
        assert!(!welcome(&["https://pi.example.org", "https://pi.example.org"]) && !welcome(&[]));
    }

    #[test]
    fn programs_call_this_host_as_they_like_for_a_websocket() {
        let guard = HttpGuard::new("Loft", &[], 8080);
        let check = |headers: &[(&'static str, &'static str)]| {
            let map =
                HeaderMap::from_iter(headers.iter().map(|(name, value)| {
                    (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
                }));
            guard.check_upgrade(&Uri::from_static("/mqtt"), &map)
        };
        assert_eq!(check(&[("host", "raspberrypi.fritz.box:8080")]), Ok(()));
        assert_eq!(check(&[]), Ok(()));
        let rebound = [("host", "evil.example:8080"), ("origin", "http://evil.example:8080")];
        assert_eq!(check(&rebound), Err(Foreign::Host));
        assert_eq!(check(&[("host", "loft:8080"), ("origin", "http://evil.example")]), Err(Foreign::Origin));
        assert_eq!(check(&[("host", "loft:8080"), ("sec-fetch-site", "cross-site")]), Err(Foreign::Origin));
        assert_eq!(check(&[("host", "loft:8080"), ("origin", "http://loft:8080")]), Ok(()));
    }

    #[test]
    fn only_our_own_pages_ask() {
        let with = |host: &'static str, origin: &'static str| check(&[("host", host), ("origin", origin)]);
        assert_eq!(with("loft:8080", "http://loft:8080"), Ok(()));
        assert_eq!(with("192.0.2.7:8080", "http://192.0.2.7:8080"), Ok(()));
        assert_eq!(with("loft", "https://loft"), Ok(()), "behind a proxy");
        assert_eq!(with("loft", "http://loft:8080"), Ok(()), "a client that leaves the port out");
        assert_eq!(with("loft:8080", "https://pi.example.org"), Ok(()), "named in the configuration");
        for origin in [
            "http://evil.example",
            "http://loft",
            "http://loft:3000",
            "http://192.0.2.8:8080",
            "null",
            "",
            "file://",
            "chrome-extension://abc",
        ] {
            assert_eq!(with("loft:8080", origin), Err(Foreign::Origin), "{origin}");
        }
        assert_eq!(with("192.0.2.7:8080", "http://192.0.2.8:8080"), Err(Foreign::Origin));
        let twice = [("host", "loft"), ("origin", "http://loft"), ("origin", "http://loft")];
        assert_eq!(check(&twice), Err(Foreign::Origin));
    }

    #[test]
    fn what_a_cookie_allows_is_for_the_very_same_origin() {
        let guard = HttpGuard::new("Loft", &["pi.example.org".into()], 8080);
        let asked = |headers: &[(&'static str, &'static str)]| {
            let map = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), header::HeaderValue::from_static(value)));
            guard.same_origin(&Uri::from_static("/"), &HeaderMap::from_iter(map))
        };
        let with = |host, origin| asked(&[("host", host), ("origin", origin)]);
        for (host, origin) in [
            ("loft:8080", "http://LOFT:8080"),
            ("loft", "http://loft"),
            ("pi.example.org", "https://pi.example.org"),
            ("pi.example.org", "https://pi.example.org:443"),
            ("pi.example.org:80", "http://pi.example.org"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(with(host, origin), SameOrigin::Yes, "{host} {origin}");
        }
        for (host, origin) in [
            ("loft:8080", "https://pi.example.org"),
            ("pi.example.org:8080", "http://pi.example.org:8123"),
            ("pi.example.org", "http://pi.example.org:8080"),
            ("loft:8080", "http://loft"),
            ("loft", "https://loft:80"),
            ("loft", "null"),
            ("loft", "ftp://loft"),
            ("loft", ""),
        ] {
            assert_eq!(with(host, origin), SameOrigin::No, "{host} {origin}");
        }
        let fetch = |site| asked(&[("host", "loft"), ("sec-fetch-site", site)]);
        assert_eq!([fetch("same-origin"), fetch("none")], [SameOrigin::Yes; 2]);
        assert_eq!([fetch("same-site"), fetch("cross-site"), fetch("")], [SameOrigin::No; 3]);
        assert_eq!(asked(&[("host", "loft")]), SameOrigin::Unsaid);
        // the page without TLS of a host that is reached with TLS, through a proxy
        let plain = [("host", "pi.example.org"), ("origin", "http://pi.example.org"), ("sec-fetch-site", "cross-site")];
        assert_eq!(asked(&plain), SameOrigin::No);
    }

    #[test]
    fn what_other_pages_load_from_here_is_refused_and_links_are_not() {
        let load = [("host", "loft"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
        assert_eq!(check(&load), Err(Foreign::Origin));
        let link = [("host", "loft"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
        assert_eq!(check(&link), Ok(()));
        let own = [("host", "loft"), ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")];
        assert_eq!(check(&own), Ok(()));
    }
}
