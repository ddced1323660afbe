//! Tests of shelves.

use super::look::MOST_PASSED;
use super::*;
use crate::journal::storage::memory::{Faults, FileChange, MemoryStorage};
use crate::journal::tests::{ANY, bytes_in_memory, open, read_all, settings, wait_for, wait_synced};
use crate::message::{Draft, matches};

const LIMITS: Limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };

/// More messages than are in memory at a time.
const MANY: usize = 1500;

fn filters(texts: &[&str]) -> Vec<TopicFilter> {
    texts.iter().map(|text| TopicFilter::new(*text).unwrap()).collect()
}

impl Shelf {
    /// Waits until a look may go on.
    async fn more(&self) {
        let mut synced = self.journal.synced();
        let synced = async {
            while !self.waits_for_room() {
                let _ = synced.changed().await;
            }
            tokio::task::yield_now().await;
        };
        tokio::select! {
            () = self.ready() => {}
            () = synced => {}
        }
    }
}

async fn take_back(shelf: &mut Shelf, texts: &[&str], to: ConsumerId) {
    let filters = filters(texts);
    shelf.look(&filters);
    while shelf.is_looking() {
        let more = shelf.take_back(|message| filters.iter().any(|it| matches(it, message.view().topic())), to);
        if !more && shelf.is_looking() {
            shelf.more().await;
        }
    }
}

#[tokio::test]
async fn what_a_rule_matches_again_leaves_in_order_and_the_rest_stays() {
    let journal = Journal::default();
    let lane = journal.register("upstream/home", LIMITS);
    let mut shelf = Shelf::new(&journal, "home", LIMITS);
    let count = 5 * MANY;
    for number in 0..count {
        let topic = if number % 5 == 4 { "attic" } else { "loft" };
        shelf.put_unmeant(&Message::new(&Draft::new(topic, number.to_string().as_bytes()))).unwrap();
    }
    // as after a restart
    drop(shelf);
    let mut shelf = Shelf::new(&journal, "home", LIMITS);
    take_back(&mut shelf, &["lofts"], lane).await;
    assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (count, 0));
    shelf.look(&filters(&["lofts"]));
    assert!(!shelf.is_looking(), "with these filters it was done");
    take_back(&mut shelf, &["attic"], lane).await;
    assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (count / 5 * 4, count / 5));
    take_back(&mut shelf, &["#"], lane).await;
    assert_eq!((shelf.backlog().messages, journal.backlog(lane).messages), (0, count));
    let mut reader = journal.reader(lane);
    let (attic, loft): (Vec<_>, Vec<_>) = (0..count).partition(|number| number % 5 == 4);
    for number in attic.into_iter().chain(loft) {
        let delivery = loop {
            match reader.try_next() {
                Some(delivery) => break delivery,
                None => reader.ready().await,
            }
        };
        assert_eq!(delivery.message.view().payload(), number.to_string().as_bytes());
    }
    shelf.put_unmeant(&Message::new(&Draft::new("loft", b""))).unwrap();
    shelf.look(&filters(&["#"]));
    assert!(shelf.is_looking(), "it was not there when these filters were looked with");
}

/// A message on this topic whose payload is this number, filled to this size.
fn sized(topic: &str, number: usize, size: usize) -> Message {
    let mut payload = number.to_string().into_bytes();
    payload.resize(size, b' ');
    Message::new(&Draft::new(topic, &payload))
}

fn number(message: &Message) -> usize {
    std::str::from_utf8(message.view().payload()).unwrap().trim().parse().unwrap()
}

/// Puts these onto the shelf, and waits for room where there is none.
fn fill(shelf: &mut Shelf, messages: impl Iterator<Item = Message>) {
    for message in messages {
        wait_for("room", || shelf.put(&message).is_ok());
    }
}

/// The numbers of all that waits for this consumer.
fn numbers(journal: &Journal, id: ConsumerId) -> Vec<usize> {
    let waiting = journal.backlog(id).messages;
    let read = read_all(journal, &mut journal.reader(id), waiting);
    read.iter().map(|delivery| number(&delivery.message)).collect()
}

/// Looks at all that is on a shelf, and takes back what fits. Returns the most bytes that were in memory at a time.
async fn look_at_all(shelf: &mut Shelf, fits: impl Fn(&str) -> bool, to: ConsumerId) -> usize {
    assert!(shelf.look_at_all());
    look_on(shelf, fits, to).await
}

/// The same for a look that has begun.
async fn look_on(shelf: &mut Shelf, fits: impl Fn(&str) -> bool, to: ConsumerId) -> usize {
    let mut most = 0;
    while shelf.is_looking() {
        let more = shelf.take_back(|message| fits(message.view().topic()), to);
        most = most.max(bytes_in_memory(&shelf.journal, shelf.id.unwrap()));
        if !more && shelf.is_looking() {
            shelf.more().await;
        }
    }
    assert!(shelf.is_done());
    most
}

/// The bytes that were written since the storage records.
fn written(journal: &Journal, storage: &MemoryStorage) -> usize {
    wait_synced(journal, journal.barrier());
    let written = storage.recorded().into_iter().map(|change| match change {
        FileChange::Write(_, _, bytes) => bytes.len(),
        _ => 0,
    });
    written.sum()
}

#[tokio::test]
async fn a_look_writes_only_what_goes_if_little_goes_past_what_stays() {
    const SIZE: usize = 200_000;
    let storage = MemoryStorage::default();
    let reopened = || {
        let journal = open(&storage, settings(128 << 20, WhenFull::DropOldest));
        let lane = journal.register("upstream/home", ANY);
        (Shelf::of_denied(&journal, "home", ANY), journal, lane)
    };
    let topic = |number: usize| match number {
        0 => "oldest",
        1..130 if number.is_multiple_of(13) => "few",
        _ => "denied",
    };
    let (mut shelf, mut journal, mut lane) = reopened();
    fill(&mut shelf, (0..150).map(|number| sized(topic(number), number, SIZE)));
    for (goes, count) in [("none", 0), ("oldest", 1), ("none", 0), ("few", 9)] {
        wait_synced(&journal, journal.barrier());
        drop(shelf);
        journal.close();
        drop(journal);
        (shelf, journal, lane) = reopened();
        wait_synced(&journal, journal.barrier());
        storage.record();
        let most = look_at_all(&mut shelf, |topic| topic == goes, lane).await;
        let written = written(&journal, &storage);
        let expected = count * SIZE..=count * (SIZE + 8192);
        assert!(expected.contains(&written), "{written} bytes were written for {count} of {goes}");
        assert!(most < 4 * SIZE, "{most} bytes in memory");
    }
    assert_eq!(numbers(&journal, lane), [0].into_iter().chain((1..10).map(|few| few * 13)).collect::<Vec<_>>());
    let denied: Vec<_> = (0..150).filter(|number| topic(*number) == "denied").collect();
    assert_eq!(numbers(&journal, shelf.id.unwrap()), denied);
}

#[tokio::test]
async fn a_look_at_large_messages_holds_few_bytes_and_waits_for_room() {
    const COUNT: usize = 150;
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(128 << 20, WhenFull::DropOldest));
    let lane = journal.register("upstream/home", ANY);
    let mut shelf = Shelf::of_denied(&journal, "home", ANY);
    // 30 MB, of which every other one stays
    let topic = |number: usize| if number % 2 == 1 { "tried" } else { "denied" };
    fill(&mut shelf, (0..COUNT).map(|number| sized(topic(number), number, 200_000)));
    wait_synced(&journal, journal.barrier());
    // the room for what waits for the disk is smaller than what goes
    storage.set_faults(Faults { hold_sync: true, ..Faults::NONE });
    assert!(shelf.look_at_all());
    while !shelf.waits_for_room() {
        if !shelf.take_back(|message| message.view().topic() == "tried", lane) && !shelf.waits_for_room() {
            shelf.more().await;
        }
    }
    storage.set_faults(Faults::NONE);
    let most = look_on(&mut shelf, |topic| topic == "tried", lane).await;
    assert!(most < 1 << 20, "{most}");
    let (tried, denied): (Vec<_>, Vec<_>) = (0..COUNT).partition(|number| topic(*number) == "tried");
    assert_eq!(numbers(&journal, lane), tried);
    assert_eq!(numbers(&journal, shelf.id.unwrap()), denied, "in the same order as before");
}

#[tokio::test]
async fn a_look_that_is_interrupted_changes_no_order() {
    const COUNT: usize = 3 * MANY;
    // more than may go past the first one without a turn
    let allowed = 1..=MOST_PASSED + 10;
    let topic = |number: usize| if allowed.contains(&number) { "allowed" } else { "denied" };
    for restarts in [false, true] {
        let storage = MemoryStorage::default();
        let mut journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
        let mut lane = journal.register("upstream/home", ANY);
        let mut shelf = Shelf::of_denied(&journal, "home", ANY);
        fill(&mut shelf, (0..COUNT).map(|number| sized(topic(number), number, 10)));
        assert!(shelf.look_at_all());
        // the first ones are behind the last ones
        while shelf.turn.is_none() || journal.newest(shelf.id.unwrap()) < (COUNT + MANY / 2) as u64 {
            if !shelf.take_back(|message| message.view().topic() == "allowed", lane) {
                shelf.more().await;
            }
        }
        if restarts {
            wait_synced(&journal, journal.barrier());
            drop(shelf);
            journal.close();
            drop(journal);
            journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
            lane = journal.register("upstream/home", ANY);
            shelf = Shelf::of_denied(&journal, "home", ANY);
        }
        assert!(shelf.turn.is_some());
        look_at_all(&mut shelf, |_| true, lane).await;
        assert_eq!((shelf.turn, shelf.backlog().messages), (None, 0));
        let (first, rest): (Vec<_>, Vec<_>) = (0..COUNT).partition(|number| allowed.contains(number));
        assert_eq!(numbers(&journal, lane), [first, rest].concat(), "restarts: {restarts}");
    }
}

#[tokio::test]
async fn what_several_looks_take_past_what_stays_is_bounded_together() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
    let lane = journal.register("upstream/home", ANY);
    let mut shelf = Shelf::of_denied(&journal, "home", ANY);
    let topics = ["a", "b", "c"];
    let part = MOST_PASSED / 2;
    let all = topics.into_iter().flat_map(|topic| (0..part).map(move |number| sized(topic, number, 10)));
    fill(&mut shelf, [sized("denied", 0, 10)].into_iter().chain(all));
    for topic in topics {
        look_at_all(&mut shelf, |it| it == topic, lane).await;
    }
    wait_synced(&journal, journal.barrier());
    drop(shelf);
    journal.close();
    drop(journal);
    let journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
    let shelf = Shelf::of_denied(&journal, "home", ANY);
    assert_eq!(shelf.backlog().messages, 1, "nothing that went has come back");
}

#[tokio::test]
async fn what_has_left_the_shelf_does_not_come_back_with_a_restart() {
    let storage = MemoryStorage::default();
    let journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
    let lane = journal.register("upstream/home", ANY);
    let mut shelf = Shelf::of_denied(&journal, "home", ANY);
    let topic = |number: usize| if number < 3 { "denied" } else { "allowed" };
    fill(&mut shelf, (0..500).map(|number| sized(topic(number), number, 10)));
    assert!(shelf.look_at_all());
    while shelf.is_looking() {
        if !shelf.take_back(|message| message.view().topic() == "allowed", lane) && shelf.is_looking() {
            shelf.more().await;
        }
    }
    wait_synced(&journal, journal.barrier());
    drop(shelf);
    journal.close();
    drop(journal);
    let journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
    let lane = journal.register("upstream/home", ANY);
    let shelf = Shelf::of_denied(&journal, "home", ANY);
    assert_eq!(numbers(&journal, lane), (3..500).collect::<Vec<_>>());
    assert_eq!(numbers(&journal, shelf.id.unwrap()), [0, 1, 2]);
}

#[tokio::test]
async fn a_crash_after_each_look_does_not_make_a_large_shelf_grow() {
    const COUNT: usize = 100;
    let mut storage = MemoryStorage::default();
    let fresh = |storage: &MemoryStorage| {
        let journal = open(storage, settings(128 << 20, WhenFull::DropOldest));
        let lane = journal.register("upstream/home", ANY);
        (Shelf::of_denied(&journal, "home", ANY), journal, lane)
    };
    let (mut shelf, mut journal, mut lane) = fresh(&storage);
    fill(&mut shelf, (0..COUNT).map(|number| sized("denied", number, 100_000)));
    for crash in 1..=4 {
        // so many that the shelf turns
        fill(&mut shelf, (0..MOST_PASSED + 5).map(|number| sized("allowed", number, 10)));
        look_at_all(&mut shelf, |topic| topic == "allowed", lane).await;
        wait_synced(&journal, journal.barrier());
        storage = storage.after_power_cut();
        (shelf, journal, lane) = fresh(&storage);
        assert_eq!(shelf.backlog().messages, COUNT, "after crash {crash}");
        assert_eq!(journal.backlog(lane).messages, crash * (MOST_PASSED + 5), "after crash {crash}");
    }
    assert_eq!(numbers(&journal, shelf.id.unwrap()), (0..COUNT).collect::<Vec<_>>());
}
