//! Publishing for callers that may wait for room.

use tokio::time::sleep_until;

use super::ingress::{Accepted, Ingress, IngressError, Receipt};
use crate::journal::ConsumerId;
use crate::message::{BatchBuilder, Draft, Origin};

impl Ingress {
    /// Publishes one message, and waits while live subscribers are too far behind, and for the publisher's turn.
    pub(crate) async fn publish(&self, draft: &Draft<'_>) -> Result<Receipt, IngressError> {
        self.publish_received(draft, None).await
    }

    /// Like `publish`. If the message is a QoS 2 PUBLISH of this consumer with this packet id, the journal also records that
    /// it was received.
    pub(crate) async fn publish_received(
        &self,
        draft: &Draft<'_>,
        received: Option<(ConsumerId, u16)>,
    ) -> Result<Receipt, IngressError> {
        self.turn(draft.origin).await;
        self.publish_in_turn(draft, received).await
    }

    /// Publishes one message for a caller that has waited for the publisher's turn, or must not wait for it.
    pub(crate) async fn publish_in_turn(
        &self,
        draft: &Draft<'_>,
        received: Option<(ConsumerId, u16)>,
    ) -> Result<Receipt, IngressError> {
        let mut batch = BatchBuilder::default();
        batch.push(draft);
        let ids = received.map(|(consumer, packet_id)| (consumer, [(0, packet_id)]));
        loop {
            let room = self.room().notified();
            let received = ids.as_ref().map(|(consumer, ids)| (*consumer, &ids[..]));
            if let Some(accepted) = self.try_publish_for(&mut batch, received)? {
                return accepted.whole();
            }
            room.await;
        }
    }

    /// Waits for the turn of a client that has cost the others much.
    pub async fn turn(&self, client: Origin) {
        while let Some(turn) = self.meter().turn(client) {
            sleep_until(turn).await;
        }
    }

    /// Publishes a batch, and waits while live subscribers are too far behind, and for the publisher's turn. Many that wait
    /// for the same turn go on one after the other: the first one may have cost so much that the others wait again.
    pub(crate) async fn publish_batch(&self, batch: &mut BatchBuilder) -> Result<Accepted, IngressError> {
        let publisher = batch.iter().next().map(|first| first.message.origin());
        loop {
            if let Some(publisher) = publisher {
                self.turn(publisher).await;
            }
            let room = self.room().notified();
            if let Some(accepted) = self.try_publish(batch)? {
                return Ok(accepted);
            }
            room.await;
        }
    }
}
