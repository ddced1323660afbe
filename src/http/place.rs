//! Places among the connections.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

/// A place among the connections. It stays taken while a copy of it exists, as it does for a WebSocket.
#[derive(Clone, Debug)]
pub struct Place {
    _permits: Arc<(OwnedSemaphorePermit, Option<OwnedSemaphorePermit>)>,
}

impl Place {
    /// Takes the place that this permit stands for, and one among the connections of a port where these are bounded.
    pub fn new(permit: OwnedSemaphorePermit, of_port: Option<OwnedSemaphorePermit>) -> Place {
        Place { _permits: Arc::new((permit, of_port)) }
    }
}
