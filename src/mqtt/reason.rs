//! Reason codes of MQTT 5 [MQTT-2.4] and the return codes of MQTT 3 that correspond to them.

/// A reason code: values below 0x80 mean success, the others failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reason(pub(crate) u8);

#[allow(missing_docs)]
impl Reason {
    pub(crate) const SUCCESS: Reason = Reason(0x00);
    #[cfg(test)]
    pub(crate) const DISCONNECT_WITH_WILL: Reason = Reason(0x04);
    pub(crate) const NO_SUBSCRIPTION_EXISTED: Reason = Reason(0x11);
    pub(crate) const UNSPECIFIED_ERROR: Reason = Reason(0x80);
    pub(crate) const MALFORMED_PACKET: Reason = Reason(0x81);
    pub(crate) const PROTOCOL_ERROR: Reason = Reason(0x82);
    pub(crate) const UNSUPPORTED_PROTOCOL_VERSION: Reason = Reason(0x84);
    pub(crate) const CLIENT_ID_NOT_VALID: Reason = Reason(0x85);
    pub(crate) const BAD_USER_NAME_OR_PASSWORD: Reason = Reason(0x86);
    pub(crate) const NOT_AUTHORIZED: Reason = Reason(0x87);
    pub(crate) const SERVER_BUSY: Reason = Reason(0x89);
    pub(crate) const SERVER_SHUTTING_DOWN: Reason = Reason(0x8b);
    pub(crate) const BAD_AUTHENTICATION_METHOD: Reason = Reason(0x8c);
    pub(crate) const KEEP_ALIVE_TIMEOUT: Reason = Reason(0x8d);
    pub(crate) const SESSION_TAKEN_OVER: Reason = Reason(0x8e);
    pub(crate) const TOPIC_FILTER_INVALID: Reason = Reason(0x8f);
    pub(crate) const TOPIC_NAME_INVALID: Reason = Reason(0x90);
    pub(crate) const PACKET_ID_NOT_FOUND: Reason = Reason(0x92);
    pub(crate) const RECEIVE_MAXIMUM_EXCEEDED: Reason = Reason(0x93);
    pub(crate) const TOPIC_ALIAS_INVALID: Reason = Reason(0x94);
    pub(crate) const PACKET_TOO_LARGE: Reason = Reason(0x95);
    pub(crate) const QUOTA_EXCEEDED: Reason = Reason(0x97);
    pub(crate) const ADMINISTRATIVE_ACTION: Reason = Reason(0x98);
}

impl Reason {
    pub(crate) fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// The CONNACK return code of MQTT 3.1 and 3.1.1 for a refusal [MQTT-3.2.2.3].
    pub(crate) fn connect_return_code(self) -> u8 {
        match self {
            Reason::SUCCESS => 0,
            Reason::UNSUPPORTED_PROTOCOL_VERSION => 1,
            Reason::CLIENT_ID_NOT_VALID => 2,
            Reason::BAD_USER_NAME_OR_PASSWORD => 4,
            Reason::NOT_AUTHORIZED => 5,
            _ => 3,
        }
    }
}
