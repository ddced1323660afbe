//! The history of the sensors: when there was motion, kept over restarts.
//!
//! Each sensor has a file `NAME.jsonl` below `history/` in the data directory, with one JSON object on each line, and an
//! older file, `NAME.jsonl.old`. When the first reaches [`MAX_FILE`], it replaces the second. So there is always one to two
//! times that size, which is some 5,000 to 10,000 changes of state. The lines are:
//!
//! | line | what |
//! |---|---|
//! | `{"n":7,"state":"on","boot":"1f0c77ab","boot_ms":81250,"unix_ms":1772366402250}` | change number 7: `on`, `off` or `offline` |
//! | `{"boot":"1f0c77ab","offset_ms":1772366321000}` | wall time minus boot clock in that boot, once it is known |
//!
//! `unix_ms` is `null` while the clock is not synchronised; the second kind of line then gives the time later. The files are
//! synced once a minute, so a power cut may lose the last minute, and an incomplete line is skipped.
//!
//! `reading` reads them again, line by line. Who asks for a history waits for a turn (`turns`): one is read at a time.

pub(crate) mod reading;
pub(crate) mod turns;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::reading::HistoryEnd;
use crate::status::{SensorSnapshot, SensorState};
use crate::time::{SharedClock, beat, kernel_boot};

/// The largest file in bytes; a sensor has two.
pub(crate) const MAX_FILE: u64 = 512 << 10;
const SYNC: Duration = Duration::from_secs(60);

/// The new state of a sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema, Deserialize)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SensorEventState")]
pub(crate) enum EventState {
    /// There is motion.
    On,
    /// There is no motion.
    Off,
    /// The pin is not watched any more.
    Offline,
}

/// A change of a sensor's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Event {
    /// The number of the change, from 1 on, continued over restarts.
    pub(crate) n: u64,
    /// The state that began.
    pub(crate) state: EventState,
    /// The boot of the host to which `boot_ms` belongs.
    pub(crate) boot: String,
    /// The time of the change in milliseconds of the boot clock.
    pub(crate) boot_ms: u64,
    /// The time of the change in milliseconds since the Unix epoch, if it is known.
    pub(crate) unix_ms: Option<i64>,
}

#[derive(Serialize)]
struct ClockLine {
    boot: String,
    offset_ms: i64,
}

/// The id of this boot of the host.
pub(crate) fn boot_id() -> String {
    kernel_boot().unwrap_or_default().chars().take(8).collect()
}

fn current(dir: &Path, sensor: &str) -> PathBuf {
    dir.join(format!("{sensor}.jsonl"))
}

fn old(dir: &Path, sensor: &str) -> PathBuf {
    dir.join(format!("{sensor}.jsonl.old"))
}

/// Opens the present file, which must be neither a link nor anything else that is not a file.
fn for_appending(dir: &Path, sensor: &str) -> io::Result<File> {
    let (path, flags) = (current(dir, sensor), OFlags::NOFOLLOW | OFlags::NONBLOCK);
    let file = OpenOptions::new().create(true).append(true).custom_flags(flags.bits() as i32).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// The files of one sensor, open for writing.
#[derive(Debug)]
struct SensorWriter {
    file: File,
    size: u64,
    next: u64,
    /// The number of the last state that was written, by the sensor's count.
    seq: u64,
    last: Option<EventState>,
    /// Whether something was written in this boot without wall time.
    lacks_time: bool,
    dirty: bool,
    /// Whether the last line may be incomplete, because its write has failed.
    is_torn: bool,
}

impl SensorWriter {
    fn open(dir: &Path, sensor: &str, boot: &str) -> io::Result<SensorWriter> {
        let HistoryEnd { last, lacks_time } = reading::end(dir, sensor, boot)?;
        fs::create_dir_all(dir)?;
        let mut file = for_appending(dir, sensor)?;
        let size = file.metadata()?.len();
        if size > 0 {
            // ends a last line that may be incomplete
            file.write_all(b"\n")?;
        }
        let next = last.map_or(1, |(n, _)| n + 1);
        Ok(SensorWriter {
            file,
            size,
            next,
            seq: 0,
            last: last.map(|(_, state)| state),
            lacks_time,
            dirty: false,
            is_torn: false,
        })
    }

    fn write(&mut self, dir: &Path, sensor: &str, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        if self.is_torn {
            bytes.insert(0, b'\n');
        }
        if self.size + bytes.len() as u64 > MAX_FILE {
            self.file.sync_data()?;
            match fs::rename(current(dir, sensor), old(dir, sensor)) {
                // it was renamed before, and then there was no room for a new one
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                renamed => renamed?,
            }
            self.file = for_appending(dir, sensor)?;
            self.size = 0;
        }
        // in one call, so that a line is complete unless the power fails or the disk becomes full
        self.is_torn = true;
        self.file.write_all(&bytes)?;
        self.is_torn = false;
        self.size += bytes.len() as u64;
        self.dirty = true;
        Ok(())
    }

    fn event(&mut self, dir: &Path, sensor: &str, state: EventState, boot_ms: u64, now: &Now) -> io::Result<()> {
        let unix_ms = now.offset_ms.map(|offset| boot_ms as i64 + offset);
        let event = Event { n: self.next, state, boot: now.boot.clone(), boot_ms, unix_ms };
        self.write(dir, sensor, &event)?;
        self.next += 1;
        self.last = Some(state);
        self.lacks_time |= unix_ms.is_none();
        Ok(())
    }

    /// Writes the states of a snapshot that are not written yet.
    fn catch_up(&mut self, dir: &Path, snapshot: &SensorSnapshot, now: &Now) -> io::Result<()> {
        if snapshot.seq < self.seq {
            self.seq = 0; // the sensor was restarted
        }
        let known = self.seq;
        for change in snapshot.recent.iter().filter(|change| change.seq > known) {
            let state = if change.on { EventState::On } else { EventState::Off };
            self.event(dir, &snapshot.name, state, change.boot_ms, now)?;
            // if the next one fails, only that one is written again
            self.seq = change.seq;
        }
        self.seq = snapshot.seq;
        if snapshot.state == SensorState::Offline && self.last.is_some_and(|last| last != EventState::Offline) {
            self.event(dir, &snapshot.name, EventState::Offline, now.boot_ms, now)?;
        }
        self.learn_time(dir, &snapshot.name, now)
    }

    fn learn_time(&mut self, dir: &Path, sensor: &str, now: &Now) -> io::Result<()> {
        if let (true, Some(offset_ms)) = (self.lacks_time, now.offset_ms) {
            self.write(dir, sensor, &ClockLine { boot: now.boot.clone(), offset_ms })?;
            self.lacks_time = false;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.sync_data()?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// The present time by both clocks.
#[derive(Clone, Debug)]
struct Now {
    boot: String,
    boot_ms: u64,
    /// Wall time minus boot clock, if it is known.
    offset_ms: Option<i64>,
}

/// Writes the history of all sensors.
struct Scribe {
    dir: PathBuf,
    boot: String,
    clock: SharedClock,
    writers: HashMap<String, SensorWriter>,
    failing: bool,
}

impl Scribe {
    fn now(&self) -> Now {
        let offset = || self.clock.unix_ms_at(0);
        Now {
            boot: self.boot.clone(),
            boot_ms: self.clock.boot_ms(),
            offset_ms: self.clock.is_synchronised().then(offset),
        }
    }

    fn note(&mut self, snapshots: &[SensorSnapshot]) {
        let now = self.now();
        self.writers.retain(|name, _| snapshots.iter().any(|snapshot| snapshot.name == *name));
        let mut noted = Ok(());
        for snapshot in snapshots {
            noted = noted.and(self.note_one(snapshot, &now));
        }
        self.judge(noted);
    }

    fn note_one(&mut self, snapshot: &SensorSnapshot, now: &Now) -> io::Result<()> {
        if !self.writers.contains_key(&snapshot.name) {
            self.writers.insert(snapshot.name.clone(), SensorWriter::open(&self.dir, &snapshot.name, &self.boot)?);
        }
        let Some(writer) = self.writers.get_mut(&snapshot.name) else { return Ok(()) };
        writer.catch_up(&self.dir, snapshot, now)
    }

    /// Whether there is something to sync, or a time to be learned.
    fn has_unsynced(&self) -> bool {
        self.writers.values().any(|writer| writer.dirty || writer.lacks_time)
    }

    fn sync(&mut self) {
        let now = self.now();
        let mut synced = Ok(());
        for (sensor, writer) in &mut self.writers {
            synced = synced.and(writer.learn_time(&self.dir, sensor, &now).and_then(|()| writer.sync()));
        }
        self.judge(synced);
    }

    /// Handles the result for all sensors. A full disk costs only history, and is logged once.
    fn judge(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(dir = %self.dir.display(), %error, "the history of the sensors cannot be written");
                }
            }
        }
    }
}

/// Writes the history of all sensors until cancelled.
pub(crate) async fn run(
    mut sensors: watch::Receiver<Vec<SensorSnapshot>>,
    dir: PathBuf,
    clock: SharedClock,
    cancel: CancellationToken,
) -> Result<(), tokio::task::JoinError> {
    let mut scribe = Scribe { dir, boot: boot_id(), clock, writers: HashMap::new(), failing: false };
    let (mut open, mut next) = (true, Instant::now());
    loop {
        let is_last = tokio::select! {
            () = cancel.cancelled() => true,
            changed = sensors.changed(), if open => {
                open = changed.is_ok();
                false
            }
            () = sleep_until(next) => {
                if scribe.has_unsynced() {
                    scribe = on_disk(scribe, Scribe::sync).await?;
                }
                next = beat::within(SYNC);
                if !scribe.failing {
                    continue;
                }
                false
            }
        };
        let snapshots = sensors.borrow_and_update().clone();
        scribe = on_disk(scribe, move |scribe| scribe.note(&snapshots)).await?;
        if is_last {
            on_disk(scribe, Scribe::sync).await?;
            return Ok(());
        }
    }
}

/// Runs a function outside of the runtime's workers.
async fn on_disk(
    mut scribe: Scribe,
    work: impl FnOnce(&mut Scribe) + Send + 'static,
) -> Result<Scribe, tokio::task::JoinError> {
    let working = tokio::task::spawn_blocking(move || {
        work(&mut scribe);
        scribe
    });
    working.await
}

#[cfg(test)]
mod tests;
