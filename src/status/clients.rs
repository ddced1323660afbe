//! MQTT clients, for those who show them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::mqtt::Version;

/// A connected client.
#[derive(Clone, Debug)]
pub struct ClientSnapshot {
    pub(crate) client_id: Box<str>,
    /// The user name; `None` for a client without one.
    pub(crate) user: Option<Box<str>>,
    /// The remote address, as far as it is known behind a proxy.
    pub(crate) address: IpAddr,
    pub(crate) version: Version,
    /// When the client connected, in milliseconds of the boot clock.
    pub(crate) since_boot_ms: u64,
    /// The keep alive in force, in seconds; 0 means none.
    pub(crate) keep_alive: u16,
    /// Whether the session outlives the connection.
    pub(crate) is_persistent: bool,
    /// The number of messages that wait for a persistent session.
    pub(crate) waiting: Option<usize>,
    /// The number of messages that were dropped because the client has been too slow since it connected, plus those that the
    /// limits of its persistent session have dropped.
    pub(crate) dropped: u64,
}

/// The numbers of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// The number of connected clients.
    pub(crate) connected: usize,
    /// The number of absent clients with a kept session.
    pub(crate) away: usize,
}

type ClientsList = dyn Fn(usize) -> Vec<ClientSnapshot> + Send + Sync;
type Count = dyn Fn() -> ClientCounts + Send + Sync;

/// Gives access to the present clients. Nothing is computed while nobody looks. Cheap to clone.
#[derive(Clone)]
pub struct ClientsShown {
    list: Arc<ClientsList>,
    count: Arc<Count>,
}

impl ClientsShown {
    /// Shows what these functions return. `list` returns at most as many clients as it is asked for, in the order of their
    /// client ids.
    pub fn new(
        list: impl Fn(usize) -> Vec<ClientSnapshot> + Send + Sync + 'static,
        count: impl Fn() -> ClientCounts + Send + Sync + 'static,
    ) -> ClientsShown {
        ClientsShown { list: Arc::new(list), count: Arc::new(count) }
    }

    /// At most `most` clients, in the order of their client ids.
    pub(crate) fn list(&self, most: usize) -> Vec<ClientSnapshot> {
        (self.list)(most)
    }

    /// The numbers of connected and absent clients.
    pub(crate) fn counts(&self) -> ClientCounts {
        (self.count)()
    }
}

impl fmt::Debug for ClientsShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientsShown")
    }
}
