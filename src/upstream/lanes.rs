//! The two lanes of an upstream. With `order = "live_first"` new messages pass those that have waited since an outage.
//!
//! Each lane is a consumer of the journal with its own cursor, and every message is in one of them. While there is no
//! connection, new messages go to the longer lane, so an outage makes one backlog, however often it is interrupted. During a
//! connection they go to the other lane, which is sent first, and the backlog gets the rest of the window. So each lane
//! stays in order, two lanes are enough for any number of outages, and the repetitions after a crash are bounded by two
//! cursors instead of one.
//!
//! With `order = "strict"` there is one lane. Messages that an earlier configuration has left in the other one are sent
//! first.

use std::future::pending;

use super::settings::Order;
use super::wire::Role;
use crate::access::owner::{denied_consumer, large_consumer, second_consumer, shelf_consumer, upstream_consumer};
use crate::journal::{Backlog, ConsumerId, Delivery, Journal, Limits, Outcome, Position, Reader};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Lane {
    /// The only lane if messages are strictly in order.
    #[default]
    First,
    /// The additional lane of `live_first`.
    Second,
}

impl Lane {
    pub(crate) const ALL: [Lane; 2] = [Lane::First, Lane::Second];

    /// The index of the lane in arrays.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn other(self) -> Lane {
        match self {
            Lane::First => Lane::Second,
            Lane::Second => Lane::First,
        }
    }

    /// The name of its consumer in the journal.
    pub(crate) fn consumer(self, upstream: &str) -> String {
        match self {
            Lane::First => upstream_consumer(upstream),
            Lane::Second => second_consumer(upstream),
        }
    }
}

/// Decides the roles of the lanes, without any I/O.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    order: Order,
    append: Lane,
}

impl Lanes {
    /// The state before the first connection, with these numbers of waiting messages.
    pub(crate) fn new(order: Order, waiting: [usize; 2]) -> Lanes {
        let mut lanes = Lanes { order, append: Lane::First };
        lanes.disconnected(waiting);
        lanes
    }

    /// The lane for new messages.
    pub(crate) fn append(&self) -> Lane {
        self.append
    }

    /// Handles a new connection, with these numbers of waiting messages: new messages get the lane with fewer.
    pub(crate) fn connected(&mut self, waiting: [usize; 2]) {
        self.switch_if(waiting[self.append.other().index()] < waiting[self.append.index()]);
    }

    /// Handles the end of a connection: new messages must wait in any case.
    pub(crate) fn disconnected(&mut self, waiting: [usize; 2]) {
        self.switch_if(waiting[self.append.other().index()] > waiting[self.append.index()]);
    }

    fn switch_if(&mut self, wanted: bool) {
        if wanted && self.order == Order::LiveFirst {
            self.append = self.append.other();
        }
    }

    /// The lane for messages that are older than those which wait.
    pub(crate) fn for_old(&self) -> Lane {
        match self.order {
            Order::Strict => Lane::Second,
            Order::LiveFirst => self.append.other(),
        }
    }

    /// Whether a lane may get a message while one waits in a lane that comes before it.
    pub(crate) fn may_pass(&self) -> bool {
        self.order == Order::LiveFirst
    }

    /// The lanes in the order in which they are sent.
    pub(crate) fn in_turn(&self) -> [(Lane, Role); 2] {
        match self.order {
            Order::Strict => [(Lane::Second, Role::Live), (Lane::First, Role::Live)],
            Order::LiveFirst => [(self.append, Role::Live), (self.append.other(), Role::Backlog)],
        }
    }
}

/// The consumers of the lanes in the journal.
#[derive(Clone, Debug)]
pub(crate) struct Consumers {
    journal: Journal,
    upstream: String,
    limits: Limits,
    ids: [Option<ConsumerId>; 2],
}

impl Consumers {
    /// Registers the consumers in the journal.
    pub(crate) fn register(journal: &Journal, upstream: &str, limits: Limits, order: Order) -> Consumers {
        let known = journal.consumers();
        let ids = Lane::ALL.map(|lane| {
            let name = lane.consumer(upstream);
            // what lies on a shelf goes to the second one when it comes back
            let is_known = |name: &str| known.iter().any(|(known, ..)| **known == *name);
            let is_needed = lane == Lane::First
                || order == Order::LiveFirst
                || is_known(&name)
                || is_known(&shelf_consumer(upstream))
                || is_known(&denied_consumer(upstream))
                || is_known(&large_consumer(upstream));
            is_needed.then(|| journal.register(&name, limits))
        });
        Consumers { journal: journal.clone(), upstream: upstream.to_owned(), limits, ids }
    }

    /// Registers the second lane if it does not exist. Returns whether that is new.
    pub(crate) fn add_second(&mut self) -> bool {
        let id = &mut self.ids[Lane::Second.index()];
        let is_new = id.is_none();
        id.get_or_insert_with(|| self.journal.register(&second_consumer(&self.upstream), self.limits));
        is_new
    }

    /// The consumer of a lane. If there is only one lane, it is that one's.
    pub(crate) fn id(&self, lane: Lane) -> ConsumerId {
        self.ids[lane.index()].or(self.ids[0]).unwrap_or(ConsumerId(u32::MAX))
    }

    /// The existing lanes with their consumers.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Lane, ConsumerId)> {
        Lane::ALL.into_iter().zip(self.ids).filter_map(|(lane, id)| Some((lane, id?)))
    }

    /// The numbers of messages that wait in the lanes.
    pub(crate) fn waiting(&self) -> [usize; 2] {
        self.ids.map(|id| id.map_or(0, |id| self.journal.backlog(id).messages))
    }

    /// What waits in both lanes, with the outcomes of all earlier messages.
    pub(crate) fn backlog(&self) -> Backlog {
        let lanes = self.ids.iter().flatten().map(|id| self.journal.backlog(*id));
        lanes.fold(Backlog::default(), |sum, lane| sum.plus(&lane))
    }

    /// The same together with what lies on the shelves.
    pub(crate) fn all_backlog(&self) -> Backlog {
        // the second lane may have been added since this was made
        let second = second_consumer(&self.upstream);
        let second = self.ids[Lane::Second.index()].is_none().then_some(second);
        let shelves = [shelf_consumer, denied_consumer, large_consumer].map(|name| name(&self.upstream));
        let others = second.into_iter().chain(shelves);
        others.fold(self.backlog(), |sum, name| sum.plus(&self.journal.backlog_of(&name).unwrap_or_default()))
    }

    /// Readers of both lanes, each from its oldest unsettled message on.
    pub(crate) fn readers(&self) -> Readers {
        Readers { readers: self.ids.map(|id| id.map(|id| self.journal.reader(id))) }
    }

    /// A reader of the second lane.
    fn second_reader(&self) -> Option<Reader> {
        self.ids[Lane::Second.index()].map(|id| self.journal.reader(id))
    }
}

/// Reads the messages of both lanes.
#[derive(Debug)]
pub(crate) struct Readers {
    readers: [Option<Reader>; 2],
}

impl Readers {
    /// Reads the second lane too, which was added.
    pub(crate) fn add_second(&mut self, consumers: &Consumers) {
        self.readers[Lane::Second.index()] = consumers.second_reader();
    }

    /// The next message of a lane that is in memory. `room` is the number of messages that may be sent.
    pub(crate) fn next_of(&mut self, lane: Lane, room: usize) -> Option<Delivery> {
        self.readers[lane.index()].as_mut()?.next_of(room)
    }

    /// Settles a message. The journal gets this with the next message that is taken, or by [`Readers::say_settled`].
    pub(crate) fn settle(&mut self, lane: Lane, position: Position, outcome: Outcome) {
        if let Some(reader) = &mut self.readers[lane.index()] {
            reader.settle_soon(position, outcome);
        }
    }

    /// Reports all settled messages to the journal.
    pub(crate) fn say_settled(&mut self) {
        self.readers.iter_mut().flatten().for_each(Reader::say_settled);
    }

    /// Starts again from the oldest unsettled message.
    pub(crate) fn rewind(&mut self) {
        self.readers.iter_mut().flatten().for_each(Reader::rewind);
    }

    pub(crate) fn is_empty(&mut self, lane: Lane) -> bool {
        self.say_settled();
        self.readers[lane.index()].as_ref().is_none_or(|reader| reader.backlog().messages == 0)
    }

    /// Whether a message of this lane was not handed out yet, and may still be on its way to the disk or from it.
    pub(crate) fn has_unread(&self, lane: Lane) -> bool {
        self.readers[lane.index()].as_ref().is_some_and(Reader::has_unread)
    }

    /// Waits until there may be a new message. Safe to cancel.
    pub(crate) async fn ready(&self) {
        let [first, second] = self.readers.each_ref().map(|reader| ready(reader.as_ref()));
        tokio::select! {
            () = first => {}
            () = second => {}
        }
    }
}

async fn ready(reader: Option<&Reader>) {
    match reader {
        Some(reader) => reader.ready().await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::access::owner::ConsumerOwner;

    #[test]
    fn an_outage_makes_a_backlog_and_new_messages_pass_it() {
        let mut lanes = Lanes::new(Order::LiveFirst, [0, 0]);
        assert_eq!(lanes.append(), Lane::First);
        lanes.connected([0, 0]);
        assert_eq!(lanes.append(), Lane::First, "nothing to pass");
        lanes.disconnected([3, 0]);
        assert_eq!(lanes.append(), Lane::First, "behind what was under way");
        lanes.connected([1000, 0]);
        assert_eq!(lanes.in_turn(), [(Lane::Second, Role::Live), (Lane::First, Role::Backlog)]);
        lanes.disconnected([900, 4]);
        assert_eq!(lanes.append(), Lane::First, "a second outage makes the backlog longer");
        lanes.connected([950, 4]);
        assert_eq!(lanes.append(), Lane::Second);
        // the upstream has accepted nothing for long, so the live lane has become a backlog
        lanes.disconnected([0, 5000]);
        assert_eq!(lanes.append(), Lane::Second);
        lanes.connected([0, 6000]);
        assert_eq!(lanes.in_turn(), [(Lane::First, Role::Live), (Lane::Second, Role::Backlog)]);
        assert_eq!(Lanes::new(Order::LiveFirst, [4, 900]).append(), Lane::Second, "after a restart");
    }

    #[test]
    fn in_strict_order_there_is_one_lane() {
        let mut lanes = Lanes::new(Order::Strict, [0, 7]);
        lanes.connected([9, 0]);
        lanes.disconnected([0, 9]);
        assert_eq!(lanes.append(), Lane::First);
        assert_eq!(lanes.in_turn()[0].0, Lane::Second, "what another order has left goes first");
    }

    #[test]
    fn consumers_belong_to_an_upstream() {
        for lane in Lane::ALL {
            assert_eq!(ConsumerOwner::of(&lane.consumer("home")), ConsumerOwner::Upstream("home"));
        }
    }

    proptest! {
        /// However often the connection comes and goes, new messages wait only after the shorter lane, or make the longer
        /// one longer.
        #[test]
        fn new_messages_never_make_the_shorter_lane_wait(
            steps in prop::collection::vec((any::<bool>(), 0..9usize, 0..9usize), 1..50)
        ) {
            let mut lanes = Lanes::new(Order::LiveFirst, [0, 0]);
            for (connected, first, second) in steps {
                let waiting = [first, second];
                if connected { lanes.connected(waiting) } else { lanes.disconnected(waiting) }
                let (append, other) = (waiting[lanes.append().index()], waiting[lanes.append().other().index()]);
                let is_right = if connected { append <= other } else { append >= other };
                prop_assert!(is_right, "{append} {other}");
            }
        }
    }
}
