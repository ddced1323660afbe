//! Ends a conversation in order: after new settings, and when the gateway stops.

use tracing::{debug, info};

use super::troubles::Troubles;
use super::{GOOD_BYE, Upstream};
use crate::message::{Origin, via};
use crate::mqtt::Version;
use crate::upstream::door::InboxDoor;
use crate::upstream::lanes::{Consumers, Lane};
use crate::upstream::rule::UpstreamRules;
use crate::upstream::session::SessionAction;
use crate::upstream::settings::UpstreamSettings;
use crate::upstream::wire::{ClientEvent, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Tells the upstream that the gateway stops, and waits for the answers to what was sent.
    pub(super) async fn say_good_bye(&mut self) {
        let moves = self.session.move_denied();
        self.perform(moves);
        // messages that have just been synced are still sent, if any may be
        let synced = *self.synced.borrow();
        if self.release_safe(synced) && !self.is_looking() {
            while !self.is_looking() && self.take_from_journal() == Some(true) {}
        }
        let offline = self.session.status("offline");
        let said = offline.map_or(Ok(()), |status| self.client.publish(status)).and_then(|()| self.client.disconnect());
        if said.is_err() {
            return;
        }
        let until_closed = async {
            while let Ok(events) = self.client.events().await {
                for event in events {
                    let actions = match event {
                        ClientEvent::Sent(packet_id) => self.session.sent(packet_id),
                        ClientEvent::Acked(packet_id, reason) => {
                            self.session.acked(packet_id, reason, self.clock.boot_ms())
                        }
                        ClientEvent::Recorded(packet_id) => self.session.recorded(packet_id, self.clock.boot_ms()),
                        ClientEvent::Completed(packet_id) => self.session.completed(packet_id, self.clock.boot_ms()),
                        _ => continue,
                    };
                    for action in actions {
                        match action {
                            SessionAction::Settle(lane, position, outcome) => {
                                self.readers.settle(lane, position, outcome.in_journal());
                            }
                            // the rest of the exchange follows on the next connection
                            SessionAction::Record(lane, ordinal, packet_id) => self.record(lane, ordinal, packet_id),
                            _ => {}
                        }
                    }
                }
            }
        };
        if tokio::time::timeout(GOOD_BYE, until_closed).await.is_err() {
            debug!(upstream = self.name, "the upstream did not close the connection");
        }
        self.readers.say_settled();
    }

    /// Applies new settings, and returns whether they need a new connection.
    pub(super) fn apply_settings(&mut self) -> bool {
        let new = self.settings.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.current, new);
        self.shown.rules = self.current.rules_in_words();
        self.set_filters();
        self.set_carried(self.gateway);
        let actions = self.session.set_rules(UpstreamRules::new(&self.current), self.clock.boot_ms());
        let alive = self.perform(actions);
        if alive && self.session.reads_mirrored() {
            self.passes.demand();
        }
        self.look_at_shelf();
        self.asked.forgive();
        self.approach.forgive_wills();
        self.readers.say_settled();
        let is_same = without_rules(&old) == without_rules(&self.current);
        let v4_forbidden = self.current.v5_only && self.shown.version == Some(Version::V311);
        // packet ids may be in use there from another time: see [`exact`](super::exact)
        let (is_exact, has_exact) = (self.session.is_exact(), self.session.has_exact());
        let is_another = self.exact.is_another(is_exact, has_exact, self.mark.is_exact());
        // the upstream knows it from CONNECT
        let is_version_5 = self.shown.version == Some(Version::V5);
        let introduces_itself_anew = is_version_5 && old.introduction() != self.current.introduction();
        // a new connection is not made as long as they would
        let would_loop = self.client.would_loop(&self.current);
        if is_same && !v4_forbidden && !is_another && !introduces_itself_anew && !would_loop {
            if old != self.current {
                info!(upstream = self.name, "new rules");
            }
            return !alive;
        }
        if !is_same || v4_forbidden {
            self.approach.forget();
            self.troubles = Troubles::default();
            self.address = 0;
        }
        true
    }

    /// Directs new messages to the lane to which they belong.
    pub(super) fn set_filters(&self) {
        direct(&self.door, &self.consumers, self.lanes.append(), &self.settings.borrow());
    }

    pub(super) fn set_carried(&mut self, gateway: Option<via::Id>) {
        self.gateway = gateway;
        let carried = if gateway.is_some() { UpstreamRules::new(&self.current).carried() } else { Vec::new() };
        self.door.set_carried(self.consumers.id(Lane::First), gateway, carried);
    }
}

/// Directs new messages to a lane by the newest rules, which may not be applied otherwise yet.
pub(super) fn direct(door: &InboxDoor, consumers: &Consumers, lane: Lane, settings: &UpstreamSettings) {
    let filters = UpstreamRules::new(settings).local_filters();
    door.set_filters(consumers.id(lane), Origin::upstream(&settings.name), filters);
}

pub(super) fn without_rules(settings: &UpstreamSettings) -> UpstreamSettings {
    UpstreamSettings { out: Vec::new(), inbound: Vec::new(), both: Vec::new(), ..settings.clone() }
}
