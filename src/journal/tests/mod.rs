//! Tests of the journal as a whole. The tests of what it survives are in `tests/faults.rs`.

mod faults;
mod later;
mod let_go;
mod locks;
mod merging;
mod parts;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::settings::JournalSettings;
use super::storage::memory::MemoryStorage;
use super::*;
use crate::message::{Draft, Qos};
use crate::time::TestClock;

pub(crate) fn message(payload: &[u8]) -> Message {
    draft("t", payload, false)
}

pub(crate) fn draft(topic: &str, payload: &[u8], retain: bool) -> Message {
    Message::new(&Draft { qos: Qos::AtLeastOnce, retain, boot_ms: 7, ..Draft::new(topic, payload) })
}

pub(crate) fn limits(messages: usize, when_full: WhenFull) -> Limits {
    Limits { messages, bytes: 1 << 30, when_full }
}

pub(crate) const ANY: Limits = Limits { messages: usize::MAX, bytes: usize::MAX, when_full: WhenFull::DropOldest };

pub(crate) fn settings(max_size: u64, when_full: WhenFull) -> JournalSettings {
    JournalSettings { max_size, when_full, largest_message: 16 << 10 }
}

pub(crate) fn open(storage: &MemoryStorage, settings: JournalSettings) -> Journal {
    Journal::open_in_boot(Arc::new(storage.clone()), settings, TestClock::new(1000, 1_000_000), 1).unwrap()
}

pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(90), "timed out: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn wait_synced(journal: &Journal, position: Position) {
    wait_for("sync", || *journal.synced().borrow() >= position);
}

/// The bytes of a consumer's messages that are in memory, in hand or not.
pub(crate) fn bytes_in_memory(journal: &Journal, id: ConsumerId) -> usize {
    journal.shared.state.lock().queues.get(id).map_or(0, Queue::bytes_in_memory)
}

/// Reads `count` messages, and waits until they can be read.
pub(crate) fn read_all(journal: &Journal, reader: &mut Reader, count: usize) -> Vec<Delivery> {
    let mut found = Vec::new();
    wait_for("messages", || {
        found.extend(std::iter::from_fn(|| reader.try_next()));
        found.len() >= count
    });
    assert_eq!(found.len(), count, "{:?}", journal.status());
    found
}

pub(crate) fn payloads(deliveries: &[Delivery]) -> Vec<(u64, String)> {
    deliveries.iter().map(|d| (d.ordinal, String::from_utf8_lossy(d.message.view().payload()).into_owned())).collect()
}

#[test]
fn what_is_not_settled_is_read_again() {
    let journal = Journal::default();
    let id = journal.register("session/a", limits(10, WhenFull::DropOldest));
    for payload in ["1", "2", "3"] {
        journal.append(&message(payload.as_bytes()), &[id]).unwrap();
    }
    let mut reader = journal.reader(id);
    let read = read_all(&journal, &mut reader, 3);
    assert!(read.iter().all(|delivery| !delivery.resent));
    reader.settle(read[1].position);
    assert_eq!(reader.backlog().messages, 2, "the second does not wait any more");
    reader.rewind();
    let again = read_all(&journal, &mut reader, 2);
    assert_eq!(payloads(&again), [(1, "1".into()), (3, "3".into())]);
    assert!(again.iter().all(|delivery| delivery.resent));
    reader.settle(read[0].position);
    let backlog = reader.backlog();
    assert_eq!((backlog.settled, backlog.messages, backlog.accepted), (2, 1, 3));
    reader.settle_as(read[2].position, Outcome::Expired);
    let backlog = reader.backlog();
    let expired = backlog.settled_as(Outcome::Expired);
    assert_eq!((backlog.settled, expired, backlog.messages, backlog.bytes), (3, 1, 0, 0));
}

#[test]
fn bounds_drop_the_oldest_or_refuse_the_newest_and_count() {
    let journal = Journal::default();
    let old = journal.register("session/a", limits(2, WhenFull::DropOldest));
    let new = journal.register("upstream/b", limits(2, WhenFull::Refuse));
    for payload in ["1", "2", "3"] {
        journal.append(&message(payload.as_bytes()), &[old]).unwrap();
    }
    let read = read_all(&journal, &mut journal.reader(old), 2);
    assert_eq!(payloads(&read), [(2, "2".into()), (3, "3".into())]);
    assert_eq!(journal.backlog(old).dropped, 1);
    journal.append(&message(b"1"), &[new]).unwrap();
    journal.append(&message(b"2"), &[new]).unwrap();
    assert_eq!(journal.append(&message(b"3"), &[old, new]), Err(Full));
    assert_eq!(journal.backlog(old).accepted, 3, "none gets what one refuses");
}

#[test]
fn a_consumer_is_known_by_its_name() {
    let journal = Journal::default();
    let id = journal.register("upstream/a", limits(5, WhenFull::DropOldest));
    journal.append(&message(b"1"), &[id]).unwrap();
    assert_eq!(journal.register("upstream/a", limits(9, WhenFull::DropOldest)), id);
    assert_eq!(journal.backlog(id).messages, 1);
    assert_eq!(journal.remove(id).accepted, 1);
    let next = journal.register("upstream/a", limits(5, WhenFull::DropOldest));
    assert_ne!(next, id);
    assert_eq!(journal.backlog(next).messages, 0);
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let storage = MemoryStorage::default();
    let mut expected = Vec::new();
    for run in 0..6u64 {
        let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
        let id = journal.register("upstream/a", ANY);
        for number in 0..50 {
            let payload = format!("{run}-{number}");
            journal.append(&message(payload.as_bytes()), &[id]).unwrap();
            expected.push(payload);
        }
        let mut reader = journal.reader(id);
        let read = read_all(&journal, &mut reader, expected.len());
        assert_eq!(
            read.iter().map(|d| d.ordinal).collect::<Vec<_>>(),
            (run * 10 + 1..=run * 50 + 50).collect::<Vec<_>>()
        );
        assert_eq!(payloads(&read).into_iter().map(|(_, payload)| payload).collect::<Vec<_>>(), expected);
        for delivery in read.iter().take(10) {
            reader.settle(delivery.position);
        }
        expected.drain(..10);
        let backlog = journal.backlog(id);
        assert_eq!((backlog.accepted, backlog.settled), (run * 50 + 50, run * 10 + 10));
        journal.close();
        assert!(journal.reports().is_empty(), "{:?}", journal.reports());
    }
}

#[test]
fn a_backlog_much_larger_than_memory_drains_in_order() {
    let storage = MemoryStorage::default();
    let mut journal = open(&storage, settings(64 << 20, WhenFull::DropOldest));
    let (mut a, mut b) = (journal.register("upstream/a", ANY), journal.register("upstream/b", ANY));
    let mut last = Position(0);
    for number in 0..40_000u32 {
        let mut payload = [0u8; 400];
        payload[..4].copy_from_slice(&number.to_le_bytes());
        let to: &[ConsumerId] = if number % 1000 == 0 { &[a, b] } else { &[a] };
        loop {
            match journal.append(&message(&payload), to) {
                Ok(position) => break last = position,
                Err(Full) => wait_synced(&journal, last),
            }
        }
    }
    wait_synced(&journal, last);
    for _ in 0..2 {
        let mut next = 0u32;
        let mut reader = journal.reader(a);
        wait_for("all", || {
            while let Some(delivery) = reader.try_next() {
                assert_eq!(delivery.message.view().payload()[..4], next.to_le_bytes());
                next += 1;
                if next.is_multiple_of(3) && next < 20_000 {
                    reader.settle(delivery.position);
                }
            }
            next == 40_000
        });
        assert_eq!(read_all(&journal, &mut journal.reader(b), 40).len(), 40);
        drop(reader);
        journal.close();
        journal = open(&storage, settings(64 << 20, WhenFull::DropOldest));
        (a, b) = (journal.register("upstream/a", ANY), journal.register("upstream/b", ANY));
        let backlog = journal.backlog(a);
        assert_eq!((backlog.messages, backlog.lost, backlog.accepted), (40_000, 0, 40_000));
    }
    assert_eq!(journal.reports(), []);
}

#[test]
fn at_its_size_the_oldest_segment_goes_or_publishers_wait() {
    for when_full in [WhenFull::DropOldest, WhenFull::Refuse] {
        let storage = MemoryStorage::default();
        let journal = open(&storage, settings(1 << 20, when_full));
        let id = journal.register("upstream/a", ANY);
        let (mut accepted, mut last) = (0u64, Position(0));
        for _ in 0..if when_full == WhenFull::Refuse { 10_000 } else { 4000 } {
            match journal.append(&message(&[7; 1000]), &[id]) {
                Ok(position) => (accepted, last) = (accepted + 1, position),
                Err(Full) if when_full == WhenFull::Refuse => break,
                Err(Full) => panic!("dropping makes room"),
            }
            if when_full == WhenFull::DropOldest {
                wait_synced(&journal, last);
            }
        }
        // a file that was prepared in advance and is not needed any more is removed at once
        wait_for("files within the bound", || {
            let files = storage.list().unwrap();
            files.iter().filter(|(name, _)| name != "snapshot").map(|(_, len)| len).sum::<u64>() <= 1 << 20
        });
        let backlog = journal.backlog(id);
        assert_eq!(backlog.accepted, accepted);
        if when_full == WhenFull::DropOldest {
            assert_eq!(accepted, 4000);
            assert!(backlog.dropped > 3000 && backlog.messages > 800, "{backlog:?}");
            let mut reader = journal.reader(id);
            let read = read_all(&journal, &mut reader, backlog.messages);
            assert_eq!(read.first().unwrap().ordinal, backlog.dropped + 1);
            continue;
        }
        assert!(journal.status().failing.is_some() || journal.status().refused > 0);
        let mut reader = journal.reader(id);
        // the accepted messages are written as soon as there is room
        wait_for("drained", || {
            while let Some(delivery) = reader.try_next() {
                reader.settle(delivery.position);
            }
            *journal.synced().borrow() >= last && journal.backlog(id).messages == 0
        });
        wait_for("healed", || journal.append(&message(b"x"), &[id]).is_ok());
        assert_eq!(journal.backlog(id).lost, 0);
    }
}

#[test]
fn nothing_is_written_while_nobody_needs_anything_kept() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    journal.register("upstream/a", ANY);
    std::thread::sleep(Duration::from_millis(50));
    journal.close();
    assert_eq!(storage.list().unwrap(), []);
}

#[test]
fn state_of_the_broker_comes_back() {
    let storage = MemoryStorage::default();
    for run in 0..4u16 {
        let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
        let session = journal.register("session/c", ANY);
        if run > 0 {
            let recovered = journal.recovered();
            assert_eq!(recovered.retained.len(), 20);
            for retained in &recovered.retained {
                assert_eq!(retained.view().payload(), format!("{}", run - 1).as_bytes());
            }
            assert_eq!(recovered.sessions, [("c".into(), Bytes::from(format!("subscriptions {}", run - 1)))]);
            assert_eq!(journal.unreleased(session).iter().collect::<Vec<_>>(), [run]);
        }
        let mut last = Position(0);
        let retained = Extra { retained: true, ..Extra::default() };
        for number in 0..21 {
            let value = format!("{run}");
            last = journal.append_with(&draft(&format!("r/{number}"), value.as_bytes(), true), &[], retained).unwrap();
        }
        journal.append_with(&draft("r/20", b"", true), &[], retained).unwrap();
        journal.keep_session("gone", Some(b"x"), false).unwrap();
        journal.keep_session("gone", None, false).unwrap();
        journal.keep_session("c", Some(format!("subscriptions {run}").as_bytes()), false).unwrap();
        journal.note(session, Note::Forgotten(run)).unwrap();
        let received = Extra { received: Some((session, run + 1)), ..Extra::default() };
        last = last.max(journal.append_with(&message(b"q2"), &[session], received).unwrap());
        wait_synced(&journal, last);
        // enough messages to cause snapshots and to use segments again
        for _ in 0..2000 {
            last = journal.append_with(&draft("other", &[0; 500], true), &[], retained).unwrap();
            if last.0.is_multiple_of(100) {
                wait_synced(&journal, last);
            }
        }
        journal.append_with(&draft("other", b"", true), &[], retained).unwrap();
        if run % 2 == 0 {
            journal.close();
        } else {
            last = journal.received(session, run + 1).unwrap();
            wait_synced(&journal, last);
            drop(journal);
        }
    }
}

#[test]
fn times_stay_right_when_the_machine_was_restarted() {
    let storage = MemoryStorage::default();
    let clock = TestClock::new(500_000, 1_700_000_000_000);
    clock.synchronise(1_700_000_000_000);
    let old = Journal::open_in_boot(Arc::new(storage.clone()), JournalSettings::default(), clock, 1).unwrap();
    let id = old.register("upstream/a", ANY);
    let plain = message(b"x");
    let draft = Draft { expiry: Some(60), boot_ms: 490_000, ..plain.view().to_draft() };
    old.append(&Message::new(&draft), &[id]).unwrap();
    old.close();
    // the machine booted again 30 s later, and that was 5 s ago
    let clock = TestClock::new(5_000, 0);
    clock.synchronise(1_700_000_030_000);
    let new = Journal::open_in_boot(Arc::new(storage), JournalSettings::default(), clock.clone(), 2).unwrap();
    let id = new.register("upstream/a", ANY);
    let read = read_all(&new, &mut new.reader(id), 1);
    let view = read[0].message.view();
    assert_eq!(view.boot_ms() as i64, -35_000);
    assert_eq!(crate::time::Clock::unix_ms_at(&*clock, view.boot_ms()), 1_699_999_990_000);
    assert_eq!(view.remaining_expiry(5_000), Ok(Some(20)));
    assert!(view.remaining_expiry(25_000).is_err());
}

#[test]
fn what_a_change_of_a_session_writes_does_not_depend_on_its_size() {
    let (storage, settings) = (MemoryStorage::default(), settings(8 << 20, WhenFull::DropOldest));
    let journal = open(&storage, settings.clone());
    journal.keep_session("s", Some(b"session"), true).unwrap();
    let subscribe =
        |number: u32| journal.keep_session(&format!("s\0\0filter/{number}"), Some(b"123456"), false).unwrap();
    let (mut last, mut bytes) = (Position(0), 0);
    for number in 0..2000 {
        let (position, written) = subscribe(number);
        (last, bytes) = (position, bytes + written);
    }
    wait_synced(&journal, last);
    assert!(bytes <= 2000 * 72, "{bytes}");
    // the files were created once, and each change was written once
    let made = journal.status().used_bytes;
    assert!(journal.status().written_bytes <= made + 2 * bytes as u64, "{:?}", journal.status());
    let before = journal.status().written_bytes;
    let same: usize = (0..2000).map(|number| subscribe(number).1).sum();
    wait_synced(&journal, journal.barrier());
    assert_eq!((same, journal.status().written_bytes), (0, before), "nothing new, nothing written");
    // a session that ends is removed with all its values, and a session with a similar name is kept
    journal.keep_session("s2", Some(b"other"), true).unwrap();
    let (position, _) = journal.keep_session("s", None, false).unwrap();
    wait_synced(&journal, position);
    drop(journal);
    let journal = open(&storage.after_power_cut(), settings);
    assert!(journal.kept("s\0").is_empty());
    assert_eq!(journal.recovered().sessions, [("s2".into(), Bytes::from("other"))]);
}

#[test]
fn what_fits_into_no_file_is_refused_and_stops_nobody() {
    let settings = settings(1 << 20, WhenFull::DropOldest);
    let journal = open(&MemoryStorage::default(), settings.clone());
    let large = vec![b'x'; settings.segment_size() as usize];
    assert_eq!(journal.keep_session("s", Some(&large), false), Err(Full));
    assert_eq!(journal.keep_session(&"n".repeat(70_000), Some(b"x"), false), Err(Full));
    // the length of a consumer's name is not checked, so its record is left out
    let id = journal.register(&"n".repeat(large.len()), ANY);
    let position = journal.append(&message(b"1"), &[id]).unwrap();
    wait_synced(&journal, position);
    let status = journal.status();
    assert!(status.last_error.is_some() && status.failing.is_none(), "{status:?}");
}

#[test]
fn a_write_that_gets_nowhere_is_shown() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    assert_eq!(journal.status().failing, None);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(30));
    journal.shared.state.lock().pending.set_writing_since(long_ago);
    assert!(journal.status().failing.is_some_and(|why| why.contains("has not taken a write")));
}
