use super::*;
use crate::service::problems::ProblemsLayer;
use crate::supervise::Cause;
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};
use tracing_subscriber::layer::SubscriberExt;

/// A gateway whose ports are free ones and whose data is in `directory`.
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
    let problems = Problems::default();
    let log = tracing_subscriber::registry().with(ProblemsLayer(problems.clone()));
    let _log = tracing::subscriber::set_default(log);
    let settings = settings(directory.path());
    let gateway = Gateway::start(settings, None, Logging::silent(), problems.clone()).await.unwrap();
    let core = gateway.core.clone();
    let serving = gateway.serve(Signals::new().unwrap());
    let ended = async {
        core.ingress.kill_router();
        serving.await
    };
    let error = timeout(Duration::from_secs(60), ended).await.expect("it ends by itself").unwrap_err();
    assert_eq!(error.exit_code(), 70);
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
    // nobody is there: an upstream that is away is at work all the same
    let nowhere = UpstreamAddress::parse("mqtt://127.0.0.1:1").unwrap();
    settings.upstreams = vec![UpstreamSettings::new("home", vec![nowhere], "test")];
    let mut gateway = Gateway::start(settings, None, Logging::silent(), Problems::default()).await.unwrap();
    let asked = gateway.rooms.asked().join(", ");
    assert!(asked.starts_with("router, upstream home, sensors, HTTP messages, HTTP 127.0.0.1:"), "{asked}");
    for _ in 0..5 {
        assert!(gateway.rooms.are_at_work());
        timeout(Duration::from_secs(10), gateway.rooms.have_answered()).await.expect("all have answered");
    }
    gateway.stop().await;
}
