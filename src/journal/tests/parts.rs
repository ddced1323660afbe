//! Tests of the journal's parts, and of cases in which no message may be dropped. The tests of merging are in `merging.rs`.

use super::*;
use crate::journal::storage::Storage;
use crate::journal::storage::memory::Faults;

pub(crate) const SMALL: u64 = 1 << 20;

/// A payload of about a kilobyte with a number in front.
pub(crate) fn payload(number: u64) -> String {
    format!("{number} {}", "x".repeat(900))
}

/// Appends messages one after the other, as fast as the disk takes them.
pub(crate) fn fill(journal: &Journal, numbers: std::ops::Range<u64>, to: &[ConsumerId]) {
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

/// Reads and settles all waiting messages.
pub(crate) fn drain(journal: &Journal, id: ConsumerId) {
    let mut reader = journal.reader(id);
    wait_for("drained", || {
        while let Some(delivery) = reader.try_next() {
            reader.settle(delivery.position);
        }
        journal.backlog(id).messages == 0
    });
}

/// The numbers of the messages that wait for a consumer, in the order of delivery.
pub(crate) fn waiting(journal: &Journal, id: ConsumerId) -> Vec<u64> {
    let read = read_all(journal, &mut journal.reader(id), journal.backlog(id).messages);
    assert!(read.windows(2).all(|pair| pair[0].ordinal < pair[1].ordinal));
    let number = |text: String| text.split(' ').next().unwrap().parse().unwrap();
    payloads(&read).into_iter().map(|(_, text)| number(text)).collect()
}

fn again(storage: &MemoryStorage, when_full: WhenFull) -> Journal {
    let journal = open(storage, settings(SMALL, when_full));
    wait_for("the check", || journal.shared.state.lock().log.is_checked());
    assert_eq!(journal.reports(), []);
    journal
}

#[test]
fn guests_do_not_push_out_what_upstreams_and_users_wait_for() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let (up, user) = (journal.register("upstream/home", ANY), journal.register("session/u/ann\0esp", ANY));
    let guests: Vec<ConsumerId> = (0..24).map(|n| journal.register(&format!("session/g/\0{n}"), ANY)).collect();
    // the messages alternate, and most messages of the guests come later
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
        // the journal accepts and delivers further messages
        fill(&journal, 200..210, &[slow]);
        drain(&journal, slow);
        assert_eq!(journal.backlog(slow).lost, 0);
    }
}

/// Appends messages for a consumer until one is refused. Returns the number of accepted messages.
fn fill_until_refused(journal: &Journal, id: ConsumerId) -> u64 {
    let mut count = 0u64;
    while let Ok(position) = journal.append(&message(payload(count).as_bytes()), &[id]) {
        wait_synced(journal, position);
        count += 1;
    }
    count
}

#[test]
fn where_messages_are_refused_each_part_has_room_of_its_own() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let user = journal.register("session/u/ann\0a", ANY);
    let guest = journal.register("session/g/\0b", ANY);
    let up = journal.register("upstream/home", refuse);
    let fill_up = |id| fill_until_refused(&journal, id);
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
    // with a journal that is a quarter full, and with a full one
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
            // a restart changes nothing of that
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

#[test]
fn where_messages_are_refused_a_part_has_room_from_the_moment_that_somebody_of_it_is_known() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let guest = journal.register("session/g/\0b", ANY);
    // the room is computed with the first message
    fill(&journal, 0..1, &[guest]);
    let up = journal.register("upstream/home", refuse);
    let fill_up = |id| fill_until_refused(&journal, id);
    let (guests, ups) = (fill_up(guest), fill_up(up));
    assert!(ups >= 400 && guests >= 150, "{ups} {guests}");
}

#[test]
fn who_gets_the_name_back_that_damage_has_taken_can_give_way() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/home", ANY);
    fill(&journal, 0..2000, &[id]);
    journal.close();
    // the record with the consumer's name is no longer in the log
    let len = storage.contents(format::SNAPSHOT).len();
    storage.blank(format::SNAPSHOT, 0, len);
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let before = journal.consumers().len();
    let id = journal.register("upstream/home", ANY);
    assert_eq!((before, journal.consumers().len()), (1, 1), "it is the one without a name");
    fill(&journal, 2000..2200, &[id]);
    let backlog = journal.backlog(id);
    assert!(backlog.dropped > 0 && backlog.messages > 700, "{backlog:?}");
    // the same, with the name in a record that is read again
    let storage = storage.after_power_cut();
    let len = storage.contents(format::SNAPSHOT).len();
    storage.blank(format::SNAPSHOT, 0, len);
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let usage = journal.shared.state.lock().most_above(&journal.shared.settings);
    assert!(usage.is_some_and(|(part, _)| part == crate::journal::parts::Part::Upstreams), "{usage:?}");
    let id = journal.register("upstream/home", ANY);
    fill(&journal, 2200..2400, &[id]);
}

#[test]
fn what_is_of_one_gives_way_together_under_whatever_names() {
    use crate::journal::parts::{Part, PartHolder};
    let holders: [(Part, &[&str]); 6] = [
        (Part::Upstreams, &["upstream/home", "upstream/home/2"]),
        (Part::Upstreams, &["upstream/cloud"]),
        (Part::Users, &["session/u/ann\0a", "session/u/ann\0b", "share/u/ann\0group/a/#", "share/u/ann\0other/b"]),
        (Part::Users, &["session/u/bob\0a", "share/u/bob\0group/#"]),
        (Part::Users, &["share/u/group/a/#"]),
        (Part::Guests, &["session/g/\0a", "session/g/\0b", "share/g/group/a"]),
    ];
    for (at, (part, names)) in holders.iter().enumerate() {
        for name in *names {
            assert_eq!(Part::of(name), *part, "{name:?}");
            let same = holders.iter().map(|(_, others)| PartHolder::of(others[0]) == PartHolder::of(name));
            assert!(same.enumerate().all(|(other, is_same)| is_same == (other == at)), "{name:?}");
        }
    }
    // names of older versions that did not contain the user, and a name that was lost
    assert_eq!(["session/a", ""].map(Part::of), [Part::Users; 2]);
    assert_ne!(PartHolder::of("session/a"), PartHolder::of("session/b"));
}

#[test]
fn what_cannot_be_merged_is_no_room_for_others() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let [slow, quick] = ["upstream/slow", "upstream/quick"].map(|name| journal.register(name, refuse));
    // a few records of every file are needed
    for round in 0..10 {
        fill(&journal, round..round + 1, &[slow]);
        fill(&journal, 0..58, &[quick]);
    }
    drain(&journal, quick);
    journal.shared.state.lock().log.segments_mut().for_each(|segment| segment.is_damaged = true);
    let count = fill_until_refused(&journal, quick);
    assert!(count > 50, "{count}");
    assert_eq!((journal.status().failing, journal.backlog(slow).messages), (None, 10));
    assert_eq!(waiting(&journal, quick).len() as u64, count);
}

#[test]
fn a_part_that_is_full_says_nothing_of_another() {
    let journal = open(&MemoryStorage::default(), settings(SMALL, WhenFull::Refuse));
    let refuse = Limits { when_full: WhenFull::Refuse, ..ANY };
    let (guest, up) = (journal.register("session/g/\0b", ANY), journal.register("upstream/home", refuse));
    fill_until_refused(&journal, guest);
    wait_for("quiet", || journal.is_quiet());
    let looks = || journal.shared.state.lock().space.looks();
    assert!(journal.append(&message(payload(0).as_bytes()), &[guest]).is_err());
    // the known room for upstreams is used up
    journal.shared.state.lock().space.forget();
    let before = looks();
    journal.append(&message(payload(0).as_bytes()), &[up]).unwrap();
    assert_eq!(looks(), before + 1);
}

#[test]
fn what_may_have_been_sent_is_known_after_a_crash() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 24, WhenFull::DropOldest));
    let id = journal.register("upstream/home", ANY);
    for number in 0..5000u32 {
        let position = journal.append(&message(&number.to_le_bytes()), &[id]).unwrap();
        if number % 1000 == 999 {
            wait_synced(&journal, position);
        }
    }
    let mut reader = journal.reader(id);
    wait_for("a message", || reader.try_next().is_some());
    let journal = open(&storage.after_power_cut(), settings(1 << 24, WhenFull::DropOldest));
    let id = journal.register("upstream/home", ANY);
    let first = journal.maybe_sent(id, 0).start;
    // the messages since the last cursor, and those that the reader had in memory
    assert_eq!(journal.maybe_sent(id, 20), first..first + 1500);
    assert_eq!(journal.maybe_sent(id, 3000), first..first + 3500);
    assert_eq!(journal.maybe_sent(id, 60_000), first..first + 5000, "and no more than there are");
}
