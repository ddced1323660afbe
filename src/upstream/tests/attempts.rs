//! Attempts to connect, and connections that end to get what was not taken.

use tokio::time::Instant;

use super::line::Followed;
use super::*;

/// Waits until new messages are kept by these filters.
async fn directed(door: &TestDoor, filters: &[&str]) {
    let directed = async {
        while *door.filters.lock() != filters {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), directed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn new_settings_are_in_force_while_an_attempt_hangs() {
    let ((mut script, client), door) = (Script::new(), TestDoor::default());
    let before = settings(&["mqtt://one"]);
    let running = Running::start(before.clone(), door.clone(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    directed(&door, &["loft/#"]).await;
    for filter in ["cellar/#", "attic/#"] {
        let out = vec![rule(filter, "", "", OutQos::AtLeastOnce)];
        running.settings.send_replace(Arc::new(UpstreamSettings { out, ..before.clone() }));
        directed(&door, &[filter]).await;
    }
    assert!(script.asked.try_recv().is_err(), "the attempt goes on");
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    directed(&door, &["attic/#"]).await;
    running.append("attic/a", "1");
    assert_eq!(script.next().await, Asked::Publish("attic/a 1".into()));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_address_is_tried_at_once_while_an_attempt_hangs() {
    let (mut script, client) = Script::new();
    let running = Running::start(settings(&["mqtt://one"]), TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    running.settings.send_replace(Arc::new(settings(&["mqtt://two"])));
    assert_eq!(timeout(Duration::from_secs(1), script.next()).await, Ok(connect("two", Version::V5)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_asks_for_it_is_left_alone_while_another_one_is_tried() {
    let (mut script, client) = Script::new();
    let running = Running::start(settings(&["mqtt://one", "mqtt://two"]), TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Err(Broken::SentAway("busy".into()))).await.unwrap();
    for _ in 0..6 {
        assert_eq!(script.next().await, connect("two", Version::V5));
        script.answers.send(Err(Broken::Failed("no route".into()))).await.unwrap();
    }
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_upstream_sent_while_there_was_no_room_comes_again() {
    let ((mut script, client), door) = (Script::new(), TestDoor::default());
    let running = Running::start(settings(&["mqtt://one"]), door.clone(), client);
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.next().await;
    script.next().await;
    let message = |packet_id: u16, size: usize| {
        ClientEvent::Received(InMessage {
            packet_id,
            topic: format!("sites/loft/commands/{packet_id}"),
            payload: "x".repeat(size).into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            is_repeated: false,
            expiry: None,
            properties: Vec::new(),
        })
    };
    *door.full.lock() = true;
    for packet_id in 1..=60 {
        script.event(message(packet_id, 200 << 10)).await;
    }
    script.event(message(61, 1)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    *door.full.lock() = false;
    // those that found room are acknowledged in order, and nothing passes the first that did not
    let mut taken = 0;
    loop {
        match script.next().await {
            Asked::Ack(ack) => {
                taken += 1;
                assert_eq!(ack, Ack::Taken(taken));
            }
            other => {
                assert_eq!(other, Asked::Disconnect);
                break;
            }
        }
    }
    assert!((30..60).contains(&taken), "{taken}");
    script.events.send(Err(Broken::Closed)).await.unwrap();
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Ok(Link { session_present: true, ..link(Version::V5) })).await.unwrap();
    script.next().await;
    for packet_id in taken + 1..=61 {
        script.event(message(packet_id, 1)).await;
        assert_eq!(script.next().await, Asked::Ack(Ack::Taken(packet_id)));
    }
    let expected: Vec<String> = (1..=61).map(|packet_id| format!("commands/{packet_id}")).collect();
    let published: Vec<String> = door.published.lock().iter().map(|(topic, _)| topic.clone()).collect();
    assert_eq!(published, expected);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_during_an_outage_is_asked_for_again_although_the_connection_lasts() {
    let (mut script, client) = Script::new();
    let clock = Arc::new(Followed(Instant::now()));
    let mut settings = settings(&["mqtt://one"]);
    settings.inbound.clear();
    let running = Running::by(clock, Journal::default(), settings, TestDoor::default(), client);
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    script.events.send(Err(Broken::Closed)).await.unwrap();
    // it hangs, and is asked with another version in the end
    while script.next().await == connect("one", Version::V5) {
        script.answers.send(Err(Broken::Silent)).await.unwrap();
    }
    let begin = Instant::now();
    script.answers.send(Ok(link(Version::V311))).await.unwrap();
    assert_eq!(script.next().await, Asked::Disconnect, "an orderly end");
    assert!((59..62).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    script.events.send(Err(Broken::Closed)).await.unwrap();
    assert_eq!(script.next().await, connect("one", Version::V5));
    script.answers.send(Ok(link(Version::V5))).await.unwrap();
    running.append("loft/a", "1");
    assert_eq!(script.next().await, Asked::Publish("sites/loft/a 1".into()), "it stays");
    running.stop().await;
}
