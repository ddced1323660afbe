//! CONNECT [MQTT-3.1].

use super::property::{Once, Property, next};
use super::{Error, Fields, Version};
use crate::message::{Qos, check_topic, via};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Will {
    pub(crate) topic: Box<str>,
    pub(crate) payload: Box<[u8]>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Seconds between the end of the connection and the publication of the will.
    pub(crate) delay: u32,
    /// Message expiry interval in seconds.
    pub(crate) expiry: Option<u32>,
    /// The properties to pass on, encoded.
    pub(crate) properties: Box<[u8]>,
}

/// A client's CONNECT packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    pub(crate) version: Version,
    /// The sender is a bridge like mosquitto's (bit 7 of the protocol level is set).
    pub(crate) is_bridge: bool,
    /// Clean session (MQTT 3) or clean start (MQTT 5).
    pub(crate) clean: bool,
    /// Keep alive in seconds; 0 switches it off.
    pub(crate) keep_alive: u16,
    /// The client id; if it is empty, the broker assigns one.
    pub client_id: Box<str>,
    pub(crate) will: Option<Will>,
    pub(crate) username: Option<Box<str>>,
    pub(crate) password: Option<Box<[u8]>>,
    /// Session expiry interval in seconds; `None` if the packet has none.
    pub(crate) session_expiry: Option<u32>,
    /// The number of unacknowledged QoS 1 and 2 messages that the client accepts.
    pub(crate) receive_maximum: u16,
    /// The largest packet in bytes that the client accepts.
    pub(crate) maximum_packet_size: u32,
    /// The number of topic aliases that the client accepts.
    pub(crate) topic_alias_maximum: u16,
    /// Whether the client wants reason strings.
    pub(crate) problem_information: bool,
    /// The client asks for an authentication method other than user name and password.
    pub(crate) extended_authentication: bool,
    /// The client is a pigateway and wants to know the id of this one.
    pub(crate) is_gateway: bool,
    /// The id of the client if it is a pigateway. It receives messages under the topics that they have here.
    pub(crate) gateway: Option<via::Id>,
}

impl Connect {
    /// Decodes the body of a CONNECT.
    pub fn decode(body: &[u8]) -> Result<Connect, Error> {
        let mut fields = Fields::new(body);
        let (version, is_bridge) = version(&mut fields)?;
        let flags = fields.u8()?;
        if flags & 1 != 0 && version != Version::V31 {
            return Err(Error::Malformed("reserved connect flag")); // [MQTT-3.1.2-3]
        }
        let mut connect = Connect {
            version,
            is_bridge,
            clean: flags & 0x02 != 0,
            keep_alive: fields.u16()?,
            client_id: Box::default(),
            will: None,
            username: None,
            password: None,
            session_expiry: None,
            receive_maximum: u16::MAX,
            maximum_packet_size: u32::MAX,
            topic_alias_maximum: 0,
            problem_information: true,
            extended_authentication: false,
            is_gateway: false,
            gateway: None,
        };
        if version.is_v5() {
            connect.read_properties(fields.properties()?)?;
        }
        connect.client_id = fields.string()?.into();
        connect.will = will(flags, version, &mut fields)?;
        // in MQTT 3.1 the remaining length has precedence over these flags: a field that is missing was not sent
        let is_missing = |fields: &Fields<'_>| version == Version::V31 && fields.is_empty();
        if flags & 0x80 != 0 && !is_missing(&fields) {
            connect.username = Some(fields.string()?.into());
        }
        if flags & 0x40 != 0 && !is_missing(&fields) {
            if flags & 0x80 == 0 && !version.is_v5() {
                return Err(Error::Malformed("password without user name")); // [MQTT-3.1.2-22] of 3.1.1
            }
            connect.password = Some(fields.binary()?.into());
        }
        if fields.is_empty() { Ok(connect) } else { Err(Error::Malformed("bytes after the end of CONNECT")) }
    }

    fn read_properties(&mut self, mut fields: Fields<'_>) -> Result<(), Error> {
        let mut once = Once::default();
        let mut has_data = false;
        while let Some(property) = next(&mut fields)? {
            match property {
                Property::User(via::NAME, id) => {
                    self.is_gateway = true;
                    self.gateway = via::Id::parse(id);
                }
                Property::User(..) => {}
                Property::SessionExpiry(seconds) => {
                    once.mark(0)?;
                    self.session_expiry = Some(seconds);
                }
                Property::ReceiveMaximum(count) => {
                    once.mark(1)?;
                    self.receive_maximum = count;
                }
                Property::MaximumPacketSize(size) => {
                    once.mark(2)?;
                    self.maximum_packet_size = size;
                }
                Property::TopicAliasMaximum(count) => {
                    once.mark(3)?;
                    self.topic_alias_maximum = count;
                }
                Property::RequestProblemInformation(wanted) => {
                    once.mark(4)?;
                    self.problem_information = wanted;
                }
                Property::RequestResponseInformation => once.mark(5)?,
                Property::AuthenticationMethod => {
                    once.mark(6)?;
                    self.extended_authentication = true;
                }
                Property::AuthenticationData => {
                    once.mark(7)?;
                    has_data = true;
                }
                _ => return Err(Error::Protocol("a property that CONNECT does not have")),
            }
        }
        if has_data && !self.extended_authentication {
            return Err(Error::Protocol("authentication data without an authentication method")); // section 3.1.2.11.10
        }
        Ok(())
    }
}

fn version(fields: &mut Fields<'_>) -> Result<(Version, bool), Error> {
    let name = fields.binary()?;
    let level = fields.u8()?;
    let version = match (name, level & 0x7f) {
        (b"MQIsdp", 3) => Version::V31,
        (b"MQTT", 4) => Version::V311,
        (b"MQTT", 5) => Version::V5,
        (b"MQIsdp" | b"MQTT", _) => return Err(Error::Level(level)),
        _ => return Err(Error::Malformed("this is not MQTT")),
    };
    Ok((version, level & 0x80 != 0))
}

fn will(flags: u8, version: Version, fields: &mut Fields<'_>) -> Result<Option<Will>, Error> {
    if flags & 0x04 == 0 {
        // [MQTT-3.1.2-11], [MQTT-3.1.2-13]; MQTT 3.1 ignores these flags without a will
        return if flags & 0x38 == 0 || version == Version::V31 {
            Ok(None)
        } else {
            Err(Error::Malformed("will flags without a will"))
        };
    }
    let qos = Qos::from_u8((flags >> 3) & 3).ok_or(Error::Qos)?;
    let mut will = Will {
        topic: Box::default(),
        payload: Box::default(),
        qos,
        retain: flags & 0x20 != 0,
        delay: 0,
        expiry: None,
        properties: Box::default(),
    };
    if version.is_v5() {
        will_properties(&mut will, fields.properties()?)?;
    }
    let topic = fields.string()?;
    check_topic(topic).map_err(Error::Topic)?;
    will.topic = topic.into();
    will.payload = fields.binary()?.into();
    Ok(Some(will))
}

fn will_properties(will: &mut Will, mut fields: Fields<'_>) -> Result<(), Error> {
    let mut once = Once::default();
    let mut kept = Vec::new();
    loop {
        let before = fields.rest();
        let Some(property) = next(&mut fields)? else { break };
        let encoded = &before[..before.len() - fields.rest().len()];
        match property {
            Property::WillDelay(seconds) => {
                once.mark(0)?;
                will.delay = seconds;
            }
            Property::MessageExpiry(seconds) => {
                once.mark(1)?;
                will.expiry = Some(seconds);
            }
            Property::PayloadFormat => {
                once.mark(2)?;
                kept.extend_from_slice(encoded);
            }
            Property::ContentType(_) => {
                once.mark(3)?;
                kept.extend_from_slice(encoded);
            }
            Property::ResponseTopic(topic) => {
                once.mark(4)?;
                check_topic(topic).map_err(Error::Topic)?;
                kept.extend_from_slice(encoded);
            }
            Property::CorrelationData => {
                once.mark(5)?;
                kept.extend_from_slice(encoded);
            }
            Property::User(..) => kept.extend_from_slice(encoded),
            _ => return Err(Error::Protocol("a property that a will does not have")),
        }
    }
    will.properties = kept.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(name: &[u8], level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut body = vec![0, name.len() as u8];
        body.extend_from_slice(name);
        body.extend_from_slice(&[level, flags, 0, 60]);
        body.extend_from_slice(rest);
        body
    }

    #[test]
    fn the_three_versions_are_told_apart() {
        for (name, level, rest, version) in [
            (&b"MQIsdp"[..], 3, &b"\0\x01a"[..], Version::V31),
            (b"MQTT", 4, b"\0\x01a", Version::V311),
            (b"MQTT", 5, b"\0\0\x01a", Version::V5),
        ] {
            let connect = Connect::decode(&body(name, level, 2, rest)).unwrap();
            assert_eq!((connect.version, &*connect.client_id, connect.keep_alive), (version, "a", 60));
            assert!(connect.clean && !connect.is_bridge);
        }
        assert_eq!(Connect::decode(&body(b"MQTT", 9, 2, b"\0\0")), Err(Error::Level(9)));
        assert!(Connect::decode(&body(b"HTTP", 4, 2, b"\0\0")).is_err());
        assert!(Connect::decode(&body(b"MQTT", 0x84, 2, b"\0\x01b")).unwrap().is_bridge);
    }

    #[test]
    fn version_3_1_is_read_as_its_own_document_says() {
        for (flags, rest) in [
            (0x02 | 0x01, &b"\0\x01a"[..]), // the reserved bit
            (0x02 | 0x38, b"\0\x01a"),      // QoS and retain of a will that is not there
            (0x02 | 0xc0, b"\0\x01a"),      // neither user name nor password follows
        ] {
            let connect = Connect::decode(&body(b"MQIsdp", 3, flags, rest)).unwrap();
            assert_eq!((connect.will, connect.username, connect.password), (None, None, None), "{flags:x}");
            assert!(Connect::decode(&body(b"MQTT", 4, flags, rest)).is_err(), "{flags:x}");
        }
        let connect = Connect::decode(&body(b"MQIsdp", 3, 0xc2, b"\0\x01a\0\x01u")).unwrap();
        assert_eq!((connect.username.as_deref(), connect.password), (Some("u"), None));
    }

    #[test]
    fn will_and_login_are_read() {
        let rest = b"\0\x01c\0\x03w/t\0\x03bye\0\x01u\0\x02p\xff";
        let connect = Connect::decode(&body(b"MQTT", 4, 0b1110_1110, rest)).unwrap();
        let will = connect.will.unwrap();
        assert_eq!((&*will.topic, &*will.payload, will.qos, will.retain), ("w/t", &b"bye"[..], Qos::AtLeastOnce, true));
        assert_eq!((connect.username.as_deref(), connect.password.as_deref()), (Some("u"), Some(&b"p\xff"[..])));
    }

    #[test]
    fn properties_of_version_5_are_read_once() {
        let properties = [0x11, 0, 0, 0, 9, 0x21, 0, 5, 0x22, 0, 3, 0x27, 0, 0, 1, 0];
        let mut rest = vec![properties.len() as u8];
        rest.extend_from_slice(&properties);
        rest.extend_from_slice(b"\0\0");
        let connect = Connect::decode(&body(b"MQTT", 5, 2, &rest)).unwrap();
        assert_eq!((connect.session_expiry, connect.receive_maximum), (Some(9), 5));
        assert_eq!((connect.topic_alias_maximum, connect.maximum_packet_size), (3, 256));
        let twice = [10, 0x11, 0, 0, 0, 9, 0x11, 0, 0, 0, 9, 0, 0];
        assert_eq!(Connect::decode(&body(b"MQTT", 5, 2, &twice)), Err(Error::Protocol("a property appears twice")));
        let data_alone = [4, 0x16, 0, 1, 7, 0, 0];
        assert!(matches!(Connect::decode(&body(b"MQTT", 5, 2, &data_alone)), Err(Error::Protocol(_))));
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        assert!(Connect::decode(&body(b"MQTT", 4, 3, b"\0\x01a")).is_err(), "reserved flag");
        assert!(Connect::decode(&body(b"MQTT", 4, 0x12, b"\0\x01a")).is_err(), "will QoS without will");
        assert!(Connect::decode(&body(b"MQTT", 4, 0x1e, b"\0\x01a\0\x01t\0\0")).is_err(), "will QoS 3");
        assert!(Connect::decode(&body(b"MQTT", 4, 0x42, b"\0\x01a\0\x01p")).is_err(), "password without name");
        assert!(Connect::decode(&body(b"MQTT", 4, 2, b"\0\x01a!")).is_err(), "trailing bytes");
        assert!(Connect::decode(&body(b"MQTT", 4, 6, b"\0\x01a\0\x01+\0\0")).is_err(), "wildcard will");
        let good = body(b"MQTT", 4, 0b1110_1110, b"\0\x01c\0\x03w/t\0\x03bye\0\x01u\0\x02pp");
        for cut in 0..good.len() {
            assert!(Connect::decode(&good[..cut]).is_err(), "cut at {cut}");
        }
    }
}
