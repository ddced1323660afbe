//! One connection to an upstream: encodes requests to bytes, and decodes bytes to events.

mod asked;
mod head;
mod line;
mod oversized;

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use futures_util::FutureExt;
use rustix::net::sockopt::set_tcp_quickack;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

pub(super) use self::asked::Ids;
use self::asked::{AskedKind, AskedPackets};
use self::head::{check_kind, packet_length};
use self::line::{KeepAlive, Line};
use self::oversized::Oversized;
use super::pace::ReadPace;
use super::stream::UpstreamStream;
use super::{Incoming, Request, v4, v5};
use crate::message::Qos;
use crate::mqtt::alias::OutboundAliases;
use crate::secret::Secret;
use crate::upstream::settings::UpstreamSettings;
use crate::upstream::tls;
use crate::upstream::wire::{ALIAS_COST, ALIAS_LEN, Ack, Broken, Busy, ClientEvent, Link, StatusWill, Version};

/// Requests are encoded while fewer than these bytes wait to be written, which is enough for a write to be worth its system
/// call.
const WRITE_BYTES: usize = 64 << 10;
/// The longest packet of MQTT: its remaining length has 28 bits [MQTT-2.1.4].
const LONGEST_PACKET: usize = 268_435_455;
/// The number of bytes that are read at once.
const READ_BYTES: usize = 16 << 10;
/// A buffer that a large message has made larger than this is released afterwards.
const KEPT_BYTES: usize = 256 << 10;
/// The highest packet id for messages at QoS 1, and so the largest window. The ids of messages at QoS 2 are chosen by the
/// session and come after these, and the last ids are for SUBSCRIBE and UNSUBSCRIBE.
pub(in crate::upstream) const MESSAGE_IDS: u16 = 0x3fff;

/// An upstream with a smaller maximum packet size accepts no message at all. Its limit is not applied to waiting messages,
/// because all of them would be dropped as too large for a fault that is not theirs.
const LEAST_PACKET: u32 = 128;

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
const PINGREQ: u8 = 0xc0;
const PINGRESP: u8 = 0xd0;
const DISCONNECT: u8 = 0xe0;

pub(super) struct UpstreamConnection {
    reader: ReadHalf<Box<dyn UpstreamStream>>,
    writer: WriteHalf<Box<dyn UpstreamStream>>,
    /// The socket below TLS and WebSocket.
    socket: Option<OwnedFd>,
    /// `None` makes every answer be read when it arrives, which is slower but correct.
    pace: Option<ReadPace>,
    version: Version,
    max_incoming: usize,
    requests: VecDeque<Request>,
    max_requests: usize,
    message_ids: Ids,
    asked: AskedPackets,
    /// `None` if the upstream accepts no topic aliases.
    aliases: Option<OutboundAliases>,
    /// The upstream's limit in bytes.
    max_packet_size: usize,
    output: BytesMut,
    /// The number of bytes that were ever added to `output`; `written` counts those removed.
    encoded: u64,
    written: u64,
    needs_flush: bool,
    /// The ends of messages in the encoded bytes, with their packet ids.
    unsent: VecDeque<(u64, u16)>,
    input: BytesMut,
    /// The message that is being passed over.
    oversized: Option<Oversized>,
    /// Whether something was read since the last write.
    unacknowledged: bool,
    keep_alive: KeepAlive,
    line: Line,
    accepted: Option<(Link, Option<u16>)>,
    /// Whether the CONNACK has arrived.
    is_open: bool,
    events: Vec<ClientEvent>,
    /// Whether one of the events must be told at once.
    is_news: bool,
    broken: Option<Broken>,
}

impl UpstreamConnection {
    /// A connection on which nothing has been sent. It accepts packets and requests up to these limits.
    pub(super) fn new(
        stream: Box<dyn UpstreamStream>,
        version: Version,
        max_incoming: usize,
        max_requests: usize,
    ) -> UpstreamConnection {
        let socket = stream.socket().and_then(|socket| socket.try_clone_to_owned().ok());
        let pace = socket.as_ref().and_then(|_| ReadPace::new().ok());
        let (reader, writer) = split(stream);
        UpstreamConnection {
            reader,
            writer,
            socket,
            pace,
            version,
            max_incoming,
            requests: VecDeque::new(),
            max_requests,
            message_ids: Ids::new(1, MESSAGE_IDS),
            asked: AskedPackets::new(),
            aliases: None,
            max_packet_size: usize::MAX,
            output: BytesMut::new(),
            encoded: 0,
            written: 0,
            needs_flush: false,
            unsent: VecDeque::new(),
            input: BytesMut::new(),
            oversized: None,
            unacknowledged: false,
            keep_alive: KeepAlive::new(Duration::from_secs(3600)),
            line: Line::default(),
            accepted: None,
            is_open: false,
            events: Vec::new(),
            is_news: false,
            broken: None,
        }
    }

    /// Sends CONNECT and waits for the answer.
    pub(super) async fn open(
        &mut self,
        settings: &UpstreamSettings,
        will: StatusWill,
        password: Option<&Secret>,
    ) -> Result<Link, Broken> {
        let connect = match self.version {
            Version::V31 | Version::V311 => v4::connect(settings, will, password, &mut self.output),
            Version::V5 => v5::connect(settings, (will, password), self.max_incoming, &mut self.output),
        };
        connect.map_err(Broken::Lasting)?;
        self.encoded = self.output.len() as u64;
        loop {
            self.step().await;
            if let Some((mut link, seconds)) = self.accepted.take() {
                if let Some(most) = link.max_packet_size.filter(|most| *most < LEAST_PACKET) {
                    let why = "too little for a message: nothing is sent, and messages wait";
                    return Err(Broken::Lasting(format!("it takes packets of at most {most} bytes, {why}")));
                }
                // an upstream that wants no pings gets them nevertheless, because they detect a dead connection
                let seconds = seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()));
                // and one that allows longer pauses than the configuration gets them as often as the configuration says,
                // because they tell soon that a line is dead
                let period = seconds.map_or(settings.keep_alive, |seconds| seconds.min(settings.keep_alive));
                self.keep_alive = KeepAlive::new(period);
                link.receive_maximum = link.receive_maximum.clamp(1, MESSAGE_IDS);
                self.aliases = Some(link.topic_aliases).filter(|most| *most > 0).map(OutboundAliases::new);
                self.max_packet_size = link.max_packet_size.map_or(LONGEST_PACKET, |size| size as usize);
                if let Some(pace) = &mut self.pace {
                    pace.set_window(link.receive_maximum.min(settings.max_inflight));
                }
                return Ok(link);
            }
            match self.broken.take() {
                Some(broken) => return Err(broken),
                None if !self.events.is_empty() => return Err(Broken::Garbled), // [MQTT-3.2.0-1]
                None => {}
            }
        }
    }

    /// Whether a packet has arrived.
    pub(super) fn was_heard(&self) -> bool {
        self.keep_alive.heard
    }

    /// Accepts a request, unless too many wait.
    pub(super) fn request(&mut self, request: Request) -> Result<(), Busy> {
        if self.requests.len() >= self.max_requests {
            return Err(Busy);
        }
        if let Request::Subscribe(..) | Request::Unsubscribe(_) = request {
            self.asked.has_room()?;
        }
        self.requests.push_back(request);
        Ok(())
    }

    /// The next events. Safe to cancel.
    pub(super) async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        loop {
            if !self.events.is_empty() && !self.waits_for_answers() {
                self.is_news = false;
                return Ok(std::mem::take(&mut self.events));
            }
            if let Some(broken) = &self.broken {
                return Err(broken.clone());
            }
            self.step().await;
        }
    }

    /// Whether nothing has happened but that messages were written that the upstream will answer, and the next read is
    /// due in a moment. It probably brings answers to earlier messages, and both are told in one turn.
    fn waits_for_answers(&self) -> bool {
        !self.is_news && self.broken.is_none() && self.pace.as_ref().is_some_and(ReadPace::is_pausing)
    }

    /// Writes or reads once, or waits until a ping is due. Safe to cancel, because unfinished work stays in the buffers.
    async fn step(&mut self) {
        self.encode();
        self.acknowledge();
        self.input.reserve(READ_BYTES);
        tokio::select! {
            read = read(&mut self.reader, &mut self.input, &mut self.pace, !self.events.is_empty()) => match read {
                Ok(None) => {}
                Ok(Some(0)) => self.broken = Some(Broken::Closed),
                Ok(Some(bytes)) => {
                    self.unacknowledged = true;
                    self.line.read += bytes as u64;
                    self.decode();
                }
                Err(error) => self.broken = Some(tls::broken_io(&error)),
            },
            written = write(&mut self.writer, &mut self.output), if !self.output.is_empty() || self.needs_flush => {
                match written {
                    Ok(0) => self.needs_flush = false,
                    Ok(bytes) => self.wrote(bytes),
                    Err(error) => self.write_failed(tls::broken_io(&error)),
                }
            },
            _ = self.keep_alive.ticks.tick() => self.tick(),
        }
    }

    /// Makes TCP acknowledge at once what was read. Many brokers leave Nagle's algorithm on, so their next packet waits for
    /// this acknowledgement. A write carries it anyway; without a write, the system would delay it by 40 ms.
    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.unacknowledged)
            && self.output.is_empty()
            && let Some(socket) = &self.socket
        {
            // a system without this option is only slower
            let _ = set_tcp_quickack(socket, true);
        }
    }

    fn encode(&mut self) {
        while self.output.len() < WRITE_BYTES
            && let Some(request) = self.requests.pop_front()
        {
            self.append(&request);
        }
    }

    fn append(&mut self, request: &Request) {
        let (before, out) = (self.output.len(), &mut self.output);
        let mut message = None;
        let encoded = match (request, self.version) {
            (Request::Publish(publish), version) => {
                let packet_id = match publish.packet_id {
                    _ if publish.qos == Qos::AtMostOnce => 0,
                    Some(chosen) => chosen,
                    None => self.message_ids.take(),
                };
                let most = self.max_packet_size.saturating_sub(ALIAS_COST);
                let aliases = self.aliases.as_mut().filter(|_| publish.topic.len() > ALIAS_LEN);
                let alias = aliases.as_ref().and_then(|aliases| aliases.get(&publish.topic));
                // an alias that the upstream knows makes the packet shorter
                let alias = alias.filter(|(_, is_known)| *is_known || publish.packet_size(version) <= most);
                publish.encode_as(version, packet_id, alias, out);
                if let Some(aliases) = aliases {
                    aliases.sent(&publish.topic, alias);
                }
                message = Some(packet_id);
                Ok(())
            }
            (Request::Subscribe(filters, wanted), version) => {
                let id = self.asked.next(AskedKind::Subscribe);
                if version == Version::V5 {
                    v5::subscribe((filters, *wanted), id, out)
                } else {
                    v4::subscribe(filters, id, out)
                }
            }
            (Request::Unsubscribe(filters), version) => {
                let id = self.asked.next(AskedKind::Unsubscribe);
                if version == Version::V5 {
                    v5::unsubscribe(filters, id, out)
                } else {
                    v4::unsubscribe(filters, id, out)
                }
            }
            (Request::Ack(ack), _) => match *ack {
                Ack::Taken(packet_id) => answer(PUBACK, packet_id, out),
                Ack::Recorded(packet_id) => answer(PUBREC, packet_id, out),
                Ack::Released(packet_id) => answer(PUBREL, packet_id, out),
                Ack::Completed(packet_id) => answer(PUBCOMP, packet_id, out),
            },
            (Request::Ping, _) => bare(PINGREQ, out),
            (Request::Disconnect, _) => bare(DISCONNECT, out),
        };
        self.encoded += (self.output.len() - before) as u64;
        self.unsent.extend(message.map(|packet_id| (self.encoded, packet_id)));
        if let Err(why) = encoded {
            self.broken = Some(Broken::Failed(why));
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.needs_flush = true;
        while self.unsent.front().is_some_and(|(end, _)| *end <= self.written)
            && let Some((_, packet_id)) = self.unsent.pop_front()
        {
            self.is_news |= packet_id == 0;
            self.events.push(ClientEvent::Sent(packet_id));
        }
        if self.output.is_empty() && self.output.capacity() > KEPT_BYTES {
            self.output = BytesMut::new();
        }
    }

    /// Handles a failed write. If the upstream sent a reason before it closed the connection, that is the better
    /// explanation.
    fn write_failed(&mut self, why: Broken) {
        while self.broken.is_none() {
            self.input.reserve(READ_BYTES);
            match self.reader.read_buf(&mut self.input).now_or_never() {
                Some(Ok(bytes)) if bytes > 0 => self.decode(),
                _ => self.broken = Some(why.clone()),
            }
        }
    }

    fn decode(&mut self) {
        self.keep_alive.heard = true;
        while self.broken.is_none() {
            match self.next_packet() {
                Ok(None) => break,
                Ok(Some(incoming)) => {
                    self.keep_alive.has_packet = true;
                    self.take(incoming);
                }
                Err(broken) => self.broken = Some(broken),
            }
        }
        if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
            self.input = BytesMut::new();
        }
    }

    /// The next complete packet.
    fn next_packet(&mut self) -> Result<Option<Incoming>, Broken> {
        if self.oversized.is_some() {
            return Ok(self.go_past());
        }
        // what is no MQTT may be shorter than the length that it seems to have
        self.input.first().map_or(Ok(()), |first| check_kind(*first, self.version, self.is_open))?;
        let Some(length) = packet_length(&self.input)? else { return Ok(None) };
        if length > self.max_incoming {
            return self.pass_over(length);
        }
        if self.input.len() < length {
            return Ok(None);
        }
        if length == 2 && self.input[0] == PINGRESP && self.is_open {
            self.line.ping_answered();
            self.input.advance(length);
            return Ok(Some(Incoming::Event(ClientEvent::Pinged)));
        }
        let mut packet = self.input.split_to(length);
        let version = self.version;
        // a panic caused by input from outside must not end the gateway
        let decoded = catch_unwind(AssertUnwindSafe(|| match version {
            Version::V31 | Version::V311 => v4::decode(&mut packet),
            Version::V5 => v5::decode(&mut packet),
        }));
        decoded.unwrap_or(Err(Broken::Garbled)).map(Some)
    }

    fn take(&mut self, incoming: Incoming) {
        match incoming {
            // [MQTT-3.2.0-2]
            Incoming::Accepted(..) if self.is_open => {
                self.broken = Some(Broken::Failed("it sent a second CONNACK".into()));
            }
            Incoming::Accepted(link, keep_alive) => (self.is_open, self.accepted) = (true, Some((link, keep_alive))),
            Incoming::Event(event) => self.tell(event),
            Incoming::Subscribed(id, reasons) => {
                let event = self.asked.event(id, AskedKind::Subscribe, reasons);
                self.tell(event);
            }
            Incoming::Unsubscribed(id, reasons) => {
                let event = self.asked.event(id, AskedKind::Unsubscribe, reasons);
                self.tell(event);
            }
            Incoming::Other => {}
        }
    }

    fn tell(&mut self, event: ClientEvent) {
        self.is_news = true;
        self.events.push(event);
    }
}

/// Reads available bytes when their time has come. If there are none then, waits for them, or returns `None` if events wait
/// to be told.
async fn read(
    reader: &mut ReadHalf<Box<dyn UpstreamStream>>,
    input: &mut BytesMut,
    pace: &mut Option<ReadPace>,
    has_events: bool,
) -> io::Result<Option<usize>> {
    if let Some(pace) = pace {
        pace.turn().await?;
    }
    let bytes = if has_events {
        let Some(bytes) = reader.read_buf(input).now_or_never() else { return Ok(None) };
        bytes?
    } else {
        reader.read_buf(input).await?
    };
    if let Some(pace) = pace {
        pace.has_read();
    }
    Ok(Some(bytes))
}

/// Writes available bytes, or flushes if there are none, and then returns 0.
async fn write(writer: &mut WriteHalf<Box<dyn UpstreamStream>>, output: &mut BytesMut) -> io::Result<usize> {
    if output.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    match writer.write_buf(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        bytes => Ok(bytes),
    }
}

/// Encodes a successful acknowledgement, which is the same in both versions [MQTT-3.4].
fn answer(kind: u8, packet_id: u16, out: &mut BytesMut) -> Result<(), String> {
    out.put_slice(&[kind, 2]);
    out.put_u16(packet_id);
    Ok(())
}

/// Encodes a packet without contents, which is the same in both versions [MQTT-3.12, MQTT-3.14].
fn bare(kind: u8, out: &mut BytesMut) -> Result<(), String> {
    out.put_slice(&[kind, 0]);
    Ok(())
}
