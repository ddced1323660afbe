//! SUBSCRIBE [MQTT-3.8] and UNSUBSCRIBE [MQTT-3.10].

use super::property::{Allowed, Property, next, skip};
use super::{Error, Fields, Version};
use crate::message::Qos;

/// When retained messages are sent to a subscriber [MQTT-3.8.3.1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum RetainHandling {
    /// After every SUBSCRIBE.
    #[default]
    Always,
    /// Only if the subscription is new.
    IfNew,
    Never,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeFilter<'a> {
    /// The filter as the client sent it, not checked yet.
    pub(crate) filter: &'a str,
    /// The highest QoS for deliveries.
    pub(crate) qos: Qos,
    /// Whether the client does not want the messages that it publishes itself.
    pub(crate) no_local: bool,
    /// Whether live messages keep their retain flag.
    pub(crate) retain_as_published: bool,
    pub(crate) retain_handling: RetainHandling,
}

/// A decoded SUBSCRIBE packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The packet id, which the SUBACK repeats.
    pub packet_id: u16,
    /// The subscription id, 1 to 268,435,455.
    pub(crate) id: Option<u32>,
    /// The filters, at least one.
    pub filters: Vec<SubscribeFilter<'a>>,
}

impl<'a> Subscribe<'a> {
    /// Decodes the body of a SUBSCRIBE.
    pub fn decode(body: &'a [u8], version: Version) -> Result<Subscribe<'a>, Error> {
        let mut fields = Fields::new(body);
        let mut subscribe = Subscribe { packet_id: fields.packet_id()?, id: None, filters: Vec::new() };
        if version.is_v5() {
            let mut properties = fields.properties()?;
            while let Some(property) = next(&mut properties)? {
                match property {
                    Property::User(..) => {}
                    Property::SubscriptionId(id) if subscribe.id.is_none() => subscribe.id = Some(id),
                    Property::SubscriptionId(_) => return Err(Error::Protocol("two subscription ids")),
                    _ => return Err(Error::Protocol("a property that SUBSCRIBE does not have")),
                }
            }
        }
        while !fields.is_empty() {
            let filter = fields.string()?;
            let options = fields.u8()?;
            subscribe.filters.push(subscribe_filter(filter, options, version)?);
        }
        if subscribe.filters.is_empty() {
            return Err(Error::Protocol("SUBSCRIBE without a filter")); // [MQTT-3.8.3-2]
        }
        Ok(subscribe)
    }
}

fn subscribe_filter(filter: &str, options: u8, version: Version) -> Result<SubscribeFilter<'_>, Error> {
    // MQTT 3.1 ignores the other bits
    let options = if version == Version::V31 { options & 3 } else { options };
    let reserved = if version.is_v5() { 0xc0 } else { 0xfc };
    if options & reserved != 0 {
        return Err(Error::Malformed("reserved subscription options"));
    }
    let retain_handling = match (options >> 4) & 3 {
        0 => RetainHandling::Always,
        1 => RetainHandling::IfNew,
        2 => RetainHandling::Never,
        _ => return Err(Error::Protocol("retain handling 3 does not exist")),
    };
    let no_local = options & 4 != 0;
    if no_local && filter.starts_with("$share/") {
        return Err(Error::Protocol("no local on a shared subscription")); // [MQTT-3.8.3-4]
    }
    Ok(SubscribeFilter {
        filter,
        qos: Qos::from_u8(options & 3).ok_or(Error::Qos)?,
        no_local,
        retain_as_published: options & 8 != 0,
        retain_handling,
    })
}

/// A decoded UNSUBSCRIBE packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    pub(crate) packet_id: u16,
    /// The filters, at least one.
    pub filters: Vec<&'a str>,
}

impl<'a> Unsubscribe<'a> {
    /// Decodes the body of an UNSUBSCRIBE.
    pub fn decode(body: &'a [u8], version: Version) -> Result<Unsubscribe<'a>, Error> {
        let mut fields = Fields::new(body);
        let packet_id = fields.packet_id()?;
        if version.is_v5() {
            skip(&mut fields.properties()?, Allowed::UserOnly)?;
        }
        let mut filters = Vec::new();
        while !fields.is_empty() {
            filters.push(fields.string()?);
        }
        if filters.is_empty() {
            return Err(Error::Protocol("UNSUBSCRIBE without a filter")); // [MQTT-3.10.3-2]
        }
        Ok(Unsubscribe { packet_id, filters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_both_generations() {
        let old = Subscribe::decode(b"\0\x01\0\x01a\x02", Version::V311).unwrap();
        assert_eq!((old.packet_id, old.filters[0].filter, old.filters[0].qos), (1, "a", Qos::ExactlyOnce));
        assert!(Subscribe::decode(b"\0\x01\0\x01a\x06", Version::V311).is_err(), "no local is of version 5");
        let new = Subscribe::decode(b"\0\x01\x02\x0b\x05\0\x01a\x2d", Version::V5).unwrap();
        let filter = new.filters[0];
        assert_eq!((new.id, filter.qos, filter.retain_handling), (Some(5), Qos::AtLeastOnce, RetainHandling::Never));
        assert!(filter.no_local && filter.retain_as_published);
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for body in [&b"\0\0\0\x01a\0"[..], b"\0\x01", b"\0\x01\0\x01a\x03", b"\0\x01\0\x01a", b"\0\x01\0\x05a\0"] {
            assert!(Subscribe::decode(body, Version::V311).is_err(), "{body:?}");
        }
        assert!(Subscribe::decode(b"\0\x01\x02\x0b\0\0\x01a\0", Version::V5).is_err(), "subscription id 0");
        assert!(Subscribe::decode(b"\0\x01\0\0\x01a\x30", Version::V5).is_err(), "retain handling 3");
        assert!(Subscribe::decode(b"\0\x01\0\0\x0a$share/g/a\x04", Version::V5).is_err(), "shared and no local");
        assert!(Unsubscribe::decode(b"\0\x01", Version::V311).is_err());
        assert_eq!(Unsubscribe::decode(b"\0\x01\0\x01a\0\x01b", Version::V311).unwrap().filters, ["a", "b"]);
    }
}
