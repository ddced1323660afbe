//! The one door in.
//!
//! Every message, whatever brought it, goes through [`Ingress`]: there it gets its place in the one order that the
//! retained store, the journal and the live router all see.

use crate::journal::{ConsumerId, Full, Journal, Position};
use crate::message::{BatchBuilder, Draft, TopicFilter};

/// What a publisher waits for before it may say "accepted".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Place in the journal that must be synced; `None`: nobody needs the message kept.
    pub durable: Option<Position>,
}

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngressError {
    /// A consumer that refuses when full is full.
    #[error(transparent)]
    Full(#[from] Full),
    /// The gateway is going down.
    #[error("the gateway is shutting down")]
    Closed,
}

/// Puts messages in order and hands them on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ingress {
    journal: Journal,
}

impl Ingress {
    /// Publishes one message; waits while live subscribers are too far behind.
    pub async fn publish(&self, draft: &Draft<'_>) -> Result<Receipt, IngressError> {
        let mut batch = BatchBuilder::default();
        batch.push(draft);
        self.publish_batch(&mut batch).await
    }

    /// Publishes a batch, all of it or none.
    pub async fn publish_batch(&self, _batch: &mut BatchBuilder) -> Result<Receipt, IngressError> {
        Ok(Receipt::default())
    }

    /// Waits until what the receipt stands for is safe.
    pub async fn settled(&self, receipt: Receipt) -> Result<(), IngressError> {
        let Some(position) = receipt.durable else { return Ok(()) };
        let mut synced = self.journal.synced();
        synced.wait_for(|safe| *safe >= position).await.map(|_| ()).map_err(|_| IngressError::Closed)
    }

    /// Messages that one of `filters` selects are kept for `consumer` from now on.
    pub fn set_durable_filters(&self, _consumer: ConsumerId, _filters: Vec<TopicFilter>) {}
}
