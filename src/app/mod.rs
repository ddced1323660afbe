//! The composition root: the only file that knows every room.
//!
//! [`run`] follows the life of the gateway: it opens everything, reports readiness once all rooms respond, waits for a
//! signal or for the first part that fails, and shuts down in order: sensors and ports first, then clients and upstreams,
//! the router last.

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

use self::data_dir::DataDir;
use self::exit_code::ExitCode;
use self::former::FormerUsers;
use self::pulse::{Feeding, ROUTER, Rooms};
use self::reload::Reloadable;
use self::users::{Users, UsersChanged};
use crate::access::familiar::Familiar;
use crate::access::replaced::Replaced;
use crate::broker::core::Core;
use crate::broker::listener::Listener;
use crate::broker::{Broker, sys};
use crate::config::Settings;
use crate::exchange::ingress::Receipt;
use crate::exchange::live::{Dispatcher, RouterError};
use crate::health::{Health, LoggedProblems, Pulse};
use crate::http;
use crate::journal::settings::JournalSettings;
use crate::journal::storage::file::FileStorage;
use crate::journal::{Journal, JournalError};
use crate::mqtt::Reason;
use crate::net::ListenError;
use crate::net::port::Port;
use crate::sensors::edge::EdgeSource;
use crate::sensors::{self, ChosenSource};
use crate::service::logging::{Logging, LoggingError};
use crate::service::notify;
pub(crate) use crate::service::signals::early_hangup;
use crate::service::signals::{Signal, Signals};
use crate::status::{ClientsShown, GatewayStatus, SensorSnapshot, SensorState};
use crate::supervise::{Exit, Supervisor};
use crate::time::{SharedClock, SystemClock, beat};
use crate::workers::Workers;

/// The longest time for an orderly shutdown.
const SHUTDOWN: Duration = Duration::from_secs(4);
/// The longest time for telling clients that the gateway stops after a failure.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that headers and consumers can add to a message in the journal.
const RECORD_OVERHEAD: usize = 16 << 10;
/// The longest time that readiness waits for the pins.
const SENSORS: Duration = Duration::from_millis(500);

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
    async fn start(
        mut settings: Settings,
        config_path: Option<&Path>,
        logging: Logging,
        problems: LoggedProblems,
    ) -> Result<RunningGateway, AppError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let path = settings.gateway.data_dir.clone();
        let is_new = !path.join("journal").exists();
        let data_dir = DataDir::open(&path)?;
        identity::choose(&path, is_new);
        identity::apply(&mut settings, &path);
        let supervisor = Supervisor::default();
        let doors = CancellationToken::new();
        let health = Health::default();
        let users = Users::open(&mut settings, health.clone());
        let journal = open_journal(&settings, data_dir.largest_journal, clock.clone())?;
        journal.report_to(health.clone());
        if journal.knows_clock_was_set() {
            SystemClock::was_set();
        }
        supervisor
            .spawn_endless("clock", clock::watch(clock.clone(), journal.clone(), health.clone(), supervisor.token()));
        supervisor.spawn("journal", watch_journal(journal.clone(), supervisor.token()));

        let reloads = watch::Sender::new(0);
        let (broker, web_port, websockets) =
            open_ports(&settings, journal, clock.clone(), doors.clone(), (&health, &reloads))?;
        let Broker { core, dispatcher, listeners, connections } = broker;
        let mut rooms = Rooms::new(core.ingress.room().clone(), core.ingress.journal().clone());
        let router_pulse = rooms.watch(ROUTER);
        let (rules, upstreams, waiting) = upstreams::open(&settings, &core, &clock, &health, &mut rooms);
        let source = ChosenSource::open(&settings.gpio, clock.clone(), seed())?;
        let made_up: Vec<_> = settings.sensors.iter().filter(|sensor| source.simulates(sensor)).cloned().collect();

        start_router(dispatcher, &core, &supervisor, router_pulse).await;
        let (dir, users_now) = (&settings.gateway.data_dir, &settings.broker.access);
        let file = kept::open::<Familiar>(dir, &core.access, users_now, users.are_all_known()).await;
        let former = FormerUsers::open(&settings, &core, health.clone()).await;
        let keeping = kept::keep::<Familiar>(file, core.access.clone(), supervisor.token());
        supervisor.spawn_endless("addresses of users", keeping);
        let file = kept::open::<Replaced>(dir, &core.access, users_now, users.are_all_known()).await;
        let keeping = kept::keep::<Replaced>(file, core.access.clone(), supervisor.token());
        supervisor.spawn_endless("password hashes", keeping);

        let (sensor_settings, sensor_changes) = watch::channel(settings.sensors.clone().into());
        let (snapshots, sensor_snapshots) = watch::channel(Vec::new());
        let (gone, sensors_gone) = watch::channel(());
        let (mdns, announced, mdns_settings) = mdns::prepare(&settings, &listeners, web_port.as_ref(), &health);
        let status = GatewayStatus {
            gateway_id: settings.gateway.id.as_str().into(),
            sensors: sensor_snapshots,
            upstreams,
            clients: clients_shown(&core),
            problems,
            health: health.clone(),
            lost_at_power_cut: data_dir.lost_at_power_cut.clone(),
            announced,
            listeners: listeners.iter().chain(&websockets).map(|listener| listener.port.name().to_owned()).collect(),
        };
        let changes = sensor_settings.subscribe();
        let announcing =
            home_assistant::start(&settings, web_port.as_ref(), changes, &status, &core, (&supervisor, &doors, &gone))
                .await;
        // upstreams start after the messages for Home Assistant are retained again, because otherwise they would take these
        // for deleted and delete them at the remote broker
        waiting.start(&core, &clock, &supervisor);
        let pulse = rooms.watch("sensors");
        let sensors = sensors::run(
            sensor_changes,
            source,
            core.ingress.clone(),
            clock.clone(),
            (snapshots, health),
            pulse,
            doors.clone(),
        );
        supervisor.spawn("sensors", async move {
            let result = sensors.await;
            drop(gone);
            result
        });
        let (tell, told) = mpsc::channel(1);
        let (desk, serving) = users.serve(tell, doors.clone());
        supervisor.spawn_endless("users", serving);
        let shown: Vec<&Listener> = listeners.iter().chain(&websockets).collect();
        summary::say(&settings, config_path, &shown, web_port.as_ref(), &|sensor| made_up.contains(sensor));
        // the web port opens last, so that its first client finds everything in place
        if let Some(port) = web_port {
            web::start(port, &settings, (status.clone(), desk), &core, &connections, &supervisor, &mut rooms);
        }
        for listener in websockets {
            web::start_listener(listener, &settings, &core, &connections, &supervisor, &mut rooms);
        }
        for listener in listeners {
            let name = listener.port.task_name("listener");
            supervisor.spawn_endless(name, listener.run(core.clone(), connections.clone()));
        }
        // started last, so that a port is open when it is announced
        supervisor.spawn_endless("mDNS", mdns.run(doors.clone()));
        sensors_have_answered(&settings, status.sensors.clone()).await;
        home_assistant::go_on(announcing);
        let faults = status.health.changes();
        let changes =
            reload::Changes { sensors: sensor_settings, upstreams: rules, mdns: mdns_settings, ports: reloads, users };
        let reloadable = Reloadable::new(settings, config_path, logging, core.clone(), changes, status, former);
        Ok(RunningGateway {
            supervisor,
            core,
            connections,
            reloadable,
            doors,
            sensors_gone,
            rooms,
            health: faults,
            users: told,
            _data_dir: data_dir,
        })
    }

    async fn serve(mut self, mut signals: Signals) -> Result<(), AppError> {
        let mut feeding = Feeding::new(notify::watchdog_interval());
        let mut said = self.reloadable.status_line();
        let mut is_ready = false;
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Hangup => self.reloadable.reload().await,
                    Signal::Interrupt | Signal::Terminate => break,
                },
                Some(UsersChanged { removed, acts }) = self.users.recv() => {
                    self.reloadable.apply_users(removed.as_deref()).await;
                    // the requester may have gone
                    let _ = acts.send(());
                }
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
                () = self.reloadable.names_again() => self.reloadable.try_names_again().await,
                // the sender is in the status that this struct holds, so it cannot end
                _ = self.health.changed() => self.say_status(&mut said),
            }
        }
        self.stop().await;
        Ok(())
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

    async fn stop(mut self) {
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

/// A view of the connected MQTT clients for other rooms.
fn clients_shown(core: &Arc<Core>) -> ClientsShown {
    let (list, count) = (core.clone(), core.clone());
    ClientsShown::new(move |most| list.clients(most), move || count.client_counts())
}

/// Waits until every pin is watched or known to be faulty, but only for a moment, because a sensor must not delay the start.
async fn sensors_have_answered(settings: &Settings, mut sensors: watch::Receiver<Vec<SensorSnapshot>>) {
    let answered = |sensors: &Vec<SensorSnapshot>| {
        sensors.len() == settings.sensors.len()
            && sensors.iter().all(|sensor| sensor.fault.is_some() || sensor.state != SensorState::Offline)
    };
    let _ = timeout(SENSORS, sensors.wait_for(answered)).await;
}

/// Starts the router with the tasks that belong to it. `pulse` shows that the router works.
async fn start_router(dispatcher: Dispatcher, core: &Arc<Core>, supervisor: &Supervisor, pulse: Pulse) {
    let probe = core.ingress.clone();
    supervisor.spawn("router", dispatcher.run(supervisor.token(), move || probe.probe(), pulse));
    supervisor.spawn_endless("traces", core.ingress.clone().watch_traces(supervisor.token()));
    supervisor.spawn_endless("retained messages", core.ingress.clone().expire_retained(supervisor.token()));
    core.publish_orphaned_wills().await;
    supervisor.spawn_endless("sessions", core.clone().sweep());
    supervisor.spawn_endless("shared subscriptions", core.clone().share());
    let figures = sys::Figures::start(core.clone()).await;
    supervisor.spawn_endless("$SYS", figures.run());
}

/// Nothing else can be done before the journal is open, so it is read on the thread that starts the gateway.
fn open_journal(settings: &Settings, largest: u64, clock: SharedClock) -> Result<Journal, AppError> {
    let largest_message = settings.broker.max_packet_size + RECORD_OVERHEAD;
    let max_size = settings.journal.max_size.min(largest);
    let journal = JournalSettings { largest_message, max_size, ..settings.journal.clone() };
    let storage = Arc::new(FileStorage::new(&settings.gateway.data_dir.join("journal")));
    Ok(Journal::open(storage, journal, clock)?)
}

/// Returns when the gateway shuts down. An earlier return means that one of the journal's threads has ended, which is a
/// fault.
async fn watch_journal(journal: Journal, cancel: CancellationToken) -> Result<(), &'static str> {
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = journal.ended() => Err("a thread of the journal has ended"),
    }
}

/// Opens the broker with its ports, and the port for HTTP, as far as that is possible now; the others are tried again. It
/// fails only where there is nothing to serve and nothing to wait for: other programs have all of them.
fn open_ports(
    settings: &Settings,
    journal: Journal,
    clock: SharedClock,
    cancel: CancellationToken,
    (health, reloads): (&Health, &watch::Sender<u64>),
) -> Result<(Broker, Option<Port>, Vec<Listener>), AppError> {
    let open = |settings| Port::open(settings, health.clone(), reloads.subscribe());
    let mut broker = Broker::open_with(settings.broker.clone(), journal, clock, cancel, (health, reloads))?;
    let websockets = settings.broker.listeners.iter().filter(|listener| listener.websocket).cloned();
    let mut websockets: Vec<Listener> =
        websockets.map(|settings| Listener { port: open(settings.port()), settings }).collect();
    let web = http::server::port(&settings.http).map(open);
    let ports = broker.listeners.iter().chain(&websockets).map(|listener| &listener.port);
    if ports.chain(&web).all(Port::is_hopeless) {
        let mut listeners = broker.listeners.drain(..).chain(websockets.drain(..));
        if let Some(error) = listeners.find_map(|listener| listener.port.into_error()) {
            return Err(AppError::Listen(error));
        }
    }
    Ok((broker, web, websockets))
}

/// A seed that differs at every start, for simulated motion.
fn seed() -> u64 {
    let mut seed = [0; 8];
    match getrandom::fill(&mut seed) {
        Ok(()) => u64::from_le_bytes(seed),
        Err(_) => 0,
    }
}
