//! MQTT 5 properties [MQTT-2.2.2].

use super::{Error, Fields};

/// A property. Values that the broker only passes on are checked but not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Property<'a> {
    PayloadFormat,
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData,
    SubscriptionId(u32),
    SessionExpiry(u32),
    AuthenticationMethod,
    AuthenticationData,
    RequestProblemInformation(bool),
    WillDelay(u32),
    RequestResponseInformation,
    ReasonString,
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumPacketSize(u32),
    User(&'a str, &'a str),
}

/// The identifiers of the properties in packets.
pub(crate) mod id {
    #![allow(missing_docs)]
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0b;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const USER: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
}

fn flag(fields: &mut Fields<'_>) -> Result<bool, Error> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Protocol("a property is neither 0 nor 1")),
    }
}

fn not_zero<T: Default + PartialEq>(value: T) -> Result<T, Error> {
    if value == T::default() { Err(Error::Protocol("a property is 0")) } else { Ok(value) }
}

/// Reads the next property, if there is one.
pub(crate) fn next<'a>(fields: &mut Fields<'a>) -> Result<Option<Property<'a>>, Error> {
    if fields.is_empty() {
        return Ok(None);
    }
    fields.count_property()?;
    // identifiers are variable byte integers, but all that exist fit in one byte
    let property = match fields.u8()? {
        id::PAYLOAD_FORMAT => flag(fields).map(|_| Property::PayloadFormat)?,
        id::MESSAGE_EXPIRY => Property::MessageExpiry(fields.u32()?),
        id::CONTENT_TYPE => Property::ContentType(fields.string()?),
        id::RESPONSE_TOPIC => Property::ResponseTopic(fields.string()?),
        id::CORRELATION_DATA => fields.binary().map(|_| Property::CorrelationData)?,
        id::SUBSCRIPTION_ID => Property::SubscriptionId(not_zero(fields.variable()? as u32)?),
        id::SESSION_EXPIRY => Property::SessionExpiry(fields.u32()?),
        id::AUTHENTICATION_METHOD => fields.string().map(|_| Property::AuthenticationMethod)?,
        id::AUTHENTICATION_DATA => fields.binary().map(|_| Property::AuthenticationData)?,
        id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(flag(fields)?),
        id::WILL_DELAY => Property::WillDelay(fields.u32()?),
        id::REQUEST_RESPONSE_INFORMATION => flag(fields).map(|_| Property::RequestResponseInformation)?,
        id::REASON_STRING => fields.string().map(|_| Property::ReasonString)?,
        id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(not_zero(fields.u16()?)?),
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(fields.u16()?),
        id::TOPIC_ALIAS => Property::TopicAlias(fields.u16()?),
        id::USER => {
            let name = fields.string()?;
            Property::User(name, fields.string()?)
        }
        id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(not_zero(fields.u32()?)?),
        _ => return Err(Error::Malformed("unknown property")),
    };
    Ok(Some(property))
}

/// The properties that are allowed in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// PUBACK, PUBREC, PUBREL or PUBCOMP.
    Acknowledgement,
    /// UNSUBSCRIBE.
    UserOnly,
}

/// Checks properties whose values are not needed.
pub(crate) fn skip(fields: &mut Fields<'_>, allowed: Allowed) -> Result<(), Error> {
    let mut once = Once::default();
    while let Some(property) = next(fields)? {
        match property {
            Property::User(..) => {}
            Property::ReasonString if allowed == Allowed::Acknowledgement => once.mark(0)?,
            _ => return Err(Error::Protocol("a property that this packet does not have")),
        }
    }
    Ok(())
}

/// Detects properties that appear twice although they may appear once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Once(u32);

impl Once {
    /// Fails the second time for the same `bit` [MQTT-2.2.2.2].
    pub(crate) fn mark(&mut self, bit: u8) -> Result<(), Error> {
        let mask = 1 << (bit & 31);
        if self.0 & mask != 0 {
            return Err(Error::Protocol("a property appears twice"));
        }
        self.0 |= mask;
        Ok(())
    }
}
