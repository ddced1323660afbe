//! Reads the configuration file as a whole, and its small sections.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use toml::de::DeTable;
use tracing_subscriber::EnvFilter;

use super::document::{Document, MISSING, Table, Value, assign, line_and_column};
use super::error::{ConfigProblem, ConfigProblems, FileProblem, nearest};
use super::own_address::own_doors;
use super::paths::{Environment, Paths};
use super::settings::Settings;
use super::{broker, doors, home_assistant, mdns, sensors, sizes, upstream};
use crate::broker::settings::ListenerSettings;
use crate::http::settings::{HttpSettings, HttpTls, Network, frame_ancestor};
use crate::journal::settings::{JournalSettings, WhenFull};
use crate::secret;
use crate::tls::TlsFiles;
use crate::upstream::settings::Order;

/// Valid settings, with what a person should know about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The settings, which the rooms need not check again.
    pub settings: Settings,
    /// Values that are valid, but may not be what was meant.
    pub(crate) warnings: Vec<ConfigProblem>,
    /// Files that cannot be used at present.
    pub(crate) files: Vec<FileProblem>,
}

/// The largest configuration file, in bytes.
const LARGEST: u64 = 16 << 20;

pub(crate) fn load(path: &Path) -> Result<Loaded, ConfigProblems> {
    load_in(path, &Environment::current())
}

/// The contents of a configuration file, which may be a pipe.
fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST { Err("has more than 16 MiB".into()) } else { Ok(bytes) }
}

/// The same for a pipe that nobody waits for: a FIFO that has come into the place of the file would block a reload, and the
/// gateway with it.
fn contents_without_waiting(path: &Path) -> Result<Vec<u8>, String> {
    let is_pipe = |about: Metadata| about.file_type().is_fifo() || about.file_type().is_socket();
    if std::fs::metadata(path).is_ok_and(is_pipe) {
        Err("found a pipe or a socket; valid: a file".into())
    } else {
        contents(path)
    }
}

/// Reads a configuration file again while the gateway runs.
pub(crate) fn load_again(path: &Path) -> Result<Loaded, ConfigProblems> {
    load_from(path, contents_without_waiting, &Environment::current())
}

/// Reads a configuration file as if the process had been started in this environment.
pub(crate) fn load_in(path: &Path, environment: &Environment) -> Result<Loaded, ConfigProblems> {
    load_from(path, contents, environment)
}

fn load_from(
    path: &Path,
    contents: impl FnOnce(&Path) -> Result<Vec<u8>, String>,
    environment: &Environment,
) -> Result<Loaded, ConfigProblems> {
    let file = path.display().to_string();
    let whole = |place, message| {
        let problem = ConfigProblem { file: file.clone(), place, key: String::new(), message };
        ConfigProblems { file: file.clone(), problems: vec![problem] }
    };
    let bytes = contents(path).map_err(|problem| whole(None, problem))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        whole(Some(line_and_column(&bytes, error.valid_up_to())), "found bytes that are not UTF-8; valid: text".into())
    })?;
    let mut loaded = read(text, path, environment)?;
    if loaded.settings.broker.access.hashes().next().is_some() && secret::is_public(path) {
        let message = "everybody on this machine can read this file and try to guess the passwords of its hashes; chgrp it to \
                       the group that pigateway runs as and chmod 640";
        loaded.warnings.insert(0, ConfigProblem { file, place: None, key: String::new(), message: message.into() });
    }
    Ok(loaded)
}

/// Reads the text of a configuration file. Relative paths and messages refer to `path`.
pub fn read(text: &str, path: &Path, environment: &Environment) -> Result<Loaded, ConfigProblems> {
    let file = path.display().to_string();
    let document = Document::new(&file, text);
    let (mut root, errors) = DeTable::parse_recoverable(text);
    let lines = |errors: &[toml::de::Error]| -> HashSet<usize> {
        errors.iter().map(|error| document.line(place(error, text))).collect()
    };
    let note = |error: &toml::de::Error| {
        document.problem(place(error, text), "", format!("not TOML: {}", error.message()));
    };
    errors.iter().for_each(note);
    // the parser misinterprets the rest of a broken line, so the text is read again without such lines
    let mut broken = lines(&errors);
    let mut rest;
    let mut is_whole = errors.is_empty();
    for _ in 0..MOST_PASSES {
        if is_whole {
            break;
        }
        rest = without_lines(text, &broken);
        let again = DeTable::parse_recoverable(&rest);
        // a value over several lines may have lost one of them, but a removed line cannot make a key appear twice
        again.1.iter().filter(|error| error.message() == "duplicate key").for_each(note);
        broken.extend(lines(&again.1));
        is_whole = again.1.is_empty();
        root = again.0;
        root.get_mut().make_owned();
    }
    let paths = Paths::new(path, environment);
    let settings = is_whole.then(|| sections(Table::root(&document, root.get_ref()), &paths, environment));
    let (mut problems, warnings, files) = document.into_findings();
    if !errors.is_empty() {
        // a key that seems to be missing may be in a broken line
        problems.retain(|problem| problem.key.is_empty() || !problem.message.starts_with(MISSING));
    }
    match settings {
        Some(settings) if problems.is_empty() => Ok(Loaded { settings, warnings, files }),
        _ => Err(ConfigProblems { file, problems }),
    }
}

/// How many times a file is read again without its broken lines.
const MOST_PASSES: usize = 8;

fn place(error: &toml::de::Error, text: &str) -> usize {
    error.span().map_or(text.len(), |span| span.start)
}

/// Replaces these lines by empty ones, so that all other lines keep their places. If a header is removed, its keys are
/// removed too, because otherwise they would belong to the header before it.
fn without_lines(text: &str, lines: &HashSet<usize>) -> String {
    let mut rest = String::with_capacity(text.len());
    let mut below_broken_header = false;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let is_broken = lines.contains(&(index + 1));
        if line.trim_start().starts_with('[') {
            below_broken_header = is_broken;
        }
        if is_broken || below_broken_header {
            rest.extend(line.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }));
        } else {
            rest.push_str(line);
        }
    }
    rest
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
    settings.http = http(&root, paths, &settings);
    let own = own_doors(&settings.broker.listeners, &settings.http);
    settings.upstreams = upstream::read(&root, paths, &settings.gateway.id, &own);
    (settings.journal, settings.order) = journal(&root);
    settings.mdns = mdns::read(&root);
    home_assistant::read(&root, &mut settings);
    sizes::check(&root, &settings);
    doors::check(&root, &settings);
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

/// Reads a tracing filter. A single word must be a level, because tracing would take a misspelt level for the name of a
/// module and log nothing.
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

fn journal(root: &Table) -> (JournalSettings, Order) {
    let (mut settings, mut order) = (JournalSettings::default(), Order::default());
    let Some(table) = root.table("journal") else { return (settings, order) };
    assign(&mut settings.max_size, table.get("max_size").and_then(|value| value.size(1 << 20..=1 << 40)));
    let when_full = [("drop_oldest", WhenFull::DropOldest), ("refuse", WhenFull::Refuse)];
    assign(&mut settings.when_full, table.get("when_full").and_then(|value| value.choice(&when_full)));
    let orders = [("strict", Order::Strict), ("live_first", Order::LiveFirst)];
    assign(&mut order, table.get("order").and_then(|value| value.choice(&orders)));
    table.finish();
    (settings, order)
}

fn http(root: &Table, paths: &Paths, others: &Settings) -> HttpSettings {
    let mut settings = HttpSettings::default();
    let table = root.table("http");
    let address = table.as_ref().and_then(|table| table.get("address"));
    assign(&mut settings.address, address.as_ref().and_then(http_address));
    let collides = |listener: &&ListenerSettings| {
        settings.address.zip(listener.address.tcp()).is_some_and(|(at, other)| super::listeners::collide(other, at))
    };
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
    if let Some(list) = table.get("trusted_proxies") {
        let valid = "a list of IP addresses and networks, such as [\"127.0.0.1\", \"192.0.2.0/24\"]";
        let read = |item: &Value| item.parsed(valid, Network::parse);
        settings.trusted_proxies = list.items(valid).iter().filter_map(read).collect();
    }
    if let Some(list) = table.get("frame_ancestors") {
        let valid = "a list of \"self\" and origins, such as [\"https://home.example.org:8123\"]";
        let read = |item: &Value| item.parsed(valid, frame_ancestor);
        settings.frame_ancestors = list.items(valid).iter().filter_map(read).collect();
    }
    if let Some(tls) = table.table("tls") {
        settings.tls = paths.server_tls(&tls, false).map(|TlsFiles { cert, key, .. }| HttpTls { cert, key });
        tls.finish();
    }
    table.finish();
    settings
}

fn http_address(value: &Value) -> Option<Option<SocketAddr>> {
    let valid = "\"off\", or an IP address and a port, such as \"[::]:8080\" or \"127.0.0.1:8080\"";
    value.parsed(valid, |text| if text == "off" { Some(None) } else { text.parse().ok().map(Some) })
}
