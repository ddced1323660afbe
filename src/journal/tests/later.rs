//! Tests of what nobody waits for, and of the room of those who wait.

use super::*;
use crate::journal::storage::Storage;
use crate::journal::storage::memory::Faults;
use crate::message::{Origin, Owner};

fn at_qos_0(topic: &str, payload: &[u8]) -> Message {
    Message::new(&Draft { retain: true, ..Draft::new(topic, payload) })
}

/// A journal whose disk takes nothing: its first write does not end.
fn stuck(storage: &MemoryStorage, max_size: u64) -> Journal {
    let journal = open(storage, JournalSettings { max_size, ..JournalSettings::default() });
    storage.set_faults(Faults { hold_sync: true, ..Faults::NONE });
    journal.keep("\0begin", Some(b"x"), false).unwrap();
    wait_for("a write", || !journal.is_quiet());
    journal
}

#[test]
fn what_is_retained_at_qos_0_refuses_nobody_and_is_there_after_an_orderly_end() {
    let storage = MemoryStorage::default();
    let journal = stuck(&storage, 64 << 20);
    let id = journal.register("session/a", ANY);
    let mut appender = journal.appender();
    for round in 0..100 {
        for topic in 0..100 {
            let payload = format!("{round:0>1000}");
            appender.retain_later(&at_qos_0(&format!("r/{topic}"), payload.as_bytes())).unwrap();
        }
    }
    // as large as what is written at once
    for topic in 0..20 {
        appender.retain_later(&at_qos_0(&format!("large/{topic}"), &[b'x'; 300_000])).unwrap();
    }
    drop(appender);
    let position = journal.append(&message(b"asked"), &[id]).unwrap();
    storage.set_faults(Faults::NONE);
    wait_synced(&journal, position);
    journal.close();
    let written = journal.status().records;
    assert!(written < 200, "each is written in its last state only: {written}");
    let recovered = open(&storage, JournalSettings { max_size: 64 << 20, ..JournalSettings::default() }).recovered();
    assert_eq!(recovered.retained.len(), 120);
    for message in &recovered.retained {
        let view = message.view();
        assert!(view.topic().starts_with("large") || view.payload().ends_with(b"099"), "{}", view.topic());
    }
}

#[test]
fn what_comes_and_goes_is_not_written_at_all() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    for number in 0..3000 {
        let name = format!("\0will/{number}");
        journal.keep(&name, Some(&[b'w'; 4000]), true).unwrap();
        journal.keep(&name, None, true).unwrap();
        let topic = format!("t/{number}");
        journal.appender().retain_later(&at_qos_0(&topic, b"x")).unwrap();
        journal.appender().retain_later(&at_qos_0(&topic, b"")).unwrap();
    }
    journal.close();
    assert_eq!(storage.list().unwrap(), []);
}

#[test]
fn what_was_deleted_without_a_hurry_stays_deleted() {
    let storage = MemoryStorage::default();
    let open = || open(&storage, settings(1 << 20, WhenFull::DropOldest));
    let journal = open();
    journal.keep("\0a", Some(b"1"), true).unwrap();
    journal.keep("\0b", Some(b"1"), true).unwrap();
    for topic in ["gone", "changed", "asked"] {
        journal.appender().retain_later(&at_qos_0(topic, b"1")).unwrap();
    }
    journal.close();
    let journal = open();
    assert_eq!((journal.kept("\0").len(), journal.recovered().retained.len()), (2, 3));
    journal.keep("\0a", None, true).unwrap();
    journal.keep("\0b", Some(b"2"), true).unwrap();
    // asked for again before it is written
    wait_synced(&journal, journal.keep("\0b", Some(b"2"), false).unwrap());
    let mut appender = journal.appender();
    for (topic, payload) in [("gone", &b""[..]), ("changed", b""), ("changed", b"2"), ("asked", b"2")] {
        appender.retain_later(&at_qos_0(topic, payload)).unwrap();
    }
    let retained = Extra { retained: true, ..Extra::default() };
    appender.append(&draft("asked", b"3", true), &[], retained).unwrap();
    drop(appender);
    journal.close();
    let journal = open();
    assert_eq!(journal.kept("\0"), [("\0b".into(), Bytes::from("2"))]);
    let retained = journal.recovered().retained;
    let mut retained: Vec<_> = retained.iter().map(|m| (m.view().topic(), m.view().payload())).collect();
    retained.sort();
    assert_eq!(retained, [("asked", &b"3"[..]), ("changed", b"2")]);
}

#[test]
fn each_purpose_has_room_of_its_own_while_the_disk_takes_nothing() {
    let storage = MemoryStorage::default();
    let journal = stuck(&storage, 64 << 20);
    let id = journal.register("upstream/a", ANY);
    let unasked = Message::new(&Draft::new("t", &[0; 10_000]));
    let name = "n".repeat(10_000);
    let append = |message: &Message| journal.append(message, &[id]);
    let fills: [(&str, &dyn Fn(usize) -> bool); 4] = [
        ("at QoS 0", &|_| append(&unasked).is_ok()),
        ("sessions", &|number| {
            let name = format!("{name}{number}");
            journal.has_room_for_session(&name) && journal.keep_session(&name, Some(b"x"), true).is_ok()
        }),
        ("steps", &|_| journal.note(id, Note::Again(1)).is_ok()),
        ("at QoS 1", &|_| append(&message(&[0; 10_000])).is_ok()),
    ];
    for (at, (what, fill)) in fills.iter().enumerate() {
        let count = (0..).take_while(|number| fill(*number)).count();
        assert!((100..100_000).contains(&count), "{what}: {count}");
        // what was not filled yet has room
        fills[at + 1..].iter().for_each(|(next, fill)| assert!(fill(1_000_000), "{next} after {what}"));
    }
    assert!(journal.is_behind() && journal.status().pending_bytes < 3 * PENDING_MAX);
    assert!(journal.shared.state.lock().pending.due().is_some_and(|due| due <= Instant::now()));
    storage.set_faults(Faults::NONE);
    wait_for("the disk has taken all", || journal.status().pending_bytes == 0);
    assert!(!journal.is_behind());
}

#[test]
fn whoever_has_most_is_refused_first_while_the_disk_is_slow_and_the_gateway_never() {
    let storage = MemoryStorage::default();
    let journal = stuck(&storage, 64 << 20);
    let id = journal.register("upstream/a", ANY);
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        let fills = |origin: Origin| {
            let message = Message::new(&Draft { qos, origin, ..Draft::new("t", &[0; 10_000]) });
            (0..1000).take_while(|_| journal.append(&message, &[id]).is_ok()).count()
        };
        let of = |user: Option<&str>| fills(Origin::client("c").owned_by(Owner::of(user)));
        let guests = of(None);
        assert!(guests >= 150, "{qos:?}: {guests}");
        for user in ["ada", "bob"] {
            let count = of(Some(user));
            assert!((5..guests / 2).contains(&count), "{qos:?}: {count} of {user}");
        }
        assert_eq!(of(None), 0, "{qos:?}");
        assert!(fills(Origin::sensor("door")) >= 150, "{qos:?}");
    }
    storage.set_faults(Faults::NONE);
    wait_for("the disk has taken all", || journal.status().pending_bytes == 0);
}

#[test]
fn sessions_are_written_before_their_time_if_there_are_many_bytes_of_them() {
    let storage = MemoryStorage::default();
    let journal = stuck(&storage, 64 << 20);
    let is_due = || journal.shared.state.lock().pending.due().is_some_and(|due| due <= Instant::now());
    for number in 0..15 {
        assert!(!is_due(), "{number}");
        journal.keep_session(&format!("{number}"), Some(&[0; 70_000]), true).unwrap();
    }
    assert!(is_due());
    storage.set_faults(Faults::NONE);
}
