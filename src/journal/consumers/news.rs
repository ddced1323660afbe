//! Tells a task that reads for many consumers which of them have something new.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::super::ConsumerId;

/// The consumers that have something new.
#[derive(Debug, Default)]
pub(crate) struct News {
    consumers: Mutex<BTreeSet<ConsumerId>>,
    some: Notify,
}

impl News {
    pub(super) fn add(&self, id: ConsumerId) {
        let mut consumers = self.consumers.lock();
        consumers.insert(id);
        drop(consumers);
        self.some.notify_one();
    }

    /// The next consumer that has something new. Safe to cancel.
    pub(crate) async fn next(&self) -> ConsumerId {
        loop {
            if let Some(id) = self.consumers.lock().pop_first() {
                return id;
            }
            self.some.notified().await;
        }
    }
}
