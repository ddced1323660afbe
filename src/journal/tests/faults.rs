//! Tests of power cuts, damaged files and failing disks.

use proptest::prelude::*;

use super::*;
use crate::journal::storage::Storage;
use crate::journal::storage::memory::{Faults, FileChange};

const SMALL: u64 = 1 << 20;

/// The contents of the journal that were promised to be safe at one moment.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// The payloads for the consumer, in order.
    messages: Vec<String>,
    /// The value of the retained message.
    retained: Option<String>,
    /// The value of the session.
    session: Option<String>,
}

/// Runs a short history. Returns the files and the promises, each with the number of recorded changes after which it was
/// given.
fn history(steps: &[u8]) -> (MemoryStorage, Vec<(usize, Promise)>) {
    let storage = MemoryStorage::default();
    storage.record();
    let (mut promise, mut promises) = (Promise::default(), vec![(0, Promise::default())]);
    let mut journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let mut reader: Option<Reader> = None;
    for (number, step) in steps.iter().enumerate() {
        let id = journal.register("upstream/a", ANY);
        let position = match step % 8 {
            0 => {
                promise.retained = Some(format!("r{number}"));
                let extra = Extra { retained: true, ..Extra::default() };
                let value = format!("r{number}");
                journal.append_with(&draft("retained", value.as_bytes(), true), &[], extra).unwrap()
            }
            1 => {
                promise.session = Some(format!("s{number}"));
                journal.keep_session("client", Some(format!("s{number}").as_bytes()), false).unwrap().0
            }
            2 => {
                // many records before one sync
                let mut last = Position(0);
                for part in 0..20 {
                    let payload = format!("m{number}.{part}");
                    last = journal.append(&message(payload.as_bytes()), &[id]).unwrap();
                    promise.messages.push(payload);
                }
                last
            }
            3 => {
                reader = None;
                journal.close();
                journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
                continue;
            }
            4 => {
                // a settled message may or may not be delivered again, so it is not promised any more
                settle_one(&journal, id, reader.get_or_insert_with(|| journal.reader(id)));
                continue;
            }
            _ => {
                let payload = format!("m{number} {}", "x".repeat(usize::from(*step) * 8));
                promise.messages.push(payload.clone());
                journal.append(&message(payload.as_bytes()), &[id]).unwrap()
            }
        };
        wait_synced(&journal, position);
        promises.push((storage.recorded().len(), promise.clone()));
    }
    drop(reader);
    drop(journal);
    (storage, promises)
}

fn settle_one(journal: &Journal, id: ConsumerId, reader: &mut Reader) {
    let waiting = journal.backlog(id).messages;
    wait_for("a message", || match reader.try_next() {
        Some(delivery) => {
            reader.settle(delivery.position);
            true
        }
        None => waiting < 3 || journal.backlog(id).messages == 0,
    });
}

/// Opens a journal with the remaining files. Returns its contents, its reports and the number of lost messages.
fn survived(storage: &MemoryStorage) -> (Promise, Vec<report::Report>, u64) {
    let journal = open(storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    let mut reader = journal.reader(id);
    let mut deliveries = Vec::new();
    wait_for("all", || {
        deliveries.extend(std::iter::from_fn(|| reader.try_next()));
        for delivery in &deliveries {
            reader.settle(delivery.position);
        }
        journal.backlog(id).messages == 0
    });
    let ordinals: Vec<u64> = deliveries.iter().map(|delivery| delivery.ordinal).collect();
    assert!(ordinals.windows(2).all(|pair| pair[0] < pair[1]), "in order: {ordinals:?}");
    // the journal accepts new messages
    let position = journal.append(&message(b"after"), &[id]).unwrap();
    wait_synced(&journal, position);
    let recovered = journal.recovered();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let promise = Promise {
        messages: payloads(&deliveries).into_iter().map(|(_, payload)| payload).collect(),
        retained: recovered.retained.first().map(|message| text(message.view().payload())),
        session: recovered.sessions.first().map(|(_, value)| text(value)),
    };
    let lost = journal.backlog(id).lost;
    wait_for("the check", || journal.shared.state.lock().log.is_checked());
    (promise, journal.reports(), lost)
}

/// Checks that everything that was promised and not settled was found. Messages written after the promise may be found too.
fn assert_kept(promised: &Promise, found: &Promise, settled: usize, what: &str) {
    for payload in &promised.messages[settled.min(promised.messages.len())..] {
        assert!(found.messages.contains(payload), "{what}: {payload} is gone");
    }
    if promised.retained.is_some() {
        let number = |retained: &Option<String>| retained.as_ref().and_then(|text| text[1..].parse::<u32>().ok());
        assert!(
            number(&found.retained) >= number(&promised.retained),
            "{what}: retained {:?} {:?}",
            promised.retained,
            found.retained
        );
    }
    assert!(found.session.is_some() || promised.session.is_none(), "{what}: the session is gone");
}

/// Replays the first `count` recorded changes, and `most` bytes of the next one.
fn replay(changes: &[FileChange], count: usize, most: usize, synced_only: bool) -> MemoryStorage {
    let storage = MemoryStorage::default();
    for change in &changes[..count] {
        storage.apply(change, usize::MAX);
    }
    if let Some(change) = changes.get(count) {
        storage.apply(change, most);
    }
    if synced_only { storage.after_power_cut() } else { storage }
}

#[test]
fn a_write_stream_cut_at_any_byte_keeps_what_was_acknowledged() {
    // no message is settled here, so every message must be kept
    let (storage, promises) = history(&[5, 0, 1, 2, 3, 6, 0, 7, 3, 1, 5, 2]);
    let changes = storage.recorded();
    let mut cuts = 0;
    for count in 0..changes.len() {
        let promise = &promises.iter().rev().find(|(at, _)| *at <= count).unwrap().1;
        let len = match &changes[count] {
            FileChange::Write(_, _, bytes) => bytes.len(),
            _ => 1,
        };
        for most in 0..len {
            // every byte of short changes, and every 7th of long ones
            if len > 400 && most % 7 != 0 {
                continue;
            }
            let what = format!("cut in change {count} at {most}");
            let (found, reports, lost) = survived(&replay(&changes, count, most, false));
            assert_kept(promise, &found, 0, &what);
            assert_eq!(lost, 0, "{what}");
            assert!(!reports.iter().any(report::Report::is_loss), "{what}: {reports:?}");
            cuts += 1;
        }
        let (found, ..) = survived(&replay(&changes, count, 0, true));
        assert_kept(promise, &found, 0, &format!("power cut before change {count}"));
    }
    assert!(cuts > 1000, "{cuts}");
}

#[test]
fn a_flipped_bit_costs_one_record_and_is_reported() {
    let (storage, promises) = history(&[5, 0, 1, 6, 7, 5, 6]);
    let promise = &promises.last().unwrap().1;
    let name = log::name(0);
    let used = storage.contents(&name).iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for bit in (0..used * 8).filter(|bit| bit / 8 >= format::DATA as usize || bit / 8 < 52 || bit / 8 / 52 == 4096 / 52)
    {
        let damaged = storage.copy();
        damaged.flip(&name, bit);
        let (found, reports, _) = survived(&damaged);
        let missing = promise.messages.iter().filter(|payload| !found.messages.contains(payload)).count();
        let state = usize::from(found.retained.is_none()) + usize::from(found.session.is_none());
        assert!(missing + state <= 1, "bit {bit}: {missing} {state} {found:?} {reports:?}");
        let is_last = bit / 8 > used - 300;
        assert!(missing + state == 0 || is_last || !reports.is_empty(), "bit {bit}");
    }
}

#[test]
fn a_blank_page_costs_what_was_on_it() {
    let (storage, promises) = history(&[2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
    let promise = &promises.last().unwrap().1;
    let name = log::name(0);
    let used = storage.contents(&name).iter().rposition(|byte| *byte != 0).unwrap();
    for page in 0..=used / 4096 {
        let damaged = storage.copy();
        damaged.blank(&name, page * 4096, 4096);
        let (found, reports, lost) = survived(&damaged);
        let missing = promise.messages.iter().filter(|payload| !found.messages.contains(payload)).count();
        // each of these records has at least 80 bytes
        assert!(missing <= 4096 / 80 + 2, "page {page}: {missing}");
        let is_last = page == used / 4096;
        assert!(is_last || !reports.is_empty(), "page {page}");
        // page 2 contains the record of the consumer, without which the number of messages accepted before is unknown
        assert!(is_last || page == 2 || missing as u64 == lost, "page {page}: {missing} {lost}");
    }
}

#[test]
fn a_damaged_snapshot_costs_at_most_what_was_damaged() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    journal.keep_session("client", Some(b"subscriptions"), false).unwrap();
    let mut last = Position(0);
    for number in 0..1000 {
        last = journal.append(&message(format!("{number} {}", "x".repeat(400)).as_bytes()), &[id]).unwrap();
    }
    wait_synced(&journal, last);
    drop(journal);
    assert!(storage.contents(format::SNAPSHOT).len() > 8192);
    let mut damages: Vec<(usize, usize)> =
        (0..storage.contents(format::SNAPSHOT).len() / 16).map(|at| (at * 16, 1)).collect();
    damages.extend((0..storage.contents(format::SNAPSHOT).len() / 4096).map(|page| (page * 4096, 4096)));
    for (at, len) in damages.into_iter().filter(|(at, _)| *at < 64 || *at >= 8192 || at % 4096 < 64) {
        let damaged = storage.copy();
        if len == 1 {
            damaged.flip(format::SNAPSHOT, at * 8)
        } else {
            damaged.blank(format::SNAPSHOT, at, len)
        }
        let (found, _, lost) = survived(&damaged);
        assert_eq!((found.messages.len(), lost), (1000, 0), "{at} {len}");
    }
}

#[test]
fn a_file_that_is_none_is_set_aside() {
    let (storage, promises) = history(&[5, 6, 7]);
    let name = log::name(0);
    storage.blank(&name, 0, 4096);
    storage.flip(&name, 4100 * 8);
    let other = log::name(7);
    storage.create(&other, 100).unwrap();
    storage.write_at(&other, 0, &[1; 100]).unwrap();
    let (found, reports, _) = survived(&storage);
    assert_eq!(found.messages.len(), 0, "{promises:?}");
    let aside = reports.iter().filter(|report| matches!(report, report::Report::SetAside { .. })).count();
    assert_eq!(aside, 2, "{reports:?}");
    let names: Vec<String> = storage.list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&format!("{name}.1.set-aside")), "{names:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_left_as_it_is_and_nothing_is_written_beside_it() {
    let (denied, broken) = (13, 5);
    // the disk returns nothing, or the file belongs to another user
    for (read, read_header) in [(Some(broken), broken), (None, denied)] {
        let (storage, promises) = history(&[5, 0, 1, 2, 3, 6, 7]);
        let before = storage.recorded().len();
        storage.set_faults(Faults { read, read_header: Some(read_header), ..Faults::NONE });
        let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
        let failing = |journal: &Journal| journal.status().failing.unwrap_or_default();
        let remedy = if read_header == denied { "give it to the user" } else { "see dmesg" };
        assert!(failing(&journal).contains(remedy) && failing(&journal).contains("restart"), "{}", failing(&journal));
        let id = journal.register("upstream/a", ANY);
        let position = journal.append(&message(b"new"), &[id]).unwrap();
        journal.close();
        assert!(*journal.synced().borrow() < position && storage.recorded().len() == before);
        storage.set_faults(Faults::NONE);
        let (found, reports, lost) = survived(&storage);
        assert_kept(&promises.last().unwrap().1, &found, 0, "after the restart");
        assert!(lost == 0 && reports.is_empty(), "{reports:?}");
    }
}

#[test]
fn blocks_that_cannot_be_read_cost_only_their_file() {
    let (storage, _) = history(&[5, 6]);
    storage.set_faults(Faults { read_header: Some(5), ..Faults::NONE });
    let (found, reports, _) = survived(&storage);
    assert!(found.messages.is_empty() && reports.iter().any(|report| report.to_string().contains("set aside")));
    assert!(reports[0].to_string().contains("cannot be read: Input/output error"), "{reports:?}");
}

#[test]
fn what_is_not_read_for_a_moment_is_read_later_and_not_lost() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(1 << 20, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    let positions: Vec<Position> = (0..50u8).map(|n| journal.append(&message(&[n; 1000]), &[id]).unwrap()).collect();
    wait_synced(&journal, positions[49]);
    storage.set_faults(Faults { read: Some(24), reads: Some(3), ..Faults::NONE });
    let read = read_all(&journal, &mut journal.reader(id), 50);
    assert!(read.iter().zip(&positions).all(|(delivery, position)| delivery.position == *position));
    assert_eq!(journal.backlog(id).lost, 0);
}

#[test]
fn a_name_that_is_taken_by_another_file_is_passed_over() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    storage.create(&log::name(0), 100).unwrap();
    let id = journal.register("upstream/a", ANY);
    wait_synced(&journal, journal.append(&message(b"x"), &[id]).unwrap());
    assert_eq!(storage.contents(&log::name(0)), [0; 100]);
    assert!(journal.status().failing.is_none());
}

#[test]
fn another_version_is_refused_with_a_sentence() {
    let (storage, _) = history(&[5]);
    let name = log::name(0);
    let mut header = storage.contents(&name)[..format::HEADER_LEN].to_vec();
    header[8] = 9;
    let crc = crc32c::crc32c(&header[..48]);
    header[48..].copy_from_slice(&crc.to_le_bytes());
    for at in [0, format::HEADER_COPY] {
        storage.write_at(&name, at, &header).unwrap();
    }
    let error =
        Journal::open(Arc::new(storage), settings(SMALL, WhenFull::DropOldest), TestClock::new(0, 0)).unwrap_err();
    assert!(error.to_string().contains("format 9, this program reads 1"), "{error}");
}

#[test]
fn nothing_is_said_to_be_safe_or_handed_out_before_it_is() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    let mut reader = journal.reader(id);
    storage.set_faults(Faults { hold_sync: true, ..Faults::default() });
    let position = journal.append(&message(b"x"), &[id]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(*journal.synced().borrow() < position);
    assert!(reader.try_next().is_none());
    storage.set_faults(Faults::default());
    wait_synced(&journal, position);
    assert_eq!(read_all(&journal, &mut reader, 1).len(), 1);
}

#[test]
fn what_a_failed_sync_leaves_open_is_written_elsewhere() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(SMALL, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    for round in 0..10u32 {
        storage.set_faults(Faults { sync: Some(5), syncs: Some(round % 3), ..Faults::default() });
        let position = journal.append(&message(&round.to_le_bytes()), &[id]).unwrap();
        wait_synced(&journal, position);
        // pages that the kernel only believes to have written are lost by a power cut
        let cut = storage.after_power_cut();
        let again = open(&cut, settings(SMALL, WhenFull::DropOldest));
        let id = again.register("upstream/a", ANY);
        let read = read_all(&again, &mut again.reader(id), round as usize + 1);
        let ordinals: Vec<u64> = read.iter().map(|delivery| delivery.ordinal).collect();
        assert_eq!(ordinals, (1..=u64::from(round) + 1).collect::<Vec<_>>());
        assert_eq!(again.backlog(id).lost, 0);
    }
    assert_eq!(journal.status().failing, None);
    assert_eq!(read_all(&journal, &mut journal.reader(id), 10).len(), 10);
}

#[test]
fn a_disk_that_takes_nothing_delays_or_refuses_and_heals_by_itself() {
    for (faults, when_full) in [
        (Faults { write: Some(28), create: Some(28), ..Faults::default() }, WhenFull::DropOldest),
        (Faults { write: Some(30), create: Some(30), ..Faults::default() }, WhenFull::Refuse),
        (Faults { create: Some(2), sync: Some(5), ..Faults::default() }, WhenFull::DropOldest),
    ] {
        let storage = MemoryStorage::default();
        let journal = open(&storage, settings(32 << 20, when_full));
        let id = journal.register("upstream/a", ANY);
        let before = journal.append(&message(b"before"), &[id]).unwrap();
        wait_synced(&journal, before);
        storage.set_faults(faults);
        let during = journal.append(&message(b"during"), &[id]).unwrap();
        wait_for("trouble is known", || journal.status().failing.is_some());
        assert!(*journal.synced().borrow() < during);
        let refused = journal.append(&message(b"more"), &[id]);
        assert_eq!(refused.is_err(), when_full == WhenFull::Refuse);
        if when_full == WhenFull::DropOldest {
            wait_for("memory is bounded", || journal.append(&message(&[0; 10_000]), &[id]).is_err());
            assert!(journal.status().pending_bytes <= PENDING_MAX);
        }
        storage.set_faults(Faults::default());
        wait_synced(&journal, during);
        wait_for("healed", || journal.status().failing.is_none());
        let read = payloads(&read_all(&journal, &mut journal.reader(id), journal.backlog(id).messages));
        if when_full == WhenFull::Refuse {
            assert_eq!(read, [(1, "before".into()), (2, "during".into())]);
        }
        assert_eq!(journal.backlog(id).lost, 0);
    }
}

#[test]
fn with_256_mib_stored_it_is_ready_at_once() {
    let storage = MemoryStorage::default();
    let all = JournalSettings { max_size: 256 << 20, ..JournalSettings::default() };
    let journal = open(&storage, all.clone());
    let id = journal.register("upstream/a", ANY);
    let (mut last, mut bytes) = (Position(0), 0);
    while bytes < 230 << 20 {
        match journal.append(&message(&[9; 20_000]), &[id]) {
            Ok(position) => (last, bytes) = (position, bytes + 20_000),
            Err(Full) => wait_synced(&journal, last),
        }
    }
    wait_synced(&journal, last);
    let waiting = journal.backlog(id);
    drop(journal);
    let begin = Instant::now();
    let journal = open(&storage, all);
    let took = begin.elapsed();
    let backlog = journal.backlog(journal.register("upstream/a", ANY));
    assert_eq!((backlog.messages, backlog.bytes), (waiting.messages, waiting.bytes));
    assert!(took < Duration::from_secs(1), "{took:?}");
    println!("ready after {took:?} with {} MiB", bytes >> 20);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_history_cut_anywhere_keeps_what_was_acknowledged(
        steps in prop::collection::vec(any::<u8>(), 1..40), cut in any::<prop::sample::Index>(), most in 0..5000usize,
        synced_only in any::<bool>(),
    ) {
        let (storage, promises) = history(&steps);
        let changes = storage.recorded();
        if changes.is_empty() { return Ok(()); }
        let count = cut.index(changes.len());
        let promise = &promises.iter().rev().find(|(at, _)| *at <= count).unwrap().1;
        let settled = steps.iter().filter(|step| *step % 8 == 4).count();
        let (found, reports, lost) = survived(&replay(&changes, count, most, synced_only));
        assert_kept(promise, &found, settled, "cut");
        prop_assert_eq!(lost, 0);
        prop_assert!(!reports.iter().any(report::Report::is_loss), "{:?}", reports);
    }

    #[test]
    fn any_damage_costs_no_more_than_it_touches(
        steps in prop::collection::vec(any::<u8>(), 1..30), file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(), blank in any::<bool>(),
    ) {
        let (storage, promises) = history(&steps);
        let files = storage.list().unwrap();
        if files.is_empty() { return Ok(()); }
        let name = &files[file.index(files.len())].0;
        let contents = storage.contents(name);
        let used = contents.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let byte = at.index(used);
        if blank { storage.blank(name, byte / 4096 * 4096, 4096) } else { storage.flip(name, byte * 8 + byte % 8) }
        let settled = steps.iter().filter(|step| *step % 8 == 4).count();
        let (found, _, _) = survived(&storage);
        let promised = &promises.last().unwrap().1.messages;
        let promised = &promised[settled.min(promised.len())..];
        let missing = promised.iter().filter(|payload| !found.messages.contains(payload)).count();
        prop_assert!(missing <= if blank { 4096 / 80 + 2 } else { 1 }, "{} missing", missing);
    }
}
