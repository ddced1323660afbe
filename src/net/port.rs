//! A port: opened as soon as possible, and kept up to date with its certificate.
//!
//! If an address is in use or does not exist yet, or a certificate is missing, only this port stays closed. A fault with its
//! name is in [`Health`] while the port tries again. A port with TLS never listens without all files that its settings name.
//! While it is open, renewed files are used within [`RENEWAL`]; if a new pair is not usable, the old one stays in use.

use std::future::pending;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::address::{Address, Listening, PortStream};
use super::forwarded::{self, Network};
use super::{ListenError, bind, descriptors, hint, is_about_the_connection, prepare};
use crate::health::{Fault, Health};
use crate::secret::FileError;
use crate::tls::{self, TlsFiles};

/// The time between two attempts to open a port.
const RETRY: Duration = Duration::from_secs(1);
/// The interval at which the files of an open port are checked.
pub(crate) const RENEWAL: Duration = Duration::from_secs(15);
/// The pause after the system had no file descriptor or memory for a connection, so that existing connections can go on.
const PAUSE: Duration = Duration::from_millis(500);

/// The settings of a port.
#[derive(Clone, Debug)]
pub(crate) struct PortSettings {
    /// The name of the port in faults and tasks.
    pub(crate) name: String,
    /// The address at which it listens.
    pub(crate) address: Address,
    /// The files for TLS; `None` means plain TCP.
    pub(crate) tls: Option<TlsFiles>,
    /// Most connections at the same time; `None` means no limit.
    pub(crate) max_connections: Option<usize>,
    /// Proxies that are believed when they report a client's address.
    pub(crate) proxies: Vec<Network>,
}

/// The state of a port's TLS files.
struct PortCertificate {
    files: TlsFiles,
    /// The properties of the files when they were last read.
    stamps: tls::Stamps,
    acceptor: Option<TlsAcceptor>,
}

/// A port, which may be open or closed.
pub(crate) struct Port {
    settings: PortSettings,
    health: Health,
    /// Changes when a person asks to read the files again.
    reloads: watch::Receiver<u64>,
    certificate: Option<PortCertificate>,
    socket: Option<(Listening, Address)>,
    /// The places for connections, if their number is limited.
    places: Option<Arc<Semaphore>>,
    /// Whether all places are taken and that has been logged.
    is_full: bool,
    /// Why the address could not be bound.
    refused: Option<ListenError>,
    look_at: Instant,
    paused_until: Option<Instant>,
}

pub(crate) struct AcceptedConnection {
    pub(crate) stream: PortStream,
    /// The remote address; this host for a Unix socket.
    pub(crate) from: SocketAddr,
    /// Makes the handshake on a port with TLS.
    pub(crate) tls: Option<TlsAcceptor>,
    /// The place among the connections of the port, released when dropped.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    is_proxied: bool,
}

impl AcceptedConnection {
    /// Whether the connection comes from a proxy, which reports the client's address later.
    pub(crate) fn is_proxied(&self) -> bool {
        self.is_proxied
    }

    /// Reads the client's address, if the connection comes from a proxy.
    pub(crate) async fn find_origin(&mut self) -> std::io::Result<()> {
        if self.is_proxied {
            self.from = forwarded::read(&mut self.stream, self.from).await?;
        }
        Ok(())
    }
}

enum PortStep {
    Accepted(std::io::Result<(PortStream, SocketAddr)>),
    Time,
    Asked(bool),
}

impl Port {
    /// Tries once to open the port, and reports the result. Needs the runtime, but reads files, so it must not run on a
    /// worker.
    pub(crate) fn open(settings: PortSettings, health: Health, reloads: watch::Receiver<u64>) -> Port {
        let certificate =
            settings.tls.clone().map(|files| PortCertificate { files, stamps: tls::Stamps::default(), acceptor: None });
        let look_at = Instant::now();
        let places = settings.max_connections.map(|most| Arc::new(Semaphore::new(most)));
        let mut port = Port {
            settings,
            health,
            reloads,
            certificate,
            socket: None,
            places,
            is_full: false,
            refused: None,
            look_at,
            paused_until: None,
        };
        if let Some(certificate) = &port.certificate {
            let stamps = certificate.files.stamps();
            port.take((stamps, certificate.files.acceptor()));
        }
        port.try_to_open();
        port
    }

    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// The address to which it is bound, or will be bound.
    pub(crate) fn address(&self) -> Address {
        self.socket.as_ref().map_or(&self.settings.address, |(_, bound)| bound).clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// The name of the port's task. If any free port could be used, it contains the actual one.
    pub(crate) fn task_name(&self, kind: &str) -> Arc<str> {
        format!("{kind} {}", self.address()).into()
    }

    /// Whether it will most likely stay closed, because another program has its address or the gateway may not use it.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.refused.as_ref().is_some_and(ListenError::is_hopeless)
    }

    /// Why the address could not be bound.
    pub(crate) fn into_error(self) -> Option<ListenError> {
        self.refused
    }

    /// The next connection. Waits while there is none or the port is closed. Safe to cancel.
    pub(crate) async fn accept(&mut self) -> AcceptedConnection {
        loop {
            match self.step().await {
                PortStep::Accepted(Ok((stream, _))) if !descriptors::may_keep(stream.as_fd()) => {
                    drop(stream);
                    self.rest(&format!("the other descriptors, of {}, are kept back", descriptors::limit()));
                }
                PortStep::Accepted(Ok((stream, from))) => {
                    self.health.clear(&self.accepting());
                    let Some(place) = self.place() else { continue };
                    prepare(&stream);
                    let tls = self.certificate.as_ref().and_then(|certificate| certificate.acceptor.clone());
                    let is_proxied = self.settings.proxies.iter().any(|network| network.contains(from.ip()));
                    return AcceptedConnection { stream, from, tls, place, is_proxied };
                }
                PortStep::Accepted(Err(error)) if is_about_the_connection(&error) => {}
                PortStep::Accepted(Err(error)) => self.rest(&error.to_string()),
                PortStep::Time => {
                    let now = Instant::now();
                    self.paused_until = self.paused_until.filter(|until| *until > now);
                    if self.look_at <= now {
                        self.look(false).await;
                    }
                }
                PortStep::Asked(is_asked) => self.look(is_asked).await,
            }
        }
    }

    /// Accepts nothing for a while, because the system has no means for another connection.
    fn rest(&mut self, why: &str) {
        let remedy = "fewer clients, or a higher LimitNOFILE; those who are connected go on";
        self.health.raise(&self.accepting(), &Fault::new(format!("no new ones for now: {why}"), remedy));
        self.paused_until = Some(Instant::now() + PAUSE);
    }

    /// A place for a connection; `None` if all are taken.
    fn place(&mut self) -> Option<Option<OwnedSemaphorePermit>> {
        let Some(places) = &self.places else { return Some(None) };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                // logged again only after half of the places have been free
                let most = self.settings.max_connections.unwrap_or_default();
                self.is_full &= places.available_permits() < most / 2;
                Some(Some(place))
            }
            Err(_) => {
                if !std::mem::replace(&mut self.is_full, true) {
                    let most = self.settings.max_connections;
                    warn!(
                        most,
                        "{}: more connections than its max_connections allow are closed at once", self.settings.name
                    );
                }
                None
            }
        }
    }

    fn accepting(&self) -> String {
        format!("connections of {}", self.settings.name)
    }

    async fn step(&mut self) -> PortStep {
        let wake = self.paused_until.map_or(self.look_at, |until| until.min(self.look_at));
        let (socket, is_paused) = (&self.socket, self.paused_until.is_some());
        let connection = async {
            match socket {
                Some((socket, _)) if !is_paused => socket.accept().await,
                _ => pending().await,
            }
        };
        let reloads = &mut self.reloads;
        let asked = async {
            match reloads.changed().await {
                Ok(()) => true,
                // nobody can ask for a reload any more
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            accepted = connection => PortStep::Accepted(accepted),
            () = sleep_until(wake) => PortStep::Time,
            asked = asked => PortStep::Asked(asked),
        }
    }

    /// Reads files that have changed, or all files if a person asks for it, and opens the port if it is closed.
    async fn look(&mut self, is_asked: bool) {
        if let Some(certificate) = &self.certificate {
            let (files, known) = (certificate.files.clone(), certificate.stamps.clone());
            let anyway = is_asked || self.socket.is_none();
            let read = tokio::task::spawn_blocking(move || {
                let stamps = files.stamps();
                (anyway || stamps != known).then(|| (stamps, files.acceptor()))
            });
            match read.await {
                Ok(Some(read)) => self.take(read),
                Ok(None) => {}
                Err(panicked) => debug!(%panicked, "files not read"),
            }
        }
        self.try_to_open();
    }

    /// Takes the result of reading the TLS files.
    fn take(&mut self, (stamps, made): (tls::Stamps, Result<TlsAcceptor, FileError>)) {
        let Some(certificate) = &mut self.certificate else { return };
        let is_new = certificate.acceptor.is_some() && stamps != certificate.stamps;
        certificate.stamps = stamps;
        let name = &self.settings.name;
        match made {
            Ok(acceptor) => {
                certificate.acceptor = Some(acceptor);
                self.health.clear(&format!("certificate of {name}"));
                if is_new {
                    info!(address = %self.settings.address, "{name}: the certificate was read again");
                }
            }
            Err(error) if certificate.acceptor.is_some() => {
                let problem = format!("{error}; the one that was read before stays in use");
                self.health.raise(&format!("certificate of {name}"), &Fault::new(problem, error.remedy()));
            }
            Err(error) => self.health.raise(name, &Fault::new(format!("closed: {error}"), error.remedy())),
        }
    }

    /// Opens the port if it is closed and all files for TLS are usable.
    fn try_to_open(&mut self) {
        let has_files = self.certificate.as_ref().is_none_or(|certificate| certificate.acceptor.is_some());
        if self.socket.is_none() && has_files {
            self.bind();
        }
        let pause = match (&self.socket, &self.certificate) {
            (None, _) => RETRY,
            (Some(_), Some(_)) => RENEWAL,
            // an open port without TLS has nothing to check
            (Some(_), None) => Duration::from_secs(86_400),
        };
        self.look_at = Instant::now() + pause;
    }

    fn bind(&mut self) {
        match bind(&self.settings.address) {
            Ok((socket, address)) => {
                if self.health.is_faulty(&self.settings.name) {
                    info!(%address, "{}: listens now", self.settings.name);
                }
                self.health.clear(&self.settings.name);
                (self.socket, self.refused) = (Some((socket, address)), None);
            }
            Err(error) => {
                let advice = hint(&error.source);
                let advice = if advice.is_empty() { "see dmesg" } else { advice };
                let fault = Fault::new(
                    format!("cannot listen on {}: {}", error.address, error.source),
                    format!("{advice}; it is tried again every second"),
                );
                self.health.raise(&self.settings.name, &fault);
                self.refused = Some(error);
            }
        }
    }
}
