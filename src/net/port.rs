//! A port: opened as soon as it can be, and kept up to date with its certificate.
//!
//! An address that is taken or not there yet, and a certificate that is missing, close this port and nothing else: a fault
//! with its name stands in [`Health`] while it is tried again. A port with TLS never listens without all files that its
//! settings name. Once it is open, renewed files are taken within [`RENEWAL`]; while a new pair will not do, the one
//! before stays in use.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::address::{Address, Listening, PortStream};
use super::forwarded::{self, Network};
use super::{ListenError, bind, hint, is_about_the_connection, prepare};
use crate::health::{Fault, Health};
use crate::secret::FileError;
use crate::tls::{self, TlsFiles};

/// Time between two attempts to open a port.
const RETRY: Duration = Duration::from_secs(1);
/// How often the files of an open port are looked at.
pub(crate) const RENEWAL: Duration = Duration::from_secs(15);
/// After the system had no file descriptor or memory for a connection: those who are connected must go on.
const PAUSE: Duration = Duration::from_millis(500);

/// What a port is to be.
#[derive(Clone, Debug)]
pub(crate) struct PortSettings {
    /// What faults and tasks call it.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) address: Address,
    /// Files for TLS; `None`: plain TCP.
    pub(crate) tls: Option<TlsFiles>,
    /// Most connections at the same time; `None`: as many as there are.
    pub(crate) max_connections: Option<usize>,
    /// Proxies that say where a connection comes from.
    pub(crate) proxies: Vec<Network>,
}

/// What is known of the files of a port.
struct PortCertificate {
    files: TlsFiles,
    /// What the files were like when they were read last.
    stamps: tls::Stamps,
    acceptor: Option<TlsAcceptor>,
}

/// A port, open or not.
pub(crate) struct Port {
    settings: PortSettings,
    health: Health,
    /// Tells when a person wants files read again.
    reloads: watch::Receiver<u64>,
    certificate: Option<PortCertificate>,
    socket: Option<(Listening, Address)>,
    /// Places for connections, where they are bounded.
    places: Option<Arc<Semaphore>>,
    /// All places are taken, and that has been said.
    is_full: bool,
    /// Why it is closed, as far as the address is concerned.
    refused: Option<ListenError>,
    look_at: Instant,
    paused_until: Option<Instant>,
}

/// A connection that has come in.
pub(crate) struct AcceptedConnection {
    /// The connection.
    pub(crate) stream: PortStream,
    /// Its other end; this host for what comes through the file system.
    pub(crate) from: SocketAddr,
    /// What to do the handshake with, on a port with TLS.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Its place among the connections of its port, which it has until this is dropped.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    is_proxied: bool,
}

impl AcceptedConnection {
    /// Whether a proxy has passed it on, which says later for whom.
    pub(crate) fn is_proxied(&self) -> bool {
        self.is_proxied
    }

    /// Finds out where the connection comes from, if a proxy has passed it on.
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
    /// Tries to open it once, and says how it went. Reads files: not for a runtime worker, but within the runtime.
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

    /// What faults call it.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// The address that it is bound to; while it is closed, the one that it is to have.
    pub(crate) fn address(&self) -> Address {
        self.socket.as_ref().map_or(&self.settings.address, |(_, bound)| bound).clone()
    }

    /// Whether it listens.
    pub(crate) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// The name that its task has: with the port that it was given where any free one would do.
    pub(crate) fn task_name(&self, kind: &str) -> Arc<str> {
        format!("{kind} {}", self.address()).into()
    }

    /// Whether it will most likely stay closed: another program has its address, or it may not have it.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.refused.as_ref().is_some_and(ListenError::is_hopeless)
    }

    /// Why its address could not be had.
    pub(crate) fn into_error(self) -> Option<ListenError> {
        self.refused
    }

    /// The next connection; waits as long as there is none, or the port is closed. Safe to cancel.
    pub(crate) async fn accept(&mut self) -> AcceptedConnection {
        loop {
            match self.step().await {
                PortStep::Accepted(Ok((stream, from))) => {
                    self.health.clear(&self.accepting());
                    let Some(place) = self.place() else { continue };
                    prepare(&stream);
                    let tls = self.certificate.as_ref().and_then(|certificate| certificate.acceptor.clone());
                    let is_proxied = self.settings.proxies.iter().any(|network| network.contains(from.ip()));
                    return AcceptedConnection { stream, from, tls, place, is_proxied };
                }
                PortStep::Accepted(Err(error)) if is_about_the_connection(&error) => {}
                PortStep::Accepted(Err(error)) => {
                    let remedy = "fewer clients, or a higher LimitNOFILE; those who are connected go on";
                    self.health.raise(&self.accepting(), &Fault::new(format!("no new ones for now: {error}"), remedy));
                    self.paused_until = Some(Instant::now() + PAUSE);
                }
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

    /// A place for a connection; `None`: all are taken.
    fn place(&mut self) -> Option<Option<OwnedSemaphorePermit>> {
        let Some(places) = &self.places else { return Some(None) };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                // said again only after it has been half empty
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
                // nobody can ask any more
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            accepted = connection => PortStep::Accepted(accepted),
            () = sleep_until(wake) => PortStep::Time,
            asked = asked => PortStep::Asked(asked),
        }
    }

    /// Reads files that have changed, or all of them where that is asked for, and opens the port if it is closed.
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

    /// Takes what was made of the files of TLS.
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

    /// Opens the port if it is closed and has all that TLS needs. Without that it stays closed.
    fn try_to_open(&mut self) {
        let has_files = self.certificate.as_ref().is_none_or(|certificate| certificate.acceptor.is_some());
        if self.socket.is_none() && has_files {
            self.bind();
        }
        let pause = match (&self.socket, &self.certificate) {
            (None, _) => RETRY,
            (Some(_), Some(_)) => RENEWAL,
            // a plain port that is open has nothing to look for
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
