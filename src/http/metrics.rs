//! `GET /metrics`: metrics in Prometheus' text format. Labels are names from the configuration, so their number is bounded.

use std::fmt::{Display, Write};
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::Http;
use super::auth::Caller;
use super::problem::HttpProblem;
use crate::access::security::{Security, SecurityKind};
use crate::exchange::stats::Stats;
use crate::status::{JournalStatus, SensorSnapshot, SensorState, UpstreamShown, UpstreamSnapshot, UpstreamState};

/// Handles `GET /metrics`.
pub(crate) async fn metrics(State(http): State<Arc<Http>>, caller: Caller) -> Result<Response, HttpProblem> {
    caller.must_observe()?;
    let mut text = MetricsText::default();
    gateway(&mut text, &http);
    broker(&mut text, http.ingress.stats());
    journal(&mut text, &http.ingress.journal().status());
    sensors(&mut text, &http.status.sensors.borrow().clone());
    let upstreams: Vec<_> = http.status.upstreams.iter().map(UpstreamShown::now).collect();
    upstream(&mut text, &upstreams, &http);
    security(&mut text, &http.access.security);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, text.0).into_response())
}

/// The text of the metrics so far.
#[derive(Default)]
struct MetricsText(String);

impl MetricsText {
    fn head(&mut self, name: &str, help: &str) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // writing to a string cannot fail
        let _ = write!(self.0, "# HELP pigateway_{name} {help}\n# TYPE pigateway_{name} {kind}\n");
    }

    fn one(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, help);
        let _ = writeln!(self.0, "pigateway_{name} {value}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let _ = writeln!(self.0, "pigateway_{name}{{{}}} {value}", labels.join(","));
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn gateway(text: &mut MetricsText, http: &Http) {
    text.head("build_info", "The version that runs.");
    text.sample("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let clock = http.ingress.clock();
    let uptime = clock.boot_ms().saturating_sub(http.started_boot_ms()) as f64 / 1000.0;
    text.one("uptime_seconds", "Time since the gateway was started.", uptime);
    text.one("clock_synchronised", "Whether wall time is known.", u8::from(clock.is_synchronised()));
    let faulty = http.status.health.faulty();
    text.one("faulty_parts", "Parts that do not work now.", faulty.len());
    if let Some(bytes) = resident_bytes() {
        text.one("resident_memory_bytes", "Memory of the process.", bytes);
    }
    let clients = http.status.clients.counts();
    text.one("clients_connected", "MQTT clients that are connected.", clients.connected);
    text.one("sessions_away", "Persistent sessions whose clients are away.", clients.away);
    text.one("subscriptions", "Live subscriptions.", http.ingress.subscribers().len());
    let (topics, bytes) = http.hub.size();
    text.one("recent_topics", "Topics whose last message is remembered.", topics);
    text.one("recent_bytes", "Memory for them.", bytes);
    text.one("http_streams", "Event streams that are open.", http.open_streams());
    let journal = http.ingress.journal().status();
    let help = "Messages that queues of upstreams and persistent sessions had no room for.";
    text.one("queue_dropped_total", help, journal.dropped);
    text.one("problems_total", "Warnings and errors logged.", *http.status.problems.count().borrow());
}

/// The resident set size, as the kernel reports it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn broker(text: &mut MetricsText, stats: &Stats) {
    for (name, help, counter) in [
        ("mqtt_received_bytes_total", "Bytes received from MQTT clients.", &stats.bytes_received),
        ("mqtt_sent_bytes_total", "Bytes sent to MQTT clients.", &stats.bytes_sent),
        ("mqtt_packets_received_total", "MQTT packets received.", &stats.packets_received),
        ("mqtt_packets_sent_total", "MQTT packets sent.", &stats.packets_sent),
        ("mqtt_publish_received_total", "PUBLISH packets received.", &stats.publish_received),
        ("mqtt_publish_sent_total", "PUBLISH packets sent.", &stats.publish_sent),
        (
            "mqtt_publish_dropped_total",
            "Messages that a client was too slow for, or that were too large.",
            &stats.publish_dropped,
        ),
        ("mqtt_publish_expired_total", "Messages that expired before delivery.", &stats.publish_expired),
        ("retained_refused_total", "Messages that the retained store had no room for.", &stats.retained_refused),
        ("connects_refused_total", "MQTT clients refused.", &stats.refused),
        ("sessions_expired_total", "Persistent sessions that expired.", &stats.sessions_expired),
        ("session_panics_total", "Sessions that ended with a panic.", &stats.panics),
        ("clients_connected_maximum", "Most MQTT clients connected at a time.", &stats.connected_maximum),
    ] {
        text.one(name, help, counter.get());
    }
}

fn security(text: &mut MetricsText, security: &Security) {
    text.head("security_events_total", "Security events, by kind.");
    for kind in SecurityKind::ALL {
        text.sample("security_events_total", &[("event", kind.name())], security.count(kind));
    }
}

fn journal(text: &mut MetricsText, journal: &JournalStatus) {
    for (name, help, value) in [
        ("failing", "Whether nothing can be written to the disk.", u64::from(journal.failing.is_some())),
        ("full", "Whether messages are refused because those that wait fill it.", u64::from(journal.is_full)),
        ("used_bytes", "Bytes on disk.", journal.used_bytes),
        ("maximum_bytes", "Most bytes that it may take.", journal.max_bytes),
        ("segments", "Segments in use.", journal.segments as u64),
        ("pending_bytes", "Bytes that wait to be written.", journal.pending_bytes as u64),
        ("messages_total", "Messages written.", journal.messages),
        ("records_total", "Records written: messages, cursors and the like.", journal.records),
        ("written_bytes_total", "Bytes given to the system to be written.", journal.written_bytes),
        ("syncs_total", "Syncs.", journal.syncs),
        ("refused_total", "Messages refused: the disk is full, fails or is too slow.", journal.refused),
        ("evicted_total", "Segments given up to make room.", journal.evicted),
        ("damaged_total", "Damage found in its files.", journal.damaged),
        ("set_aside", "Files that were set aside.", journal.set_aside as u64),
    ] {
        text.one(&format!("journal_{name}"), help, value);
    }
}

fn sensors(text: &mut MetricsText, snapshots: &[SensorSnapshot]) {
    type Reading = fn(&SensorSnapshot) -> u64;
    let figures: [(&str, &str, Reading); 6] = [
        ("sensor_online", "Whether the pin is watched.", |s| u64::from(s.state != SensorState::Offline)),
        ("sensor_motion", "Whether there is motion.", |s| u64::from(s.state == SensorState::On)),
        ("sensor_stuck", "Whether the pin has been active for too long.", |s| u64::from(s.stuck)),
        ("sensor_changes_total", "Changes of state since the sensor was started.", |s| s.seq),
        ("sensor_lost_edges_total", "Edges that came too fast to be read.", |s| s.lost_edges),
        ("sensor_refused_total", "Messages that there was no room for.", |s| s.refused),
    ];
    for (name, help, reading) in figures {
        if !snapshots.is_empty() {
            text.head(name, help);
        }
        for snapshot in snapshots {
            text.sample(name, &[("sensor", &snapshot.name)], reading(snapshot));
        }
    }
}

fn upstream(text: &mut MetricsText, snapshots: &[UpstreamSnapshot], http: &Http) {
    type Reading = fn(&UpstreamSnapshot, &Http) -> u64;
    let figures: [(&str, &str, Reading); 12] = [
        ("upstream_connected", "Whether it is connected.", |s, _| u64::from(s.state == UpstreamState::Connected)),
        ("upstream_accepted_total", "Messages accepted for it.", |s, _| s.ledger.accepted),
        ("upstream_acked_total", "Messages that it has acknowledged.", |s, _| s.ledger.acked),
        ("upstream_sent_unconfirmed_total", "Messages sent at QoS 0.", |s, _| s.ledger.sent_unconfirmed),
        ("upstream_expired_total", "Messages that expired while they waited.", |s, _| s.ledger.expired),
        ("upstream_pending", "Messages that wait or are in flight.", |s, _| s.ledger.pending),
        ("upstream_denied_topics", "Topics that it does not take.", |s, _| s.denied_topics as u64),
        ("upstream_denied_size_bytes", "Size from which on it takes no messages, or 0.", |s, _| {
            s.denied_size.unwrap_or_default() as u64
        }),
        ("upstream_backlog_bytes", "Bytes that wait.", |s, _| s.backlog_bytes as u64),
        ("upstream_oldest_age_seconds", "Age of the oldest message that waits.", |s, http| {
            s.oldest_boot_ms.map_or(0, |oldest| http.age_seconds(oldest))
        }),
        ("upstream_received_total", "Messages that came from it.", |s, _| s.received),
        ("upstream_received_dropped_total", "Messages that came from it and were not taken.", |s, _| {
            s.received_dropped
        }),
    ];
    if snapshots.is_empty() {
        return;
    }
    for (name, help, reading) in figures {
        text.head(name, help);
        for snapshot in snapshots {
            text.sample(name, &[("upstream", &snapshot.name)], reading(snapshot, http));
        }
    }
    text.head("upstream_dropped_total", "Messages dropped, by reason.");
    for snapshot in snapshots {
        let dropped = &snapshot.ledger.dropped;
        for (reason, count) in [
            ("journal_full", dropped.journal_full),
            ("unreadable", dropped.unreadable),
            ("refused", dropped.refused),
            ("too_large", dropped.too_large),
            ("ends_connection", dropped.ends_connection),
            ("came_from_there", dropped.came_from_there),
            ("loop", dropped.looped),
            ("no_rule", dropped.no_rule),
        ] {
            text.sample("upstream_dropped_total", &[("upstream", &snapshot.name), ("reason", reason)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_the_text_format() {
        let mut text = MetricsText::default();
        text.one("a_total", "A.", 7);
        text.head("b", "B.");
        text.sample("b", &[("name", "a\"b\\\n")], 1.5);
        let expected = "# HELP pigateway_a_total A.\n# TYPE pigateway_a_total counter\npigateway_a_total 7\n\
                        # HELP pigateway_b B.\n# TYPE pigateway_b gauge\npigateway_b{name=\"a\\\"b\\\\\\n\"} 1.5\n";
        assert_eq!(text.0, expected);
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
