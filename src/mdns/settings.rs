//! The table `[mdns]`.

/// Whether the open ports are announced in the local network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MdnsSettings {
    pub(crate) enabled: bool,
}

impl Default for MdnsSettings {
    /// Enabled by default: only ports that are open to the network anyway are announced, and only on a machine with Avahi,
    /// which announces the host itself in the same network.
    fn default() -> Self {
        MdnsSettings { enabled: true }
    }
}
