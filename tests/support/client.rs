//! An MQTT client that sends what a test wants, valid or not. It is blocking and handles one packet at a time.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use super::ReadSome;
use super::packet::{
    Packet, Properties, Publish, Reader, V5, V31, V311, Value, binary, packet, publish, subscribe, variable,
};
use super::{PATIENCE, wait_until};

/// The settings with which a client connects.
#[derive(Clone, Debug)]
pub struct Connect {
    version: u8,
    id: String,
    clean: bool,
    keep_alive: u16,
    will: Option<Will>,
    login: Option<(String, Option<Vec<u8>>)>,
    properties: Properties,
    host: IpAddr,
}

#[derive(Clone, Debug)]
struct Will {
    topic: String,
    payload: Vec<u8>,
    qos: u8,
    retain: bool,
    properties: Properties,
}

impl Connect {
    /// MQTT 3.1.1, clean, without keep alive.
    pub fn new(id: &str) -> Connect {
        Connect {
            version: V311,
            id: id.into(),
            clean: true,
            keep_alive: 0,
            will: None,
            login: None,
            properties: Properties::new(),
            host: Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// MQTT 5.
    pub fn v5(id: &str) -> Connect {
        Connect { version: V5, ..Connect::new(id) }
    }

    /// MQTT 3.1.
    pub fn v31(id: &str) -> Connect {
        Connect { version: V31, ..Connect::new(id) }
    }

    /// Sets the version.
    pub fn version(version: u8, id: &str) -> Connect {
        Connect { version, ..Connect::new(id) }
    }

    /// Makes a client with this client id.
    pub fn named(self, id: &str) -> Connect {
        Connect { id: id.into(), ..self }
    }

    /// Resumes an old session and keeps it after the connection. With MQTT 5 the properties say for how long.
    pub fn persistent(self) -> Connect {
        let properties = if self.version == V5 { self.properties.four(0x11, 3600) } else { self.properties };
        Connect { clean: false, properties, ..self }
    }

    /// Clean session or clean start.
    pub fn clean(self, clean: bool) -> Connect {
        Connect { clean, ..self }
    }

    /// Keep alive in seconds.
    pub fn keep_alive(self, keep_alive: u16) -> Connect {
        Connect { keep_alive, ..self }
    }

    /// CONNECT properties.
    pub fn properties(self, properties: Properties) -> Connect {
        Connect { properties, ..self }
    }

    /// A will.
    pub fn will(self, topic: &str, payload: &str, qos: u8, retain: bool) -> Connect {
        self.will_with(topic, payload, qos, retain, Properties::new())
    }

    /// A will with properties.
    pub fn will_with(self, topic: &str, payload: &str, qos: u8, retain: bool, properties: Properties) -> Connect {
        let (topic, payload) = (topic.into(), payload.into());
        Connect { will: Some(Will { topic, payload, qos, retain, properties }), ..self }
    }

    /// User name and password.
    pub fn login(self, user: &str, password: &str) -> Connect {
        Connect { login: Some((user.into(), Some(password.into()))), ..self }
    }

    /// Connects to this address instead of 127.0.0.1.
    pub fn host(self, host: IpAddr) -> Connect {
        Connect { host, ..self }
    }

    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let is_v5 = self.version == V5;
        let section = |properties: &Properties| if is_v5 { properties.section() } else { Vec::new() };
        let mut flags = u8::from(self.clean) << 1;
        let mut rest = binary(self.id.as_bytes());
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
            rest.extend(section(&will.properties));
            rest.extend(binary(will.topic.as_bytes()));
            rest.extend(binary(&will.payload));
        }
        if let Some((user, password)) = &self.login {
            flags |= 0x80;
            rest.extend(binary(user.as_bytes()));
            if let Some(password) = password {
                flags |= 0x40;
                rest.extend(binary(password));
            }
        }
        let name: &[u8] = if self.version == V31 { b"MQIsdp" } else { b"MQTT" };
        let head = [&binary(name)[..], &[self.version, flags], &self.keep_alive.to_be_bytes()].concat();
        packet(0x10, &[&head, &section(&self.properties), &rest])
    }

    /// Connects, and accepts any CONNACK.
    #[track_caller]
    pub fn try_open(&self, port: u16) -> (Client, ConnAck) {
        let stream = TcpStream::connect((self.host, port)).expect("the port is open");
        self.try_over(Box::new(stream.try_clone().expect("a second handle")), stream)
    }

    /// Connects over a stream on top of a socket.
    #[track_caller]
    pub fn try_over(&self, stream: Box<dyn Stream>, socket: TcpStream) -> (Client, ConnAck) {
        let mut client = Client::over(stream, socket, self.version);
        client.send(&self.encode());
        let answer = client.read();
        assert_eq!(answer.kind(), 2, "CONNACK, not {answer:?}");
        let mut reader = Reader(&answer.body);
        let (present, reason) = (reader.number(1) == 1, reader.number(1) as u8);
        let properties = if self.version == V5 { reader.properties() } else { Vec::new() };
        (client, ConnAck { present, reason, properties })
    }

    /// Connects over this socket and is accepted, after two minutes at most.
    #[track_caller]
    pub fn open_patiently(&self, socket: TcpStream) -> Client {
        let (client, reason) = self.ask_patiently(socket);
        assert_eq!(reason, 0, "{self:?} is refused");
        client
    }

    /// Connects over this socket and is answered, after two minutes at most. Returns the reason, too.
    #[track_caller]
    pub fn ask_patiently(&self, socket: TcpStream) -> (Client, u8) {
        let stream = Box::new(socket.try_clone().expect("a second handle"));
        let mut client = Client::over(stream, socket, self.version);
        client.patience(Duration::from_secs(120));
        client.send(&self.encode());
        let answer = client.read();
        assert_eq!(answer.kind(), 2, "{answer:?}");
        client.patience(PATIENCE);
        (client, answer.body[1])
    }

    /// Connects and is accepted.
    #[track_caller]
    pub fn open(&self, port: u16) -> Client {
        self.open_with(port).0
    }

    /// Connects, is accepted, and returns the CONNACK too.
    #[track_caller]
    pub fn open_with(&self, port: u16) -> (Client, ConnAck) {
        let (client, connack) = self.try_open(port);
        assert_eq!(connack.reason, 0, "{self:?} is refused");
        (client, connack)
    }

    /// Connects repeatedly until it is accepted.
    #[track_caller]
    pub fn open_eventually(&self, port: u16) -> Client {
        let mut client = None;
        wait_until("the client is accepted", || {
            let socket = TcpStream::connect((self.host, port)).expect("the port is open");
            let mut opened = Client::over(Box::new(socket.try_clone().expect("a second handle")), socket, self.version);
            let answer = opened.try_send(&self.encode()).then(|| opened.try_read()).flatten();
            client = answer.is_some_and(|answer| answer.body[1] == 0).then_some(opened);
            client.is_some()
        });
        client.expect("an accepted client")
    }

    /// Connects and is refused; returns the reason.
    #[track_caller]
    pub fn refused(&self, port: u16) -> u8 {
        let (mut client, connack) = self.try_open(port);
        assert_ne!(connack.reason, 0, "{self:?} is accepted");
        client.closed();
        connack.reason
    }
}

/// The answer to CONNECT.
#[derive(Clone, Debug)]
pub struct ConnAck {
    /// Session present.
    pub present: bool,
    /// Return code or reason.
    pub reason: u8,
    /// Properties.
    pub properties: Vec<(u8, Value)>,
}

/// The stream of a client.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connected client.
pub struct Client {
    stream: Box<dyn Stream>,
    /// The socket under the stream.
    pub socket: TcpStream,
    version: u8,
    input: Vec<u8>,
    /// PUBLISH packets that came while another packet was awaited.
    waiting: VecDeque<Publish>,
    last_id: u16,
    fences: u32,
}

impl Client {
    /// A socket without CONNECT.
    #[track_caller]
    pub fn raw(port: u16, version: u8) -> Client {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
        Client::over(Box::new(socket.try_clone().expect("a second handle")), socket, version)
    }

    fn over(stream: Box<dyn Stream>, socket: TcpStream, version: u8) -> Client {
        socket.set_nodelay(true).expect("an open socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("an open socket");
        socket.set_write_timeout(Some(PATIENCE)).expect("an open socket");
        Client { stream, socket, version, input: Vec::new(), waiting: VecDeque::new(), last_id: 0, fences: 0 }
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the broker takes it");
    }

    /// Sends bytes that may find the connection closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Reads up to this number of bytes that have come, and ignores them.
    pub fn sip(&mut self, bytes: usize) {
        let _ = self.stream.read_some(&mut vec![0; bytes]);
    }

    /// The next packet, `None` at the end of the connection.
    #[track_caller]
    pub fn try_read(&mut self) -> Option<Packet> {
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(found) = Packet::take(&mut self.input) {
                return Some(found);
            }
            match self.stream.read_some(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => {
                    return None;
                }
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
    }

    /// The next packet.
    #[track_caller]
    pub fn read(&mut self) -> Packet {
        self.try_read().expect("the connection is open")
    }

    /// The next packet of this type. PUBLISH packets before it are kept for later.
    #[track_caller]
    pub fn expect(&mut self, kind: u8) -> Packet {
        loop {
            let packet = self.read();
            if packet.kind() == kind {
                return packet;
            }
            assert_eq!(packet.kind(), 3, "packet type {kind} expected, not {packet:?}");
            self.waiting.push_back(Publish::read(&packet, self.version));
        }
    }

    /// Waits until the broker closes the connection. Returns the packets before that, except for PUBLISH.
    #[track_caller]
    pub fn closed(&mut self) -> Vec<Packet> {
        let mut last = Vec::new();
        while let Some(packet) = self.try_read() {
            if packet.kind() != 3 {
                last.push(packet);
            }
        }
        last
    }

    /// Checks that the broker closes the connection with a DISCONNECT with this reason.
    #[track_caller]
    pub fn closed_with(&mut self, reason: u8) {
        let last = self.closed();
        let disconnect = last.last().expect("a DISCONNECT");
        assert_eq!((disconnect.kind(), disconnect.body[0]), (14, reason), "{last:?}");
    }

    fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// Subscribes with the options of MQTT 5, whose lowest two bits are the QoS. Returns the code of the answer.
    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_all(&[(filter, options)], &Properties::new())[0]
    }

    /// Subscribes to several at once.
    #[track_caller]
    pub fn subscribe_all(&mut self, filters: &[(&str, u8)], properties: &Properties) -> Vec<u8> {
        let id = self.next_id();
        self.send(&subscribe(id, filters, (self.version == V5).then_some(properties)));
        let answer = self.expect(9);
        assert_eq!(answer.id(), id);
        answer.body[if self.version == V5 { 3 } else { 2 }..].to_vec()
    }

    /// Unsubscribes; returns the reason code (0 with MQTT 3).
    #[track_caller]
    pub fn unsubscribe(&mut self, filter: &str) -> u8 {
        let id = self.next_id();
        let section: &[u8] = if self.version == V5 { &[0] } else { &[] };
        self.send(&packet(0xa2, &[&id.to_be_bytes(), section, &binary(filter.as_bytes())]));
        let answer = self.expect(11);
        assert_eq!(answer.id(), id);
        answer.body.get(3).copied().unwrap_or(0)
    }

    /// Publishes and takes part in the handshake of its QoS; returns the reason code.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: impl AsRef<[u8]>, qos: u8, retain: bool) -> u8 {
        self.publish_with(topic, payload, qos, retain, &Properties::new())
    }

    /// Publishes with properties.
    #[track_caller]
    pub fn publish_with(
        &mut self,
        topic: &str,
        payload: impl AsRef<[u8]>,
        qos: u8,
        retain: bool,
        properties: &Properties,
    ) -> u8 {
        let id = (qos > 0).then(|| self.next_id());
        let properties = (self.version == V5).then_some(properties);
        self.send(&publish(topic.as_bytes(), payload.as_ref(), qos << 1 | u8::from(retain), id, properties));
        let Some(id) = id else { return 0 };
        let answer = self.expect(if qos == 1 { 4 } else { 5 });
        assert_eq!(answer.id(), id);
        if qos == 2 && answer.reason() < 0x80 {
            self.ack(0x62, id);
            assert_eq!(self.expect(7).id(), id);
        }
        answer.reason()
    }

    /// Sends an acknowledgement with this first byte.
    #[track_caller]
    pub fn ack(&mut self, first: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.send(&[first, 2, high, low]);
    }

    /// A PUBLISH that has come while another packet was awaited.
    pub fn has_come(&mut self) -> Option<Publish> {
        self.waiting.pop_front()
    }

    /// The next PUBLISH, not acknowledged.
    #[track_caller]
    pub fn receive_unacked(&mut self) -> Publish {
        if let Some(message) = self.waiting.pop_front() {
            return message;
        }
        let packet = self.read();
        assert_eq!(packet.kind(), 3, "PUBLISH expected, not {packet:?}");
        Publish::read(&packet, self.version)
    }

    /// The next PUBLISH, acknowledged as its QoS asks for.
    #[track_caller]
    pub fn receive(&mut self) -> Publish {
        let message = self.receive_unacked();
        match message.qos {
            0 => {}
            1 => self.ack(0x40, message.id),
            _ => {
                self.ack(0x50, message.id);
                assert_eq!(self.expect(6).id(), message.id);
                self.ack(0x70, message.id);
            }
        }
        message
    }

    /// All messages that the broker has for this client now, which come before one that the client publishes to itself.
    #[track_caller]
    pub fn drain(&mut self) -> Vec<Publish> {
        self.fences += 1;
        let (topic, mark) = (format!("fence/{:p}", self), self.fences.to_string());
        assert_eq!(self.subscribe(&topic, 1), 1);
        assert_eq!(self.publish(&topic, &mark, 1, false), 0);
        let mut before = Vec::new();
        loop {
            let message = self.receive();
            if message.topic == topic && message.text() == mark {
                self.unsubscribe(&topic);
                return before;
            }
            before.push(message);
        }
    }

    /// Sends PINGREQ and waits for the answer, which means that the broker has read all earlier packets.
    #[track_caller]
    pub fn ping(&mut self) {
        self.send(&[0xc0, 0]);
        self.expect(13);
    }

    /// Checks that nothing comes for this long. It is better to wait for another event if there is one.
    #[track_caller]
    pub fn stays_silent(&mut self, time: Duration) {
        assert!(self.waiting.is_empty() && self.input.is_empty(), "something has come already");
        self.patience(time);
        let read = self.stream.read_some(&mut [0; 64]);
        let is_silent = read.as_ref().is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert!(is_silent, "{read:?}");
        self.patience(PATIENCE);
    }

    /// Sets the longest wait for a packet.
    pub fn patience(&self, time: Duration) {
        self.socket.set_read_timeout(Some(time)).expect("an open socket");
    }

    /// DISCONNECT.
    #[track_caller]
    pub fn disconnect(mut self) {
        self.send(&[0xe0, 0]);
        self.closed();
    }

    /// DISCONNECT of MQTT 5 with this reason and these properties.
    #[track_caller]
    pub fn disconnect_with(mut self, reason: u8, properties: &Properties) {
        self.send(&packet(0xe0, &[&[reason], &properties.section()]));
        self.closed();
    }

    /// Closes the connection without DISCONNECT.
    pub fn vanish(self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Resets the connection.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}
