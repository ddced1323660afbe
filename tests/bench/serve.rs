//! Brokers that the benchmark itself contains. It starts itself again to become one of them, so that processor time and
//! memory of the broker can be read alone.

use std::io;
use std::process::Command;

use super::floor;
use super::support::broker::wait_until_served;
use super::support::{Process, free_port};

/// Names the broker that a process is to become, and its port.
const VARIABLE: &str = "BENCH_SERVE";

/// The brokers.
#[derive(Clone, Copy)]
pub enum Served {
    Rumqttd,
    Floor,
}

/// Such a broker in its own process.
pub struct Own {
    pub process: Process,
    pub port: u16,
}

impl Own {
    pub fn start(what: Served) -> io::Result<Own> {
        let port = free_port();
        let name = match what {
            Served::Rumqttd => "rumqttd",
            Served::Floor => "floor",
        };
        let mut process =
            Process::start(Command::new(std::env::current_exe()?).env(VARIABLE, format!("{name} {port}")));
        wait_until_served(&mut process, port);
        Ok(Own { process, port })
    }
}

/// Serves for the rest of the process, if it was started for that.
pub fn become_a_broker() -> io::Result<()> {
    let Ok(what) = std::env::var(VARIABLE) else { return Ok(()) };
    let (name, port) = what.split_once(' ').ok_or(io::ErrorKind::InvalidInput)?;
    let port = port.parse().map_err(io::Error::other)?;
    match name {
        "floor" => floor::serve(port),
        _ => stock_rumqttd(port),
    }
}

/// The server of rumqttd with the settings of the configuration that it brings, but only one listener, for MQTT 3.1.1.
/// Its console and its metrics are off, because no other broker here has them.
fn stock_rumqttd(port: u16) -> io::Result<()> {
    let text = format!(
        "id = 0\n[router]\nid = 0\nmax_connections = 10010\nmax_outgoing_packet_count = 200\n\
         max_segment_size = 104857600\nmax_segment_count = 10\n\
         [v4.1]\nname = \"v4-1\"\nlisten = \"127.0.0.1:{port}\"\nnext_connection_delay_ms = 1\n\
         [v4.1.connections]\nconnection_timeout_ms = 60000\nmax_payload_size = 20480\nmax_inflight_count = 100\n\
         dynamic_filters = true\n"
    );
    let config: rumqttd::Config = toml::from_str(&text).map_err(io::Error::other)?;
    rumqttd::Broker::new(config).start().map_err(io::Error::other)?;
    Err(io::Error::other("rumqttd has ended"))
}
