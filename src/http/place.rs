//! Places among the connections.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

/// A place among the connections. It stays taken while a copy of it exists, as it does for a WebSocket.
#[derive(Clone, Debug)]
pub struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Place {
    /// Takes the place that this permit stands for.
    pub fn new(permit: OwnedSemaphorePermit) -> Place {
        Place { _permit: Arc::new(permit) }
    }
}
