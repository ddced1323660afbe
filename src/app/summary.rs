//! Log lines at the start for the person who has started the gateway.

use std::net::SocketAddr;
use std::path::Path;

use tracing::info;

use crate::access::settings::AnonymousFrom;
use crate::broker::listener::Listener;
use crate::broker::settings::ListenerSettings;
use crate::config::Settings;
use crate::health::FaultyPart;
use crate::net::address::Address;
use crate::net::port::Port;
use crate::sensors::PART as SENSOR;
use crate::sensors::settings::SensorSettings;
use crate::status::{SensorSnapshot, UpstreamState};
use crate::upstream::task::PART as UPSTREAM;

/// Logs what runs, at which addresses, and how to see it.
pub(crate) fn say(
    settings: &Settings,
    config_path: Option<&Path>,
    listeners: &[&Listener],
    web: Option<&Port>,
    simulated: &dyn Fn(&SensorSettings) -> bool,
) {
    // ports that cannot be opened have logged that already
    let address = |port: &Port| port.is_open().then(|| port.address());
    let open = |listener: &&Listener| Some((address(&listener.port)?, listener.settings.clone()));
    let open: Vec<_> = listeners.iter().filter_map(open).collect();
    let web = web.and_then(address).and_then(|web| Some(page(settings, web.tcp()?)));
    for line in lines(settings, config_path, &open, simulated).into_iter().chain(web) {
        info!("{line}");
    }
}

/// The URL of the web page.
fn page(settings: &Settings, address: SocketAddr) -> String {
    let scheme = if settings.http.tls.is_some() { "https" } else { "http" };
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    format!("web page, REST and MQTT over WebSocket on {address}: {scheme}://{host}:{}/", address.port())
}

/// One line for `systemctl status`: what is served, and what does not work.
pub(crate) fn status(
    settings: &Settings,
    sensors: &[SensorSnapshot],
    others: &[FaultyPart],
    upstreams: &[UpstreamState],
) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut line = format!(
        "serving; {}, {}",
        count(settings.sensors.len(), "sensor"),
        count(settings.upstreams.len(), "upstream")
    );
    let mut faulty: Vec<&str> =
        sensors.iter().filter(|sensor| sensor.fault.is_some()).map(|sensor| sensor.name.as_str()).collect();
    faulty.extend(others.iter().map(|faulty| faulty.part.as_str()).filter(|part| !part.starts_with(SENSOR)));
    if !faulty.is_empty() {
        line += &format!("; faulty: {}", faulty.join(", "));
    }
    // upstreams that have failed are among the faulty parts
    let is_faulty = |name: &str| others.iter().any(|faulty| faulty.part.strip_prefix(UPSTREAM) == Some(name));
    let away = settings.upstreams.iter().zip(upstreams);
    let away: Vec<&str> = away
        .filter(|(known, state)| **state != UpstreamState::Connected && !is_faulty(&known.name))
        .map(|(known, _)| &*known.name)
        .collect();
    if !away.is_empty() {
        line += &format!("; not connected: {}", away.join(", "));
    }
    line
}

fn lines(
    settings: &Settings,
    config_path: Option<&Path>,
    open: &[(Address, ListenerSettings)],
    simulated: &dyn Fn(&SensorSettings) -> bool,
) -> Vec<String> {
    let config = config_path.map_or_else(
        || "no configuration file, a demonstration (pigateway run --config FILE for yours)".to_owned(),
        |path| path.display().to_string(),
    );
    let data_dir = std::path::absolute(&settings.gateway.data_dir).unwrap_or(settings.gateway.data_dir.clone());
    let mut lines = vec![
        format!("pigateway {} \"{}\": {config}", env!("CARGO_PKG_VERSION"), settings.gateway.id),
        format!("data in {}", data_dir.display()),
    ];
    let access = &settings.broker.access;
    let own = |listener: &ListenerSettings| access.listeners.iter().find(|own| own.listener == listener.name());
    let accepts = |listener| own(listener).map_or(access.anonymous.accept, |own| own.anonymous.accept);
    for (address, listener) in open {
        let tls = if listener.tls.is_some() { "MQTT over TLS" } else { "MQTT" };
        let by = if listener.websocket { " over WebSocket" } else { "" };
        let anonymous = match accepts(listener) {
            AnonymousFrom::None => "only users, with a password or, where client_ca is set, a certificate",
            AnonymousFrom::Loopback => {
                "without a user name only from this host; accept = \"all\" under [broker.anonymous] opens it to all"
            }
            AnonymousFrom::All => "also without a user name",
        };
        lines.push(format!("{tls}{by} 3.1, 3.1.1 and 5 on {address}: {anonymous}"));
    }
    for sensor in &settings.sensors {
        let how = if simulated(sensor) { " (simulated)" } else { "" };
        lines.push(format!("sensor {} on pin {}{how} publishes to {}", sensor.name, sensor.pin, sensor.topic));
    }
    for upstream in &settings.upstreams {
        let addresses: Vec<String> = upstream.addresses.iter().map(ToString::to_string).collect();
        lines.push(format!("upstream {} at {}", upstream.name, addresses.join(", ")));
    }
    let plain = open
        .iter()
        .filter(|(_, listener)| listener.tls.is_none() && !listener.websocket && listener.proxies.is_empty());
    if let Some((address, listener)) = { plain }.find_map(|(address, listener)| Some((address.tcp()?, listener))) {
        let port = if address.port() == 1883 { String::new() } else { format!(" -p {}", address.port()) };
        let user = match accepts(listener) {
            AnonymousFrom::None => " -u NAME -P PASSWORD",
            AnonymousFrom::Loopback | AnonymousFrom::All => "",
        };
        lines.push(format!("to see all messages: mosquitto_sub -h localhost{port}{user} -v -t '#'"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Fault, Health};
    use crate::status::SensorState;

    #[test]
    fn a_person_can_act_on_it() {
        let settings = Settings::demonstration();
        let listener = ListenerSettings::default();
        let lines = lines(&settings, None, &[(listener.address.clone(), listener)], &|_| true).join("\n");
        for part in [
            "no configuration file",
            "[::]:1883",
            "only from this host",
            "sensor loft-motion on pin 17 (simulated) publishes to loft/motion1",
            "mosquitto_sub -h localhost -v -t '#'",
        ] {
            assert!(lines.contains(part), "{part} in\n{lines}");
        }
        assert!(lines.contains("\ndata in /"), "an absolute path in\n{lines}");
        assert!(page(&settings, "[::]:8080".parse().unwrap()).ends_with(": http://localhost:8080/"));
        assert!(page(&settings, "[::1]:80".parse().unwrap()).ends_with(": http://[::1]:80/"));
    }

    #[test]
    fn the_status_line_says_what_is_missing() {
        assert_eq!(status(&Settings::demonstration(), &[], &[], &[]), "serving; 1 sensor, 0 upstreams");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let toml = "[[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"a\"\n[[upstream]]\nname = \"home\"\n\
                    addresses = [\"mqtt://192.0.2.7\"]\n[[upstream.out]]\ntopic_filter = \"#\"";
        std::fs::write(file.path(), toml).expect("a configuration");
        let settings = crate::config::load(file.path()).expect("no problems").settings;
        let fault = Fault { problem: "gone".into(), remedy: "find it".into() };
        let sensor = SensorSnapshot {
            name: "loft".into(),
            pin: 17,
            topic: "a".into(),
            state: SensorState::Offline,
            since_boot_ms: None,
            seq: 0,
            lost_edges: 0,
            refused: 0,
            stuck: false,
            fault: Some(fault),
            finding: None,
            edges: Default::default(),
            simulated: false,
            recent: Vec::new(),
        };
        let health = Health::default();
        health.set("sensor loft", sensor.fault.as_ref());
        health.set("HTTP [::]:8080", sensor.fault.as_ref());
        let line = status(&settings, &[sensor], &health.faulty(), &[UpstreamState::default()]);
        let expected = "serving; 1 sensor, 1 upstream; faulty: loft, HTTP [::]:8080; not connected: home";
        assert_eq!(line, expected);
        health.set("upstream home", Some(&Fault::new("no route", "wait")));
        let line = status(&settings, &[], &health.faulty(), &[UpstreamState::Waiting]);
        assert_eq!(line, "serving; 1 sensor, 1 upstream; faulty: HTTP [::]:8080, upstream home");
        assert_eq!(status(&settings, &[], &[], &[UpstreamState::Connected]), "serving; 1 sensor, 1 upstream");
    }
}
