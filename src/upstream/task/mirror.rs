//! Compares retained messages of mirrored topics with those of the upstream (see [`crate::upstream::mirror`]).

use tracing::warn;

use super::Upstream;
use crate::message::{Origin, Qos, TopicFilter};
use crate::upstream::mirror::{MirrorVerdict, MirroredArrival};
use crate::upstream::properties::{subscription_ids, without_way};
use crate::upstream::session::{Inbound, NotTaken, SessionAction};
use crate::upstream::wire::{InMessage, Role, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Maps a message from the upstream.
    pub(super) fn taken(&mut self, message: InMessage) -> Result<Inbound, NotTaken> {
        let remote = Some(&message.topic).filter(|_| message.retain && self.session.reads_mirrored());
        let Some(local) = remote.and_then(|remote| self.session.mirrored(remote)) else {
            return self.session.incoming(message);
        };
        let is_read = self.mirror.is_reading_as(subscription_ids(&message.properties));
        let (remote, is_repeated) = (message.topic.clone(), message.is_repeated);
        let mut inbound = if is_read { self.session.incoming_read(message) } else { self.session.incoming(message) }?;
        let here = self.door.retained_on(&local);
        let is_same = match &here {
            // what came before it may not be there yet
            _ if self.inbox.is_holding() => false,
            Some(here) => {
                let here = here.view();
                let is_as_long = here.expiry().is_some() == inbound.expiry.is_some();
                let properties = (without_way(here.properties()), without_way(&inbound.properties));
                here.payload() == inbound.payload && is_as_long && properties.0 == properties.1
            }
            None => inbound.payload.is_empty(),
        };
        let is_ours = |origin: Origin| origin != Origin::upstream(&self.name);
        let ours = here.as_ref().map(|here| here.view()).filter(|here| is_ours(here.origin()));
        let ours_since = ours.map(|ours| ours.boot_ms() as i64);
        let arrival =
            MirroredArrival { remote: &remote, is_read, is_repeated, is_same, is_absent: here.is_none(), ours_since };
        match self.mirror.arrived(arrival, self.clock.boot_ms()) {
            MirrorVerdict::Take => {}
            MirrorVerdict::WithoutRetain => inbound.retain = false,
            MirrorVerdict::Leave => return Err(NotTaken::Known),
        }
        Ok(inbound)
    }

    /// Handles the end of a connection. Returns whether a reading may be the reason.
    pub(super) fn reading_ended(&mut self, by_upstream: bool) -> bool {
        let now = self.clock.boot_ms();
        let may_be_it = self.mirror.disconnected(by_upstream, now);
        if may_be_it && self.mirror.rests(now) {
            self.session.give_up_reading();
            warn!(
                upstream = self.name,
                "the upstream closes the connection when its retained messages are read: on topics of [[upstream.both]] both \
                 sides may have different ones"
            );
        }
        may_be_it
    }

    /// Reads all mirrored topics before a pass. Returns whether the pass may begin, or `None` if the connection accepts
    /// nothing.
    pub(super) fn read_all(&mut self) -> Option<bool> {
        if !self.session.reads_mirrored() {
            return Some(true);
        }
        self.end_reading()?;
        let now = self.clock.boot_ms();
        if self.session.has_opened()
            && let Some(id) = self.mirror.begin_whole(now)
        {
            let (filters, is_whole) = self.session.mirrored_filters();
            if !is_whole {
                self.mirror.sees_part();
            }
            let actions = self.session.read(&filters, id, now);
            if !self.perform(actions) {
                return None;
            }
        }
        Some(self.mirror.has_read_all())
    }

    /// Reads doubtful topics, as far as they are due. Returns whether there may be more, or `None` if the connection accepts nothing.
    pub(super) fn read_doubtful(&mut self) -> Option<bool> {
        if !self.session.reads_mirrored() {
            return Some(false);
        }
        self.end_reading()?;
        if self.mirror.wants_all() {
            self.passes.demand();
        }
        let under_way = self.session.in_flight() - self.session.own_in_flight();
        if !self.session.has_opened() || self.consumers.backlog().messages > under_way {
            return Some(false);
        }
        let now = self.clock.boot_ms();
        let Some((topics, id)) = self.mirror.begin(now) else { return Some(false) };
        let qos = |topic: &str| self.session.incoming_qos(topic);
        let filters: Vec<(TopicFilter, Qos)> =
            topics.iter().filter_map(|topic| Some((TopicFilter::new(topic.as_str()).ok()?, qos(topic)?))).collect();
        let actions = self.session.read(&filters, id, now);
        self.perform(actions).then_some(false)
    }

    /// Ends a reading if nothing follows, and sends what the upstream does not have. Returns `None` if the connection accepts
    /// nothing.
    fn end_reading(&mut self) -> Option<()> {
        if !self.mirror.is_reading() {
            return Some(());
        }
        let now = self.clock.boot_ms();
        if self.session.unanswered_readings() == 0 {
            let unread: Vec<String> = self.session.take_unread().iter().map(ToString::to_string).collect();
            self.mirror.answered(&unread, now);
        }
        if self.inbox.is_holding() {
            return Some(());
        }
        let Some(ended) = self.mirror.end(now) else { return Some(()) };
        let filters = ended.topics.iter().filter_map(|topic| TopicFilter::new(topic.as_str()).ok());
        let filters: Vec<_> = filters.filter(|filter| !self.session.is_subscription(filter)).collect();
        let leave = filters.chunks(crate::upstream::session::FILTERS);
        let leave = leave.map(|part| SessionAction::Unsubscribe(part.to_vec())).collect();
        let is_open = self.perform(leave) && ended.missing.iter().all(|remote| self.send_missing(remote));
        is_open.then_some(())
    }

    /// Sends our message of a topic on which the upstream retains nothing. Returns whether the connection stays open.
    fn send_missing(&mut self, remote: &str) -> bool {
        let now = self.clock.boot_ms();
        let Some(local) = self.session.mirrored(remote) else { return true };
        let here = self.door.retained_on(&local);
        let Some(out) = here.and_then(|here| self.session.retained(&here, |_| true, now)) else { return true };
        if !self.session.has_room(Role::Backlog) {
            self.mirror.doubt_again(remote, now);
            return true;
        }
        self.passes.handed_over(&self.journal, remote, &local, true);
        self.mirror.sent(remote, now);
        let (_, actions) = self.session.own(out, now);
        self.perform(actions)
    }

    /// Records that a retained message was sent, if its topic is mirrored.
    pub(super) fn note_mirrored(&mut self, remote: &str) {
        if self.session.reads_mirrored() && self.session.mirrored(remote).is_some() {
            self.mirror.sent(remote, self.clock.boot_ms());
        }
    }
}
