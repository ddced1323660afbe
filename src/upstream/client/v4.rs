//! Packets of MQTT 3.1.1, encoded by rumqttc.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Connect, LastWill, Login, Packet, Publish, Subscribe, SubscribeFilter, Unsubscribe};
use rumqttc::mqttbytes::{Error, QoS};

use super::Incoming;
use crate::message::{Qos, TopicFilter, check_topic};
use crate::secret::Secret;
use crate::upstream::settings::UpstreamSettings;
use crate::upstream::wire::{Broken, ClientEvent, InMessage, Link, StatusWill, Version, said};

/// CONNACK codes: unacceptable protocol version, and the highest code of MQTT 3.1.1 [MQTT-3.2.2.3].
const BAD_VERSION: u8 = 1;
const LAST_CODE: u8 = 5;

/// Whether what CONNECT says fits into it: each text has a length of two bytes [MQTT-1.5.3], which rumqttc cuts off.
pub(super) fn check_lengths(settings: &UpstreamSettings, password: Option<&Secret>) -> Result<(), String> {
    let most = usize::from(u16::MAX);
    let texts = [
        ("password", password.map(Secret::expose)),
        ("username", settings.username.as_deref()),
        ("client_id", Some(&*settings.client_id)),
        ("status_topic", settings.status_topic.as_ref().map(|topic| topic.as_str())),
    ];
    let mut lengths = texts.into_iter().filter_map(|(name, text)| Some((name, text?.len())));
    match lengths.find(|(_, length)| *length > most) {
        Some((name, length)) => Err(format!("the {name} has {length} bytes; valid in MQTT: at most {most}")),
        None => Ok(()),
    }
}

pub(super) fn connect(
    settings: &UpstreamSettings,
    will: StatusWill,
    password: Option<&Secret>,
    out: &mut BytesMut,
) -> Result<(), String> {
    check_lengths(settings, password)?;
    let mut connect = Connect::new(&settings.client_id);
    connect.keep_alive = u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX);
    connect.clean_session = settings.clean_session;
    let topic = settings.status_topic.as_ref().filter(|_| will != StatusWill::None);
    let qos = if will == StatusWill::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    connect.last_will = topic.map(|topic| LastWill::new(topic.as_str(), "offline", qos, will == StatusWill::Whole));
    let password = password.map_or("", Secret::expose);
    connect.login = settings.username.as_ref().map(|user| Login::new(user, password));
    connect.write(out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn subscribe(filters: &[(TopicFilter, Qos)], pkid: u16, out: &mut BytesMut) -> Result<(), String> {
    let filter = |(filter, qos): &(TopicFilter, Qos)| {
        let qos = granted(*qos);
        SubscribeFilter::new(filter.to_string(), qos)
    };
    let packet = Subscribe { pkid, filters: filters.iter().map(filter).collect() };
    packet.write(out).map(drop).map_err(|error| error.to_string())
}

fn granted(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

pub(super) fn unsubscribe(filters: &[String], pkid: u16, out: &mut BytesMut) -> Result<(), String> {
    let packet = Unsubscribe { pkid, topics: filters.to_vec() };
    packet.write(out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn decode(bytes: &mut BytesMut) -> Result<Incoming, Broken> {
    if let [0x20, 2, _, code] = bytes[..]
        && code != 0
    {
        return Err(refused(code));
    }
    match bytes[..] {
        [0x90, ..] => return subscribed(bytes),
        [0xb0, 2, high, low] => return Ok(Incoming::Unsubscribed(u16::from_be_bytes([high, low]), Vec::new())),
        _ => {}
    }
    let packet = Packet::read(bytes, usize::MAX).map_err(|_: Error| Broken::Garbled)?;
    Ok(match packet {
        Packet::ConnAck(connack) => {
            let link = Link {
                version: Version::V311,
                session_present: connack.session_present,
                receive_maximum: u16::MAX,
                max_packet_size: None,
                max_qos: Qos::ExactlyOnce,
                retain_available: true,
                has_subscription_ids: false,
                topic_aliases: 0,
                gateway: None,
            };
            Incoming::Accepted(link, None)
        }
        Packet::PubAck(ack) => Incoming::Event(ClientEvent::Acked(ack.pkid, 0)),
        Packet::Publish(publish) => Incoming::Event(ClientEvent::Received(received(publish)?)),
        Packet::PubRec(rec) => Incoming::Event(ClientEvent::Recorded(rec.pkid)),
        Packet::PubRel(release) => Incoming::Event(ClientEvent::Released(release.pkid)),
        Packet::PubComp(complete) => Incoming::Event(ClientEvent::Completed(complete.pkid)),
        // in 3.1.1 only clients send this, but its meaning is clear
        Packet::Disconnect => return Err(Broken::Closed),
        _ => Incoming::Other,
    })
}

/// The meaning of a CONNACK with a refusal. Some clouds have additional codes: Adafruit IO throttles with 6 and bans with 7.
pub(super) fn refused(code: u8) -> Broken {
    match code {
        BAD_VERSION => Broken::Version,
        2 => Broken::Refused(0x85, "client identifier not accepted: is client_id what it expects?".into()),
        3 => Broken::Failed("it is not available at the moment".into()),
        4 => Broken::Refused(0x86, "bad user name or password".into()),
        LAST_CODE => Broken::Refused(0x87, "not authorized".into()),
        6 => Broken::SentAway(
            "code 6, which MQTT 3.1.1 does not have; it may mean: too many connections or messages".into(),
        ),
        7 => Broken::SentAway("code 7, which MQTT 3.1.1 does not have; it may mean: banned for a while".into()),
        code => Broken::SentAway(format!("code {code}, which MQTT 3.1.1 does not have")),
    }
}

/// Whether a message is valid: it needs a topic, and a packet id if it must be answered [MQTT-2.3.1-1, MQTT-3.3.2-2]. An
/// invalid message can neither be passed on nor be acknowledged.
pub(super) fn check(topic: &str, packet_id: u16, is_unanswered: bool) -> Result<(), Broken> {
    if let Err(error) = check_topic(topic) {
        return Err(Broken::Failed(format!("it sent a message on {:?}, which {error}", said(topic))));
    }
    if packet_id == 0 && !is_unanswered {
        return Err(Broken::Failed("it sent a message without a packet id".into()));
    }
    Ok(())
}

fn received(publish: Publish) -> Result<InMessage, Broken> {
    check(&publish.topic, publish.pkid, publish.qos == QoS::AtMostOnce)?;
    Ok(InMessage {
        packet_id: publish.pkid,
        topic: publish.topic,
        payload: publish.payload,
        qos: Qos::from_u8(publish.qos as u8).ok_or(Broken::Garbled)?,
        retain: publish.retain,
        is_repeated: publish.dup,
        expiry: None,
        properties: Vec::new(),
    })
}

/// Decodes a SUBACK. Some upstreams use the codes of MQTT 5 for refusals, which rumqttc does not know.
fn subscribed(packet: &[u8]) -> Result<Incoming, Broken> {
    let length = packet.iter().skip(1).position(|byte| byte & 0x80 == 0).ok_or(Broken::Garbled)? + 1;
    let [high, low, codes @ ..] = packet.get(1 + length..).unwrap_or_default() else { return Err(Broken::Garbled) };
    if codes.is_empty() || codes.iter().any(|code| (3..0x80).contains(code)) {
        return Err(Broken::Garbled);
    }
    Ok(Incoming::Subscribed(u16::from_be_bytes([*high, *low]), codes.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::v5;
    use super::*;
    use crate::upstream::settings::UpstreamAddress;

    #[test]
    fn what_does_not_fit_into_connect_is_said_and_not_cut_off() {
        let address = UpstreamAddress::parse("mqtt://127.0.0.1").unwrap();
        let settings = UpstreamSettings::new("home", vec![address], "loft");
        let texts = |length: usize| {
            let named = UpstreamSettings { username: Some("u".into()), ..settings.clone() };
            let long = || "x".repeat(length);
            let user = UpstreamSettings { username: Some(long()), ..settings.clone() };
            let client = UpstreamSettings { client_id: long(), ..settings.clone() };
            [(named, Some(Secret::new(long())), "password"), (user, None, "username"), (client, None, "client_id")]
        };
        for length in [65_535, 65_536] {
            for (settings, password, name) in texts(length) {
                let (mut old, mut new) = (BytesMut::new(), BytesMut::new());
                let password = password.as_ref();
                let encoded = [
                    connect(&settings, StatusWill::None, password, &mut old),
                    v5::connect(&settings, (StatusWill::None, password), 1000, &mut new),
                ];
                for (encoded, bytes) in encoded.into_iter().zip([old, new]) {
                    match encoded {
                        Ok(()) => assert!(length == 65_535 && bytes.len() > length, "{name}"),
                        Err(why) => {
                            assert_eq!(why, format!("the {name} has 65536 bytes; valid in MQTT: at most 65535"));
                            assert!(length == 65_536 && bytes.is_empty());
                        }
                    }
                }
            }
        }
    }
}
