//! `pigateway doctor`: finds what would keep a gateway from working on this machine, and what to do about it.
//!
//! It changes nothing, runs on a laptop as on a Pi, and can run beside a gateway.

mod disk;
mod mdns;
mod pins;
mod ports;
mod system;
mod upstreams;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CliError, print};
use crate::config::{self, Settings};

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Configuration file; without one, the defaults are examined
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FindingLevel {
    Good,
    /// It works, but a person should know about it.
    Warning,
    Problem,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DoctorFinding {
    level: FindingLevel,
    what: String,
    /// What a person should do about it; empty if there is nothing to do.
    remedy: String,
}

impl DoctorFinding {
    fn good(what: impl Into<String>) -> DoctorFinding {
        DoctorFinding { level: FindingLevel::Good, what: what.into(), remedy: String::new() }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> DoctorFinding {
        DoctorFinding { level: FindingLevel::Warning, what: what.into(), remedy: remedy.into() }
    }

    fn problem(what: impl Into<String>, remedy: impl Into<String>) -> DoctorFinding {
        DoctorFinding { level: FindingLevel::Problem, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for DoctorFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            FindingLevel::Good => "ok     ",
            FindingLevel::Warning => "warning",
            FindingLevel::Problem => "PROBLEM",
        };
        write!(f, "{mark} {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n        -> {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The root directory of the system's files: `/`, or a directory that a test has prepared.
#[derive(Clone, Debug)]
struct System(PathBuf);

impl System {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The text of a system file, without surrounding white space.
    fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned())
    }

    fn model(&self) -> Option<String> {
        self.text("/proc/device-tree/model").filter(|model| model.contains("Raspberry Pi"))
    }
}

/// Runs all checks and prints their findings.
pub(super) fn doctor(args: &DoctorArgs) -> Result<(), CliError> {
    let system = System("/".into());
    let mut findings = system::versions(&system);
    let settings = configuration(args.config.as_deref(), &mut findings);
    findings.push(system::clock());
    findings.extend(system::power(&system));
    findings.extend(system::memory(&system));
    findings.extend(disk::data_dir(&settings, &system));
    findings.extend(ports::all(&settings, &system));
    findings.extend(mdns::all(&settings, &system));
    findings.extend(pins::all(&settings, &system));
    findings.extend(upstreams::all(&settings));
    let mut text = String::new();
    for finding in &findings {
        text.push_str(&format!("{finding}\n"));
    }
    let count = |level: FindingLevel| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (count(FindingLevel::Problem), count(FindingLevel::Warning));
    text.push_str(&format!("{problems} problems, {warnings} warnings\n"));
    print(text.as_bytes())?;
    if problems > 0 { Err(CliError::Unwell(problems)) } else { Ok(()) }
}

/// Loads the settings to examine, and adds the findings about the file.
fn configuration(path: Option<&Path>, findings: &mut Vec<DoctorFinding>) -> Settings {
    let defaults = || Settings::defaults(&config::Environment::current());
    let Some(path) = path else {
        findings.push(DoctorFinding::good("no configuration given: the defaults are looked at (--config FILE)"));
        return defaults();
    };
    let shown = path.display();
    match config::load(path) {
        Err(problems) => {
            for problem in &problems.problems {
                findings.push(DoctorFinding::problem(problem.to_string(), "correct the configuration"));
            }
            defaults()
        }
        Ok(loaded) => {
            findings.push(DoctorFinding::good(format!("configuration {shown}: valid")));
            for warning in &loaded.warnings {
                findings.push(DoctorFinding::warning(warning.to_string(), "see docs/configuration.md"));
            }
            for file in &loaded.files {
                let what = if file.is_missing { "what needs it waits until it is there" } else { "replace the file" };
                findings.push(DoctorFinding::problem(file.problem.to_string(), what));
            }
            loaded.settings
        }
    }
}

#[cfg(test)]
mod tests;
