//! Looks how far a connection to an upstream comes, for `pigateway doctor`: through the proxy, TLS and WebSocket, and not to
//! MQTT, so that no session is touched. It is the code that connects, so what is wrong is said in the words of the log.

use tokio::runtime::Builder;

use super::client;
use super::settings::{UpstreamAddress, UpstreamSettings};
use super::tls::hint;
use super::wire::Broken;

/// Connects to an upstream at this address up to where MQTT begins. Returns what is wrong, with advice if there is some.
/// Takes up to the time that the settings allow for a connection, and blocks meanwhile.
pub(crate) fn reach(settings: &UpstreamSettings, address: &UpstreamAddress) -> Result<(), String> {
    let reached = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(client::reaches(settings, address)),
        Err(error) => Err(Broken::Unprepared(error.to_string())),
    };
    reached.map_err(|why| match hint(address.scheme, &why, Default::default()) {
        Some(hint) => format!("{why}; {hint}"),
        None => why.to_string(),
    })
}
