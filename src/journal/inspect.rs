//! Examines a journal from outside: beside a running gateway, or on the card of a dead Pi. Nothing is changed.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::format::{RecordKind, SEGMENT_SUFFIX};
use super::log::Segment;
use super::record::{RecordRef, Scanner};
use super::report::Report;
use super::state::JournalState;
use super::storage::Storage;
use super::storage::file::FileStorage;
use super::{JournalError, boots, recovery, settings::JournalSettings};
use crate::access::owner::shown;
use crate::message::MessageRef;
use crate::time::{Clock, SystemClock};

/// The number of attempts before data counts as damaged.
const LOOKS: u32 = 3;

/// What to examine and print.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InspectOptions {
    /// Whether to read every record.
    pub(crate) verify: bool,
    /// Whether to print messages as JSON, one on each line, and nothing else.
    pub(crate) export: bool,
}

/// Why a journal cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The directory has no journal.
    #[error("{0} holds no journal: give the data directory (gateway.data_dir) or the directory `journal` in it")]
    None(String),
    /// The journal is of another version.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The directory cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The path of the directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("the contents of the journal cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// The directory in which the journal is, if there is one: that which is given, or the directory `journal` in
/// it.
pub(crate) fn journal_dir(dir: &Path) -> Result<PathBuf, InspectError> {
    let inner = dir.join("journal");
    // what this user may not look at may be there
    match fs::metadata(&inner) {
        Ok(about) if about.is_dir() => Ok(inner),
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(InspectError::Read { path: inner, source })
        }
        _ => Ok(dir.to_owned()),
    }
}

/// Prints what the journal in `dir` contains, and returns whether all of it is readable.
pub(crate) fn inspect(dir: &Path, what: InspectOptions, out: &mut dyn Write) -> Result<bool, InspectError> {
    let path = journal_dir(dir)?;
    let storage = FileStorage::read_only(&path);
    let files = storage.list().map_err(|source| InspectError::Read { path, source })?;
    if !files.iter().any(|(name, _)| name.ends_with(SEGMENT_SUFFIX)) {
        return Err(InspectError::None(dir.display().to_string()));
    }
    let clock = SystemClock;
    let look = || -> Result<JournalState, JournalError> {
        let mut state = recovery::recover(&storage, &JournalSettings::default(), boots::kernel_boot_id(), &clock)?;
        if what.verify && !what.export {
            verify(&storage, &mut state);
        }
        Ok(state)
    };
    let mut state = look()?;
    for _ in 0..LOOKS {
        if !state.reports.iter().any(Report::is_loss) {
            break;
        }
        // a gateway may have reused a segment during the read; real damage is still there the next time
        state = look()?;
    }
    if what.export {
        export(&storage, &state, &clock, out)?;
    } else {
        print(&state, files.iter().map(|(_, len)| len).sum(), what, out)?;
    }
    Ok(!state.reports.iter().any(Report::is_loss))
}

/// The number of waiting messages of each consumer, by its lasting name.
pub(crate) fn waiting(dir: &Path) -> Result<Vec<(Box<str>, u64)>, JournalError> {
    let storage = FileStorage::read_only(&dir.join("journal"));
    let state = recovery::recover(&storage, &JournalSettings::default(), boots::kernel_boot_id(), &SystemClock)?;
    Ok(state.queues.iter().map(|(_, queue)| (queue.name().into(), queue.waiting())).collect())
}

/// Reads the records that were not needed to find the state.
fn verify(storage: &dyn Storage, state: &mut JournalState) {
    while let Some(generation) = state.log.next_to_check() {
        let Some(segment) = state.log.get(generation) else { continue };
        let mut scanner = Scanner::new(storage, &segment.name, &segment.header, segment.end);
        let mut records = 0;
        while scanner.next_record().is_some() {
            records += 1;
        }
        let rest = segment.end.saturating_sub(scanner.offset());
        let is_damaged = scanner.damage.places > 0 || rest > 0 || records < segment.records;
        if is_damaged && !recovery::is_reused(storage, segment) {
            let report = Report::Damaged {
                file: segment.name.clone(),
                places: scanner.damage.places + u32::from(rest > 0),
                bytes: scanner.damage.bytes + rest,
                records: segment.records.saturating_sub(records),
            };
            state.reports.add(report);
        }
    }
}

fn print(state: &JournalState, bytes: u64, what: InspectOptions, out: &mut dyn Write) -> io::Result<()> {
    let messages = state.kept.retained().len();
    writeln!(
        out,
        "{bytes} bytes, records up to {}, {messages} retained messages, {} sessions",
        state.log.committed(),
        state.kept.client_sessions().count()
    )?;
    writeln!(out, "\nsegment           generation      records  from..to             bytes used  needed by")?;
    for (generation, segment) in state.log.segments() {
        writeln!(
            out,
            "{:<17} {generation:>10} {:>12}  {:<20} {:>10}  {} consumers",
            segment.name,
            segment.records,
            format!("{}..{}", segment.header.base, segment.last),
            segment.end,
            segment.needed_by(&state.queues)
        )?;
    }
    writeln!(
        out,
        "\nconsumer                         accepted      acked unconfirmed    expired    refused    dropped       lost    waiting"
    )?;
    let mut queues: Vec<_> = state.queues.iter().map(|(_, queue)| queue).collect();
    queues.sort_by_key(|queue| queue.name());
    for queue in queues {
        let backlog = queue.backlog();
        let name = shown(queue.name());
        let [acked, unconfirmed, expired, refused @ ..] = backlog.outcomes;
        let refused: u64 = refused.iter().sum();
        writeln!(
            out,
            "{name:<30} {:>10} {acked:>10} {unconfirmed:>11} {expired:>10} {refused:>10} {:>10} {:>10} {:>10}",
            backlog.accepted, backlog.dropped, backlog.lost, backlog.messages
        )?;
    }
    writeln!(out)?;
    for report in state.reports.iter() {
        writeln!(out, "{report}")?;
    }
    for aside in state.log.aside() {
        writeln!(out, "{aside}: was set aside")?;
    }
    match (what.verify, state.reports.iter().len() == 0) {
        (true, true) => writeln!(out, "every record is whole"),
        (false, true) => writeln!(out, "no damage in what was read; --verify reads everything"),
        _ => Ok(()),
    }
}

fn export(storage: &dyn Storage, state: &JournalState, clock: &dyn Clock, out: &mut dyn Write) -> io::Result<()> {
    let segments: Vec<&Segment> = state.segments().collect();
    for (at, segment) in segments.iter().enumerate() {
        let limit = segment.limit(segments.get(at + 1).map(|next| &next.header));
        let mut scanner = Scanner::new(storage, &segment.name, &segment.header, segment.end);
        while let Some((_, record)) = scanner.next_record() {
            if (segment.from..limit).contains(&record.position())
                && record.kind() == Some(RecordKind::Message)
                && let Some(line) = line(state, &record, clock)
            {
                serde_json::to_writer(&mut *out, &line)?;
                out.write_all(b"\n")?;
            }
        }
    }
    Ok(())
}

fn line(state: &JournalState, record: &RecordRef<'_>, clock: &dyn Clock) -> Option<Value> {
    let message = MessageRef::parse(record.body())?;
    let offset = state
        .boots
        .known()
        .get(&record.boot())
        .map_or_else(|| clock.unix_ms() - clock.boot_ms() as i64, |boot| boot.offset_ms);
    let time = Timestamp::from_millisecond((message.boot_ms() as i64).saturating_add(offset)).ok();
    let mut line = Map::new();
    line.insert("place".into(), json!(record.position()));
    line.insert("time".into(), json!(time.map(|time| time.to_string())));
    line.insert("topic".into(), json!(message.topic()));
    match std::str::from_utf8(message.payload()) {
        Ok(text) => line.insert("payload".into(), json!(text)),
        Err(_) => {
            let hex: String = message.payload().iter().map(|byte| format!("{byte:02x}")).collect();
            line.insert("payload_hex".into(), json!(hex))
        }
    };
    line.insert("qos".into(), json!(message.qos() as u8));
    line.insert("retain".into(), json!(message.retain()));
    let mut consumers: HashMap<String, Value> = HashMap::new();
    for (key, ordinal) in record.consumers() {
        if let Some(queue) = state.queues.of_key(key) {
            consumers.insert(shown(queue.name()), json!({ "number": ordinal, "waits": ordinal > queue.base() }));
        }
    }
    line.insert("consumers".into(), json!(consumers));
    Some(Value::Object(line))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{ANY, draft, settings, wait_synced};
    use super::*;
    use crate::journal::{Journal, WhenFull};

    #[test]
    fn a_journal_in_use_is_shown_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(inspect(dir.path(), InspectOptions::default(), &mut Vec::new()), Err(InspectError::None(_))));
        let path = dir.path().join("journal");
        let storage = Arc::new(FileStorage::new(&path));
        let journal = Journal::open(storage, settings(1 << 20, WhenFull::DropOldest), Arc::new(SystemClock)).unwrap();
        let id = journal.register("upstream/home", ANY);
        let mut last = Default::default();
        for payload in [&b"21.5"[..], &[0xff, 0]] {
            last = journal.append(&draft("loft/t", payload, true), &[id]).unwrap();
        }
        wait_synced(&journal, last);
        let show = |what| {
            let mut out = Vec::new();
            let whole = inspect(dir.path(), what, &mut out).unwrap();
            (whole, String::from_utf8(out).unwrap())
        };
        let (whole, text) = show(InspectOptions { verify: true, export: false });
        assert!(whole && text.contains("upstream/home") && text.contains("every record is whole"), "{text}");
        let (_, text) = show(InspectOptions { verify: false, export: true });
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["payload"], &lines[1]["payload_hex"]), (2, &json!("21.5"), &json!("ff00")));
        assert_eq!(lines[1]["consumers"]["upstream/home"], json!({"number": 2, "waits": true}));
        let file = path.join("00000000.segment");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[8192 + 50] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (whole, text) = show(InspectOptions { verify: true, export: false });
        assert!(!whole && text.contains("damaged in 1 places"), "{text}");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "nothing is set aside by looking");
    }
}
