//! Tests of merging: what it keeps, what interrupts it, and when it would free nothing.

use super::parts::{SMALL, drain, fill, waiting};
use super::*;
use crate::journal::storage::Storage;
use crate::journal::storage::memory::{Faults, FileChange};

/// Makes a journal that gets its next file by merging. Returns a consumer with waiting messages, and one that has settled
/// all of its messages.
fn ready_to_merge(storage: &MemoryStorage) -> (Journal, ConsumerId, ConsumerId) {
    ready_after(storage, |_, _| {})
}

/// The same, with what `first` appends for the consumer with waiting messages before them.
fn ready_after(storage: &MemoryStorage, first: impl FnOnce(&Journal, ConsumerId)) -> (Journal, ConsumerId, ConsumerId) {
    let journal = open(storage, settings(SMALL, WhenFull::DropOldest));
    let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, ANY));
    first(&journal, slow);
    let files = |journal: &Journal| journal.status().segments;
    let mut number = 0;
    // seven of ten messages wait, so that three files can be merged into two and a part of one stays
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
    // both kinds of targets: a new file, and one that was a segment before
    let merged = |storage: &MemoryStorage| {
        let (changes, mut new) = (storage.recorded(), Vec::new());
        let mut into = [false; 2];
        for change in &changes {
            match change {
                FileChange::Create(name, _) => new.push(name),
                FileChange::Write(name, 0, bytes) if bytes[10] == 3 => into[usize::from(new.contains(&name))] = true,
                _ => {}
            }
        }
        into == [true; 2]
    };
    let mut rounds = 0;
    while !merged(&storage) {
        fill(&journal, 0..5, &[quick]);
        rounds += 1;
        assert!(rounds < 100, "nothing is merged");
    }
    assert_eq!((evicted(&journal), journal.backlog(slow).dropped), (0, 0));
    let changes = storage.recorded();
    let first = changes.iter().position(|change| matches!(change, FileChange::Write(_, 0, bytes) if bytes[10] == 2));
    let first = first.unwrap().saturating_sub(4);
    let mut cuts = 0;
    for count in first..=changes.len() {
        let len = match changes.get(count) {
            Some(FileChange::Write(_, _, bytes)) => bytes.len(),
            _ => 1,
        };
        // every byte of a header, and some bytes of longer writes
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
                wait_for("the check", || journal.shared.state.lock().log.is_checked());
                assert!(!journal.reports().iter().any(report::Report::is_loss), "{:?}", journal.reports());
                cuts += 1;
            }
        }
    }
    assert!(cuts > 200, "{cuts}");
}

#[test]
fn what_another_consumer_had_before_is_known_in_memory_from_the_disk_and_after_a_merge() {
    let storage = MemoryStorage::default();
    let second_hand = |deliveries: Vec<Delivery>| deliveries.iter().map(|one| one.handed_over).collect::<Vec<bool>>();
    let (journal, slow, quick) = ready_after(&storage, |journal, slow| {
        let group = journal.register("share/g/a/t", ANY);
        let (mut of_group, mut reader) = (journal.reader(group), journal.reader(slow));
        fill(journal, 0..1, &[slow]);
        fill(journal, 1..2, &[group]);
        let given = read_all(journal, &mut of_group, 1);
        wait_synced(journal, journal.hand_over(group, &given[0], slow).unwrap());
        assert_eq!(second_hand(read_all(journal, &mut reader, 2)), [false, true]);
    });
    let known = |journal: &Journal, slow: ConsumerId| {
        let all = read_all(journal, &mut journal.reader(slow), journal.backlog(slow).messages);
        second_hand(all)[..3].to_vec()
    };
    assert_eq!(known(&journal, slow), [false, true, false]);
    storage.record();
    let is_merged = |change: &FileChange| matches!(change, FileChange::Write(_, 0, bytes) if bytes[10] == 3);
    let mut rounds = 0;
    while !storage.recorded().iter().any(is_merged) {
        fill(&journal, 0..5, &[quick]);
        rounds += 1;
        assert!(rounds < 100, "nothing is merged");
    }
    assert_eq!(known(&journal, slow), [false, true, false]);
    drop(journal);
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let slow = journal.register("upstream/slow", ANY);
    assert_eq!(known(&journal, slow), [false, true, false]);
}

#[test]
fn consumers_read_on_while_segments_are_merged() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let count = journal.backlog(slow).messages as u64;
    let mut reader = journal.reader(slow);
    let mut next = 0u64;
    // each merge happens while the reader has some messages in memory and the rest is on disk
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
    let name = log::name(0);
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

/// Appends messages of this size until one is refused. Returns the position of the last.
fn stuff(journal: &Journal, id: ConsumerId, size: usize) -> Position {
    let mut last = Position(0);
    while let Ok(position) = journal.append(&message(&vec![b'x'; size]), &[id]) {
        wait_synced(journal, position);
        last = position;
    }
    last
}

#[test]
fn large_messages_that_leave_the_ends_of_files_empty_are_not_merged_in_vain() {
    // a file holds five of these, and a seventh of it stays empty
    const LARGE: usize = 9_800;
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::Refuse));
    let id = journal.register("upstream/home", Limits { when_full: WhenFull::Refuse, ..ANY });
    let last = stuff(&journal, id, LARGE);
    let before = journal.status().written_bytes;
    // small messages are accepted as long as there is room for them
    let last = stuff(&journal, id, 100).max(last);
    wait_synced(&journal, last);
    let status = journal.status();
    assert!(status.written_bytes - before < (128 << 10), "{status:?}");
    let state = journal.shared.state.lock();
    let plan = state.log.merge_plan(None, &state.queues, &journal.shared.settings, usize::MAX);
    drop(state);
    assert_eq!((status.failing, plan), (None, Vec::new()));
    drain(&journal, id);
    wait_for("room", || journal.append(&message(b"x"), &[id]).is_ok());
}

#[test]
fn a_merge_that_sets_nothing_free_is_not_repeated_until_something_changes() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    // each consumer has some large messages that wait behind small settled ones, so less can be merged than it seems
    let ids: Vec<ConsumerId> = (0..15).map(|n| journal.register(&format!("upstream/{n}"), refuse)).collect();
    for id in &ids {
        for size in [500; 20].into_iter().chain([11_000; 4]) {
            let position = journal.append(&message(&vec![b'x'; size]), &[*id]).unwrap();
            wait_synced(&journal, position);
        }
        let mut reader = journal.reader(*id);
        for delivery in read_all(&journal, &mut reader, 24).iter().take(20) {
            reader.settle(delivery.position);
        }
    }
    let mut last = Position(0);
    for _ in 0..150 {
        // the writing thread may notice that there is no room before all messages are accepted
        let Ok(position) = journal.append(&message(&[b'x'; 900]), &ids[..1]) else { break };
        last = position;
    }
    wait_for("it is full", || journal.status().failing.is_some());
    assert!(*journal.synced().borrow() < last);
    let before = journal.status().written_bytes;
    for _ in 0..100 {
        // wakes the writing thread
        journal.observe_clock();
        std::thread::sleep(Duration::from_millis(5));
    }
    let written = journal.status().written_bytes - before;
    assert!(written < 256 << 10, "{written}");
    ids[..4].iter().for_each(|id| drain(&journal, *id));
    wait_synced(&journal, last);
    wait_for("healed", || journal.status().failing.is_none());
}

#[test]
fn files_that_may_still_be_made_are_made_before_anything_is_given_up() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/home", ANY);
    fill(&journal, 0..900, &[id]);
    assert_eq!(journal.backlog(id).dropped, 0);
    journal.close();
    // all files are in use, and they are smaller than new files would be
    let journal = open(&storage, settings(2 * SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/home", ANY);
    fill(&journal, 900..1700, &[id]);
    let backlog = journal.backlog(id);
    assert_eq!((backlog.dropped, backlog.lost, journal.status().evicted), (0, 0, 0));
    assert_eq!(waiting(&journal, id), (0..1700).collect::<Vec<_>>());
}

#[test]
fn damage_that_a_merge_finds_is_reported_at_once() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let count = journal.backlog(slow).messages;
    storage.flip(&log::name(0), (format::DATA as usize + 5000) * 8);
    for _ in 0..20 {
        fill(&journal, 0..30, &[quick]);
        drain(&journal, quick);
    }
    wait_for("a report", || journal.reports().iter().any(report::Report::is_loss));
    let state = journal.shared.state.lock();
    assert_eq!(state.segments().filter(|segment| segment.is_bad).count(), 1);
    drop(state);
    assert_eq!(journal.reports().len(), 1);
    assert_eq!(journal.backlog(slow).dropped, 0);
    assert_eq!(read_all(&journal, &mut journal.reader(slow), count - 1).len(), count - 1);
}

#[test]
fn what_cannot_be_read_once_is_not_given_up_for_good() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let expected = waiting(&journal, slow);
    // if nothing at all could be merged, the oldest messages would have to be dropped
    storage.set_faults(Faults { read: Some(5), read_of_first: true, ..Faults::default() });
    let positions: Vec<Position> = (0..70).map(|_| journal.append(&message(&[b'x'; 900]), &[quick]).unwrap()).collect();
    let position = positions[69];
    wait_for("a merge that cannot read", || journal.shared.state.lock().segments().any(|segment| segment.is_damaged));
    storage.set_faults(Faults::default());
    wait_synced(&journal, position);
    wait_for("the check", || journal.shared.state.lock().segments().all(|segment| !segment.is_damaged));
    assert!(journal.shared.state.lock().segments().all(|segment| !segment.is_bad));
    assert_eq!(waiting(&journal, slow), expected);
}

#[test]
fn nothing_is_dropped_because_the_disk_does_not_read_for_a_moment() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    let expected = waiting(&journal, slow);
    storage.set_faults(Faults { read: Some(5), ..Faults::default() });
    let positions: Vec<Position> = (0..70).map(|_| journal.append(&message(&[b'x'; 900]), &[quick]).unwrap()).collect();
    wait_for("trouble is known", || journal.status().failing.is_some());
    assert_eq!((journal.status().evicted, journal.backlog(slow).dropped), (0, 0));
    storage.set_faults(Faults::default());
    wait_synced(&journal, positions[69]);
    assert_eq!((journal.status().evicted, journal.backlog(slow).dropped), (0, 0));
    assert_eq!(waiting(&journal, slow), expected);
}

/// Begins a merge that waits for the disk. Returns the journal and the consumer with waiting messages.
fn in_the_middle_of_a_merge(storage: &MemoryStorage) -> (Journal, ConsumerId) {
    let (journal, slow, quick) = ready_to_merge(storage);
    storage.record();
    storage.set_faults(Faults { hold_merge: true, ..Faults::default() });
    for _ in 0..70 {
        journal.append(&message(&[b'x'; 900]), &[quick]).unwrap();
    }
    wait_for("a merge", || merges_begun(storage) > 0);
    (journal, slow)
}

/// The number of merges that were begun since the changes are recorded.
fn merges_begun(storage: &MemoryStorage) -> usize {
    let changes = storage.recorded();
    changes.iter().filter(|change| matches!(change, FileChange::Write(_, 4096, bytes) if bytes[10] == 2)).count()
}

#[test]
fn what_becomes_known_of_a_segment_while_a_part_of_it_is_merged_stays_known() {
    let storage = MemoryStorage::default();
    let (journal, slow) = in_the_middle_of_a_merge(&storage);
    let expected = waiting(&journal, slow);
    let salts: Vec<u64> = {
        let mut state = journal.shared.state.lock();
        state.log.segments_mut().for_each(|segment| segment.is_bad = true);
        state.segments().map(|segment| segment.header.salt).collect()
    };
    storage.set_faults(Faults { hold_second_merge: true, ..Faults::default() });
    wait_for("the next file", || merges_begun(&storage) == 2);
    let state = journal.shared.state.lock();
    assert!(state.segments().any(|segment| segment.from > segment.header.base), "one is left in part");
    let old = state.segments().filter(|segment| salts.contains(&segment.header.salt));
    assert!(old.into_iter().all(|segment| segment.is_bad));
    drop(state);
    storage.set_faults(Faults::default());
    wait_synced(&journal, journal.barrier());
    assert_eq!(waiting(&journal, slow), expected);
}

#[test]
fn a_long_merge_is_no_disk_that_stands_still() {
    let storage = MemoryStorage::default();
    let (journal, _) = in_the_middle_of_a_merge(&storage);
    let long_ago = Instant::now().checked_sub(Duration::from_secs(60));
    journal.shared.state.lock().pending.set_writing_since(long_ago);
    assert!(journal.status().failing.is_some());
    assert_eq!(merges_begun(&storage), 1);
    storage.set_faults(Faults { hold_second_merge: true, ..Faults::default() });
    wait_for("the next file", || merges_begun(&storage) == 2);
    assert_eq!(journal.status().failing, None);
    storage.set_faults(Faults::default());
}

#[test]
fn nobody_waits_while_a_file_is_removed() {
    let storage = MemoryStorage::default();
    let (journal, slow, quick) = ready_to_merge(&storage);
    storage.set_faults(Faults { hold_remove: true, ..Faults::default() });
    let mut rounds = 0;
    while !storage.is_removing() {
        let position = journal.append(&message(&[b'x'; 900]), &[quick]).unwrap();
        wait_for("sync", || *journal.synced().borrow() >= position || storage.is_removing());
        rounds += 1;
        assert!(rounds < 1000, "nothing is removed");
    }
    let (said, heard) = std::sync::mpsc::channel();
    let asked = journal.clone();
    let asking = std::thread::spawn(move || said.send(asked.backlog(slow).messages));
    let answer = heard.recv_timeout(Duration::from_secs(30));
    storage.set_faults(Faults::default());
    asking.join().unwrap().unwrap();
    assert!(answer.is_ok(), "the journal's lock is held while a file is removed");
}

#[test]
fn what_is_missing_in_front_of_a_merged_segment_is_reported() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, ANY));
    // the first two files cannot be merged
    fill(&journal, 0..130, &[slow]);
    while journal.status().segments < 16 {
        fill(&journal, 0..7, &[slow]);
        fill(&journal, 0..3, &[quick]);
    }
    drain(&journal, quick);
    let merged = || {
        let state = journal.shared.state.lock();
        state.segments().position(|segment| segment.header.kind != format::FileKind::Segment)
    };
    wait_for("a merge", || {
        fill(&journal, 0..5, &[quick]);
        merged().is_some()
    });
    let before = {
        let state = journal.shared.state.lock();
        let at = state.segments().position(|segment| segment.header.kind != format::FileKind::Segment).unwrap();
        state.segments().nth(at - 1).unwrap().clone()
    };
    journal.close();
    storage.remove(format::SNAPSHOT).unwrap();
    storage.blank(&before.name, before.end as usize - 1200, 1200);
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let reports = journal.reports();
    let is_told = |report: &report::Report| matches!(report, report::Report::Damaged { file, records, .. } if *file == before.name && *records > 0);
    assert!(reports.iter().any(is_told), "{reports:?}");
}
