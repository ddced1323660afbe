//! What the upstream says, and what the session does about it.

use super::Upstream;
use crate::exchange::ingress::IngressError;
use crate::exchange::trace::TraceEvent;
use crate::status::ledger::LedgerOutcome;
use crate::upstream::session::SessionAction;
use crate::upstream::wire::{Ack, ClientEvent, UpstreamClient};

impl<C: UpstreamClient> Upstream<C> {
    /// Processes events, and returns whether the connection stays open.
    pub(super) async fn handle(&mut self, events: Vec<ClientEvent>) -> Result<bool, IngressError> {
        let mut alive = true;
        self.inbox.heard();
        for event in events {
            let actions = match event {
                ClientEvent::Sent(packet_id) => self.session.sent(packet_id),
                ClientEvent::Acked(packet_id, reason) => self.session.acked(packet_id, reason, self.clock.boot_ms()),
                ClientEvent::Completed(packet_id) => {
                    self.exact.answered(packet_id);
                    self.session.completed(packet_id, self.clock.boot_ms())
                }
                ClientEvent::Recorded(packet_id) => self.session.recorded(packet_id, self.clock.boot_ms()),
                ClientEvent::Unsubscribed(number, reasons) => {
                    self.asked.unsubscribed(number, &reasons);
                    self.session.is_alive(self.clock.boot_ms())
                }
                ClientEvent::Pinged => self.session.is_alive(self.clock.boot_ms()),
                ClientEvent::Subscribed(number, reasons) => {
                    self.session.subscribed(number, &reasons, self.clock.boot_ms())
                }
                ClientEvent::Unasked(packet_id) => self.session.unasked(packet_id, self.clock.boot_ms()),
                ClientEvent::Received(message) => {
                    let about = (message.packet_id, message.qos, message.payload.len());
                    let taken = self.taken(message);
                    self.inbox.received(taken, about);
                    self.inbox.deliver(&self.door, self.clock.boot_ms()).await?;
                    continue;
                }
                ClientEvent::TooLarge(message) => {
                    let about = (message.packet_id, message.qos, message.size);
                    self.mirror.found(&message.topic);
                    self.inbox.received(Err(self.session.too_large(&message.topic)), about);
                    self.inbox.deliver(&self.door, self.clock.boot_ms()).await?;
                    continue;
                }
                ClientEvent::Released(packet_id) => {
                    self.inbox.released(packet_id);
                    self.inbox.deliver(&self.door, self.clock.boot_ms()).await?;
                    continue;
                }
            };
            alive &= self.perform(actions);
        }
        Ok(alive)
    }

    /// Performs actions, and returns whether the connection stays open.
    pub(super) fn perform(&mut self, actions: Vec<SessionAction>) -> bool {
        let mut alive = true;
        for action in actions {
            let done = match action {
                SessionAction::Publish(message) => self.client.publish(message),
                SessionAction::Record(lane, ordinal, packet_id) => {
                    self.record(lane, ordinal, packet_id);
                    Ok(())
                }
                SessionAction::Release(packet_id) => self.client.ack(Ack::Released(packet_id)),
                SessionAction::Subscribe(filters, wanted) => {
                    self.asked.subscribes(filters.iter().map(|(filter, _)| filter));
                    self.client.subscribe(&filters, wanted)
                }
                SessionAction::Unsubscribe(filters) => {
                    self.asked.unsubscribes(&filters);
                    self.client.unsubscribe(&filters)
                }
                SessionAction::Ping => self.client.ping(),
                SessionAction::Settle(lane, position, outcome) => {
                    self.readers.settle(lane, position, outcome.in_journal());
                    self.door.trace(position, TraceEvent::Settled(outcome.shown()), &self.name);
                    if let LedgerOutcome::Dropped(_) = outcome {
                        self.leave_out();
                    }
                    Ok(())
                }
                SessionAction::Rewind => {
                    self.forget_to_shelve();
                    self.readers.rewind();
                    Ok(())
                }
                SessionAction::Deleted(remote) => {
                    self.deleted(&remote);
                    Ok(())
                }
                SessionAction::Move(lane, position) => {
                    alive &= self.move_last(lane, position);
                    Ok(())
                }
                SessionAction::Shelve(..)
                | SessionAction::Deny(..)
                | SessionAction::KeepLarge(..)
                | SessionAction::TakeBack
                | SessionAction::TakeBackLarge => {
                    self.perform_on_shelf(&action);
                    Ok(())
                }
                SessionAction::Break | SessionAction::Renew => {
                    alive = false;
                    Ok(())
                }
            };
            // there is room for the whole window, so a connection without room has stopped
            alive &= done.is_ok();
        }
        if let Some(note) = self.session.size_news() {
            self.denied.note_size(note.as_deref());
        }
        alive
    }
}
