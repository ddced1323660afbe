//! Targets for the data that MQTT clients send.

use pigateway::broker::connection::serve;
use pigateway::message::check_topic;
use pigateway::mqtt::{Connect, Frame, PacketType, Publish, Subscribe, Unsubscribe, Version};
use pigateway::mqtt::{acknowledgement, disconnect, frame, topic_of_publish, whole_size};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::house::{House, LARGEST, house, peer};
use super::meter::paid_by;

/// The first packet of a connection while it arrives. Any prefix of it must be read without a panic, and must not be
/// decoded differently from the whole.
pub(super) fn first_bytes(data: &[u8]) {
    // a filter of one byte costs as much as a long one
    paid_by(data.len(), (4 << 10, 64), || {
        let strict = frame(data, LARGEST, Version::V5);
        // filters that the newer versions accept are accepted by the oldest too
        let Ok(Some(whole)) = frame(data, LARGEST, Version::V31) else {
            assert!(!matches!(strict, Ok(Some(_))));
            return;
        };
        assert!(whole.body <= whole.len && whole.len <= data.len());
        assert_eq!(whole_size(data), Some(whole.len));
        for end in 0..whole.len.min(64) {
            let part = frame(&data[..end], LARGEST, Version::V31);
            assert!(!matches!(part, Ok(Some(_)) | Err(_)), "understood before it was complete");
        }
        let body = &data[whole.body..whole.len];
        if whole.kind == PacketType::Connect
            && let Ok(connect) = Connect::decode(body)
        {
            assert!(connect.client_id.len() <= body.len());
            assert!(!connect.client_id.contains('\0'));
        }
        for version in [Version::V31, Version::V311, Version::V5] {
            decode(&whole, &data[..whole.len], body, version);
        }
    });
}

fn decode(whole: &Frame, packet: &[u8], body: &[u8], version: Version) {
    match whole.kind {
        PacketType::Publish => {
            if let Ok(publish) = Publish::decode(whole, packet, version) {
                assert!(publish.topic.is_empty() || check_topic(publish.topic).is_ok());
                assert_eq!(topic_of_publish(packet), Some(publish.topic));
                assert!(publish.payload.len() + publish.topic.len() + 2 <= body.len());
            }
        }
        PacketType::Subscribe => {
            if let Ok(subscribe) = Subscribe::decode(body, version) {
                assert!(!subscribe.filters.is_empty() && subscribe.packet_id > 0);
                // a filter needs at least two bytes for its length and one for its options
                assert!(subscribe.filters.len() * 3 <= body.len());
            }
        }
        PacketType::Unsubscribe => {
            if let Ok(unsubscribe) = Unsubscribe::decode(body, version) {
                assert!(!unsubscribe.filters.is_empty() && unsubscribe.filters.len() * 2 <= body.len());
            }
        }
        PacketType::Disconnect => drop(disconnect(body, version)),
        _ => {
            if let Ok((packet_id, _)) = acknowledgement(body, version) {
                assert!(packet_id > 0);
            }
        }
    }
}

/// A whole connection. Whatever bytes the client sends, the session ends with the connection and without a panic.
pub(super) fn packets(data: &[u8]) {
    let house = house();
    let House { runtime, core, .. } = house;
    runtime.block_on(house.serves(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        let session = tokio::spawn(serve(core.clone(), reader, writer, peer()));
        // the session may close the connection before it has read everything
        let _ = client.write_all(data).await;
        let _ = client.shutdown().await;
        let mut said = Vec::new();
        let _ = client.read_to_end(&mut said).await;
        assert!(session.await.is_ok());
        if let Some(first) = said.first() {
            assert_eq!(*first, 0x20, "the first that a server says is CONNACK");
        }
    }));
    assert_eq!(core.stats.panics.get(), 0, "a session has panicked");
}
