//! Packets of MQTT 3.1.1, by rumqttc.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{Connect, LastWill, Login, Packet, Publish, Subscribe, SubscribeFilter, Unsubscribe};
use rumqttc::mqttbytes::{Error, QoS};
use rumqttc::{ConnectReturnCode, SubscribeReasonCode};

use super::Incoming;
use crate::message::{Qos, TopicFilter};
use crate::secret::Secret;
use crate::upstream::settings::UpstreamSettings;
use crate::upstream::wire::{Broken, ClientEvent, InMessage, Link, Version, words};

pub(super) fn connect(
    settings: &UpstreamSettings,
    password: Option<&Secret>,
    out: &mut BytesMut,
) -> Result<(), String> {
    let mut connect = Connect::new(&settings.client_id);
    connect.keep_alive = u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX);
    connect.clean_session = settings.clean_session;
    let will = |topic| LastWill::new(topic, "offline", QoS::AtLeastOnce, true);
    connect.last_will = settings.status_topic.as_ref().map(|topic| will(topic.as_str()));
    let password = password.map_or("", Secret::expose);
    connect.login = settings.username.as_ref().map(|user| Login::new(user, password));
    connect.write(out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn subscribe(filters: &[(TopicFilter, Qos)], pkid: u16, out: &mut BytesMut) -> Result<(), String> {
    let filter = |(filter, qos): &(TopicFilter, Qos)| {
        let qos = if *qos == Qos::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        SubscribeFilter::new(filter.to_string(), qos)
    };
    let packet = Subscribe { pkid, filters: filters.iter().map(filter).collect() };
    packet.write(out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn unsubscribe(filters: &[String], pkid: u16, out: &mut BytesMut) -> Result<(), String> {
    let packet = Unsubscribe { pkid, topics: filters.to_vec() };
    packet.write(out).map(drop).map_err(|error| error.to_string())
}

/// Decodes a whole packet.
pub(super) fn decode(bytes: &mut BytesMut) -> Result<Incoming, Broken> {
    let packet = Packet::read(bytes, usize::MAX).map_err(|_: Error| Broken::Garbled)?;
    Ok(match packet {
        Packet::ConnAck(connack) => match connack.code {
            ConnectReturnCode::Success => {
                let link = Link {
                    version: Version::V311,
                    session_present: connack.session_present,
                    receive_maximum: u16::MAX,
                    max_packet_size: None,
                    max_qos: Qos::ExactlyOnce,
                    retain_available: true,
                    gateway: None,
                };
                Incoming::Accepted(link, None)
            }
            ConnectReturnCode::RefusedProtocolVersion => return Err(Broken::Version),
            code => return Err(Broken::Refused(words(&code))),
        },
        Packet::PubAck(ack) => Incoming::Event(ClientEvent::Acked(ack.pkid, 0)),
        Packet::SubAck(ack) => {
            Incoming::Event(ClientEvent::Subscribed(ack.return_codes.iter().map(subscribe_reason).collect()))
        }
        Packet::Publish(publish) => Incoming::Event(ClientEvent::Received(received(publish)?)),
        Packet::PubRel(release) => Incoming::Released(release.pkid),
        _ => Incoming::Other,
    })
}

fn received(publish: Publish) -> Result<InMessage, Broken> {
    Ok(InMessage {
        packet_id: publish.pkid,
        topic: publish.topic,
        payload: publish.payload,
        qos: Qos::from_u8(publish.qos as u8).ok_or(Broken::Garbled)?,
        retain: publish.retain,
        expiry: None,
        properties: Vec::new(),
    })
}

fn subscribe_reason(code: &SubscribeReasonCode) -> u8 {
    match code {
        SubscribeReasonCode::Success(qos) => *qos as u8,
        SubscribeReasonCode::Failure => 0x80,
    }
}
