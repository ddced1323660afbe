//! A broker that forwards everything to another one, a mosquitto, where the subscriber is: what goes through, and what
//! becomes of an outage. Ours has everything on its disk before it acknowledges, mosquitto's bridge in its memory.

use std::io;
use std::time::{Duration, Instant};

use super::line::Line;
use super::load::{self, Load, Outcome, Until};
use super::support::broker::{Mosquitto, Setup};
use super::support::{self, Gateway, Process};

/// Bytes of the payload.
const PAYLOAD: usize = 200;
/// Publishers' window: as many as a gateway's client may have.
const WINDOW: u16 = 100;

/// What is spoken with the upstream. On version 5 mosquitto lets others send no more than its `max_inflight_messages`
/// before it has answered; on 3.1.1 there is no such limit, and each has its own: mosquitto 20, the gateway 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Protocol {
    V4 = 4,
    V5 = 5,
}

impl Protocol {
    pub const ALL: [Protocol; 2] = [Protocol::V4, Protocol::V5];
}

/// Who forwards.
pub enum Forwarder {
    Mosquitto(Mosquitto),
    Pigateway(Gateway),
}

impl Forwarder {
    /// One that forwards to this port: this gateway, or mosquitto. So many messages are to have room.
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

/// QoS 1 from local publishers to a subscriber at the upstream.
pub fn live(gateway: Option<Setup>, protocol: Protocol, publishers: usize, time: Duration) -> io::Result<Outcome> {
    let upstream = Mosquitto::with("max_queued_messages 0");
    let forwarder = Forwarder::start(gateway, protocol, upstream.port, 0);
    // the first message shows that the way is open
    load::run_between(forwarder.port(), upstream.port, &load(1, 1, Until::Count(1)))?;
    load::run_between(forwarder.port(), upstream.port, &load(publishers, 1, Until::Time(time)))
}

/// What an outage of so many messages costs.
pub struct Outage {
    /// Messages stored per second.
    pub stored: f64,
    /// Memory afterwards, in MiB.
    pub memory: f64,
    /// Most memory until all was delivered, in MiB.
    pub peak: f64,
    /// Messages delivered per second afterwards.
    pub drained: f64,
    /// Messages that did not arrive.
    pub missing: u64,
    /// Bytes that a line has carried for each message, and how much of it was used.
    pub line: Option<(f64, f64)>,
}

/// Stores so many messages while there is no upstream, then lets it come, perhaps over a line of so many bytes a second.
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
