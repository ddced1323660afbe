//! Settings of the web page and the REST interface.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Certificate and key of the HTTPS listener, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    /// Certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen; `None`: no HTTP at all.
    pub address: Option<SocketAddr>,
    /// Host names, besides the host's own and IP addresses, that browsers may use.
    pub allowed_hosts: Vec<String>,
    /// TLS; `None`: plain HTTP.
    pub tls: Option<HttpTls>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
        HttpSettings { address: Some(address), allowed_hosts: Vec::new(), tls: None }
    }
}
