//! The log: to journald with its fields when systemd runs us, else one line per event to stderr.
//!
//! Fields keep their names in the journal: `tracing`'s `sensor = "loft-motion"` is found by
//! `journalctl SENSOR=loft-motion`.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::io::{self, IsTerminal};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::problems::ProblemsLayer;
use crate::health::Problems;
use crate::time::zone;

/// Libraries whose own log is quiet unless the filter names them. The spans of rumqttd's router cost a good part of its
/// throughput.
const QUIET: [(&str, &str); 2] = [("rumqttd", "off"), ("rustls", "warn")];

/// Why the log cannot be what it should.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not one.
    #[error("not a log filter: {0}")]
    Filter(#[from] ParseError),
    /// There is a log already.
    #[error(transparent)]
    Init(#[from] TryInitError),
    /// The log has gone.
    #[error(transparent)]
    Reload(#[from] reload::Error),
}

/// The log of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Starts the log with this filter, and logs panics from now on. Warnings and errors go to `problems` too.
    pub fn init(level: &str, problems: Problems) -> Result<Logging, LoggingError> {
        let (filter, handle) = reload::Layer::new(filter(level)?);
        let journal = stderr_is_journal().then(journal_layer).and_then(Result::ok);
        let stderr = journal.is_none().then(|| {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            tracing_subscriber::fmt::layer().compact().with_timer(LocalTime).with_ansi(colour).with_writer(io::stderr)
        });
        let problems = ProblemsLayer(problems);
        tracing_subscriber::registry().with(filter).with(journal).with(stderr).with(problems).try_init()?;
        log_panics();
        Ok(Logging { filter: handle })
    }

    /// A log that nothing comes from.
    #[cfg(test)]
    pub fn silent() -> Logging {
        Logging { filter: reload::Layer::new(EnvFilter::new("off")).1 }
    }

    /// Logs by this filter from now on.
    pub fn set_level(&self, level: &str) -> Result<(), LoggingError> {
        Ok(self.filter.reload(filter(level)?)?)
    }
}

/// The filter of the configuration, with libraries kept quiet that it does not name.
fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    let quiet = QUIET.iter().filter(|(library, _)| !level.contains(library));
    let directives: Vec<String> = quiet.map(|(library, level)| format!("{library}={level}")).collect();
    EnvFilter::builder().parse(format!("{level},{}", directives.join(",")))
}

/// Whether what we write to stderr goes to journald: systemd says which device and inode that is (systemd.exec(5)), and
/// stderr may have been redirected since.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn journal_layer() -> io::Result<tracing_journald::Layer> {
    // syslog knows one level less, so TRACE and DEBUG share one and INFO is what others call informational
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(priorities);
    Ok(layer.with_syslog_identifier("pigateway".into()))
}

/// Local date and time, for people.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", jiff::Timestamp::now().to_zoned(zone::local()).strftime("%F %T%.3f"))
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        // "panicked at FILE:LINE:COLUMN:" and the message are two lines
        let what = panic.to_string().replace('\n', " ");
        tracing::error!(thread = thread.name().unwrap_or_default(), "{what}");
    }));
}

/// Keeps what happens again and again from filling the log: the first time is logged, then one line a minute with the
/// number of times in between. Knows at most a fixed number of keys; when more are busy than that, those that are new
/// share one.
#[derive(Debug)]
pub struct Limiter<K> {
    capacity: usize,
    state: Mutex<LimiterState<K>>,
}

#[derive(Debug)]
struct LimiterState<K> {
    keys: HashMap<K, Quiet>,
    others: Option<Quiet>,
}

#[derive(Clone, Copy, Debug)]
struct Quiet {
    since: Instant,
    suppressed: u64,
}

/// Shortest time between two lines of one key.
pub const QUIET_TIME: Duration = Duration::from_secs(60);

impl<K: Eq + Hash + Clone> Limiter<K> {
    /// A limiter that knows this many keys.
    pub fn new(capacity: usize) -> Limiter<K> {
        Limiter { capacity, state: Mutex::new(LimiterState { keys: HashMap::new(), others: None }) }
    }

    /// Something happened: `Some` means log it, with the number of times that were not logged since the last line.
    pub fn admit(&self, key: &K) -> Option<u64> {
        let now = Instant::now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if let Some(quiet) = state.keys.get_mut(key) {
            return quiet.admit(now);
        }
        if state.keys.len() >= self.capacity {
            state.keys.retain(|_, quiet| quiet.suppressed > 0 || now.duration_since(quiet.since) < QUIET_TIME);
        }
        let fresh = Quiet { since: now, suppressed: 0 };
        if state.keys.len() < self.capacity {
            state.keys.insert(key.clone(), fresh);
            return Some(0);
        }
        match &mut state.others {
            Some(quiet) => quiet.admit(now),
            None => {
                state.others = Some(fresh);
                Some(0)
            }
        }
    }

    /// The keys that went quiet with something still to report, and how often each happened since its last line; to be
    /// asked about once a minute. Keys with nothing to report are forgotten.
    pub fn overdue(&self) -> Vec<(K, u64)> {
        let now = Instant::now();
        let mut overdue = Vec::new();
        self.state.lock().keys.retain(|key, quiet| {
            let is_over = now.duration_since(quiet.since) >= QUIET_TIME;
            if is_over && quiet.suppressed > 0 {
                overdue.push((key.clone(), quiet.suppressed));
                *quiet = Quiet { since: now, suppressed: 0 };
                return true;
            }
            !is_over
        });
        overdue
    }
}

impl Quiet {
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) < QUIET_TIME {
            self.suppressed += 1;
            return None;
        }
        let suppressed = self.suppressed;
        *self = Quiet { since: now, suppressed: 0 };
        Some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_named() {
        let directives = |level: &str| filter(level).unwrap().to_string();
        assert!(directives("info").contains("rumqttd=off"));
        assert!(directives("trace,pigateway::broker=debug").contains("rumqttd=off"));
        let named = directives("info,rumqttd=debug");
        assert!(named.contains("rumqttd=debug") && !named.contains("rumqttd=off"), "{named}");
        assert!(filter("a=b=c").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_logged_and_then_a_count_a_minute() {
        let limiter = Limiter::new(10);
        assert_eq!(limiter.admit(&"a"), Some(0));
        assert_eq!(limiter.admit(&"b"), Some(0));
        for _ in 0..59 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(limiter.admit(&"a"), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limiter.admit(&"a"), Some(59));
        assert_eq!(limiter.admit(&"b"), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_stops_is_still_counted() {
        let limiter = Limiter::new(10);
        assert_eq!([limiter.admit(&"a"), limiter.admit(&"a"), limiter.admit(&"b")], [Some(0), None, Some(0)]);
        assert_eq!(limiter.overdue(), []);
        tokio::time::advance(QUIET_TIME).await;
        assert_eq!(limiter.overdue(), [("a", 1)]);
        assert_eq!(limiter.state.lock().keys.len(), 1, "b is forgotten");
        tokio::time::advance(QUIET_TIME).await;
        assert_eq!(limiter.overdue(), []);
        assert!(limiter.state.lock().keys.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn more_keys_than_it_knows_share_one() {
        let limiter = Limiter::new(100);
        let logged = (0..100_000).filter(|key| limiter.admit(key).is_some()).count();
        assert_eq!(logged, 101);
        assert_eq!(limiter.state.lock().keys.len(), 100);
        tokio::time::advance(QUIET_TIME).await;
        assert_eq!(limiter.admit(&200_000), Some(0), "quiet keys make room");
    }
}
