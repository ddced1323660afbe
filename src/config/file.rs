//! The file as a whole, and its small sections.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::document::{Document, MISSING, Table, Value, assign, line_and_column};
use super::error::{Problem, Problems, nearest};
use super::paths::{Environment, Paths};
use super::settings::Settings;
use super::{broker, sensors, upstream};
use crate::broker::settings::ListenerSettings;
use crate::http::settings::{HttpSettings, HttpTls};
use crate::journal::WhenFull;
use crate::journal::settings::{JournalSettings, Order};

/// Valid settings, and what a person should know about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Not wrong, but perhaps not meant.
    pub warnings: Vec<Problem>,
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    load_in(path, &Environment::current())
}

/// Reads a configuration file as if the process had been started like this.
pub fn load_in(path: &Path, environment: &Environment) -> Result<Loaded, Problems> {
    let file = path.display().to_string();
    let whole = |place, message| {
        let problem = Problem { file: file.clone(), place, key: String::new(), message };
        Problems { file: file.clone(), problems: vec![problem] }
    };
    let bytes = std::fs::read(path).map_err(|error| whole(None, format!("cannot be read: {error}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        whole(Some(line_and_column(&bytes, error.valid_up_to())), "found bytes that are not UTF-8; valid: text".into())
    })?;
    read(text, path, environment)
}

/// Reads the text of a configuration file; `path` is where it would be.
pub fn read(text: &str, path: &Path, environment: &Environment) -> Result<Loaded, Problems> {
    let file = path.display().to_string();
    // an editor on Windows may put a byte order mark in front, which TOML allows but does not count as text
    let document = Document::new(&file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut broken_lines = HashSet::new();
    for error in &errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        broken_lines.insert(document.line(at));
        document.problem(at, "", format!("not TOML: {}", error.message()));
    }
    let settings = sections(Table::root(&document, root.get_ref()), &Paths::new(path, environment), environment);
    let (mut problems, warnings) = document.into_findings();
    if !errors.is_empty() {
        // what the parser made of a broken line is not what was meant, and what seems missing may be in one
        problems.retain(|problem| {
            let is_syntax = problem.key.is_empty();
            let is_broken = problem.place.is_some_and(|(line, _)| broken_lines.contains(&line));
            is_syntax || !(is_broken || problem.message.starts_with(MISSING))
        });
    }
    if problems.is_empty() { Ok(Loaded { settings, warnings }) } else { Err(Problems { file, problems }) }
}

fn sections(root: Table, paths: &Paths, environment: &Environment) -> Settings {
    let mut settings = Settings::defaults(environment);
    gateway(&root, &mut settings, paths);
    if let Some(table) = root.table("log") {
        assign(&mut settings.log.level, table.get("level").and_then(|value| log_level(&value)));
        table.finish();
    }
    settings.broker = broker::read(&root, paths);
    settings.gpio = sensors::gpio(&root);
    settings.sensors = sensors::read(&root);
    settings.upstreams = upstream::read(&root, paths, &settings.gateway.id);
    settings.journal = journal(&root);
    settings.http = http(&root, paths, &settings);
    root.finish();
    settings
}

fn gateway(root: &Table, settings: &mut Settings, paths: &Paths) {
    let Some(table) = root.table("gateway") else { return };
    assign(&mut settings.gateway.id, table.get("id").and_then(|value| value.name()));
    assign(&mut settings.gateway.data_dir, table.get("data_dir").and_then(|value| paths.path(&value)));
    table.finish();
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A tracing filter. A word alone would be taken for the name of a module, and a misspelt level would then silence all.
fn log_level(value: &Value) -> Option<String> {
    let valid = "off, error, warn, info, debug, trace, or a list such as \"info,pigateway::upstream=debug\"";
    let text = value.text(valid)?;
    for part in text.split(',').map(str::trim) {
        if part.contains(['=', '[']) || LEVELS.contains(&part) {
            continue;
        }
        match nearest(part, &LEVELS) {
            Some(near) => value.wrong(format!("{valid}; did you mean {near:?}?")),
            None => value.wrong(valid),
        }
        return None;
    }
    value.parsed(valid, |text| EnvFilter::builder().parse(text).is_ok().then(|| text.into()))
}

fn journal(root: &Table) -> JournalSettings {
    let mut settings = JournalSettings::default();
    let Some(table) = root.table("journal") else { return settings };
    assign(&mut settings.max_size, table.get("max_size").and_then(|value| value.size(1 << 20..=1 << 40)));
    let when_full = [("drop_oldest", WhenFull::DropOldest), ("refuse", WhenFull::Refuse)];
    assign(&mut settings.when_full, table.get("when_full").and_then(|value| value.choice(&when_full)));
    let order = [("strict", Order::Strict), ("live_first", Order::LiveFirst)];
    assign(&mut settings.order, table.get("order").and_then(|value| value.choice(&order)));
    table.finish();
    settings
}

fn http(root: &Table, paths: &Paths, others: &Settings) -> HttpSettings {
    let mut settings = HttpSettings::default();
    let table = root.table("http");
    let address = table.as_ref().and_then(|table| table.get("address"));
    assign(&mut settings.address, address.as_ref().and_then(http_address));
    let collides =
        |listener: &&ListenerSettings| settings.address.is_some_and(|at| broker::collide(listener.address, at));
    if let Some(listener) = others.broker.listeners.iter().find(collides) {
        let message = format!("the broker listens on {} already; valid: another port, or \"off\"", listener.address);
        match &address {
            Some(address) => address.problem(message),
            None => root.problem("http.address", message),
        }
    }
    let Some(table) = table else { return settings };
    if let Some(list) = table.get("allowed_hosts") {
        let is_host = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        let valid = "a list of host names without port, such as [\"pi.example.org\"]";
        let host = |text: &str| (!text.is_empty() && text.chars().all(is_host)).then(|| text.to_lowercase());
        settings.allowed_hosts = list.items(valid).iter().filter_map(|item| item.parsed(valid, host)).collect();
    }
    if let Some(tls) = table.table("tls") {
        settings.tls = paths.server_tls(&tls).map(|(cert, key)| HttpTls { cert, key });
        tls.finish();
    }
    table.finish();
    settings
}

fn http_address(value: &Value) -> Option<Option<SocketAddr>> {
    let valid = "\"off\", or an IP address and a port, such as \"[::]:8080\" or \"127.0.0.1:8080\"";
    value.parsed(valid, |text| if text == "off" { Some(None) } else { text.parse().ok().map(Some) })
}
