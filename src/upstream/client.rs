//! The MQTT client that speaks with an upstream; the only file that names rumqttc.
//!
//! rumqttc's event loop would reconnect and resend by itself, from what it remembers. Here the journal is the truth: each
//! connection gets a fresh event loop, and is over when the loop fails for the first time. Its quirks stay in this
//! file:
//!
//! - A poll that is dropped half-way may lose the packet it was about to write. So a task of its own polls the loop, and
//!   is only ever dropped together with the connection.
//! - Packet ids are told when a message is sent, in the order in which messages were handed over.
//! - When the loop fails, acknowledgements it had read wait in its list of events: they are handed on before the failure.
//! - On version 5 a write to an upstream that reads nothing waits for ever, and pings with it: a poll that takes
//!   longer than pings are apart means that the upstream is gone.
//! - While its window is full it takes no request at all, acknowledgements of incoming messages included: its window
//!   is one larger than ours where the upstream allows it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::{Outgoing, TlsConfiguration, Transport, mqttbytes as p4, v5};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::properties::{gateway_in, varint};
use super::settings::{Scheme, UpstreamAddress, UpstreamSettings};
use super::tls;
use super::wire::{Broken, Busy, ClientEvent, InMessage, Link, OutMessage, UpstreamClient, Version, words};
use crate::message::{Qos, TopicFilter, via};

/// Time for TCP, TLS and CONNACK together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Incoming messages that the upstream may send before the first is acknowledged (version 5).
const RECEIVE_MAXIMUM: u16 = 100;
/// Requests besides messages: subscriptions and acknowledgements.
const SPARE_REQUESTS: usize = 512;
/// Batches of events on their way from the loop.
const EVENTS: usize = 16;
/// On 3.1.1 nothing can tell an upstream our limit, and a larger packet would end every connection anew.
const MAX_INCOMING_V4: usize = 16 << 20;

type Events = mpsc::Sender<Result<Vec<ClientEvent>, Broken>>;

enum Requests {
    V4(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

struct Connection {
    requests: Requests,
    events: mpsc::Receiver<Result<Vec<ClientEvent>, Broken>>,
    _polling: AbortOnDropHandle<()>,
}

/// The real one.
pub struct Client {
    max_packet_size: usize,
    connection: Option<Connection>,
}

impl Client {
    /// A client that is not connected and takes messages up to this size.
    pub fn new(max_packet_size: usize) -> Client {
        Client { max_packet_size, connection: None }
    }

    /// Does one or the other; they say whether there was room.
    fn request(
        &mut self,
        v4: impl FnOnce(&rumqttc::AsyncClient) -> bool,
        v5: impl FnOnce(&v5::AsyncClient) -> bool,
    ) -> Result<(), Busy> {
        let taken = match self.connection.as_ref().map(|connection| &connection.requests) {
            Some(Requests::V4(requests)) => v4(requests),
            Some(Requests::V5(requests)) => v5(requests),
            // the end of the connection has been told, or is about to be
            None => true,
        };
        if taken { Ok(()) } else { Err(Busy) }
    }

    async fn connect_v5(&mut self, options: v5::MqttOptions, requests: usize) -> Result<Link, Broken> {
        let keep_alive = options.keep_alive();
        let (client, mut event_loop) = v5::AsyncClient::new(options, requests);
        let first = timeout(CONNECT_TIMEOUT, event_loop.poll()).await.map_err(|_| Broken::Silent)?;
        let v5::Event::Incoming(p5::Packet::ConnAck(connack)) = first.map_err(|error| broken_v5(&error))? else {
            return Err(Broken::Failed("no CONNACK".into()));
        };
        if event_loop.options.keep_alive().is_zero() {
            // an upstream that wants no pings gets them all the same: they find a dead connection
            event_loop.options.set_keep_alive(keep_alive);
        }
        let patience = event_loop.options.keep_alive() + CONNECT_TIMEOUT;
        let (sender, events) = mpsc::channel(EVENTS);
        let polling = AbortOnDropHandle::new(tokio::spawn(poll_v5(event_loop, sender, patience)));
        self.connection = Some(Connection { requests: Requests::V5(client), events, _polling: polling });
        let properties = connack.properties;
        let properties = properties.as_ref();
        Ok(Link {
            version: Version::V5,
            session_present: connack.session_present,
            receive_maximum: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
            max_packet_size: properties.and_then(|p| p.max_packet_size),
            max_qos: properties.and_then(|p| p.max_qos).and_then(Qos::from_u8).unwrap_or(Qos::ExactlyOnce),
            retain_available: properties.and_then(|p| p.retain_available) != Some(0),
            gateway: properties.and_then(|p| gateway_in(&p.user_properties)),
        })
    }

    async fn connect_v4(&mut self, options: rumqttc::MqttOptions, requests: usize) -> Result<Link, Broken> {
        let patience = options.keep_alive() + CONNECT_TIMEOUT;
        let (client, mut event_loop) = rumqttc::AsyncClient::new(options, requests);
        event_loop.network_options.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
        let first = timeout(CONNECT_TIMEOUT, event_loop.poll()).await.map_err(|_| Broken::Silent)?;
        let rumqttc::Event::Incoming(rumqttc::Packet::ConnAck(connack)) = first.map_err(|error| broken_v4(&error))?
        else {
            return Err(Broken::Failed("no CONNACK".into()));
        };
        let (sender, events) = mpsc::channel(EVENTS);
        let polling = AbortOnDropHandle::new(tokio::spawn(poll_v4(event_loop, sender, patience)));
        self.connection = Some(Connection { requests: Requests::V4(client), events, _polling: polling });
        Ok(Link {
            version: Version::V4,
            session_present: connack.session_present,
            receive_maximum: u16::MAX,
            max_packet_size: None,
            max_qos: Qos::ExactlyOnce,
            retain_available: true,
            gateway: None,
        })
    }
}

impl UpstreamClient for Client {
    async fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        version: Version,
    ) -> Result<Link, Broken> {
        self.connection = None;
        let transport = match address.scheme {
            Scheme::Mqtt => Transport::Tcp,
            Scheme::Mqtts => {
                let files = settings.tls.clone().unwrap_or_default();
                let config = tokio::task::spawn_blocking(move || tls::client_config(&files)).await;
                let config = config.map_err(|error| Broken::Failed(error.to_string()))?.map_err(Broken::Failed)?;
                Transport::tls_with_config(TlsConfiguration::Rustls(config))
            }
        };
        let requests = usize::from(settings.max_inflight) + SPARE_REQUESTS;
        match version {
            Version::V5 => {
                let options = options_v5(settings, address, transport, self.max_packet_size);
                self.connect_v5(options, requests).await
            }
            Version::V4 => self.connect_v4(options_v4(settings, address, transport), requests).await,
        }
    }

    fn publish(&mut self, message: OutMessage) -> Result<(), Busy> {
        let OutMessage { topic, payload, qos, retain, properties } = message;
        let taken = match self.connection.as_ref().map(|connection| &connection.requests) {
            Some(Requests::V4(client)) => client.try_publish(topic, qos_v4(qos), retain, payload).is_ok(),
            Some(Requests::V5(client)) => {
                let properties = properties_v5(&properties);
                client.try_publish_with_properties(topic, qos_v5(qos), retain, payload, properties).is_ok()
            }
            None => true,
        };
        if taken { Ok(()) } else { Err(Busy) }
    }

    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)]) -> Result<(), Busy> {
        let v4 = filters.iter().map(|(filter, qos)| p4::v4::SubscribeFilter::new(filter.to_string(), qos_v4(*qos)));
        let v5 = filters.iter().map(|(filter, qos)| p5::Filter {
            path: filter.to_string(),
            qos: qos_v5(*qos),
            nolocal: true,
            preserve_retain: true,
            // a resumed session has had them
            retain_forward_rule: p5::RetainForwardRule::OnNewSubscribe,
        });
        self.request(|client| client.try_subscribe_many(v4).is_ok(), |client| client.try_subscribe_many(v5).is_ok())
    }

    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy> {
        for filter in filters {
            let filter = filter.as_str();
            self.request(
                |client| client.try_unsubscribe(filter).is_ok(),
                |client| client.try_unsubscribe(filter).is_ok(),
            )?;
        }
        Ok(())
    }

    fn ack(&mut self, packet_id: u16) -> Result<(), Busy> {
        let mut v4 = rumqttc::Publish::new("", p4::QoS::AtLeastOnce, Vec::new());
        v4.pkid = packet_id;
        let v5 = p5::Publish { qos: v5::mqttbytes::QoS::AtLeastOnce, pkid: packet_id, ..Default::default() };
        self.request(|client| client.try_ack(&v4).is_ok(), |client| client.try_ack(&v5).is_ok())
    }

    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        let Some(connection) = &mut self.connection else { return Err(Broken::Closed) };
        let events = connection.events.recv().await;
        events.unwrap_or_else(|| Err(Broken::Failed("the client ended".into())))
    }

    fn disconnect(&mut self) -> Result<(), Busy> {
        self.request(|client| client.try_disconnect().is_ok(), |client| client.try_disconnect().is_ok())
    }

    fn close(&mut self) {
        self.connection = None;
    }
}

fn options_v5(
    settings: &UpstreamSettings,
    address: &UpstreamAddress,
    transport: Transport,
    max_packet_size: usize,
) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(settings.client_id.as_str(), address.host.as_str(), address.port);
    options.set_transport(transport);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_start(settings.clean_session);
    options.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    options.set_manual_acks(true);
    options.set_outgoing_inflight_upper_limit(settings.max_inflight.saturating_add(1));
    let expiry = if settings.clean_session { 0 } else { settings.session_expiry.as_secs() };
    options.set_session_expiry_interval(Some(u32::try_from(expiry).unwrap_or(u32::MAX)));
    options.set_receive_maximum(Some(RECEIVE_MAXIMUM));
    options.set_max_packet_size(Some(u32::try_from(max_packet_size).unwrap_or(u32::MAX)));
    options.set_user_properties(vec![(via::NAME.into(), settings.introduction())]);
    if let Some(user) = &settings.username {
        options.set_credentials(user, settings.password.as_ref().map_or("", |password| password.expose()));
    }
    if let Some(topic) = &settings.status_topic {
        let qos = v5::mqttbytes::QoS::AtLeastOnce;
        options.set_last_will(p5::LastWill::new(topic.as_str(), "offline", qos, true, None));
    }
    options
}

fn options_v4(settings: &UpstreamSettings, address: &UpstreamAddress, transport: Transport) -> rumqttc::MqttOptions {
    let mut options = rumqttc::MqttOptions::new(settings.client_id.as_str(), address.host.as_str(), address.port);
    options.set_transport(transport);
    options.set_keep_alive(settings.keep_alive);
    options.set_clean_session(settings.clean_session);
    options.set_manual_acks(true);
    options.set_inflight(settings.max_inflight.saturating_add(1));
    options.set_max_packet_size(MAX_INCOMING_V4, usize::MAX);
    if let Some(user) = &settings.username {
        options.set_credentials(user, settings.password.as_ref().map_or("", |password| password.expose()));
    }
    if let Some(topic) = &settings.status_topic {
        options.set_last_will(rumqttc::LastWill::new(topic.as_str(), "offline", p4::QoS::AtLeastOnce, true));
    }
    options
}

/// Polls until the loop fails or nobody listens any more.
async fn poll_v5(mut event_loop: v5::EventLoop, sender: Events, patience: Duration) {
    loop {
        let polled = timeout(patience, event_loop.poll()).await;
        let mut events = Vec::new();
        let broken = match polled {
            Ok(Ok(event)) => {
                events.extend(event_v5(event));
                None
            }
            Ok(Err(error)) => Some(broken_v5(&error)),
            Err(_) => Some(Broken::Silent),
        };
        events.extend(event_loop.state.events.drain(..).filter_map(event_v5));
        if !hand_on(&sender, events, broken).await {
            return;
        }
    }
}

/// Polls until the loop fails or nobody listens any more.
async fn poll_v4(mut event_loop: rumqttc::EventLoop, sender: Events, patience: Duration) {
    loop {
        let polled = timeout(patience, event_loop.poll()).await;
        let mut events = Vec::new();
        let broken = match polled {
            Ok(Ok(event)) => {
                events.extend(event_v4(event));
                None
            }
            Ok(Err(error)) => Some(broken_v4(&error)),
            Err(_) => Some(Broken::Silent),
        };
        events.extend(event_loop.state.events.drain(..).filter_map(event_v4));
        if !hand_on(&sender, events, broken).await {
            return;
        }
    }
}

/// Whether to go on.
async fn hand_on(sender: &Events, mut events: Vec<ClientEvent>, broken: Option<Broken>) -> bool {
    if broken.is_some() {
        // the loop says so before it writes, and this write is the one that failed
        events.retain(|event| *event != ClientEvent::Sent(0));
    }
    if !events.is_empty() && sender.send(Ok(events)).await.is_err() {
        return false;
    }
    match broken {
        None => !sender.is_closed(),
        Some(broken) => {
            // nobody listens only when the connection has been given up already
            let _ = sender.send(Err(broken)).await;
            false
        }
    }
}

fn event_v5(event: v5::Event) -> Option<ClientEvent> {
    match event {
        v5::Event::Outgoing(Outgoing::Publish(packet_id)) => Some(ClientEvent::Sent(packet_id)),
        v5::Event::Incoming(p5::Packet::PubAck(ack)) => Some(ClientEvent::Acked(ack.pkid, reason_v5(ack.reason))),
        v5::Event::Incoming(p5::Packet::SubAck(ack)) => {
            let reason = |code: &p5::SubscribeReasonCode| match code {
                p5::SubscribeReasonCode::Success(qos) => *qos as u8,
                p5::SubscribeReasonCode::NotAuthorized => 0x87,
                p5::SubscribeReasonCode::TopicFilterInvalid => 0x8f,
                _ => 0x80,
            };
            Some(ClientEvent::Subscribed(ack.return_codes.iter().map(reason).collect()))
        }
        v5::Event::Incoming(p5::Packet::Publish(publish)) => {
            let mut properties = publish.properties.unwrap_or_default();
            let expiry = properties.message_expiry_interval.take();
            Some(ClientEvent::Received(InMessage {
                packet_id: publish.pkid,
                topic: String::from_utf8(publish.topic.into()).ok()?,
                payload: publish.payload,
                qos: Qos::from_u8(publish.qos as u8)?,
                retain: publish.retain,
                expiry,
                properties: encode(&properties),
            }))
        }
        _ => None,
    }
}

fn event_v4(event: rumqttc::Event) -> Option<ClientEvent> {
    use rumqttc::{Event, Packet, SubscribeReasonCode};
    match event {
        Event::Outgoing(Outgoing::Publish(packet_id)) => Some(ClientEvent::Sent(packet_id)),
        Event::Incoming(Packet::PubAck(ack)) => Some(ClientEvent::Acked(ack.pkid, 0)),
        Event::Incoming(Packet::SubAck(ack)) => {
            let reason = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            };
            Some(ClientEvent::Subscribed(ack.return_codes.iter().map(reason).collect()))
        }
        Event::Incoming(Packet::Publish(publish)) => Some(ClientEvent::Received(InMessage {
            packet_id: publish.pkid,
            topic: publish.topic,
            payload: publish.payload,
            qos: Qos::from_u8(publish.qos as u8)?,
            retain: publish.retain,
            expiry: None,
            properties: Vec::new(),
        })),
        _ => None,
    }
}

fn broken_v5(error: &v5::ConnectionError) -> Broken {
    use v5::mqttbytes::v5::ConnectReturnCode as Code;
    use v5::{ConnectionError, StateError, mqttbytes};
    match error {
        ConnectionError::ConnectionRefused(Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion) => {
            Broken::Version
        }
        // it will be better without a person
        ConnectionError::ConnectionRefused(
            code @ (Code::ServiceUnavailable
            | Code::ServerUnavailable
            | Code::ServerBusy
            | Code::QuotaExceeded
            | Code::ConnectionRateExceeded),
        ) => Broken::Failed(words(code)),
        ConnectionError::ConnectionRefused(code) => Broken::Refused(words(code)),
        ConnectionError::Tls(error) => tls::broken(error),
        ConnectionError::Timeout(_) | ConnectionError::MqttState(StateError::AwaitPingResp) => Broken::Silent,
        ConnectionError::Io(error) => tls::broken_io(error),
        ConnectionError::MqttState(StateError::ConnectionAborted) => Broken::Closed,
        ConnectionError::MqttState(StateError::Io(error)) => tls::broken_io(error),
        ConnectionError::MqttState(StateError::Deserialization(mqttbytes::Error::Io(error))) => tls::broken_io(error),
        ConnectionError::MqttState(StateError::Deserialization(_)) | ConnectionError::NotConnAck(_) => Broken::Garbled,
        ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            let mut why = words(reason_code);
            if let Some(text) = reason_string {
                why = format!("{why} ({text})");
            }
            if concerns_message(*reason_code) { Broken::Dismissed(why) } else { Broken::Failed(why) }
        }
        error => Broken::Failed(error.to_string()),
    }
}

fn broken_v4(error: &rumqttc::ConnectionError) -> Broken {
    use rumqttc::{ConnectReturnCode, ConnectionError, StateError};
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => Broken::Version,
        ConnectionError::ConnectionRefused(code) => Broken::Refused(words(code)),
        ConnectionError::NetworkTimeout
        | ConnectionError::FlushTimeout
        | ConnectionError::MqttState(StateError::AwaitPingResp) => Broken::Silent,
        ConnectionError::Io(error) | ConnectionError::MqttState(StateError::Io(error)) => tls::broken_io(error),
        ConnectionError::MqttState(StateError::ConnectionAborted) => Broken::Closed,
        ConnectionError::MqttState(StateError::Deserialization(p4::Error::Io(error))) => tls::broken_io(error),
        ConnectionError::MqttState(StateError::Deserialization(_)) | ConnectionError::NotConnAck(_) => Broken::Garbled,
        ConnectionError::Tls(error) => tls::broken(error),
        error => Broken::Failed(error.to_string()),
    }
}

/// Whether an upstream may have ended the connection because of a message.
fn concerns_message(reason: p5::DisconnectReasonCode) -> bool {
    use p5::DisconnectReasonCode as Code;
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

fn reason_v5(reason: p5::PubAckReason) -> u8 {
    use p5::PubAckReason as Reason;
    match reason {
        Reason::Success => 0,
        Reason::NoMatchingSubscribers => 0x10,
        Reason::UnspecifiedError => 0x80,
        Reason::ImplementationSpecificError => 0x83,
        Reason::NotAuthorized => 0x87,
        Reason::TopicNameInvalid => 0x90,
        Reason::PacketIdentifierInUse => 0x91,
        Reason::QuotaExceeded => 0x97,
        Reason::PayloadFormatInvalid => 0x99,
    }
}

fn qos_v4(qos: Qos) -> p4::QoS {
    if qos == Qos::AtMostOnce { p4::QoS::AtMostOnce } else { p4::QoS::AtLeastOnce }
}

fn qos_v5(qos: Qos) -> v5::mqttbytes::QoS {
    if qos == Qos::AtMostOnce { v5::mqttbytes::QoS::AtMostOnce } else { v5::mqttbytes::QoS::AtLeastOnce }
}

/// Properties as rumqttc has them; those that were checked when the message came in are always readable.
fn properties_v5(encoded: &[u8]) -> p5::PublishProperties {
    let mut bytes = Bytes::from([varint(encoded.len()).as_slice(), encoded].concat());
    p5::PublishProperties::read(&mut bytes).ok().flatten().unwrap_or_default()
}

/// The other way round, without the length in front.
fn encode(properties: &p5::PublishProperties) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    if properties.write(&mut bytes).is_err() {
        return Vec::new();
    }
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).map_or(bytes.len(), |last| last + 1);
    bytes[length..].to_vec()
}
