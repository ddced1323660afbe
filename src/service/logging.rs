//! The log: to journald with its fields if systemd runs the gateway, otherwise one line for each event to stderr.
//!
//! Fields keep their names in the journal: `sensor = "loft-motion"` in `tracing` is found by `journalctl
//! SENSOR=loft-motion`.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::bounds::BoundedTexts;
use super::lines::LogLines;
use super::problems::ProblemsLayer;
use crate::health::LoggedProblems;
use crate::time::zone;

/// Libraries that log nothing, or only warnings, unless the filter names them. The spans of rumqttd's router would cost much
/// of its throughput.
const QUIET: [(&str, &str); 2] = [("rumqttd", "off"), ("rustls", "warn")];

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is not valid.
    #[error("not a log filter: {0}")]
    Filter(#[from] ParseError),
    /// The process has a log already.
    #[error(transparent)]
    Init(#[from] TryInitError),
    /// The log has ended.
    #[error(transparent)]
    Reload(#[from] reload::Error),
}

/// The log of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

impl Logging {
    /// Starts the log with this filter, which also records panics. Warnings and errors are copied to `problems`.
    pub(crate) fn init(level: &str, problems: LoggedProblems) -> Result<Logging, LoggingError> {
        let (filter, handle) = reload::Layer::new(filter(level)?);
        let journal = stderr_is_journal().then(journal_layer).and_then(Result::ok);
        let stderr = journal.is_none().then(|| {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            tracing_subscriber::fmt::layer()
                .compact()
                .with_timer(LocalTime)
                .with_ansi(colour)
                .with_writer(LogLines::stderr())
        });
        let outputs = BoundedTexts(ProblemsLayer(problems).and_then(journal).and_then(stderr));
        tracing_subscriber::registry().with(filter).with(outputs).try_init()?;
        log_panics();
        Ok(Logging { filter: handle })
    }

    /// A log that writes nothing.
    #[cfg(test)]
    pub(crate) fn silent() -> Logging {
        Logging { filter: reload::Layer::new(EnvFilter::new("off")).1 }
    }

    pub(crate) fn set_level(&self, level: &str) -> Result<(), LoggingError> {
        Ok(self.filter.reload(filter(level)?)?)
    }
}

/// The filter of the configuration, with those libraries quiet that it does not name.
fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    let quiet = QUIET.iter().filter(|(library, _)| !level.contains(library));
    let directives: Vec<String> = quiet.map(|(library, level)| format!("{library}={level}")).collect();
    EnvFilter::builder().parse(format!("{level},{}", directives.join(",")))
}

/// Whether stderr goes to journald. systemd tells the device and inode of its stream (systemd.exec(5)), but stderr may have
/// been redirected since.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn journal_layer() -> io::Result<tracing_journald::Layer> {
    // syslog has one level less, so TRACE and DEBUG share one, and INFO becomes "informational"
    let priorities = PriorityMappings {
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
        ..PriorityMappings::new()
    };
    let layer = tracing_journald::layer()?.with_field_prefix(None).with_priority_mappings(priorities);
    Ok(layer.with_syslog_identifier("pigateway".into()))
}

/// The local date and time, for people.
struct LocalTime;

impl FormatTime for LocalTime {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{}", jiff::Timestamp::now().to_zoned(zone::local()).strftime("%F %T%.3f"))
    }
}

fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        // "panicked at FILE:LINE:COLUMN:" and the message are on two lines
        let what = panic.to_string().replace('\n', " ");
        tracing::error!(thread = thread.name().unwrap_or_default(), "{what}");
    }));
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
}
