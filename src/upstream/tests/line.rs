//! Tests of overdue answers on a slow line.

use tokio::time::Instant;

use super::*;
use crate::time::Clock;

/// A clock that follows tokio's, which is paused.
pub(super) struct Followed(pub(super) Instant);

impl Clock for Followed {
    fn boot_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }
    fn unix_ms(&self) -> i64 {
        self.boot_ms() as i64
    }
    fn is_synchronised(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn an_overdue_answer_is_waited_for_while_the_line_moves() {
    use LineProgress::{Moves, Nothing, Unsure};
    for (line, seconds) in
        [(&[Nothing][..], 60), (&[Unsure, Nothing], 60 + 5), (&[Unsure, Moves, Moves, Nothing], 60 + 5 + 60 + 60)]
    {
        let (mut script, mut client) = Script::new();
        client.line = line.to_vec().into();
        let clock = Arc::new(Followed(Instant::now()));
        let mut settings = settings(&["mqtt://one"]);
        settings.inbound.clear();
        let running = Running::by(clock, Journal::default(), settings, TestDoor::default(), client);
        script.next().await;
        script.answers.send(Ok(link(Version::V5))).await.unwrap();
        running.append("loft/a", "1");
        assert_eq!(script.next().await, Asked::Publish("sites/loft/a 1".into()));
        script.event(ClientEvent::Sent(1)).await;
        let begin = Instant::now();
        assert_eq!(script.next().await, connect("one", Version::V5));
        // and a pause of up to a second before the next connection
        let waited = begin.elapsed().as_secs();
        assert!((seconds..=seconds + 1).contains(&waited), "{waited} s with {line:?}");
        running.stop().await;
    }
}
