//! The start of the gateway: what it stands on, its rooms, and its doors last, in the order in which one
//! needs another.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::data_dir::DataDir;
use super::pulse::{ROUTER, Rooms};
use super::reload::{self, Reloadable};
use super::sensors::WaitingSensors;
use super::users::Users;
use super::{AppError, RunningGateway, clock, home_assistant, identity, kept, mdns, summary, upstreams, web};
use crate::access::made::UserDesk;
use crate::broker::core::Core;
use crate::broker::listener::Listener;
use crate::broker::{Broker, sys};
use crate::config::Settings;
use crate::exchange::live::Dispatcher;
use crate::health::{Health, LoggedProblems, Pulse};
use crate::http;
use crate::journal::Journal;
use crate::journal::settings::JournalSettings;
use crate::journal::storage::file::FileStorage;
use crate::net::port::Port;
use crate::service::logging::Logging;
use crate::status::{Announced, ClientsShown, GatewayStatus, SensorSnapshot, UpstreamShown};
use crate::supervise::Supervisor;
use crate::time::{SharedClock, SystemClock};

/// Bytes that headers and consumers can add to a message in the journal.
const RECORD_OVERHEAD: usize = 16 << 10;

/// The sensors, the upstreams, the clients and the announcements, each in a form for others.
type RoomsShown = (watch::Receiver<Vec<SensorSnapshot>>, Vec<UpstreamShown>, ClientsShown, watch::Receiver<Announced>);

/// What every room stands on. Nobody reaches the gateway yet.
struct Ground {
    clock: SharedClock,
    data_dir: DataDir,
    supervisor: Supervisor,
    doors: CancellationToken,
    health: Health,
    users: Arc<Users>,
    journal: Journal,
}

impl Ground {
    /// Opens the data directory with the identity, the users and the journal that are in it.
    fn lay(settings: &mut Settings) -> Result<Ground, AppError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let path = settings.gateway.data_dir.clone();
        let is_new = !path.join("journal").exists();
        let data_dir = DataDir::open(&path)?;
        identity::choose(&path, is_new);
        identity::apply(settings, &path);
        let (supervisor, health) = (Supervisor::default(), Health::default());
        let users = Users::open(settings, health.clone());
        let journal = open_journal(settings, data_dir.largest_journal, clock.clone())?;
        journal.report_to(health.clone());
        if journal.knows_clock_was_set() {
            SystemClock::was_set();
        }
        supervisor
            .spawn_endless("clock", clock::watch(clock.clone(), journal.clone(), health.clone(), supervisor.token()));
        supervisor.spawn("journal", watch_journal(journal.clone(), supervisor.token()));
        Ok(Ground { clock, data_dir, supervisor, doors: CancellationToken::new(), health, users, journal })
    }
}

impl RunningGateway {
    pub(super) async fn start(
        mut settings: Settings,
        config_path: Option<&Path>,
        logging: Logging,
        problems: LoggedProblems,
    ) -> Result<RunningGateway, AppError> {
        let Ground { clock, data_dir, supervisor, doors, health, users, journal } = Ground::lay(&mut settings)?;
        let reloads = watch::Sender::new(0);
        let (broker, ports) = OpenPorts::open(&settings, journal, clock.clone(), doors.clone(), (&health, &reloads))?;
        let Broker { core, dispatcher, connections, .. } = broker;
        let mut rooms = Rooms::new(core.ingress.room().clone(), core.ingress.journal().clone());
        let router_pulse = rooms.watch(ROUTER);
        let (rules, upstreams, waiting) = upstreams::open(&settings, &core, &clock, &health, &mut rooms);
        let sensors = WaitingSensors::open(&settings, &clock)?;

        start_router(dispatcher, &core, &supervisor, router_pulse).await;
        let former = kept::start(&settings, &core, users.are_all_known(), &health, &supervisor).await;
        let (mdns, announced, mdns_settings) = mdns::prepare(&settings, &ports.listeners, ports.web.as_ref(), &health);
        let of_rooms = (sensors.shown(), upstreams, clients_shown(&core), announced);
        let status = status(&settings, of_rooms, &ports, (problems, health.clone()), &data_dir);
        let (web, changes, sides) = (ports.web.as_ref(), sensors.changes(), (&supervisor, &doors, &sensors.gone));
        let announcing = home_assistant::start(&settings, web, changes, &status, &core, sides).await;
        // upstreams start after the messages for Home Assistant are retained again, because otherwise they
        // would take these for deleted and delete them at the remote broker
        waiting.start(&core, &clock, &supervisor);
        let started = sensors.start(&core, &clock, health, &doors, &supervisor, &mut rooms);
        let (tell, told) = mpsc::channel(1);
        let (desk, serving) = users.serve(tell, doors.clone());
        supervisor.spawn_endless("users", serving);
        let shown: Vec<&Listener> = ports.mqtt().collect();
        summary::say(&settings, config_path, &shown, web, &|sensor| started.made_up.contains(sensor));
        ports.serve(&settings, (status.clone(), desk), &core, &connections, &supervisor, &mut rooms);
        // started last, so that a port is open when it is announced
        supervisor.spawn_endless("mDNS", mdns.run(doors.clone()));
        super::sensors::have_answered(&settings, status.sensors.clone()).await;
        home_assistant::go_on(announcing);
        let health = status.health.changes();
        let changes =
            reload::Changes { sensors: started.settings, upstreams: rules, mdns: mdns_settings, ports: reloads, users };
        let reloadable = Reloadable::new(settings, config_path, logging, core.clone(), changes, status, former);
        Ok(RunningGateway {
            supervisor,
            core,
            connections,
            reloadable,
            doors,
            sensors_gone: started.gone,
            rooms,
            health,
            users: told,
            _data_dir: data_dir,
        })
    }
}

/// What all rooms say of themselves.
fn status(
    settings: &Settings,
    (sensors, upstreams, clients, announced): RoomsShown,
    ports: &OpenPorts,
    (problems, health): (LoggedProblems, Health),
    data_dir: &DataDir,
) -> GatewayStatus {
    GatewayStatus {
        gateway_id: settings.gateway.id.as_str().into(),
        sensors,
        upstreams,
        clients,
        problems,
        health,
        lost_at_power_cut: data_dir.lost_at_power_cut.clone(),
        announced,
        listeners: ports.mqtt().map(|listener| listener.port.name().to_owned()).collect(),
    }
}

/// A view of the connected MQTT clients for other rooms.
fn clients_shown(core: &Arc<Core>) -> ClientsShown {
    let (list, count) = (core.clone(), core.clone());
    ClientsShown::new(move |most| list.clients(most), move || count.client_counts())
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
    supervisor.spawn_endless("messages for many groups", core.ingress.clone().spread(supervisor.token()));
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

/// Returns when the gateway shuts down. An earlier return means that one of the journal's threads has ended,
/// which is a fault.
async fn watch_journal(journal: Journal, cancel: CancellationToken) -> Result<(), &'static str> {
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        () = journal.ended() => Err("a thread of the journal has ended"),
    }
}

/// The ports, which are open, and at which nobody is served yet.
struct OpenPorts {
    web: Option<Port>,
    listeners: Vec<Listener>,
    /// Listeners for MQTT over WebSocket and nothing else.
    websockets: Vec<Listener>,
}

impl OpenPorts {
    /// Opens the broker with its ports, and the port for HTTP, as far as that is possible now; the others are
    /// tried again. It fails only where there is nothing to serve and nothing to wait for: other programs
    /// have all of them.
    fn open(
        settings: &Settings,
        journal: Journal,
        clock: SharedClock,
        cancel: CancellationToken,
        (health, reloads): (&Health, &watch::Sender<u64>),
    ) -> Result<(Broker, OpenPorts), AppError> {
        let open = |settings| Port::open(settings, health.clone(), reloads.subscribe());
        let mut broker = Broker::open_with(settings.broker.clone(), journal, clock, cancel, (health, reloads))?;
        let listeners = std::mem::take(&mut broker.listeners);
        let websockets = settings.broker.listeners.iter().filter(|listener| listener.websocket).cloned();
        let websockets = websockets.map(|settings| Listener { port: open(settings.port()), settings }).collect();
        let web = http::server::port(&settings.http).map(open);
        let mut ports = OpenPorts { web, listeners, websockets };
        if ports.mqtt().map(|listener| &listener.port).chain(&ports.web).all(Port::is_hopeless) {
            let mut listeners = ports.listeners.drain(..).chain(ports.websockets.drain(..));
            if let Some(error) = listeners.find_map(|listener| listener.port.into_error()) {
                return Err(AppError::Listen(error));
            }
        }
        Ok((broker, ports))
    }

    /// The ports for MQTT.
    fn mqtt(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().chain(&self.websockets)
    }

    /// Serves everybody. The web port comes last of what its first client may ask about.
    fn serve(
        self,
        settings: &Settings,
        shown: (GatewayStatus, UserDesk),
        core: &Arc<Core>,
        connections: &TaskTracker,
        supervisor: &Supervisor,
        rooms: &mut Rooms,
    ) {
        if let Some(port) = self.web {
            web::start(port, settings, shown, core, connections, supervisor, rooms);
        }
        for listener in self.websockets {
            web::start_listener(listener, settings, core, connections, supervisor, rooms);
        }
        for listener in self.listeners {
            let name = listener.port.task_name("listener");
            supervisor.spawn_endless(name, listener.run(core.clone(), connections.clone()));
        }
    }
}
