//! A broker that forwards everything to another one, a mosquitto with the subscriber: its throughput, and its behaviour in
//! an outage. The gateway has each message on disk before it acknowledges it, and mosquitto's bridge only in memory.

use std::io;
use std::time::{Duration, Instant};

use super::line::Line;
use super::load::{self, Load, Outcome, Until};
use super::support::broker::{Mosquitto, Setup};
use super::support::{self, Gateway, Process};

/// The length of the payload in bytes.
const PAYLOAD: usize = 200;
/// The window of publishers, which is the most that the gateway allows a client.
const WINDOW: u16 = 100;

/// The MQTT version towards the upstream. With version 5 mosquitto lets others send at most `max_inflight_messages` before
/// it has answered. With 3.1.1 there is no such limit, and each side has its own: mosquitto 20, the gateway 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    V4 = 4,
    V5 = 5,
}

impl Protocol {
    pub const ALL: [Protocol; 2] = [Protocol::V4, Protocol::V5];
}

/// The broker that forwards.
pub enum Forwarder {
    Mosquitto(Mosquitto),
    Pigateway(Gateway),
}

impl Forwarder {
    /// Starts a gateway or a mosquitto that forwards to this port and has room for this number of messages.
    pub fn start(gateway: Option<Setup>, protocol: Protocol, upstream: u16, room: u64) -> Forwarder {
        if let Some(gateway) = gateway {
            let protocol = protocol as u8;
            let mib = 1024.max((room * (PAYLOAD as u64 + 200)) >> 20);
            let config = format!(
                "[journal]\nmax_size = \"{mib} MiB\"\n[[upstream]]\nname = \"up\"\nprotocol = {protocol}\n\
                 addresses = [\"mqtt://127.0.0.1:{upstream}\"]\n[[upstream.out]]\ntopic_filter = \"bench/#\"\n"
            );
            return Forwarder::Pigateway(gateway.config(&config).start());
        }
        let protocol = match protocol {
            Protocol::V4 => "mqttv311",
            Protocol::V5 => "mqttv50",
        };
        let config = format!(
            "max_queued_messages 0\nconnection up\naddress 127.0.0.1:{upstream}\ntopic bench/# out 1\nrestart_timeout 1\n\
             bridge_attempt_unsubscribe false\nbridge_protocol_version {protocol}\n"
        );
        Forwarder::Mosquitto(Mosquitto::with(&config))
    }

    fn port(&self) -> u16 {
        match self {
            Forwarder::Mosquitto(mosquitto) => mosquitto.port,
            Forwarder::Pigateway(gateway) => gateway.port,
        }
    }

    fn process(&self) -> &Process {
        match self {
            Forwarder::Mosquitto(mosquitto) => mosquitto,
            Forwarder::Pigateway(gateway) => gateway,
        }
    }
}

fn load(publishers: usize, subscribers: usize, until: Until) -> Load {
    Load { publishers, subscribers, qos: 1, payload: PAYLOAD, window: WINDOW, until }
}

/// Measures QoS 1 from local publishers to a subscriber at the upstream.
pub fn live(gateway: Option<Setup>, protocol: Protocol, publishers: usize, time: Duration) -> io::Result<Outcome> {
    let upstream = Mosquitto::with("max_queued_messages 0");
    let forwarder = Forwarder::start(gateway, protocol, upstream.port, 0);
    // the first message shows that the connection works
    load::run_between(forwarder.port(), upstream.port, &load(1, 1, Until::Count(1)))?;
    load::run_between(forwarder.port(), upstream.port, &load(publishers, 1, Until::Time(time)))
}

/// The figures of an outage with a number of messages.
pub struct Outage {
    /// The number of messages that are stored per second.
    pub stored: f64,
    /// The memory after storing, in MiB.
    pub memory: f64,
    /// The most memory until all messages were delivered, in MiB.
    pub peak: f64,
    /// The number of messages that are delivered per second afterwards.
    pub drained: f64,
    /// The number of messages that did not arrive.
    pub missing: u64,
    /// The bytes that a line has carried for each message, and the used part of its capacity.
    pub line: Option<(f64, f64)>,
}

/// Stores this number of messages without an upstream, and then starts the upstream, perhaps behind a line with a number of
/// bytes a second.
pub fn outage(gateway: Option<Setup>, protocol: Protocol, count: u64, line: Option<u64>) -> io::Result<Outage> {
    let port = support::free_port();
    let forwarder = Forwarder::start(gateway, protocol, port, count);
    let begin = Instant::now();
    load::run(forwarder.port(), &load(1, 0, Until::Count(count)))?;
    let stored = count as f64 / begin.elapsed().as_secs_f64();
    let memory = forwarder.process().memory_kib("VmRSS") as f64 / 1024.0;
    let listener = if line.is_none() { format!("listener {port} 127.0.0.1\n") } else { String::new() };
    let upstream = Mosquitto::with(&format!("{listener}max_queued_messages 0"));
    let line = line.map(|rate| Ok::<_, io::Error>((Line::between(port, upstream.port, rate)?, rate))).transpose()?;
    let (delivered, took) = load::collect(upstream.port, count)?;
    let peak = forwarder.process().memory_kib("VmHWM") as f64 / 1024.0;
    let drained = delivered as f64 / took.as_secs_f64();
    let line = line.map(|(line, rate)| {
        let carried = line.carried() as f64;
        (carried / delivered as f64, carried / took.as_secs_f64() / rate as f64)
    });
    Ok(Outage { stored, memory, peak, drained, missing: count.saturating_sub(delivered), line })
}
