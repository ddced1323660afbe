use super::former::FormerUsers;
use super::*;
use crate::access::settings::{AccessSettings, Rights, UserSettings};
use crate::broker::away::Parked;
use crate::broker::session::Session;
use crate::health::Health;
use crate::service::problems::ProblemsLayer;
use crate::supervise::Cause;
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};
use tracing_subscriber::layer::SubscriberExt;

/// A gateway with free ports and its data in `directory`.
fn settings(directory: &Path) -> Settings {
    let mut settings = Settings::demonstration();
    settings.gateway.data_dir = directory.join("data");
    settings.http.address = None;
    for listener in &mut settings.broker.listeners {
        listener.address = std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into();
    }
    settings
}

#[tokio::test]
async fn the_death_of_the_router_ends_the_gateway_with_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let problems = LoggedProblems::default();
    let log = tracing_subscriber::registry().with(ProblemsLayer(problems.clone()));
    let _log = tracing::subscriber::set_default(log);
    let settings = settings(directory.path());
    let gateway = RunningGateway::start(settings, None, Logging::silent(), problems.clone()).await.unwrap();
    let core = gateway.core.clone();
    let serving = gateway.serve(Signals::new(unix::signal(unix::SignalKind::hangup()).unwrap()).unwrap());
    let ended = async {
        core.ingress.kill_router();
        serving.await
    };
    let error = timeout(Duration::from_secs(60), ended).await.expect("it ends by itself").unwrap_err();
    assert_eq!(error.exit_code().number(), 70);
    let AppError::Ended(exit) = error else { panic!("{error}") };
    let cause = Cause::Failed("the message router has ended unexpectedly".into());
    assert_eq!(exit, Exit { name: "router".into(), cause });
    let last = problems.last().pop().expect("an error is logged");
    assert_eq!(last.level, "error");
    let expected = "router failed: the message router has ended unexpectedly: the gateway ends";
    assert!(last.text.starts_with(expected), "{last:?}");
}

#[tokio::test]
async fn every_room_is_asked_whether_it_is_at_work_and_answers() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    settings.http.address = Some("127.0.0.1:0".parse().unwrap());
    // an upstream that cannot be reached counts as at work
    let nowhere = UpstreamAddress::parse("mqtt://127.0.0.1:1").unwrap();
    settings.upstreams = vec![UpstreamSettings::new("home", vec![nowhere], "test")];
    let mut gateway =
        RunningGateway::start(settings, None, Logging::silent(), LoggedProblems::default()).await.unwrap();
    let asked = gateway.rooms.asked().join(", ");
    assert!(asked.starts_with("router, upstream home, sensors, HTTP messages, HTTP 127.0.0.1:"), "{asked}");
    for _ in 0..5 {
        assert!(gateway.rooms.are_at_work());
        timeout(Duration::from_secs(10), gateway.rooms.have_answered()).await.expect("all have answered");
    }
    gateway.stop().await.unwrap();
}

/// Creates a persistent session of ada whose client is absent.
fn leave_session_of_ada(core: &Core) {
    let session = Session::new(SESSION_OF_ADA, 1, None, u32::MAX);
    let since = Instant::now();
    let expires = since + Duration::from_secs(3600);
    core.registry.restore(SESSION_OF_ADA, Parked { session, expires, since, will: None });
}

const SESSION_OF_ADA: &str = "u/ada\0esp";

#[tokio::test]
async fn who_is_removed_while_the_gateway_goes_down_leaves_no_session() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let mut gateway =
        RunningGateway::start(settings, None, Logging::silent(), LoggedProblems::default()).await.unwrap();
    let core = gateway.core.clone();
    leave_session_of_ada(&core);
    let (tell, told) = mpsc::channel(1);
    gateway.users = told;
    let (acts, acting) = tokio::sync::oneshot::channel();
    assert!(tell.send(UsersChanged { removed: Some("ada".into()), acts }).await.is_ok());
    drop(tell);
    gateway.stop().await.unwrap();
    acting.await.expect("whoever asked is told after it acts");
    assert!(!core.registry.knows(SESSION_OF_ADA));
}

#[tokio::test]
async fn a_name_is_known_on_disk_as_long_as_there_are_sessions_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = settings(directory.path());
    let gateway =
        RunningGateway::start(settings.clone(), None, Logging::silent(), LoggedProblems::default()).await.unwrap();
    leave_session_of_ada(&gateway.core);
    let (name, rights, client_ids) = ("ada".to_owned(), Rights::default(), Vec::new());
    settings.broker.access.users =
        vec![UserSettings { name, password_hash: Some("a".into()), rights, client_ids, is_admin: false }];
    let written = || std::fs::read_to_string(settings.gateway.data_dir.join("user-names")).unwrap();
    let mut former = FormerUsers::open(&settings, &gateway.core, Health::default()).await;
    assert!(written().starts_with("ada\tis\t"), "{}", written());
    // whether or not an administrator has removed the user, the sessions end after this
    former.update(&AccessSettings::default(), &gateway.core).await;
    assert!(written().starts_with("ada\twas\t"), "{}", written());
    gateway.core.end_sessions_of("ada").await;
    former.update(&AccessSettings::default(), &gateway.core).await;
    assert_eq!(written(), "");
    gateway.stop().await.unwrap();
}
