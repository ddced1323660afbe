//! The measured brokers, and how each is started.

use std::io;
use std::path::PathBuf;

use super::ceiling;
use super::serve::{Own, Served};
use super::support::broker::{Mosquitto, Setup};
use super::support::{Gateway, Process};

/// The measured brokers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Broker {
    Mosquitto,
    /// The server of rumqttd as its users start it, not only its router.
    Rumqttd,
    Pigateway,
    /// The build that `BENCH_BEFORE` names.
    Before,
    /// A program that only reads and writes. It takes part where the broker's processor time is measured.
    Floor,
    Ceiling,
    Port(u16),
}

impl Broker {
    /// The broker with this name.
    pub fn named(name: &str, port: u16) -> Option<Broker> {
        use Broker::{Before, Ceiling, Floor, Mosquitto, Pigateway, Port, Rumqttd};
        [Mosquitto, Rumqttd, Pigateway, Before, Floor, Ceiling, Port(port)]
            .into_iter()
            .find(|broker| broker.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Broker::Mosquitto => "mosquitto",
            Broker::Rumqttd => "rumqttd",
            Broker::Pigateway => "pigateway",
            Broker::Before => "before",
            Broker::Floor => "floor",
            Broker::Ceiling => "ceiling",
            Broker::Port(_) => "port",
        }
    }

    pub fn can_forward(self) -> bool {
        matches!(self, Broker::Mosquitto | Broker::Pigateway | Broker::Before)
    }

    /// How the gateway is started, if this broker is one.
    pub fn gateway(self) -> Option<Setup> {
        match self {
            Broker::Pigateway => Some(Setup::default()),
            Broker::Before => Some(Setup::default().program(before()?)),
            _ => None,
        }
    }

    pub fn start(self) -> io::Result<Running> {
        Ok(match self {
            Broker::Mosquitto => Running::Mosquitto(Mosquitto::with("max_queued_messages 0")),
            Broker::Pigateway | Broker::Before => {
                Running::Pigateway(self.gateway().ok_or(io::ErrorKind::NotFound)?.start())
            }
            Broker::Rumqttd => Running::Own(Own::start(Served::Rumqttd)?),
            Broker::Floor => Running::Own(Own::start(Served::Floor)?),
            Broker::Ceiling => Running::Port(ceiling::start()?),
            Broker::Port(port) => Running::Port(port),
        })
    }
}

/// The build to compare with.
pub fn before() -> Option<PathBuf> {
    std::env::var_os("BENCH_BEFORE").map(PathBuf::from)
}

/// A running broker, which is stopped when dropped.
pub enum Running {
    Mosquitto(Mosquitto),
    Pigateway(Gateway),
    Own(Own),
    Port(u16),
}

impl Running {
    pub fn port(&self) -> u16 {
        match self {
            Running::Mosquitto(mosquitto) => mosquitto.port,
            Running::Pigateway(gateway) => gateway.port,
            Running::Own(own) => own.port,
            Running::Port(port) => *port,
        }
    }

    pub fn process(&self) -> Option<&Process> {
        match self {
            Running::Mosquitto(mosquitto) => Some(mosquitto),
            Running::Pigateway(gateway) => Some(gateway),
            Running::Own(own) => Some(&own.process),
            Running::Port(_) => None,
        }
    }
}
