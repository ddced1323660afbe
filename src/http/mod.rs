//! REST, a live stream, a web page, metrics and MQTT over WebSocket, with the same topics, users and rules as the broker.
//!
//! | file | what |
//! |---|---|
//! | `settings` | the settings of HTTP |
//! | `server` | the port: connections, time limits, TLS |
//! | `guard`, `auth`, `proxies` | requests of other sites, identification of clients, proxies in front |
//! | `session`, `sign_ins` | signing in on the page |
//! | `admin` | calls for administrators |
//! | `routes`, `openapi` | the table of all calls, and its description |
//! | `topics`, `stream` | messages: the last ones, publishing, live |
//! | `sensors`, `history` | present and past motion |
//! | `overview`, `metrics`, `traces` | the state of the gateway, and traces of single messages |
//! | `page` | the web page |
//! | `websocket` | MQTT |
//! | `unread` | bodies that no handler reads |
//! | `hub`, `recent`, `ring` | messages that are kept in memory |
//! | `query`, `problem`, `envelope` | requests and answers |
//!
//! A message that is published here takes the same way as one by MQTT, and the answer waits for the same receipt as a
//! PUBACK. Messages are read from one live subscriber for all HTTP clients.
//!
//! Limits: [`server::MAX_CONNECTIONS`], [`MAX_STREAMS`], the broker's `max_packet_size` for a request,
//! [`recent::MAX_TOPICS`] and [`recent::MAX_BYTES`] for the last messages, [`ring::MAX_MESSAGES`] and
//! [`ring::MAX_BYTES`] for what a stream can resume from, [`history::MAX_FILE`] for the past of a sensor. HTTP/1.1 only.

pub(crate) mod admin;
mod answers;
pub(crate) mod auth;
mod body;
pub(crate) mod calls;
pub(crate) mod envelope;
pub mod guard;
pub(crate) mod history;
pub mod hub;
pub(crate) mod metrics;
pub(crate) mod openapi;
pub(crate) mod overview;
pub(crate) mod page;
pub(crate) mod problem;
pub(crate) mod proxies;
pub(crate) mod query;
pub(crate) mod recent;
pub(crate) mod ring;
pub(crate) mod routes;
pub(crate) mod sensors;
pub mod server;
pub(crate) mod session;
pub mod settings;
pub(crate) mod sign_ins;
pub(crate) mod stream;
#[cfg(test)]
mod testing;
pub(crate) mod topics;
pub(crate) mod traces;
mod unread;
pub mod websocket;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::HeaderMap;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::guard::HttpGuard;
use self::history::turns::HistoryTurns;
use self::hub::Hub;
use self::overview::Overviews;
use self::proxies::Network;
use self::sign_ins::SignIns;
use self::websocket::MqttDoor;
use crate::access::Access;
use crate::access::made::UserDesk;
use crate::access::places::{Bounds, Places};
use crate::exchange::ingress::Ingress;
use crate::exchange::receiving::Receiving;
use crate::status::GatewayStatus;

/// The most streams at the same time, of all clients together.
pub(crate) const MAX_STREAMS: usize = 1000;

/// The state that all requests share.
pub struct Http {
    /// The access decisions for clients.
    pub(crate) access: Arc<Access>,
    /// The entrance for messages that are published here.
    pub(crate) ingress: Ingress,
    /// The messages that are kept in memory.
    pub(crate) hub: Arc<Hub>,
    /// The state of the gateway.
    pub(crate) status: GatewayStatus,
    /// Takes over connections that turn out to speak MQTT over WebSocket.
    pub(crate) mqtt: MqttDoor,
    pub(crate) connections: TaskTracker,
    /// Cancelled when the gateway shuts down.
    pub(crate) cancel: CancellationToken,
    /// The directory with the history of the sensors.
    pub(crate) history: PathBuf,
    /// The turns of those who read it.
    pub(crate) history_turns: Arc<HistoryTurns>,
    /// The id of this boot of the host.
    boot: String,
    guard: HttpGuard,
    trusted_proxies: Vec<Network>,
    frame_ancestors: Vec<String>,
    /// All users, with those that were added by HTTP.
    users: UserDesk,
    disconnect: Disconnect,
    /// Whether the port itself uses TLS.
    is_tls: bool,
    sign_ins: SignIns,
    overviews: Overviews,
    /// The places of live streams, divided like those of connections.
    streams: Arc<Places>,
    /// The memory for large answers.
    answers: Receiving,
}

/// The parts from which [`Http`] is made.
pub struct Parts {
    /// See [`Http::access`].
    pub access: Arc<Access>,
    /// See [`Http::ingress`].
    pub ingress: Ingress,
    /// See [`Http::hub`].
    pub hub: Arc<Hub>,
    /// See [`Http::status`].
    pub status: GatewayStatus,
    /// See [`Http::mqtt`].
    pub mqtt: MqttDoor,
    /// See [`Http::connections`].
    pub connections: TaskTracker,
    /// See [`Http::cancel`].
    pub cancel: CancellationToken,
    /// See [`Http::history`].
    pub history: PathBuf,
    /// Refuses requests that pages of other sites make.
    pub guard: HttpGuard,
    /// The proxies that are believed when they report a client's address.
    pub trusted_proxies: Vec<Network>,
    /// The sites that may show the page in a frame.
    pub frame_ancestors: Vec<String>,
    /// The desk for administrators' changes of users.
    pub users: UserDesk,
    /// Ends connections of MQTT clients.
    pub disconnect: Disconnect,
    /// Whether the port itself uses TLS.
    pub is_tls: bool,
}

/// Ends the connections with a client id, of a user or of clients without a user name, and returns their number.
pub(crate) type Disconnect = Arc<dyn Fn(Option<&str>, &str) -> usize + Send + Sync>;

impl Http {
    /// Starts without any streams and sign-ins.
    pub fn new(parts: Parts) -> Arc<Http> {
        let Parts { access, ingress, hub, status, mqtt, connections, cancel, history, guard, .. } = parts;
        let (users, disconnect, is_tls) = (parts.users, parts.disconnect, parts.is_tls);
        let sign_ins = SignIns::new(guard.port());
        let (trusted_proxies, frame_ancestors) = (parts.trusted_proxies, parts.frame_ancestors);
        let overviews = Overviews::new(ingress.clock().boot_ms());
        let boot = history::boot_id();
        Arc::new(Http {
            access,
            ingress,
            hub,
            status,
            mqtt,
            connections,
            cancel,
            history,
            history_turns: Arc::default(),
            boot,
            guard,
            trusted_proxies,
            frame_ancestors,
            users,
            disconnect,
            is_tls,
            sign_ins,
            overviews,
            streams: Arc::default(),
            answers: Receiving::of(answers::BUDGET),
        })
    }

    /// The address from which a request counts as coming, behind trusted proxies.
    pub(crate) fn address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        proxies::address(&self.trusted_proxies, peer, headers)
    }

    /// The seconds since a moment of the boot clock, which may be before this boot.
    fn age_seconds(&self, boot_ms: u64) -> u64 {
        let age_ms = self.ingress.clock().boot_ms() as i64 - boot_ms as i64;
        u64::try_from(age_ms).unwrap_or(0) / 1000
    }

    /// The number of open streams.
    fn open_streams(&self) -> u32 {
        u32::try_from(self.streams.len()).unwrap_or(u32::MAX)
    }

    /// This many places, divided between users and others.
    fn bounds(&self, most: usize) -> Bounds {
        Bounds { most, has_users: self.access.authoriser.has_any_users() }
    }

    /// A moment of the boot clock as RFC 3339, once the clock is correct.
    pub(crate) fn time(&self, boot_ms: u64) -> Option<String> {
        let clock = self.ingress.clock();
        if !clock.is_synchronised() {
            return None;
        }
        envelope::rfc3339(clock.unix_ms_at(boot_ms))
    }
}
