//! Converts mosquitto's listeners with their protection.
//!
//! A listener that cannot be protected as before is left out rather than opened with less protection.

mod families;
pub(super) mod tables;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use super::document::{MosquittoDocument, Section};
use crate::import::files::Files;
use crate::import::line::SettingLine;
use crate::net::address::Address;

/// Certificate and key, and the authority that signs client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    cert: String,
    key: String,
    client_ca: Option<String>,
    /// The file with the revoked client certificates.
    crl: Option<String>,
    /// Whether the certificate names the user.
    use_identity: bool,
}

/// One of mosquitto's listeners, prepared for our configuration.
#[derive(Clone, Debug)]
pub(super) struct ListenerOpening {
    pub(crate) addresses: Vec<SocketAddr>,
    /// The path, if it is a Unix socket.
    pub(crate) socket: Option<String>,
    /// Whether a proxy in front of it reports the addresses of its clients.
    pub(crate) is_proxied: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) is_websocket: bool,
    /// Its index in [`MosquittoDocument::listeners`]; `None` for mosquitto's built-in listener, which is used if none is
    /// configured.
    pub(crate) section: Option<usize>,
}

impl ListenerOpening {
    /// Whether it can be reached only from the machine itself.
    pub(crate) fn is_local(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().is_loopback())
    }

    /// Whether nobody comes in without a certificate.
    pub(crate) fn requires_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether its users are named by their certificates.
    pub(crate) fn asks_for_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some() && tls.use_identity)
    }
}

#[derive(Debug, Default)]
pub(super) struct Listeners {
    pub(crate) openings: Vec<ListenerOpening>,
    pub(crate) to_do: Vec<String>,
}

/// Whether mosquitto listens on this host only and accepts everybody, because no `listener`, `port` or `bind_address` is
/// given.
pub(super) fn is_local_only(document: &MosquittoDocument) -> bool {
    document.listeners.len() == 1 && !["port", "bind_address"].iter().any(|key| document.listeners[0].has(key))
}

/// Whether the default listener exists, because a line sets something for it that is not the default anyway.
fn default_is_there(section: &Section) -> bool {
    let usual = |line: &SettingLine| match line.key.as_str() {
        "max_connections" => line.word() == "-1",
        "max_qos" => line.word() == "2",
        "protocol" => line.word() == "mqtt",
        "require_certificate" | "use_identity_as_username" | "use_subject_as_username" | "use_username_as_clientid" => {
            matches!(line.word(), "false" | "0")
        }
        "allow_zero_length_clientid" => matches!(line.word(), "true" | "1"),
        "tls_keyform" => line.word() == "pem",
        "allow_anonymous" | "acl_file" | "auto_id_prefix" | "max_topic_alias" | "max_topic_alias_broker" => true,
        "tls_version" | "http_dir" | "websockets_origin" | "plugin_opt_" | "auth_plugin_deny_special_chars" => true,
        _ => false,
    };
    section.lines.iter().any(|line| !usual(line))
}

impl Listeners {
    pub(crate) fn read(document: &MosquittoDocument, files: &Files) -> Listeners {
        let mut listeners = Listeners::default();
        let both =
            |port| vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        let default_is_there = default_is_there(&document.listeners[0]);
        if is_local_only(document) && !default_is_there {
            let opening = ListenerOpening {
                addresses: both(1883),
                socket: None,
                is_proxied: false,
                tls: None,
                is_websocket: false,
                section: None,
            };
            listeners.openings.push(opening);
        }
        for (index, section) in document.listeners.iter().enumerate() {
            // the default listener is opened last, so that listeners with a configured address get theirs first
            if index > 0 || !default_is_there {
                listeners.open(index, section, files);
            }
        }
        if default_is_there {
            listeners.open(0, &document.listeners[0], files);
        }
        listeners.join_families(document);
        for section in &document.listeners {
            // access settings are read later
            let is_own =
                |line: &&Rc<SettingLine>| line.is_open() && !crate::import::mosquitto_keys::is_about_access(&line.key);
            section.lines.iter().filter(is_own).for_each(|line| line.taken());
        }
        listeners
    }

    fn open(&mut self, index: usize, section: &Section, files: &Files) {
        if index == 0 && section.lines.is_empty() {
            return;
        }
        if index == 0 && !default_is_there(section) {
            section.lines.iter().for_each(|line| read_usual(line));
            return;
        }
        let socket = socket(section);
        let addresses = if socket.is_some() { Ok(Vec::new()) } else { self.addresses(section) };
        let opened = addresses.and_then(|addresses| {
            let tls = self.tls(section, files)?;
            let is_websocket = protocol(section)?;
            let is_proxied = self.is_proxied(section, socket.is_some());
            Ok(ListenerOpening { addresses, socket, is_proxied, tls, is_websocket, section: Some(index) })
        });
        let opened = opened.and_then(|opening| self.checked(opening, section));
        match opened {
            Ok(opening) => {
                section.head.iter().for_each(|line| line.taken());
                self.openings.push(opening);
            }
            Err(why) => {
                let place = section.everything().next().map(|line| line.place().to_string()).unwrap_or_default();
                self.to_do.push(format!("{place}: this listener is left out: {why}"));
                section.head.iter().for_each(|line| line.not_taken(&*why));
                section.everything().for_each(|line| line.revoke("its listener is left out"));
            }
        }
    }

    /// Checks that the listener does not take the address of another one, and that all files for its protection exist.
    fn checked(&mut self, mut opening: ListenerOpening, section: &Section) -> Result<ListenerOpening, String> {
        if let Some(line) = section.get("mount_point") {
            line.not_taken("topics are not put below another topic: give its users rules instead");
            return Err("its clients were kept apart by mount_point, which is not here".into());
        }
        if opening.is_proxied && section.flag("proxy_protocol_v2_require_tls").is_some_and(|(_, is_set)| is_set) {
            return Err("its clients had to come to the proxy by TLS, and a proxy is not asked for that here".into());
        }
        if opening.socket.is_some() {
            if self.openings.iter().any(|other| other.socket == opening.socket) {
                return Err("another listener has its socket already, and mosquitto does not start with both".into());
            }
            return Ok(opening);
        }
        let taken: Vec<SocketAddr> = self.openings.iter().flat_map(|other| other.addresses.clone()).collect();
        let before = opening.addresses.len();
        opening.addresses.retain(|address| !taken.iter().any(|other| exclude(*other, *address)));
        let has_lost = opening.addresses.len() < before;
        let is_half = has_lost && opening.addresses.iter().any(|address| address.ip().is_unspecified());
        if opening.addresses.is_empty() || is_half {
            return Err("another listener has its address already, and mosquitto does not start with both".into());
        }
        if has_lost {
            section.head.iter().for_each(|line| line.differs("another listener has one of its addresses already"));
        }
        Ok(opening)
    }

    fn addresses(&mut self, section: &Section) -> Result<Vec<SocketAddr>, String> {
        let (port_line, host_line, host) = match &section.head {
            Some(head) => {
                let mut words = head.value.split_whitespace();
                let port = words.next().unwrap_or_default().to_owned();
                let host = words.next().filter(|word| !word.starts_with('#')).map(str::to_owned);
                (Some((head.clone(), port)), Some(head.clone()), host)
            }
            None => {
                let host = section.get("bind_address");
                let port = section.get("port").map(|line| (line.clone(), line.word().to_owned()));
                (port, host.clone(), host.map(|line| line.word().to_owned()))
            }
        };
        let port: u16 = match &port_line {
            None => 1883,
            Some((line, text)) => text.parse().map_err(|_| {
                line.wrong("valid: a port from 1 to 65535");
                "its port is not one".to_owned()
            })?,
        };
        if port == 0 {
            return Err("its socket in the file system has no absolute path".into());
        }
        let domain = section.get("socket_domain");
        if let Some(line) = &domain {
            match line.word() {
                "ipv4" | "ipv6" => line.taken(),
                _ => line.wrong("valid: ipv4, ipv6"),
            }
        }
        let domain = domain.as_ref().map(|line| line.word());
        if let Some(line) = section.get("bind_interface") {
            return Ok(self.interface(&line, port));
        }
        Ok(self.resolve(host.as_deref(), host_line.as_ref(), domain, port))
    }

    fn resolve(
        &mut self,
        host: Option<&str>,
        line: Option<&Rc<SettingLine>>,
        domain: Option<&str>,
        port: u16,
    ) -> Vec<SocketAddr> {
        let is_wanted = |ip: &IpAddr| match domain {
            Some("ipv4") => ip.is_ipv4(),
            Some("ipv6") => ip.is_ipv6(),
            _ => true,
        };
        let ips: Vec<IpAddr> = match host {
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            Some("localhost") => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            Some(host) => host.parse().into_iter().collect(),
        };
        if ips.is_empty() {
            let host = host.unwrap_or_default();
            self.to_do.push(format!("write the IP address of {host} into the listener of port {port}"));
            if let Some(line) = line {
                line.not_taken(format!(
                    "a listener has an IP address, not a name: write that of {host}; until then it is this host only"
                ));
            }
            return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        }
        ips.into_iter().filter(is_wanted).map(|ip| SocketAddr::new(ip, port)).collect()
    }

    fn interface(&mut self, line: &SettingLine, port: u16) -> Vec<SocketAddr> {
        if line.word() == "lo" {
            line.taken();
            return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        }
        let interface = line.word();
        self.to_do.push(format!("write the IP address of {interface} into the listener of port {port}"));
        line.not_taken(format!(
            "a listener has an IP address, not an interface: write that of {interface}; until then it is this host only"
        ));
        vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]
    }

    fn tls(&mut self, section: &Section, files: &Files) -> Result<Option<Tls>, String> {
        if let Some(line) = section.get("psk_hint") {
            line.not_taken("TLS with pre-shared keys is not spoken: use certificates");
            return Err("it is protected by pre-shared keys, which are not spoken here".into());
        }
        if section.has("tls_engine") || section.get("tls_keyform").is_some_and(|line| line.word() == "engine") {
            return Err("its key is in an engine, and keys are read from files only".into());
        }
        let (cert, key) = match (section.get("certfile"), section.get("keyfile")) {
            (Some(cert), Some(key)) => (cert, key),
            (None, None) => {
                for line in section.lines.iter().filter(|line| is_about_tls(&line.key)) {
                    line.not_needed("without certfile and keyfile the listener has no TLS, in mosquitto neither");
                }
                return Ok(None);
            }
            _ => return Err("certfile and keyfile belong together, and one is missing".into()),
        };
        let client_ca = self.client_ca(section, files)?;
        let crl = client_ca.is_some().then(|| section.get("crlfile")).flatten();
        let crl = crl.and_then(|line| self.file(&line, files));
        let names_users = |key| section.flag(key).is_some_and(|(_, is_set)| is_set);
        let use_identity = names_users("use_identity_as_username") || names_users("use_subject_as_username");
        let (cert, key) = (self.file(&cert, files), self.file(&key, files));
        let (Some(cert), Some(key)) = (cert, key) else { return Err("its certificate or key is not named".into()) };
        if let Some(line) = section.get("tls_version") {
            match line.word() {
                "tlsv1.2" => line.not_needed("TLS 1.2 and 1.3 are spoken"),
                "tlsv1.3" => line.not_taken("TLS 1.2 is spoken too"),
                _ => line.differs("TLS before 1.2 is not spoken"),
            }
        }
        Ok(Some(Tls { cert, key, client_ca, crl, use_identity }))
    }

    /// The authority that signs client certificates, if they are required.
    fn client_ca(&mut self, section: &Section, files: &Files) -> Result<Option<String>, String> {
        let required = section.flag("require_certificate");
        let is_required = required.as_ref().is_some_and(|(_, required)| *required);
        let cafile = section.get("cafile");
        if !is_required {
            if let Some((line, _)) = &required {
                line.not_needed("it is so here");
            }
            for key in ["cafile", "capath", "crlfile", "use_identity_as_username", "use_subject_as_username"] {
                section.all(key).for_each(|line| line.not_needed("client certificates are not asked for"));
            }
            return Ok(None);
        }
        let Some(cafile) = cafile else {
            section
                .all("capath")
                .for_each(|line| line.not_taken("put the certificates of the directory into one file"));
            return Err(
                "it asks for client certificates, and client_ca takes one file (cafile), not a directory".into()
            );
        };
        section
            .all("capath")
            .for_each(|line| line.not_taken("client_ca takes one file: add the certificates of the directory to it"));
        let named = |key| section.flag(key).filter(|(_, is_set)| *is_set).map(|(line, _)| line);
        match (named("use_identity_as_username"), named("use_subject_as_username")) {
            (Some(line), _) => line.taken(),
            (None, Some(line)) => line.differs("the user is the certificate's common name, not its whole subject"),
            (None, None) => {
                if let Some((line, _)) = &required {
                    line.taken();
                }
                return Ok(self.file(&cafile, files));
            }
        }
        self.to_do.push("there must be a [[broker.user]] for the common name of each client certificate".into());
        Ok(self.file(&cafile, files))
    }

    /// Whether a proxy reports the addresses of clients. mosquitto believes any proxy; here only this host is believed until
    /// others are named. Clients of a Unix socket have no address, so a proxy in front of it is not supported.
    fn is_proxied(&mut self, section: &Section, is_socket: bool) -> bool {
        let Some(line) = section.get("enable_proxy_protocol") else { return false };
        let is_proxied = !matches!(line.word(), "false" | "0");
        if is_proxied && is_socket {
            line.not_taken(
                "a proxy is not understood at a socket in the file system, so who comes through it does not get in",
            );
            self.to_do
                .push(format!("{}: have the proxy connect to a listener with an IP address and `proxy`", line.place()));
            return false;
        }
        if is_proxied {
            line.differs(
                "a proxy is believed at the addresses that are named only: those of this host, until others are",
            );
            self.to_do.push(format!("{}: write the addresses of the proxy into `proxy` of the listener", line.place()));
        } else {
            line.not_needed("it is so here");
        }
        is_proxied
    }

    fn file(&mut self, line: &SettingLine, files: &Files) -> Option<String> {
        let (path, is_there) = files.locate(line.path()?);
        if !is_there {
            self.to_do.push(format!("{path} is not here; it must be before the gateway starts"));
        }
        line.taken();
        Some(path)
    }
}

/// Whether the listener speaks MQTT over WebSocket.
fn protocol(section: &Section) -> Result<bool, String> {
    let Some(line) = section.get("protocol") else { return Ok(false) };
    match line.word() {
        "mqtt" => {
            line.taken();
            Ok(false)
        }
        "websockets" => {
            line.differs("clients connect to the path /, /ws or /mqtt");
            section.all("websockets_origin").for_each(|line| {
                line.differs("pages of this host and of http.allowed_hosts may connect");
            });
            Ok(true)
        }
        "quic" => Err("QUIC is not spoken".into()),
        "http_api" => Err("the gateway's own HTTP interface is at [http]".into()),
        _ => {
            line.wrong("valid: mqtt, websockets");
            Err("its protocol is not known".into())
        }
    }
}

/// The path of a Unix socket.
fn socket(section: &Section) -> Option<String> {
    let mut words = section.head.as_ref()?.value.split_whitespace();
    let path = (words.next()? == "0").then(|| words.next()).flatten()?;
    (path.starts_with('/') && Address::parse(path).is_some()).then(|| path.to_owned())
}

/// Marks the lines of a default listener that is not written because they all state defaults.
fn read_usual(line: &SettingLine) {
    if line.is_open() && !matches!(line.key.as_str(), "allow_anonymous" | "acl_file" | "password_file") {
        line.not_needed("it says what is usual");
    }
}

fn is_about_tls(key: &str) -> bool {
    let keys = ["cafile", "capath", "crlfile", "require_certificate", "use_identity_as_username"];
    keys.contains(&key) || matches!(key, "use_subject_as_username" | "tls_version")
}

/// Whether mosquitto cannot open two addresses at the same time. A socket of its takes one family only.
fn exclude(a: SocketAddr, b: SocketAddr) -> bool {
    let is_any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || is_any && a.is_ipv4() == b.is_ipv4())
}
