//! Addresses with different limits.

use super::*;

#[tokio::test]
async fn a_message_that_is_too_large_for_one_address_is_kept_for_the_other_also_over_a_restart() {
    let (journal, small) = (Journal::default(), Link { max_packet_size: Some(1000), ..link(Version::V5) });
    let (mut script, client) = Script::new();
    let addresses = settings(&["mqtt://one", "mqtt://two"]);
    let running = Running::with(journal.clone(), addresses.clone(), TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Err(Broken::Failed("no route".into()))).await.unwrap();
    assert_eq!(script.next().await, connect("two", Version::V5));
    script.answers.send(Ok(small)).await.unwrap();
    script.next().await;
    let large = "x".repeat(5000);
    running.append("loft/large", &large);
    running.append("loft/small", "1");
    assert_eq!(script.next().await, Asked::Publish("sites/loft/small 1".into()));
    script.event(ClientEvent::Sent(1)).await;
    script.event(ClientEvent::Acked(1, 0)).await;
    let waits = |journal: &Journal| journal.backlog_of("upstream/home/too-large").map(|backlog| backlog.messages);
    let acked = || journal.backlog_of("upstream/home").is_some_and(|backlog| backlog.messages == 0);
    let kept = async {
        while waits(&journal) != Some(1) || !acked() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), kept).await.unwrap();
    drop(script);
    running.stop().await;
    let (mut script, client) = Script::new();
    let mut running = Running::with(journal.clone(), addresses, TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    assert_eq!(script.next().await, Asked::Publish(format!("sites/loft/large {large}")));
    script.event(ClientEvent::Sent(1)).await;
    script.event(ClientEvent::Acked(1, 0)).await;
    running.until("it is settled", |_| waits(&journal) == Some(0)).await;
    running.stop().await;
}
