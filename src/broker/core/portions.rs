//! Divides work on a session with many subscriptions, so that others have their turns in between.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::super::session::Session;
use super::{Core, origin};
use crate::exchange::delivery::{Share, SharesOut};
use crate::exchange::meter::{Meter, Walk};
use crate::message::{Message, Origin};
use crate::workers::worked;

/// The most filters that are processed in one turn.
pub(in crate::broker) const FILTERS_AT_ONCE: usize = 64;
/// The time after which no further filter is processed in one turn. It is well below the one that the meter counts
/// forty times.
pub(in crate::broker) const TIME_AT_ONCE: Duration = Duration::from_millis(2);
/// The steps that a filter costs in addition to the retained messages that it examines: those of one turn are free.
pub(in crate::broker) const STEPS_OF_A_FILTER: usize = 4;
/// The longest time for which a client waits for its CONNACK because it has cost the others too much.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Work on the subscriptions of one session. What it takes beyond the first portion is charged to the owner.
pub(super) struct Portions<'a> {
    meter: &'a Meter,
    owner: Origin,
    walk: Walk,
    /// What is done of the present portion.
    done: usize,
    begun: std::time::Instant,
}

impl Portions<'_> {
    pub(super) fn of<'a>(core: &'a Core, owner: &str) -> Portions<'a> {
        Portions::with(core.ingress.meter(), owner)
    }

    fn with<'a>(meter: &'a Meter, owner: &str) -> Portions<'a> {
        Portions { meter, owner: origin(owner), walk: Walk::default(), done: 0, begun: std::time::Instant::now() }
    }

    /// Work that waits for the owner's turn, if the session is large and its owner has cost the others too much.
    pub(super) async fn in_turn<'a>(core: &'a Core, session: &Session) -> Portions<'a> {
        let portions = Portions::of(core, &session.owner);
        if session.subscriptions.len() > FILTERS_AT_ONCE
            && let Some(turn) = portions.meter.turn(portions.owner)
        {
            tokio::select! {
                () = sleep_until(turn.min(Instant::now() + LONGEST_WAIT)) => {}
                () = core.cancel.cancelled() => {}
            }
        }
        portions
    }

    /// Begins the next piece of work. Lets others go on if a portion is done.
    pub(super) async fn next(&mut self) {
        if self.done == FILTERS_AT_ONCE || self.done > 0 && self.begun.elapsed() >= TIME_AT_ONCE {
            self.charge();
            worked();
            yield_now().await;
            (self.walk, self.done, self.begun) = (Walk::beyond_what_is_free(), 0, std::time::Instant::now());
        }
        self.done += 1;
        self.walk.visits(STEPS_OF_A_FILTER);
    }

    /// Ends the work.
    pub(super) fn end(self) {
        self.charge();
    }

    fn charge(&self) {
        self.meter.charge(self.owner, self.walk.cost(0));
    }
}

/// Messages of one group.
type GivenMessages = (Arc<dyn SharesOut>, Vec<(Share, Message)>);

/// Messages by the groups that have given them.
pub(super) fn by_group(given: impl Iterator<Item = (Share, Message)>) -> Vec<GivenMessages> {
    let mut groups: Vec<GivenMessages> = Vec::new();
    let mut places: HashMap<*const (), usize> = HashMap::new();
    for (share, message) in given {
        let place = *places.entry(Arc::as_ptr(&share.group).cast()).or_insert_with(|| {
            groups.push((share.group.clone(), Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push((share, message));
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn others_have_their_turns_between_portions() {
        let (meter, turns, is_done) = (Meter::default(), Cell::new(0), Cell::new(false));
        let work = async {
            let mut portions = Portions::with(&meter, "g\0greedy");
            for _ in 0..100 * FILTERS_AT_ONCE {
                portions.next().await;
            }
            portions.end();
            is_done.set(true);
        };
        let others = async {
            while !is_done.get() {
                turns.set(turns.get() + 1);
                yield_now().await;
            }
        };
        tokio::join!(work, others);
        assert!(turns.get() >= 99, "{} turns", turns.get());
    }

    // time forgives what is owed, and does not pass here
    #[tokio::test(start_paused = true)]
    async fn what_a_large_session_costs_is_charged_to_its_owner() {
        let meter = Meter::default();
        let mut portions = Portions::with(&meter, "g\0large");
        for _ in 0..100 * FILTERS_AT_ONCE {
            portions.next().await;
            std::hint::black_box((0..20_000_u64).map(std::hint::black_box).sum::<u64>());
        }
        portions.end();
        assert!(meter.turn(origin("g\0large")).is_some());
    }
}
