//! The MQTT client for upstreams. Only this module uses rumqttc.
//!
//! The packets are rumqttc's ([`v4`], [`v5`]). Its event loop is not used, for two reasons: it flushes after every PUBLISH,
//! which costs a system call and often a TCP segment for each, and it reconnects and resends from its own memory, while here
//! the journal decides. So [`connection`] moves the bytes. Everything that was handed over in the meantime leaves in one
//! write, in the task of the upstream itself and without a queue between tasks, and input is read in portions ([`pace`]).

mod connection;
mod dial;
mod frames;
mod look;
mod pace;
mod peers;
mod pieces;
pub mod proxy;
mod stream;
#[cfg(test)]
mod tests;
mod v4;
mod v5;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

pub(super) use self::connection::MESSAGE_IDS;
use self::connection::UpstreamConnection;
use self::dial::PeerOrder;
pub(super) use self::look::{answers, reaches};
use self::peers::{BrokenPeers, FailedPeers};
use self::stream::{Bare, UpstreamStream};
use super::mark::SessionMark;
use super::neighbours::{Neighbours, Presence};
use super::settings::{Password, ProxyScheme, UpstreamAddress, UpstreamSettings};
use super::wire::{
    Ack, BeginStep, Broken, Busy, ClientEvent, ConnectOffer, LineProgress, Link, OutMessage, RetainedWanted,
    UpstreamClient, Version,
};
use super::{password, tls};
use crate::message::{Qos, TopicFilter};
use crate::secret::Secret;

/// The number of requests besides messages that may wait: subscriptions and acknowledgements.
const SPARE_REQUESTS: usize = 512;
/// The bytes of a PUBLISH of 3.1.1 besides its topic and its payload.
const HEAD: usize = 9;

/// A packet to send.
enum Request {
    Publish(OutMessage),
    Subscribe(Vec<(TopicFilter, Qos)>, RetainedWanted),
    Unsubscribe(Vec<String>),
    Ack(Ack),
    Ping,
    Disconnect,
}

/// A packet that has arrived.
enum Incoming {
    /// The upstream accepts the connection; the second value is the keep alive that it wants, in seconds.
    Accepted(Link, Option<u16>),
    Event(ClientEvent),
    /// The answer to the SUBSCRIBE with this packet id, with a reason code for each filter.
    Subscribed(u16, Vec<u8>),
    /// The same for UNSUBSCRIBE; without reason codes in version 3.1.1.
    Unsubscribed(u16, Vec<u8>),
    /// A packet without further meaning, which shows that the upstream is there.
    Other,
}

/// The client that connects to real upstreams.
pub struct RemoteClient {
    max_packet_size: usize,
    connection: Option<UpstreamConnection>,
    neighbours: Neighbours,
    /// The entry of the connection among the neighbours.
    presence: Option<Presence>,
    failed_peers: FailedPeers,
    /// The peer of the last connection, with the name that led to it and all addresses of that.
    last_peer: Option<(String, ReachedPeer)>,
}

impl RemoteClient {
    /// A client that is not connected, and accepts messages up to this size in bytes.
    pub(crate) fn new(max_packet_size: usize) -> RemoteClient {
        RemoteClient {
            max_packet_size,
            connection: None,
            neighbours: Neighbours::default(),
            presence: None,
            failed_peers: FailedPeers::default(),
            last_peer: None,
        }
    }

    /// Makes no connection from now on by which messages would loop between it and these.
    pub(super) fn beside(&mut self, neighbours: Neighbours) {
        self.neighbours = neighbours;
    }

    /// A client on an existing stream of bytes, once the upstream on its other side has accepted the connection.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        max_packet_size: usize,
    ) -> Result<(RemoteClient, Link), Broken> {
        let stream = over(Box::new(Bare(stream)), address).await?;
        let mut connection = connection(stream, settings, offer.version, max_packet_size);
        let link = connection.open(settings, offer.will, None).await?;
        Ok((RemoteClient { connection: Some(connection), ..RemoteClient::new(max_packet_size) }, link))
    }

    fn request(&mut self, request: Request) -> Result<(), Busy> {
        // without a connection nothing is sent; its end has been reported, or is about to be
        self.connection.as_mut().map_or(Ok(()), |connection| connection.request(request))
    }
}

impl UpstreamClient for RemoteClient {
    async fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        mark: &mut SessionMark,
    ) -> Result<Link, Broken> {
        self.close();
        let (name, mut broken_peers) = (address.authority(), BrokenPeers::default());
        let mut password = match &settings.password {
            // a missing file is noticed before the network is used
            Some(from @ Password::File(_)) => Some(password::fetch(from).await.map_err(Broken::Unprepared)?),
            _ => None,
        };
        loop {
            let last = self.failed_peers.of(&name);
            let order = PeerOrder { except: &broken_peers.known, last: &last };
            let terms = ConnectTerms {
                settings,
                address,
                offer,
                max_packet_size: self.max_packet_size,
                neighbours: &self.neighbours,
            };
            let (broken, peer) = match attempt(terms, order, &mut password, mark).await {
                Ok(OpenedConnection { connection, link, presence, reached }) => {
                    (self.connection, self.presence) = (Some(connection), presence);
                    self.last_peer = reached.map(|reached| (name, reached));
                    return Ok(link);
                }
                Err(failed) => failed,
            };
            if broken == Broken::Silent && peer.is_some() {
                // the upstream may have received the CONNECT, and may belong to the same cluster as the next one
                mark.is_unanswered();
            }
            // the same peer is asked with another version at once
            if let Some(peer) = peer.filter(|_| broken != Broken::Version) {
                self.failed_peers.add(&name, peer);
            }
            broken_peers.add(address, broken, peer).await?;
        }
    }

    fn publish(&mut self, message: OutMessage) -> Result<(), Busy> {
        self.request(Request::Publish(message))
    }

    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)], wanted: RetainedWanted) -> Result<(), Busy> {
        self.request(Request::Subscribe(filters.to_vec(), wanted))
    }

    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy> {
        self.request(Request::Unsubscribe(filters.iter().map(ToString::to_string).collect()))
    }

    fn ping(&mut self) -> Result<(), Busy> {
        self.request(Request::Ping)
    }

    fn ack(&mut self, ack: Ack) -> Result<(), Busy> {
        self.request(Request::Ack(ack))
    }

    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        match &mut self.connection {
            Some(connection) => connection.events().await,
            None => Err(Broken::Closed),
        }
    }

    fn line(&mut self, owed: Duration) -> LineProgress {
        self.connection.as_mut().map_or(LineProgress::Nothing, |connection| connection.line(owed))
    }

    fn leave_peer(&mut self) -> bool {
        let Some((name, reached)) = &self.last_peer else { return false };
        self.failed_peers.add(name, reached.peer.ip());
        let failed = self.failed_peers.of(name);
        reached.all.iter().any(|ip| !failed.contains(ip))
    }

    fn peer_was_good(&mut self) {
        if let Some((name, _)) = &self.last_peer {
            self.failed_peers.forget(name);
        }
    }

    fn would_loop(&mut self, settings: &UpstreamSettings) -> bool {
        self.presence.as_ref().is_some_and(|presence| presence.would_loop(settings))
    }

    fn disconnect(&mut self) -> Result<(), Busy> {
        self.request(Request::Disconnect)
    }

    fn close(&mut self) {
        (self.connection, self.presence) = (None, None);
    }
}

/// What is the same in all attempts to connect to one address.
#[derive(Clone, Copy)]
struct ConnectTerms<'a> {
    settings: &'a UpstreamSettings,
    address: &'a UpstreamAddress,
    offer: ConnectOffer,
    max_packet_size: usize,
    neighbours: &'a Neighbours,
}

/// The two ends of a connection that has been established without a proxy.
struct ReachedPeer {
    peer: SocketAddr,
    local: IpAddr,
    /// All addresses that were tried in this attempt, or would have been.
    all: Vec<IpAddr>,
}

/// A connection that the upstream has accepted.
struct OpenedConnection {
    connection: UpstreamConnection,
    link: Link,
    presence: Option<Presence>,
    reached: Option<ReachedPeer>,
}

/// Makes one attempt. The error also has the address that was reached.
async fn attempt(
    terms: ConnectTerms<'_>,
    order: PeerOrder<'_>,
    password: &mut Option<Secret>,
    mark: &mut SessionMark,
) -> Result<OpenedConnection, (Broken, Option<IpAddr>)> {
    let ConnectTerms { settings, address, offer, max_packet_size, neighbours } = terms;
    let begin = Instant::now();
    let end = begin + settings.connect_timeout;
    let mut progress = OpenProgress::default();
    let stream = timeout_at(end, open(settings, address, offer.has_small_segments, order, &mut progress)).await;
    let OpenProgress { reached, step } = progress;
    let stream = stream.unwrap_or_else(|_| Err(too_late(settings, step)));
    let peer = reached.as_ref().map(|reached: &ReachedPeer| reached.peer.ip());
    let stream = stream.map_err(|broken| (broken, peer))?;
    let presence = reached.as_ref().map(|at| neighbours.enter(settings, address, offer.version, (at.peer, at.local)));
    let presence = presence.transpose().map_err(|why| (Broken::Lasting(why), peer))?;
    let end = end + fetch_late(settings, password).await.map_err(|broken| (broken, None))?;
    // limited to a part of the time, as explained there
    let _ = timeout(settings.connect_timeout / 4, mark.asks()).await;
    let mut connection = connection(stream, settings, offer.version, max_packet_size);
    // an upstream that may be silent only with this version is asked with another one while there is time
    let end = if offer.is_trial { end - settings.connect_timeout / 2 } else { end };
    let patience = end.saturating_duration_since(Instant::now()).max(settings.connect_timeout / 4);
    let link = timeout(patience, connection.open(settings, offer.will, password.as_ref())).await;
    // a server that is killed closes its connections, so this is no answer
    use Broken::{Closed, Failed, Lasting, OtherThan};
    if matches!(link, Ok(Err(Failed(_) | Lasting(_) | OtherThan(..) | Closed))) && !connection.was_heard() {
        mark.is_unanswered();
    }
    let link = link.map_err(|_| (Broken::Silent, peer))?.map_err(|broken| (broken, peer))?;
    Ok(OpenedConnection { connection, link, presence, reached })
}

/// Fetches the password if that has not been done yet: a program is run only once somebody has answered who is to get what it
/// prints, because it may take long and use the network, and what it prints may expire soon. Returns how long that took.
async fn fetch_late(settings: &UpstreamSettings, password: &mut Option<Secret>) -> Result<Duration, Broken> {
    let begin = Instant::now();
    if let (Some(from), None) = (&settings.password, &*password) {
        *password = Some(password::fetch(from).await.map_err(Broken::Unprepared)?);
    }
    Ok(begin.elapsed())
}

/// A connection on which nothing has been sent.
fn connection(
    stream: Box<dyn UpstreamStream>,
    settings: &UpstreamSettings,
    version: Version,
    max_packet_size: usize,
) -> UpstreamConnection {
    let max_incoming = match version {
        Version::V31 | Version::V311 => max_packet_size + HEAD,
        Version::V5 => max_packet_size,
    };
    UpstreamConnection::new(stream, version, max_incoming, usize::from(settings.max_inflight) + SPARE_REQUESTS)
}

/// Adds WebSocket to the stream if the address needs it.
async fn over(stream: Box<dyn UpstreamStream>, address: &UpstreamAddress) -> Result<Box<dyn UpstreamStream>, Broken> {
    if !address.scheme.is_web_socket() {
        return Ok(stream);
    }
    Ok(Box::new(frames::upgrade(stream, address).await?))
}

/// How far the stream for MQTT has come.
#[derive(Default)]
struct OpenProgress {
    /// The ends of the connection as soon as there is one, unless by a proxy.
    reached: Option<ReachedPeer>,
    /// What the other side has to answer to, once there is one.
    step: Option<BeginStep>,
}

/// What to say if the time is over while the other side has to answer to this.
fn too_late(settings: &UpstreamSettings, step: Option<BeginStep>) -> Broken {
    let what = match (step, &settings.proxy) {
        (Some(BeginStep::HttpProxy | BeginStep::Socks5), Some(proxy)) => format!("proxy {proxy} does not answer"),
        (Some(BeginStep::Tls), _) => "it accepts the connection and does not answer to TLS".into(),
        (Some(BeginStep::WebSocket), _) => "it accepts the connection and does not answer to WebSocket".into(),
        _ => "there is no connection".into(),
    };
    Broken::Failed(format!("{what} within {} s (connect_timeout)", settings.connect_timeout.as_secs_f32()))
}

/// Opens the stream for MQTT.
async fn open(
    settings: &UpstreamSettings,
    address: &UpstreamAddress,
    has_small_segments: bool,
    order: PeerOrder<'_>,
    progress: &mut OpenProgress,
) -> Result<Box<dyn UpstreamStream>, Broken> {
    let failed = |error: std::io::Error| tls::broken_io(&error);
    // missing files are noticed before the network is used
    let secure = if address.scheme.is_tls() { Some(Secure::prepare(settings, address).await?) } else { None };
    let mut tcp = match &settings.proxy {
        None => {
            let patience = settings.connect_timeout;
            let (tcp, all) = dial::dial(&address.host, address.port, has_small_segments, order, patience).await?;
            let ends = tcp.peer_addr().and_then(|peer| Ok((peer, tcp.local_addr()?)));
            progress.reached = ends.ok().map(|(peer, local)| ReachedPeer { peer, local: local.ip(), all });
            tcp
        }
        Some(proxy) => {
            let (patience, order) = (settings.connect_timeout, PeerOrder::default());
            let dialled = dial::dial(&proxy.host, proxy.port, has_small_segments, order, patience).await;
            dialled.map_err(|why| why.of(format_args!("proxy {proxy}")))?.0
        }
    };
    // data that belongs together is written together already
    tcp.set_nodelay(true).map_err(failed)?;
    if let Some(proxy) = &settings.proxy {
        progress.step = Some(match proxy.scheme {
            ProxyScheme::Http => BeginStep::HttpProxy,
            ProxyScheme::Socks5 => BeginStep::Socks5,
        });
        let through = match proxy.scheme {
            ProxyScheme::Http => proxy::http(&mut tcp, proxy, &address.authority()).await,
            ProxyScheme::Socks5 => proxy::socks5(&mut tcp, proxy, &address.host, address.port).await,
        };
        through.map_err(|why| why.of(format_args!("proxy {proxy}")))?;
    }
    let stream: Box<dyn UpstreamStream> = match secure {
        Some(secure) => {
            progress.step = Some(BeginStep::Tls);
            Box::new(secure.connect(tcp).await?)
        }
        None => Box::new(tcp),
    };
    progress.step = Some(BeginStep::WebSocket);
    over(stream, address).await
}

/// The parts for a TLS connection.
struct Secure {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Secure {
    async fn prepare(settings: &UpstreamSettings, address: &UpstreamAddress) -> Result<Secure, Broken> {
        let files = settings.tls.clone().unwrap_or_default();
        let name = files.server_name.clone().unwrap_or_else(|| address.host.clone());
        let is_web_socket = address.scheme.is_web_socket();
        let config = tokio::task::spawn_blocking(move || tls::client_config(&files, is_web_socket)).await;
        let config = config.map_err(|error| Broken::Failed(error.to_string()))?.map_err(Broken::Unprepared)?;
        match ServerName::try_from(name.clone()) {
            Ok(name) => Ok(Secure { connector: TlsConnector::from(config), name }),
            Err(_) => Err(Broken::Lasting(format!("{name} is no name for TLS"))),
        }
    }

    async fn connect(self, tcp: TcpStream) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Broken> {
        self.connector.connect(self.name, tcp).await.map_err(|error| match tls::broken_io(&error) {
            Broken::Closed => {
                Broken::NotBegun(BeginStep::Tls, "it closed the connection before TLS was agreed on".into())
            }
            broken => broken,
        })
    }
}
