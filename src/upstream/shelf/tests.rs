//! Tests of shelves.

use super::look::{HELD, HELD_BYTES};
use super::*;
use crate::journal::storage::memory::MemoryStorage;
use crate::journal::tests::{ANY, open, read_all, settings, wait_for, wait_synced};
use crate::message::{Draft, matches};

const LIMITS: Limits = Limits { messages: 100_000, bytes: 64 << 20, when_full: WhenFull::DropOldest };

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
    let count = 5 * HELD;
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

#[tokio::test]
async fn a_look_at_large_messages_holds_few_bytes_and_waits_for_room() {
    const COUNT: usize = 150;
    let journal = open(&MemoryStorage::default(), settings(128 << 20, WhenFull::DropOldest));
    let lane = journal.register("upstream/home", ANY);
    let mut shelf = Shelf::of_denied(&journal, "home", ANY);
    // 30 MB, of which all but each tenth stay
    let topic = |number: usize| if number % 10 == 9 { "tried" } else { "denied" };
    fill(&mut shelf, (0..COUNT).map(|number| sized(topic(number), number, 200_000)));
    let (mut most, mut waited) = (0, 0);
    assert!(shelf.look_at_all());
    while shelf.is_looking() {
        let more = shelf.take_back(|message| message.view().topic() == "tried", lane);
        most = most.max(shelf.held_bytes());
        waited += usize::from(shelf.waits_for_room());
        if !more && shelf.is_looking() {
            shelf.more().await;
        }
    }
    assert!(shelf.is_done());
    assert!((HELD_BYTES / 2..=HELD_BYTES).contains(&most), "{most}");
    assert!(waited > 0, "the room for what waits for the disk is smaller");
    let (tried, denied): (Vec<_>, Vec<_>) = (0..COUNT).partition(|number| topic(*number) == "tried");
    assert_eq!(numbers(&journal, lane), tried);
    assert_eq!(numbers(&journal, shelf.id.unwrap()), denied, "in the same order as before");
}

#[tokio::test]
async fn a_look_that_is_interrupted_changes_no_order() {
    const COUNT: usize = 3 * HELD;
    for restarts in [false, true] {
        let storage = MemoryStorage::default();
        let mut journal = open(&storage, settings(4 << 20, WhenFull::DropOldest));
        let mut lane = journal.register("upstream/home", ANY);
        let mut shelf = Shelf::of_denied(&journal, "home", ANY);
        fill(&mut shelf, (0..COUNT).map(|number| sized("denied", number, 10)));
        assert!(shelf.look_at_all());
        // the first ones are behind the last ones
        while shelf.turn.is_none() || journal.newest(shelf.id.unwrap()) < (COUNT + HELD / 2) as u64 {
            if !shelf.take_back(|_| false, lane) {
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
        assert!(shelf.turn.is_some() && shelf.look_at_all());
        while shelf.is_looking() {
            if !shelf.take_back(|_| true, lane) && shelf.is_looking() {
                shelf.more().await;
            }
        }
        assert_eq!((shelf.turn, shelf.backlog().messages), (None, 0));
        assert_eq!(numbers(&journal, lane), (0..COUNT).collect::<Vec<_>>(), "restarts: {restarts}");
    }
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
    for crash in 0..6 {
        assert!(shelf.look_at_all());
        while shelf.is_looking() {
            if !shelf.take_back(|_| false, lane) && shelf.is_looking() {
                shelf.more().await;
            }
        }
        wait_synced(&journal, journal.barrier());
        storage = storage.after_power_cut();
        (shelf, journal, lane) = fresh(&storage);
        assert_eq!(shelf.backlog().messages, COUNT, "after crash {crash}");
    }
    assert_eq!(numbers(&journal, shelf.id.unwrap()), (0..COUNT).collect::<Vec<_>>());
}
