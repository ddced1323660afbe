//! The composition root: the only room that knows every other.
//!
//! [`run`] follows the life of the gateway: it opens everything, reports readiness once all rooms respond, waits for a
//! signal or for the first part that fails, and shuts down in order: sensors and ports first, then clients and upstreams,
//! the router last.

mod attention;
mod clock;
pub(crate) mod data_dir;
pub mod exit_code;
pub(crate) mod file_system;
mod former;
mod home_assistant;
mod identity;
mod kept;
mod mdns;
mod orphans;
mod pulse;
mod reload;
mod sensors;
mod start;
mod summary;
#[cfg(test)]
mod tests;
mod upstreams;
mod users;
mod web;

pub(crate) use self::orphans::discard;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::attention::{Attention, Ending};
use self::data_dir::DataDir;
use self::exit_code::ExitCode;
use self::pulse::{Feeding, Rooms};
use self::reload::{Reloadable, Work};
use self::users::UsersChanged;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::exchange::ingress::Receipt;
use crate::exchange::live::RouterError;
use crate::health::LoggedProblems;
use crate::journal::JournalError;
use crate::mqtt::Reason;
use crate::net::ListenError;
use crate::service::logging::{Logging, LoggingError};
use crate::service::notify;
pub(crate) use crate::service::signals::early_hangup;
use crate::service::signals::{Signal, Signals};
use crate::supervise::{Exit, Supervisor};
use crate::time::beat;
use crate::workers::Workers;

/// The longest time for an orderly shutdown.
const SHUTDOWN: Duration = Duration::from_secs(4);
/// The longest time for telling clients that the gateway stops after a failure.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why the gateway did not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// No port can be opened, and another attempt would not help.
    #[error(transparent)]
    Listen(ListenError),
    /// The broker cannot start its router.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// The data directory cannot be created or written, or another gateway uses it.
    #[error("cannot use {} as data directory: {}", path.display(), data_dir::reason(path, source))]
    DataDir {
        /// The path of the directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The journal is of another version, or its threads cannot be started.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A task or thread ended while the gateway should run.
    #[error(transparent)]
    Ended(#[from] Exit),
    /// The log cannot be started.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The system refuses threads, timers or signals.
    #[error("the system refuses what every program needs: {0}")]
    System(#[from] io::Error),
}

impl AppError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            AppError::Listen(_) => ExitCode::UNAVAILABLE,
            AppError::DataDir { .. } | AppError::Journal(_) => ExitCode::CANNOT_CREATE,
            AppError::Ended(_) | AppError::Router(_) => ExitCode::SOFTWARE,
            AppError::Logging(_) | AppError::System(_) => ExitCode::OS_ERROR,
        }
    }
}

/// Runs the gateway until it is told to stop. On SIGHUP, which `hangup` has received since the program began, it reads
/// `config_path` again.
pub(crate) fn run(settings: Settings, config_path: Option<&Path>, hangup: unix::Signal) -> Result<(), AppError> {
    let problems = LoggedProblems::default();
    let logging = Logging::init(&settings.log.level, problems.clone())?;
    set_limits();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let begin = Instant::now();
    // more than a few workers do not help, because all messages go through one sequencer
    let workers = Workers::start(cores.min(4))?;
    beat::begin(begin);
    workers.block_on(async {
        let signals = Signals::new(hangup)?;
        let gateway = RunningGateway::start(settings, config_path, logging, problems).await?;
        gateway.serve(signals).await
    })
}

/// Raises the limit of open files, because every client needs one and the usual soft limit of 1024 is too low. Also forbids
/// core dumps, because they would contain passwords, keys and messages. A program to which the kernel pipes core dumps gets
/// one despite a limit of 0, but not with a limit of 1 (core(5)), and with that limit no file is written either, because a
/// core file takes at least a page.
fn set_limits() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // if the limit cannot be raised, accept() reports when it is reached
    let _ = setrlimit(Resource::Nofile, limit);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) });
}

struct RunningGateway {
    supervisor: Supervisor,
    core: Arc<Core>,
    connections: tokio_util::task::TaskTracker,
    reloadable: Reloadable,
    /// Cancelled to stop sensors and close ports.
    doors: CancellationToken,
    /// Closed once the sensors have published that they are offline.
    sensors_gone: watch::Receiver<()>,
    rooms: Rooms,
    /// Changes with every problem, for systemd's status line.
    health: watch::Receiver<u64>,
    /// Gets a message when the users that were added by HTTP have changed.
    users: mpsc::Receiver<UsersChanged>,
    /// Keeps the data directory locked.
    _data_dir: DataDir,
}

impl RunningGateway {
    async fn serve(mut self, mut signals: Signals) -> Result<(), AppError> {
        let mut feeding = Feeding::new(notify::watchdog_interval());
        let mut said = self.reloadable.status_line();
        let mut is_ready = false;
        loop {
            let mut work = None;
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Hangup => work = Some(Work::Reload),
                    Signal::Interrupt | Signal::Terminate => break,
                },
                Some(changed) = self.users.recv() => work = Some(Work::Users(changed)),
                exit = self.supervisor.first_exit() => return self.fail(exit).await,
                () = self.rooms.have_answered(), if !is_ready => {
                    is_ready = true;
                    notify::ready(&said);
                }
                () = feeding.due() => {
                    if feeding.look(&mut self.rooms) {
                        notify::watchdog();
                    }
                    self.say_status(&mut said);
                }
                () = self.reloadable.names_again() => work = Some(Work::Names),
                // the sender is in the status that this struct holds, so it cannot end
                _ = self.health.changed() => self.say_status(&mut said),
            }
            while let Some(next) = work.take() {
                let (supervisor, rooms) = (&self.supervisor, &mut self.rooms);
                let mut attention = Attention { supervisor, rooms, signals: &mut signals, feeding: &mut feeding };
                match attention.during(self.reloadable.perform(next)).await {
                    Ok(is_hangup) => work = is_hangup.then_some(Work::Reload),
                    Err(Ending::Told) => return self.stop().await,
                    Err(Ending::Failed(exit)) => return self.fail(exit).await,
                }
            }
        }
        self.stop().await
    }

    /// Updates systemd's status line if the text has changed.
    fn say_status(&self, said: &mut String) {
        let line = self.reloadable.status_line();
        if line != *said {
            notify::status(&line);
            *said = line;
        }
    }

    /// Logs that an essential part has ended, and stops the gateway so that systemd starts it again.
    async fn fail(mut self, exit: Exit) -> Result<(), AppError> {
        self.doors.cancel();
        let apply = async |removed: Option<&str>| self.reloadable.apply_users(removed).await;
        users::apply_last(&mut self.users, FAREWELL, apply).await;
        self.part_with_clients(FAREWELL).await;
        self.close_journal().await;
        error!(task = &*exit.name, "{exit}: the gateway ends");
        Err(exit.into())
    }

    async fn stop(mut self) -> Result<(), AppError> {
        info!("stopping");
        notify::stopping();
        let begin = Instant::now();
        self.doors.cancel();
        let apply = async |removed: Option<&str>| self.reloadable.apply_users(removed).await;
        let applied = users::apply_last(&mut self.users, SHUTDOWN / 4, apply);
        // sensors publish "offline" before any client is disconnected
        let _ = tokio::join!(applied, timeout(SHUTDOWN / 4, self.sensors_gone.changed()));
        let _ = timeout(SHUTDOWN / 4, self.reloadable.finish_names()).await;
        // upstreams and persistent sessions get only messages that are on disk
        let ingress = &self.core.ingress;
        let said = Receipt { durable: Some(ingress.journal().barrier()) };
        let _ = timeout(SHUTDOWN / 4, ingress.settled(said)).await;
        self.part_with_clients(SHUTDOWN / 4).await;
        let left = (SHUTDOWN - SHUTDOWN / 4).saturating_sub(begin.elapsed());
        let shutdown = self.supervisor.shutdown(left).await;
        for late in &shutdown.still_running {
            warn!(task = &**late, "did not stop in time");
        }
        for failed in &shutdown.failed {
            warn!(task = &*failed.name, "failed while stopping: {failed}");
        }
        self.close_journal().await;
        info!("stopped");
        Ok(())
    }

    /// Writes cursors and other data that nobody has waited for.
    async fn close_journal(&self) {
        let journal = self.core.ingress.journal().clone();
        let closing = tokio::task::spawn_blocking(move || journal.close());
        if timeout(SHUTDOWN / 4, closing).await.is_err() {
            error!("the disk does not take the last messages in time; none of them was acknowledged");
        }
    }

    async fn part_with_clients(&self, within: Duration) {
        self.core.registry.kick_all(Reason::SERVER_SHUTTING_DOWN);
        self.connections.close();
        // connections that have not ended by then are aborted
        let _ = timeout(within, self.connections.wait()).await;
    }
}
