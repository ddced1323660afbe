use super::*;
use crate::message::{Draft, Origin, Qos};

fn message(topic: &str, payload: &[u8]) -> Message {
    Message::new(&Draft { qos: Qos::AtLeastOnce, retain: true, origin: Origin::http(), ..Draft::new(topic, payload) })
}

fn filter() -> Vec<TopicFilter> {
    vec![TopicFilter::new("a/#").unwrap()]
}

#[test]
fn a_pass_is_due_when_the_session_is_gone_or_something_was_lost() {
    let journal = Journal::default();
    let mut passes = Passes::restore(&journal, "home");
    passes.handed_over(&journal, "up/a", "a", true);
    passes.connected(0, true, 3, 0);
    assert!(passes.is_due(), "the first");
    passes.begin(filter(), 3, 2);
    passes.clears(|_| false, || Position(0));
    passes.clears(|_| false, || Position(0));
    passes.values(Vec::new(), Position(0));
    assert_eq!(passes.need(Position(0)), Need::Answers);
    passes.complete();
    passes.losses(4, 3);
    assert!(!passes.is_due() && passes.deadline() == Some(2 + PASS_EVERY_MS), "not that soon again");
    passes.losses(4, 2 + PASS_EVERY_MS);
    assert!(passes.is_due());
    passes.connected(0, true, 3, 2);
    assert!(!passes.is_due());
    passes.connected(0, false, 3, 2);
    assert!(passes.is_due());
    let mut other = Passes::restore(&journal, "other");
    other.connected(0, false, 0, 0);
    other.begin(filter(), 0, 0);
    other.put_off();
    other.losses(0, PASS_EVERY_MS - 1);
    assert!(!other.is_due());
    other.losses(0, PASS_EVERY_MS);
    assert!(other.is_due());
    send(&mut passes, 3, &TOPICS);
    finish(&mut passes);
    // after an orderly restart it is known that nothing has to be repeated
    passes.close(&journal);
    let mut passes = Passes::restore(&journal, "home");
    passes.connected(0, true, 3, 0);
    assert!(!passes.is_due());
    passes.connected(0, true, 4, 0);
    assert!(passes.is_due());
    let mut passes = Passes::restore(&journal, "home");
    passes.connected(0, true, 3, 0);
    assert!(passes.is_due(), "after a crash");
}

#[test]
fn a_pass_deletes_what_is_gone_and_sends_the_rest_once_it_is_safe() {
    let journal = Journal::default();
    let mut passes = Passes::restore(&journal, "home");
    for topic in ["a/1", "a/2", "a/3"] {
        passes.handed_over(&journal, &format!("up/{topic}"), topic, true);
    }
    passes.forget(&journal, "up/a/3");
    let mut passes = Passes::restore(&journal, "home");
    assert_eq!((passes.local("up/a/1"), passes.local("up/a/3")), (Some("a/1"), None));
    assert!(Passes::restore(&journal, "other").kept.is_empty());
    passes.connected(0, false, 0, 0);
    passes.handed_over(&journal, "up/a/4", "a/4", true);
    passes.begin(filter(), 0, 0);
    assert_eq!(passes.need(Position(0)), Need::Clears);
    passes.clears(|local| local != "a/2", || Position(7));
    assert!(passes.need(Position(6)) == Need::Nothing && passes.waits_for_disk(Position(6)));
    assert_eq!(passes.need(Position(7)), Need::Items);
    assert!(matches!(passes.next_item(), Some(Item::Clear { remote, .. }) if remote == "up/a/1"));
    assert!(matches!(passes.next_item(), Some(Item::Clear { remote, .. }) if remote == "up/a/4"));
    assert_eq!(passes.need(Position(7)), Need::Clears);
    passes.clears(|_| true, || Position(7));
    assert_eq!(passes.need(Position(7)), Need::Values(filter()[0].clone(), String::new()));
    passes.values(vec![message("a/2", b"x")], Position(8));
    assert!(matches!(passes.next_item(), Some(Item::Value(_))));
    assert_eq!(passes.need(Position(8)), Need::Values(filter()[0].clone(), "a/2".into()));
    assert!(passes.was_sent("up/a/4") && !passes.was_sent("up/a/2"));
}

#[test]
fn a_pass_that_ends_every_connection_rests() {
    let journal = Journal::default();
    let mut passes = Passes::restore(&journal, "home");
    for _ in 0..STRIKES {
        passes.connected(0, false, 0, 0);
        assert!(passes.is_due());
        passes.begin(filter(), 0, 0);
        passes.count(1);
        passes.disconnected(true, Some(1), 0);
    }
    passes.connected(0, false, 0, REST_MS - 1);
    assert!(!passes.is_due());
    passes.connected(0, false, 0, REST_MS);
    assert!(passes.is_due());
}

#[test]
fn upstreams_that_are_gone_are_forgotten() {
    let journal = Journal::default();
    for name in ["home", "gone"] {
        Passes::restore(&journal, name).handed_over(&journal, "up/a", "a", true);
    }
    forget_unknown(&journal, |name| name == "home");
    assert_eq!(journal.kept(PREFIX).len(), 1);
    assert!(journal.recovered().sessions.is_empty());
}

/// Begins a pass over these topics, and sends all of them, numbered from 1 on.
fn send(passes: &mut Passes, losses: u64, topics: &[&str]) {
    assert!(passes.is_due());
    passes.begin(filter(), losses, 0);
    while passes.need(Position(0)) == Need::Clears {
        passes.clears(|_| false, || Position(0));
    }
    let Need::Values(_, after) = passes.need(Position(0)) else { panic!("{:?}", passes.need(Position(0))) };
    let messages = topics.iter().filter(|topic| **topic > after.as_str()).map(|topic| message(topic, b"x")).collect();
    passes.values(messages, Position(0));
    let mut number = 0;
    while passes.next_item().is_some() {
        number += 1;
        passes.count(number);
    }
}

/// Reads on to the end of the filter, when everything was sent and answered.
fn finish(passes: &mut Passes) {
    passes.answered(None);
    passes.values(Vec::new(), Position(0));
    assert_eq!(passes.need(Position(0)), Need::Answers);
    passes.complete();
}

const TOPICS: [&str; 4] = ["a/1", "a/2", "a/3", "a/4"];

#[test]
fn a_pass_that_was_cut_off_is_due_until_one_is_complete() {
    let journal = Journal::default();
    let begin = || {
        let mut passes = Passes::restore(&journal, "home");
        passes.handed_over(&journal, "up/a/1", "a/1", true);
        passes.connected(0, false, 0, 0);
        send(&mut passes, 0, &TOPICS);
        finish(&mut passes);
        passes.connected(0, true, 0, 0);
        assert!(!passes.is_due());
        passes
    };
    // the upstream has forgotten everything, and the pass does not begin, or is cut off
    for is_begun in [false, true] {
        let mut passes = begin();
        passes.connected(0, false, 0, 0);
        if is_begun {
            send(&mut passes, 0, &TOPICS);
        }
        passes.disconnected(false, Some(2), 0);
        passes.connected(0, true, 0, 0);
        assert!(passes.is_due());
        send(&mut passes, 0, &TOPICS);
        finish(&mut passes);
        passes.disconnected(false, None, 0);
        passes.connected(0, true, 0, 0);
        assert!(!passes.is_due());
    }
    // an orderly end meanwhile
    let mut passes = begin();
    passes.connected(0, false, 0, 0);
    send(&mut passes, 0, &TOPICS);
    passes.close(&journal);
    let mut passes = Passes::restore(&journal, "home");
    passes.connected(0, true, 0, 0);
    assert!(passes.is_due());
}

#[test]
fn a_pass_goes_on_behind_what_was_answered() {
    let sent = |passes: &mut Passes, losses: u64| {
        send(passes, losses, &TOPICS);
        passes.pass.as_ref().unwrap().sent
    };
    let begin = || {
        let mut passes = Passes::restore(&Journal::default(), "home");
        passes.connected(0, false, 0, 0);
        assert_eq!(sent(&mut passes, 0), 4);
        passes.disconnected(false, Some(3), 0);
        passes
    };
    let mut passes = begin();
    passes.connected(0, true, 0, 0);
    passes.disconnected(false, None, 0);
    passes.connected(0, true, 0, 0);
    assert_eq!(sent(&mut passes, 0), 2);
    passes.disconnected(false, Some(1), 0);
    passes.connected(0, true, 0, 0);
    assert_eq!(sent(&mut passes, 0), 2);
    // it begins anew after a loss, at an upstream that has forgotten everything, and at another one
    let mut passes = begin();
    passes.connected(0, true, 1, 0);
    assert_eq!(sent(&mut passes, 1), 4);
    let mut passes = begin();
    passes.connected(0, false, 0, 0);
    assert_eq!(sent(&mut passes, 0), 4);
    let mut passes = begin();
    passes.connected(1, true, 0, 0);
    assert_eq!(sent(&mut passes, 0), 4);
    finish(&mut passes);
    passes.disconnected(false, None, 0);
    passes.connected(0, true, 0, 0);
    assert!(passes.is_due(), "the other one may be another broker, and has not got all");
    assert_eq!(sent(&mut passes, 0), 4);
}

#[test]
fn after_a_rest_the_pass_follows_on_a_session_that_was_kept() {
    let mut passes = Passes::restore(&Journal::default(), "home");
    for _ in 0..STRIKES {
        passes.connected(0, false, 0, 0);
        send(&mut passes, 0, &TOPICS);
        passes.disconnected(true, Some(1), 0);
    }
    passes.connected(0, true, 0, 1);
    passes.losses(0, 1);
    assert_eq!((passes.is_due(), passes.deadline()), (false, Some(REST_MS)));
    passes.losses(0, REST_MS);
    assert!(passes.is_due());
}
