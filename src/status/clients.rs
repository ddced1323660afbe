//! MQTT clients as others see them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::mqtt::Version;

/// A connected client.
#[derive(Clone, Debug)]
pub struct ClientSnapshot {
    /// Client id.
    pub(crate) client_id: Box<str>,
    /// User name; `None`: a client without one.
    pub(crate) user: Option<Box<str>>,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// What it speaks.
    pub(crate) version: Version,
    /// Since when, on the boot clock in milliseconds.
    pub(crate) since_boot_ms: u64,
    /// Keep alive in force, in seconds; 0: none.
    pub(crate) keep_alive: u16,
    /// Whether its session outlives the connection.
    pub(crate) is_persistent: bool,
    /// Of a persistent session: messages that wait for it.
    pub(crate) waiting: Option<usize>,
    /// Messages that it has been too slow for since it connected, and those that the bounds of its persistent session
    /// have pushed out.
    pub(crate) dropped: u64,
}

/// How many clients there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// Connected.
    pub(crate) connected: usize,
    /// Away, with a session that is kept for them.
    pub(crate) away: usize,
}

type ClientsList = dyn Fn(usize) -> Vec<ClientSnapshot> + Send + Sync;
type Count = dyn Fn() -> ClientCounts + Send + Sync;

/// The clients of this very moment: nobody is woken for them while nobody looks. Cheap to clone.
#[derive(Clone)]
pub struct ClientsShown {
    list: Arc<ClientsList>,
    count: Arc<Count>,
}

impl ClientsShown {
    /// Shows what these say. `list` gives at most as many as it is asked for, in the order of their client ids.
    pub fn new(
        list: impl Fn(usize) -> Vec<ClientSnapshot> + Send + Sync + 'static,
        count: impl Fn() -> ClientCounts + Send + Sync + 'static,
    ) -> ClientsShown {
        ClientsShown { list: Arc::new(list), count: Arc::new(count) }
    }

    /// At most so many, in the order of their client ids.
    pub(crate) fn list(&self, most: usize) -> Vec<ClientSnapshot> {
        (self.list)(most)
    }

    /// How many there are.
    pub(crate) fn counts(&self) -> ClientCounts {
        (self.count)()
    }
}

impl fmt::Debug for ClientsShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientsShown")
    }
}
