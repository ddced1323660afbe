//! Retained messages: the last one on each topic that was published with the retain flag [MQTT-3.3.1.3].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::meter::Walk;
use crate::access::quota::has_room;
use crate::message::{Message, MessageRef, Owner, matches};

/// The store of retained messages, bounded in messages and bytes. Announcements of the gateway are few and do not count.
///
/// Both limits apply to each [`Owner`], and to all of them together as in [`access::quota`](crate::access::quota): a single
/// owner may use the whole limit, all together a quarter more, and the largest owner is refused first. An existing message
/// is never removed for somebody else. A topic counts for the owner who has published on it last; on an existing topic only
/// a larger message needs more. Messages of the gateway and its sensors find room whatever others have.
#[derive(Debug)]
pub(crate) struct Retained {
    by_topic: BTreeMap<Box<str>, Message>,
    /// The times at which messages expire, in milliseconds of the boot clock.
    expiries: BTreeSet<(i64, Box<str>)>,
    /// The number of messages that count.
    messages: usize,
    bytes: usize,
    /// The same for each owner.
    owned: Box<[Owned; 256]>,
    max_messages: usize,
    max_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Owned {
    messages: usize,
    bytes: usize,
}

/// The error that the store is full and the topic is new, or that the message is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store of retained messages is full")]
pub(crate) struct RetainedFull;

impl Retained {
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Retained {
        Retained {
            by_topic: BTreeMap::new(),
            expiries: BTreeSet::new(),
            messages: 0,
            bytes: 0,
            owned: Box::new([Owned::default(); 256]),
            max_messages,
            max_bytes,
        }
    }

    /// Stores a message that was published with the retain flag; an empty payload deletes the topic. The message should be
    /// in memory of its own.
    pub(crate) fn apply(&mut self, message: &Message) -> Result<(), RetainedFull> {
        if !message.view().payload().is_empty() {
            self.fits(message.view())?;
        }
        self.put(message);
        Ok(())
    }

    /// Restores a message from before the start. Only the gateway's own messages, and all others together, are limited then,
    /// because the shares of owners would depend on the order of messages.
    pub(crate) fn restore(&mut self, message: &Message) -> Result<(), RetainedFull> {
        let view = message.view();
        let house = self.owned[Owner::HOUSE.index()];
        let fits = match view.origin().owner {
            Owner::HOUSE => {
                house.messages + count(view) <= self.max_messages && house.bytes + cost(view) <= self.max_bytes
            }
            _ => {
                has_room(0, self.messages - house.messages + count(view), self.max_messages)
                    && has_room(0, self.bytes - house.bytes + cost(view), self.max_bytes)
            }
        };
        if !fits {
            return Err(RetainedFull);
        }
        self.put(message);
        Ok(())
    }

    fn put(&mut self, message: &Message) {
        let owned = message.clone();
        let message = message.view();
        if message.payload().is_empty() {
            if let Some(old) = self.by_topic.remove(message.topic()) {
                self.forgotten(old.view());
            }
            return;
        }
        match self.by_topic.get_mut(message.topic()) {
            Some(slot) => {
                let old = std::mem::replace(slot, owned.clone());
                self.forgotten(old.view());
            }
            None => {
                self.by_topic.insert(message.topic().into(), owned.clone());
            }
        }
        if let Some(at) = expires(message) {
            self.expiries.insert((at, message.topic().into()));
        }
        self.messages += count(message);
        self.bytes += cost(message);
        let of_owner = &mut self.owned[message.origin().owner.index()];
        of_owner.messages += count(message);
        of_owner.bytes += cost(message);
    }

    /// Checks whether there is room for a message.
    pub(crate) fn fits(&self, message: MessageRef<'_>) -> Result<(), RetainedFull> {
        if message.payload().is_empty() || count(message) == 0 {
            return Ok(());
        }
        let old = self.by_topic.get(message.topic()).map(Message::view);
        let (old_cost, is_new) = (old.map_or(0, cost), old.map_or(0, count) == 0);
        let is_larger = cost(message) > old_cost;
        let (messages, bytes) = (self.messages + usize::from(is_new), self.bytes - old_cost + cost(message));
        let owner = message.origin().owner;
        let mut of_owner = self.owned[owner.index()];
        if let Some(old) = old.filter(|old| old.origin().owner == owner) {
            of_owner.bytes -= cost(old);
            of_owner.messages -= count(old);
        }
        of_owner.messages += 1;
        of_owner.bytes += cost(message);
        let has_room = |held: usize, total: usize, most: usize| match owner {
            Owner::HOUSE => held <= most,
            _ => has_room(held, total, most),
        };
        let fits = (!is_new || has_room(of_owner.messages, messages, self.max_messages))
            && (!is_larger || has_room(of_owner.bytes, bytes, self.max_bytes));
        if fits { Ok(()) } else { Err(RetainedFull) }
    }

    /// The retained message on this topic.
    pub(crate) fn get(&self, topic: &str) -> Option<&Message> {
        self.by_topic.get(topic)
    }

    /// All topics after `after` that `filter` may match, in order, each with its message if it matches.
    fn search<'a>(&'a self, filter: &'a str, after: &'a str) -> impl Iterator<Item = (&'a str, Option<&'a Message>)> {
        // only topics that begin with the literal part of the filter can match; `a/#` matches `a` too
        let wild = filter.find(['+', '#']);
        let literal = wild.map_or(filter, |at| filter[..at].trim_end_matches('/'));
        let first = if after < literal || after.is_empty() { Bound::Included(literal) } else { Bound::Excluded(after) };
        self.by_topic
            .range::<str, _>((first, Bound::Unbounded))
            .take_while(move |(topic, _)| topic.starts_with(literal) && (wild.is_some() || ***topic == *filter))
            .map(|(topic, message)| (&**topic, matches(filter, topic).then_some(message)))
    }

    /// When the next message expires, in milliseconds of the boot clock.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Deletes up to `most` expired messages [MQTT-3.3.2-5], and returns their topics.
    pub(crate) fn expire(&mut self, now_boot_ms: u64, most: usize) -> Vec<Box<str>> {
        let mut expired = Vec::new();
        while expired.len() < most
            && let Some(topic) = self.pop_expired(now_boot_ms)
        {
            if let Some(message) = self.by_topic.remove(&topic) {
                self.forgotten(message.view());
            }
            expired.push(topic);
        }
        expired
    }

    fn pop_expired(&mut self, now_boot_ms: u64) -> Option<Box<str>> {
        let is_due = self.next_expiry().is_some_and(|at| at <= now_boot_ms as i64);
        is_due.then(|| self.expiries.pop_first()).flatten().map(|(_, topic)| topic)
    }

    fn forgotten(&mut self, message: MessageRef<'_>) {
        self.bytes -= cost(message);
        self.messages -= count(message);
        let of_owner = &mut self.owned[message.origin().owner.index()];
        of_owner.messages -= count(message);
        of_owner.bytes -= cost(message);
        if let Some(at) = expires(message) {
            self.expiries.remove(&(at, message.topic().into()));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_topic.len()
    }

    /// The number of bytes, as limited.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The first retained messages that a filter matches.
#[derive(Debug, Default)]
pub(crate) struct SelectedRetained {
    /// In the order of topics.
    pub(crate) found: Vec<Message>,
    /// The topic after which there may be more messages.
    pub(crate) behind: Option<Box<str>>,
}

/// How much of the store is read at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portion {
    /// The most messages.
    pub(crate) messages: usize,
    /// The most bytes of messages.
    pub(crate) bytes: usize,
    /// The most topics that are examined while all others wait.
    pub(crate) topics: usize,
}

impl SelectedRetained {
    /// Takes a portion of the messages on topics after `after`, of at least `least` messages whatever their size.
    pub(super) fn take(
        retained: &Retained,
        filter: &str,
        after: &str,
        (most, least): (Portion, usize),
        walk: &mut Walk,
    ) -> SelectedRetained {
        let mut selected = SelectedRetained::default();
        let (mut size, mut looked_at, mut last) = (0, 0, after);
        for (topic, message) in retained.search(filter, after) {
            let cost = message.map_or(0, Message::size);
            let is_full = message.is_some() && selected.found.len() >= most.messages;
            let is_large = cost > 0 && size + cost > most.bytes && selected.found.len() >= least;
            if is_full || is_large || looked_at == most.topics {
                selected.behind = Some(last.into());
                break;
            }
            walk.visits(1);
            size += cost;
            looked_at += 1;
            last = topic;
            selected.found.extend(message.cloned());
        }
        selected
    }
}

/// 1 if the message counts, otherwise 0.
fn count(message: MessageRef<'_>) -> usize {
    usize::from(!message.is_said_anew())
}

/// When the message expires, in milliseconds of the boot clock; negative if that was before this boot.
fn expires(message: MessageRef<'_>) -> Option<i64> {
    message.expiry().map(|seconds| (message.boot_ms() as i64).saturating_add(i64::from(seconds) * 1000))
}

fn cost(message: MessageRef<'_>) -> usize {
    (message.as_bytes().len() + message.topic().len()) * count(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Draft, Origin, Qos};

    fn message(topic: &str, payload: &str) -> Message {
        Message::new(&Draft {
            retain: true,
            expiry: (payload == "short").then_some(1),
            ..Draft::new(topic, payload.as_bytes())
        })
    }

    fn select(store: &Retained, filter: &str) -> Vec<Message> {
        store.search(filter, "").filter_map(|(_, message)| message.cloned()).collect()
    }

    fn topics(store: &Retained, filter: &str) -> Vec<String> {
        select(store, filter).iter().map(|message| message.view().topic().to_owned()).collect()
    }

    #[test]
    fn a_search_goes_on_where_it_was_broken_off() {
        let mut store = Retained::new(1000, 1 << 20);
        for number in 0..300 {
            store.apply(&message(&format!("{}/{number:03}", if number % 10 == 0 { "a" } else { "b" }), "1")).unwrap();
        }
        for (messages, bytes, topics) in [(7, 1000, 20), (1000, 1 << 20, 1), (1000, 1, 1000), (2, 1 << 20, 50)] {
            for filter in ["#", "+/050", "a/+", "a/#", "c/#", "+/nothing"] {
                let (most, mut walk) = (Portion { messages, bytes, topics }, Walk::default());
                let (mut found, mut after) = (Vec::new(), Some(Box::<str>::default()));
                while let Some(from) = after {
                    let selected = SelectedRetained::take(&store, filter, &from, (most, 1), &mut walk);
                    assert!(selected.found.len() <= messages);
                    found.extend(selected.found.iter().map(|message| message.view().topic().to_owned()));
                    after = selected.behind;
                    assert!(after.as_ref().is_none_or(|after| *after > from), "it gets on");
                }
                let expected: Vec<&str> = store.by_topic.keys().map(|topic| &**topic).collect();
                assert!(found.iter().eq(expected.iter().filter(|topic| matches(filter, topic))), "{filter}: {found:?}");
                assert!(walk.steps <= 300);
            }
        }
        let (most, mut walk) = (Portion { messages: 10, bytes: 1000, topics: 1000 }, Walk::default());
        assert!(SelectedRetained::take(&store, "b", "", (most, 1), &mut walk).found.is_empty());
        assert_eq!(walk.steps, 0, "what begins with a topic is not looked through for it");
        let nothing = Portion { messages: 10, bytes: 0, topics: 0 };
        assert_eq!(
            SelectedRetained::take(&store, "#", "", (nothing, 0), &mut Walk::default()).behind.as_deref(),
            Some("")
        );
    }

    #[test]
    fn the_last_message_stays_until_an_empty_one_clears_it() {
        let mut store = Retained::new(10, 10_000);
        for (topic, payload) in [("a", "1"), ("a/b", "1"), ("a/b", "2"), ("a/c/d", "1"), ("ab", "1"), ("$x/a", "1")] {
            store.apply(&message(topic, payload)).unwrap();
        }
        assert_eq!(store.get("a/b").unwrap().view().payload(), b"2");
        assert_eq!(topics(&store, "a/#"), ["a", "a/b", "a/c/d"]);
        assert_eq!(topics(&store, "#"), ["a", "a/b", "a/c/d", "ab"]);
        assert_eq!(topics(&store, "+/b"), ["a/b"]);
        assert_eq!(topics(&store, "a/b"), ["a/b"]);
        assert_eq!(topics(&store, "$x/+"), ["$x/a"]);
        for topic in ["a", "a/b", "a/c/d", "ab", "$x/a"] {
            store.apply(&message(topic, "")).unwrap();
        }
        assert_eq!((store.len(), store.bytes(), store.messages), (0, 0, 0));
    }

    #[test]
    fn what_the_gateway_announces_does_not_count_whoever_had_its_topic_before() {
        let mut store = Retained::new(1, 200);
        let draft = |payload, origin| {
            let (qos, topic) = (Qos::AtMostOnce, "pigateway/a/state");
            Draft { qos, retain: true, origin, ..Draft::new(topic, payload) }
        };
        let (ours, theirs) = (Origin::announcer(), Origin::client("c"));
        for origins in [[theirs, ours], [ours, theirs], [ours, ours], [theirs, theirs]] {
            for origin in origins {
                store.apply(&Message::new(&draft(b"x", origin))).unwrap();
            }
            assert_eq!(store.messages, usize::from(origins[1] == theirs));
            store.apply(&Message::new(&draft(b"", theirs))).unwrap();
            assert_eq!((store.messages, store.bytes()), (0, 0));
        }
        store.apply(&message("a", "1")).unwrap();
        store.apply(&Message::new(&draft(&[b'x'; 300], ours))).unwrap();
        assert_eq!(store.apply(&Message::new(&draft(b"x", theirs))), Err(RetainedFull));
    }

    #[test]
    fn bounds_hold_and_updates_still_work_at_the_bound() {
        let mut store = Retained::new(2, 200);
        store.apply(&message("a", "1")).unwrap();
        store.apply(&message("b", "1")).unwrap();
        assert_eq!(store.apply(&message("c", "1")), Err(RetainedFull));
        store.apply(&message("a", "2")).unwrap();
        store.apply(&message("$SYS/broker/uptime", "1 seconds")).unwrap();
        assert_eq!(store.apply(&message("a", &"x".repeat(200))), Err(RetainedFull));
        assert_eq!(store.get("a").unwrap().view().payload(), b"2");
    }

    fn by(user: &str, topic: &str, payload: &str) -> Message {
        let message = message(topic, payload);
        let draft = message.view().to_draft();
        let owner = if user.is_empty() { Owner::GUESTS } else { Owner::of(Some(user)) };
        Message::new(&Draft { origin: Origin::client(user).owned_by(owner), ..draft })
    }

    /// The number of new topics for this user; an empty name stands for guests.
    fn fill(store: &mut Retained, user: &str) -> usize {
        let fits = |number: &usize| store.apply(&by(user, &format!("{user}/{number}"), "x")).is_ok();
        (0..100_000).take_while(fits).count()
    }

    #[test]
    fn whoever_has_most_is_refused_first_and_the_house_never() {
        let mut store = Retained::new(1000, 1 << 20);
        let shares: Vec<usize> = ["", "ada", "bob"].iter().map(|user| fill(&mut store, user)).collect();
        assert_eq!(shares, [1000, 200, 40]);
        // existing messages can be changed, also by others, unless they become larger
        store.apply(&by("", "/7", "y")).unwrap();
        store.apply(&by("ada", "/8", "y")).unwrap();
        assert_eq!(store.apply(&by("", "more", "x")), Err(RetainedFull));
        assert_eq!(store.apply(&by("ada", "more", "x")), Err(RetainedFull));
        for number in 0..500 {
            store.apply(&message(&format!("sensor/{number}"), "on")).unwrap();
        }
        // after the next start all of them come back, in whatever order
        for is_reversed in [false, true] {
            let mut kept: Vec<Message> = select(&store, "#");
            if is_reversed {
                kept.reverse();
            }
            let mut again = Retained::new(1000, 1 << 20);
            assert!(kept.iter().all(|message| again.restore(message).is_ok()));
            assert_eq!(again.len(), 1740);
        }
        // what one user releases, others can use
        for number in 9..109 {
            store.apply(&by("", &format!("/{number}"), "")).unwrap();
        }
        let count: usize = store.owned.iter().map(|owned| owned.messages).sum();
        let bytes: usize = store.owned.iter().map(|owned| owned.bytes).sum();
        assert_eq!((count, bytes), (store.len(), store.bytes()));
    }

    #[test]
    fn large_messages_of_one_leave_room_for_others_and_all_come_back() {
        let mut store = Retained::new(1000, 100_000);
        for number in 0..100 {
            store.apply(&by("", &format!("/{number}"), "x")).unwrap();
        }
        let large = "x".repeat(5000);
        let grown = (0..100).filter(|number| store.apply(&by("", &format!("/{number}"), &large)).is_ok()).count();
        assert!((15..20).contains(&grown), "{grown}");
        store.apply(&by("ada", "large", &large)).unwrap();
        store.apply(&message("sensor", &large)).unwrap();
        let all: Vec<Message> = select(&store, "#");
        let mut restored = Retained::new(1000, 100_000);
        all.iter().for_each(|message| restored.restore(message).unwrap());
        assert_eq!((restored.len(), restored.bytes()), (store.len(), store.bytes()));
        assert_eq!(restored.apply(&by("", "/0", &"x".repeat(90_000))), Err(RetainedFull));
    }

    #[test]
    fn expired_messages_go() {
        let mut store = Retained::new(2, 200);
        store.apply(&message("a", "short")).unwrap();
        assert_eq!((store.next_expiry(), store.expire(999, 9)), (Some(1000), vec![]));
        assert_eq!(store.len(), 1);
        assert_eq!(store.expire(1000, 9), ["a".into()]);
        assert_eq!((store.len(), store.bytes(), store.next_expiry()), (0, 0, None));
    }

    #[test]
    fn what_has_taken_the_place_of_an_expiring_message_stays() {
        let mut store = Retained::new(9, 2000);
        for topic in ["a", "b", "c", "d"] {
            store.apply(&message(topic, "short")).unwrap();
        }
        store.apply(&message("a", "for good")).unwrap();
        store.apply(&message("b", "")).unwrap();
        assert_eq!(store.expire(u64::MAX / 2, 1), ["c".into()], "one at a time");
        assert_eq!(store.expire(u64::MAX / 2, 9), ["d".into()]);
        assert_eq!((store.len(), store.next_expiry()), (1, None));
    }
}
