//! Tests that many messages at once take the journal's lock only once, and that the free space is not computed again while
//! nothing has changed.

use std::sync::atomic::Ordering;

use super::*;

fn filled(count: u64, limits: Limits) -> (MemoryStorage, Journal, ConsumerId) {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    let id = journal.register("session/a", limits);
    for number in 0..count {
        let position = journal.append(&message(number.to_string().as_bytes()), &[id]).unwrap();
        wait_synced(&journal, position);
    }
    (storage, journal, id)
}

fn next_of(reader: &mut Reader, most: usize) -> Delivery {
    let mut next = None;
    wait_for("a message", || {
        next = reader.next_of(most);
        next.is_some()
    });
    next.unwrap()
}

#[test]
fn a_window_of_messages_takes_the_lock_once() {
    let (_, journal, id) = filled(200, ANY);
    let mut reader = journal.reader(id);
    let first = next_of(&mut reader, 20);
    let begin = journal.shared.reads.load(Ordering::Relaxed);
    let mut taken = vec![first];
    for _ in 0..10 {
        while taken.len() < 20 {
            taken.push(next_of(&mut reader, 20 - taken.len()));
        }
        taken.drain(..).for_each(|delivery| reader.settle_soon(delivery.position, Outcome::Acked));
    }
    reader.say_settled();
    let locks = journal.shared.reads.load(Ordering::Relaxed) - begin;
    assert!(locks <= 10, "{locks}");
    let backlog = journal.backlog(id);
    assert_eq!((backlog.settled, backlog.messages), (200, 0));
}

#[test]
fn what_comes_after_a_crash_is_not_taken_for_sent() {
    let (storage, _, _) = filled(3, ANY);
    let journal = open(&storage.after_power_cut(), settings(1 << 20, WhenFull::DropOldest));
    let id = journal.register("session/a", ANY);
    for number in 3..5 {
        let position = journal.append(&message(number.to_string().as_bytes()), &[id]).unwrap();
        wait_synced(&journal, position);
    }
    let read = read_all(&journal, &mut journal.reader(id), 5);
    let resent: Vec<bool> = read.iter().map(|delivery| delivery.resent).collect();
    assert_eq!(resent, [true, true, true, false, false]);
}

#[test]
fn what_was_taken_and_not_used_is_not_taken_for_sent() {
    let (storage, journal, id) = filled(5, ANY);
    let mut reader = journal.reader(id);
    assert_eq!(next_of(&mut reader, 4).ordinal, 1);
    assert_eq!(next_of(&mut reader, 1).ordinal, 2);
    // the reader has two more messages in memory
    for again in 0..2 {
        reader.rewind();
        let read: Vec<(u64, bool)> = (0..2).map(|_| next_of(&mut reader, 4)).map(|d| (d.ordinal, d.resent)).collect();
        assert_eq!(read, [(1, true), (2, true)], "{again}");
    }
    drop(reader);
    let read = read_all(&journal, &mut journal.reader(id), 5);
    let resent: Vec<bool> = read.iter().map(|delivery| delivery.resent).collect();
    assert_eq!(resent, [true, true, false, false, false]);
    journal.close();
    drop(journal);
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    let id = journal.register("session/a", ANY);
    let mut reader = journal.reader(id);
    assert!(next_of(&mut reader, 4).resent, "all have been handed out since");
    reader.rest();
    assert_eq!(journal.backlog(id).messages, 5);
}

#[test]
fn what_was_taken_and_not_used_is_not_taken_for_sent_after_a_restart() {
    let (storage, journal, id) = filled(5, ANY);
    let mut reader = journal.reader(id);
    assert_eq!(next_of(&mut reader, 4).ordinal, 1);
    drop(reader);
    journal.close();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    let id = journal.register("session/a", ANY);
    let read = read_all(&journal, &mut journal.reader(id), 5);
    let resent: Vec<(u64, bool)> = read.iter().map(|delivery| (delivery.ordinal, delivery.resent)).collect();
    assert_eq!(resent, [(1, true), (2, false), (3, false), (4, false), (5, false)]);
}

#[test]
fn what_makes_room_while_it_is_at_hand_is_counted_once() {
    let (_, journal, id) = filled(3, limits(3, WhenFull::DropOldest));
    let mut reader = journal.reader(id);
    let first = next_of(&mut reader, 3);
    for payload in ["3", "4"] {
        wait_synced(&journal, journal.append(&message(payload.as_bytes()), &[id]).unwrap());
    }
    assert_eq!(journal.backlog(id).dropped, 2);
    // the first message was in flight when it was dropped
    reader.settle(first.position);
    reader.rewind();
    let read = read_all(&journal, &mut reader, 3);
    assert_eq!(payloads(&read), [(3, "2".into()), (4, "3".into()), (5, "4".into())]);
    read.iter().for_each(|delivery| reader.settle(delivery.position));
    let backlog = journal.backlog(id);
    assert_eq!((backlog.accepted, backlog.settled, backlog.dropped, backlog.messages), (5, 4, 1, 0));
}

#[test]
fn a_journal_that_is_full_is_not_looked_through_for_every_message() {
    let journal = open(&MemoryStorage::default(), settings(1 << 20, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let id = journal.register("upstream/home", refuse);
    let payload = [b'x'; 5000];
    while let Ok(position) = journal.append(&message(&payload), &[id]) {
        wait_synced(&journal, position);
    }
    // a record that is being written is counted twice until the write ends
    wait_for("quiet", || journal.is_quiet());
    let looks = || journal.shared.state.lock().space.looks();
    let begin = looks();
    for _ in 0..500 {
        assert_eq!(journal.append(&message(&payload), &[id]), Err(Full));
    }
    assert!(looks() - begin <= 1, "{}", looks() - begin);
    assert_eq!(journal.status().refused, 501);
    // everything that frees space is noticed
    let mut reader = journal.reader(id);
    for delivery in read_all(&journal, &mut reader, journal.backlog(id).messages) {
        reader.settle(delivery.position);
    }
    journal.append(&message(&payload), &[id]).unwrap();
}
