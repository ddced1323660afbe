//! `[mdns]`.

/// Whether the local network is told of the open ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MdnsSettings {
    /// Whether it is told.
    pub(crate) enabled: bool,
}

impl Default for MdnsSettings {
    /// It is: only ports that are open to that network anyway are announced, and only where a person has Avahi, which tells
    /// the same network of the host.
    fn default() -> Self {
        MdnsSettings { enabled: true }
    }
}
