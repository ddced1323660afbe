//! Upstreams that close the connection at every message of a topic, as the policies of clouds do.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::played::{Played, Say};
use crate::support::packet::packet;
use crate::support::{Connect, Gateway, PATIENCE, Properties, http, wait_until};
use crate::{drained, ledger, publish, start, upstream};

/// An upstream that closes the connection at messages on `loft/secret`, until they are allowed.
fn policy(allowed: &Arc<AtomicBool>) -> Played {
    let allowed = allowed.clone();
    Played::new(move |heard| match heard.publish() {
        Some(publish) if publish.topic == "loft/secret" && !allowed.load(Ordering::Relaxed) => Say::Close,
        _ => Say::Usual,
    })
}

/// Changes the rules, which lets an attempt follow at once.
fn try_at_once(gateway: &Gateway) {
    let path = gateway.dir().join("pigateway.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, written + "[[upstream.out]]\ntopic_filter = \"attic/#\"\n").unwrap();
    gateway.signal(Signal::HUP);
}

/// Publishes three denied messages and a good one, ten times a second, until so many good ones are at the upstream. Returns the
/// numbers of denied and good messages.
fn publish_until(gateway: &Gateway, played: &Played, good: usize) -> (usize, usize) {
    let mut client = Connect::v5("publisher").open(gateway.port);
    let begun = Instant::now();
    let mut rounds = 0;
    while played.texts().len() < good {
        assert!(begun.elapsed() < PATIENCE, "{} of {good}", played.texts().len());
        for number in 0..3 {
            client.publish_with("loft/secret", (3 * rounds + number).to_string(), 1, false, &Properties::new());
        }
        client.publish_with(&format!("loft/{}", rounds % 5), format!("good {rounds}"), 1, false, &Properties::new());
        rounds += 1;
        sleep(Duration::from_millis(100));
    }
    client.disconnect();
    (3 * rounds, rounds)
}

/// At QoS 0 nothing is answered, so only the ends of connections tell.
#[test]
fn a_denied_topic_at_qos_0_ends_few_connections() {
    let played = policy(&Arc::default());
    let (gateway, port) = start(&format!("{}qos = 0\n", upstream(played.port, "protocol = 4")));
    let (.., good) = publish_until(&gateway, &played, 100);
    gateway.wait_for_line("closes the connection at messages on this topic");
    let connections = played.log().connections.len();
    assert!(connections <= 12, "{connections}");
    // at QoS 0 what is on its way when a connection ends may be lost
    let texts = played.texts();
    let lost = (0..good - 5).filter(|number| !texts.contains(&format!("good {number}"))).count();
    assert!(lost <= 5, "{lost} of {good}: {texts:?}");
    let shown = || http::get(port, "/api/v1/upstreams").json()[0].clone();
    wait_until("it is counted", || shown()["denied_topics"] == 1 && shown()["ledger"]["pending"].as_u64() > Some(100));
}

#[test]
fn a_denied_topic_holds_up_no_other_one_and_arrives_when_it_is_allowed() {
    let allowed = Arc::new(AtomicBool::new(false));
    let played = policy(&allowed);
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    let (denied, good) = publish_until(&gateway, &played, 120);
    let texts: Vec<String> = (0..good).map(|number| format!("good {number}")).collect();
    played.wait_for(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let connections = played.log().connections.len();
    assert!(connections <= 12, "{connections}");
    let line = gateway.wait_for_line("closes the connection at messages on this topic");
    assert!(line.contains("WARN") && line.contains("loft/secret") && line.contains("pigateway.toml:"), "{line}");
    wait_until("all are counted", || {
        let shown = &http::get(port, "/api/v1/upstreams").json()[0];
        let counts = (&shown["denied_topics"], &shown["ledger"]["pending"], &shown["ledger"]["acked"]);
        counts == (&1.into(), &denied.into(), &good.into())
    });
    // over a restart
    let data = gateway.dir().join("data").display().to_string();
    let killed = gateway.end();
    let shown = Command::new(env!("CARGO_BIN_EXE_pigateway")).args(["journal", &data]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("upstream/home/denied"), "{shown}");
    allowed.store(true, Ordering::Relaxed);
    let (setup, port) = killed.setup().config(&upstream(played.port, "protocol = 4")).http();
    let gateway = setup.start();
    gateway.wait_for_line("takes this topic again");
    assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, (denied + good).into()));
    let secret = played.texts().into_iter().filter_map(|text| text.parse::<usize>().ok());
    assert_eq!(secret.collect::<Vec<_>>(), (0..denied).collect::<Vec<_>>());
}

/// The answer does not tell that the connection ends because of the message.
#[test]
fn a_topic_after_whose_answers_connections_end_holds_up_no_other_one_and_arrives_when_it_is_allowed() {
    let allowed = Arc::new(AtomicBool::new(false));
    let allows = allowed.clone();
    let played = Played::new(move |heard| match heard.publish() {
        Some(publish) if publish.topic == "loft/secret" && !allows.load(Ordering::Relaxed) => {
            Say::Last(packet(0x40, &[&publish.id.to_be_bytes()]))
        }
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    let (denied, good) = publish_until(&gateway, &played, 200);
    let texts: Vec<String> = (0..good).map(|number| format!("good {number}")).collect();
    played.wait_for(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let line = gateway.wait_for_line("answers messages on this topic and then closes the connection");
    assert!(line.contains("WARN") && line.contains("loft/secret") && line.contains("pigateway.toml:"), "{line}");
    // without this each of them ends one, as fast as connections are made
    let connections = played.log().connections.len();
    assert!(connections <= 30, "{connections}");
    wait_until("all are counted", || {
        let shown = &http::get(port, "/api/v1/upstreams").json()[0];
        let (acked, pending) = (shown["ledger"]["acked"].as_u64(), shown["ledger"]["pending"].as_u64());
        let answered = acked.unwrap_or_default().saturating_sub(good as u64);
        shown["denied_topics"] == 1 && answered < 30 && pending.map(|it| it + answered) == Some(denied as u64)
    });
    allowed.store(true, Ordering::Relaxed);
    try_at_once(&gateway);
    gateway.wait_for_line("takes this topic again");
    assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, (denied + good).into()));
    let secret: Vec<usize> = played.texts().into_iter().filter_map(|text| text.parse().ok()).collect();
    assert!(secret.is_sorted() && secret.len() + 30 > denied && secret.last() == Some(&(denied - 1)), "{secret:?}");
}

#[test]
fn large_messages_of_a_denied_topic_wait_on_disk_and_arrive_in_order() {
    const COUNT: usize = 80;
    let (is_up, allowed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (up, allows) = (is_up.clone(), allowed.clone());
    let played = Played::new(move |heard| match heard.publish() {
        _ if !up.load(Ordering::Relaxed) => Say::Close,
        Some(publish) if publish.topic == "loft/secret" && !allows.load(Ordering::Relaxed) => Say::Close,
        _ => Say::Usual,
    });
    let (gateway, port) = start(&upstream(played.port, "protocol = 4"));
    // 16 MB, more than may wait for the disk, come from the journal at once
    let mut client = Connect::v5("publisher").open(gateway.port);
    for number in 0..COUNT {
        let mut payload = number.to_string().into_bytes();
        payload.resize(200_000, b' ');
        client.publish_with("loft/secret", payload, 1, false, &Properties::new());
        client.publish_with("loft/good", format!("good {number}"), 1, false, &Properties::new());
    }
    client.disconnect();
    is_up.store(true, Ordering::Relaxed);
    wait_until("the others have arrived", || ledger(port)["acked"] == COUNT);
    wait_until("the topic is denied", || http::get(port, "/api/v1/upstreams").json()[0]["denied_topics"] == 1);
    assert_eq!(ledger(port)["pending"], COUNT, "{}", ledger(port));
    allowed.store(true, Ordering::Relaxed);
    try_at_once(&gateway);
    assert_eq!((drained(port), ledger(port)["acked"].clone()), (0, (2 * COUNT).into()));
    let secret = played.texts().into_iter().filter_map(|text| text.trim().parse::<usize>().ok());
    assert_eq!(secret.collect::<Vec<_>>(), (0..COUNT).collect::<Vec<_>>());
}

#[test]
fn messages_above_a_size_hold_up_no_smaller_ones_and_arrive_when_they_are_allowed() {
    const SMALL: usize = 150;
    let allowed = Arc::new(AtomicBool::new(false));
    let allows = allowed.clone();
    let played = Played::new(move |heard| match heard.publish() {
        Some(publish) if publish.text().len() > 1_500 && !allows.load(Ordering::Relaxed) => Say::Close,
        _ => Say::Usual,
    });
    let config = upstream(played.port, "protocol = 4");
    let (gateway, port) = start(&config);
    let mut client = Connect::v5("publisher").open(gateway.port);
    let large = |number: usize| format!("{:<size$}", format!("large {number}"), size = 2_000 + number);
    // two of three are small, and each is on a topic of its own
    for number in 0..SMALL {
        client.publish_with(&format!("loft/s/{number}"), format!("small {number}"), 1, false, &Properties::new());
        if number % 2 == 0 {
            client.publish_with(&format!("loft/l/{number}"), large(number), 1, false, &Properties::new());
        }
    }
    client.disconnect();
    wait_until("the small ones have arrived", || ledger(port)["acked"] == SMALL);
    let connections = played.log().connections.len();
    assert!(connections <= 25, "{connections}");
    let line = gateway.wait_for_line("closes the connection at messages of this size and above");
    assert!(line.contains("WARN") && line.contains("size=20"), "{line}");
    wait_until("all are counted", || {
        let shown = &http::get(port, "/api/v1/upstreams").json()[0];
        shown["ledger"]["pending"] == SMALL / 2 && shown["denied_size"].as_u64().is_some_and(|size| size > 1_500)
    });
    // over a restart
    let killed = gateway.end();
    let before = played.log().connections.len();
    let (setup, port) = killed.setup().config(&config).http();
    let gateway = setup.start();
    wait_until("the size is known", || {
        http::get(port, "/api/v1/upstreams").json()[0]["denied_size"].as_u64().is_some_and(|size| size > 1_500)
    });
    publish(&gateway, "later", &["later"], false);
    played.wait_for(&["later"]);
    assert!(played.log().connections.len() <= before + 10, "only those that are tried end connections");
    wait_until("the later one is acknowledged", || ledger(port)["pending"] == SMALL / 2);
    allowed.store(true, Ordering::Relaxed);
    try_at_once(&gateway);
    gateway.wait_for_line("takes messages of this size: those that are not larger go on");
    assert_eq!(drained(port), 0);
    let texts = played.texts();
    assert!((0..SMALL).step_by(2).all(|number| texts.contains(&large(number))));
}
