//! Tests of messages that a reader does not keep in memory although they are not settled.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % most
    }
}

#[test]
fn what_was_let_go_is_not_in_memory_and_is_read_again_from_the_log() {
    let journal = open(&MemoryStorage::default(), settings(16 << 20, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    for number in 0..100 {
        journal.append(&message(&vec![number; 8 << 10]), &[id]).unwrap();
    }
    let mut reader = journal.reader(id);
    let mut most = 0;
    for number in 1..=100 {
        let read = read_next(&mut reader);
        most = most.max(bytes_in_memory(&journal, id));
        assert_eq!(read.ordinal, number);
        match number {
            1 | 50 => reader.settle(read.position),
            _ => reader.let_go(&read),
        }
    }
    assert!(most < 512 << 10, "{most}");
    assert!(!reader.has_unread());
    assert_eq!((reader.passed(), reader.backlog().messages), (1, 98));
    // a new reader begins at the oldest one
    drop(reader);
    let mut reader = journal.reader(id);
    assert!(reader.has_unread());
    let again = read_all(&journal, &mut reader, 98);
    assert_eq!(again.iter().map(|it| it.ordinal).collect::<Vec<_>>(), (2..50).chain(51..=100).collect::<Vec<_>>());
    assert!(again.iter().all(|it| it.message.view().payload() == vec![it.ordinal as u8 - 1; 8 << 10]));
    again.iter().for_each(|it| reader.settle(it.position));
    assert_eq!((reader.passed(), reader.backlog().messages, reader.backlog().settled), (0, 0, 100));
}

/// A rest in between changes nothing either: what is settled already comes after messages that are read again from the log.
#[test]
fn what_was_settled_out_of_order_does_not_make_earlier_ones_lost() {
    let journal = open(&MemoryStorage::default(), settings(16 << 20, WhenFull::DropOldest));
    let id = journal.register("upstream/a", ANY);
    for number in 0..100 {
        journal.append(&message(&vec![number; 15 << 10]), &[id]).unwrap();
    }
    let mut reader = journal.reader(id);
    let read = read_all(&journal, &mut reader, 100);
    reader.settle(read[99].position);
    reader.rewind();
    reader.rest();
    for ordinal in 1..=99 {
        let read = read_next(&mut reader);
        assert_eq!(read.ordinal, ordinal);
        reader.settle(read.position);
    }
    let backlog = reader.backlog();
    assert_eq!((backlog.settled, backlog.lost, backlog.messages), (100, 0, 0));
}

fn read_next(reader: &mut Reader) -> Delivery {
    let mut next = None;
    wait_for("a message", || {
        next = reader.try_next();
        next.is_some()
    });
    next.unwrap()
}

/// Whatever is let go, settled, read again and dropped by limits, each message that is not settled or dropped comes again with
/// each rewind, once and in order, and the counts add up.
#[test]
fn nothing_is_lost_or_doubled_by_letting_go() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let journal = open(&MemoryStorage::default(), settings(16 << 20, WhenFull::DropOldest));
        let most = 20 + random.below(60) as usize;
        let id = journal.register("upstream/a", limits(most, WhenFull::DropOldest));
        let mut reader = journal.reader(id);
        let mut in_hand: BTreeMap<u64, Delivery> = BTreeMap::new();
        let mut settled = BTreeSet::new();
        let (mut appended, mut last) = (0u64, 0);
        for _ in 0..300 {
            let dropped = appended.saturating_sub(most as u64);
            match random.below(10) {
                0..3 => {
                    journal.append(&message(&vec![7; random.below(3000) as usize]), &[id]).unwrap();
                    appended += 1;
                }
                3..6 if reader.has_unread() => {
                    let read = read_next(&mut reader);
                    let skipped: Vec<_> = (last + 1..read.ordinal).filter(|it| !settled.contains(it)).collect();
                    assert!(
                        skipped.iter().all(|it| *it <= dropped),
                        "seed {seed}: {skipped:?} before {}",
                        read.ordinal
                    );
                    assert!(!settled.contains(&read.ordinal) && read.ordinal > last, "seed {seed}");
                    last = read.ordinal;
                    in_hand.insert(last, read);
                }
                6 | 7 => {
                    if let Some((_, delivery)) = in_hand.pop_first() {
                        reader.let_go(&delivery);
                    }
                }
                8 if !in_hand.is_empty() => {
                    let at = random.below(in_hand.len() as u64) as usize;
                    let (ordinal, delivery) = in_hand.iter().nth(at).map(|(at, it)| (*at, it.clone())).unwrap();
                    in_hand.remove(&ordinal);
                    reader.settle(delivery.position);
                    settled.insert(ordinal);
                }
                9 if random.below(4) == 0 => {
                    reader.rewind();
                    (last, in_hand) = (0, BTreeMap::new());
                }
                _ => {}
            }
        }
        reader.rewind();
        while reader.has_unread() {
            let read = read_next(&mut reader);
            reader.settle(read.position);
            assert!(settled.insert(read.ordinal), "seed {seed}");
        }
        let backlog = reader.backlog();
        assert_eq!((backlog.lost, backlog.messages, backlog.accepted), (0, 0, appended), "seed {seed}");
        assert_eq!(backlog.settled + backlog.dropped, appended, "seed {seed}");
        assert_eq!(backlog.settled, settled.len() as u64, "seed {seed}");
    }
}
