//! Tests that the task responds, whatever the upstream does.

use tokio::time::{Instant, sleep};

use super::*;

/// Asks every ten seconds for this time. The task must have answered each time.
async fn answers_for(running: &mut Running, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        sleep(Duration::from_secs(10)).await;
        assert_eq!(running.pulse.silence(Instant::now()), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_away_is_watched_as_one_that_is_there() {
    let (mut script, client) = Script::new();
    let mut running = Running::start(settings(&["mqtt://one"]), TestDoor::default(), client);
    // a broker that accepts and then stays silent
    assert_eq!(script.next().await, connect("one", Version::V5));
    answers_for(&mut running, Duration::from_secs(300)).await;
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    running.until("connected", |snapshot| snapshot.state == UpstreamState::Connected).await;
    answers_for(&mut running, Duration::from_secs(300)).await;
    script.events.send(Err(Broken::Closed)).await.unwrap();
    // from now on there are only failures and pauses
    drop(script.answers);
    answers_for(&mut running, Duration::from_secs(3600)).await;
    running.until("failed again and again", |snapshot| snapshot.failed_attempts > 10).await;
    running.stop().await;
}

/// A client that accepts every connection, and never returns from its first message.
struct Stuck {
    is_called: mpsc::UnboundedSender<()>,
    release: std::sync::mpsc::Receiver<()>,
}

impl UpstreamClient for Stuck {
    async fn connect(
        &mut self,
        _: &UpstreamSettings,
        _: &UpstreamAddress,
        offer: ConnectOffer,
        _: &mut SessionMark,
    ) -> Result<Link, Broken> {
        Ok(link(offer.version))
    }
    fn publish(&mut self, _: OutMessage) -> Result<(), Busy> {
        self.is_called.send(()).unwrap();
        self.release.recv().map_err(|_| Busy)
    }
    fn subscribe(&mut self, _: &[(TopicFilter, Qos)], _: RetainedWanted) -> Result<(), Busy> {
        Ok(())
    }
    fn unsubscribe(&mut self, _: &[TopicFilter]) -> Result<(), Busy> {
        Ok(())
    }
    fn ack(&mut self, _: Ack) -> Result<(), Busy> {
        Ok(())
    }
    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        std::future::pending().await
    }
    fn disconnect(&mut self) -> Result<(), Busy> {
        Err(Busy)
    }
    fn close(&mut self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_does_not_come_back_does_not_answer() {
    let (is_called, mut called) = mpsc::unbounded_channel();
    let (go_on, release) = std::sync::mpsc::channel();
    let mut running = Running::start(settings(&["mqtt://one"]), TestDoor::default(), Stuck { is_called, release });
    running.append("loft/a", "1");
    timeout(Duration::from_secs(20), called.recv()).await.unwrap().unwrap();
    // an answer from before does not count for this question
    running.pulse.silence(Instant::now());
    sleep(Duration::from_millis(300)).await;
    let silence = running.pulse.silence(Instant::now());
    assert!(silence >= Duration::from_millis(300), "{silence:?}");
    go_on.send(()).unwrap();
    let answers = async {
        while running.pulse.silence(Instant::now()) > Duration::ZERO {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(20), answers).await.expect("it has come back");
    running.stop().await;
}
