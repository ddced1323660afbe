//! Packets of MQTT 5, encoded by rumqttc.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Connect, ConnectProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, Filter, LastWill, Login,
    Packet, Publish, PublishProperties, RetainForwardRule, Subscribe, SubscribeProperties, SubscribeReasonCode,
    Unsubscribe,
};
use rumqttc::v5::mqttbytes::{Error, QoS};

use super::{Incoming, v4};
use crate::message::{Qos, TopicFilter, check_topic, via};
use crate::secret::Secret;
use crate::upstream::properties::gateway_in;
use crate::upstream::settings::UpstreamSettings;
use crate::upstream::wire::{
    Broken, ClientEvent, EndReason, InMessage, Link, RetainedWanted, StatusWill, Version, said, words,
};

/// The number of messages that the upstream may send before the first is acknowledged.
const RECEIVE_MAXIMUM: u16 = 100;

pub(super) fn connect(
    settings: &UpstreamSettings,
    (will, password): (StatusWill, Option<&Secret>),
    max_incoming: usize,
    out: &mut BytesMut,
) -> Result<(), String> {
    v4::check_lengths(settings, password)?;
    let expiry = if settings.clean_session { 0 } else { settings.session_expiry.as_secs() };
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(u32::try_from(expiry).unwrap_or(u32::MAX));
    properties.receive_maximum = Some(RECEIVE_MAXIMUM);
    properties.max_packet_size = Some(u32::try_from(max_incoming).unwrap_or(u32::MAX));
    properties.user_properties = vec![(via::NAME.into(), settings.introduction())];
    let connect = Connect {
        keep_alive: u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX),
        client_id: settings.client_id.clone(),
        clean_start: settings.clean_session,
        properties: Some(properties),
    };
    let topic = settings.status_topic.as_ref().filter(|_| will != StatusWill::None);
    let qos = if will == StatusWill::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let will = topic.map(|topic| LastWill::new(topic.as_str(), "offline", qos, will == StatusWill::Whole, None));
    let password = password.map_or("", Secret::expose);
    let login = settings.username.as_ref().map(|user| Login::new(user, password));
    connect.write(&will, &login, out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn subscribe(
    (filters, wanted): (&[(TopicFilter, Qos)], RetainedWanted),
    pkid: u16,
    out: &mut BytesMut,
) -> Result<(), String> {
    let id = match wanted {
        RetainedWanted::All(id) => Some(id as usize),
        RetainedWanted::IfNew | RetainedWanted::None => None,
    };
    let filter = |(filter, qos): &(TopicFilter, Qos)| Filter {
        path: filter.to_string(),
        qos: granted(*qos),
        // the upstream may have our own message for its last one
        nolocal: id.is_none(),
        preserve_retain: true,
        retain_forward_rule: match wanted {
            // a resumed session has received them already
            RetainedWanted::IfNew => RetainForwardRule::OnNewSubscribe,
            RetainedWanted::None => RetainForwardRule::Never,
            RetainedWanted::All(_) => RetainForwardRule::OnEverySubscribe,
        },
    };
    let properties = id.map(|id| SubscribeProperties { id: Some(id), user_properties: Vec::new() });
    let packet = Subscribe { pkid, filters: filters.iter().map(filter).collect(), properties };
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
    let packet = Unsubscribe { pkid, filters: filters.to_vec(), properties: None };
    packet.write(out).map(drop).map_err(|error| error.to_string())
}

pub(super) fn decode(bytes: &mut BytesMut) -> Result<Incoming, Broken> {
    match bytes[..] {
        // a broker that does not know version 5 answers with a CONNACK of 3.1.1, and so do some that refuse
        [0x20, 2, _, code] if code > 5 && code < 0x80 => return Err(v4::refused(code)),
        [0x20, 2, _, code] if code != 0 => return Err(Broken::Version),
        [0xb0, ..] => return unsubscribed(bytes).ok_or(Broken::Garbled),
        // the two short forms of DISCONNECT [MQTT-3.14.2], which rumqttc does not know
        [0xe0, 0] => return Err(Broken::Closed),
        [0xe0, 1, reason] => {
            bytes.clear();
            bytes.extend_from_slice(&[0xe0, 2, reason, 0]);
        }
        _ => {}
    }
    if let Some(event) = answer(bytes) {
        return Ok(Incoming::Event(event));
    }
    let packet = Packet::read(bytes, None).map_err(|_: Error| Broken::Garbled)?;
    Ok(match packet {
        Packet::ConnAck(connack) if connack.code == ConnectReturnCode::Success => {
            let properties = connack.properties.as_ref();
            let link = Link {
                version: Version::V5,
                session_present: connack.session_present,
                receive_maximum: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
                max_packet_size: properties.and_then(|p| p.max_packet_size),
                max_qos: properties.and_then(|p| p.max_qos).and_then(Qos::from_u8).unwrap_or(Qos::ExactlyOnce),
                retain_available: properties.and_then(|p| p.retain_available) != Some(0),
                has_subscription_ids: properties.and_then(|p| p.subscription_identifiers_available) != Some(0),
                topic_aliases: properties.and_then(|p| p.topic_alias_max).unwrap_or(0),
                gateway: properties.and_then(|p| gateway_in(&p.user_properties)),
            };
            Incoming::Accepted(link, properties.and_then(|p| p.server_keep_alive))
        }
        Packet::ConnAck(connack) => return Err(refused(&connack)),
        Packet::PubAck(ack) => Incoming::Event(ClientEvent::Acked(ack.pkid, 0)),
        Packet::SubAck(ack) => Incoming::Subscribed(ack.pkid, ack.return_codes.iter().map(subscribe_reason).collect()),
        Packet::Publish(publish) => Incoming::Event(ClientEvent::Received(received(publish)?)),
        Packet::PubRec(rec) => Incoming::Event(ClientEvent::Recorded(rec.pkid)),
        Packet::PubRel(release) => Incoming::Event(ClientEvent::Released(release.pkid)),
        Packet::PubComp(complete) => Incoming::Event(ClientEvent::Completed(complete.pkid)),
        Packet::Disconnect(disconnect) => return Err(dismissed(&disconnect)),
        _ => Incoming::Other,
    })
}

/// The bytes behind a length [MQTT-1.5.5], and the length.
fn after_length(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let last = bytes.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let digits = bytes[..=last].iter().enumerate();
    let length = digits.fold(0, |length, (at, byte)| length | usize::from(byte & 0x7f) << (7 * at));
    Some((&bytes[last + 1..], length))
}

/// Decodes an UNSUBACK, also one without reason codes [MQTT-3.11].
fn unsubscribed(packet: &[u8]) -> Option<Incoming> {
    let (body, _) = after_length(packet.get(1..)?)?;
    let [high, low, rest @ ..] = body else { return None };
    let reasons = after_length(rest).and_then(|(rest, properties)| rest.get(properties..)).unwrap_or_default();
    Some(Incoming::Unsubscribed(u16::from_be_bytes([*high, *low]), reasons.to_vec()))
}

/// Decodes a PUBACK, PUBREC, PUBREL or PUBCOMP, also with a reason that rumqttc does not know; `None` for any other packet.
fn answer(bytes: &[u8]) -> Option<ClientEvent> {
    let length = bytes.iter().skip(1).position(|byte| byte & 0x80 == 0)? + 1;
    let [high, low, reason, ..] = *bytes.get(1 + length..)? else { return None };
    let packet_id = u16::from_be_bytes([high, low]);
    match bytes.first()? {
        0x40 => Some(ClientEvent::Acked(packet_id, reason)),
        // a refusal ends the exchange, and so does any PUBCOMP: if the packet id is unknown there, it is free as well
        0x50 if reason >= 0x80 => Some(ClientEvent::Acked(packet_id, reason)),
        0x50 => Some(ClientEvent::Recorded(packet_id)),
        0x62 => Some(ClientEvent::Released(packet_id)),
        0x70 => Some(ClientEvent::Completed(packet_id)),
        _ => None,
    }
}

/// Removes properties with values that the standard forbids and rumqttc lets pass [MQTT-1.5.4-2, MQTT-3.3.2-14, MQTT-5
/// 3.3.2.3.2]. Local clients that check them would end their own connections.
fn leave_out_invalid(properties: &mut PublishProperties) {
    properties.payload_format_indicator.take_if(|format| *format > 1);
    properties.response_topic.take_if(|topic| check_topic(topic).is_err());
    properties.content_type.take_if(|content| content.contains('\0'));
    properties.user_properties.retain(|(name, value)| !name.contains('\0') && !value.contains('\0'));
}

fn received(publish: Publish) -> Result<InMessage, Broken> {
    let mut properties = publish.properties.unwrap_or_default();
    // no alias was agreed on [MQTT-3.3.2-9], so its topic is unknown and the message would be lost
    if properties.topic_alias.is_some() {
        return Err(Broken::Failed("it sent a topic alias, and none was agreed on".into()));
    }
    leave_out_invalid(&mut properties);
    let expiry = properties.message_expiry_interval.take();
    let topic = String::from_utf8(publish.topic.into()).map_err(|_| Broken::Garbled)?;
    v4::check(&topic, publish.pkid, publish.qos == QoS::AtMostOnce)?;
    Ok(InMessage {
        packet_id: publish.pkid,
        topic,
        payload: publish.payload,
        qos: Qos::from_u8(publish.qos as u8).ok_or(Broken::Garbled)?,
        retain: publish.retain,
        is_repeated: publish.dup,
        expiry,
        properties: encode(&properties),
    })
}

fn refused(connack: &ConnAck) -> Broken {
    use ConnectReturnCode as Code;
    let (code, properties) = (connack.code, connack.properties.as_ref());
    let why = with_reason(words(&code), properties.and_then(|properties| properties.reason_string.as_deref()));
    let reason = match code {
        Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion => return Broken::Version,
        Code::UseAnotherServer | Code::ServerMoved => {
            let server = properties.and_then(|properties| properties.server_reference.as_deref());
            let why = elsewhere(&why, server);
            return if code == Code::ServerMoved { Broken::Lasting(why) } else { Broken::Failed(why) };
        }
        // this ends without a person
        Code::ServiceUnavailable | Code::ServerUnavailable | Code::ServerBusy => return Broken::Failed(why),
        Code::QuotaExceeded | Code::ConnectionRateExceeded | Code::Banned => return Broken::SentAway(why),
        Code::NotAuthorized => 0x87,
        Code::TopicNameInvalid => 0x90,
        Code::RetainNotSupported => RETAIN_NOT_SUPPORTED,
        Code::QoSNotSupported => 0x9b,
        _ => 0x80,
    };
    Broken::Refused(reason, why)
}

fn with_reason(words: String, reason: Option<&str>) -> String {
    reason.map_or_else(|| words.clone(), |reason| format!("{words} ({})", said(reason)))
}

/// An upstream that refers to another server. The gateway does not follow, because otherwise the host that answers could
/// decide who gets the messages and the password, and two servers could refer to each other for ever.
fn elsewhere(why: &str, server: Option<&str>) -> String {
    let server = server.map_or("no server".into(), said);
    format!("{why}: it names {server}, which is gone to only if it stands in `addresses`")
}

/// The reason code with which an upstream ends the connection because of a retain flag [MQTT-5 3.14.2.1].
const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
/// The same because of QoS 2.
const QOS_NOT_SUPPORTED: u8 = 0x9b;

fn dismissed(disconnect: &Disconnect) -> Broken {
    let code = disconnect.reason_code;
    let properties = disconnect.properties.as_ref();
    let why = with_reason(words(&code), properties.and_then(|properties| properties.reason_string.as_deref()));
    match code {
        DisconnectReasonCode::SessionTakenOver => Broken::TakenOver,
        DisconnectReasonCode::UseAnotherServer | DisconnectReasonCode::ServerMoved => {
            let server = properties.and_then(|properties| properties.server_reference.as_deref());
            Broken::Ended(EndReason::Elsewhere, elsewhere(&why, server))
        }
        DisconnectReasonCode::ServerBusy | DisconnectReasonCode::ServerShuttingDown => {
            Broken::Ended(EndReason::Elsewhere, why)
        }
        DisconnectReasonCode::QuotaExceeded => Broken::Ended(EndReason::TooMuch, why),
        DisconnectReasonCode::MessageRateTooHigh => Broken::Ended(EndReason::PaceExceeded, why),
        DisconnectReasonCode::ReceiveMaximumExceeded => Broken::Ended(EndReason::WindowExceeded, why),
        DisconnectReasonCode::AdministrativeAction => Broken::Ended(EndReason::Administrative, why),
        DisconnectReasonCode::RetainNotSupported => Broken::Dismissed(RETAIN_NOT_SUPPORTED, why),
        DisconnectReasonCode::QoSNotSupported => Broken::Dismissed(QOS_NOT_SUPPORTED, why),
        code if concerns_message(code) => Broken::Dismissed(0x80, why),
        _ => Broken::Failed(why),
    }
}

/// Whether an upstream may have ended the connection because of a message.
fn concerns_message(reason: DisconnectReasonCode) -> bool {
    use DisconnectReasonCode as Code;
    !matches!(
        reason,
        Code::ServerBusy
            | Code::ServerShuttingDown
            | Code::MessageRateTooHigh
            | Code::QuotaExceeded
            | Code::ReceiveMaximumExceeded
            | Code::KeepAliveTimeout
            | Code::SessionTakenOver
            | Code::AdministrativeAction
            | Code::UseAnotherServer
            | Code::ServerMoved
            | Code::ConnectionRateExceeded
            | Code::MaximumConnectTime
    )
}

fn subscribe_reason(code: &SubscribeReasonCode) -> u8 {
    match code {
        SubscribeReasonCode::Success(qos) => *qos as u8,
        SubscribeReasonCode::NotAuthorized => 0x87,
        SubscribeReasonCode::TopicFilterInvalid => 0x8f,
        _ => 0x80,
    }
}

/// Encodes the properties as in a packet, without their length.
fn encode(properties: &PublishProperties) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    if properties.write(&mut bytes).is_err() {
        return Vec::new();
    }
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).map_or(bytes.len(), |last| last + 1);
    bytes[length..].to_vec()
}
