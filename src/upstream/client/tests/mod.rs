//! Tests of what the client sends and accepts, with a simulated upstream.

mod first;
mod line;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use proptest::prelude::*;
use rumqttc::{mqttbytes as p4, v5::mqttbytes as p5};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

use super::*;
use crate::upstream::wire::{InMessage, OversizedMessage, RetainedWanted, StatusWill};

/// Counts the writes to a stream.
struct Counted(DuplexStream, Arc<AtomicUsize>);

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl UpstreamStream for Counted {
    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

fn settings() -> UpstreamSettings {
    UpstreamSettings::new("home", vec![UpstreamAddress::parse("mqtt://127.0.0.1").unwrap()], "loft")
}

fn message(payload: &[u8], qos: Qos) -> OutMessage {
    let payload = Bytes::copy_from_slice(payload);
    let (topic, properties) = ("loft/motion1".into(), Vec::new());
    OutMessage { topic, payload, qos, retain: false, properties, packet_id: None, is_repeated: false }
}

/// An open connection, the upstream's side with a buffer of this many bytes, and the number of writes.
async fn opened(version: Version, line: usize) -> (UpstreamConnection, DuplexStream, Arc<AtomicUsize>) {
    let connack: &[u8] = if version == Version::V5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] };
    opened_by(version, line, connack).await
}

/// The same, with this answer of the upstream.
async fn opened_by(
    version: Version,
    line: usize,
    connack: &[u8],
) -> (UpstreamConnection, DuplexStream, Arc<AtomicUsize>) {
    let (ours, mut theirs) = duplex(line);
    let writes = Arc::new(AtomicUsize::new(0));
    let stream = Box::new(Counted(ours, writes.clone()));
    let mut connection = UpstreamConnection::new(stream, version, 1000, 100);
    let upstream = async {
        let (_, connect) = packet(&mut theirs).await;
        assert_eq!(connect[6], if version == Version::V5 { 5 } else { 4 });
        theirs.write_all(connack).await.unwrap();
    };
    let settings = settings();
    let (link, ()) = tokio::join!(connection.open(&settings, StatusWill::Whole, None), upstream);
    assert_eq!(link.unwrap().version, version);
    writes.store(0, Ordering::Relaxed);
    (connection, theirs, writes)
}

/// The first byte and the body of the next packet, which must be short.
async fn packet(stream: &mut DuplexStream) -> (u8, Vec<u8>) {
    let (first, length) = (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap());
    assert!(length < 0x80);
    let mut body = vec![0; length.into()];
    stream.read_exact(&mut body).await.unwrap();
    (first, body)
}

#[tokio::test]
async fn what_was_handed_over_meanwhile_leaves_in_one_write() {
    for version in [Version::V311, Version::V5] {
        let (mut connection, mut theirs, writes) = opened(version, 64 << 10).await;
        for number in 0..50 {
            connection.request(Request::Publish(message(&[number], Qos::AtLeastOnce))).unwrap();
        }
        let events = connection.events().await.unwrap();
        assert_eq!(events, (1..=50).map(ClientEvent::Sent).collect::<Vec<_>>());
        assert_eq!(writes.load(Ordering::Relaxed), 1);
        for number in 0..50 {
            let (first, body) = packet(&mut theirs).await;
            assert_eq!((first, body.last()), (0x32, Some(&number)));
        }
    }
}

#[tokio::test]
async fn topics_are_said_once_where_the_upstream_takes_aliases() {
    // two aliases, and packets of at most 128 bytes
    let connack = [0x20, 11, 0, 0, 8, 0x22, 0, 2, 0x27, 0, 0, 0, 128];
    let (mut connection, mut theirs, _) = opened_by(Version::V5, 64 << 10, &connack).await;
    let on = |topic: &str, properties: &[u8], size: usize| OutMessage {
        topic: topic.into(),
        properties: properties.to_vec(),
        ..message(&vec![b'x'; size], Qos::AtLeastOnce)
    };
    let largest = 128 - on("large", b"", 0).packet_size(Version::V5);
    let sent = [
        on("large", b"", largest),
        on("loft/motion1", b"", 1),
        on("loft/motion1", &[1, 1], 1),
        on("attic", b"", 1),
        on("cellar", b"", 1),
        on("attic", b"", 1),
        on("a/b", b"", 1),
    ];
    for message in sent {
        connection.request(Request::Publish(message)).unwrap();
    }
    connection.events().await.unwrap();
    let mut heads = Vec::new();
    for _ in 0..7 {
        let (_, body) = packet(&mut theirs).await;
        heads.push(body[..body.iter().rposition(|byte| *byte != b'x').unwrap() + 1].to_vec());
    }
    let expected: [&[u8]; 7] = [
        b"\0\x05large\0\x01\0",
        b"\0\x0cloft/motion1\0\x02\x03\x23\0\x01",
        b"\0\0\0\x03\x05\x23\0\x01\x01\x01",
        b"\0\x05attic\0\x04\x03\x23\0\x02",
        b"\0\x06cellar\0\x05\0",
        b"\0\0\0\x06\x03\x23\0\x02",
        b"\0\x03a/b\0\x07\0",
    ];
    assert_eq!(heads, expected);
    // no alias is used if the upstream accepts none
    let (mut connection, mut theirs, _) = opened(Version::V5, 1024).await;
    for _ in 0..2 {
        connection.request(Request::Publish(on("attic", b"", 0))).unwrap();
    }
    connection.events().await.unwrap();
    for id in [1, 2] {
        assert_eq!(packet(&mut theirs).await.1, [&b"\0\x05attic\0"[..], &[id, 0]].concat());
    }
}

#[tokio::test]
async fn a_message_is_sent_when_its_last_byte_has_left() {
    let (mut connection, mut theirs, _) = opened(Version::V311, 100).await;
    let size = message(&[0; 50], Qos::AtMostOnce).packet_size(Version::V311);
    for _ in 0..2 {
        connection.request(Request::Publish(message(&[0; 50], Qos::AtMostOnce))).unwrap();
    }
    assert_eq!(connection.events().await.unwrap(), [ClientEvent::Sent(0)]);
    assert!(connection.events().now_or_never().is_none());
    theirs.read_exact(&mut vec![0; size]).await.unwrap();
    assert_eq!(connection.events().await.unwrap(), [ClientEvent::Sent(0)]);
}

#[tokio::test]
async fn a_message_at_qos_2_is_answered_in_two_steps() {
    for version in [Version::V311, Version::V5] {
        let (mut connection, mut theirs, _) = opened(version, 1024).await;
        let publish: &[u8] =
            if version == Version::V5 { b"\x34\x07\0\x01t\0\x09\0x" } else { b"\x34\x06\0\x01t\0\x09x" };
        theirs.write_all(publish).await.unwrap();
        let expected = InMessage {
            packet_id: 9,
            topic: "t".into(),
            payload: Bytes::from_static(b"x"),
            qos: Qos::ExactlyOnce,
            retain: false,
            is_repeated: false,
            expiry: None,
            properties: Vec::new(),
        };
        assert_eq!(connection.events().await.unwrap(), [ClientEvent::Received(expected)]);
        connection.request(Request::Ack(Ack::Recorded(9))).unwrap();
        let upstream = async {
            assert_eq!(packet(&mut theirs).await, (0x50, vec![0, 9]));
            theirs.write_all(&[0x62, 2, 0, 9]).await.unwrap();
        };
        let (events, ()) = tokio::join!(connection.events(), upstream);
        assert_eq!(events.unwrap(), [ClientEvent::Released(9)]);
        connection.request(Request::Ack(Ack::Completed(9))).unwrap();
        tokio::select! {
            packet = packet(&mut theirs) => assert_eq!(packet, (0x70, vec![0, 9])),
            events = connection.events() => panic!("{events:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_answers_pings_is_there_and_another_is_not() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 1024).await;
    let begin = tokio::time::Instant::now();
    let upstream = async {
        for _ in 0..10 {
            assert_eq!(packet(&mut theirs).await, (0xc0, vec![]));
            theirs.write_all(&[0xd0, 0]).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let events = async {
        for _ in 0..10 {
            assert_eq!(connection.events().await, Ok(vec![ClientEvent::Pinged]));
        }
        connection.events().await
    };
    tokio::select! {
        () = upstream => {}
        events = events => assert_eq!(events, Err(Broken::Silent)),
    }
    // ten pings are answered, one is not, and one more interval passes
    assert_eq!(begin.elapsed().as_secs(), 12 * settings().keep_alive.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_takes_long_on_a_slow_line_is_not_silence() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 100).await;
    connection.request(Request::Publish(message(&[0; 2000], Qos::AtLeastOnce))).unwrap();
    let upstream = async {
        loop {
            // the whole message takes several times the keep alive
            tokio::time::sleep(settings().keep_alive / 4).await;
            theirs.read_exact(&mut [0; 100]).await.unwrap();
        }
    };
    let (mut sent, mut upstream) = (false, std::pin::pin!(upstream));
    while !sent {
        tokio::select! {
            () = &mut upstream => {}
            events = connection.events() => sent = events.unwrap() == [ClientEvent::Sent(1)],
        }
    }
}

#[tokio::test]
async fn answers_and_reasons_come_before_the_end() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 1024).await;
    for _ in 0..2 {
        connection.request(Request::Publish(message(b"1", Qos::AtLeastOnce))).unwrap();
    }
    assert_eq!(connection.events().await.unwrap(), [ClientEvent::Sent(1), ClientEvent::Sent(2)]);
    theirs.write_all(&[0x40, 2, 0, 1, 0x40, 3, 0, 2, 0x97, 0xe0, 1, 0x95]).await.unwrap();
    drop(theirs);
    // this message cannot be written any more
    connection.request(Request::Publish(message(b"2", Qos::AtLeastOnce))).unwrap();
    assert_eq!(connection.events().await.unwrap(), [ClientEvent::Acked(1, 0), ClientEvent::Acked(2, 0x97)]);
    assert_eq!(connection.events().await, Err(Broken::Dismissed(0x80, "packet too large".into())));
}

#[tokio::test]
async fn requests_are_bounded() {
    let (mut connection, ..) = opened(Version::V311, 1024).await;
    for _ in 0..100 {
        connection.request(Request::Publish(message(b"", Qos::AtMostOnce))).unwrap();
    }
    assert_eq!(connection.request(Request::Disconnect), Err(Busy));
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_named_before_it_is_there() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 1024).await;
    theirs.write_all(&[0x90, 0xe8, 0x07]).await.unwrap();
    let Err(Broken::Failed(why)) = connection.events().await else { panic!("taken") };
    assert!(why.contains("1003 bytes") && why.contains("1000"), "{why}");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_passed_over_and_the_next_one_is_taken() {
    for version in [Version::V311, Version::V5] {
        for (qos, packet_id) in [(Qos::AtMostOnce, 0), (Qos::AtLeastOnce, 7), (Qos::ExactlyOnce, 7)] {
            let (mut connection, mut theirs, _) = opened(version, 1024).await;
            let large = OutMessage { topic: "large".into(), ..message(&[0; 3 << 20], qos) };
            let mut bytes = BytesMut::new();
            large.encode(version, 7, &mut bytes);
            message(b"small", Qos::AtMostOnce).encode(version, 0, &mut bytes);
            let upstream = async {
                // with an end of a read at every place of the head
                for byte in &bytes[..20] {
                    theirs.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                theirs.write_all(&bytes[20..]).await.unwrap();
            };
            let events = async {
                let mut events = Vec::new();
                while events.len() < 2 {
                    events.extend(connection.events().await.unwrap());
                }
                events
            };
            let (events, ()) = tokio::join!(events, upstream);
            let size = (3 << 20) + usize::from(version == Version::V5);
            let head = OversizedMessage { packet_id, topic: "large".into(), qos, size };
            assert_eq!(events[0], ClientEvent::TooLarge(head));
            let ClientEvent::Received(message) = &events[1] else { panic!("{events:?}") };
            assert_eq!(&message.payload[..], b"small");
        }
    }
}

#[tokio::test]
async fn a_broker_that_does_not_know_version_5_is_understood() {
    let (ours, mut theirs) = duplex(1024);
    let stream = Box::new(Counted(ours, Arc::default()));
    let mut connection = UpstreamConnection::new(stream, Version::V5, 1000, 100);
    theirs.write_all(&[0x20, 2, 0, 1]).await.unwrap();
    assert_eq!(connection.open(&settings(), StatusWill::Whole, None).await, Err(Broken::Version));
}

/// The reason for which a connection ends if the upstream sends these bytes after CONNACK.
async fn ends(version: Version, said: &[u8]) -> String {
    let (mut connection, mut theirs, _) = opened(version, 64 << 10).await;
    theirs.write_all(said).await.unwrap();
    connection.events().await.unwrap_err().to_string()
}

#[tokio::test]
async fn what_an_upstream_may_not_send_ends_the_connection_and_is_not_acknowledged() {
    let (v4, v5) = (Version::V311, Version::V5);
    for (version, said, expected) in [
        (v4, &b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01x"[..], "CONNECT, which only clients send"),
        (v5, b"\x82\x06\0\x01\0\x01#\0", "SUBSCRIBE, which only clients send"),
        (v4, b"\xa2\x05\0\x01\0\x01#", "UNSUBSCRIBE"),
        (v4, b"\xc0\0", "PINGREQ"),
        (v5, b"\xf0\x02\x18\0", "AUTH"),
        (v4, b"\xf0\0", "not MQTT"),
        (v4, b"\x20\x02\0\0", "a second CONNACK"),
        (v5, b"\x20\x03\0\0\0", "a second CONNACK"),
        (v4, b"\x32\x07\0\x03a/#\0\x01", "\"a/#\", which contains a wildcard"),
        (v5, b"\x30\x05\0\0\0hi", "which is empty"),
        (v5, b"\x30\x08\0\0\x03\x23\0\x01hi", "topic alias"),
        (v5, b"\x30\x09\0\x01a\x03\x23\0\0hi", "topic alias"),
        (v4, b"\x32\x05\0\x01a\0\0", "not MQTT"),
        (v4, b"\x30\xff\xff\xff\xff\x01", "not MQTT"),
        (v4, b"\x30\x05\0\x02\xff\xfex", "not MQTT"),
        (v4, b"\x36\x06\0\x01a\0\x01x", "not MQTT"),
        (v4, b"\xe0\0", "closed the connection"),
        (v4, b"\x36\xe8\x07", "not MQTT"),
        (v4, b"\x32\xe8\x07\x03\xe8", "not MQTT"),
        (v4, b"\x32\xe8\x07\0\x01a\0\0", "a message without a packet id"),
        (v5, b"\x30\xe8\x07\0\0\x03\x23\0\x01", "which is empty"),
        (
            v5,
            b"\xe0\x11\x9d\x0f\x1c\0\x0cevil.example",
            "server moved: it names evil.example, which is gone to only if",
        ),
        (v5, b"\xe0\x09\x97\x07\x1f\0\x04a\n\x1bb", "quota exceeded (a??b)"),
    ] {
        let why = ends(version, said).await;
        assert!(why.contains(expected), "{why}, not {expected}");
    }
}

#[tokio::test]
async fn a_refused_subscription_may_have_a_code_of_version_5() {
    let (mut connection, mut theirs, _) = opened(Version::V311, 64 << 10).await;
    let filters = ["a", "b"].map(|filter| (TopicFilter::new(filter).unwrap(), Qos::AtLeastOnce));
    connection.request(Request::Subscribe(filters.to_vec(), RetainedWanted::IfNew)).unwrap();
    theirs.write_all(b"\x90\x04\xff\x00\x87\x01").await.unwrap();
    assert_eq!(connection.events().await, Ok(vec![ClientEvent::Subscribed(0, vec![0x87, 1])]));
    for wrong in [&b"\x90\x03\0\x01\x03"[..], b"\x90\x02\0\x01", b"\x90\0"] {
        assert!(ends(Version::V311, wrong).await.contains("not MQTT"));
    }
}

#[tokio::test]
async fn properties_that_clients_would_not_take_are_left_out() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 64 << 10).await;
    let properties = b"\x01\x07\x08\0\x01#\x26\0\x01k\0\x01\0\x26\0\x01a\0\x01b\x03\0\x01\0";
    theirs.write_all(&[&b"\x30\x1d\0\x01a\x18"[..], properties, b"x"].concat()).await.unwrap();
    let events = connection.events().await.unwrap();
    let [ClientEvent::Received(message)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((&message.properties[..], &message.payload[..]), (&b"\x26\0\x01a\0\x01b"[..], &b"x"[..]));
}

#[tokio::test]
async fn a_reason_may_be_long() {
    let (mut connection, mut theirs, _) = opened(Version::V5, 64 << 10).await;
    let long = |first: u8, reason: u8| {
        let mut packet = vec![first, 0xce, 1, 0x12, 0x34, reason, 0xc9, 1, 0x1f, 0, 198];
        packet.extend([b'r'; 198]);
        packet
    };
    theirs
        .write_all(&[long(0x40, 0x97), long(0x50, 0), long(0x50, 0x91), long(0x62, 0), long(0x70, 0)].concat())
        .await
        .unwrap();
    let mut events = Vec::new();
    while events.len() < 5 {
        events.extend(connection.events().await.unwrap());
    }
    let id = 0x1234;
    let expected = [
        ClientEvent::Acked(id, 0x97),
        ClientEvent::Recorded(id),
        ClientEvent::Acked(id, 0x91),
        ClientEvent::Released(id),
        ClientEvent::Completed(id),
    ];
    assert_eq!(events, expected);
}

#[tokio::test]
async fn an_upstream_that_takes_no_message_at_all_is_not_given_any() {
    for (most, refused) in [(0, true), (20, true), (127, true), (128, false)] {
        let (ours, mut theirs) = duplex(64 << 10);
        theirs.write_all(&[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, most]).await.unwrap();
        let offer =
            ConnectOffer { version: Version::V5, will: StatusWill::Whole, is_trial: false, has_small_segments: false };
        let settings = settings();
        let client = RemoteClient::over(ours, &settings, &settings.addresses[0], offer, 1000).await;
        match client {
            Err(why) => assert!(refused && why.to_string().contains("too little for a message"), "{most}: {why}"),
            Ok((_, link)) => assert!(!refused && link.max_packet_size == Some(most.into())),
        }
    }
}

#[test]
fn packet_ids_come_round() {
    let mut ids = connection::Ids::new(3, 5);
    assert_eq!([(); 5].map(|()| ids.take()), [3, 4, 5, 3, 4]);
}

fn out_messages() -> impl Strategy<Value = OutMessage> {
    let lengths = prop_oneof![0..10usize, 100..140usize, 16_300..16_400usize];
    (any::<bool>(), any::<bool>(), lengths, "[a-z/]{1,20}").prop_map(|(at_least_once, retain, length, topic)| {
        let qos = if at_least_once { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        let (payload, properties) = (Bytes::from(vec![7; length]), vec![1, 1]);
        OutMessage { topic, payload, qos, retain, properties, packet_id: None, is_repeated: false }
    })
}

proptest! {
    #[test]
    fn a_message_is_encoded_as_rumqttc_would(message in out_messages(), packet_id in 1..=u16::MAX) {
        let is_durable = message.qos == Qos::AtLeastOnce;
        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        message.encode(Version::V311, packet_id, &mut ours);
        let qos = if is_durable { p4::QoS::AtLeastOnce } else { p4::QoS::AtMostOnce };
        let mut publish = p4::v4::Publish::new(&message.topic, qos, message.payload.to_vec());
        (publish.retain, publish.pkid) = (message.retain, packet_id);
        publish.write(&mut theirs).unwrap();
        prop_assert_eq!(&ours, &theirs);
        prop_assert_eq!(ours.len(), message.packet_size(Version::V311));

        let (mut ours, mut theirs) = (BytesMut::new(), BytesMut::new());
        message.encode(Version::V5, packet_id, &mut ours);
        let qos = if is_durable { p5::QoS::AtLeastOnce } else { p5::QoS::AtMostOnce };
        let properties = p5::v5::PublishProperties { payload_format_indicator: Some(1), ..Default::default() };
        let mut publish = p5::v5::Publish::new(&message.topic, qos, message.payload.clone(), Some(properties));
        (publish.retain, publish.pkid) = (message.retain, packet_id);
        publish.write(&mut theirs).unwrap();
        prop_assert_eq!(&ours, &theirs);
        prop_assert_eq!(ours.len(), message.packet_size(Version::V5));
    }

    #[test]
    fn whatever_an_upstream_says_ends_the_connection_at_most(
        packets in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
        is_v5 in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut connection, mut theirs, _) =
                opened(if is_v5 { Version::V5 } else { Version::V311 }, 64 << 10).await;
            for (first, body) in packets {
                let first = if first & 1 == 0 { 0x40 } else { first };
                theirs.write_all(&[first, body.len() as u8]).await.unwrap();
                theirs.write_all(&body).await.unwrap();
            }
            drop(theirs);
            while connection.events().await.is_ok() {}
        });
    }
}
