//! Parts of the journal, merging, and what never gives anything up.

use super::*;
use crate::journal::storage::Storage;
use crate::journal::storage::memory::{Change, Faults};

const SMALL: u64 = 1 << 20;

/// A payload of about a kilobyte with a number in front.
fn payload(number: u64) -> String {
    format!("{number} {}", "x".repeat(900))
}

/// Appends messages one after the other, as fast as the disk takes them.
fn fill(journal: &Journal, numbers: std::ops::Range<u64>, to: &[ConsumerId]) {
    let mut last = Position(0);
    for number in numbers {
        loop {
            match journal.append(&message(payload(number).as_bytes()), to) {
                Ok(position) => break last = position,
                Err(Full) => wait_synced(journal, last),
            }
        }
        if number % 20 == 0 {
            wait_synced(journal, last);
        }
    }
    wait_synced(journal, last);
}

/// Reads and settles all that waits.
fn drain(journal: &Journal, id: ConsumerId) {
    let mut reader = journal.reader(id);
    wait_for("drained", || {
        while let Some(delivery) = reader.try_next() {
            reader.settle(delivery.position);
        }
        journal.backlog(id).messages == 0
    });
}

/// The numbers of what waits for a consumer, in the order in which it comes.
fn waiting(journal: &Journal, id: ConsumerId) -> Vec<u64> {
    let read = read_all(journal, &mut journal.reader(id), journal.backlog(id).messages);
    assert!(read.windows(2).all(|pair| pair[0].ordinal < pair[1].ordinal));
    let number = |text: String| text.split(' ').next().unwrap().parse().unwrap();
    payloads(&read).into_iter().map(|(_, text)| number(text)).collect()
}

fn again(storage: &MemoryStorage, when_full: WhenFull) -> Journal {
    let journal = open(storage, settings(SMALL, when_full));
    wait_for("the check", || journal.shared.state.lock().unverified.is_empty());
    assert_eq!(journal.reports(), []);
    journal
}

#[test]
fn guests_do_not_push_out_what_upstreams_and_users_wait_for() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let (up, user) = (journal.register("upstream/home", ANY), journal.register("session/u/ann\0esp", ANY));
    let guests: Vec<ConsumerId> = (0..24).map(|n| journal.register(&format!("session/g/\0{n}"), ANY)).collect();
    // between each other, and before most of what guests get
    for number in 0..200 {
        fill(&journal, number..number + 1, &[up, guests[number as usize % 24]]);
        fill(&journal, number..number + 1, &[user]);
        fill(&journal, number..number + 2, &[guests[0]]);
    }
    for round in 0..200 {
        guests.iter().for_each(|guest| fill(&journal, round..round + 1, &[*guest]));
    }
    assert_eq!((journal.backlog(up).dropped, journal.backlog(user).dropped), (0, 0));
    let dropped: u64 = guests.iter().map(|guest| journal.backlog(*guest).dropped).sum();
    assert!(dropped > 4000, "{dropped}");
    let held: usize = guests.iter().map(|guest| journal.backlog(*guest).bytes).sum();
    assert!(held > 120 << 10, "what is guaranteed to guests is theirs: {held}");
    for journal in [journal, again(&storage.after_power_cut(), WhenFull::DropOldest)] {
        let (up, user) = (journal.register("upstream/home", ANY), journal.register("session/u/ann\0esp", ANY));
        assert_eq!(waiting(&journal, up), (0..200).collect::<Vec<_>>());
        assert_eq!(waiting(&journal, user), (0..200).collect::<Vec<_>>());
        assert_eq!((journal.backlog(up).lost, journal.backlog(user).lost), (0, 0));
    }
}

#[test]
fn what_a_part_has_lent_it_takes_back_from_whoever_has_most() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::DropOldest));
    let [ann, bob] = ["session/u/ann\0a", "session/u/bob\0b"].map(|name| journal.register(name, ANY));
    fill(&journal, 0..60, &[bob]);
    fill(&journal, 0..650, &[ann]);
    assert_eq!(journal.backlog(ann).dropped + journal.backlog(bob).dropped, 0, "all of it is lent");
    let up = journal.register("upstream/home", ANY);
    fill(&journal, 0..380, &[up]);
    assert_eq!((journal.backlog(up).dropped, journal.backlog(bob).dropped), (0, 0));
    let left = journal.backlog(ann);
    assert!(left.dropped > 200 && left.messages > 180, "{left:?}");
    assert_eq!(waiting(&journal, ann), (left.dropped..650).collect::<Vec<_>>());
    assert_eq!(waiting(&journal, bob), (0..60).collect::<Vec<_>>());
}

#[test]
fn old_messages_that_wait_do_not_keep_the_space_of_others() {
    for when_full in [WhenFull::DropOldest, WhenFull::Refuse] {
        let storage = MemoryStorage::default();
        let journal = open(&storage, settings(SMALL, when_full));
        let limits = Limits { when_full, ..ANY };
        let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, limits));
        for round in 0..200 {
            fill(&journal, round..round + 1, &[slow]);
            fill(&journal, 0..30, &[quick]);
            drain(&journal, quick);
        }
        for id in [slow, quick] {
            let backlog = journal.backlog(id);
            assert_eq!((backlog.dropped, backlog.lost), (0, 0), "{backlog:?}");
        }
        let status = journal.status();
        assert_eq!((status.refused, status.evicted, status.failing), (0, 0, None));
        wait_for("files within the bound", || {
            let files = storage.list().unwrap();
            files.iter().filter(|(name, _)| name != "snapshot").map(|(_, len)| len).sum::<u64>() <= SMALL
        });
        assert_eq!(waiting(&journal, slow), (0..200).collect::<Vec<_>>());
        drop(journal);
        let journal = again(&storage.after_power_cut(), when_full);
        let slow = journal.register("upstream/slow", limits);
        assert_eq!(waiting(&journal, slow), (0..200).collect::<Vec<_>>());
        // it goes on from there
        fill(&journal, 200..210, &[slow]);
        drain(&journal, slow);
        assert_eq!(journal.backlog(slow).lost, 0);
    }
}

#[test]
fn where_messages_are_refused_each_part_has_room_of_its_own() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let user = journal.register("session/u/ann\0a", ANY);
    let guest = journal.register("session/g/\0b", ANY);
    let up = journal.register("upstream/home", refuse);
    let fill_up = |id| {
        let mut count = 0u64;
        while let Ok(position) = journal.append(&message(payload(count).as_bytes()), &[id]) {
            wait_synced(&journal, position);
            count += 1;
        }
        count
    };
    let guests = fill_up(guest);
    let (ups, users) = (fill_up(up), fill_up(user));
    // 14 files of 57 KiB and 59 messages of 976 bytes each
    assert!(guests >= 150 && ups >= 400 && users >= 230, "{guests} {ups} {users}");
    assert!(
        journal.append(&message(payload(0).as_bytes()), &[up, user]).is_err(),
        "none gets what one has no room for"
    );
    for (id, count) in [(guest, guests), (up, ups), (user, users)] {
        assert_eq!(waiting(&journal, id), (0..count).collect::<Vec<_>>());
        assert_eq!(journal.backlog(id).dropped, 0);
    }
    assert_eq!(journal.status().failing, None);
}

#[test]
fn a_disk_that_takes_nothing_costs_nothing_that_waits() {
    // at a quarter of the size, and where it is full
    for count in [200, 900] {
        // EIO, EACCES, ENOSPC, EROFS
        for error in [5, 13, 28, 30] {
            let storage = MemoryStorage::default();
            let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
            let id = journal.register("upstream/home", ANY);
            fill(&journal, 0..count, &[id]);
            let before = (journal.backlog(id).dropped, journal.status().evicted);
            storage.set_faults(Faults {
                create: Some(error),
                write: (error != 28).then_some(error),
                sync: (error == 5).then_some(error),
                ..Faults::default()
            });
            let mut last = Position(0);
            for number in count..count + 200 {
                last = journal.append(&message(payload(number).as_bytes()), &[id]).unwrap();
            }
            wait_for("trouble is known", || journal.status().failing.is_some());
            let failing = journal.status().failing.unwrap();
            assert!(!failing.contains("max_size"), "{failing}");
            // a restart in between changes nothing of that
            let cut = storage.after_power_cut();
            cut.set_faults(Faults { create: Some(error), write: Some(error), ..Faults::default() });
            let other = open(&cut, settings(SMALL, WhenFull::DropOldest));
            let kept = other.register("upstream/home", ANY);
            other.append(&message(payload(9).as_bytes()), &[kept]).unwrap();
            wait_for("trouble is known", || other.status().failing.is_some());
            assert!(other.backlog(kept).messages as u64 >= count - before.0, "{:?}", other.backlog(kept));
            assert_eq!((other.status().evicted, other.backlog(kept).lost), (0, 0));
            cut.set_faults(Faults::default());
            wait_for("healed", || other.status().failing.is_none());
            let healed = other.backlog(kept);
            assert_eq!((healed.lost, healed.dropped == 0), (0, count == 200), "{healed:?}");
            drop(other);
            assert_eq!((journal.backlog(id).dropped, journal.status().evicted), before);
            storage.set_faults(Faults::default());
            wait_synced(&journal, last);
            let backlog = journal.backlog(id);
            assert_eq!((backlog.lost, backlog.accepted), (0, count + 200));
            assert_eq!(backlog.dropped == 0, count == 200, "{backlog:?}");
            assert_eq!(waiting(&journal, id), (backlog.dropped..count + 200).collect::<Vec<_>>());
        }
    }
}

/// A journal whose next file comes from merging; returns the consumer for whom something waits, and the one that is done.
fn ready_to_merge(storage: &MemoryStorage) -> (Journal, ConsumerId, ConsumerId) {
    let journal = open(storage, settings(SMALL, WhenFull::DropOldest));
    let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, ANY));
    let files = |journal: &Journal| journal.status().segments;
    let mut number = 0;
    // seven parts of ten wait, so that three files become two and one is left in part
    while files(&journal) < 16 {
        fill(&journal, number..number + 7, &[slow]);
        fill(&journal, 0..3, &[quick]);
        number += 7;
    }
    drain(&journal, quick);
    (journal, slow, quick)
}

#[test]
fn a_merge_cut_at_any_change_keeps_all_that_waits_once_and_in_order() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let expected = waiting(&journal, slow);
    let before = storage.copy();
    storage.record();
    let evicted = |journal: &Journal| journal.status().evicted;
    let merged = |storage: &MemoryStorage| {
        storage.recorded().iter().any(|change| matches!(change, Change::Write(_, 0, bytes) if bytes[10] == 3))
    };
    let mut rounds = 0;
    while !merged(&storage) {
        fill(&journal, 0..5, &[quick]);
        rounds += 1;
        assert!(rounds < 100, "nothing is merged");
    }
    assert_eq!((evicted(&journal), journal.backlog(slow).dropped), (0, 0));
    let changes = storage.recorded();
    let first = changes.iter().position(|change| matches!(change, Change::Write(_, 0, bytes) if bytes[10] == 2));
    let first = first.unwrap().saturating_sub(4);
    let mut cuts = 0;
    for count in first..=changes.len() {
        let len = match changes.get(count) {
            Some(Change::Write(_, _, bytes)) => bytes.len(),
            _ => 1,
        };
        // every byte of a header, some of what is long
        let step = if len > 100 { 1777 } else { 1 };
        for most in (0..len).step_by(step) {
            for synced_only in [false, true] {
                if synced_only && most > 0 {
                    continue;
                }
                let cut = before.copy();
                changes[..count].iter().for_each(|change| cut.apply(change, usize::MAX));
                if let Some(change) = changes.get(count) {
                    cut.apply(change, most);
                }
                let cut = if synced_only { cut.after_power_cut() } else { cut };
                let journal = open(&cut, settings(SMALL, WhenFull::DropOldest));
                let slow = journal.register("upstream/slow", ANY);
                assert_eq!(waiting(&journal, slow), expected, "cut in change {count} at {most}, {synced_only}");
                assert_eq!(journal.backlog(slow).lost, 0);
                wait_for("the check", || journal.shared.state.lock().unverified.is_empty());
                assert!(!journal.reports().iter().any(report::Report::is_loss), "{:?}", journal.reports());
                cuts += 1;
            }
        }
    }
    assert!(cuts > 200, "{cuts}");
}

#[test]
fn consumers_read_on_while_segments_are_merged() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let count = journal.backlog(slow).messages as u64;
    let mut reader = journal.reader(slow);
    let mut next = 0u64;
    // each merge happens with something in hand and the rest on disk
    for _ in 0..40 {
        wait_for("some", || {
            let Some(delivery) = reader.try_next() else { return false };
            assert!(payloads(std::slice::from_ref(&delivery))[0].1.starts_with(&format!("{next} ")));
            next += 1;
            next.is_multiple_of(5)
        });
        fill(&journal, 0..30, &[quick]);
        drain(&journal, quick);
    }
    wait_for("the rest", || {
        while let Some(delivery) = reader.try_next() {
            assert!(payloads(std::slice::from_ref(&delivery))[0].1.starts_with(&format!("{next} ")));
            next += 1;
        }
        next == count
    });
    assert_eq!((journal.backlog(slow).lost, journal.backlog(slow).dropped), (0, 0));
    assert_eq!(journal.reports(), []);
}

#[test]
fn damage_is_not_merged_away() {
    let storage = MemoryStorage::default();
    let (journal, slow, _) = ready_to_merge(&storage);
    let count = journal.backlog(slow).messages;
    journal.close();
    let name = segment::name(0);
    storage.flip(&name, (format::DATA as usize + 5000) * 8);
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, ANY));
    for _ in 0..20 {
        fill(&journal, 0..30, &[quick]);
        drain(&journal, quick);
    }
    wait_for("a report", || journal.reports().iter().any(report::Report::is_loss));
    assert_eq!(journal.backlog(slow).dropped, 0);
    assert_eq!(read_all(&journal, &mut journal.reader(slow), count - 1).len(), count - 1);
}
