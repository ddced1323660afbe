//! The MQTT client that speaks with an upstream; the only place that names rumqttc.
//!
//! Packets are rumqttc's ([`v4`], [`v5`]). Its event loop is not used: it flushes after every PUBLISH, which costs a system
//! call and often a TCP segment for each, and it reconnects and resends from what it remembers, where here the journal is
//! the truth. So [`connection`] moves the bytes: whatever was handed over meanwhile leaves in one write, in the task of the
//! upstream itself, without a queue between tasks, and what came in is read in portions ([`pace`]).

mod connection;
mod pace;
#[cfg(test)]
mod tests;
mod v4;
mod v5;

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use self::connection::{Connection, Stream};
use super::settings::{Scheme, UpstreamAddress, UpstreamSettings};
use super::tls;
use super::wire::{Broken, Busy, ClientEvent, Link, OutMessage, UpstreamClient, Version};
use crate::message::{Qos, TopicFilter};
use crate::secret::{self, Secret};

/// Time for TCP, TLS and CONNACK together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests besides messages: subscriptions and acknowledgements.
const SPARE_REQUESTS: usize = 512;
/// On 3.1.1 nothing can tell an upstream our limit, and a larger packet would end every connection anew.
const MAX_INCOMING_V4: usize = 16 << 20;

/// What is to be sent.
enum Request {
    Publish(OutMessage),
    Subscribe(Vec<(TopicFilter, Qos)>),
    Unsubscribe(Vec<String>),
    /// Acknowledges a message; at QoS 2 [MQTT-4.3.3] the first half of it.
    Ack(u16),
    /// The second half.
    Complete(u16),
    Ping,
    Disconnect,
}

/// A packet that came in.
enum Incoming {
    /// The upstream accepts; the second is the keep alive that it wants, in seconds.
    Accepted(Link, Option<u16>),
    Event(ClientEvent),
    /// PUBREL with this packet id.
    Released(u16),
    /// It shows that the upstream is there.
    Other,
}

/// The real one.
pub struct Client {
    max_packet_size: usize,
    connection: Option<Connection>,
}

impl Client {
    /// A client that is not connected and takes messages up to this size.
    pub fn new(max_packet_size: usize) -> Client {
        Client { max_packet_size, connection: None }
    }

    fn request(&mut self, request: Request) -> Result<(), Busy> {
        // without a connection: its end has been told, or is about to be
        self.connection.as_mut().map_or(Ok(()), |connection| connection.request(request))
    }
}

impl UpstreamClient for Client {
    async fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        version: Version,
    ) -> Result<Link, Broken> {
        self.connection = None;
        let max_incoming = match version {
            Version::V31 | Version::V311 => MAX_INCOMING_V4,
            Version::V5 => self.max_packet_size,
        };
        let connecting = async {
            let password = password(settings).await?;
            let stream = open(settings, address).await?;
            let requests = usize::from(settings.max_inflight) + SPARE_REQUESTS;
            let mut connection = Connection::new(stream, version, max_incoming, requests);
            let link = connection.open(settings, password.as_ref()).await?;
            Ok((connection, link))
        };
        let (connection, link) = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| Broken::Silent)??;
        self.connection = Some(connection);
        Ok(link)
    }

    fn publish(&mut self, message: OutMessage) -> Result<(), Busy> {
        self.request(Request::Publish(message))
    }

    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)]) -> Result<(), Busy> {
        self.request(Request::Subscribe(filters.to_vec()))
    }

    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy> {
        self.request(Request::Unsubscribe(filters.iter().map(ToString::to_string).collect()))
    }

    fn ack(&mut self, packet_id: u16) -> Result<(), Busy> {
        self.request(Request::Ack(packet_id))
    }

    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        match &mut self.connection {
            Some(connection) => connection.events().await,
            None => Err(Broken::Closed),
        }
    }

    fn disconnect(&mut self) -> Result<(), Busy> {
        self.request(Request::Disconnect)
    }

    fn close(&mut self) {
        self.connection = None;
    }
}

/// The password, as its file has it now. Without it there is no connection: the upstream may let strangers in.
async fn password(settings: &UpstreamSettings) -> Result<Option<Secret>, Broken> {
    let Some(path) = settings.password_file.clone() else { return Ok(None) };
    let read = tokio::task::spawn_blocking(move || secret::password(&path)).await;
    let read = read.map_err(|error| Broken::Failed(error.to_string()))?;
    read.map(Some).map_err(|error| Broken::Failed(error.to_string()))
}

/// Opens the connection that MQTT is to be spoken on.
async fn open(settings: &UpstreamSettings, address: &UpstreamAddress) -> Result<Box<dyn Stream>, Broken> {
    // what is missing here is found before anything is asked of the network
    let config = match address.scheme {
        Scheme::Mqtt => None,
        Scheme::Mqtts => {
            let files = settings.tls.clone().unwrap_or_default();
            let config = tokio::task::spawn_blocking(move || tls::client_config(&files)).await;
            Some(config.map_err(|error| Broken::Failed(error.to_string()))?.map_err(Broken::Failed)?)
        }
    };
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await;
    let tcp = tcp.map_err(|error| tls::broken_io(&error))?;
    // what belongs together is written together already
    tcp.set_nodelay(true).map_err(|error| tls::broken_io(&error))?;
    let Some(config) = config else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(address.host.clone());
    let name = name.map_err(|_| Broken::Failed(format!("{} is no name for TLS", address.host)))?;
    let stream = TlsConnector::from(config).connect(name, tcp).await;
    Ok(Box::new(stream.map_err(|error| tls::broken_io(&error))?))
}
