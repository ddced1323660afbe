//! Converts limits and the log.

use super::document::Section;
use crate::import::line::SettingLine;
use crate::import::text::{TomlText, quoted};

/// The longest session expiry in whole days that does not mean "never" [MQTT-3.1.2.11.2].
const MAX_EXPIRY_DAYS: i64 = 49_710;
/// The largest packet in bytes that our configuration allows.
const MAX_PACKET: i64 = 256 << 20;
/// The largest number of queued messages that our configuration allows.
const MAX_QUEUE: i64 = 10_000_000;

/// Whether a line is about the log.
fn is_about_log(line: &SettingLine) -> bool {
    line.key.starts_with("log_") || line.key.ends_with("_log_level")
}

/// Writes `[log]`.
pub(super) fn write_log(global: &Section, text: &mut TomlText) {
    let level = level(global);
    if level.is_none() && !global.lines.iter().any(|line| is_about_log(line)) {
        return;
    }
    text.table("[log]");
    if let Some(level) = level {
        text.key("level", quoted(level));
    }
    text.remarks(global.lines.iter().filter(|line| is_about_log(line)));
}

/// The most detailed level that a `log_type` asks for. A later `none` cancels the lines before it.
fn level(global: &Section) -> Option<&'static str> {
    const LEVELS: [&str; 5] = ["off", "error", "warn", "info", "debug"];
    let mut level: Option<usize> = None;
    for line in global.all("log_type") {
        // mosquitto reads one type on each line, but people write several
        for word in
            line.value.split([' ', '\t', ',']).take_while(|word| !word.starts_with('#')).filter(|word| !word.is_empty())
        {
            let found = match word {
                "none" => 0,
                "error" => 1,
                "warning" => 2,
                "notice" | "information" | "subscribe" | "unsubscribe" => 3,
                "websockets" | "quic" => 3,
                "debug" | "internal" | "all" => 4,
                _ => {
                    line.wrong("valid: error, warning, notice, information, subscribe, unsubscribe, debug, websockets, none, all");
                    continue;
                }
            };
            level = Some(if found == 0 { 0 } else { level.unwrap_or_default().max(found) });
        }
        line.taken();
    }
    for line in global.all("log_dest") {
        match line.word() {
            "none" => {
                line.taken();
                level = Some(0);
            }
            "stdout" | "stderr" | "syslog" => {
                line.not_needed("the log goes to systemd's journal, or to stderr when run by hand")
            }
            "file" => line.not_taken("there is no log file: `journalctl -u pigateway` shows the log"),
            "topic" => line.not_taken("the log is not published"),
            "dlt" => line.not_taken("the log does not go to DLT"),
            _ => line.wrong("valid: stdout, stderr, syslog, topic, file, dlt, none"),
        }
    }
    level.map(|level| LEVELS[level])
}

/// Writes the limits of `[broker]`. `max_connections` is the limit of all listeners together.
pub(super) fn write_limits(global: &Section, max_connections: Option<i64>, text: &mut TomlText) {
    let mut limits = TomlText::default();
    connections(global, max_connections, &mut limits);
    packets(global, &mut limits);
    queues(global, &mut limits);
    match global.get("persistent_client_expiration") {
        Some(line) => expiry(&line).into_iter().for_each(|expiry| limits.key("session_expiry", quoted(&expiry))),
        None => {
            let why = "mosquitto keeps the sessions of clients that are away for ever; \"7 days\" is usual here";
            limits.key_with("session_expiry", quoted(&format!("{MAX_EXPIRY_DAYS} days")), why);
        }
    }
    if let Some((line, available)) = global.flag("retain_available") {
        if available {
            line.not_needed("it is so here");
        } else {
            line.differs("nothing is retained; mosquitto also cuts off who asks for it");
            limits.key("max_retained", 0);
        }
    }
    if let Some(line) = global.get("max_keepalive")
        && let Some(seconds) = line.number()
    {
        if (1..65_535).contains(&seconds) {
            line.differs("clients of MQTT 5 are told; others keep their own");
            limits.key("max_keep_alive", quoted(&format!("{seconds} s")));
        } else {
            line.not_needed("a client's own keep alive holds");
        }
    }
    let rest = global.lines.iter().filter(|line| !is_about_log(line));
    limits.remarks(rest);
    if !limits.is_empty() {
        text.table("[broker]");
        text.append(&limits);
    }
}

fn connections(global: &Section, of_listeners: Option<i64>, limits: &mut TomlText) {
    let mut most = of_listeners;
    if let Some(line) = global.get("global_max_connections")
        && let Some(number) = line.number()
    {
        if number > 0 {
            most = Some(most.map_or(number, |most| most.min(number)));
        }
        line.taken();
    }
    if let Some(most) = most {
        limits.key("max_connections", most.clamp(1, MAX_QUEUE));
    }
    if let Some(line) = global.get("global_max_clients")
        && let Some(number) = line.number()
    {
        if number > 0 {
            limits.key("max_sessions", number.min(MAX_QUEUE));
            line.differs("persistent sessions are counted, not all clients");
        } else {
            line.not_needed("sessions are bounded by max_sessions");
        }
    }
}

fn packets(global: &Section, limits: &mut TomlText) {
    let whole = global.get("max_packet_size").and_then(|line| Some((line.number()?, line)));
    let payload = global.get("message_size_limit").and_then(|line| Some((line.number()?, line)));
    let mut smallest: Option<i64> = None;
    if let Some((bytes, line)) = &whole {
        match *bytes {
            // mosquitto 2.0 refuses it, but people mean no limit
            0 => {
                line.differs(
                    "no limit: the largest that there is here, 256 MiB; a Pi has little memory, so consider less",
                );
                smallest = Some(MAX_PACKET);
            }
            bytes if bytes < 20 => line.wrong("mosquitto takes no limit below 20 bytes"),
            bytes if bytes < 1024 => {
                line.differs("the smallest limit is 1 KiB");
                smallest = Some(1024);
            }
            bytes if bytes > MAX_PACKET => {
                line.differs("the largest limit is 256 MiB");
                smallest = Some(MAX_PACKET);
            }
            bytes => {
                line.taken();
                smallest = Some(bytes);
            }
        }
    }
    if let Some((bytes, line)) = &payload {
        if *bytes <= 0 {
            line.not_needed("no limit of its own: max_packet_size holds");
        } else {
            line.differs("the limit is that of the whole packet, so topic and properties are added; a client that exceeds it is cut off");
            let packet = (bytes + 1024).min(MAX_PACKET);
            smallest = Some(smallest.map_or(packet, |other| other.min(packet)));
        }
    }
    if let Some(bytes) = smallest {
        limits.key("max_packet_size", quoted(&size(bytes)));
    }
}

fn queues(global: &Section, limits: &mut TomlText) {
    if let Some(line) = global.get("max_inflight_messages")
        && let Some(number) = line.number()
    {
        let no_limit = number <= 0;
        if no_limit {
            line.differs("no limit: 65535, the most that MQTT has");
        }
        line.taken();
        limits.key("max_inflight", if no_limit { 65_535 } else { number.min(65_535) });
    }
    if let Some(line) = global.get("max_queued_messages")
        && let Some(number) = line.number()
    {
        if number <= 0 {
            line.differs("no limit: max_queued_size still bounds the bytes");
        }
        line.taken();
        limits.key("max_queued_messages", if number <= 0 { MAX_QUEUE } else { number.min(MAX_QUEUE) });
    }
    if let Some(line) = global.get("max_queued_bytes")
        && let Some(number) = line.number()
    {
        if number <= 0 {
            line.differs("there is always a limit, of 4 MiB per session unless max_queued_size says more");
        } else {
            let bytes = number.clamp(1 << 10, 1 << 30);
            if bytes != number {
                line.differs("from 1 KiB to 1 GiB");
            }
            line.taken();
            limits.key("max_queued_size", quoted(&size(bytes)));
        }
    }
}

/// Converts a number with h, d, w, m (30 days) or y (365 days).
fn expiry(line: &SettingLine) -> Option<String> {
    let word = line.word();
    let at = word.len().saturating_sub(1);
    let parts = word.get(..at).and_then(|number| Some((number.parse::<i64>().ok()?, word.get(at..)?)));
    let hours = match parts {
        Some((number, unit)) if number > 0 => match unit {
            "h" => Some(number),
            "d" => number.checked_mul(24),
            "w" => number.checked_mul(24 * 7),
            "m" => number.checked_mul(24 * 30),
            "y" => number.checked_mul(24 * 365),
            _ => None,
        },
        _ => None,
    };
    let Some(hours) = hours else {
        line.wrong("valid: a number and h, d, w, m or y, such as 14d");
        return None;
    };
    let hours = if hours > MAX_EXPIRY_DAYS * 24 {
        line.differs("the longest is 49710 days");
        MAX_EXPIRY_DAYS * 24
    } else {
        line.taken();
        hours
    };
    Some(if hours % 24 == 0 { format!("{} days", hours / 24) } else { format!("{hours} h") })
}

/// A size in bytes, written with the largest unit that fits.
fn size(bytes: i64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes % factor == 0 {
            return format!("{} {unit}", bytes / factor);
        }
    }
    format!("{bytes} B")
}
