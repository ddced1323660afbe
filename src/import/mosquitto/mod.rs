//! Converts a `mosquitto.conf` with the files that it includes, password files and access control lists.
//!
//! | file | what |
//! |---|---|
//! | `keys` | every setting: where it applies, what a repetition means, and the fate of those that need no thought |
//! | `document` | sorts the lines into sections |
//! | `listeners`, `access`, `acl` | who can come in, where, and what it may do |
//! | `doors` | the same for HTTP, so that it lets nobody in whom no listener would |
//! | `global` | limits and the log |
//! | `bridge` | upstreams |

mod access;
mod acl;
mod bridge;
mod document;
mod doors;
mod global;
mod listeners;

use std::path::PathBuf;
use std::rc::Rc;

use self::access::{AccessOptions, AccessReader};
use self::bridge::Bridges;
use self::document::{MosquittoDocument, Section};
use self::doors::Doors;
use self::listeners::{Listeners, is_local_only, tables};
use super::files::{Files, read};
use super::line::SettingLine;
use super::sniff::{ForeignKind, kind_of};
use super::text::TomlText;
use super::{ImportError, Imported, Options, Summary, head};

/// The given files, by their kind.
#[derive(Clone, Debug, Default)]
struct Given {
    configurations: Vec<PathBuf>,
    passwords: Vec<PathBuf>,
    acls: Vec<PathBuf>,
}

impl Given {
    fn sort(paths: &[PathBuf]) -> Result<Given, ImportError> {
        let mut given = Given::default();
        for path in paths {
            let text = read(path).map_err(|source| ImportError::Read { path: path.clone(), source })?;
            match kind_of(&text) {
                Some(ForeignKind::MosquittoPasswords) => given.passwords.push(path.clone()),
                Some(ForeignKind::MosquittoAcl) => given.acls.push(path.clone()),
                Some(ForeignKind::MqttIo | ForeignKind::Pigateway) => {
                    return Err(ImportError::NotThat { path: path.clone(), expected: "a file of mosquitto" });
                }
                Some(ForeignKind::MosquittoConf) | None => given.configurations.push(path.clone()),
            }
        }
        Ok(given)
    }
}

/// Makes a configuration from these files: one or more `mosquitto.conf`, read one after another, password files and access
/// control lists, in any order.
pub fn import(paths: &[PathBuf], options: &Options) -> Result<Imported, ImportError> {
    let given = Given::sort(paths)?;
    let first = given.configurations.first().or_else(|| paths.first()).cloned().unwrap_or_default();
    let files = Files::new(&first, paths);
    let document = MosquittoDocument::read(&given.configurations, &files)?;
    let (sources, to_do) = (Vec::new(), Vec::new());
    let (global, lines) = (&document.global, &document.lines);
    let mut reader = AccessReader { files: &files, given: &given, options, global, lines, sources, to_do };
    let is_local_only = is_local_only(&document);
    let listeners = Listeners::read(&document, &files);
    let names_certificates = listeners.openings.iter().any(|opening| opening.asks_for_certificates());
    let mut securities = securities(&document, &listeners, &mut reader, is_local_only)?;
    if let Some(security) = securities.first_mut() {
        reader.add_given(security)?;
    }
    for line in document.listeners.iter().flat_map(|listener| &listener.lines) {
        line.not_needed("its listener is not opened, or it is about the default listener, which is not there");
    }
    let doors = Doors::of(&document, &listeners, &securities);
    securities.iter().for_each(|security| security.finish(names_certificates));
    let bridges = Bridges::read(&document.bridges, &files, options);

    let mut text = TomlText::default();
    global::write_log(&document.global, &mut text);
    let max_connections = max_connections(&document, &listeners);
    global::write_limits(&document.global, max_connections, &mut text);
    doors.write_anonymous(&mut text);
    tables::write(&listeners, &document, &doors.own, &mut text);
    access::write_users("[[broker.user]]", &doors.users, &mut text);
    for source in &reader.sources {
        let lines = document.lines.all();
        text.remarks(lines.iter().filter(|line| &*line.place().file == source.as_str()));
    }
    doors.write_http(&listeners, &mut text);
    text.append(&bridges.text);

    let mut to_do = listeners.to_do;
    to_do.extend(reader.to_do);
    to_do.extend(bridges.to_do);
    let mut known = Vec::new();
    to_do.retain(|item| {
        !known.contains(item) && {
            known.push(item.clone());
            true
        }
    });
    let summary = Summary::of(&document.lines, to_do);
    let sources: Vec<String> = document.sources.iter().chain(&reader.sources).cloned().collect();
    let text = head("mosquitto", &sources, &summary) + text.as_str();
    Ok(Imported { text, secrets: bridges.secrets, summary })
}

/// The access settings of the whole broker, or with `per_listener_settings` those of each listener.
fn securities(
    document: &MosquittoDocument,
    listeners: &Listeners,
    reader: &mut AccessReader,
    is_local_only: bool,
) -> Result<Vec<AccessOptions>, ImportError> {
    if !document.per_listener {
        return Ok(vec![reader.security(&document.global, is_local_only)?]);
    }
    let sections = listeners.openings.iter().filter_map(|opening| document.listeners.get(opening.section?));
    let mut securities = Vec::new();
    for section in sections {
        securities.push(reader.security(section, false)?);
    }
    if securities.is_empty() {
        let nothing = Section::default();
        securities.push(reader.security(&nothing, is_local_only)?);
    }
    Ok(securities)
}

/// The limit of all listeners together, if each of them has one.
fn max_connections(document: &MosquittoDocument, listeners: &Listeners) -> Option<i64> {
    let lines: Vec<Option<Rc<SettingLine>>> = listeners
        .openings
        .iter()
        .map(|opening| document.listeners.get(opening.section?)?.get("max_connections"))
        .collect();
    let limit = |line: &Option<Rc<SettingLine>>| line.as_ref()?.word().parse::<i64>().ok().filter(|limit| *limit > 0);
    let limits: Vec<i64> = lines.iter().filter_map(limit).collect();
    (!limits.is_empty() && limits.len() == lines.len()).then(|| limits.iter().sum())
}

#[cfg(test)]
mod tests;
