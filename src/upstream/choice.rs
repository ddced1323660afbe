//! Chooses the message that an upstream gets next.

use super::lanes::{Lane, Lanes, Readers};
use super::session::UpstreamSession;
use super::wire::Role;
use crate::journal::Delivery;

/// The next message, from the first lane in turn that has one and may send it.
pub(super) fn next_delivery(
    lanes: &Lanes,
    session: &mut UpstreamSession,
    readers: &mut Readers,
) -> Option<((Lane, Role), Delivery)> {
    let mut turns = lanes.in_turn();
    let mut first = (!lanes.may_pass()).then_some(turns[0].0);
    if !session.suspects(turns[0].0) && session.suspects(turns[1].0) {
        turns.swap(0, 1);
        first = None;
    }
    for turn @ (lane, role) in turns {
        let other = lane.other();
        if session.resumes(other) && !session.resumes(lane) && !readers.is_empty(other) {
            continue;
        }
        let room = session.room(role);
        if room > 0
            && let Some(delivery) = readers.next_of(lane, room)
        {
            return Some((turn, delivery));
        }
        if session.suspects(lane) && readers.is_empty(lane) {
            session.acquit(lane);
        }
        // what is in the other lane is newer, and what is left of this one may be on its way to memory
        if first == Some(lane) && readers.has_unread(lane) {
            return None;
        }
    }
    None
}
