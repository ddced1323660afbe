//! Reads the history of a sensor line by line. It takes as much memory as the changes that were asked for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek};
use std::ops::ControlFlow;
use std::path::Path;

use serde::Deserialize;

use super::{Event, EventState, current, old};

/// A line of either kind.
#[derive(Deserialize)]
struct HistoryLine<'a> {
    #[serde(borrow)]
    boot: Cow<'a, str>,
    n: Option<u64>,
    state: Option<EventState>,
    boot_ms: Option<u64>,
    unix_ms: Option<i64>,
    offset_ms: Option<i64>,
}

impl HistoryLine<'_> {
    /// The change, with the time that is known by now.
    fn event(&self, offsets: &HashMap<Box<str>, i64>) -> Option<Event> {
        let (n, state, boot_ms) = (self.n?, self.state?, self.boot_ms?);
        let repaired = || offsets.get(&*self.boot).map(|offset| boot_ms as i64 + offset);
        Some(Event { n, state, boot: self.boot.to_string(), boot_ms, unix_ms: self.unix_ms.or_else(repaired) })
    }
}

/// The number with which a line begins that the gateway wrote for a change. A line for which this is `None` may be one too.
fn number(line: &[u8]) -> Option<u64> {
    let digits = line.strip_prefix(b"{\"n\":")?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The files of a sensor, oldest first.
struct HistoryFiles(Vec<BufReader<File>>);

impl HistoryFiles {
    fn open(dir: &Path, sensor: &str) -> io::Result<HistoryFiles> {
        let mut files = Vec::new();
        // the present file comes first: if it becomes the older one in this moment, it is there twice and not missing
        for path in [current(dir, sensor), old(dir, sensor)] {
            // the gateway writes no other kinds of files, and a FIFO would block
            if fs::symlink_metadata(&path).is_ok_and(|about| !about.is_file()) {
                continue;
            }
            match File::open(&path) {
                Ok(file) => files.push(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        files.reverse();
        Ok(HistoryFiles(files))
    }

    /// Hands over all lines that can be read and of which `is_wanted`, which sees the bytes.
    fn each(
        &mut self,
        is_wanted: impl Fn(&[u8]) -> bool,
        mut take: impl FnMut(&HistoryLine<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for file in &mut self.0 {
            file.rewind()?;
            loop {
                bytes.clear();
                if file.read_until(b'\n', &mut bytes)? == 0 {
                    break;
                }
                let line = Some(&bytes).filter(|bytes| is_wanted(bytes));
                let line = line.and_then(|bytes| serde_json::from_slice(bytes).ok());
                if line.is_some_and(|line| take(&line).is_break()) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// How the files of a sensor end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HistoryEnd {
    /// The number and the state of the last change.
    pub(super) last: Option<(u64, EventState)>,
    /// Whether a change in this boot has no time yet, and no later line gives it.
    pub(super) lacks_time: bool,
}

/// Reads how the files of a sensor end in this boot. Blocks for the disk.
pub(super) fn end(dir: &Path, sensor: &str, boot: &str) -> io::Result<HistoryEnd> {
    let mut end = HistoryEnd::default();
    let take = |line: &HistoryLine<'_>| {
        let change = line.n.zip(line.state);
        end.last = change.or(end.last);
        if line.boot == boot {
            match change {
                Some(_) => end.lacks_time |= line.unix_ms.is_none(),
                None => end.lacks_time &= line.offset_ms.is_none(),
            }
        }
        ControlFlow::Continue(())
    };
    HistoryFiles::open(dir, sensor)?.each(|_| true, take)?;
    Ok(end)
}

/// At most `limit` changes of a sensor with numbers above `after`, oldest first. With `since`, only those that are known to
/// be from that time on. Blocks for the disk.
pub(crate) fn read(dir: &Path, sensor: &str, since: Option<i64>, after: u64, limit: usize) -> io::Result<Vec<Event>> {
    let mut files = HistoryFiles::open(dir, sensor)?;
    let mut offsets: HashMap<Box<str>, i64> = HashMap::new();
    files.each(
        |bytes| number(bytes).is_none(),
        |line| {
            if let Some(offset) = line.offset_ms {
                offsets.insert((&*line.boot).into(), offset);
            }
            ControlFlow::Continue(())
        },
    )?;
    let (mut events, mut newest) = (Vec::new(), after);
    files.each(
        |bytes| number(bytes).is_none_or(|n| n > after),
        |line| {
            if let Some(event) = line.event(&offsets).filter(|event| event.n > newest) {
                newest = event.n;
                if since.is_none_or(|since| event.unix_ms.is_some_and(|at| at >= since)) {
                    events.push(event);
                }
            }
            if events.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
    )?;
    Ok(events)
}
