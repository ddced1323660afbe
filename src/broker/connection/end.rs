//! Why connections end.

use std::net::IpAddr;

use tracing::{debug, error, info};

use super::super::core::Core;
use crate::access::guesses::network;
use crate::mqtt::{self, Reason};

/// Why a connection ends.
#[derive(Clone, Debug)]
pub(super) enum ConnectionEnd {
    /// The client has closed the connection, or it broke.
    Closed,
    /// The client has sent DISCONNECT, with this reason and perhaps a new session expiry interval.
    Disconnected(Reason, Option<u32>),
    /// The client has violated the protocol.
    Broken(mqtt::Error),
    /// The gateway ends the connection.
    Ended(Reason),
    /// The client does not read any more.
    Stalled,
    /// The client's maximum packet size is smaller than the CONNACK.
    TooSmall,
    /// Processing the connection has panicked, which is a fault of the gateway.
    Panicked,
}

impl ConnectionEnd {
    /// The reason to send to an MQTT 5 client; `None` if nothing is sent.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            ConnectionEnd::Closed
            | ConnectionEnd::Disconnected(..)
            | ConnectionEnd::Stalled
            | ConnectionEnd::TooSmall => None,
            ConnectionEnd::Broken(error) => Some(error.reason()),
            ConnectionEnd::Ended(reason) => Some(*reason),
            ConnectionEnd::Panicked => Some(Reason::UNSPECIFIED_ERROR),
        }
    }

    /// Whether the connection ends because the gateway shuts down.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self, ConnectionEnd::Ended(Reason::SERVER_SHUTTING_DOWN))
    }

    pub(super) fn publishes_will(&self) -> bool {
        match self {
            // only a normal disconnection deletes the will [MQTT-3.14.4-3]
            ConnectionEnd::Disconnected(reason, _) => *reason != Reason::SUCCESS,
            ConnectionEnd::TooSmall => false,
            _ => true,
        }
    }

    pub(super) fn log(&self, core: &Core, client_id: &str, from: IpAddr) {
        let what = match self {
            ConnectionEnd::Closed => return debug!(client_id, "connection closed without DISCONNECT"),
            ConnectionEnd::Disconnected(..) => return debug!(client_id, "disconnected"),
            ConnectionEnd::Ended(Reason::SESSION_TAKEN_OVER) => {
                return debug!(client_id, "disconnected: its client id connected again");
            }
            ConnectionEnd::Broken(mqtt::Error::TooLarge(..)) => {
                return debug!(client_id, "disconnected: packet too large");
            }
            ConnectionEnd::Panicked => return error!(client_id, "disconnected: the session has failed"),
            ConnectionEnd::Ended(Reason::SERVER_BUSY) => {
                "its place was needed: of whoever has most connections, the last to come gives way".to_owned()
            }
            ConnectionEnd::Ended(Reason::KEEP_ALIVE_TIMEOUT) => "keep alive timeout".to_owned(),
            ConnectionEnd::Ended(reason) => return debug!(client_id, reason = reason.0, "disconnected"),
            ConnectionEnd::Broken(error) => format!("protocol violation: {error}"),
            ConnectionEnd::Stalled => "it takes no data any more".to_owned(),
            ConnectionEnd::TooSmall => "its Maximum Packet Size is less than the size of CONNACK".to_owned(),
        };
        if let Some(more_since_last) = core.access.limiter.due(network(from), (client_id, &what)) {
            info!(client_id, %from, more_since_last, "disconnected: {what}");
        }
    }
}
